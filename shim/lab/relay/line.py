"""One direction of an impaired link: decides what becomes of each frame, and counts it. Pure: time and chance are given."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from shim.lab.relay.faults import Faults

QUEUE_S = 0.1
"""Before a rate limit: as much as goes out in that time …"""
MIN_QUEUE_BYTES = 16 * 1514
"""… and no less than some full frames. What comes when it is full is dropped."""
ETHERNET_BYTES = 14
"""Header of a frame, which an MTU does not count."""
MOST_HELD_BYTES = 64 << 20
"""Of frames that are under way."""


@dataclass(slots=True)
class LineCounts:
    """What became of frames.

    frames + duplicated = passed + lost + swallowed + overflowed + refused + those under way.
    """

    frames: int = 0
    passed: int = 0
    passed_bytes: int = 0
    lost: int = 0
    """By the loss asked for."""
    swallowed: int = 0
    """By an MTU hole."""
    overflowed: int = 0
    """Dropped by a full queue before the rate limit, or as too much was under way."""
    delayed: int = 0
    reordered: int = 0
    duplicated: int = 0
    refused: int = 0
    """The kernel did not send it."""


class Line:
    """One direction. A frame of it is under way from `fates` until `passed` or `refused`."""

    __slots__ = ("_busy_until_s", "_held_bytes", "_name", "_random", "_seed", "counts", "faults")

    def __init__(self, name: str, faults: Faults, seed: int = 0) -> None:
        self._name = name
        self.counts = LineCounts()
        self._busy_until_s = 0.0
        self._held_bytes = 0
        self.faults, self._seed, self._random = faults, seed, _dice(name, seed)

    def change(self, faults: Faults, seed: int) -> None:
        """Have these faults from the next frame on, and begin to draw anew if the seed is another."""
        if seed != self._seed:
            self._seed, self._random = seed, _dice(self._name, seed)
        self.faults = faults

    def fates(self, size_bytes: int, now_s: float) -> list[float]:
        """Return when this frame, which comes now, is due at the other end: never, once or twice. `now_s` never falls."""
        faults, counts, chance = self.faults, self.counts, self._random.random
        counts.frames += 1
        if faults.mtu_hole_bytes and size_bytes - ETHERNET_BYTES > faults.mtu_hole_bytes:
            counts.swallowed += 1
            return []
        if faults.loss and chance() < faults.loss:
            counts.lost += 1
            return []
        copies = 1
        if faults.duplicate and chance() < faults.duplicate:
            counts.duplicated += 1
            copies = 2
        due = []
        for _ in range(copies):
            sent_s = self._sent_s(size_bytes, now_s)
            if sent_s is None or self._held_bytes + size_bytes > MOST_HELD_BYTES:
                counts.overflowed += 1
                continue
            if faults.reorder and chance() < faults.reorder:
                counts.reordered += 1
                due_s = sent_s
            else:
                due_s = sent_s + faults.delay_s
                if faults.jitter_s:
                    due_s += (2 * chance() - 1) * faults.jitter_s
            if due_s > now_s:
                counts.delayed += 1
            self._held_bytes += size_bytes
            due.append(due_s)
        return due

    def passed(self, size_bytes: int) -> None:
        """A frame has left."""
        self._held_bytes -= size_bytes
        self.counts.passed += 1
        self.counts.passed_bytes += size_bytes

    def refused(self, size_bytes: int) -> None:
        """The kernel did not send a frame that was due."""
        self._held_bytes -= size_bytes
        self.counts.refused += 1

    def _sent_s(self, size_bytes: int, now_s: float) -> float | None:
        """Return when its last bit is through the rate limit, a token bucket of one frame; None: its queue is full."""
        rate = self.faults.rate_bits_per_s
        if not rate:
            return now_s
        start_s = max(now_s, self._busy_until_s)
        queued_bytes = (start_s - now_s) * rate / 8
        if queued_bytes and queued_bytes + size_bytes > max(QUEUE_S * rate / 8, MIN_QUEUE_BYTES):
            return None
        self._busy_until_s = start_s + size_bytes * 8 / rate
        return self._busy_until_s


def _dice(name: str, seed: int) -> Random:
    return Random(f"{seed} {name}")  # by name: both directions of a link draw differently
