"""Flows that pass, estimated from a few of their frames.

    taps ── one frame in so many ──► FlowTable: by flow, source, target, verdict and reason ──► told every period

Frames are chosen at random, so what was sampled times `every` is an estimate without bias (RFC 7014 section 2; packet sampling as
in RFC 5475 section 5): of n frames that were looked at, its standard error is 1/√n of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from router.engine.interface import Side, Sighting, Source
from router.errors import Kind, Refusal
from router.model import DropReason, Endpoint, Flow, VerdictKind
from router.observe.taps import Stream, Taps
from router.wire.flow import flow_of

EVERY = 64
"""One frame in so many, unless another number is asked for."""
PERIOD_S = 5
MOST_FLOWS = 4096
"""Flows that a table tells apart; the packets of all others are told as one."""
MOST_FLOW_WATCHES = 4
MOST_EVERY = 65536
RECENT_S = 10.0
"""The period of `Recent`."""
IDLE_S = 30.0
"""`Recent` looks on so long after it was last asked."""

_SNAP_BYTES = 128
"""Room for the longest IPv4 header and ports; IPv6 needs less."""
_READ_S = 0.5
_FIRST_RECENT_S = 2.0
_FIRST_EVERY = 16
_RECENT_PER_S = 500
"""Frames that `Recent` looks at, about."""
_NO_FLOW = frozenset((DropReason.UNKNOWN_PEER, DropReason.BAD_ENCAPSULATION, DropReason.WRONG_NETWORK))
"""Of these a tap sees the datagram, which is no packet of a Pod."""
_BEFORE = frozenset((Side.BEFORE,))

_Key = tuple[Flow | None, Source | None, Source | None, VerdictKind | None, DropReason | None]


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """What was seen of a flow in a period. Packets and bytes are estimates."""

    flow: Flow | None
    """None of what is no packet, and of the rest."""
    source: Source | None
    """None of the router's own packets, and of the rest."""
    target: Source | None
    verdict: VerdictKind | None
    """None of the rest: the flows for which there was no room."""
    reason: DropReason | None
    packets: int
    bytes: int
    """As in a Tally: the header of a super-packet counts once."""
    sampled: int
    first_ns: int
    """CLOCK_REALTIME."""
    last_ns: int
    latency_s: float | None = None


