"""Ports of a node that lead to Pods: from everywhere they can be reached, over both IP versions, and nothing left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from router.errors import Kind, Refusal
from router.kernel import netns as kernel_netns
from router.model import AttachmentKey, Protocol
from router.model import PortMapping as Mapping
from router.ports import Ports
from shim.answers import Attachment, PortMapping
from shim.client import Client, ClientError
from shim.lab import Lab, netns
from shim.lab.node import LabNode
from tests.accounts import assert_balanced, eventually
from tests.crowd import interfaces, namespaces, path

pytestmark = pytest.mark.netns

_ANSWER = """
import socket, sys
kind, port = sys.argv[1], int(sys.argv[2])
if kind == "tcp":
    s = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    print(flush=True)
    while True:
        c, a = s.accept()
        c.sendall(f"{sys.argv[3]} {a[0].removeprefix('::ffff:')}".encode())
        c.close()
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", port))
print(flush=True)
while True:
    _, a = s.recvfrom(99)
    s.sendto(f"{sys.argv[3]} {a[0].removeprefix('::ffff:')}".encode(), a)
"""
"""Answers who asks with its own name and the address it was asked from."""
_ASK = """
import socket, sys
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.settimeout(3)
try:
    s.connect((host, port))
    if kind == "udp":
        s.send(b"?")
    print(s.recv(99).decode())
except OSError as error:
    print(error)
