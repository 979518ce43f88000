"""A bug in an engine: it costs the batch it met, which is counted; everything else goes on with the same fds."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from router.engine.choose import available
from router.engine.interface import BATCH_PACKETS
from router.kernel import tun
from router.model import Attachment, DropReason, Offloads
from tests.conftest import unique_name
from tests.crowd import namespaces, path
from tests.engine_rig import NETWORKS, Rig, Tap, Told, key, pair, until
from tests.packets import TCP, UDP, frame, ip, packets_of, tcp, udp
from tests.peer import V4, V6, HandMade, geneve, probe
from tests.pump import Pump

MODES = [pytest.param((engine, threads), id=f"{engine}-{threads}") for engine in available() for threads in (1, 2)]
BUGS = 50
LONGEST_GAP_S = 3.0
"""Very wide: a restart takes well under a millisecond, a machine that is busy elsewhere may take long to run anybody."""


@pytest.fixture(params=MODES)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Node 1 with Pods .2 and .3."""
    engine, threads = request.param
    with Rig(engine, threads=threads) as rig:
        rig.pod("a", 2)
        rig.pod("b", 3)
        yield rig


def test_what_was_in_hand_is_counted_and_told(rig: Rig) -> None:
    pod = rig.taps[key("a")]
    assert rig.counters().restarts == 0
    rig.sabotage()
    pod.send(frame(ip(V4[0], "10.42.1.3", TCP, tcp(bytes(9000))), TCP, 1000))
    pod.send_packet(ip(V4[0], "10.42.1.3", 253, b"next"))
    (came,) = rig.taps[key("b")].packets(1)
    assert came[20:] == b"next"
    tally = rig.tally(key("a"))
    assert (tally.received_packets, tally.received_frames, tally.delivered_packets) == (10, 2, 1)
    assert rig.drops(key("a")) == {"engine_failed": 9}
    assert rig.counters().restarts == 1
    assert len(rig.told.failures) == 1
    assert "asked for by a test" in rig.told.failures[0]
    assert rig.told.lost == []


@pytest.mark.parametrize("threads", [1, 2])
def test_a_train_at_hand_was_received_whole(threads: int) -> None:
    """What follows the datagram that met the bug is lost with it, and counted. (The native one's: examples/fuzz.)"""
    with Rig("python", threads=threads) as rig, HandMade(rig) as peer:
        pod = rig.pod("a", 2)
        ingress = rig.engine._ingress  # type: ignore[attr-defined]
        deliver_to, calls = ingress._deliver_to, iter(range(99))

        def stumble(*arguments: Any) -> int:
            if next(calls) == 3:
                raise RuntimeError("asked for by a test")
            return deliver_to(*arguments)

        ingress._deliver_to = stumble
        rig.expected_failures = 1
        rows = [geneve(ip(V4[1], V4[0], 253, bytes((number,) * 50))) for number in range(10)]
        peer.send(rows[0], probe(size=len(rows[0])), *rows[1:])  # a probe is no packet, and not lost
        assert [packet[-1] for packet in pod.packets(3)] == [0, 1, 2]
        tally = rig.tally(peer.node.endpoint)
        assert (tally.received_packets, tally.received_frames, tally.delivered_packets) == (10, 1, 3)
        assert tally.control_packets == 1
        assert rig.drops(peer.node.endpoint) == {"engine_failed": 7}
        peer.send(*rows)
        assert len(pod.packets(10)) == 10


@pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])
def test_one_bug_after_the_other(rig: Rig, ends: tuple[str, str]) -> None:
    pod = rig.taps[key("a")]
    with HandMade(rig) as peer:
        for count in range(1, BUGS + 1):
            rig.sabotage()
            pod.send_packet(ip(*ends, 253, b"lost"))
            for mark in range(3):
                pod.send_packet(ip(*ends, 253, bytes((mark,))))
            assert [row[-1] for row in peer.datagrams(3)] == [0, 1, 2], "sent after the bug, in order"
            counted = rig.counters()
            assert counted.restarts == count
            assert rig.drops(key("a")) == {"engine_failed": count}
            assert counted.attachments[key("a")].tunnelled_packets == 3 * count
    assert len(rig.told.failures) == BUGS


@dataclass
class Clock(Told):
    """A daemon that notes when it was told of failures."""

    at_s: list[float] = field(default_factory=list)

    def engine_failed(self, why: str) -> None:
        self.at_s.append(time.monotonic())
        super().engine_failed(why)


@dataclass
class Lane:
    """Numbered packets one way, some of which may be lost: what was sent, and what came when."""

    source: Tap
    sink: Tap
    ends: tuple[str, str]
    sent: int = 0

    def __post_init__(self) -> None:
        self.numbers: list[int] = []
        self.times_s: list[float] = []

    def step(self) -> None:
        if self.sent - (self.numbers[-1] if self.numbers else 0) < 4 * BATCH_PACKETS:
            for _ in range(8):
                self.source.send(frame(ip(*self.ends, UDP, udp(self.sent.to_bytes(4, "big") + bytes(400))), UDP))
                self.sent += 1
        self.receive()

    def receive(self) -> None:
        now_s = time.monotonic()
        found = [packet for came in self.sink.frames() for packet in packets_of(came)]
        self.numbers += [int.from_bytes(packet[-404:-400], "big") for packet in found]
        self.times_s += [now_s] * len(found)

    def gap_around(self, then_s: float) -> float | None:
        """Return the time between the last packet before that moment and the next after it; None while none has come."""
        at = bisect_right(self.times_s, then_s)
        return self.times_s[at] - self.times_s[at - 1] if at < len(self.times_s) else None


