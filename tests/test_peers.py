"""Peers of real routers: seen, lost and found again; and what a node says that has lost its subnets meanwhile."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from router.model import Node
from router.subnets.file import format_table, parse_table
from shim.answers import Peer
from shim.lab import Lab
from shim.lab.node import LabNode
from shim.lab.pod import LabPod
from tests.accounts import assert_balanced, counters, eventually

pytestmark = pytest.mark.netns

SILENCE_S = 6.0
"""2.5 s of silence make a dead peer; the rest is for a machine out of breath."""


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(nodes=3, pods=1)
    for node in made.nodes:
        if node.pid is None:
            node.start()
    made.write_subnets()
    for node in made.nodes:
        all_up(node, 2)
    yield made
    assert_balanced(made)


def peers(node: LabNode) -> dict[str, Peer]:
    with node.client() as client:
        return {peer.node.name: peer for peer in client.peers().peers}


def all_up(node: LabNode, count: int) -> None:
    eventually(lambda: sum(peer.state == "up" for peer in peers(node).values()) == count, what="every peer up")


def ping(source: LabPod, address: object, count: int = 1, wait_s: int = 2) -> str:
    done = source.run(["ping", "-n", f"-c{count}", "-i0.2", f"-W{wait_s}", str(address)], timeout=30)
    return str(done.stdout)


def connecting(source: LabPod, address: str) -> int:
    """Return the errno of a TCP connection from a Pod, 0 when there is one."""
    code = "import socket,sys; s=socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET); s.settimeout(20); print(s.connect_ex((sys.argv[1], 9)))"
    return int(source.run(["/usr/bin/python3", "-c", code, address], timeout=60).stdout)


def test_round_trip_size_and_loss_of_every_peer_are_known(lab: Lab) -> None:
    node = lab.nodes[0]
    mtu_bytes = node_mtu(node)
    eventually(lambda: all(peer.mtu_bytes == mtu_bytes for peer in peers(node).values()), what="every path measured")
    for peer in peers(node).values():
        assert peer.rtt_s is not None
        assert peer.rtt_min_s is not None
        assert 0 < peer.rtt_min_s < 1.0
        assert peer.heard_age_s is not None
        assert peer.heard_age_s < SILENCE_S
        assert peer.tally is not None
        assert peer.tally.control_packets > 0
        assert peer.loss < 0.5


def node_mtu(node: LabNode) -> int:
    with node.client() as client:
        return client.status().mtu_bytes


def test_a_dead_node_is_unreachable_at_once_and_nobody_else_is(lab: Lab) -> None:
    near, dead, other = lab.nodes
    source, target, third = lab.pods
    with near.client() as client:
        since = max(event.sequence for event in client.watch_events(0, follow=False))
    bystander = third.popen(
        ["ping", "-n", "-q", "-i0.05", "-c120", "-W5", str(source.addresses[0])], stdout=-1, text=True
    )
    dead.kill9()
    began_s = time.monotonic()
    eventually(lambda: peers(near)["n2"].state == "down", what="the dead node noticed")
    noticed_s = time.monotonic() - began_s
    print(f"\nnoticed after {noticed_s:.2f} s")
    assert noticed_s < SILENCE_S
    assert "has not answered" in peers(near)["n2"].why
    for address in map(str, target.addresses):
        said = ping(source, address)
        assert "Unreachable" in said or "unreachable" in said, said
        began_s = time.monotonic()
        assert connecting(source, address) == errno.EHOSTUNREACH
        assert time.monotonic() - began_s < SILENCE_S, "told at once, not after a timeout"
    assert counters(near).attachments  # and accounts go on
    with near.client() as client:
        status = client.status()
        assert status.peers_unreachable == 1
        assert status.unreachable[0].startswith("n2 at ")
        kinds = [(event.kind, event.node) for event in client.watch_events(since, follow=False)]
    assert ("peer_down", "n2") in kinds
    dropped = sum_dropped(near, "peer_down")
    assert dropped >= 4
    assert ", 0% packet loss" in bystander.communicate(timeout=60)[0]
    dead.start()
    all_up(near, 2)
    all_up(other, 2)
    for address in target.addresses:
        assert "1 received" in ping(source, address, wait_s=5)


def sum_dropped(node: LabNode, reason: str) -> int:
    found = counters(node)
    return sum(each.tally.dropped.get(reason, 0) for each in (*found.attachments, *found.peers))


def test_what_a_node_of_an_old_epoch_sends_is_dropped_and_counted(lab: Lab) -> None:
    """n2 lost its subnets and has them again, and does not know it: its table is of epoch 4, that of the others of 5."""
    near, stale, other = lab.nodes
    source, target, third = lab.pods
    write(near, near, 5)
    write(other, near, 5)
    write(stale, near, 4)
    for node in lab.nodes:
        eventually(lambda node=node: epoch_of_n2(node) == (4 if node is stale else 5), what="the epochs in force")
    before = stale_packets(near)
    said = ping(target, source.addresses[0], count=3, wait_s=1)
    assert "0 received" in said, said
    assert stale_packets(near) >= before + 3
    assert "1 received" in ping(third, source.addresses[0]), "who is of this epoch is heard"
    write(stale, near, 5)
    eventually(lambda: "1 received" in ping(target, source.addresses[0], wait_s=1), what="heard again")
    write(stale, near, 6)  # ahead of the others, whose tables lag: nothing is lost
    eventually(lambda: epoch_of_n2(stale) == 6, what="the epoch in force")
    before = stale_packets(near)
    assert "1 received" in ping(target, source.addresses[0])
    assert stale_packets(near) == before


def write(node: LabNode, like: LabNode, epoch: int) -> None:
    """Give a node the lab's table, with n2 at this epoch and the others at 5."""
    nodes: tuple[Node, ...] = parse_table(like.subnets_path.read_text(), like.subnets_path)
    node.subnets_path.write_text(
        format_table(tuple(replace(each, epoch=epoch if each.name == "n2" else 5) for each in nodes))
    )


def epoch_of_n2(node: LabNode) -> int:
    with node.client() as client:
        return next(each.epoch for each in client.subnets().nodes if each.name == "n2")


def stale_packets(node: LabNode) -> int:
    return sum_dropped(node, "stale_epoch")


def test_an_answer_comes_from_the_data_path_even_while_nothing_else_runs(lab: Lab) -> None:
    """A probe by hand, from a peer's own address: answered with its header alone; from a stranger: not at all."""
    from router.wire import probe

    near, asker, _ = lab.nodes
    asker.stop()
    script = (
        "import socket,sys; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], int(sys.argv[4])));"
        "s.settimeout(1.5); s.sendto(bytes.fromhex(sys.argv[3]), (sys.argv[2], 6081))\n"
        "try: print(s.recv(9000).hex())\nexcept TimeoutError: print('silence')"
    )
    request = probe.Probe(probe.REQUEST, 500, 7, 12345)

    def ask(port: int) -> str:
        done = asker.run(
            ["/usr/bin/python3", "-c", script, asker.endpoint, near.endpoint, probe.encode(1, request).hex(), str(port)]
        )
        return str(done.stdout).strip()

    assert ask(6081) == probe.encode(1, request._replace(kind=probe.ANSWER)).hex()
    assert ask(7000) == "silence"
    asker.start()
