"""The engine contract, between routers: epochs on the wire, peers that are down, what stays the same peer, and sizes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from router.engine.choose import available
from router.model import NextHop, Verdict, VerdictKind
from tests.engine_rig import VNI, Rig, endpoint_of, key, node, underlay, until
from tests.packets import ACK, PSH, TCP, UDP, finished, frame, ip, packets_of, partial, tcp, udp
from tests.peer import V4, V6, HandMade, geneve, one_hop_on
from tests.test_engine_refusals import error_in

MODES = [pytest.param((engine, threads), id=f"{engine}-{threads}") for engine in available() for threads in (1, 2)]
FAMILIES = pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])


@pytest.fixture(params=MODES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Node 1 with Pod .2."""
    engine, threads = request.param
    with Rig(engine, threads=threads) as rig:
        rig.pod("a", 2)
        yield rig


def back(ends: tuple[str, str], payload: bytes = b"back") -> bytes:
    """Return a packet of the far Pod's to the near one."""
    return finished(ip(ends[1], ends[0], UDP, udp(payload)), UDP)


def counted(rig: Rig, peer: HandMade) -> int:
    """Return how many datagrams of a peer were counted since it is there."""
    tally = rig.tally(peer.node.endpoint)
    return tally.received_packets + tally.control_packets


def take(rig: Rig, peer: HandMade, rows: int) -> None:
    """Forward until so many datagrams of a peer were counted."""
    until(lambda: rig.pump() or counted(rig, peer) >= rows, f"{rows} of {peer.node.name}")
    assert counted(rig, peer) == rows


# Epochs that are sent


@FAMILIES
def test_every_datagram_tells_this_nodes_epoch(rig: Rig, ends: tuple[str, str]) -> None:
    """Single packets, trains, fragments, and the router's own errors; at once when it changes."""
    pod = rig.taps[key("a")]
    with HandMade(rig) as peer:
        for epoch in (0, 1, 255, 256, 70_000, 3):
            rig.renew(epoch)
            plain, some = ip(*ends, 253, b"plain"), ip(*ends, TCP, tcp(b"partial"))
            pod.send_packet(plain)
            pod.send(frame(some, TCP))
            at = 20 if ends is V4 else 40
            expected = [geneve(one_hop_on(plain), epoch=epoch & 255)]
            expected.append(geneve(one_hop_on(partial(some, TCP)), TCP, at, epoch=epoch & 255))
            assert peer.datagrams(2) == expected
            pod.send(frame(ip(*ends, TCP, tcp(b"x" * 2500, flags=ACK | PSH)), TCP, gso_size=1000))
            assert [row[19] for row in peer.datagrams(3)] == [epoch & 255] * 3
            pod.send(frame(ip(*ends, UDP, udp(b"x" * 250)), UDP, gso_size=100))
            assert [row[19] for row in peer.datagrams(3)] == [epoch & 255] * 3
            if ends is V4:
                pod.send_packet(ip(*ends, 253, bytes(2000), df=False))
                assert [row[19] for row in peer.datagrams(2)] == [epoch & 255] * 2
            peer.send(geneve(ip(ends[1], ends[0], 253, b"too old", ttl=1)))
            (error,) = peer.datagrams(1)
            assert error[19] == epoch & 255
            assert error_in(error[20:])[:2] == ((11, 0) if ends is V4 else (3, 0))


def test_a_plain_peer_is_told_no_epoch(rig: Rig) -> None:
    with HandMade(rig, offload=False, address="127.0.0.2") as peer:
        rig.renew(9)
        packet = ip(*V4, 253, b"plain")
        rig.taps[key("a")].send_packet(packet)
        assert peer.datagrams(1) == [geneve(one_hop_on(packet), option=False)]


# Epochs that come


