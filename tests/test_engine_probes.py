"""The engine contract, probed: requests are answered in the data path, answers handed over, nothing else is disturbed."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.engine_rig import VNI, Rig, key, underlay, until
from tests.packets import TCP, UDP, frame, ip, packets_of, partial, tcp, udp
from tests.peer import V4, HandMade, geneve, one_hop_on, probe
from tests.test_engine_peers import FAMILIES, back, rig, take

__all__ = ["rig"]
"""The fixture: node 1 with Pod .2, under every engine."""


def test_a_request_is_answered_with_its_header(rig: Rig) -> None:
    with HandMade(rig) as peer:
        for size in (28, 29, 100, 1472, 9000, 65_507):
            asked = probe(1, size, sequence=size, sent_ns=size << 30)
            peer.send(asked)
            assert peer.datagrams(1) == [asked[:12] + b"\2" + asked[13:28]]
        tally = rig.tally(peer.node.endpoint)
        assert (tally.control_packets, tally.received_frames) == (6, 6)
        assert replace(tally, control_packets=0, received_frames=0) == type(tally)(), "in no other count"
        assert rig.told.answers == []


def test_an_answer_goes_to_the_host(rig: Rig) -> None:
    with HandMade(rig) as peer:
        before_ns = time.monotonic_ns()
        sent = [probe(2, size, sequence=size) for size in (28, 1472, 65_507)]
        for answer in sent:
            peer.send(answer)
        until(lambda: rig.pump() or len(rig.told.answers) == 3, "three answers")
        assert [(endpoint, answer) for endpoint, answer, _ in rig.told.answers] == [
            (peer.node.endpoint, answer) for answer in sent
        ]
        times_ns = [received_ns for _, _, received_ns in rig.told.answers]
        assert before_ns <= times_ns[0] <= times_ns[1] <= times_ns[2] <= time.monotonic_ns()
        tally = rig.tally(peer.node.endpoint)
        assert (tally.control_packets, tally.received_packets, tally.received_bytes) == (3, 0, 0)


def test_probes_between_two_engines(rig: Rig) -> None:
    """What one asks the other answers; nobody else hears of it."""
    engine = rig.engine.name
    with Rig(engine, 2) as other:
        rig.know((other.own,))
        other.know((rig.own,))
        rig.also.append(other)
        asked = probe(1, 1472, 5)
        rig.socket.sendto(asked, other.socket.getsockname())
        until(lambda: rig.pump() or rig.told.answers, "the answer")
        assert rig.told.answers[0][:2] == (other.own.endpoint, asked[:12] + b"\2" + asked[13:28])
        assert other.told.answers == []
        assert rig.tally(other.own.endpoint).control_packets == other.tally(rig.own.endpoint).control_packets == 1


def test_a_probe_may_stand_anywhere_in_a_train(rig: Rig) -> None:
    pod = rig.taps[key("a")]
    size = 28 + 100
    whole = [back(V4, bytes((number,)) * 80) for number in range(6)]
    assert len(geneve(whole[0])) == size
    with HandMade(rig) as peer:
        rig.learn(peer.node.name, epoch=1)
        for places in ((0,), (3,), (5,), (6,), (0, 1, 2), (2, 4), tuple(range(7))):
            rows = [geneve(each, epoch=1) for each in whole]
            for number, place in enumerate(places):
                rows.insert(place, probe(1, size, sequence=number))
            peer.send(*rows)
            assert pod.packets(6) == [one_hop_on(each) for each in whole]
            answers = peer.datagrams(len(places))
            assert [struct.unpack_from(">I", answer, 16)[0] for answer in answers] == list(range(len(places)))
        tally = rig.tally(peer.node.endpoint)
        assert (tally.control_packets, tally.received_packets, tally.received_bytes) == (16, 42, 42 * 108)
        peer.send(geneve(whole[0], epoch=1), geneve(whole[1], epoch=1), probe(2))  # shorter, at the end
        until(lambda: rig.pump() or rig.told.answers, "the answer")
        assert len(pod.packets(2)) == 2


@FAMILIES
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_probe_ends_a_run_of_segments(rig: Rig, ends: tuple[str, str], protocol: int) -> None:
    pod = rig.taps[key("a")]
    body = tcp(b"r" * 3000) if protocol == TCP else udp(b"r" * 3000)
    whole = packets_of(frame(ip(ends[1], ends[0], protocol, body), protocol, gso_size=500))
    at = 20 if ends is V4 else 40
    rows = [
        geneve(partial(each, protocol), protocol, at, flags=2 | 4 * (number == 5), frame_id=5, index=number)
        for number, each in enumerate(whole)
    ]
    rows.insert(3, probe(1, len(rows[0])))
    with HandMade(rig) as peer:
        peer.send(*rows)
        frames = pod.frames_of(6)
        assert [each for came in frames for each in packets_of(came)] == [one_hop_on(each) for each in whole]
        assert [len(packets_of(came)) for came in frames] == [3, 3]
        assert len(peer.datagrams(1)) == 1


def test_what_is_no_probe_is_a_bad_encapsulation(rig: Rig) -> None:
    good = probe()
    hostile = [
        good[:-1], good + b"\0", good[:14] + b"\0\x1d" + good[16:], probe(2) + b"\0", probe(0),
        probe(3), probe(2, 27), probe(1, 100, fill=False), b"\4" + good[1:], b"\x45" + good[1:],
        good[:2] + b"\x08\x00" + good[4:], good[:10] + b"\x81" + good[11:], good[:1] + b"\x40" + good[2:], good[:8],
        b"\3\xc0" + geneve(back(V4))[2:], b"\0\x80" + geneve(back(V4), option=False)[2:],
    ]  # fmt: skip
    with HandMade(rig) as peer:
        for datagram in hostile:
            peer.send(datagram)
        peer.send(probe(vni=VNI + 1))
        peer.send(probe(2, vni=VNI + 1))
        take(rig, peer, len(hostile) + 2)
        assert rig.drops(peer.node.endpoint) == {"bad_encapsulation": len(hostile), "wrong_network": 2}
        assert rig.tally(peer.node.endpoint).control_packets == 0
        with pytest.raises(BlockingIOError):
            peer.socket.recv(2000)
        assert rig.told.answers == []


def test_a_stranger_is_not_answered(rig: Rig) -> None:
    with HandMade(rig), underlay("127.0.0.9") as stranger, underlay() as wrong_port:
        for sock in (stranger, wrong_port):
            for kind in (1, 2):
                sock.sendto(probe(kind), rig.socket.getsockname())
        until(lambda: rig.pump() or rig.counters().strangers.received_packets == 4, "four datagrams")
        assert {reason.value: count for reason, count in rig.counters().strangers.dropped.items()} == {
            "unknown_peer": 4
        }
        assert rig.counters().strangers.control_packets == 0
        for sock in (stranger, wrong_port):
            with pytest.raises(BlockingIOError):
                sock.recv(2000)
        assert rig.told.answers == []


def test_the_answer_goes_where_the_request_came_from(rig: Rig) -> None:
    """A peer that speaks plain Geneve may send from any port."""
    with HandMade(rig, offload=False, address="127.0.0.2") as peer, underlay("127.0.0.2") as odd:
        odd.sendto(probe(sequence=3), rig.socket.getsockname())

        def came() -> bytes:
            rig.pump()
            try:
                return odd.recv(2000)
            except BlockingIOError:
                return b""

        until(lambda: came() == probe(2, sequence=3), "the answer")
        odd.sendto(probe(2), rig.socket.getsockname())
        until(lambda: rig.pump() or rig.told.answers, "the answer handed over")
        assert rig.told.answers[0][0] == peer.node.endpoint
        assert rig.tally(peer.node.endpoint).control_packets == 2


def test_a_probe_is_answered_whatever_the_table_says_of_the_peer(rig: Rig) -> None:
    """Down, or of an old epoch: it asks and answers as ever, which is how it comes back."""
    with HandMade(rig) as peer:
        rig.learn(peer.node.name, up=False, epoch=100, mtu_bytes=700)
        peer.send(probe(1, 1472))
        assert len(peer.datagrams(1)) == 1
        peer.send(probe(2))
        until(lambda: rig.pump() or rig.told.answers, "the answer")


def test_an_answer_that_cannot_be_sent_is_as_good_as_lost(rig: Rig) -> None:
    """The requests are counted, what comes with them is delivered, and nobody is told of a failure."""
    pod = rig.taps[key("a")]
    with HandMade(rig) as peer:
        with suppress(OSError):  # it says that it is not connected, and sends no more (EPIPE)
            rig.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(BrokenPipeError):
            rig.socket.sendto(b"?", peer.socket.getsockname())
        packet = back(V4, bytes(80))
        rows = [probe(1, 20 + len(packet)), geneve(packet), probe(1, 20 + len(packet))]
        for _ in range(3):
            peer.send(*rows)
            assert pod.packets(1) == [one_hop_on(packet)]
        take(rig, peer, 9)
        assert rig.tally(peer.node.endpoint).control_packets == 6
        assert rig.drops(peer.node.endpoint) == {}
