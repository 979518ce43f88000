"""What a router tells the senders of packets it does not carry, as real kernels and tools understand it."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Callable, Iterator

import pytest

from shim.lab import Lab
from shim.lab.plan import OUTSIDE_V4, OUTSIDE_V6
from shim.lab.pod import LabPod
from shim.lab.traceroute import trace
from tests.accounts import assert_balanced, of_pod
from tests.echo import Echo, ask_tcp, connect

pytestmark = pytest.mark.netns

FAMILIES = pytest.mark.parametrize("family", [4, 6])
_HEADERS = {4: 28, 6: 48}
"""IP and ICMP before a ping's payload."""


def ping(pod: LabPod, address: object, *flags: str) -> str:
    done = pod.run(["ping", "-n", "-c", "1", "-W", "3", *flags, str(address)])
    return done.stdout + done.stderr


# Traceroute


@FAMILIES
def test_traceroute_shows_every_router(lab: Lab, family: int) -> None:
    which = 0 if family == 4 else 1
    source, near, far = lab.pods[0], lab.pods[1], lab.pods[-1]
    here, there = lab.nodes[0].addresses[which], lab.nodes[-1].addresses[which]
    outside = (OUTSIDE_V4, OUTSIDE_V6)[which]
    for target, way in [
        (far.addresses[which], [here, there, far.addresses[which]]),
        (near.addresses[which], [here, near.addresses[which]]),
        (here, [here]),
        (there, [here, there]),
        (outside, [here, outside]),
    ]:
        hops, printed = trace(source, target)
        assert hops == [str(address) for address in way], printed


@FAMILIES
def test_a_node_sees_the_other_router_on_its_way_to_a_pod(lab: Lab, family: int) -> None:
    which = 0 if family == 4 else 1
    target = lab.pods[-1].addresses[which]
    node, other = lab.nodes[0], lab.nodes[-1]
    command = ["traceroute", f"-{family}", "-n", "-q", "1", "-N", "1", "-w", "2", "-m", "5", str(target)]
    hops = re.findall(r"^\s*\d+\s+(\S+)", node.run(command).stdout, re.MULTILINE)
    assert hops == [str(other.addresses[which]), str(target)]


# Unreachable

_UNREACHABLE = [
    ("10.42.200.9", 0, "Destination Net Unreachable", "no_route"),
    ("10.42.1.250", 0, "Destination Host Unreachable", "no_attachment"),
    ("10.42.2.250", 1, "Destination Host Unreachable", ""),
    ("fd42:0:0:200::9", 0, "Destination unreachable: No route", "no_route"),
    ("fd42:0:0:1::fa", 0, "Destination unreachable: Address unreachable", "no_attachment"),
    ("fd42:0:0:2::fa", 1, "Destination unreachable: Address unreachable", ""),
]


@pytest.mark.parametrize(("address", "router", "said", "reason"), _UNREACHABLE, ids=[row[0] for row in _UNREACHABLE])
def test_each_kind_of_unreachable(lab: Lab, address: str, router: int, said: str, reason: str) -> None:
    pod = lab.pods[0]
    before = of_pod(pod).tally
    told_by = lab.nodes[router].addresses[1 if ":" in address else 0]
    assert f"From {told_by} icmp_seq=1 {said}" in ping(pod, address)
    after = of_pod(pod).tally
    if reason:
        assert after.dropped[reason] == before.dropped.get(reason, 0) + 1
        assert after.icmp_errors == before.icmp_errors + 1
    else:  # refused by the other router, which counts it as its peer's
        assert after.tunnelled_packets == before.tunnelled_packets + 1


@FAMILIES
def test_a_pods_own_port_unreachable_comes_back(lab: Lab, family: int) -> None:
    which = 0 if family == 4 else 1
    for target in (lab.pods[1], lab.pods[-1]):
        with connect(lab.pods[0], target.addresses[which], socket.SOCK_DGRAM) as asker:
            asker.send(b"anybody there?")
            with pytest.raises(ConnectionRefusedError):
                asker.recv(16)


# Sizes


@FAMILIES
def test_ping_finds_the_mtu_and_not_a_byte_less(lab: Lab, family: int) -> None:
    which = 0 if family == 4 else 1
    most = 1452 - _HEADERS[family]
    for target in (lab.pods[1], lab.pods[-1]):
        assert "1 received" in ping(lab.pods[0], target.addresses[which], "-M", "do", "-s", str(most))
        assert "mtu" in ping(lab.pods[0], target.addresses[which], "-M", "do", "-s", str(most + 1))


@pytest.fixture
def raised(lab: Lab) -> Iterator[tuple[LabPod, LabPod]]:
    """Two Pods on two nodes that raised the MTU of their own interface far over what the overlay carries."""
    pods = (lab.add_pod(lab.nodes[0]), lab.add_pod(lab.nodes[1]))
    for pod in pods:
        assert pod.run(["ip", "link", "set", "eth0", "mtu", "9000"]).returncode == 0
    yield pods
    for pod in pods:
        lab.remove_pod(pod)


@FAMILIES
def test_a_pod_that_raised_its_mtu_is_told_the_true_one(lab: Lab, raised: tuple[LabPod, LabPod], family: int) -> None:
    which = 0 if family == 4 else 1
    source, target = raised
    said = ping(source, target.addresses[which], "-M", "do", "-s", "3000")
    assert f"From {lab.nodes[0].addresses[which]} icmp_seq=1" in said
    assert ("Frag needed and DF set (mtu = 1452)" if family == 4 else "Packet too big: mtu=1452") in said
    assert of_pod(source).tally.dropped["too_big"] >= 1


@FAMILIES
def test_a_pod_that_raised_its_mtu_still_carries_tcp(raised: tuple[LabPod, LabPod], family: int) -> None:
    which = 0 if family == 4 else 1
    source, target = raised
    payload = random.Random(1).randbytes(4 << 20)
    with Echo([target]), connect(source, target.addresses[which], socket.SOCK_STREAM, timeout_s=20) as asker:
        assert ask_tcp(asker, payload) == payload


def test_what_may_be_fragmented_is_by_the_router(raised: tuple[LabPod, LabPod]) -> None:
    """The Pod's kernel sends whole what its raised MTU allows; IPv4 without DF is then cut by the router."""
    source, target = raised
    before = of_pod(source).tally.dropped.get("too_big", 0)
    for size in (1424, 1425, 3000, 8972, 20000):
        assert "1 received" in ping(source, target.addresses[0], "-M", "dont", "-s", str(size)), size
    assert of_pod(source).tally.dropped.get("too_big", 0) == before


def test_a_wire_that_shrinks_under_way_is_learnt(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(nodes=2, pods=1)
    source, target = lab.pods
    payload = random.Random(2).randbytes(2 << 20)
    with Echo([target]):
        askers = [connect(source, address, socket.SOCK_STREAM, timeout_s=20) for address in target.addresses]
        try:
            for asker in askers:
                assert ask_tcp(asker, payload) == payload
            for node in lab.nodes:
                assert node.run(["ip", "link", "set", "eth0", "mtu", "1400"]).returncode == 0
            for asker in askers:
                assert ask_tcp(asker, payload) == payload
        finally:
            for asker in askers:
                asker.close()
    assert of_pod(source).tally.dropped["too_big"] >= 1
    # The Pod's kernel has learnt it, and says so by itself.
    assert "mtu=1352" in ping(source, target.addresses[0], "-M", "do", "-s", "1400")
    assert_balanced(lab)
