"""Which of many attachments or peers have series of their own; the counts of all others are told as one. Pure.

Whoever comes first has the first free place and keeps it until it is gone, so no count jumps from one series to another. The
sum of the others only grows, as a counter must: who of them is gone stays in it, and `retained` says with how much,
so that it can be taken from what is counted of all that is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Counts = Mapping[str, float]
"""By name; what is not there is 0."""

_K = TypeVar("_K")


@dataclass(frozen=True, slots=True)
class Split(Generic[_K]):
    """Counts, told apart as far as there are places."""

    own: Mapping[_K, Counts]
    others: Counts
    """Their sum since the beginning; empty while everyone has a place."""
    retained: Counts
    """What of it is of some that are gone."""


class Series(Generic[_K]):
    """Remembers who has a place. Not thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._own: set[_K] = set()
        self._last: dict[_K, Counts] = {}
        """Of those without a place, when they were last seen."""
        self._others: dict[str, float] = {}
        self._retained: dict[str, float] = {}

    def split(self, now: Mapping[_K, Counts]) -> Split[_K]:
        """Take what is counted now of everyone that is there."""
        self._own &= now.keys()
        for key in self._last.keys() - now.keys():
            _add(self._retained, self._last.pop(key))
        for key, counts in now.items():
            if key in self._own:
                continue
            if key not in self._last and len(self._own) < self._most:
                self._own.add(key)
                continue
            last = self._last.get(key, {})
            if any(counts.get(name, 0.0) < before for name, before in last.items()):  # gone and back meanwhile
                _add(self._retained, last)
                last = {}
            _add(self._others, {name: number - last.get(name, 0.0) for name, number in counts.items()})
            self._last[key] = counts
        return Split({key: now[key] for key in now if key in self._own}, dict(self._others), dict(self._retained))


def _add(total: dict[str, float], more: Counts) -> None:
    for name, number in more.items():
        total[name] = total.get(name, 0.0) + number
