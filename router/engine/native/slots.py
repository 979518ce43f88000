"""Slots: small numbers by which the threads call attachments and peers, given again when free."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

from router.model import Endpoint, NextHop

T = TypeVar("T")


class PeerId(NamedTuple):
    """Which peer it is, whatever else is known of it."""

    node: str
    endpoint: Endpoint

    @classmethod
    def of(cls, next_hop: NextHop) -> PeerId:
        """Return whom a next hop means."""
        return cls(next_hop.node, next_hop.endpoint)


class Slots(Generic[T]):
    """Who has which slot, with a serial that tells two holders of one slot apart. Not for two threads at once to change."""

    def __init__(self) -> None:
        self._slots: dict[T, tuple[int, int]] = {}
        self._holders: dict[int, T] = {}
        self._free: list[int] = []

    def add(self, holder: T, serial: int) -> tuple[int, int]:
        """Give a slot, the lowest that is free, and return it with the serial."""
        slot = heapq.heappop(self._free) if self._free else len(self._holders)
        given = self._slots[holder] = slot, serial
        self._holders[slot] = holder
        return given

    def mark(self, holder: T, serial: int) -> None:
        """Set the serial, once it is known."""
        self._slots[holder] = self.slot(holder), serial

    def remove(self, holder: T) -> None:
        """Free the slot."""
        slot, _ = self._slots.pop(holder)
        del self._holders[slot]
        heapq.heappush(self._free, slot)

    def slot(self, holder: T) -> int:
        """Return the slot; KeyError if there is none."""
        return self._slots[holder][0]

    def where(self, holder: T) -> tuple[int, int]:
        """Return slot and serial; KeyError if there is none."""
        return self._slots[holder]

    def find(self, holder: T) -> tuple[int, int] | None:
        """Return slot and serial, or None."""
        return self._slots.get(holder)

    def at(self, slot: int) -> T:
        """Return who has the slot; KeyError if nobody."""
        return self._holders[slot]

    def known(self, slot: int, serial: int) -> T | None:
        """Return who has the slot under that serial, or None."""
        holder = self._holders.get(slot)
        return holder if holder is not None and self._slots.get(holder) == (slot, serial) else None

    def __contains__(self, holder: T) -> bool:
        return holder in self._slots

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._slots))

    def __len__(self) -> int:
        return len(self._slots)
