"""The engine contract, observed: what was dropped lately, what taps see, and the questions that come."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

import pytest

from router.engine import interface
from router.engine.interface import (
    BATCH_BOUNDS,
    DROPS_KEPT,
    SIGHTING_BYTES_KEPT,
    SIGHTINGS_KEPT,
    DroppedFlow,
    Instruction,
    Side,
    Sighting,
)
from router.model import AttachmentKey, DropReason, Endpoint, Flow, Limit, Limits, VerdictKind
from tests.engine_rig import DEADLINE_S, VNI, Rig, endpoint_of, key, underlay, until
from tests.packets import TCP, UDP, finished, frame, ip, packets_of, partial, tcp, udp
from tests.peer import V4, V6, HandMade, geneve, one_hop_on, probe
from tests.test_engine_peers import FAMILIES, back, rig, take
from tests.test_engine_refusals import error_in

__all__ = ["rig"]
"""The fixture: node 1 with Pod .2, under every engine."""

A, B = key("a"), key("b")
LOCAL, TUNNEL, REJECT, DROP = VerdictKind.LOCAL, VerdictKind.TUNNEL, VerdictKind.REJECT, VerdictKind.DROP
BEFORE, AFTER = Side.BEFORE, Side.AFTER
NEAR4, NEAR6 = (V4[0], "10.42.1.3"), (V6[0], "fd42:1::3")
"""Two Pods of node 1."""
UDP_ONLY = (Instruction(0x30, 0, 0, 9), Instruction(0x15, 0, 1, 17), Instruction(6, 0, 0, 1), Instruction(6, 0, 0, 0))
"""IPv4 and UDP: ldb [9]; jeq #17; ret."""


def watch(rig: Rig, **tap: Any) -> None:
    """Watch by one tap, number 1."""
    rig.engine.watch((interface.Tap(1, **tap),))


def seen(rig: Rig, count: int) -> list[Sighting]:
    """Forward until so many sightings were fetched; there must be no more, and none lost."""
    found: list[Sighting] = []

    def enough() -> bool:
        rig.pump()
        sightings, lost = rig.engine.sightings(0.0)
        assert lost == {}
        found.extend(sightings)
        return len(found) >= count

    until(enough, f"{count} sightings")
    enough()
    assert len(found) == count, [told(each) for each in found]
    times_ns = [each.time_ns for each in found]
    assert times_ns == sorted(times_ns)
    assert all(abs(each - time.time_ns()) < 60e9 for each in times_ns)
    return found


Told = tuple[Side, Any, Any, VerdictKind, Any, int]


def told(one: Sighting) -> Told:
    """Return what a sighting says of its packet."""
    return one.side, one.source, one.target, one.verdict, one.reason and one.reason.value, one.packets


def of(ends: tuple[str, str], protocol: int = 253, *ports: int) -> Flow:
    return Flow(ip_address(ends[0]), ip_address(ends[1]), protocol, *ports)


Line = tuple[object, str, Flow | None, int, int, int]


def line(one: DroppedFlow) -> Line:
    return one.source, one.reason.value, one.flow, one.packets, one.packet_bytes, one.limit_bytes


def dropped(rig: Rig, *expected: Line) -> None:
    """Forward until the log says this, newest first; the counters must say the same."""
    rig.pump()
    until(lambda: rig.pump() or len(rig.engine.drops()) >= len(expected), f"{len(expected)} lines")
    assert [line(one) for one in rig.engine.drops()] == list(expected)
    counted, found = rig.counters(), Counter[str]()
    for tally in (*counted.attachments.values(), *counted.peers.values(), counted.strangers, counted.gone):
        found.update({reason.value: packets for reason, packets in tally.dropped.items()})
    assert found == Counter(reason for _, reason, _, packets, _, _ in expected for _ in range(packets))


# Drops


@FAMILIES
def test_what_pods_sent_in_vain_is_remembered(rig: Rig, ends: tuple[str, str]) -> None:
    family = 0 if ends is V4 else 1
    pod, headers = rig.taps[A], (20, 40)[family]
    rig.pod("b", 3, mtu_bytes=1300)
    expected: list[Line] = []
    with HandMade(rig) as peer, HandMade(rig, 3) as third:
        rig.know((peer.node, third.node), egress=False)
        rig.learn(third.node.name, up=False)
        for to, size, ttl, reason, limit in (
            (("10.42.200.9", "fd42:200::9"), 60, 64, "no_route", 0),
            (("10.42.1.99", "fd42:1::99"), 61, 64, "no_attachment", 0),
            (("9.9.9.9", "2001:db8::9"), 62, 64, "egress_disabled", 0),
            (("224.0.0.5", "ff02::5"), 63, 64, "not_routable", 0),
            (("10.42.3.3", "fd42:3::3"), 64, 64, "peer_down", 0),
            ((V4[1], V6[1]), 65, 1, "ttl_expired", 0),
            ((NEAR4[1], NEAR6[1]), 66, 1, "ttl_expired", 0),
            ((V4[1], V6[1]), 1453, 64, "too_big", 1452),
            ((NEAR4[1], NEAR6[1]), 1301, 64, "too_big", 1300),
        ):
            pod.send_packet(ip(ends[0], to[family], 253, bytes(size - headers), ttl=ttl))
            rig.pump()
            expected.insert(0, (A, reason, of((ends[0], to[family])), 1, size, limit))
        spoofed = ((V4[1], V6[1])[family], (NEAR4[1], NEAR6[1])[family])
        pod.send_packet(ip(*spoofed, UDP, udp(b"spoofed")))
        expected.insert(0, (A, "spoofed_source", of(spoofed, UDP, 40000, 50001), 1, headers + 15, 0))
        pod.send_packet(ip(*ends, UDP, udp(b"cut"))[:-1])
        expected.insert(0, (A, "malformed", of(ends, UDP, 40000, 50001), 1, headers + 10, 0))
        dropped(rig, *expected)


