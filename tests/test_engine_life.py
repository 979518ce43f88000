"""The engine contract, living: attach, detach, tables and counts while traffic runs; stop, start, and what goes wrong."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from router.engine.choose import available
from router.engine.interface import BATCH_PACKETS
from router.engine.ports import Party
from router.engine.python import PythonEngine
from router.model import AttachmentKey, Endpoint
from tests.engine_rig import Rig, Tap, Told, endpoint_of, key, node, pair, underlay, until
from tests.fuzz import resident_bytes
from tests.packets import PLAIN_VNET, UDP, frame, ip, packets_of, udp
from tests.peer import V4, V6, HandMade

WINDOW = 48
"""Packets under way at most: less than any buffer here holds, so that none may be lost."""


MODES = [pytest.param((engine, threads), id=f"{engine}-{threads}") for engine in available() for threads in (1, 2)]
"""Engines, with one thread and with two."""


@pytest.fixture(params=MODES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Node 1 with Pod .2."""
    engine, threads = request.param
    with Rig(engine, threads=threads) as rig:
        rig.pod("a", 2)
        yield rig


class Stream:
    """Numbered packets from one tap to another, never more than WINDOW under way; every one must come, in order."""

    def __init__(self, source: Tap, sink: Tap, ends: tuple[str, str] = V4) -> None:
        self._source, self._sink, self._ends = source, sink, ends
        self.sent = self.received = 0
        self.errors: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        random_ = random.Random(1)
        quiet_since = time.monotonic()
        while not self._stopping.is_set() or self.received < self.sent:
            while not self._stopping.is_set() and self.sent - self.received < WINDOW:
                payload = self.sent.to_bytes(4, "big") + bytes(random_.choice((0, 0, 400, 1000)))
                self._source.send(frame(ip(*self._ends, UDP, udp(payload)), UDP))
                self.sent += 1
            for came in self._sink.frames():
                for packet in packets_of(came):
                    at = 28 if packet[0] >> 4 == 4 else 48
                    number = int.from_bytes(packet[at : at + 4], "big")
                    if number != self.received:
                        self.errors.append(f"{number} came instead of {self.received}")
                        return
                    self.received += 1
                    quiet_since = time.monotonic()
            if time.monotonic() - quiet_since > 10:
                self.errors.append(f"nothing came for 10 s after {self.received} of {self.sent}")
                return

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()
        assert self.errors == []
        assert self.received == self.sent > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
def test_control_disturbs_no_traffic(mode: tuple[str, int], ends: tuple[str, str]) -> None:
    engine, threads = mode
    with Rig(engine, 1, threads=threads) as first, Rig(engine, 2, threads=threads) as second:
        pair(first, second)
        stream = Stream(first.pod("a", 2), second.pod("b", 3), ends)
        first.start()
        second.start()
        with stream.running():
            for turn in range(40):
                first.pod(f"extra{turn}", 10 + turn)
                second.know((first.own, node(3, first.own.endpoint.__class__(first.own.endpoint.address, 9 + turn))))
                first.know((second.own,))
                second.counters()
                first.counters()
                tally = first.detach(key(f"extra{turn}"))
                assert tally.balance == 0
                at = stream.received
                until(lambda at=at: stream.received > at or stream.errors, "traffic during control")
        first.stop()
        second.stop()
        assert first.tally(key("a")).tunnelled_packets == stream.sent
        assert second.tally(first.own.endpoint).delivered_packets == stream.sent
        assert second.tally(key("b")).sent_packets == stream.sent


def test_threads_attach_and_detach_at_once(rig: Rig) -> None:
    rig.start()
    other = rig.pod("b", 3)
    errors: list[BaseException] = []

    def churn(lane: int) -> None:
        try:
            for turn in range(15):
                name = f"{lane}-{turn}"
                tap = rig.pod(name, 20 + lane)
                tap.send_packet(ip(f"10.42.1.{20 + lane}", "10.42.1.3", 253, b"!"))
                rig.detach(key(name))
                rig.engine.counters()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=churn, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rig.stop()
    counted = rig.counters()
    assert set(counted.attachments) == {key("a"), key("b")}
    assert counted.gone.delivered_packets == len(other.frames()) == counted.attachments[key("b")].sent_packets


def test_attach_and_detach_keep_their_word(rig: Rig) -> None:
    tap = rig.taps[key("a")]
    with pytest.raises(ValueError, match="a/eth0"):
        rig.engine.attach(tap.attachment, tap.fd.fileno())
    with pytest.raises(KeyError):
        rig.engine.detach(key("nobody"))
    tap.send_packet(ip(V4[0], "10.42.1.99", 253, b"?"))
    assert len(tap.packets(1)) == 1
    tally = rig.engine.detach(key("a"))
    assert (tally.received_packets, tally.icmp_errors, tally.sent_packets) == (1, 1, 1)
    with pytest.raises(KeyError):
        rig.engine.detach(key("a"))
    tap.send_packet(ip(V4[0], "10.42.1.99", 253, b"?"))
    rig.pump()
    assert tap.fd.recv(2000), "read from a TUN that was detached"
    assert rig.counters().gone == tally
    rig.engine.attach(tap.attachment, tap.fd.fileno())
    assert rig.tally(key("a")).received_packets == 0
    with HandMade(rig):
        tap.send_packet(ip(*V4, 253, b"again"))
        rig.pump()
        assert rig.tally(key("a")).tunnelled_packets == 1


