"""Both engines whole, behind real sockets: damaged datagrams and frames in slices, everything counted and balanced."""

from __future__ import annotations

from random import Random

from router.engine.choose import available
from tests.fuzz import MOST_GROWTH_BYTES, fuzz
from tests.fuzzers.target import Target

_PACKETS = 2_000


class WholeEngine(Target):
    """One engine at one of its two ways in; an input is a seed, and stands for many packets."""

    def __init__(self, engine: str, where: str) -> None:
        self.name = f"engine-{engine}-{where}"
        self.reached_by = "Pods, at their TUN" if where == "tun" else "anybody who reaches the UDP port"
        self._engine, self._where = engine, where

    def make(self, random: Random) -> bytes:
        return random.randrange(1 << 32).to_bytes(4, "big")

    def feed(self, given: bytes) -> None:
        report = fuzz(self._engine, self._where, _PACKETS, int.from_bytes(given[:4], "big"))
        assert report.sent == report.counted, f"{report.counted} counted of {report.sent}"
        assert report.grown_bytes <= MOST_GROWTH_BYTES, f"memory grew by {report.grown_bytes} bytes"

    def feeds(self) -> int:
        return _PACKETS


def all_engines() -> list[Target]:
    """Return a target for every engine that is built here, and way in."""
    return [WholeEngine(engine, where) for engine in available() for where in ("udp", "tun")]