def test_what_is_no_packet_has_no_flow(rig: Rig) -> None:
    pod = rig.taps[A]
    for junk in (b"\x45junk", b"\x55" * 60, b""):
        pod.send_packet(junk)
    dropped(rig, (A, "malformed", None, 3, 0, 0))


def test_what_peers_sent_in_vain_is_remembered(rig: Rig) -> None:
    with HandMade(rig) as peer:
        who = peer.node.endpoint
        rig.learn(peer.node.name, epoch=5)
        wrong_node = (V4[1], "10.42.3.3")
        sent = [
            (geneve(back(V4), vni=VNI + 1, epoch=5), "wrong_network", None, 20 + 32, 0),
            (b"\3\xc0" + geneve(back(V4), epoch=5)[2:], "bad_encapsulation", None, 20 + 32, 0),
            (geneve(back(V4), epoch=4), "stale_epoch", of((V4[1], V4[0]), UDP, 40000, 50001), 32, 0),
            (geneve(back(V4)[:-1], epoch=5), "malformed", of((V4[1], V4[0]), UDP, 40000, 50001), 31, 0),
            (geneve(ip("9.9.9.9", V4[0], 253, b"?"), epoch=5), "spoofed_source", of(("9.9.9.9", V4[0])), 21, 0),
            (geneve(ip(V4[1], V4[0], 253, b"old", ttl=1), epoch=5), "ttl_expired", of((V4[1], V4[0])), 23, 0),
            (geneve(ip(V4[1], V4[0], 253, bytes(1433)), epoch=5), "too_big", of((V4[1], V4[0])), 1453, 1452),
            (geneve(ip(V4[1], "10.42.1.99", 253, b""), epoch=5), "no_attachment", of((V4[1], "10.42.1.99")), 20, 0),
            (geneve(ip(*wrong_node, 253, b""), epoch=5), "no_route", of(wrong_node), 20, 0),
        ]
        for number, (datagram, *_) in enumerate(sent, 1):
            peer.send(datagram)
            take(rig, peer, number)
        dropped(rig, *((who, reason, flow, 1, size, limit) for _, reason, flow, size, limit in reversed(sent)))


def test_what_strangers_sent_is_remembered_by_their_endpoint(rig: Rig) -> None:
    with underlay("127.0.0.9") as one, underlay("127.0.0.10") as other:
        for sock, datagram in ((one, geneve(back(V4))), (one, b"?"), (other, b"")):
            sock.sendto(datagram, rig.socket.getsockname())
        until(lambda: rig.pump() or rig.counters().strangers.received_packets == 3, "three datagrams")
        dropped(
            rig,
            (endpoint_of(other), "unknown_peer", None, 1, 0, 0),
            (endpoint_of(one), "unknown_peer", None, 2, 1, 0),
        )


def test_what_a_pod_would_not_take_is_remembered_with_who_sent_it(rig: Rig) -> None:
    rig.attach(B, 3, limits=Limits(ingress=Limit(1, 1)))
    gone = rig.pod("gone", 4)
    near, far = of(NEAR4), of((V4[0], "10.42.1.4"))
    with HandMade(rig) as peer:
        for _ in range(3):
            rig.taps[A].send_packet(ip(*NEAR4, 253, bytes(80)))
        peer.send(geneve(ip(V4[1], NEAR4[1], 253, bytes(81))))
        take(rig, peer, 1)
        gone.end.shutdown(socket.SHUT_RD)
        rig.taps[A].send_packet(ip(V4[0], "10.42.1.4", 253, bytes(82)))
        rig.pump()
        lines = {line(one) for one in rig.engine.drops()}
        assert lines == {
            (A, "attachment_down", far, 1, 102, 0),
            (peer.node.endpoint, "rate_limited", of((V4[1], NEAR4[1])), 1, 101, 0),
            (A, "rate_limited", near, 2, 100, 0),
        }


@pytest.mark.parametrize("watched", [False, True])
def test_of_what_was_joined_in_vain_each_packet_counts_by_its_own_flow(rig: Rig, watched: bool) -> None:
    """The option may lie about whose segments they are; the last has a byte less."""
    rig.attach(B, 3, limits=Limits(ingress=Limit(1, 1)))
    if watched:
        watch(rig, party=B, dropped_only=True)
    ends = (V4[1], NEAR4[1])
    with HandMade(rig) as peer:
        peer.send(geneve(ip(*ends, 253, bytes(80))))  # takes what tokens there are
        whole = packets_of(frame(ip(*ends, UDP, udp(bytes(2999))), UDP, gso_size=500))
        whole[2] = whole[3] = whole[2][:20] + struct.pack(">HH", 7, 9) + whole[2][24:]
        rows = [partial(each, UDP) for each in whole]
        peer.send(*(geneve(row, UDP, 20, flags=2 | 4 * (n == 5), frame_id=5, index=n) for n, row in enumerate(rows)))
        take(rig, peer, 7)
        who = peer.node.endpoint
        assert [line(one) for one in rig.engine.drops()] == [
            (who, "rate_limited", of(ends, UDP, 40000, 50001), 4, 527, 0),
            (who, "rate_limited", of(ends, UDP, 7, 9), 2, 528, 0),
        ]
        if watched:
            assert [each.packet for each in seen(rig, 6)] == rows