@contextmanager
def running(lanes: list[Lane]) -> Iterator[None]:
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            for lane in lanes:
                lane.step()
            time.sleep(0.0005)  # leaves the interpreter to the engine

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


@pytest.mark.parametrize("mode", MODES)
def test_traffic_of_all_pods_goes_on(mode: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, threads = mode
    monkeypatch.setattr("tests.engine_rig.Told", Clock)
    with Rig(engine, 1, threads=threads) as here, Rig(engine, 2, threads=threads) as there:
        pair(here, there)
        pods = [here.pod(f"pod{host}", host) for host in range(2, 6)]
        far = there.pod("far", 3)
        lanes = [
            Lane(pods[0], pods[1], ("10.42.1.2", "10.42.1.3")),
            Lane(pods[2], pods[3], ("fd42:1::4", "fd42:1::5")),
            Lane(pods[1], far, ("10.42.1.3", "10.42.2.3")),
            Lane(far, pods[0], ("10.42.2.3", "10.42.1.2")),
        ]
        fds = {key: tap.fd.fileno() for key, tap in here.taps.items()}
        gaps_s = []
        here.start()
        there.start()
        with running(lanes):
            until(lambda: all(lane.numbers for lane in lanes), "traffic on every lane")
            for count in range(1, BUGS + 1):
                here.sabotage()
                until(lambda count=count: len(here.told.at_s) == count, "the bug")
                then_s = here.told.at_s[-1]
                until(
                    lambda then_s=then_s: all(lane.gap_around(then_s) is not None for lane in lanes),
                    "every lane after it",
                )
                here.counters()  # balanced, and none went down
                gaps_s.append(max(lane.gap_around(then_s) or 0.0 for lane in lanes))
        here.stop()
        there.stop()
        until(lambda: all_settled(here, there, lanes), "what was under way")
        counted = here.counters()
        print(f"\n{engine}, {threads}: a lane was quiet for {max(gaps_s) * 1e3:.1f} ms at most around a bug")
        assert counted.restarts == BUGS == len(here.told.failures)
        assert set(counted.attachments) == set(fds), "nobody was detached"
        assert here.told.lost == there.told.lost == []
        assert max(gaps_s) < LONGEST_GAP_S
        lost = 0
        for lane in lanes:
            assert lane.numbers == sorted(set(lane.numbers)), "in order, and none twice"
            lost += lane.sent - len(lane.numbers)
        drops = [tally.dropped for tally in (*counted.attachments.values(), *counted.peers.values())]
        assert {reason.value for dropped in drops for reason in dropped} == {"engine_failed"}
        assert lost == sum(sum(dropped.values()) for dropped in drops)
        assert BUGS <= lost <= BUGS * BATCH_PACKETS


def all_settled(here: Rig, there: Rig, lanes: list[Lane]) -> bool:
    """Forward what is left; tell whether all that was sent was read, and all that was written received."""
    here.pump()
    for lane in lanes:
        lane.receive()
    near, far = here.engine.counters(), there.engine.counters()
    pods = [*near.attachments.values(), *far.attachments.values()]
    return (
        sum(tally.received_packets for tally in pods) == sum(lane.sent for lane in lanes)
        and sum(tally.sent_packets for tally in pods) == sum(len(lane.numbers) for lane in lanes)
        and near.peers[there.own.endpoint].sent_packets == far.peers[here.own.endpoint].received_packets
        and far.peers[here.own.endpoint].sent_packets == near.peers[there.own.endpoint].received_packets
    )


# Real TUNs


@dataclass(frozen=True)
class Place:
    """A namespace, and the addresses of its TUN."""

    netns_path: Path
    addresses: tuple[IPv4Address | IPv6Address, ...]


@contextmanager
def real_pods(rig: Rig) -> Iterator[list[Place]]:
    """Attach two namespaces by TUN devices of their own."""
    with ExitStack() as stack:
        names = stack.enter_context(namespaces(unique_name(), 2))
        places = []
        for host, name in enumerate(names, 2):
            own = tuple(
                ip_interface(f"{text}/{length}") for text, length in ((f"10.42.1.{host}", 24), (f"fd42:1::{host}", 64))
            )
            dress = tun.Dress(
                tuple(ip_interface(f"{each.ip}/{each.max_prefixlen}") for each in own),
                (ip_address("10.42.1.1"), ip_address("fd42:1::1")), NETWORKS, 1452,
            )  # fmt: skip
            fd = tun.create(path(name), "eth0", dress, Offloads())
            stack.callback(tun.discard, fd)
            rig.engine.attach(Attachment(key(name), path(name), own, 1452), fd)
            stack.callback(rig.engine.detach, key(name))
            places.append(Place(Path(path(name)), tuple(each.ip for each in own)))
        yield places


@pytest.mark.netns
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", [4, 6])
def test_a_tcp_stream_survives_bugs(mode: tuple[str, int], family: int) -> None:
    """Over TUN devices, super-packets and all: every byte arrives, whatever batches were lost."""
    engine, threads = mode
    with Rig(engine, threads=threads) as rig, real_pods(rig) as (source, target):
        rig.start()
        with Pump(source, target, target.addresses[family == 6], pause_s=0.002) as pump:
            until(lambda: pump.received_bytes > 1 << 20, "a stream")
            for count in range(1, 11):
                rig.sabotage()
                until(lambda count=count: len(rig.told.failures) == count, "the bug")
                before = pump.received_bytes
                until(lambda before=before: pump.received_bytes > before + (1 << 20) or pump.error, "the stream")
        rig.stop()
        assert rig.counters().restarts == 10
        dropped = [tally.dropped for tally in rig.counters().attachments.values()]
        assert sum(each.get(DropReason.ENGINE_FAILED, 0) for each in dropped) >= 10
        assert rig.told.lost == []
