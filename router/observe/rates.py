"""How fast counts grow: of each attachment and peer over the last seconds, for whoever looks now and again.

Counts are read when somebody asks, at most once in `LEAST_S`; without anybody who asks, nothing is read. Pure but for the clock
it is handed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

from router.engine.interface import EngineCounters, Source
from router.model import Tally
from router.status import Counters

LEAST_S = 1.0
"""Between two readings."""
SPAN_S = 5.0
"""Rates are of about so long …"""
MOST_SPAN_S = 30.0
"""… and never of longer: what is older says nothing of now."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A second's worth."""

    received_packets: float = 0.0
    received_bytes: float = 0.0
    sent_packets: float = 0.0
    sent_bytes: float = 0.0
    dropped_packets: float = 0.0


@dataclass(frozen=True, slots=True)
class Rated:
    """Counts, and how fast each grew."""

    counters: Counters
    rates: Mapping[Source, Rate]
    """Empty at first; whoever is new begins at 0."""
    strangers: Rate
    span_s: float
    """What the rates are over; 0 when there are none yet."""


_NO_RATE = Rate()


class Rates:
    """Thread-safe."""

    def __init__(self, read: Callable[[], Counters], clock: Callable[[], float]) -> None:
        """`clock` returns seconds that only grow."""
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._readings: deque[tuple[float, Counters]] = deque()
        self._rated: Rated | None = None

    def now(self) -> Rated:
        """Return counts that are at most `LEAST_S` old."""
        with self._lock:
            now_s = self._clock()
            if self._rated is not None and now_s - self._readings[-1][0] < LEAST_S:
                return self._rated
            counters = self._read()
            self._readings.append((now_s, counters))
            while len(self._readings) > 1 and (
                now_s - self._readings[0][0] > MOST_SPAN_S or now_s - self._readings[1][0] >= SPAN_S
            ):
                self._readings.popleft()
            before_s, before = self._readings[0]
            self._rated = _rated(before, counters, now_s - before_s)
            return self._rated


def _rated(before: Counters, now: Counters, span_s: float) -> Rated:
    if span_s <= 0:
        return Rated(now, {}, _NO_RATE, 0.0)
    was = dict(_tallies(before.engine))
    rates = {source: rate(was.get(source), tally, span_s) for source, tally in _tallies(now.engine)}
    return Rated(now, rates, rate(before.engine.strangers, now.engine.strangers, span_s), span_s)


def _tallies(counters: EngineCounters) -> Iterator[tuple[Source, Tally]]:
    yield from counters.attachments.items()
    yield from counters.peers.items()


def rate(before: Tally | None, now: Tally, span_s: float) -> Rate:
    """Return how fast a tally grew; one that began afresh meanwhile grew from 0."""
    if before is None or before.received_frames > now.received_frames or before.sent_packets > now.sent_packets:
        before = Tally()
    dropped = sum(now.dropped.values()) - sum(before.dropped.values())
    grown = (getattr(now, each.name) - getattr(before, each.name) for each in fields(Rate)[:-1])
    return Rate(*(number / span_s for number in (*grown, dropped)))