def test_what_the_underlay_refused_is_remembered_packet_by_packet(rig: Rig) -> None:
    """Of a run that shares a send, each by its own flow; of a super-packet, one of its packets."""
    pod = rig.taps[A]
    with HandMade(rig) as peer:
        with suppress(OSError):  # it says that it is not connected, and sends no more (EPIPE)
            rig.socket.shutdown(socket.SHUT_WR)
        for port in (7, 8, 7):
            pod.send_packet(ip(*V4, UDP, udp(b"one of a run", (port, 9))))
        rig.pump()
        pod.send(frame(ip(*V4, TCP, tcp(bytes(2500))), TCP, 1000))
        rig.pump()
        lines = [line(one) for one in rig.engine.drops()]
        assert lines == [
            (A, "underlay_error", of(V4, TCP, 40000, 50001), 3, lines[0][4], 0),
            (A, "underlay_error", of(V4, UDP, 7, 9), 2, 40, 0),
            (A, "underlay_error", of(V4, UDP, 8, 9), 1, 40, 0),
        ]
        assert lines[0][4] in (540, 1040)
        assert rig.tally(peer.node.endpoint).sent_packets == 0


def test_a_path_that_has_become_smaller_is_remembered_with_what_it_carries(rig: Rig) -> None:
    with Rig(rig.engine.name, threads=rig.settings.threads, mtu_bytes=65_535) as wide, HandMade(wide):
        wide.told.path_mtu_bytes = 1348
        pod = wide.pod("a", 2, mtu_bytes=65_535)
        watch(wide, sides=frozenset((BEFORE,)))
        packet = ip(*V4, 253, bytes(65_490))
        pod.send_packet(packet)
        assert len(pod.packets(1)) == 1
        assert [line(one) for one in wide.engine.drops()] == [(A, "too_big", of(V4), 1, 65_510, 1300)]
        meant, failed = seen(wide, 2)
        assert (meant.verdict, failed.verdict, failed.reason) == (TUNNEL, REJECT, DropReason.TOO_BIG)
        assert meant.packet == failed.packet == packet, "as it came, before its hop was taken"


def test_a_bug_is_remembered_without_a_flow(rig: Rig) -> None:
    rig.sabotage()
    rig.taps[A].send_packet(ip(*NEAR4, 253, b"lost"))
    dropped(rig, (A, "engine_failed", None, 1, 0, 0))


@FAMILIES
def test_packets_of_one_flow_are_one_line(rig: Rig, ends: tuple[str, str]) -> None:
    pod, headers = rig.taps[A], 20 if ends is V4 else 40
    to = (ends[0], "10.42.200.9" if ends is V4 else "fd42:200::9")
    before_ns = time.time_ns()
    pod.send_packet(ip(*to, UDP, udp(b"one")))
    rig.pump()
    between_ns = time.time_ns()
    pod.send(frame(ip(*to, UDP, udp(bytes(2500))), UDP, 1000))
    pod.send_packet(ip(*to, UDP, udp(b"another", (1, 2))))
    pod.send_packet(ip(*to, UDP, udp(b"three")))
    pod.send(frame(ip(*to, TCP, tcp(bytes(2500))), TCP, 1000))
    dropped(
        rig,
        (A, "no_route", of(to, TCP, 40000, 50001), 3, headers + 20 + 1000, 0),
        (A, "no_route", of(to, UDP, 40000, 50001), 1 + 3 + 1, headers + 13, 0),
        (A, "no_route", of(to, UDP, 1, 2), 1, headers + 15, 0),
    )
    one = rig.engine.drops()[1]
    assert before_ns <= one.first_ns <= between_ns <= one.last_ns <= time.time_ns()


def test_the_same_flow_for_other_reasons_is_other_lines(rig: Rig) -> None:
    pod = rig.taps[A]
    for egress in (False, True):
        rig.know((), egress=egress)  # without podwire0 nobody gets out either way
        pod.send_packet(ip(V4[0], "9.9.9.9", 253, b"out"))
        pod.send_packet(ip(V4[0], "10.42.200.9", 1, b"\x08\x00" + bytes(6)))
        pod.send_packet(ip(V4[0], "10.42.200.9", UDP, bytes(24), df=False, fragment=0x2010))
        rig.pump()
    lines = {line(one)[1:4] for one in rig.engine.drops()}
    assert lines == {
        ("egress_disabled", of((V4[0], "9.9.9.9")), 2),
        ("no_route", of((V4[0], "10.42.200.9"), 1, 8, 0), 2),
        ("no_route", of((V4[0], "10.42.200.9"), UDP, 0, 0), 2),
    }


def test_a_flood_of_flows_keeps_the_last_of_each_direction(rig: Rig) -> None:
    pod = rig.taps[A]
    to = (V4[0], "10.42.200.9")
    with HandMade(rig) as peer:
        peer.send(geneve(ip("9.9.9.9", V4[0], 253, b"the other direction is not disturbed")))
        take(rig, peer, 1)
        whole = ip(*to, UDP, udp(b"", (0, 9)))
        for number in range(10_000):
            pod.send_packet(whole[:20] + struct.pack(">H", number) + whole[22:])
            if number % 64 == 63:
                rig.pump()
        rig.pump()
        pod.send_packet(whole[:20] + struct.pack(">H", 9_999 - DROPS_KEPT + 1) + whole[22:])  # the oldest kept
        pod.send_packet(whole[:20] + struct.pack(">H", 3) + whole[22:])  # one that was forgotten
        rig.pump()
        drops = rig.engine.drops()
        assert len(drops) == DROPS_KEPT + 1
        assert line(drops[-1])[:2] == (peer.node.endpoint, "spoofed_source")
        ports = [(one.flow.src_port, one.packets) for one in drops[:-1] if one.flow is not None]
        oldest = 9_999 - DROPS_KEPT + 1
        assert ports == [(3, 1), (oldest, 2), *((port, 1) for port in range(9_999, oldest + 1, -1))]
        assert rig.drops(A) == {"no_route": 10_002}


def test_who_left_is_remembered(rig: Rig) -> None:
    with HandMade(rig) as peer:
        rig.taps[A].send_packet(ip(V4[0], "10.42.200.9", 253, b""))
        rig.pump()
        peer.send(geneve(ip("9.9.9.9", V4[0], 253, b"")))
        take(rig, peer, 1)
        rig.detach(A)
        rig.know(())
        rig.pod("b", 2)
        assert [one.source for one in rig.engine.drops()] == [peer.node.endpoint, A]