"""


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(nodes=2, pods=1, outside=True, router_args=("--address-rest-s", "0"))
    yield made
    assert_balanced(made)


@pytest.fixture
def node(lab: Lab) -> LabNode:
    return lab.nodes[0]


@pytest.fixture
def client(node: LabNode) -> Iterator[Client]:
    with node.client() as made:
        yield made
    assert "podwire_ports" not in rules(node), "nothing is left"


def rules(node: LabNode) -> str:
    return node.run(["nft", "list", "ruleset"]).stdout


@contextmanager
def answering(where: Path, name: str, *, kind: str = "tcp", port: int = 80) -> Iterator[None]:
    server = netns.popen(where, [sys.executable, "-c", _ANSWER, kind, str(port), name], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        yield
    finally:
        server.kill()
        server.wait()
        server.stdout.close()  # type: ignore[union-attr]


def ask(where: Path, host: object, port: int, kind: str = "tcp") -> str:
    return netns.run(where, [sys.executable, "-c", _ASK, kind, str(host), str(port)]).stdout.strip()


def addresses(found: Attachment) -> tuple[str, str]:
    v4, v6 = (text.partition("/")[0] for text in found.addresses)
    return v4, v6


def underlay(node: LabNode, family: int) -> str:
    return str(node.plan.underlay[family == 6].ip)


def prefix(lab: Lab) -> str:
    return lab.plan.pod_netns("port")


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_port_is_reached_from_everywhere(lab: Lab, node: LabNode, client: Client, kind: str) -> None:
    far = lab.nodes[1]
    with namespaces(prefix(lab), 1) as (name,), ExitStack() as running:
        found = client.attach(name, "eth0", path(name), ports=[PortMapping(8080, 80, kind)])
        running.callback(client.detach, name, "eth0")
        assert found.ports == (PortMapping(8080, 80, kind),)
        inside = netns.path_of(name)
        running.enter_context(answering(inside, "web", kind=kind))
        for family in (4, 6):
            own = addresses(found)[family == 6]
            outside = str(lab.plan.gateway[family == 6].ip)
            entries = (underlay(node, family), str(node.addresses[family == 6]))
            # From outside, with the client's own address.
            assert ask(Path(lab.outside_path), entries[0], 8080, kind) == f"web {outside}"
            # From the other node, and from its Pod: by the node's underlay address, and by its overlay address.
            assert ask(far.netns_path, entries[0], 8080, kind) == f"web {underlay(far, family)}"
            for entry in entries:
                assert ask(lab.pods[1].netns_path, entry, 8080, kind).startswith("web "), entry
                # From a Pod of the same node, from the Pod itself, from the node.
                assert ask(lab.pods[0].netns_path, entry, 8080, kind).startswith("web "), entry
                assert ask(inside, entry, 8080, kind).startswith("web "), entry
                assert ask(node.netns_path, entry, 8080, kind).startswith("web "), entry
            # The Pod's own port stays its own.
            assert ask(lab.pods[1].netns_path, own, 80, kind) == f"web {lab.pods[1].addresses[family == 6]}"
        assert ask(node.netns_path, "127.0.0.1", 8080, kind).startswith("web ")


def test_same_port_by_protocol_and_address(lab: Lab, node: LabNode, client: Client) -> None:
    at_underlay, at_overlay = underlay(node, 4), str(node.addresses[0])
    with namespaces(prefix(lab), 3) as names, ExitStack() as running:
        mappings = [
            PortMapping(53, 5353, "udp"),
            PortMapping(53, 80, "tcp", at_underlay),
            PortMapping(53, 80, "tcp", at_overlay),
        ]
        with namespaces(prefix(lab) + "s", 1) as (name,):  # kernels without SCTP's sockets know its ports all the same
            client.attach(name, "eth0", path(name), ports=[PortMapping(53, 80, "sctp")])
            assert "sctp . 53" in rules(node)
            client.detach(name, "eth0")
        for name, mapping in zip(names, mappings, strict=True):
            client.attach(name, "eth0", path(name), ports=[mapping])
            running.callback(client.detach, name, "eth0")
            kind = mapping.protocol
            running.enter_context(answering(netns.path_of(name), name, kind=kind, port=mapping.container_port))
        asker = lab.pods[0].netns_path
        assert ask(asker, at_underlay, 53, "udp").split()[0] == names[0]
        assert ask(asker, at_underlay, 53).split()[0] == names[1]
        assert ask(asker, at_overlay, 53).split()[0] == names[2]


def test_a_port_leads_to_one_pod(lab: Lab, node: LabNode, client: Client) -> None:
    with namespaces(prefix(lab), 2) as (first, second):
        client.attach(first, "eth0", path(first), ports=[PortMapping(8080, 80)])
        before = rules(node)
        for taken in (PortMapping(8080, 81), PortMapping(8080, 80, "tcp", underlay(node, 4))):
            with pytest.raises(ClientError, match=first) as caught:
                client.attach(second, "eth0", path(second), ports=[PortMapping(8081, 80), taken])
            assert caught.value.code == "ALREADY_EXISTS"
            assert interfaces(second) == []
            assert rules(node) == before
        with pytest.raises(ClientError, match="overlap") as caught:
            client.attach(second, "eth0", path(second), ports=[PortMapping(1, 80), PortMapping(1, 81)])
        assert caught.value.code == "INVALID_ARGUMENT"
        with pytest.raises(ClientError, match="other ports|with ports"):
            client.attach(first, "eth0", path(first), ports=[PortMapping(8082, 80)])
        assert client.attach(first, "eth0", path(first)).ports == (PortMapping(8080, 80),)
        client.detach(first, "eth0")
        client.attach(second, "eth0", path(second), ports=[PortMapping(8080, 80)])
        client.detach(second, "eth0")


@pytest.mark.parametrize("others", [0, 40], ids=["alone", "among_many"])
def test_a_udp_client_follows_a_port_that_moves(lab: Lab, node: LabNode, client: Client, others: int) -> None:
    """Its conntrack entry lives as long as it sends, and would lead to the old Pod for ever."""
    ports = [PortMapping(5353, 53, "udp"), *(PortMapping(6000 + number, 53, "udp") for number in range(others))]
    with namespaces(prefix(lab), 2) as names, ExitStack() as running:
        outside = running.enter_context(netns.open_socket(Path(lab.outside_path), socket.AF_INET, socket.SOCK_DGRAM))
        outside.settimeout(0.05)

        def answer() -> str:
            outside.sendto(b"?", (underlay(node, 4), 5353))
            try:
                return outside.recv(99).decode().split()[0]
            except OSError:
                return ""

        assert answer() == ""  # before there is any mapping, an entry that leads to the node itself
        for name in names:
            running.enter_context(answering(netns.path_of(name), name, kind="udp", port=53))
        for name in names:
            client.attach(name, "eth0", path(name), ports=ports)
            eventually(lambda name=name: answer() == name, what=f"an answer of {name}")  # type: ignore[misc]
            client.detach(name, "eth0")


def test_ports_outlive_the_router(lab: Lab, node: LabNode, client: Client) -> None:
    with namespaces(prefix(lab), 2) as (name, gone), ExitStack() as running:
        running.enter_context(answering(netns.path_of(name), "web"))
        client.attach(name, "eth0", path(name), ports=[PortMapping(8080, 80)])
        client.attach(gone, "eth0", path(gone), ports=[PortMapping(8081, 80)])
        node.kill9()
        netns.delete(gone)
        node.run(["nft", "delete", "table", "inet", "podwire_ports"])  # somebody flushed the rules meanwhile
        node.start()
        assert ask(Path(lab.outside_path), underlay(node, 4), 8080).startswith("web ")
        assert "8081" not in rules(node)
        with node.client() as again:
            again.detach(name, "eth0")


def test_flushed_rules_come_back_with_the_next_change(lab: Lab, node: LabNode, client: Client) -> None:
    """A firewall's reload flushes everybody's rules; no Pod may be kept from coming or going by it."""
    outside, at = Path(lab.outside_path), underlay(node, 4)
    with namespaces(prefix(lab), 3) as (first, second, third), answering(netns.path_of(first), "web"):
        client.attach(first, "eth0", path(first), ports=[PortMapping(8080, 80)])
        client.attach(second, "eth0", path(second), ports=[PortMapping(8081, 80)])
        node.run(["nft", "flush", "ruleset"])
        assert not ask(outside, at, 8080).startswith("web ")
        client.attach(third, "eth0", path(third), ports=[PortMapping(8082, 80)])
        assert ask(outside, at, 8080).startswith("web ")
        node.run(["nft", "flush", "ruleset"])
        client.detach(third, "eth0")
        assert ask(outside, at, 8080).startswith("web ")
        assert "8082" not in rules(node)
        node.run(["nft", "flush", "ruleset"])
        client.detach(second, "eth0")
        node.run(["nft", "flush", "ruleset"])
        client.detach(first, "eth0")


def test_a_refused_change_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without nft nothing can be put in force; what is said to be in force is."""
    cluster = ip_network("10.7.0.0/16")
    pods = {name: (ip_interface(f"10.7.0.{index}/24"),) for index, name in enumerate("abc", start=2)}
    web, other = Mapping(8080, 80), Mapping(8081, 80)
    found = str(os.environ["PATH"])

    def listed() -> str:
        return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout

    def scenario() -> None:
        ports = Ports((cluster,), egress=True)
        for step in ("first", "more"):
            monkeypatch.setenv("PATH", str(tmp_path))
            with pytest.raises(Refusal, match="nft is not installed") as caught:
                ports.claim(AttachmentKey("b", "eth0"), pods["b"], (other,))
            assert caught.value.kind is Kind.STATE
            monkeypatch.setenv("PATH", found)
            if step == "first":
                assert "podwire_ports" not in listed()
                ports.claim(AttachmentKey("a", "eth0"), pods["a"], (web,))
        assert "10.7.0.3" not in listed()
        # The refused one holds nothing that keeps another from it, and its release is no error.
        ports.claim(AttachmentKey("c", "eth0"), pods["c"], (other,))
        ports.release(AttachmentKey("b", "eth0"))
        assert "10.7.0.4 . 80" in listed()
        for name in "ac":
            monkeypatch.setenv("PATH", str(tmp_path))
            with pytest.raises(Refusal, match="nft is not installed"):
                ports.release(AttachmentKey(name, "eth0"))
            monkeypatch.setenv("PATH", found)
            # Still held, as it is still in force.
            taken = web if name == "a" else other
            with pytest.raises(Refusal, match=f"leads to {name}") as caught:
                ports.claim(AttachmentKey("b", "eth0"), pods["b"], (taken,))
            assert caught.value.kind is Kind.EXISTS
            ports.release(AttachmentKey(name, "eth0"))
        assert "podwire_ports" not in listed()

    kernel_netns.inside_new(scenario)


