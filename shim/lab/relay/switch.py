"""All impaired links at once: which lines take a frame, and which frames are due. Pure: time is given, frames are bytes."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from shim.lab.relay.faults import Faults
from shim.lab.relay.line import Line

Pair = tuple[str, str]
"""A port where frames come in, and one where they go out."""

MAC_BYTES = 6


@dataclass(frozen=True, slots=True)
class LinePlan:
    """A line as it is asked for."""

    source: str
    target: str
    mac: bytes
    """Of the only station at the target port."""
    faults: Faults
    seed: int = 0

    @property
    def pair(self) -> Pair:
        """Its ports."""
        return self.source, self.target


class Switch:
    """The lines, and the frames on them."""

    def __init__(self) -> None:
        self.lines: dict[Pair, Line] = {}
        self._plans: tuple[LinePlan, ...] = ()
        self._by_mac: dict[tuple[str, bytes], list[Pair]] = {}
        self._by_source: dict[str, list[Pair]] = {}
        # When it is due, and then the first to come; the rest is never compared.
        self._held: list[tuple[float, int, Pair, int, bytes]] = []
        self._sequence = 0

    def set_lines(self, plans: Sequence[LinePlan], cut: Collection[Pair] = ()) -> list[tuple[Pair, bytes]]:
        """Let these be all lines. Return what was under way on those that end, to be sent now; on `cut` ones it is lost.

        A line that stays keeps its counts, what is under way, and, with the same seed, its luck.
        """
        before, self.lines = self.lines, {}
        for plan in plans:
            line = before.get(plan.pair) or Line(f"{plan.source} {plan.target}", plan.faults, plan.seed)
            line.change(plan.faults, plan.seed)
            self.lines[plan.pair] = line
        self._plans = tuple(plans)
        self._by_mac = {}
        self._by_source = {}
        for plan in plans:
            self._by_mac.setdefault((plan.source, plan.mac), []).append(plan.pair)
            self._by_source.setdefault(plan.source, []).append(plan.pair)
        ended = sorted(held for held in self._held if held[2] not in self.lines)
        self._held = [held for held in self._held if held[2] in self.lines]
        heapq.heapify(self._held)
        return [(pair, frame) for _, _, pair, _, frame in ended if pair not in cut]

    def macs(self, port: str) -> list[bytes]:
        """Return the destinations whose frames from that port a line takes, besides groups."""
        return sorted({plan.mac for plan in self._plans if plan.source == port})

    @property
    def ports(self) -> set[str]:
        """Every port that a line begins or ends at."""
        return {port for plan in self._plans for port in plan.pair}

    def receive(self, port: str, destination: bytes, frame: bytes, size_bytes: int, now_s: float) -> None:
        """Take a frame that came in at a port. `now_s` never falls."""
        group = destination[0] & 1  # IEEE 802: multicast or broadcast
        pairs = self._by_source.get(port, ()) if group else self._by_mac.get((port, destination), ())
        for pair in pairs:
            for due_s in self.lines[pair].fates(size_bytes, now_s):
                self._sequence += 1
                heapq.heappush(self._held, (due_s, self._sequence, pair, size_bytes, frame))

    @property
    def due_s(self) -> float | None:
        """When the next frame has to go out; None while none is under way."""
        return self._held[0][0] if self._held else None

    def take(self, now_s: float) -> Iterator[tuple[Line, str, int, bytes]]:
        """Yield the frames that are due, in their order: line, port to go out of, size, frame.

        Who takes one tells its line that it passed or was refused.
        """
        while self._held and self._held[0][0] <= now_s:
            _, _, pair, size_bytes, frame = heapq.heappop(self._held)
            yield self.lines[pair], pair[1], size_bytes, frame