# Batches


def test_batches_are_counted_by_their_reads(rig: Rig) -> None:
    assert rig.counters().batches == (0,) * len(BATCH_BOUNDS)
    pod = rig.taps[A]
    rig.pod("b", 3)
    expected = [0] * len(BATCH_BOUNDS)
    for reads, classes in ((1, (0,)), (2, (1,)), (3, (2,)), (5, (3,)), (8, (3,)), (9, (4,)), (33, (6,)), (70, (6, 3))):
        for _ in range(reads):
            pod.send_packet(ip(*NEAR4, 253, b""))
        rig.pump()
        for each in classes:
            expected[each] += 1
        assert rig.counters().batches == tuple(expected)
    with HandMade(rig) as peer:
        peer.send(geneve(back(V4)))
        take(rig, peer, 1)
        expected[0] += 1
        assert rig.counters().batches == tuple(expected)


# What taps see


@FAMILIES
def test_a_packet_is_seen_as_it_came_and_as_it_went(rig: Rig, ends: tuple[str, str]) -> None:
    pod, near = rig.taps[A], rig.pod("b", 3)
    local = NEAR4 if ends is V4 else NEAR6
    with HandMade(rig) as peer:
        who = peer.node.endpoint
        watch(rig)
        for packet in (ip(*local, 253, b"plain"), partial(ip(*local, UDP, udp(b"to be summed")), UDP)):
            pod.send(frame(packet, UDP if packet[9 if ends is V4 else 6] == UDP else 0))
            came, went = seen(rig, 2)
            assert (told(came), told(went)) == ((BEFORE, A, B, LOCAL, None, 1), (AFTER, A, B, LOCAL, None, 1))
            assert came.packet == packet
            assert went.packet == one_hop_on(packet) == near.frames()[0][10:]
            assert came.packet_bytes == went.packet_bytes == len(packet)
        for packet in (ip(*ends, 253, b"plain"), partial(ip(*ends, TCP, tcp(b"to be summed")), TCP)):
            pod.send(frame(packet, TCP if packet[9 if ends is V4 else 6] == TCP else 0))
            came, went = seen(rig, 2)
            assert (told(came), told(went)) == ((BEFORE, A, who, TUNNEL, None, 1), (AFTER, A, who, TUNNEL, None, 1))
            assert came.packet == packet
            assert went.packet == one_hop_on(packet) == peer.datagrams(1)[0][20:]
        packet = back(ends)
        peer.send(geneve(packet))
        came, went = seen(rig, 2)
        assert (told(came), told(went)) == ((BEFORE, who, A, LOCAL, None, 1), (AFTER, who, A, LOCAL, None, 1))
        assert (came.packet, went.packet) == (packet, one_hop_on(packet))


def test_a_plain_peer_is_sent_what_is_seen(rig: Rig) -> None:
    """Its checksum finished, which was partial when it came."""
    with HandMade(rig, offload=False) as peer:
        watch(rig)
        packet = partial(ip(*V4, UDP, udp(b"to be summed")), UDP)
        rig.taps[A].send(frame(packet, UDP))
        came, went = seen(rig, 2)
        assert came.packet == packet
        assert went.packet == one_hop_on(finished(packet, UDP)) == peer.datagrams(1)[0][8:]


@FAMILIES
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
def test_a_run_of_single_packets_is_seen_one_by_one(rig: Rig, ends: tuple[str, str], offload: bool) -> None:
    with HandMade(rig, offload=offload) as peer:
        watch(rig)
        packets = [ip(*ends, 253, bytes((number,)) * size) for number, size in enumerate((80, 80, 90, 80, 20, 20, 80))]
        for packet in packets:
            rig.taps[A].send_packet(packet)
        found = seen(rig, 2 * len(packets))
        assert [each.packet for each in found if each.side is BEFORE] == packets
        assert [each.packet for each in found if each.side is AFTER] == [one_hop_on(packet) for packet in packets]
        assert {each.target for each in found} == {peer.node.endpoint}
        assert len(peer.datagrams(len(packets))) == len(packets)


@FAMILIES
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_super_packets_are_seen_whole(rig: Rig, ends: tuple[str, str], protocol: int) -> None:
    """Between Pods; towards a peer they leave in packets, and what comes in packets may leave joined."""
    pod, near = rig.taps[A], rig.pod("b", 3)
    local = NEAR4 if ends is V4 else NEAR6
    body = tcp(b"r" * 4200) if protocol == TCP else udp(b"r" * 4200)
    with HandMade(rig) as peer:
        who = peer.node.endpoint
        watch(rig)
        sent = frame(ip(*local, protocol, body), protocol, 1000)
        pod.send(sent)
        came, went = seen(rig, 2)
        assert (told(came), told(went)) == ((BEFORE, A, B, LOCAL, None, 5), (AFTER, A, B, LOCAL, None, 5))
        assert (came.packet, went.packet) == (sent[10:], near.frames()[0][10:])

        sent = frame(ip(*ends, protocol, body), protocol, 1000)
        pod.send(sent)
        came, *went_each = seen(rig, 6)
        assert told(came) == (BEFORE, A, who, TUNNEL, None, 5)
        assert came.packet == sent[10:]
        assert [told(each) for each in went_each] == [(AFTER, A, who, TUNNEL, None, 1)] * 5
        rows = peer.datagrams(5)
        assert [each.packet for each in went_each] == [row[20:] for row in rows]

        arriving = [
            partial(each, protocol) for each in packets_of(frame(ip(ends[1], ends[0], protocol, body), protocol, 1000))
        ]
        at = 20 if ends is V4 else 40
        peer.send(
            *(
                geneve(each, protocol, at, flags=2 | 4 * (number == 4), frame_id=5, index=number)
                for number, each in enumerate(arriving)
            )
        )
        *came_each, went = seen(rig, 6)
        assert [told(each) for each in came_each] == [(BEFORE, who, A, LOCAL, None, 1)] * 5
        assert [each.packet for each in came_each] == arriving
        assert told(went) == (AFTER, who, A, LOCAL, None, 5)
        (delivered,) = pod.frames()
        assert went.packet == delivered[10:]


