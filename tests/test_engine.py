"""The engine contract, carrying: what goes in at one Pod comes out at the right one, its bytes untouched but the hop."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from router.engine.choose import available
from router.model import NODE_KEY, DropReason, NextHop, Offloads, Verdict, VerdictKind
from tests.engine_rig import VNI, Rig, Tap, key, pair, underlay
from tests.packets import (
    ACK,
    PLAIN_VNET,
    PSH,
    TCP,
    UDP,
    finished,
    flows,
    frame,
    ip,
    packets_of,
    partial,
    tcp,
    udp,
)
from tests.peer import V4, V6, HandMade, geneve, one_hop_on

ENGINES = pytest.mark.parametrize("engine", available())
FAMILIES = pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])


@pytest.fixture(params=available())
def nodes(request: pytest.FixtureRequest) -> Iterator[tuple[Rig, Rig]]:
    """Two nodes that know each other, a Pod .2 on the first, .3 on the second."""
    with Rig(request.param, 1) as first, Rig(request.param, 2) as second:
        pair(first, second)
        first.pod("a", 2)
        second.pod("b", 3)
        yield first, second


def taps(nodes: tuple[Rig, Rig]) -> tuple[Tap, Tap]:
    return nodes[0].taps[key("a")], nodes[1].taps[key("b")]


@FAMILIES
def test_a_packet_crosses_two_nodes(nodes: tuple[Rig, Rig], ends: tuple[str, str]) -> None:
    here, there = taps(nodes)
    packet = ip(*ends, UDP, finished_udp(ends, b"hello"))
    here.send_packet(packet)
    assert there.packets(1) == [one_hop_on(one_hop_on(packet))]
    tally = nodes[0].tally(key("a"))
    assert (tally.received_packets, tally.received_bytes, tally.tunnelled_packets) == (1, len(packet), 1)
    peer = nodes[0].tally(nodes[1].own.endpoint)
    assert (peer.sent_packets, peer.sent_bytes) == (1, len(packet))
    arrived = nodes[1].tally(nodes[0].own.endpoint)
    assert (arrived.received_packets, arrived.received_bytes, arrived.delivered_packets) == (1, len(packet), 1)
    pod = nodes[1].tally(key("b"))
    assert (pod.sent_packets, pod.sent_bytes) == (1, len(packet))


def finished_udp(ends: tuple[str, str], payload: bytes) -> bytes:
    return finished(ip(*ends, UDP, udp(payload)), UDP)[-8 - len(payload) :]


@ENGINES
def test_a_local_super_packet_stays_whole(engine: str) -> None:
    with Rig(engine) as rig:
        here, there = rig.pod("a", 2), rig.pod("b", 3)
        for name, protocol, packet in flows(20_000, 1, 1):
            sent = frame(packet, protocol, gso_size=1200)
            here.send(sent)
            (came,) = there.frames_of(17)
            assert came == sent[:10] + one_hop_on(sent[10:]), name
        tally = rig.tally(key("a"))
        assert tally.delivered_packets == tally.received_packets == 17 * tally.received_frames
        assert rig.tally(key("b")).sent_packets == tally.delivered_packets


@ENGINES
@pytest.mark.parametrize("gso_size", [600, 1350])
def test_a_super_packet_crosses_as_one_train(engine: str, gso_size: int) -> None:
    with Rig(engine, 1) as first, Rig(engine, 2) as second:
        pair(first, second)
        here, there = first.pod("a", 2), second.pod("b", 3)
        sent_packets = 0
        for name, protocol, packet in flows(40_001):
            sent = frame(packet, protocol, gso_size)
            expected = [one_hop_on(one_hop_on(each)) for each in packets_of(sent)]
            here.send(sent)
            frames = there.frames_of(len(expected))
            sent_packets += len(expected)
            assert [each for came in frames for each in packets_of(came)] == expected, name
            assert len(frames) <= 3, f"{name}: came in {len(frames)} pieces, not joined"
        assert first.tally(key("a")).tunnelled_packets == sent_packets
        peer = second.tally(first.own.endpoint)
        assert peer.delivered_packets == sent_packets
        assert peer.received_bytes == first.tally(second.own.endpoint).sent_bytes


@ENGINES
@pytest.mark.parametrize(
    "off",
    [
        ("udp_segment",),
        ("udp_gro",),
        ("tun_tso", "tun_uso"),
        ("tun_checksum", "tun_tso", "tun_uso"),
        ("udp_segment", "udp_gro"),
    ],
    ids="+".join,
)
def test_every_offload_can_be_off(engine: str, off: tuple[str, ...]) -> None:
    offloads = replace(Offloads(), **dict.fromkeys(off, False))
    with Rig(engine, 1, offloads) as first, Rig(engine, 2, offloads) as second:
        pair(first, second)
        here, there = first.pod("a", 2), second.pod("b", 3)
        for _, protocol, packet in flows(9000):
            sent = frame(packet, protocol, gso_size=1300)
            here.send(sent)
            expected = [one_hop_on(one_hop_on(each)) for each in packets_of(sent)]
            frames = there.frames_of(len(expected))
            assert [each for came in frames for each in packets_of(came)] == expected
            if "tun_tso" in off or "udp_gro" in off:
                assert len(frames) == len(expected)


@ENGINES
def test_tunnel_bytes_are_as_documented(engine: str) -> None:
    with Rig(engine) as rig, HandMade(rig) as peer:
        pod = rig.pod("a", 2)
        plain = ip(*V4, UDP, finished_udp(V4, b"plain"))
        pod.send_packet(plain)
        assert peer.datagrams(1) == [geneve(one_hop_on(plain))]
        segment = ip(*V6, TCP, tcp(b"partial"))
        pod.send(frame(segment, TCP))
        assert peer.datagrams(1) == [geneve(one_hop_on(partial(segment, TCP)), TCP, 40)]
        train = frame(ip(*V4, TCP, tcp(b"x" * 2500, flags=ACK | PSH)), TCP, gso_size=1000)
        pod.send(train)
        rows = peer.datagrams(3)
        for index, (row, whole) in enumerate(zip(rows, packets_of(train), strict=True)):
            assert row[:8] == bytes.fromhex("03400800") + struct.pack(">I", VNI << 8)
            kind, kind_type, length, flags, offset, start, frame_id, row_index, reserved = struct.unpack_from(
                ">HBBBBHHBB", row, 8
            )
            assert (kind, kind_type, length, offset, start, row_index, reserved) == (0xFFFF, 0x81, 2, 16, 20, index, 0)
            assert flags == (7 if index == 2 else 3)
            assert frame_id == struct.unpack_from(">H", rows[0], 16)[0]
            assert finished(row[20:], TCP) == one_hop_on(whole)


@ENGINES
def test_small_packets_leave_in_order_whatever_their_sizes(engine: str) -> None:
    """Runs for several peers, sizes going up and down: nothing is lost, changed or overtaken."""
    random_ = random.Random(3)
    with Rig(engine) as rig, HandMade(rig, 2) as two, HandMade(rig, 3) as three:
        pod = rig.pod("a", 2)
        expected: dict[int, list[bytes]] = {2: [], 3: []}
        for _ in range(20):
            sent = {2: 0, 3: 0}
            for _ in range(random_.randrange(1, 60)):
                other = random_.choice((2, 2, 2, 3))
                payload = random_.randbytes(random_.choice((0, 18, 18, 18, 18, 64, 300, 1400)))
                ends = (V4[0], f"10.42.{other}.3")
                if random_.random() < 0.1:
                    whole = ip(*ends, UDP, udp(payload * 3), df=False)
                    pod.send(frame(whole, UDP, 0 if len(whole) <= 1452 else 1000))
                    found = packets_of(frame(whole, UDP, 0 if len(whole) <= 1452 else 1000))
                else:
                    whole = ip(*ends, UDP, udp(payload))
                    pod.send(frame(whole, UDP))
                    found = [finished(whole, UDP)]
                expected[other] += [one_hop_on(each) for each in found]
                sent[other] += len(found)
            for other, peer in ((2, two), (3, three)):
                came = peer.datagrams(sent[other]) if sent[other] else []
                wanted, expected[other] = expected[other], []
                assert [finished(row[20:], UDP) for row in came] == wanted


@ENGINES
def test_a_packet_in_fragments_does_not_overtake(engine: str) -> None:
    """Packets of one flow leave in the order they came, fragments too."""
    with Rig(engine) as rig, HandMade(rig) as peer:
        pod = rig.pod("a", 2)
        for mark in (1, 2, 3):
            pod.send_packet(ip(*V4, 253, bytes((mark,)) * 100, df=False, ident=mark))
            pod.send_packet(ip(*V4, 253, bytes((mark + 10,)) * 2000, df=False, ident=mark + 10))
        rows = peer.datagrams(9)
        assert [row[24 + 1] for row in rows] == [1, 11, 11, 2, 12, 12, 3, 13, 13]


@ENGINES
def test_a_plain_peer_gets_plain_geneve_with_finished_checksums(engine: str) -> None:
    with Rig(engine) as rig, HandMade(rig, 2, offload=False, address="127.0.0.2") as peer:
        pod = rig.pod("a", 2)
        sent_bytes = 0
        for size, gso_size in ((100, 0), (1300, 0), (5001, 1200), (30_000, 1350)):
            for name, protocol, packet in flows(size):
                sent = frame(packet, protocol, gso_size)
                pod.send(sent)
                expected = [one_hop_on(each) for each in packets_of(sent)]
                assert peer.datagrams(len(expected)) == [geneve(each, option=False) for each in expected], name
                sent_bytes += sum(len(each) for each in expected)
        assert rig.tally(peer.node.endpoint).sent_bytes == sent_bytes


@ENGINES
def test_a_plain_peer_may_send_from_any_port(engine: str) -> None:
    packet = finished(ip(V4[1], V4[0], UDP, udp(b"odd port")), UDP)
    with Rig(engine) as rig, HandMade(rig, 2, offload=False, address="127.0.0.2"), underlay("127.0.0.2") as other:
        pod = rig.pod("a", 2)
        other.sendto(geneve(packet, option=False), rig.socket.getsockname())
        assert pod.packets(1) == [one_hop_on(packet)]


@ENGINES
def test_a_train_from_a_peer_is_joined(engine: str) -> None:
    with Rig(engine) as rig, HandMade(rig) as peer:
        pod = rig.pod("a", 2)
        for _, protocol, packet in flows(5000, 2, 1):
            destination = ("10.42.2.3", "10.42.1.2") if packet[0] >> 4 == 4 else ("fd42:2::3", "fd42:1::2")
            body = tcp(b"z" * 5000) if protocol == TCP else udp(b"z" * 5000)
            sent = frame(ip(*destination, protocol, body), protocol, gso_size=1000)
            whole = packets_of(sent)
            at = 20 if packet[0] >> 4 == 4 else 40
            peer.send(*(geneve(partial(each, protocol), protocol, at) for each in whole))
            (came,) = pod.frames_of(5)
            assert came == sent[:10] + one_hop_on(sent[10:])
        finished_rows = [finished(ip(V4[1], V4[0], UDP, udp(bytes((n,)) * 100)), UDP) for n in range(4)]
        peer.send(*(geneve(each) for each in finished_rows))
        assert pod.frames_of(4) == [PLAIN_VNET + one_hop_on(each) for each in finished_rows]


@ENGINES
def test_node_and_pods_reach_each_other(engine: str) -> None:
    """The node and its router are one hop together; outside addresses come and go through it."""
    with Rig(engine, 1) as first, Rig(engine, 2) as second:
        pair(first, second)
        pod, own, other = first.pod("a", 2), first.node_pod(), second.node_pod()
        for to, src, dst, back in (
            (pod, "10.42.1.1", "10.42.1.2", False), (other, "10.42.1.1", "10.42.2.1", False),
            (pod, "8.8.8.8", "10.42.1.2", False), (own, "10.42.1.2", "9.9.9.9", True), (own, "fd42:1::2", "2001:db8::1", True),
            (own, "10.42.1.2", "10.42.1.1", True), (other, "fd42:1::1", "fd42:2::1", False),
        ):  # fmt: skip
            packet = ip(src, dst, 253, b"?", ttl=1)
            (pod if back else own).send_packet(packet) if to is not other else own.send_packet(packet)
            assert to.packets(1) == [packet]
        assert first.engine.decide(ip("10.42.1.2", "9.9.9.9", 253, b""), key("a")) == Verdict(
            VerdictKind.LOCAL, NODE_KEY
        )


@ENGINES
def test_decide_says_what_forwarding_does(engine: str) -> None:
    with Rig(engine) as rig, HandMade(rig) as peer:
        rig.pod("a", 2)
        rig.pod("b", 3, mtu_bytes=1000)
        hop = NextHop(peer.node.name, peer.node.endpoint)
        before = rig.counters()

        def said(packet: bytes, source: object = key("a")) -> Verdict:
            return rig.engine.decide(packet, source)  # type: ignore[arg-type]

        def refusal(kind: VerdictKind, reason: DropReason) -> Verdict:
            return Verdict(kind, None, reason)

        assert said(ip(*V4, 17, b"")) == Verdict(VerdictKind.TUNNEL, hop)
        assert said(ip(V4[0], "10.42.1.3", 17, b"")) == Verdict(VerdictKind.LOCAL, key("b"))
        assert said(ip(V4[1], V4[0], 17, b""), peer.node.endpoint) == Verdict(VerdictKind.LOCAL, key("a"))
        assert said(b"junk") == refusal(VerdictKind.DROP, DropReason.MALFORMED)
        assert said(ip(*V4, 17, b"", ttl=1)) == refusal(VerdictKind.REJECT, DropReason.TTL_EXPIRED)
        assert said(ip(*V4, 17, bytes(1433))) == refusal(VerdictKind.REJECT, DropReason.TOO_BIG)
        assert said(ip(*V4, 17, bytes(1433), df=False)).kind is VerdictKind.TUNNEL
        assert said(ip(V4[0], "10.42.1.3", 17, bytes(981))) == refusal(VerdictKind.REJECT, DropReason.TOO_BIG)
        assert said(ip("10.42.1.3", V4[1], 17, b"")) == refusal(VerdictKind.DROP, DropReason.SPOOFED_SOURCE)
        with pytest.raises(KeyError):
            said(ip(*V4, 17, b""), key("nobody"))
        assert rig.counters() == before


@ENGINES
def test_an_ipv6_underlay_carries_the_same(engine: str) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with Rig(engine, 1, address="::1") as first, Rig(engine, 2, address="::1") as second:
        pair(first, second)
        here, there = first.pod("a", 2), second.pod("b", 3)
        sent = frame(ip(*V6, TCP, tcp(b"six" * 3000)), TCP, gso_size=1300)
        here.send(sent)
        assert there.packets(7) == [one_hop_on(one_hop_on(each)) for each in packets_of(sent)]
