"""All impaired links at once: which lines take a frame, and which frames are due. Pure: time is given, frames are bytes.

Two Pods may have a line of their own on that of their nodes: their packets go over the one, then over the other.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from shim.lab.errors import LabError
from shim.lab.relay.faults import Faults
from shim.lab.relay.inner import inner_ends
from shim.lab.relay.line import Line

Pair = tuple[str, str]
"""A port where frames come in, and one where they go out; or two Pods."""

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

    def __post_init__(self) -> None:
        _check(self.source, self.target, self.seed)
        if len(self.mac) != MAC_BYTES:
            raise LabError(f"a hardware address has {MAC_BYTES} bytes, not {len(self.mac)}")

    @property
    def pair(self) -> Pair:
        """Its ports."""
        return self.source, self.target


@dataclass(frozen=True, slots=True)
class PodLinePlan:
    """A line for the packets of one Pod to another one, as it is asked for."""

    source: str
    target: str
    way: Pair
    """The line of their nodes, which theirs leads to."""
    ends: frozenset[bytes]
    """Inner source and destination side by side, of each IP version that both have."""
    faults: Faults
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.source, self.target, self.seed)

    @property
    def pair(self) -> Pair:
        """The Pods."""
        return self.source, self.target


def _check(source: object, target: object, seed: object) -> None:
    """Refuse what no line can be made of, before any is: a request is taken whole or not at all."""
    for name in (source, target):
        if not isinstance(name, str) or not name.isprintable():
            raise LabError(f"{name!r} is no name")
    if not isinstance(seed, int):
        raise LabError(f"a seed is a whole number, not {seed!r}")


class Switch:
    """The lines, and the frames on them."""

    def __init__(self, frame_at: int = 0) -> None:
        """`frame_at` is where in what it is given an Ethernet frame begins."""
        self.lines: dict[Pair, Line] = {}
        """Those of Pods too."""
        self._frame_at = frame_at
        self._plans: tuple[LinePlan, ...] = ()
        self._by_mac: dict[tuple[str, bytes], list[Pair]] = {}
        self._by_source: dict[str, list[Pair]] = {}
        self._by_ends: dict[Pair, dict[bytes, Pair]] = {}
        """By the line of their nodes: the lines of Pods on it, by inner addresses."""
        self._ways: dict[Pair, Pair] = {}
        """From lines of Pods to those of their nodes."""
        # When it is due, and then the first to come; the rest is never compared.
        self._held: list[tuple[float, int, Pair, int, bytes]] = []
        self._sequence = 0

    def set_lines(
        self, plans: Sequence[LinePlan], cut: Collection[Pair] = (), pods: Sequence[PodLinePlan] = ()
    ) -> list[tuple[Pair, bytes]]:
        """Let these be all lines. Return what was under way on those that end, to be sent now; on `cut` ones it is lost.

        A line that stays keeps its counts, what is under way, and, with the same seed, its luck.
        """
        ports = {plan.pair for plan in plans}
        for pod in pods:
            if pod.way not in ports:
                raise LabError(f"the line {pod.source} {pod.target} leads to one that is not there: {pod.way}")
        before, self.lines = self.lines, {}
        ways, self._ways = self._ways, {pod.pair: pod.way for pod in pods}
        self._by_ends = {}
        for pod in pods:
            self._by_ends.setdefault(pod.way, {}).update(dict.fromkeys(pod.ends, pod.pair))
        every: list[LinePlan | PodLinePlan] = [*plans, *pods]
        for plan in every:
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
        out = [(ways.get(pair, pair), frame) for _, _, pair, _, frame in ended]
        return [(pair, frame) for pair, frame in out if pair not in cut]

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
            flows = self._by_ends.get(pair)
            ends = inner_ends(frame, self._frame_at) if flows else None
            self._enter(flows.get(ends, pair) if flows and ends else pair, size_bytes, frame, now_s)

    def _enter(self, pair: Pair, size_bytes: int, frame: bytes, now_s: float) -> None:
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
            if (way := self._ways.get(pair)) is not None:
                self.lines[pair].passed(size_bytes)
                self._enter(way, size_bytes, frame, now_s)
                continue
            yield self.lines[pair], pair[1], size_bytes, frame