def test_a_peer_gone_from_the_table_is_a_stranger(rig: Rig) -> None:
    pod = rig.taps[key("a")]
    with HandMade(rig) as peer:
        pod.send_packet(ip(*V4, 253, b"1"))
        assert len(peer.datagrams(1)) == 1
        counted = rig.tally(peer.node.endpoint)
        rig.know(())
        assert rig.counters().peers == {}
        assert rig.counters().gone == counted
        pod.send_packet(ip(*V4, 253, b"2"))
        peer.send(b"\0\0\x08\0" + bytes(4))
        until(lambda: rig.pump() or rig.counters().strangers.received_packets, "the stranger's datagram")
        assert {reason.value for reason in rig.tally(key("a")).dropped} == {"no_route"}


def test_the_newest_table_holds_for_known_flows(rig: Rig) -> None:
    """What was decided for a flow is forgotten with the table it was decided by."""
    pod = rig.taps[key("a")]
    packet = ip(*V4, 253, b"?")
    with HandMade(rig, 2) as old, underlay() as new:
        pod.send_packet(packet)
        assert len(old.datagrams(1)) == 1
        rig.know((node(2, endpoint_of(new)),))
        pod.send_packet(packet)
        rig.pump()
        until(lambda: rig.tally(endpoint_of(new)).sent_packets == 1, "the packet on its new way")
        local = rig.pod("b", 3)
        pod.send_packet(ip(V4[0], "10.42.1.3", 253, b"1"))
        assert len(local.packets(1)) == 1
        rig.detach(key("b"))
        pod.send_packet(ip(V4[0], "10.42.1.3", 253, b"2"))
        rig.pump()
        assert rig.drops(key("a")) == {"no_attachment": 1}


@pytest.mark.parametrize("budget", [1, 2, 7, BATCH_PACKETS, BATCH_PACKETS + 1, 1000])
def test_forward_keeps_to_its_budget(rig: Rig, budget: int) -> None:
    taps = [rig.taps[key("a")], rig.pod("b", 3)]
    left = 0
    with HandMade(rig) as peer:
        for _ in range(50):
            for tap, source in zip(taps, ("10.42.1.2", "10.42.1.3"), strict=True):
                tap.send_packet(ip(source, "10.42.200.9", 253, b"?"))
                left += 1
        for size in range(50):  # each of another length, longer by and by: nothing for UDP_GRO to join
            peer.send(bytes(9 + size))
            left += 1
        deadline = time.monotonic() + 10
        while left:
            done = rig.engine.forward(budget)
            assert 0 <= done <= min(budget, left)
            left -= done
            assert time.monotonic() < deadline, f"{left} left"
        assert rig.engine.forward(budget) == 0
        assert rig.tally(peer.node.endpoint).received_frames == 50


def test_one_busy_attachment_does_not_starve_others(rig: Rig) -> None:
    busy, quiet = rig.taps[key("a")], rig.pod("b", 3)
    for _ in range(4 * BATCH_PACKETS):
        busy.send_packet(ip(V4[0], "10.42.200.9", 253, b"?"))
    quiet.send_packet(ip("10.42.1.3", "10.42.200.9", 253, b"?"))
    rig.engine.forward(2 * BATCH_PACKETS)
    assert rig.tally(key("b")).received_packets == 1


def test_a_dead_tun_is_reported_once(rig: Rig) -> None:
    dead, well = rig.pod("dead", 9), rig.pod("b", 3)
    rig.start()
    well.send_packet(ip("10.42.1.3", "10.42.1.9", 253, b"unread"))
    until(lambda: rig.tally(key("dead")).sent_packets, "a packet delivered")
    dead.end.close()  # with a packet unread: the other end reads ECONNRESET, as a TUN without device reads EBADFD
    until(lambda: rig.told.lost, "the loss")
    assert [key for key, _ in rig.told.lost] == [key("dead")]
    assert rig.told.lost[0][1]
    other = rig.taps[key("a")]
    well.send_packet(ip("10.42.1.3", V4[0], 253, b"others go on"))
    until(other.frames, "traffic after the loss")
    well.send_packet(ip("10.42.1.3", "10.42.1.9", 253, b"to the dead"))
    until(lambda: rig.drops(key("b")), "the drop")
    assert rig.drops(key("b")) == {"attachment_down": 1}
    rig.detach(key("dead"))
    assert len(rig.told.lost) == 1


class Broken(Told):
    """A daemon with a bug of its own: stands for whatever an engine does not expect."""

    def attachment_lost(self, key: AttachmentKey, why: str) -> None:
        super().attachment_lost(key, why)
        raise RuntimeError("not expected")


