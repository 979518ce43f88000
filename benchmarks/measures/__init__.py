"""The measures between Pods, in the order they are run."""

from __future__ import annotations

from benchmarks.measures.flood import Flood
from benchmarks.measures.interface import Measure, MeasureFailed
from benchmarks.measures.round_trip import RoundTrip
from benchmarks.measures.stream import Stream

MEASURES: tuple[Measure, ...] = (
    Stream("tcp1", "1 stream →", cpu=True, bound=0.35),
    Stream("tcp1r", "1 stream ←", reverse=True),
    Stream("tcp4", "4 streams →", 4),
    Stream("tcp4r", "4 streams ←", 4, reverse=True),
    Stream("local", "1 stream", beside=True, bound=0.4),
    Flood(64),
    Flood(1400),
    RoundTrip(),
)
QUICK = ("tcp1", "local", "udp64", "rtt")

__all__ = ["MEASURES", "QUICK", "Measure", "MeasureFailed"]
