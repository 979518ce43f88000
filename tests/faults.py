"""Faults that are planted for real in a lab, and the question whose answer must name the cause: docs/faults.md.

Each is a context manager: planted inside, mended afterwards. Nodes are n1, n2, n3 with two Pods each, and a host outside.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from router.subnets.file import format_table, parse_table
from shim.answers import Limits
from shim.client import ClientError
from shim.lab import Lab, netns, plan
from shim.lab.node import LabNode
from shim.lab.pod import LabPod
from tests.accounts import eventually

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs/faults.md"

# In the Pod: UDP as fast as it goes; a frame that is no packet.
_FLOOD = "import socket,sys; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 40009))\nfor _ in range(400): s.sendto(bytes(1400), (sys.argv[1], 9))"
_GARBAGE = (
    "import socket; s=socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM); s.bind(('eth0', 0x0800)); "
    "s.sendto(bytes([0x45]) + bytes(39), ('eth0', 0x0800))"
)


@dataclass(frozen=True, slots=True)
class Ground:
    """The lab and what is planted in it."""

    lab: Lab

    @property
    def n1(self) -> LabNode:
        return self.lab.node("n1")

    @property
    def n2(self) -> LabNode:
        return self.lab.node("n2")

    @property
    def n3(self) -> LabNode:
        return self.lab.node("n3")

    def pod(self, name: str) -> LabPod:
        found = self.lab.find(name)
        assert isinstance(found, LabPod)
        return found

    def v4(self, name: str) -> str:
        return str(self.pod(name).addresses[0])

    def state(self, node: LabNode, peer: str) -> str:
        with node.client() as client:
            return next(each.state for each in client.peers().peers if each.node.name == peer)

    def wait_state(self, node: LabNode, peer: str, state: str) -> None:
        eventually(lambda: self.state(node, peer) == state, 20, f"{peer} {state} for {node.name}")

    def tables(self, subnets: dict[str, tuple[str, list[str]]], *nodes: LabNode) -> None:
        """Write a table for these nodes, and wait until they have read it, be it to refuse it."""
        before = {node.name: _table(node) for node in nodes}
        self.lab.write_subnets(subnets, nodes)
        for node in nodes:
            eventually(lambda node=node: _table(node) != before[node.name], 10, f"a new table on {node.name}")

    def own_table(self) -> dict[str, tuple[str, list[str]]]:
        return {node.name: (node.endpoint, [str(each) for each in node.plan.subnets]) for node in self.lab.nodes}


def _table(node: LabNode) -> object:
    with node.client() as client:
        status = client.status()
        return status.table_version, status.table_error


Plant = Callable[[Ground], AbstractContextManager[str]]
"""Yields the address, name or the like that stands for {} in the command."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    name: str
    how: str
    """How it is planted, for people."""
    node: str
    """On which the question is asked."""
    command: str
    """The question; {} is what `plant` yields."""
    cause: tuple[str, ...]
    """What the answer must contain."""
    plant: Plant


FAULTS: list[Fault] = []


def _fault(
    name: str, how: str, command: str, *cause: str, node: str = "n1"
) -> Callable[[Callable[[Ground], Iterator[str]]], Plant]:
    def make(function: Callable[[Ground], Iterator[str]]) -> Plant:
        plant = contextmanager(function)
        FAULTS.append(Fault(name, how, node, command, cause, plant))
        return plant

    return make


# Tables


@_fault(
    "wrong subnet",
    "the table of n2 gives n1 another subnet than it has",
    "podwire trace n1p1 {}",
    "spoofed_source", "the tables of n1 and n2 differ",
)  # fmt: skip
def wrong_subnet(on: Ground) -> Iterator[str]:
    table = on.own_table()
    table["n1"] = (on.n1.endpoint, ["10.42.91.0/24", "fd42:0:0:91::/64"])
    on.tables(table, on.n2)
    yield on.v4("n2p1")
    on.tables(on.own_table(), on.n2)


@_fault(
    "wrong node",
    "the table of n1 gives n3's subnet to n2",
    "podwire trace n1p1 {}",
    "wrong_node", "the tables of n1 and n2 differ",
)  # fmt: skip
def wrong_node(on: Ground) -> Iterator[str]:
    table = on.own_table()
    table["n2"], table["n3"] = (on.n2.endpoint, table["n3"][1]), (on.n3.endpoint, table["n2"][1])
    on.tables(table, on.n1)
    yield on.v4("n3p1")
    on.tables(on.own_table(), on.n1)


