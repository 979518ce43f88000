"""The engine contract, refusing: every packet that goes no further is counted by its reason, and its sender told."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import dpkt
import pytest

from router.engine.choose import available
from router.model import DropReason
from tests.engine_rig import Rig, Tap, key, pair, underlay, until
from tests.packets import PLAIN_VNET, TCP, UDP, VNET, finished, frame, ip, packets_of, tcp, udp
from tests.peer import V4, V6, HandMade, geneve, one_hop_on

ENGINES = pytest.mark.parametrize("engine", available())


@pytest.fixture(params=available())
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Node 1 with Pod .2."""
    with Rig(request.param) as rig:
        rig.pod("a", 2)
        yield rig


def error_in(packet: bytes, node: int = 1) -> tuple[int, int, int, bytes]:
    """Return (type, code, MTU told, quoted packet) of an ICMP error, read by dpkt, from that node's address."""
    if packet[0] >> 4 == 4:
        outer = dpkt.ip.IP(packet)
        assert outer.src == ip_address(f"10.42.{node}.1").packed
        assert outer.p == 1
        body = bytes(outer.data)
        told = int.from_bytes(body[6:8], "big")
    else:
        outer = dpkt.ip6.IP6(packet)
        assert outer.src == ip_address(f"fd42:{node}::1").packed
        assert outer.nxt == 58
        body = bytes(packet[40:])
        told = int.from_bytes(body[4:8], "big")
    return body[0], body[1], told, body[8:]


NO_ROUTE, NO_ATTACHMENT = ((3, 0), (1, 0)), ((3, 1), (1, 3))
PROHIBITED, TOO_BIG, EXPIRED = ((3, 13), (1, 1)), ((3, 4), (2, 0)), ((11, 0), (3, 0))


@pytest.mark.parametrize(
    ("to", "size", "ttl", "reason", "error"),
    [
        (("10.42.200.9", "fd42:200::9"), 60, 64, "no_route", NO_ROUTE),
        (("10.42.1.99", "fd42:1::99"), 60, 64, "no_attachment", NO_ATTACHMENT),
        (("9.9.9.9", "2001:db8::9"), 60, 64, "egress_disabled", PROHIBITED),
        ((V4[1], V6[1]), 60, 1, "ttl_expired", EXPIRED),
        ((V4[1], V6[1]), 60, 0, "ttl_expired", EXPIRED),
        ((V4[1], V6[1]), 1453, 64, "too_big", TOO_BIG),
        (("10.42.1.3", "fd42:1::3"), 1301, 64, "too_big", TOO_BIG),
        (("224.0.0.5", "ff02::5"), 60, 64, "not_routable", None),
        (("169.254.1.1", "fe80::1"), 60, 64, "not_routable", None),
        (("127.0.0.1", "::1"), 60, 64, "not_routable", None),
        (("255.255.255.255", "::"), 60, 64, "not_routable", None),
    ],
)
def test_a_pod_is_told(
    rig: Rig, to: tuple[str, str], size: int, ttl: int, reason: str, error: tuple[tuple[int, int], ...] | None
) -> None:
    pod = rig.taps[key("a")]
    rig.pod("b", 3, mtu_bytes=1300)
    with HandMade(rig) as peer:
        rig.know((peer.node,), egress=False)
        for family, source in enumerate((V4[0], V6[0])):
            packet = ip(source, to[family], 253, bytes(size - (20, 40)[family]), ttl=ttl)
            pod.send_packet(packet)
            if error is None:
                rig.pump()
                assert pod.frames() == []
                continue
            kind, code, told, quote = error_in(pod.packets(1)[0])
            assert (kind, code) == error[family]
            assert quote == packet[: len(quote)]
            assert len(quote) >= min(len(packet), 500)
            assert told == ((1300 if "1" in to[0][6:7] else 1452) if reason == "too_big" else 0)
        assert rig.drops(key("a")) == {reason: 2}
        assert rig.tally(key("a")).icmp_errors == (2 if error else 0)


