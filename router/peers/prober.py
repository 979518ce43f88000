"""Ask every peer, all the time: a thread that sends what `health` says is due and takes the answers that the engine hands over.

Probes leave by the engine's own socket, so they go the way that packets go, and the other side's data path answers them.
A cluster of thousands is asked more slowly: a router sends `MOST_PER_S` probes a second, and a dead peer is noticed later.
"""

from __future__ import annotations

import errno
import heapq
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from router import rest
from router.metrics.histograms import Histogram
from router.model import Endpoint, Node
from router.peers.health import PERIOD_S, Health, PeerState
from router.wire import probe
from router.wire.geneve import HEADER_BYTES

_log = logging.getLogger(__name__)

ROUND_TRIP_BOUNDS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds of the classes that round trips are counted in: from one machine to around the world."""
NO_ROUND_TRIPS = Histogram(ROUND_TRIP_BOUNDS_S)
MOST_PER_S = 500
_LATE_S = 0.75
"""So late the thread runs only when the whole machine is out of breath: then the peers' silence means nothing."""
_MOST_SEQUENCE = (1 << 32) - 1000
"""They have 32 bits; a peer is asked less than a thousand at once."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of a peer now."""

    state: PeerState
    heard_age_s: float | None
    rtt_s: float | None
    rtt_min_s: float | None
    loss: float
    mtu_bytes: int
    """0 before it was measured."""
    why: str
    """Why it is down; empty when it is not."""
    round_trips: Histogram = NO_ROUND_TRIPS
    """Of every probe that was answered since the peer is asked."""


@dataclass(frozen=True, slots=True)
class Change:
    """A peer that went down, came up, or whose path carries another size now."""

    name: str
    state: PeerState
    flipped: bool
    """Whether its state is news; else its MTU is."""
    why: str