@_fault(
    "exchanged endpoints",
    "the table of n1 has the endpoints of n2 and n3 the wrong way round",
    "podwire trace n1p1 {}",
    "the table of n1 has for n2 calls itself n3",
)
def exchanged(on: Ground) -> Iterator[str]:
    table = on.own_table()
    table["n2"], table["n3"] = (on.n3.endpoint, table["n2"][1]), (on.n2.endpoint, table["n3"][1])
    on.tables(table, on.n1)
    yield on.v4("n2p1")
    on.tables(on.own_table(), on.n1)
    _whole(on)


@_fault(
    "clone",
    "two nodes in the table have the same endpoint",
    "podwire trace n1p1 {}",
    "no_route", "newest table was refused", "n9",
)  # fmt: skip
def clone(on: Ground) -> Iterator[str]:
    on.tables(on.own_table() | {"n9": (on.n2.endpoint, ["10.42.9.0/24"])}, on.n1)
    yield "10.42.9.2"
    on.tables(on.own_table(), on.n1)


@_fault(
    "stale epoch",
    "n2 lost its subnets and has them again, and does not know it: its table is of epoch 4, that of n1 of 5",
    "podwire trace n2p1 {}",
    "n1", "stale_epoch",
    node="n2",
)  # fmt: skip
def stale_epoch(on: Ground) -> Iterator[str]:
    like = on.n3.subnets_path.read_text()
    nodes = parse_table(like, on.n3.subnets_path)
    for node, epoch in ((on.n1, 5), (on.n2, 4)):
        before = _table(node)
        rows = tuple(replace(each, epoch=epoch if each.name == "n2" else 1) for each in nodes)
        node.subnets_path.write_text(format_table(rows))
        eventually(lambda node=node, before=before: _table(node) != before, 10, "a new table")
    yield on.v4("n1p1")
    # Epochs only grow: n2 is told of its own, as its lease would tell it.
    on.n2.subnets_path.write_text(on.n1.subnets_path.read_text())
    on.tables(on.own_table(), on.n1, on.n2)


@_fault(
    "full address pool",
    "n3 has a subnet of four addresses, and one Pod too many is attached",
    "podwire trace n3p9 {}",
    "attachment was refused", "no IPv4 address is free",
    node="n3",
)  # fmt: skip
def full_pool(on: Ground) -> Iterator[str]:
    table = on.own_table()
    table["n3"] = (on.n3.endpoint, ["10.42.93.0/30", "fd42:0:0:93::/64"])
    on.tables(table, on.n3)
    with ExitStack() as stack:
        for number in (8, 9):
            name = f"pwt-{on.lab.name}-{number}"
            netns.create(name, plan.POD_SYSCTLS)
            stack.callback(netns.delete, name)
            with on.n3.client() as client:
                stack.callback(_detach, on.n3, name)
                labels = {"namespace": on.lab.name, "name": f"n3p{number}"}
                with pytest.raises(ClientError) if number == 9 else nullcontext():
                    client.attach(name, "eth0", str(netns.path_of(name)), labels=labels)
        yield on.v4("n1p1")
    on.tables(on.own_table(), on.n3)


def _detach(node: LabNode, sandbox_id: str) -> None:
    with node.client() as client:
        client.detach(sandbox_id, "eth0")


# The underlay


def _ruleset(family: str, hook: str, rules: Iterable[str]) -> str:
    lines = [f"add rule {family} fault links {rule} drop" for rule in rules]
    chain = f"add chain {family} fault links {{ type filter hook {hook} priority -10; }}"
    return "\n".join((f"add table {family} fault", chain, *lines, ""))


@contextmanager
def hole(lab: Lab, *rules: str) -> Iterator[None]:
    """Have the bridge drop what rules of nftables match."""
    where = netns.path_of(lab.plan.underlay_netns)
    # The bridge would see trains of datagrams as one long packet; so they are cut before, as on a real wire.
    for node in lab.nodes:
        node.run(["ip", "link", "set", "eth0", "gso_max_segs", "1"])
    done = netns.run(where, ["nft", "-f", "-"], input=_ruleset("bridge", "forward", rules))
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        netns.run(where, ["nft", "delete", "table", "bridge", "fault"])
        for node in lab.nodes:
            node.run(["ip", "link", "set", "eth0", "gso_max_segs", "65535"])


