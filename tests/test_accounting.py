"""Saturation: what is lost was counted by somebody, at exactly one place, and control calls still answer."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.contenders.interface import Way
from benchmarks.measures.flow import Flow
from benchmarks.namespace import Namespace
from router.engine.choose import available
from shim.answers import AttachmentCounters, Counters, Tally
from shim.lab import Lab, netns
from shim.lab.pod import LabPod
from tests.accounts import assert_balanced, counters, eventually, unbalanced

pytestmark = pytest.mark.netns

_SECONDS = 2.0
_PAYLOAD_BYTES = 64 - 28


@pytest.fixture(params=available())
def lab(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(nodes=2, pods=2, router_args=("--engine", request.param))
    yield made
    assert_balanced(made)


@dataclass(frozen=True)
class Trail:
    """Where the packets of one flow were counted, at each place on its way."""

    source: Tally
    """Of the sending Pod, by its router."""
    ring_drops: int
    to_peer: int
    """Packets the sending router gave the underlay socket."""
    from_peer: Tally
    socket_drops: int
    """Trains, not packets: the kernel counts one for a whole UDP_GRO train (udp_queue_rcv_one_skb, net/ipv4/udp.c)."""
    backlog_drops: int
    """Trains that found a processor's queue full, anywhere on this machine (/proc/net/softnet_stat)."""
    written: int
    """Packets written to the receiving Pod's TUN."""


def trail(source: LabPod, target: LabPod) -> Trail:
    here, there = counters(source.node), counters(target.node)
    sender, receiver = pod_counters(here, source), pod_counters(there, target)
    softnet = (line.split() for line in Path("/proc/net/softnet_stat").read_text().splitlines())
    return Trail(
        source=sender.tally,
        ring_drops=sender.kernel_drops,
        to_peer=sum(peer.tally.sent_packets for peer in here.peers),
        from_peer=next((peer.tally for peer in there.peers), Tally()),
        socket_drops=there.socket_drops,
        backlog_drops=sum(int(row[1], 16) for row in softnet),
        written=receiver.tally.sent_packets,
    )


def pod_counters(found: Counters, pod: LabPod) -> AttachmentCounters:
    return next(each for each in found.attachments if each.key.sandbox_id == pod.sandbox_id)


def way(source: LabPod, target: LabPod) -> Way:
    ends = [Namespace.existing(str(pod.netns_path)) for pod in (source, target)]
    return Way(ends[0], ends[1], str(target.addresses[0]))


def flood(lab: Lab, source: LabPod, target: LabPod) -> tuple[int, int, Trail, Trail]:
    """Send 64-byte packets as fast as the kernel takes them, and call both routers meanwhile."""
    before = trail(source, target)
    calls_ms: list[float] = []
    with source.node.client() as near, target.node.client() as far:
        for client in (near, far):
            client.status()
        with Flow(way(source, target), _PAYLOAD_BYTES) as flow:
            deadline_s = time.monotonic() + _SECONDS
            while time.monotonic() < deadline_s:
                for call in (near.status, near.counters, far.status, far.counters):
                    start_s = time.perf_counter()
                    answer = call()
                    calls_ms.append((time.perf_counter() - start_s) * 1e3)
                    if isinstance(answer, Counters):  # at all times, not only when all is quiet
                        assert unbalanced(answer) == []
            flow.stop()
            settle(source, target)
            flow.stop()
            sent, arrived = flow.sent, flow.arrived
    print(
        f"\n{source.name} → {target.name}: {sent / _SECONDS / 1e3:.0f} kpps sent, {arrived / _SECONDS / 1e3:.0f} kpps "
        f"arrived; {len(calls_ms)} calls, p50 {statistics.median(calls_ms):.1f} ms, max {max(calls_ms):.0f} ms"
    )
    assert max(calls_ms) < 1000
    return sent, arrived, before, trail(source, target)


def settle(source: LabPod, target: LabPod) -> None:
    """Wait until nothing moves any more."""
    last = None

    def still() -> bool:
        nonlocal last
        now = trail(source, target)
        last, before = now, last
        return now == before

    eventually(still, what="quiet")


def test_what_is_lost_between_nodes_was_counted(lab: Lab) -> None:
    source, target = lab.pods[0], lab.pods[2]
    sent, arrived, before, after = flood(lab, source, target)
    ring = after.ring_drops - before.ring_drops
    received = after.source.received_packets - before.source.received_packets
    tunnelled = after.source.tunnelled_packets - before.source.tunnelled_packets
    to_peer = after.to_peer - before.to_peer
    from_peer = after.from_peer.received_packets - before.from_peer.received_packets
    delivered = after.from_peer.delivered_packets - before.from_peer.delivered_packets
    trains = after.socket_drops - before.socket_drops + after.backlog_drops - before.backlog_drops
    print(f"sent {sent} = ring {ring} + read {received}; tunnelled {tunnelled}; at the other socket {from_peer} "
          f"+ {trains} trains dropped; delivered {delivered}; arrived {arrived}")  # fmt: skip
    assert sent > 10_000
    assert sent == ring + received
    assert received == tunnelled + dropped(after.source) - dropped(before.source)
    assert tunnelled == to_peer
    assert trains <= to_peer - from_peer <= 128 * trains
    assert from_peer == delivered + dropped(after.from_peer) - dropped(before.from_peer)
    assert delivered == after.written - before.written == arrived


def test_what_is_lost_on_one_node_was_counted(lab: Lab) -> None:
    source, target = lab.pods[0], lab.pods[1]
    sent, arrived, before, after = flood(lab, source, target)
    ring = after.ring_drops - before.ring_drops
    received = after.source.received_packets - before.source.received_packets
    delivered = after.source.delivered_packets - before.source.delivered_packets
    assert sent > 10_000
    assert sent == ring + received
    assert received == delivered + dropped(after.source) - dropped(before.source)
    assert delivered == after.written - before.written == arrived


def test_refused_packets_are_counted_and_errors_about_them_limited(lab: Lab) -> None:
    source = lab.pods[0]
    before, before_node = pod_counters(counters(source.node), source), counters(source.node)
    sent = 20_000
    with netns.open_socket(source.netns_path, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(sent):
            sender.sendto(b"anybody?", ("10.42.200.9", 9))
    eventually(
        lambda: passed(source) == before.tally.received_packets + before.kernel_drops + sent, what="the last one"
    )
    after, after_node = pod_counters(counters(source.node), source), counters(source.node)
    refused = after.tally.dropped["no_route"] - before.tally.dropped.get("no_route", 0)
    told = after.tally.icmp_errors - before.tally.icmp_errors
    held_back = after_node.icmp_suppressed - before_node.icmp_suppressed
    assert refused + after.kernel_drops - before.kernel_drops == sent
    assert told + held_back == refused
    assert 0 < told < refused


def passed(pod: LabPod) -> int:
    found = pod_counters(counters(pod.node), pod)
    return found.tally.received_packets + found.kernel_drops


def dropped(tally: Tally) -> int:
    return sum(tally.dropped.values())