class FlowTable:
    """Adds sightings up. Not thread-safe.

    What was to be sent and failed after all (UNDERLAY_BUSY and the like) is seen twice, and so stands in two rows.
    """

    def __init__(self, every: int, most: int = MOST_FLOWS) -> None:
        self._every = every
        self._most = most
        self._rows: dict[_Key, list[int]] = {}

    def add(self, seen: Iterable[Sighting]) -> None:
        """Count what was seen, each for `every` like it."""
        for sighting in seen:
            flow = None if sighting.reason in _NO_FLOW else flow_of(sighting.packet)
            key: _Key = (flow, sighting.source, sighting.target, sighting.verdict, sighting.reason)
            row = self._rows.get(key)
            if row is None:
                if len(self._rows) >= self._most:
                    key = _REST
                row = self._rows.setdefault(key, [0, 0, 0, sighting.time_ns, sighting.time_ns])
            row[0] += sighting.packets * self._every
            row[1] += sighting.packet_bytes * self._every
            row[2] += 1
            row[3] = min(row[3], sighting.time_ns)
            row[4] = max(row[4], sighting.time_ns)

    def take(self, lost: int = 0) -> list[FlowRecord]:
        """Return what was added since the last call, most bytes first, and begin afresh.

        `lost` sightings never came: what did come stands for them too.
        """
        rows, self._rows = self._rows, {}
        sampled = sum(row[2] for row in rows.values())
        records = [
            FlowRecord(*key, row[0] + row[0] * lost // sampled, row[1] + row[1] * lost // sampled, *row[2:])
            for key, row in rows.items()
        ]
        return sorted(records, key=lambda record: -record.bytes)


_REST: _Key = (None, None, None, None, None)


class Flows:
    """Watches of flows, over taps. Thread-safe."""

    def __init__(self, taps: Taps, round_trips: Callable[[], Mapping[Endpoint, float]]) -> None:
        """`round_trips` returns the smoothed one of each peer in seconds, where it is known."""
        self._taps = taps
        self._round_trips = round_trips
        self._lock = threading.Lock()
        self._watchers = 0
        self.recent = Recent(self)

    @contextmanager
    def watch(self, every: int, period_s: float) -> Iterator[Iterator[list[FlowRecord]]]:
        """Look at one frame in `every`; inside, yield each period's flows, and Refusal when the router stops.

        Between periods the iterator yields empty lists, so that it can be seen whether anybody still listens. Refusal
        when too many watch.
        """
        with self._place(), self.sample(every) as stream:
            yield self._periods(stream, every, period_s)

    def sample(self, every: int) -> Stream:
        """Open a stream of sampled frames."""
        return self._taps.open(every=every, snap_bytes=_SNAP_BYTES, sides=_BEFORE)

    def with_latency(self, records: list[FlowRecord]) -> list[FlowRecord]:
        """Add to each that goes to a peer half of its round trip."""
        found = self._round_trips()
        return [
            replace(record, latency_s=found[record.target] / 2)
            if isinstance(record.target, Endpoint) and record.target in found
            else record
            for record in records
        ]

    @contextmanager
    def _place(self) -> Iterator[None]:
        with self._lock:
            if self._watchers >= MOST_FLOW_WATCHES:
                raise Refusal(Kind.EXHAUSTED, f"{MOST_FLOW_WATCHES} watch flows already: end one and try again")
            self._watchers += 1
        try:
            yield
        finally:
            with self._lock:
                self._watchers -= 1

    def _periods(self, stream: Stream, every: int, period_s: float) -> Iterator[list[FlowRecord]]:
        table, lost = FlowTable(every), 0
        while not stream.ended:
            until_s = time.monotonic() + period_s
            while (left_s := until_s - time.monotonic()) > 0 and not stream.ended:
                table.add(stream.read(min(_READ_S, left_s)))
                yield []
            before, lost = lost, stream.lost
            yield self.with_latency(table.take(lost - before))
        raise Refusal(Kind.UNAVAILABLE, f"no more flows come: {stream.ended}")


class Recent:
    """The flows of the last seconds, for pages that ask again and again: looks on only while somebody does.

    It looks at every frame while there are few, and at fewer the more there are.
    """

    def __init__(self, flows: Flows) -> None:
        self._flows = flows
        self._lock = threading.Lock()
        self._asked_s = 0.0
        self._told: tuple[list[FlowRecord], float] = ([], 0.0)
        self._thread: threading.Thread | None = None

    def read(self) -> tuple[list[FlowRecord], float]:
        """Return the flows of the last whole period, most bytes first, and how many seconds it had; at first none, 0.

        Refusal when too many look at packets, or the router stops.
        """
        with self._lock:
            self._asked_s = time.monotonic()
            if self._thread is None:
                self._told = ([], 0.0)
                stream = self._flows.sample(_FIRST_EVERY)
                self._thread = threading.Thread(target=self._look, args=(stream,), name="flows", daemon=True)
                self._thread.start()
            records, span_s = self._told
        return self._flows.with_latency(records), span_s

    def _look(self, stream: Stream) -> None:
        every, period_s = _FIRST_EVERY, _FIRST_RECENT_S
        while True:
            table, began_s = FlowTable(every), time.monotonic()
            with stream:
                while (span_s := time.monotonic() - began_s) < period_s and not stream.ended:
                    table.add(stream.read(_READ_S))
                records, ended = table.take(stream.lost), stream.ended
            with self._lock:
                self._told = records, span_s
                if ended or time.monotonic() - self._asked_s > IDLE_S:
                    self._thread = None
                    return
            every, period_s = _next_every(records, every, span_s), RECENT_S
            try:
                stream = self._flows.sample(every)
            except Refusal:  # the router stops, or others came first: whoever asks next is told
                with self._lock:
                    self._thread = None
                return


def _next_every(records: Iterable[FlowRecord], every: int, span_s: float) -> int:
    """Return how few frames to look at, a power of two, so that there are `_RECENT_PER_S` about."""
    frames_per_s = sum(record.sampled for record in records) * every / span_s
    return min(MOST_EVERY, 1 << max(0, int(frames_per_s / _RECENT_PER_S)).bit_length())