@_fault(
    "MTU hole",
    "the bridge between the nodes drops UDP datagrams of more than 1428 bytes, and tells nobody",
    "podwire trace n1p1 {} --size 1452 --df",
    "too big", "MTU hole",
)  # fmt: skip
def mtu_hole(on: Ground) -> Iterator[str]:
    with hole(on.lab, "ip protocol udp ip length > 1428"):
        eventually(lambda: 1300 < _mtu(on.n1, "n2") <= 1380, 20, "the hole known")
        time.sleep(1.0)  # the search of the last bytes
        yield on.v4("n2p1")
    for node in (on.n1, on.n2, on.n3):
        eventually(
            lambda node=node: all(_mtu(node, each.name) == 1452 for each in on.lab.nodes if each is not node), 20
        )


def _mtu(node: LabNode, peer: str) -> int:
    with node.client() as client:
        return next(each.mtu_bytes for each in client.peers().peers if each.node.name == peer)


@_fault(
    "dead peer",
    "the router of n2 is killed and its wire cut",
    "podwire trace n1p1 {}",
    "n2 is dead, or the underlay between is cut",
)
def dead_peer(on: Ground) -> Iterator[str]:
    address = on.v4("n2p1")
    on.n2.kill9()
    where = netns.path_of(on.lab.plan.underlay_netns)
    netns.run(where, ["ip", "link", "set", "n2", "down"])
    try:
        on.wait_state(on.n1, "n2", "down")
        yield address
    finally:
        netns.run(where, ["ip", "link", "set", "n2", "up"])
        on.n2.start()
        _whole(on)


@_fault(
    "router of the destination stopped",
    "SIGTERM to the router of n2",
    "podwire trace n1p1 {}",
    "nothing listens at UDP 6081", "start the router of n2",
)  # fmt: skip
def stopped_router(on: Ground) -> Iterator[str]:
    address = on.v4("n2p1")
    on.n2.stop()
    try:
        on.wait_state(on.n1, "n2", "down")
        yield address
    finally:
        on.n2.start()
        _whole(on)


@_fault(
    "firewall on the underlay",
    "the bridge drops UDP port 6081 from and to n2",
    "podwire trace n1p1 {}",
    "a firewall on the underlay drops UDP 6081",
)
def firewall(on: Ground) -> Iterator[str]:
    with hole(on.lab, 'iifname "n2" udp dport 6081', 'oifname "n2" udp dport 6081'):
        on.wait_state(on.n1, "n2", "down")
        yield on.v4("n2p1")
    _whole(on)


@_fault(
    "underlay cut one way",
    "no frame gets from n1 to n2, but those from n2 to n1 do: `podwire lab partition n1 n2 --one-way`",
    "podwire trace n1p1 {}",
    "cut one way",
)
def one_way(on: Ground) -> Iterator[str]:
    on.lab.partition("n1", "n2", one_way=True)
    try:
        on.wait_state(on.n1, "n2", "down")
        yield on.v4("n2p1")
    finally:
        on.lab.heal()
        _whole(on)


@_fault(
    "wrong network id",
    "the router of n2 runs with --vni 2",
    "podwire trace n1p1 {}",
    "wrong_network", "--vni",
)  # fmt: skip
def wrong_vni(on: Ground) -> Iterator[str]:
    address = on.v4("n2p1")
    with _with_flags(on, on.n2, "--vni", "2"):
        on.wait_state(on.n1, "n2", "down")
        yield address


@contextmanager
def _with_flags(on: Ground, node: LabNode, *flags: str) -> Iterator[None]:
    before = node.router_args
    node.stop()
    node.router_args = (*before, *flags)
    node.start()
    try:
        yield
    finally:
        node.stop()
        node.router_args = before
        node.start()
        _whole(on)


def _whole(on: Ground) -> None:
    """Wait until every router knows every other."""
    for node in on.lab.nodes:
        for peer in on.lab.nodes:
            if peer is not node:
                on.wait_state(node, peer.name, "up")


@_fault(
    "unknown peer",
    "n3 is not in the table of n1, and sends to it",
    "podwire why {}",
    "unknown peer", "no node's endpoint",
)  # fmt: skip
def stranger(on: Ground) -> Iterator[str]:
    table = on.own_table()
    del table["n3"]
    on.tables(table, on.n1)
    on.pod("n3p1").run(["ping", "-c1", "-W1", on.v4("n1p1")])
    yield on.n3.endpoint
    on.tables(on.own_table(), on.n1)


# Pods


