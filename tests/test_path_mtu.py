"""A hole in the underlay that opens in mid-life: noticed within five seconds, told to Pods, and TCP goes on."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack

import pytest

from shim.lab import Lab
from shim.lab.node import LabNode
from shim.lab.pod import LabPod
from shim.observe.client import ObserverClient
from tests.accounts import eventually
from tests.conftest import LabMaker
from tests.faults import hole
from tests.pump import Pump

pytestmark = pytest.mark.netns

NOTICED_S = 5.0
"""What is promised."""
HOLE_BYTES = 1400
"""Of an underlay packet, from its IP header on."""
BREATH_S = 3.0
"""What a machine out of breath gets on top in these tests; tests/test_peer_health.py proves the bound with a clock of its own."""


def path_mtu(node: LabNode, peer: str) -> int:
    with node.client() as client:
        return next(each.mtu_bytes for each in client.peers().peers if each.node.name == peer)


def rules(family: int) -> str:
    # ip length counts the header, ip6 length does not.
    return (
        f"ip protocol udp ip length > {HOLE_BYTES}" if family == 4 else f"udp dport 6081 ip6 length > {HOLE_BYTES - 40}"
    )


def refusal(pod: LabPod, target: str) -> str:
    """Have a Pod send a packet that is as large as its interface takes; return what its kernel was told."""
    size = 1400 if ":" not in target else 1380
    done = pod.run(["ping", "-n", "-c2", "-i0.2", "-W1", "-M", "do", "-s", str(size), target], timeout=20)
    return str(done.stdout + done.stderr)


def test_a_hole_is_noticed_told_and_shown_and_tcp_goes_on(make_lab: LabMaker) -> None:
    see_it_through(make_lab(nodes=2, pods=1), 4)


def see_it_through(lab: Lab, family: int) -> None:
    """Open a hole and close it again, on an underlay of that IP version."""
    overhead_bytes = 48 if family == 4 else 68
    whole_bytes, left_bytes = 1500 - overhead_bytes, HOLE_BYTES - overhead_bytes
    near, far = lab.nodes
    source, target = lab.pods
    for one, other in ((near, "n2"), (far, "n1")):
        eventually(lambda one=one, other=other: path_mtu(one, other) == whole_bytes, 20, "the whole path known")
    with ExitStack() as stack:
        pumps = [stack.enter_context(Pump(source, target, each, pause_s=0.02)) for each in target.addresses]
        eventually(lambda: all(pump.received_bytes for pump in pumps), what="both streams")
        with hole(lab, rules(family)):
            began_s = time.monotonic()
            eventually(lambda: path_mtu(near, "n2") <= left_bytes, NOTICED_S + BREATH_S, "the hole noticed")
            print(f"\nnoticed after {time.monotonic() - began_s:.2f} s")
            for node, peer in ((near, "n2"), (far, "n1")):
                eventually(lambda: left_bytes - 4 <= path_mtu(node, peer) <= left_bytes, 10, "its size known")  # noqa: B023
            for pump in pumps:
                going_on(pump)
            print(f"both streams go on after {time.monotonic() - began_s:.2f} s")
            for address in map(str, target.addresses):
                said = refusal(source, address)
                told = re.search(r"mtu ?[=:] ?(\d+)", said)
                assert told, said
                assert left_bytes - 4 <= int(told.group(1)) <= left_bytes
            shown(lab, left_bytes, whole_bytes)
    eventually(lambda: path_mtu(near, "n2") == whole_bytes, 15, "the path whole again")


def going_on(pump: Pump) -> None:
    received_bytes = pump.received_bytes
    eventually(lambda: pump.received_bytes > received_bytes + 1_000_000, 20, "a megabyte more")


def shown(lab: Lab, left_bytes: int, whole_bytes: int) -> None:
    """Status of peers and trace name it."""
    near, source, target = lab.nodes[0], lab.pods[0], lab.pods[1]
    with ObserverClient(str(near.socket)) as client:
        assert any("the path to n2 carries" in note for note in client.status().notes)
        steps = list(client.trace(source.name, str(target.addresses[1]), packet_bytes=whole_bytes, dont_fragment=True))
        assert not steps[-1].reached
        assert "MTU hole" in steps[-1].text
        assert left_bytes - 4 <= steps[0].mtu_bytes <= left_bytes
        probe = [step for step in steps if step.kind == "probe"][-1]  # the first hop is used up before sizes matter
        assert probe.mtu_bytes == steps[0].mtu_bytes
        steps = list(client.trace(source.name, str(target.addresses[0])))
        assert steps[-1].reached
        assert f"of the overlay MTU {whole_bytes}" in steps[-1].text
