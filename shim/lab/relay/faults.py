"""What may go wrong on a link in one direction. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from shim.lab.errors import LabError

MAX_DELAY_S = 60.0
MAX_RATE_BITS_PER_S = 10**12
MIN_HOLE_BYTES, MAX_HOLE_BYTES = 68, 65535
"""Every IPv4 link carries the smaller (RFC 791 section 3.2)."""


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of one direction, as netem has them; fractions are 0 to 1. LabError when they make no sense."""

    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Each frame's delay is drawn evenly from delay − jitter to delay + jitter, so frames may overtake each other."""
    reorder: float = 0.0
    """Fraction of frames that are not delayed at all, and so overtake those before them."""
    duplicate: float = 0.0
    rate_bits_per_s: int = 0
    """Of Ethernet frames, without preamble and FCS; 0: as fast as it goes."""
    mtu_hole_bytes: int = 0
    """Largest IP packet that passes, as it is on the wire; larger ones vanish and nobody is told. 0: all pass."""

    def __post_init__(self) -> None:
        for name in ("loss", "reorder", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise LabError(f"{name} is a fraction, 0 to 1 (0% to 100%), not {getattr(self, name)}")
        for name in ("delay", "jitter"):
            value = getattr(self, f"{name}_s")
            if not (math.isfinite(value) and 0 <= value <= MAX_DELAY_S):
                raise LabError(f"{name} is 0 to {MAX_DELAY_S:.0f} s, not {value} s")
        if self.jitter_s > self.delay_s:
            raise LabError(f"jitter {self.jitter_s} s is more than the delay {self.delay_s} s that it varies")
        if self.reorder and not self.delay_s:
            raise LabError("reorder needs a delay: a reordered frame overtakes those that wait")
        if not 0 <= self.rate_bits_per_s <= MAX_RATE_BITS_PER_S:
            raise LabError(f"rate is 0 to {MAX_RATE_BITS_PER_S} bit/s, not {self.rate_bits_per_s}")
        if self.mtu_hole_bytes and not MIN_HOLE_BYTES <= self.mtu_hole_bytes <= MAX_HOLE_BYTES:
            raise LabError(
                f"an MTU hole begins above {MIN_HOLE_BYTES} to {MAX_HOLE_BYTES} bytes (0: nowhere), "
                f"not {self.mtu_hole_bytes}"
            )

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        return " ".join(_words(self)) or "none"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, those that are not 0."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Faults:
        """Read what `to_json` returns."""
        return cls(**found)


NO_FAULTS = Faults()


def _words(faults: Faults) -> list[str]:
    fractions = {name: getattr(faults, name) for name in ("loss", "reorder", "duplicate")}
    words = [f"{name} {fraction * 100:g}%" for name, fraction in fractions.items() if fraction]
    if faults.delay_s:
        jitter = f"±{faults.jitter_s * 1000:g}" if faults.jitter_s else ""
        words.append(f"delay {faults.delay_s * 1000:g}{jitter} ms")
    if faults.rate_bits_per_s:
        words.append(f"rate {rate_text(faults.rate_bits_per_s)}")
    if faults.mtu_hole_bytes:
        words.append(f"MTU hole above {faults.mtu_hole_bytes}")
    return words


def rate_text(bits_per_s: int) -> str:
    """Say a rate as it is typed: 50mbit."""
    for unit, factor in (("gbit", 10**9), ("mbit", 10**6), ("kbit", 1000)):
        if bits_per_s >= factor:
            return f"{bits_per_s / factor:g}{unit}"
    return f"{bits_per_s}bit"