@FAMILIES
@pytest.mark.parametrize("epoch", [1, 100, 127, 128, 255, 256, 257, 1000])
def test_what_a_peer_sent_before_it_lost_its_subnets_is_dropped(rig: Rig, ends: tuple[str, str], epoch: int) -> None:
    pod = rig.taps[key("a")]
    with HandMade(rig) as peer:
        rig.learn(peer.node.name, epoch=epoch)
        behind, ahead = (1, 2, 50, 127, 128), (0, 1, 2, 50, 127)
        for step in behind:
            peer.send(geneve(back(ends), epoch=(epoch - step) % 256))
        for step in ahead:
            peer.send(geneve(back(ends, bytes((step,))), epoch=(epoch + step) % 256))
        assert [packet[-1] for packet in pod.packets(len(ahead))] == list(ahead)
        tally = rig.tally(peer.node.endpoint)
        assert rig.drops(peer.node.endpoint) == {"stale_epoch": len(behind)}
        assert (tally.received_packets, tally.delivered_packets) == (len(behind) + len(ahead), len(ahead))
        received_bytes = len(behind) * len(back(ends)) + len(ahead) * len(back(ends, b"1"))
        assert (tally.received_bytes, tally.icmp_errors) == (received_bytes, 0)


def test_an_old_epoch_is_seen_before_what_is_in_the_packet(rig: Rig) -> None:
    """Nothing of it is believed: neither junk nor a packet that would be refused is told of, or counted as that."""
    with HandMade(rig) as peer:
        rig.learn(peer.node.name, epoch=5)
        whole = (ip(V4[1], "10.42.1.99", 253, b""), ip(V4[1], V4[0], 253, b"", ttl=1), ip("9.9.9.9", V4[0], 253, b""))
        for packet in (*whole, b"\x45junk" * 9, back(V4)[:-1]):
            peer.send(geneve(packet, epoch=4))
        peer.send(geneve(back(V4), vni=VNI + 1, epoch=4))
        peer.send(b"\3\x40\x08\6" + geneve(back(V4), epoch=4)[4:])
        take(rig, peer, 7)
        assert rig.drops(peer.node.endpoint) == {"stale_epoch": 5, "wrong_network": 1, "bad_encapsulation": 1}
        assert rig.tally(peer.node.endpoint).icmp_errors == 0


def test_an_epoch_is_not_looked_at_where_there_is_none(rig: Rig) -> None:
    pod = rig.taps[key("a")]
    with HandMade(rig) as peer:  # the table keeps no count
        peer.send(geneve(back(V4), epoch=200))
        assert len(pod.packets(1)) == 1
        rig.learn(peer.node.name, epoch=5)  # plain Geneve tells none
        peer.send(geneve(back(V4), option=False))
        assert len(pod.packets(1)) == 1
        foreign = struct.pack(">HBBI", 0x0102, 0x03, 1, 0xDEADBEEF)
        for epoch in (4, 5):  # beside another's option it stands elsewhere
            ours = geneve(back(V4), epoch=epoch)
            peer.send(b"\5" + ours[1:8] + foreign + ours[8:])
        assert len(pod.packets(1)) == 1
        assert rig.drops(peer.node.endpoint) == {"stale_epoch": 1}


@FAMILIES
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("segments", [True, False], ids=["segments", "loose"])
def test_each_row_of_a_train_is_looked_at(rig: Rig, ends: tuple[str, str], protocol: int, segments: bool) -> None:
    """Rows that continue each other in all but their epoch are not joined past the check."""
    pod = rig.taps[key("a")]
    body = tcp(b"r" * 4000) if protocol == TCP else udp(b"r" * 4000)
    whole = packets_of(frame(ip(ends[1], ends[0], protocol, body), protocol, gso_size=500))
    at = 20 if ends is V4 else 40
    with HandMade(rig) as peer:
        rig.learn(peer.node.name, epoch=9)
        stale_rows = sent_rows = 0
        for stale in ({0}, {3}, {7}, {0, 1, 2}, {1, 3, 5, 7}, set(range(1, 8)), set(range(8)), {6, 7}):
            rows = [
                geneve(
                    partial(each, protocol), protocol, at, epoch=8 if index in stale else 9 + index % 2,
                    flags=(2 | 4 * (index == 7)) * segments, frame_id=5, index=index,
                )
                for index, each in enumerate(whole)
            ]  # fmt: skip
            peer.send(*rows)
            expected = [one_hop_on(each) for index, each in enumerate(whole) if index not in stale]
            stale_rows += len(stale)
            sent_rows += 8
            take(rig, peer, sent_rows)
            assert [each for came in pod.frames() for each in packets_of(came)] == expected, stale
            assert rig.drops(peer.node.endpoint) == {"stale_epoch": stale_rows}


