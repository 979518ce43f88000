"""Who watches packets, what they are shown, and where it waits for them.

a packet as it came  → which taps look at this one? a copy, made before anything in it changes
→ its fate is known  → is it of their party, and does their program take it?
→ `Sightings`        → bounded; what finds no room is counted by tap
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from router.engine.interface import SIGHTING_BYTES_KEPT, SIGHTINGS_KEPT, Side, Sighting, Source, Tap
from router.engine.ports import Party
from router.model import DropReason, VerdictKind
from router.wire import bpf
from router.wire.packet import Buffer, checksum
from router.wire.segment import MAX_PACKET_BYTES


class Sightings:
    """Copies that wait to be fetched. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Sighting] = []
        self._bytes = 0
        self._lost: dict[int, int] = {}
        self._wakes = 0

    def put(self, sighting: Sighting) -> None:
        """Take one in, or count it as lost."""
        size = len(sighting.packet)
        with self._changed:
            if len(self._waiting) >= SIGHTINGS_KEPT or self._bytes + size > SIGHTING_BYTES_KEPT:
                self._lost[sighting.tap] = self._lost.get(sighting.tap, 0) + 1
                return
            self._waiting.append(sighting)
            self._bytes += size
            if len(self._waiting) == 1:
                self._changed.notify_all()

    def take(self, timeout_s: float) -> tuple[tuple[Sighting, ...], Mapping[int, int]]:
        """Return what waits and how many were lost; wait for the first at most so long, and no longer than until `wake`."""
        with self._changed:
            before = self._wakes
            self._changed.wait_for(lambda: self._waiting or self._wakes != before, max(0.0, timeout_s))
            waiting, self._waiting = self._waiting, []
            lost, self._lost = self._lost, {}
            self._bytes = 0
        return tuple(waiting), lost

    def wake(self) -> None:
        """Let whoever waits return."""
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()


class Came(NamedTuple):
    """A packet as it came, and the taps that look at it."""

    taps: tuple[tuple[Tap, Party | None], ...]
    sightings: Sightings
    packet: bytes = b""
    """As much of it as they ask for."""
    packet_bytes: int = 0

    def show(
        self, source: Party | Source, target: Party | None, kind: VerdictKind, reason: DropReason | None = None,
        packets: int = 1,
    ) -> None:  # fmt: skip
        """Show it to them. `target` is whom it was meant for; with a reason, it went nowhere."""
        for tap, party in self.taps:
            if reason is None and tap.dropped_only:
                continue
            if party is not None and party is not source and party is not target:
                continue
            if tap.program and not bpf.run(tap.program, self.packet):
                continue
            who = source.source if isinstance(source, Party) else source
            where = target.source if target is not None and reason is None else None
            copy = self.packet[: tap.snap_bytes]
            self.sightings.put(
                Sighting(
                    tap.number, time.time_ns(), Side.BEFORE, who, where, kind, reason, packets, self.packet_bytes, copy
                )
            )


class Taps:
    """All that watch, with the parties they mean: never changed, replaced whole. Of all threads."""

    __slots__ = ("_before", "_after", "_sampling", "_copied_bytes", "_sightings")

    def __init__(self, taps: Iterable[tuple[Tap, Party | None]], sightings: Sightings) -> None:
        """A party is meant itself: another that takes its name or place later is not."""
        taps = tuple(taps)
        self._before = tuple(each for each in taps if Side.BEFORE in each[0].sides)
        self._after = tuple(each for each in taps if Side.AFTER in each[0].sides and not each[0].dropped_only)
        self._sampling = any(tap.every > 1 for tap, _ in self._before)
        programs = any(tap.program for tap, _ in self._before)
        self._copied_bytes = (
            MAX_PACKET_BYTES if programs else max((tap.snap_bytes for tap, _ in self._before), default=0)
        )
        self._sightings = sightings

    def look(self, packet: Buffer) -> Came:
        """Keep a packet as it is now, if anybody looks at this one; `show` it once, when its fate is known."""
        taps = self._before
        if self._sampling:
            taps = tuple(each for each in taps if _looks(each[0]))
        if not taps:
            return Came((), self._sightings)
        return Came(taps, self._sightings, bytes(packet[: self._copied_bytes]), len(packet))

    def after(self, packet: Buffer, source: Party | None, target: Party, kind: VerdictKind, packets: int = 1) -> None:
        """Show a packet as it was handed on; without a source, it is the router's own."""
        for tap, party in self._after:
            if party is not None and party is not source and party is not target:
                continue
            if not _looks(tap) or (tap.program and not bpf.run(tap.program, packet)):
                continue
            who = None if source is None else source.source
            copy = bytes(packet[: tap.snap_bytes])
            self._sightings.put(
                Sighting(
                    tap.number, time.time_ns(), Side.AFTER, who, target.source, kind, None, packets, len(packet), copy
                )
            )


def with_its_hop(packet: memoryview) -> memoryview:
    """Return a packet as it was before `decrement_hop_limit`."""
    whole = bytearray(packet)
    if whole[0] >> 4 == 6:
        whole[7] += 1
    else:
        whole[8] += 1
        whole[10:12] = b"\0\0"
        whole[10:12] = checksum(whole[: (whole[0] & 15) << 2]).to_bytes(2, "big")
    return memoryview(whole)


def _looks(tap: Tap) -> bool:
    return tap.every <= 1 or random.random() * tap.every < 1.0