@contextmanager
def _extra(on: Ground, node: LabNode) -> Iterator[LabPod]:
    """Make a Pod for one fault: what is broken in it breaks nothing else."""
    made = on.lab.add_pod(node)
    try:
        yield made
    finally:
        on.lab.remove_pod(made)


@_fault(
    "spoofed source",
    "n1p1 pings from an address that it was not given",
    "podwire why {}",
    "spoofed source", "10.42.1.99",
)  # fmt: skip
def spoofed(on: Ground) -> Iterator[str]:
    pod = on.pod("n1p1")
    pod.run(["ip", "addr", "add", "10.42.1.99/32", "dev", "eth0"])
    pod.run(["ping", "-c1", "-W1", "-I", "10.42.1.99", on.v4("n2p1")])
    yield "n1p1"
    pod.run(["ip", "addr", "del", "10.42.1.99/32", "dev", "eth0"])


@_fault(
    "missing route in the Pod",
    "the default route of n1p3 is deleted",
    "podwire trace n1p3 {}",
    "n1p3 has no route to", "route add default",
)  # fmt: skip
def missing_route(on: Ground) -> Iterator[str]:
    with _extra(on, on.n1) as pod:
        assert pod.name == "n1p3"
        pod.run(["ip", "route", "del", "default"])
        yield on.v4("n2p1")


@_fault(
    "interface of the source down",
    "eth0 of n1p3 is set down",
    "podwire trace n1p3 {}",
    "interface eth0 of", "n1p3 is down",
)  # fmt: skip
def source_down(on: Ground) -> Iterator[str]:
    with _extra(on, on.n1) as pod:
        pod.run(["ip", "link", "set", "eth0", "down"])
        yield on.v4("n2p1")


@_fault(
    "interface of the destination down",
    "eth0 of n2p3 is set down",
    "podwire trace n1p1 {}",
    "n2", "attachment_down",
)  # fmt: skip
def target_down(on: Ground) -> Iterator[str]:
    with _extra(on, on.n2) as pod:
        pod.run(["ip", "link", "set", "eth0", "down"])
        yield str(pod.addresses[0])


@_fault(
    "Pod detached",
    "n2p3 was there, and is detached",
    "podwire trace n1p1 {}",
    "no_attachment", "it is gone, or was never attached",
)  # fmt: skip
def detached(on: Ground) -> Iterator[str]:
    with _extra(on, on.n2) as pod:
        address = str(pod.addresses[0])
    yield address


@contextmanager
def _rules(pod: LabPod, hook: str, rule: str) -> Iterator[None]:
    done = pod.run(["nft", "-f", "-"], input=_ruleset("inet", hook, (rule,)))
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        pod.run(["nft", "delete", "table", "inet", "fault"])


@_fault(
    "blocked port",
    "nftables in n2p1 drops what comes to TCP port 80",
    "podwire trace n1p1 {} --proto tcp --dport 80",
    "answers pings, but nothing on TCP port 80", "a firewall in",
)  # fmt: skip
def blocked_port(on: Ground) -> Iterator[str]:
    with _rules(on.pod("n2p1"), "input", "tcp dport 80"):
        yield on.v4("n2p1")


@_fault(
    "firewall in the source",
    "nftables in n1p1 drops what it sends to UDP port 53",
    "podwire trace n1p1 {} --proto udp --dport 53",
    "firewall in", "n1p1 itself does not let it send UDP port 53",
)  # fmt: skip
def blocked_at_source(on: Ground) -> Iterator[str]:
    with _rules(on.pod("n1p1"), "output", "udp dport 53"):
        yield on.v4("n2p1")


@_fault(
    "nothing listens",
    "nothing: no program in n2p1 listens on port 8080",
    "podwire trace n1p1 {} --proto tcp --dport 8080",
    "the packet arrives", "nothing listens on TCP port 8080",
)  # fmt: skip
def nothing_listens(on: Ground) -> Iterator[str]:
    yield on.v4("n2p1")


@_fault(
    "rate limit",
    "n2p9 may receive 100 kbit/s, and gets more",
    "podwire why {}",
    "rate limited",
    node="n2",
)
def rate_limit(on: Ground) -> Iterator[str]:
    name = f"pwt-{on.lab.name}-9"
    netns.create(name, plan.POD_SYSCTLS)
    try:
        with on.n2.client() as client:
            made = client.attach(
                name, "eth0", str(netns.path_of(name)),
                labels={"namespace": on.lab.name, "name": "n2p9"}, limits=Limits(100_000, 0, 0, 0),
            )  # fmt: skip
        address = next(each for each in made.addresses if "." in each).partition("/")[0]
        on.pod("n1p1").run(["/usr/bin/python3", "-c", _FLOOD, address])
        yield "n2p9"
    finally:
        _detach(on.n2, name)
        netns.delete(name)