def test_a_table_that_lags_costs_nothing_and_one_that_moves_on_does(rig: Rig) -> None:
    """The same flow under one epoch after the other."""
    pod = rig.taps[key("a")]
    with HandMade(rig) as peer:
        for known, sent, taken in (
            (1, 1, True),
            (1, 2, True),
            (2, 2, True),
            (2, 1, False),
            (3, 2, False),
            (3, 3, True),
        ):
            rig.learn(peer.node.name, epoch=known)
            peer.send(geneve(back(V4), epoch=sent))
            if taken:
                assert len(pod.packets(1)) == 1
        take(rig, peer, 6)
        assert rig.drops(peer.node.endpoint) == {"stale_epoch": 2}


# Down


@FAMILIES
def test_packets_to_a_peer_that_is_down_are_rejected(rig: Rig, ends: tuple[str, str]) -> None:
    """At once, for flows that were known too; and it is heard as ever."""
    pod = rig.taps[key("a")]
    with HandMade(rig) as peer:
        packet = ip(*ends, 253, b"anybody?")
        for count in (1, 2):
            pod.send_packet(packet)
            assert len(peer.datagrams(1)) == 1
            rig.learn(peer.node.name, up=False)
            pod.send_packet(packet)
            (error,) = pod.packets(1)
            kind, code, told, quote = error_in(error)
            assert (kind, code, told) == ((3, 1, 0) if ends is V4 else (1, 3, 0))
            assert quote == packet
            assert rig.drops(key("a")) == {"peer_down": count}
            peer.send(geneve(back(ends)))
            assert pod.packets(1) == [one_hop_on(back(ends))]
            rig.learn(peer.node.name, up=True)
        pod.send(frame(ip(*ends, TCP, tcp(bytes(5000))), TCP, 1000))
        assert len(peer.datagrams(5)) == 5
        rig.learn(peer.node.name, up=False)
        pod.send(frame(ip(*ends, TCP, tcp(bytes(5000))), TCP, 1000))
        assert len(pod.packets(1)) == 1
        assert rig.drops(key("a")) == {"peer_down": 7}


def test_down_changes_no_other_refusal(rig: Rig) -> None:
    pod, own = rig.taps[key("a")], rig.node_pod()
    with HandMade(rig, 2) as two, HandMade(rig, 3) as three:
        rig.learn(two.node.name, up=False)
        pod.send_packet(ip("10.42.1.3", V4[1], 253, b"spoofed"))
        own.send_packet(ip("9.9.9.9", V4[1], 253, b"outside, through a peer"))
        pod.send_packet(ip(*V4, 253, b"down, whatever its hop limit", ttl=1))
        pod.send_packet(ip(*V4, 253, bytes(3000)))
        assert len(pod.packets(2)) == 2
        assert rig.drops(key("a")) == {"spoofed_source": 1, "peer_down": 2}
        assert rig.drops(own.attachment.key) == {"spoofed_source": 1}
        three.send(geneve(ip("10.42.3.3", V4[1], 253, b"a third node's")))
        assert error_in(three.datagrams(1)[0][20:])[:2] == (3, 0)
        assert rig.drops(three.node.endpoint) == {"wrong_node": 1}
        # An error about what it sent itself has no way back.
        two.send(geneve(ip(V4[1], "10.42.1.99", 253, b"?")))
        take(rig, two, 1)
        assert rig.drops(two.node.endpoint) == {"no_attachment": 1}
        assert (rig.tally(two.node.endpoint).icmp_errors, rig.tally(two.node.endpoint).sent_packets) == (0, 0)


def test_a_verdict_names_the_peer_as_it_is_now(rig: Rig) -> None:
    with HandMade(rig) as peer:
        hop = NextHop(peer.node.name, peer.node.endpoint)
        packet = ip(*V4, 17, b"")
        for known in ({}, {"epoch": 3}, {"mtu_bytes": 1400}, {"epoch": 4, "mtu_bytes": 0}):
            rig.learn(peer.node.name, **known)
            hop = replace(hop, **known)
            assert rig.engine.decide(packet, key("a")) == Verdict(VerdictKind.TUNNEL, hop)
        rig.learn(peer.node.name, up=False)
        said = rig.engine.decide(packet, key("a"))
        assert (said.kind, said.target, said.reason and said.reason.value) == (VerdictKind.REJECT, None, "peer_down")


