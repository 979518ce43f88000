"""What the compiled threads tell of single packets, in the words of the contract: who is who in drops and sightings."""

from __future__ import annotations

import itertools
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from router.engine.interface import DroppedFlow, Side, Sighting, Source, Tap
from router.engine.native import _core
from router.model import AttachmentKey, DropReason, Endpoint, Flow, VerdictKind

REASONS: Final = tuple(DropReason(name) for name in _core.DROP_REASONS)
"""By the numbers that the threads call them."""

_VERDICTS: Final = {kind.value: kind for kind in VerdictKind}


class Holders:
    """Which attachment a number means; also one that is no more, as long as something tells of it.

    Not for two threads at once, but for `named`.
    """

    def __init__(self, core: _core.Core) -> None:
        self._core = core
        self._serials = itertools.count(1)
        self._numbers: dict[AttachmentKey, int] = {}
        self._keys: dict[int, AttachmentKey] = {}
        self._left: set[int] = set()
        """Numbers of those who are no more."""
        self._reading = False

    def came(self, key: AttachmentKey) -> int:
        """Return the number of an attachment that comes: the one it had, if something still tells of that."""
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = next(self._serials)
            self._keys[number] = key
        self._left.discard(number)
        return number

    def left(self, key: AttachmentKey) -> None:
        """Note that it is no more."""
        self._left.add(self._numbers[key])
        self._forget()

    def read(self, reading: bool) -> None:
        """Note that sightings are fetched now, and that those fetched have been read: till then nobody is forgotten."""
        self._reading = reading
        self._forget()

    def _forget(self) -> None:
        if self._left and not self._reading:
            for number in self._left.difference(self._core.told_of()):
                self._left.remove(number)
                del self._numbers[self._keys.pop(number)]

    def named(self, name: _core.Name) -> Source:
        """Return who it is."""
        number, packed, port = name
        return _endpoint(packed, port) if number is None else self._keys[number]


@lru_cache(maxsize=4096)
def _endpoint(packed: bytes, port: int) -> Endpoint:
    return Endpoint(ip_address(packed), port)


def tap_row(tap: Tap, place: tuple[int, int, int] | None) -> _core.TapRow:
    """Return a tap as the threads read it; `place` is kind, slot and serial of its party, if that is there."""
    before, after = (side in tap.sides for side in Side)
    return (
        tap.number, place, tap.party is not None, tap.program, max(0, tap.snap_bytes),
        max(1, tap.every), before, after, tap.dropped_only,
    )  # fmt: skip


def dropped_flow(row: _core.DroppedRow, holders: Holders) -> DroppedFlow:
    """Return what was dropped."""
    name, reason, ends, *counts = row
    flow = None if ends is None else Flow(ip_address(ends[0]), ip_address(ends[1]), *ends[2:])
    return DroppedFlow(holders.named(name), REASONS[reason], flow, *counts)


def sighting(row: _core.SightingRow, holders: Holders) -> Sighting:
    """Return what was seen."""
    tap, time_ns, before, source, target, verdict, reason, packets, packet_bytes, packet = row
    who, where = (None if name is None else holders.named(name) for name in (source, target))
    why = None if reason is None else REASONS[reason]
    side = Side.BEFORE if before else Side.AFTER
    return Sighting(tap, time_ns, side, who, where, _VERDICTS[verdict], why, packets, packet_bytes, packet)