@pytest.mark.parametrize("mode", MODES)
def test_the_unexpected_is_reported_and_the_engine_goes_on(
    mode: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.engine_rig.Told", Broken)
    with Rig(mode[0], threads=mode[1]) as rig:
        dead, well, other = rig.pod("dead", 9), rig.pod("b", 3), rig.pod("a", 2)
        rig.start()
        well.send_packet(ip("10.42.1.3", "10.42.1.9", 253, b"unread"))
        until(lambda: rig.tally(key("dead")).sent_packets, "a packet delivered")
        dead.end.close()
        until(lambda: rig.told.failures, "the report")
        assert "not expected" in rig.told.failures[0]
        rig.expected_failures = 1
        well.send_packet(ip("10.42.1.3", V4[0], 253, b"goes on"))
        until(other.frames, "traffic after the failure")


def test_stops_and_starts_again(rig: Rig) -> None:
    pod, other = rig.taps[key("a")], rig.pod("b", 3)
    packet = ip(V4[0], "10.42.1.3", 253, b"?")
    for _ in range(3):
        rig.start()
        pod.send_packet(packet)
        until(other.frames, "a packet while started")
        rig.stop()
        pod.send_packet(packet)
        assert rig.counters().attachments[key("a")].balance == 0
        assert other.frames() == [], "forwarded while stopped"
        assert len(other.packets(1)) == 1
    rig.engine.stop()  # stopped already
    assert rig.tally(key("a")).delivered_packets == 6


def test_counts_balance_while_it_stops_and_starts(rig: Rig) -> None:
    stream = Stream(rig.taps[key("a")], rig.pod("b", 3), (V4[0], "10.42.1.3"))
    errors: list[BaseException] = []
    stopping = threading.Event()

    def count() -> None:
        try:
            while not stopping.is_set():
                counted = rig.engine.counters()
                assert all(tally.balance == 0 for tally in counted.attachments.values())
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    counting = threading.Thread(target=count)
    counting.start()
    try:
        with stream.running():
            for _ in range(30):
                rig.start()
                at = stream.received
                until(lambda at=at: stream.received > at or stream.errors, "traffic after a start")
                rig.stop()
            rig.start()
    finally:
        stopping.set()
        counting.join()
    assert errors == []


def test_control_is_answered_while_traffic_floods(rig: Rig) -> None:
    pod = rig.taps[key("a")]
    rig.pod("b", 3)
    rig.start()
    stopping = threading.Event()
    packet = PLAIN_VNET + ip(V4[0], "10.42.1.3", 253, bytes(100))

    def flood() -> None:
        while not stopping.is_set():
            with_room(lambda: pod.send(packet))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        until(lambda: rig.tally(key("a")).received_packets > 1000, "a flood")
        for turn in range(20):
            began = time.monotonic()
            rig.counters()
            rig.know(())
            rig.pod(f"x{turn}", 50)
            rig.detach(key(f"x{turn}"))
            assert time.monotonic() - began < 5
    finally:
        stopping.set()
        thread.join()


def with_room(send: Callable[[], None]) -> None:
    try:
        send()
    except BlockingIOError:
        time.sleep(0)


def test_who_has_left_is_freed(rig: Rig) -> None:
    """Two that talked to each other: nothing in the engine may keep them alive, as nobody collects circles there."""
    rig.pod("left", 3)
    rig.pod("gone", 4)
    for source, destination in ((3, 4), (4, 3)):
        rig.taps[key("left" if source == 3 else "gone")].send_packet(
            ip(f"10.42.1.{source}", f"10.42.1.{destination}", 253, b"!")
        )
    rig.pump()
    gc.collect()
    gc.disable()
    try:
        parties = sum(isinstance(found, Party) for found in gc.get_objects())
        rig.detach(key("left"))
        rig.detach(key("gone"))
        rig.know(())
        if isinstance(rig.engine, PythonEngine):  # the native one keeps what it knows of them outside the interpreter
            assert sum(isinstance(found, Party) for found in gc.get_objects()) == parties - 2
        keys = [found for found in gc.get_objects() if isinstance(found, AttachmentKey)]
        assert [found for found in keys if found.sandbox_id in {"left", "gone"}] == [], "somebody keeps who has left"
    finally:
        gc.enable()


def test_who_comes_and_goes_leaves_nothing(rig: Rig) -> None:
    """Thousands of Pods and peers, one after the other, each with traffic: neither memory nor fds nor slots grow."""
    at = rig.taps[key("a")]

    def churn(turns: int) -> None:
        for turn in range(turns):
            tap = rig.pod(f"x{turn}", 3)
            rig.know((node(2, Endpoint(ip_address("127.0.0.2"), 1000 + turn)),))
            at.send_packet(ip(V4[0], "10.42.1.3", 253, b"!"))
            tap.send_packet(ip("10.42.1.3", V4[1], 253, b"!"))
            rig.pump()
            assert len(tap.frames()) == 1
            rig.detach(key(f"x{turn}"))
        rig.know(())

    churn(200)
    gc.collect()
    resident, fds = resident_bytes(), len(os.listdir("/proc/self/fd"))
    churn(800)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == fds
    assert resident_bytes() - resident < 1 << 20, "1.3 KB for each who has left"