# Identity


def test_a_peer_stays_the_same_whatever_is_known_of_it(rig: Rig) -> None:
    """Counts go on, nothing moves to `gone`, and it may go on sending."""
    pod = rig.taps[key("a")]
    with HandMade(rig) as peer:
        for number, known in enumerate(
            ({"epoch": 3}, {"up": False}, {"mtu_bytes": 1300}, {"up": True}, {"epoch": 4}), 1
        ):
            peer.send(geneve(back(V4), epoch=4))
            assert pod.packets(1) == [one_hop_on(back(V4))]
            rig.learn(peer.node.name, **known)
            tally = rig.tally(peer.node.endpoint)
            assert (tally.received_packets, tally.delivered_packets) == (number, number)
            assert rig.counters().gone.received_packets == 0
        rig.know((replace(peer.node, offload=False),))
        peer.send(geneve(back(V4), epoch=4))
        assert len(pod.packets(1)) == 1
        packet = ip(*V4, 253, b"plain")
        pod.send_packet(packet)
        assert peer.datagrams(1) == [geneve(one_hop_on(packet), option=False)]
        assert rig.tally(peer.node.endpoint).received_packets == 6


def test_a_peer_with_another_name_or_endpoint_is_another(rig: Rig) -> None:
    pod = rig.taps[key("a")]
    with HandMade(rig) as peer, underlay() as elsewhere:
        peer.send(geneve(back(V4)))
        assert len(pod.packets(1)) == 1
        rig.know((replace(peer.node, name="another"),))
        assert rig.tally(peer.node.endpoint).received_packets == 0
        assert rig.counters().gone.received_packets == 1
        peer.send(geneve(back(V4)))
        assert len(pod.packets(1)) == 1
        rig.know((node(2, endpoint_of(elsewhere)),))
        assert rig.counters().gone.received_packets == 2


# Sizes


@FAMILIES
def test_packets_are_as_large_as_probes_found_the_path(rig: Rig, ends: tuple[str, str]) -> None:
    pod, headers = rig.taps[key("a")], 20 if ends is V4 else 40
    with HandMade(rig) as peer:
        for known, limit in ((0, 1452), (1400, 1400), (1300, 1300), (1500, 1452), (10, 68), (0, 1452)):
            rig.learn(peer.node.name, mtu_bytes=known)
            if limit > headers:
                pod.send_packet(ip(*ends, 253, bytes(limit - headers)))
                assert [len(row) for row in peer.datagrams(1)] == [20 + limit]
            pod.send_packet(ip(*ends, 253, bytes(limit + 1 - headers)))
            kind, code, told, _ = error_in(pod.packets(1)[0])
            assert (kind, code, told) == ((3, 4, limit) if ends is V4 else (2, 0, limit))
        rig.learn(peer.node.name, mtu_bytes=700)
        pod.send(frame(ip(*ends, TCP, tcp(bytes(5000))), TCP, 660 - headers))
        assert max(map(len, peer.datagrams(-(-5000 // (660 - headers))))) == 20 + 680
        if ends is V4:
            pod.send_packet(ip(*ends, 253, bytes(1400), df=False))
            assert all(len(row) <= 720 for row in peer.datagrams(3))


def test_what_the_kernel_found_lowers_it_further(rig: Rig) -> None:
    """A smaller path that the kernel told of is kept, whatever probes find in the ten minutes after."""
    with Rig(rig.engine.name, mtu_bytes=65_535) as wide, HandMade(wide) as peer:
        wide.told.path_mtu_bytes = 1348
        pod = wide.pod("a", 2, mtu_bytes=65_535)
        pod.send_packet(ip(*V4, 253, bytes(65_490)))
        assert error_in(pod.packets(1)[0])[:3] == (3, 4, 1300)
        for known, limit in ((1400, 1300), (1200, 1200), (1300, 1300), (0, 1300), (9000, 1300)):
            wide.learn(peer.node.name, mtu_bytes=known)
            pod.send_packet(ip(*V4, 253, bytes(limit - 20)))
            assert [len(row) - 20 for row in peer.datagrams(1)] == [limit]
            pod.send_packet(ip(*V4, 253, bytes(limit - 19)))
            assert error_in(pod.packets(1)[0])[:3] == (3, 4, limit)
