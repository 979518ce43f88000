"""The measures between Pods, in the order they are run."""

from __future__ import annotations

from benchmarks.figures import Promise
from benchmarks.measures.flood import Flood
from benchmarks.measures.interface import Measure, MeasureFailed
from benchmarks.measures.pace import Pace
from benchmarks.measures.round_trip import RoundTrip, UnderLoad
from benchmarks.measures.stream import Stream

MEASURES: tuple[Measure, ...] = (
    Stream("tcp1", "1 stream →", cpu=True, promises=(Promise(0.85), Promise(6, "fastd"), Promise(3, "wireguard-go"))),
    Stream("tcp1r", "1 stream ←", reverse=True),
    Stream("tcp4", "4 streams →", 4),
    Stream("tcp4r", "4 streams ←", 4, reverse=True),
    Stream("local", "1 stream", beside=True, promises=(Promise(0.8),)),
    Flood(64, promises=(Promise(1.8),)),
    Flood(64, 2, promises=(Promise(1.8),)),
    Flood(1400),
    Pace(1.05),
    RoundTrip((Promise(2), Promise(1.2, of="podwire-spin"))),
    UnderLoad(5),
)
QUICK = ("tcp1", "local", "udp64", "pace", "rtt")

__all__ = ["MEASURES", "QUICK", "Measure", "MeasureFailed"]