def test_fragments_are_seen_as_they_leave(rig: Rig) -> None:
    pod, small = rig.taps[A], rig.pod("b", 3, mtu_bytes=600)
    with HandMade(rig) as peer:
        watch(rig)
        whole = ip(*NEAR4, 253, bytes(1000), df=False)
        pod.send_packet(whole)
        found = seen(rig, 3)
        assert [each.packet for each in found if each.side is BEFORE] == [whole]
        assert [each.packet for each in found if each.side is AFTER] == small.packets(2)
        assert {told(each)[1:] for each in found} == {(A, B, LOCAL, None, 1)}
        whole = ip(V4[1], NEAR4[1], 253, bytes(1000), df=False)
        peer.send(geneve(whole))
        found = seen(rig, 3)
        assert [each.packet for each in found if each.side is BEFORE] == [whole]
        assert [each.packet for each in found if each.side is AFTER] == small.packets(2)
        assert {told(each)[1:] for each in found} == {(peer.node.endpoint, B, LOCAL, None, 1)}
        whole = ip(*V4, 253, bytes(2000), df=False)
        pod.send_packet(whole)
        found = seen(rig, 3)
        assert [each.packet for each in found if each.side is AFTER] == [row[20:] for row in peer.datagrams(2)]


@FAMILIES
def test_a_routers_own_errors_are_seen_as_its_own(rig: Rig, ends: tuple[str, str]) -> None:
    pod = rig.taps[A]
    with HandMade(rig) as peer:
        watch(rig)
        packet = ip(ends[0], "10.42.200.9" if ends is V4 else "fd42:200::9", 253, b"nowhere")
        pod.send_packet(packet)
        came, error = seen(rig, 2)
        assert told(came) == (BEFORE, A, None, REJECT, "no_route", 1)
        assert came.packet == packet
        assert told(error) == (AFTER, None, A, LOCAL, None, 1)
        assert error.packet == pod.packets(1)[0]
        assert error_in(error.packet)[3] == packet
        packet = ip(ends[1], ends[0], 253, b"too old", ttl=1)
        peer.send(geneve(packet))
        came, error = seen(rig, 2)
        assert told(came) == (BEFORE, peer.node.endpoint, None, REJECT, "ttl_expired", 1)
        assert told(error) == (AFTER, None, peer.node.endpoint, TUNNEL, None, 1)
        assert error.packet == peer.datagrams(1)[0][20:]


def test_what_holds_no_packet_is_seen_as_a_datagram(rig: Rig) -> None:
    with HandMade(rig) as peer, underlay("127.0.0.9") as stranger:
        watch(rig)
        datagram = geneve(back(V4))
        stranger.sendto(datagram, rig.socket.getsockname())
        (came,) = seen(rig, 1)
        assert told(came) == (BEFORE, endpoint_of(stranger), None, DROP, "unknown_peer", 1)
        assert came.packet == datagram
        for junk, reason in ((b"\xff" * 40, "bad_encapsulation"), (geneve(back(V4), vni=9), "wrong_network")):
            peer.send(junk)
            (came,) = seen(rig, 1)
            assert told(came) == (BEFORE, peer.node.endpoint, None, DROP, reason, 1)
            assert came.packet == junk
        inner = back(V4)[:-1]
        peer.send(geneve(inner))
        (came,) = seen(rig, 1)
        assert (told(came)[4], came.packet) == ("malformed", inner)
        rig.taps[A].send_packet(b"\x45junk")
        (came,) = seen(rig, 1)
        assert (told(came), came.packet) == ((BEFORE, A, None, DROP, "malformed", 1), b"\x45junk")
        for control in (probe(), question(), probe(2)):  # none of these is a packet
            peer.send(control)
        assert len(peer.datagrams(1)) == 1
        assert seen(rig, 0) == []


@FAMILIES
def test_what_fails_after_all_is_seen_once_more(rig: Rig, ends: tuple[str, str]) -> None:
    pod = rig.taps[A]
    with HandMade(rig) as peer:
        watch(rig, party=peer.node.endpoint)
        with suppress(OSError):  # it says that it is not connected, and sends no more (EPIPE)
            rig.socket.shutdown(socket.SHUT_WR)
        packets = [ip(*ends, 253, bytes((number,)) * 50) for number in range(3)]
        for packet in packets:
            pod.send_packet(packet)
        found = seen(rig, 6)
        assert [told(each)[1:] for each in found] == [
            *[(A, peer.node.endpoint, TUNNEL, None, 1)] * 3,
            *[(A, None, DROP, "underlay_error", 1)] * 3,
        ]
        assert [each.packet for each in found] == packets * 2, "as they came"
        assert {each.side for each in found} == {BEFORE}


# Which packets taps see


def send_all(rig: Rig, peer: HandMade) -> None:
    """Send from a to b and to the peer, from b to the peer, from the peer to b; and in vain from a, b and the peer."""
    pods = rig.taps
    pods[A].send_packet(ip(*NEAR4, 253, b"a to b"))
    pods[A].send_packet(ip(*V4, UDP, udp(b"a to the peer")))
    pods[A].send_packet(ip(V4[0], "224.0.0.5", 253, b"a in vain"))
    pods[B].send_packet(ip(NEAR4[1], V4[1], 253, b"b to the peer"))
    pods[B].send_packet(ip(NEAR4[1], "224.0.0.5", UDP, udp(b"b in vain")))
    peer.send(geneve(ip(V4[1], NEAR4[1], 253, b"the peer to b")))
    peer.send(geneve(ip("9.9.9.9", V4[0], UDP, udp(b"the peer in vain"))))