def test_an_address_the_pod_has_no_answer_for() -> None:
    with pytest.raises(Refusal, match="no IPv6 address") as caught:
        Ports((), egress=True).claim(
            AttachmentKey("a", "eth0"),
            (ip_interface("10.7.0.2/24"),),
            (Mapping(80, 80, Protocol.TCP, ip_address("2001:db8::1")),),
        )
    assert caught.value.kind is Kind.INVALID


def test_cleaning_a_node_takes_its_ports(lab: Lab, node: LabNode) -> None:
    with namespaces(prefix(lab), 1) as (name,):
        with node.client() as client:
            client.attach(name, "eth0", path(name), ports=[PortMapping(8080, 80)])
        node.stop()
        assert "8080" in rules(node)  # connections go on while the router is away
        node.run([sys.executable, "-m", "router", "router", "clean", "--state-dir", str(node.state_dir)])
        assert "podwire" not in rules(node)
        node.start()


def test_without_egress_outside_clients_are_answered(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=1, pods=0, outside=True, router_args=("--no-egress",))
    node = lab.nodes[0]
    with node.client() as client, namespaces(prefix(lab), 1) as (name,), answering(netns.path_of(name), "web"):
        client.attach(name, "eth0", path(name), ports=[PortMapping(8080, 80)])
        for family in (4, 6):
            said = ask(Path(lab.outside_path), underlay(node, family), 8080)
            assert said == f"web {node.addresses[family == 6]}"
        client.detach(name, "eth0")
    assert "podwire_ports" not in rules(node)


def test_a_thousand_ports(lab: Lab, node: LabNode, client: Client) -> None:
    with namespaces(prefix(lab), 1) as (name,), answering(netns.path_of(name), "web"):
        ports = [PortMapping(20000 + number, 80) for number in range(1000)]
        client.attach(name, "eth0", path(name), ports=ports)
        assert ask(Path(lab.outside_path), underlay(node, 4), 20999).startswith("web ")
        client.detach(name, "eth0")