class Prober:
    """Asks the peers it is told of, between `start` and `stop`. Thread-safe."""

    def __init__(
        self,
        underlay: socket.socket,
        vni: int,
        most_bytes: int,
        least_bytes: int,
        *,
        heard: Callable[[Endpoint], int],
        path_mtu_bytes: Callable[[Endpoint], int],
        changed: Callable[[list[Change]], None],
    ) -> None:
        """`heard` counts the packets that came from a peer; `changed` is called from the thread, without locks.

        `path_mtu_bytes` is the kernel's opinion, as an inner packet; `most_bytes` and `least_bytes` are inner packets too.
        """
        self._socket = underlay
        self._vni = vni
        self._sizes_bytes = (most_bytes, least_bytes)
        self._heard = heard
        self._path_mtu_bytes = path_mtu_bytes
        self._changed = changed
        self._lock = threading.Lock()
        self._healths: dict[str, Health] = {}
        self._round_trips: dict[str, Histogram] = {}
        self._nodes: dict[str, Node] = {}
        self._names: dict[Endpoint, str] = {}
        self._told: dict[str, tuple[PeerState, int]] = {}
        self._last_heard: dict[str, int] = {}
        self._due: list[tuple[float, str]] = []
        self._touched: set[str] = set()
        """Peers of which there may be news."""
        self._rest_until_s = 0.0
        """No news before: to put them into force takes time that thousands of flips must not take up."""
        self._sequence = 1
        self._inbox: queue.SimpleQueue[tuple[Endpoint, bytes, int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = False

    def watch(self, nodes: Collection[Node]) -> None:
        """Ask these from now on, and no others. One that moved is asked anew; one without our option cannot answer."""
        now_s = time.monotonic()
        with self._lock:
            wanted = {node.name: node for node in nodes if node.offload}
            # All that go or move before any that come: an endpoint may pass from one to another.
            for name, known in list(self._nodes.items()):
                if name not in wanted or known.endpoint != wanted[name].endpoint:
                    self._forget(name)
            for name, node in wanted.items():
                if self._nodes.get(name) is node:
                    continue
                self._nodes[name] = node
                self._names[node.endpoint] = name
                if name not in self._healths:
                    self._healths[name] = Health(*self._sizes_bytes, now_s)
                    heapq.heappush(self._due, (now_s, name))
            period_s = max(PERIOD_S, len(self._healths) / MOST_PER_S)
            for health in self._healths.values():
                health.period_s = period_s
        self._inbox.put(None)

    def _forget(self, name: str) -> None:
        self._names.pop(self._nodes.pop(name).endpoint, None)
        for known in (self._healths, self._round_trips, self._told, self._last_heard):
            known.pop(name, None)

    def take(self, endpoint: Endpoint, answer: bytes, received_ns: int) -> None:
        """Take an answer from the engine's thread, at once."""
        self._inbox.put((endpoint, answer, received_ns))

    def start(self) -> None:
        """Begin to ask."""
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. May be called twice."""
        self._ended = True
        self._inbox.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def found(self) -> Mapping[str, tuple[bool, int]]:
        """Return by name whether packets should go to a peer, and what its path carries (bytes, 0: not known to be less)."""
        with self._lock:
            return {name: _for_routes(health, self._sizes_bytes[0]) for name, health in self._healths.items()}

    def reports(self) -> Mapping[str, Report]:
        """Return what is known of each peer by name."""
        now_s = time.monotonic()
        with self._lock:
            return {
                name: Report(
                    health.state,
                    None if health.heard_s is None else max(0.0, now_s - health.heard_s),
                    health.rtt_s,
                    health.rtt_min_s,
                    health.loss,
                    health.mtu_bytes,
                    _why(health, now_s),
                    self._round_trips.get(name, NO_ROUND_TRIPS),
                )
                for name, health in self._healths.items()
            }

    # The thread

    def _run(self) -> None:
        while not self._ended:
            try:
                self._round()
            except Exception:  # noqa: BLE001 - a bug must not end the watch
                _log.exception("probing failed: a bug of the router")
                time.sleep(PERIOD_S)

    def _round(self) -> None:
        """Wait for an answer or for a peer that is due, and see to both."""
        due_s = min([at_s for at_s, _ in self._due[:1]] + ([self._rest_until_s] if self._touched else []), default=None)
        wait_s = None if due_s is None else max(0.0, due_s - time.monotonic())
        try:
            message = self._inbox.get(timeout=wait_s)
        except queue.Empty:
            message = None
        late_s = time.monotonic() - self._due[0][0] if self._due else 0.0
        with self._lock:
            while True:
                if message is not None and (name := self._answer(*message)):
                    self._touched.add(name)
                try:
                    message = self._inbox.get_nowait()
                except queue.Empty:
                    break
            if late_s > _LATE_S:
                for health in self._healths.values():
                    health.slept(late_s)
            self._touched |= self._ask(time.monotonic())
            began_s = time.monotonic()
            if began_s < self._rest_until_s:
                return
            changes = [change for name in sorted(self._touched) if (change := self._news(name))]
            self._touched.clear()
        if changes:
            self._changed(changes)
            ended_s = time.monotonic()
            self._rest_until_s = ended_s + rest.after_s(ended_s - began_s)

    def _answer(self, endpoint: Endpoint, answer: bytes, received_ns: int) -> str | None:
        read = probe.decode(answer, 0, len(answer))
        name = self._names.get(endpoint)
        if read is None or read.kind != probe.ANSWER or name is None:
            return None
        health = self._healths[name]
        due_s = health.due_s
        if not health.answered(read.sequence, received_ns / 1e9):
            return None
        if (rtt_s := health.take_rtt_s()) is not None:
            self._round_trips[name] = self._round_trips.get(name, NO_ROUND_TRIPS).plus(rtt_s)
        if health.due_s != due_s:
            heapq.heappush(self._due, (health.due_s, name))
        return name

    def _ask(self, now_s: float) -> set[str]:
        """Ask whoever is due."""
        asked = set()
        while self._due and self._due[0][0] <= now_s:
            _, name = heapq.heappop(self._due)
            health = self._healths.get(name)
            if health is None or name in asked or health.due_s > now_s:
                continue  # gone, or put off since: there is another entry for it
            asked.add(name)
            endpoint = self._nodes[name].endpoint
            count = self._heard(endpoint) if health.overdue(now_s) else None
            heard = count is not None and self._last_heard.get(name, count) != count
            if count is not None:
                self._last_heard[name] = count
            health.judge(now_s, heard)
            probes = health.ask(self._sequence, time.monotonic())
            for sequence, mtu_bytes in probes:
                self._send(health, endpoint, sequence, mtu_bytes)
            self._sequence += len(probes)
            if self._sequence > _MOST_SEQUENCE:
                self._sequence = 1
            heapq.heappush(self._due, (health.due_s, name))
        return asked

    def _send(self, health: Health, endpoint: Endpoint, sequence: int, mtu_bytes: int) -> None:
        size_bytes = max(probe.HEADER_BYTES, mtu_bytes + HEADER_BYTES if mtu_bytes else 0)
        datagram = probe.encode(self._vni, probe.Probe(probe.REQUEST, size_bytes, sequence, time.monotonic_ns()))
        try:
            self._socket.sendto(datagram, (str(endpoint.address), endpoint.port))
        except BlockingIOError:
            health.no_room(sequence)
        except OSError as error:
            limit_bytes = self._path_mtu_bytes(endpoint) if error.errno == errno.EMSGSIZE else 0
            health.not_sent(sequence, error.strerror or str(error), limit_bytes)

    def _news(self, name: str) -> Change | None:
        health = self._healths.get(name)
        if health is None:
            return None
        mtu_bytes = _for_routes(health, self._sizes_bytes[0])[1]
        now = (health.state, mtu_bytes)
        before = self._told.get(name, (PeerState.UNKNOWN, 0))
        if now == before:
            return None
        self._told[name] = now
        flipped = (before[0] is PeerState.DOWN) != (health.state is PeerState.DOWN)
        return Change(name, health.state, flipped, _why(health, time.monotonic()))


def _for_routes(health: Health, most_bytes: int) -> tuple[bool, int]:
    return health.state is not PeerState.DOWN, health.mtu_bytes if health.mtu_bytes < most_bytes else 0


def _why(health: Health, now_s: float) -> str:
    if health.state is not PeerState.DOWN:
        return ""
    return health.error or f"it has not answered for {health.silence_s(now_s):.0f} s"