@pytest.mark.parametrize("gso_size", [1000, 1460])
def test_a_super_packet_refused_counts_all_it_stands_for(rig: Rig, gso_size: int) -> None:
    pod = rig.taps[key("a")]
    with HandMade(rig):
        pod.send(frame(ip(*V4, TCP, tcp(bytes(10_000)), ttl=64 if gso_size > 1000 else 1), TCP, gso_size))
        kind = error_in(pod.packets(1)[0])[:3]
        assert kind == ((11, 0, 0) if gso_size == 1000 else (3, 4, 1452))
        tally = rig.tally(key("a"))
        assert sum(tally.dropped.values()) == tally.received_packets == -(-10_000 // gso_size)


def test_a_super_packet_whose_segments_are_too_long_is_cut_if_it_may_be(rig: Rig) -> None:
    with HandMade(rig) as peer:
        whole = ip(*V4, UDP, udp(bytes(range(256)) * 20), df=False)
        sent = frame(whole, UDP, 1700)
        rig.taps[key("a")].send(sent)
        rows = peer.datagrams(2 * 3 + 1)
        assert rejoined([row[20:] for row in rows]) == [packet[20:] for packet in packets_of(sent)]
        assert all(len(row) <= 20 + 1452 for row in rows)
        assert rig.tally(key("a")).tunnelled_packets == 4


def rejoined(fragments: list[bytes]) -> list[bytes]:
    """Put neighbouring IPv4 fragments together; return their payloads."""
    found: list[bytes] = []
    for piece in fragments:
        read = dpkt.ip.IP(piece)
        if read.offset == 0:
            found.append(b"")
        assert read.offset * 8 == len(found[-1])
        found[-1] += piece[20:]
    return found


@pytest.mark.parametrize("protocol", [0, UDP])
def test_what_may_be_cut_is_cut(rig: Rig, protocol: int) -> None:
    """Towards a peer, a small attachment, and from a peer to a small attachment."""
    pod, small = rig.taps[key("a")], rig.pod("b", 3, mtu_bytes=600)
    with HandMade(rig) as peer:
        for to, limit in (("10.42.2.3", 1452), ("10.42.1.3", 600)):
            whole = ip(V4[0], to, UDP, udp(bytes(1600)), df=False, ident=77)
            wanted = finished(whole, UDP)
            pod.send(frame(whole, UDP) if protocol else PLAIN_VNET + wanted)
            pieces = [row[20:] for row in peer.datagrams(2)] if limit == 1452 else small.packets(3)
            assert all(len(piece) <= limit for piece in pieces)
            assert rejoined(pieces) == [wanted[20:]]
        inwards = finished(ip("10.42.2.3", "10.42.1.3", UDP, udp(b"q" * 1000), df=False), UDP)
        peer.send(geneve(inwards))
        assert rejoined(small.packets(2)) == [inwards[20:]]
        assert rig.tally(peer.node.endpoint).delivered_packets == 1
        assert rig.tally(key("a")).tunnelled_packets == rig.tally(key("a")).delivered_packets == 1


def test_spoofed_sources_are_dropped_and_nobody_is_told(rig: Rig) -> None:
    pod, own = rig.taps[key("a")], rig.node_pod()
    with HandMade(rig, 2) as two, HandMade(rig, 3) as three:
        for source in ("10.42.1.3", "10.42.1.1", "10.42.2.3", "9.9.9.9", "fd42:1::3", "2001:db8::1"):
            other = V4[1] if "." in source else V6[1]
            pod.send_packet(ip(source, other, 253, b"?"))
        own.send_packet(ip("10.42.1.2", V4[1], 253, b"?"))
        own.send_packet(ip("9.9.9.9", V4[1], 253, b"outside, through a peer: its source lies in no subnet of ours"))
        for source in ("10.42.3.3", "10.42.1.2", "10.42.200.1", "9.9.9.9"):
            two.send(geneve(ip(source, V4[0], 253, b"?")))
        three.send(geneve(ip("10.42.2.3", V4[0], 253, b"?"), option=False))
        until(lambda: rig.pump() or rig.tally(three.node.endpoint).received_packets, "the last datagram")
        assert rig.drops(key("a")) == {"spoofed_source": 6}
        assert rig.drops(own.attachment.key) == {"spoofed_source": 2}
        assert rig.drops(two.node.endpoint) == {"spoofed_source": 4}
        assert rig.drops(three.node.endpoint) == {"spoofed_source": 1}
        assert pod.frames() == own.frames() == []


def test_datagrams_of_strangers_and_nonsense_are_counted(rig: Rig) -> None:
    good = ip(V4[1], V4[0], 253, b"?")
    with HandMade(rig) as peer, underlay("127.0.0.9") as stranger, underlay() as wrong_port:
        for sock in (stranger, wrong_port):
            sock.sendto(geneve(good), rig.socket.getsockname())
        critical = b"\x01\x40" + geneve(good)[2:8] + b"\x01\x02\x83\x00" + good
        for datagram in (
            geneve(good, vni=8), b"", b"\0", geneve(good)[:7], b"\x40" + geneve(good)[1:], b"\3\xc0" + geneve(good)[2:],
            geneve(good)[:12], b"\3\x40\x65\x58" + geneve(good)[4:], critical, geneve(good)[:-1], geneve(good) + b"x",
            geneve(good[:10] + b"\0\0" + good[12:]), geneve(b""  + bytes(20)), b"\3\x40\x86\xdd" + geneve(good)[4:],
            geneve(finished(ip(V4[1], V4[0], UDP, udp(b"")), UDP), UDP, 200), geneve(good, UDP, 4),
        ):  # fmt: skip
            peer.send(datagram)
        until(lambda: rig.pump() or rig.tally(peer.node.endpoint).received_packets == 16, "16 datagrams")
        assert rig.drops(peer.node.endpoint) == {"wrong_network": 1, "bad_encapsulation": 8, "malformed": 7}
        assert rig.counters().strangers.dropped == {DropReason.UNKNOWN_PEER: 2}
        assert rig.taps[key("a")].frames() == []


def test_frames_that_are_nonsense_are_counted(rig: Rig) -> None:
    pod = rig.taps[key("a")]
    packet = ip(*V4, TCP, tcp(bytes(3000)))
    good = frame(packet, TCP, 1000)
    with HandMade(rig):
        frames = [
            b"\0", bytes(10), PLAIN_VNET + b"\x45", PLAIN_VNET + packet[:-1], PLAIN_VNET + packet + b"x",
            PLAIN_VNET + b"\x50" + packet[1:], PLAIN_VNET + packet[:10] + b"\0\0" + packet[12:],
            VNET.pack(1, 4, 40, 1000, 20, 16) + packet, VNET.pack(1, 1, 40, 0, 20, 16) + packet,
            VNET.pack(0, 1, 40, 1000, 20, 16) + packet, VNET.pack(1, 1, 40, 1000, 20, 300) + packet,
            VNET.pack(1, 1, 40, 1000, 4000, 16) + packet, VNET.pack(1, 1, 40, 65535, 20, 16) + packet,
            VNET.pack(1, 0, 0, 0, 20, 300) + ip(*V4, TCP, tcp(bytes(400))),
            VNET.pack(1, 0, 0, 0, 65535, 65535) + ip(*V4, TCP, tcp(b"")),
        ]  # fmt: skip
        for each in frames:
            pod.send(each)
        rig.pump()
        tally = rig.tally(key("a"))
        assert tally.received_frames == tally.received_packets == len(frames)
        assert rig.drops(key("a")) == {"malformed": len(frames)}
        pod.send(good)
        rig.pump()
        assert rig.tally(key("a")).tunnelled_packets == 3


@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
def test_no_checksum_is_written_into_an_ip_header(rig: Rig, ends: tuple[str, str]) -> None:
    """A Pod that may open packet sockets writes virtio headers of its own: they must not change addresses once checked."""
    pod = rig.taps[key("a")]
    options = b"\1" * 12 if ends is V4 else b""
    starts = (20, 24, 28) if ends is V4 else (20, 24, 38)
    with HandMade(rig, 2) as two, HandMade(rig, 3, offload=False, address="127.0.0.3") as three:
        for to in (ends[1], "10.42.3.3" if ends is V4 else "fd42:3::3"):
            for start in starts:
                pod.send(VNET.pack(1, 0, 0, 0, start, 0) + ip(ends[0], to, UDP, udp(bytes(40)), options=options))
        sent = 2 * len(starts)
        until(lambda: rig.pump() or rig.tally(key("a")).received_packets == sent, "all of them")
        assert rig.drops(key("a")) == {"malformed": sent}
        assert rig.tally(two.node.endpoint).sent_packets == rig.tally(three.node.endpoint).sent_packets == 0


def test_a_peer_is_told_too(rig: Rig) -> None:
    with HandMade(rig, 2) as two, HandMade(rig, 3):
        rig.pod("small", 5, mtu_bytes=500)
        for destination, ttl, size, expected in (
            ("10.42.1.99", 64, 60, (3, 1, 0)), ("10.42.3.3", 64, 60, (3, 0, 0)), (V4[0], 1, 60, (11, 0, 0)),
            ("10.42.1.5", 64, 501, (3, 4, 500)), ("9.9.9.9", 64, 60, (3, 0, 0)), ("10.42.200.1", 64, 60, (3, 0, 0)),
        ):  # fmt: skip
            packet = ip(V4[1], destination, 253, bytes(size - 20), ttl=ttl)
            two.send(geneve(packet))
            (row,) = two.datagrams(1)
            kind, code, told, quote = error_in(row[20:])
            assert (kind, code, told) == expected
            assert quote == packet[: len(quote)]
        assert rig.drops(two.node.endpoint) == {
            "no_attachment": 1, "wrong_node": 1, "ttl_expired": 1, "too_big": 1, "no_route": 2,
        }  # fmt: skip
        assert rig.tally(two.node.endpoint).icmp_errors == 6


@ENGINES
def test_errors_go_back_through_the_tunnel(engine: str) -> None:
    """Hop limit 2: the second router answers, from its own address, as traceroute shows it."""
    with Rig(engine, 1) as first, Rig(engine, 2) as second:
        pair(first, second)
        pod: Tap = first.pod("a", 2)
        second.pod("b", 3)
        for ends, kind in ((V4, (11, 0)), (V6, (3, 0))):
            packet = ip(*ends, 253, b"trace", ttl=2)
            pod.send_packet(packet)
            found = error_in(pod.packets(1)[0], node=2)
            assert found[:2] == kind
            assert found[3] == one_hop_on(packet)


@ENGINES
def test_errors_are_limited(engine: str) -> None:
    with Rig(engine, icmp_errors_per_s=3) as rig:
        pod = rig.pod("a", 2)
        for _ in range(50):
            pod.send_packet(ip(V4[0], "10.42.1.99", 253, b"?"))
        rig.pump()
        tally = rig.tally(key("a"))
        assert rig.drops(key("a")) == {"no_attachment": 50}
        assert 3 <= tally.icmp_errors <= 10
        assert len(pod.frames()) == tally.icmp_errors
        assert rig.counters().icmp_suppressed == 50 - tally.icmp_errors


@ENGINES
def test_a_smaller_path_is_found_and_told(engine: str) -> None:
    """The kernel refuses a datagram as too long for the path: the Pod hears of it, the next ones are cut to fit."""
    with Rig(engine, mtu_bytes=65_535) as rig, HandMade(rig) as peer:
        rig.told.path_mtu_bytes = 1348
        pod = rig.pod("a", 2, mtu_bytes=65_535)
        pod.send_packet(ip(*V4, 253, bytes(65_490)))
        assert error_in(pod.packets(1)[0])[:3] == (3, 4, 1300)
        pod.send_packet(ip(*V4, 253, bytes(1281)))
        assert error_in(pod.packets(1)[0])[:3] == (3, 4, 1300)
        pod.send_packet(ip(*V4, 253, bytes(1280)))
        pod.send_packet(ip(*V4, 253, bytes(2000), df=False))
        assert [len(row) - 20 for row in peer.datagrams(3)] == [1300, 1300, 740]
        assert rig.drops(key("a")) == {"too_big": 2}


@ENGINES
def test_a_full_attachment_loses_only_what_is_counted(engine: str) -> None:
    with Rig(engine) as rig:
        here, there = rig.pod("a", 2), rig.pod("b", 3)
        sent = 0
        whole = PLAIN_VNET + ip(V4[0], "10.42.1.3", 253, bytes(1400))
        while not rig.drops(key("a")):
            for _ in range(50):
                here.send(whole)
            sent += 50
            rig.pump()
        arrived = len(there.frames())
        assert rig.drops(key("a")) == {"attachment_down": sent - arrived}
        assert rig.tally(key("b")).sent_packets == arrived
