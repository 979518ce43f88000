"""Counts of values by class. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values lay in each class; immutable, so that it can be handed to another thread."""

    bounds: tuple[float, ...]
    """Upper bound of each class but the last, which has none; a value equal to a bound is in its class, as Prometheus has it."""
    counts: tuple[int, ...] = ()
    """By class; empty while there are no values."""
    total: float = 0.0
    """Sum of all values."""

    def plus(self, value: float) -> Histogram:
        """Return it with one value more."""
        counts = list(self.counts or (0,) * (len(self.bounds) + 1))
        counts[bisect_left(self.bounds, value)] += 1
        return Histogram(self.bounds, tuple(counts), self.total + value)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, values up to it) of each class, the last of them "+Inf"."""
        counts = self.counts or (0,) * (len(self.bounds) + 1)
        found, sum_so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), counts, strict=True):
            sum_so_far += count
            found.append((bound, float(sum_so_far)))
        return found