@pytest.fixture
def three(rig: Rig) -> Iterator[tuple[Rig, HandMade]]:
    """Pods a and b, and a peer."""
    rig.pod("b", 3)
    with HandMade(rig) as peer:
        yield rig, peer


def said(found: list[Sighting]) -> Counter[tuple[str, str]]:
    """Return side and text of what was seen."""
    known = (
        b"a to b",
        b"a to the peer",
        b"a in vain",
        b"b to the peer",
        b"b in vain",
        b"the peer to b",
        b"the peer in vain",
    )
    return Counter(
        (each.side.value, next((text.decode() for text in known if each.packet.endswith(text)), "?")) for each in found
    )


EVERY_BEFORE = (
    "a to b",
    "a to the peer",
    "a in vain",
    "b to the peer",
    "b in vain",
    "the peer to b",
    "the peer in vain",
)
EVERY_AFTER = ("a to b", "a to the peer", "b to the peer", "the peer to b")


@pytest.mark.parametrize(
    ("tap", "before", "after"),
    [
        ({}, EVERY_BEFORE, EVERY_AFTER),
        ({"sides": {BEFORE}}, EVERY_BEFORE, ()),
        ({"sides": {AFTER}}, (), EVERY_AFTER),
        ({"sides": ()}, (), ()),
        ({"party": A}, ("a to b", "a to the peer", "a in vain"), ("a to b", "a to the peer")),
        (
            {"party": B},
            ("a to b", "b to the peer", "b in vain", "the peer to b"),
            ("a to b", "b to the peer", "the peer to b"),
        ),
        (
            {"party": "peer"},
            ("a to the peer", "b to the peer", "the peer to b", "the peer in vain"),
            ("a to the peer", "b to the peer", "the peer to b"),
        ),
        ({"party": AttachmentKey("nobody", "eth0")}, (), ()),
        ({"party": Endpoint(ip_address("127.0.0.77"))}, (), ()),
        ({"dropped_only": True}, ("a in vain", "b in vain", "the peer in vain"), ()),
        ({"dropped_only": True, "party": "peer"}, ("the peer in vain",), ()),
        ({"dropped_only": True, "sides": {AFTER}}, (), ()),
        ({"program": UDP_ONLY}, ("a to the peer", "b in vain", "the peer in vain"), ("a to the peer",)),
        ({"program": UDP_ONLY, "party": B, "dropped_only": True}, ("b in vain",), ()),
        ({"program": (Instruction(6, 0, 0, 0),)}, (), ()),
        ({"program": UDP_ONLY, "snap_bytes": 0}, ("?",) * 3, ("?",)),
    ],
    ids=str,
)  # fmt: skip
def test_a_tap_sees_what_it_asks_for(
    three: tuple[Rig, HandMade], tap: dict[str, Any], before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    rig, peer = three
    asked = dict(tap)
    if asked.get("party") == "peer":
        asked["party"] = peer.node.endpoint
    if "sides" in asked:
        asked["sides"] = frozenset(asked["sides"])
    watch(rig, **asked)
    send_all(rig, peer)
    found = seen(rig, len(before) + len(after))
    take(rig, peer, 2)
    assert seen(rig, 0) == []
    assert said(found) == Counter([*(("before", text) for text in before), *(("after", text) for text in after)])


def test_several_taps_see_each_for_itself_until_others_watch(three: tuple[Rig, HandMade]) -> None:
    rig, peer = three
    taps = (
        interface.Tap(7, party=A, sides=frozenset((AFTER,))),
        interface.Tap(9, dropped_only=True, snap_bytes=20),
        interface.Tap(8, program=UDP_ONLY, sides=frozenset((BEFORE,))),
    )
    rig.engine.watch(taps)
    send_all(rig, peer)
    found = seen(rig, 2 + 3 + 3)
    assert Counter(each.tap for each in found) == {7: 2, 9: 3, 8: 3}
    assert all(len(each.packet) == 20 and each.packet_bytes > 20 for each in found if each.tap == 9)
    rig.engine.watch(taps[1:2])
    send_all(rig, peer)
    assert {each.tap for each in seen(rig, 3)} == {9}
    send_all(rig, peer)
    take(rig, peer, 6)
    rig.engine.watch(())
    send_all(rig, peer)
    take(rig, peer, 8)
    assert len(seen(rig, 3)) == 3, "what had been seen can still be fetched, and no more"


def test_a_copy_is_cut_and_says_how_long_the_packet_was(rig: Rig) -> None:
    rig.pod("b", 3)
    packet = ip(*NEAR4, 253, bytes(range(200)))
    for snap_bytes in (0, 1, 19, 128, 219, 220, 221, 0xFFFF, 1 << 20):
        watch(rig, snap_bytes=snap_bytes)
        rig.taps[A].send_packet(packet)
        came, went = seen(rig, 2)
        assert (came.packet, went.packet) == (packet[:snap_bytes], one_hop_on(packet)[:snap_bytes])
        assert came.packet_bytes == went.packet_bytes == 220


def test_a_program_sees_the_whole_packet_as_it_is_on_that_side(rig: Rig) -> None:
    rig.pod("b", 3)
    packet = ip(*NEAR4, 253, bytes(1000) + b"\x2a")
    last = (
        Instruction(0x30, 0, 0, 1020),
        Instruction(0x15, 0, 1, 0x2A),
        Instruction(6, 0, 0, 1),
        Instruction(6, 0, 0, 0),
    )
    ttl = (Instruction(0x30, 0, 0, 8), Instruction(0x15, 0, 1, 63), Instruction(6, 0, 0, 1), Instruction(6, 0, 0, 0))
    rig.engine.watch((interface.Tap(1, program=last, snap_bytes=10), interface.Tap(2, program=ttl)))
    rig.taps[A].send_packet(packet)
    assert sorted((each.tap, each.side.value) for each in seen(rig, 3)) == [(1, "after"), (1, "before"), (2, "after")]


@pytest.mark.parametrize("every", [2, 10])
def test_one_in_so_many_is_looked_at(rig: Rig, every: int) -> None:
    """A very wide margin: six standard deviations and more."""
    rig.pod("b", 3)
    watch(rig, every=every)
    for number in range(4_000):
        rig.taps[A].send_packet(ip(*NEAR4, 253, number.to_bytes(2, "big")))
        if number % 64 == 63:
            rig.pump()
            rig.taps[B].frames()
    rig.pump()
    found, lost = rig.engine.sightings(0.0)
    assert lost == {}
    for side in Side:
        numbers = [int.from_bytes(each.packet[-2:], "big") for each in found if each.side is side]
        expected = 4_000 / every
        assert 0.6 * expected < len(numbers) < 1.5 * expected, side
        gaps = {later - earlier for earlier, later in pairwise(numbers)}
        assert len(gaps) > 1, "chosen at random"


def test_a_tap_sees_what_was_meant_for_its_party(rig: Rig) -> None:
    rig.attach(B, 3, limits=Limits(ingress=Limit(1, 1)))
    watch(rig, party=B, dropped_only=True)
    for _ in range(3):
        rig.taps[A].send_packet(ip(*NEAR4, 253, bytes(80)))
    rig.taps[A].send_packet(ip(*NEAR4, 253, bytes(80), ttl=1))
    found = seen(rig, 3)
    assert [told(each) for each in found] == [
        *[(BEFORE, A, None, DROP, "rate_limited", 1)] * 2,
        (BEFORE, A, None, REJECT, "ttl_expired", 1),
    ]
    assert found[0].packet == ip(*NEAR4, 253, bytes(80))


def test_who_comes_after_one_that_left_is_not_seen(rig: Rig) -> None:
    with HandMade(rig) as peer:
        for party in (A, peer.node.endpoint):
            watch(rig, party=party)
            rig.taps[A].send_packet(ip(*V4, 253, b""))
            assert len(seen(rig, 2)) == 2
        peer.datagrams(2)
        watch(rig, party=A)
        rig.detach(A)
        for name in ("other", "a"):
            rig.pod(name, 2)
            rig.taps[key(name)].send_packet(ip(*V4, 253, b"another"))
            assert len(peer.datagrams(1)) == 1
            assert seen(rig, 0) == []
            if name == "other":
                rig.detach(key(name))
        watch(rig, party=A)
        rig.taps[A].send_packet(ip(*V4, 253, b""))
        assert len(seen(rig, 2)) == 2
        peer.datagrams(1)

        watch(rig, party=peer.node.endpoint)
        rig.know((replace(peer.node, name="another"),))
        rig.taps[A].send_packet(ip(*V4, 253, b"another"))
        assert len(peer.datagrams(1)) == 1
        assert seen(rig, 0) == []


def test_a_peer_stays_the_same_to_a_tap(rig: Rig) -> None:
    with HandMade(rig) as peer:
        watch(rig, party=peer.node.endpoint)
        rig.learn(peer.node.name, epoch=3, mtu_bytes=1300)
        rig.pod("b", 3)
        rig.taps[A].send_packet(ip(*V4, 253, b""))
        assert len(seen(rig, 2)) == 2


# What waits to be fetched


def test_what_finds_no_room_is_counted_by_tap(rig: Rig) -> None:
    whole = ip(*NEAR4, TCP, tcp(bytes(60_000)))
    fits = SIGHTING_BYTES_KEPT // len(whole)
    with HandMade(rig):
        rig.engine.watch((interface.Tap(1, sides=frozenset((BEFORE,))), interface.Tap(2, program=UDP_ONLY)))
        pod = rig.taps[A]
        for _ in range(fits + 5):
            pod.send(frame(ip(V4[0], "10.42.200.9", TCP, tcp(bytes(60_000))), TCP, 1000))
            rig.pump()
            pod.frames()
        found, lost = rig.engine.sightings(0.0)
        assert (len(found), lost) == (fits, {1: 5})
        assert sum(len(each.packet) for each in found) <= SIGHTING_BYTES_KEPT
        assert rig.engine.sightings(0.0) == ((), {})
        pod.send_packet(ip(V4[0], "224.0.0.5", UDP, udp(b"room again")))
        assert [each.tap for each in seen(rig, 2)] == [1, 2]


def test_no_more_than_so_many_wait(rig: Rig) -> None:
    with HandMade(rig) as peer:
        rig.engine.watch((interface.Tap(1, snap_bytes=0), interface.Tap(2, sides=frozenset((AFTER,)))))
        row, rows = geneve(b"\x45" + bytes(19)), 0
        while rows < SIGHTINGS_KEPT + 64:
            peer.send(*[row] * 64)
            rows += 64
            take(rig, peer, rows)
        found, lost = rig.engine.sightings(0.0)
        assert (len(found), lost) == (SIGHTINGS_KEPT, {1: 64})
        peer.send(row)
        assert len(seen(rig, 1)) == 1


def fetching(rig: Rig, timeout_s: float) -> tuple[threading.Thread, list[tuple[Any, Any]]]:
    """Begin to wait for sightings in a thread."""
    results: list[tuple[Any, Any]] = []
    thread = threading.Thread(target=lambda: results.append(rig.engine.sightings(timeout_s)), daemon=True)
    thread.start()
    return thread, results


def test_who_waits_is_woken_by_the_first(rig: Rig) -> None:
    rig.pod("b", 3)
    watch(rig)
    rig.start()
    thread, results = fetching(rig, 10 * DEADLINE_S)
    rig.taps[A].send_packet(ip(*NEAR4, 253, b"first"))
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    (found, lost) = results[0]
    assert found[0].packet == ip(*NEAR4, 253, b"first")
    assert lost == {}


@pytest.mark.parametrize("started", [True, False])
def test_who_waits_is_woken_by_watch(rig: Rig, started: bool) -> None:
    watch(rig)
    if started:
        rig.start()
    thread, results = fetching(rig, 10 * DEADLINE_S)

    def woken() -> bool:
        rig.engine.watch(())
        return not thread.is_alive()

    until(woken, "the thread that waits returns")
    assert results == [((), {})]


def test_waiting_in_vain_ends(rig: Rig) -> None:
    watch(rig)
    assert rig.engine.sightings(0.05) == ((), {})
    assert rig.engine.sightings(-1.0) == ((), {})


def test_taps_come_and_go_under_traffic(rig: Rig) -> None:
    """Nothing is lost or counted wrongly, whatever watches; and who watches sees whole packets."""
    near = rig.pod("b", 3)
    rig.start()
    sent = 0
    with HandMade(rig) as peer:
        for turn in range(30):
            watch(rig, party=(None, A, B, peer.node.endpoint)[turn % 4], program=UDP_ONLY if turn % 3 else ())
            for number in range(20):
                rig.taps[A].send_packet(ip(*NEAR4, UDP, udp(bytes((turn, number)))))
                rig.taps[A].send_packet(ip(*V4, UDP, udp(bytes((turn, number)))))
                sent += 2
            until(lambda all_=sent: rig.tally(A).received_packets == all_, "all read")
            near.frames()
            found, lost = rig.engine.sightings(0.0)
            assert lost == {}
            assert {each.packet_bytes for each in found} <= {30}
        rig.engine.watch(())
        tally = rig.tally(A)
        assert (tally.delivered_packets, tally.tunnelled_packets) == (sent // 2, sent // 2)
        assert len(peer.datagrams(sent // 2)) == sent // 2


# Questions


def question(kind: int = 1, size: int = 512, sequence: int = 7, vni: int = VNI, length: int | None = None) -> bytes:
    """Make a question or reply by hand, as router/wire/question.py draws it; `length` other than what it says."""
    head = b"\5\xc0" + struct.pack(">HIHBBBBHIQ", 0, vni << 8, 0xFFFF, 0x83, 4, kind, 0, size, sequence, 99)
    return head.ljust(size if length is None else length, b"\1")


def test_questions_and_replies_go_to_the_host_whole(rig: Rig) -> None:
    with HandMade(rig) as peer:
        before_ns = time.monotonic_ns()
        sent = [question(), question(2, 29), question(2, 512), question(2, 100, sequence=1 << 31), question(sequence=0)]
        for datagram in sent:
            peer.send(datagram)
        until(lambda: rig.pump() or len(rig.told.questions) == len(sent), "all at the host")
        assert [each[:2] for each in rig.told.questions] == [(peer.node.endpoint, datagram) for datagram in sent]
        times_ns = [received_ns for _, _, received_ns in rig.told.questions]
        assert before_ns <= times_ns[0]
        assert times_ns == sorted(times_ns)
        assert times_ns[-1] <= time.monotonic_ns()
        tally = rig.tally(peer.node.endpoint)
        assert (tally.control_packets, tally.received_frames) == (5, 5)
        assert replace(tally, control_packets=0, received_frames=0) == type(tally)(), "in no other count"
        with pytest.raises(BlockingIOError):
            peer.socket.recv(2000)  # the engine itself answers none
        assert rig.engine.drops() == ()


def test_what_is_no_question_is_a_bad_encapsulation(rig: Rig) -> None:
    good = question()
    hostile = [
        good[:-1], good + b"\0", question(length=28), question(size=511), question(size=513), question(0), question(3),
        question(2, 28), question(2, 513), question(2, 100, length=99), question(2, 100, length=101),
        question(2, 1472), b"\4" + good[1:], b"\x45" + good[1:], good[:1] + b"\x40" + good[2:],
        good[:2] + b"\x08\x00" + good[4:], good[:10] + b"\x84" + good[11:], good[:11] + b"\x05" + good[12:], good[:20],
    ]  # fmt: skip
    with HandMade(rig) as peer:
        for datagram in hostile:
            peer.send(datagram)
        peer.send(question(vni=VNI + 1))
        take(rig, peer, len(hostile) + 1)
        assert rig.drops(peer.node.endpoint) == {"bad_encapsulation": len(hostile), "wrong_network": 1}
        assert rig.tally(peer.node.endpoint).control_packets == 0
        assert rig.told.questions == []
        lines = {line(one)[:4] for one in rig.engine.drops()}
        assert lines == {
            (peer.node.endpoint, "bad_encapsulation", None, len(hostile)),
            (peer.node.endpoint, "wrong_network", None, 1),
        }


def test_a_stranger_asks_in_vain(rig: Rig) -> None:
    with HandMade(rig), underlay("127.0.0.9") as stranger:
        stranger.sendto(question(), rig.socket.getsockname())
        until(lambda: rig.pump() or rig.counters().strangers.received_packets == 1, "a datagram")
        assert rig.told.questions == []


def test_a_flood_of_questions_costs_others_nothing(rig: Rig) -> None:
    """Those beyond what may wait are lost, and counted all the same; packets among them are delivered."""
    pod = rig.taps[A]
    packet = ip(V4[1], V4[0], 253, bytes(512 - 20 - 20))
    with HandMade(rig) as peer:
        rows = [question(sequence=number) for number in range(50)] + [geneve(packet)]
        for turn in range(1, 11):
            peer.send(*rows)
            take(rig, peer, 51 * turn)
        assert pod.packets(10) == [one_hop_on(packet)] * 10
        until(lambda: rig.pump() or rig.told.questions, "a question")
        assert rig.tally(peer.node.endpoint).control_packets == 500
        assert len(rig.told.questions) <= 500