@_fault(
    "malformed packets",
    "n1p1 writes a header of zeros to its interface",
    "podwire why {}",
    "malformed", "no IP packet",
)  # fmt: skip
def malformed(on: Ground) -> Iterator[str]:
    done = on.pod("n1p1").run(["/usr/bin/python3", "-c", _GARBAGE])
    assert done.returncode == 0, done.stderr
    yield "n1p1"


@_fault(
    "multicast destination",
    "n1p1 sends to 224.0.0.251",
    "podwire trace n1p1 {}",
    "not_routable", "multicast",
)  # fmt: skip
def multicast(on: Ground) -> Iterator[str]:
    yield "224.0.0.251"


# Out of the cluster


@_fault(
    "outside, and no egress",
    "the router of n3 runs with --no-egress",
    "podwire trace n3p1 {}",
    "egress_disabled", "--egress",
    node="n3",
)  # fmt: skip
def no_egress(on: Ground) -> Iterator[str]:
    with _with_flags(on, on.n3, "--no-egress"):
        yield "198.51.100.1"


@_fault(
    "routing loop",
    "the gateway outside sends 203.0.113.0/24 to n2, which sends it back",
    "podwire trace n1p1 {}",
    "goes round between", "a routing loop",
)  # fmt: skip
def loop(on: Ground) -> Iterator[str]:
    outside = Path(on.lab.outside_path)
    via = str(on.n2.plan.underlay[0].ip)
    for path in (outside, on.n2.netns_path):
        netns.call(path, lambda: netns.write_sysctl("ipv4/ip_forward", "1"))
    done = netns.run(outside, ["ip", "route", "add", "203.0.113.0/24", "via", via])
    assert done.returncode == 0, done.stderr
    yield "203.0.113.7"
    netns.run(outside, ["ip", "route", "del", "203.0.113.0/24"])


# Questions and answers


def ask(lab: Lab, fault: Fault, about: str) -> str:
    """Run the question on its node as people would, and return the answer with what differs each time taken out."""
    words = fault.command.format(about).split()
    node = lab.node(fault.node)
    done = subprocess.run(
        [sys.executable, "-m", "router", *words[1:], "--socket", str(node.socket)],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    return plain(done.stdout + done.stderr, lab.name)


def plain(answer: str, lab_name: str) -> str:
    """Take out of an answer what differs from run to run."""
    answer = answer.replace(lab_name, "lab")
    answer = re.sub(r"\d+\.\d+ ms", "… ms", answer)
    answer = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "…", answer)
    return re.sub(r"\d\d:\d\d:\d\d", "…", answer)


def essence(fault: Fault, answer: str) -> str:
    """Return the sentence of a trace; of `why` the line of the first cause, and what it means."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if fault.command.startswith("podwire trace"):
        return lines[-1]
    row = next((line for line in lines if fault.cause[0] in line), "")
    meaning = next((line for line in lines if line.startswith(f"{fault.cause[0]}: ")), "")
    columns = re.split(r"  +", row)
    return f"{', '.join(columns[1:-1])} — {meaning}"


def row(fault: Fault, about: str, answer: str) -> str:
    """Return a fault's row of the table."""
    cells = (fault.name, fault.how, f"`{fault.command.format(about)}` on {fault.node}", essence(fault, answer))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


HEAD = """# Twenty and more faults, and what names them

Each of these was planted in a lab (three nodes n1, n2, n3 with two Pods each, and a host outside), the command was run, and this is the
sentence with which the answer ended; of `podwire why`, the row and what it means. This table is made by
`python -m pytest tests/conformance/test_faults.py --write-faults`; without the option the test plants all of them again and compares.

| fault | how it was planted | command | answer |
|---|---|---|---|
"""


def document(rows: list[str]) -> str:
    """Return the whole of docs/faults.md."""
    return HEAD + "".join(f"{each}\n" for each in rows)


def alike(one: str, other: str) -> bool:
    """Tell whether two rows say the same; sizes, hops and ports may differ."""
    return re.sub(r"\d+", "#", one) == re.sub(r"\d+", "#", other)


def documented() -> dict[str, str]:
    """Return the rows that docs/faults.md has, by the fault's name."""
    lines = DOCUMENT.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| fault |")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in rows}
