"""Longest-prefix match over an immutable table; a new table replaces the old one whole, by one assignment.

One level a prefix length, longest first: a cluster uses two or three lengths, so a look-up costs as many reads,
however many subnets there are. A level whose prefixes lie close together (the usual: subnets cut from one range) is
a flat array of 4-byte indices, which stays in the processor's cache at 100,000 subnets; a scattered one is a dict.
A look-up answers with an index into `values`, so that nothing cold is touched on the way.
A table that differs in a few prefixes is made of the last one by copies of memory, its own entries patched.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from router.model import Prefix

T = TypeVar("T")

_BITS = {4: 32, 6: 128}
_FLAT_SLOTS_PER_ENTRY = 8
"""A level becomes flat while it spends at most this many 4-byte slots on an entry, about what a dict spends; it stays
flat up to twice as many, so that one prefix that comes and goes does not turn it over each time."""

_FEW = 64
"""So many empty places are not worth a tidying up."""

_Level = tuple[int, int, int, "array[int] | _Sparse"]
"""Shift, lowest key, number of keys, index by key − lowest key; an index of 0 is no entry."""
_Where = tuple[int, int]
"""Which level: IP version and shift."""


class ForwardingTable(Generic[T]):
    """Immutable map from prefix to value, looked up by address with the longest prefix winning.

    Building is O(entries); a look-up is O(distinct prefix lengths of that family).
    """

    __slots__ = ("_prefixes", "_free", "_levels", "_counts", "_v4", "_v6", "values")

    def __init__(self, entries: Iterable[tuple[Prefix, T]] = ()) -> None:
        """Build from (prefix, value) pairs. Raise ValueError when one prefix comes twice."""
        self._prefixes: list[Prefix | None] = [None]
        self.values: list[T | None] = [None]
        self._free: tuple[int, ...] = ()
        """Where in both of them is nothing."""
        found: dict[_Where, dict[int, int]] = {}
        for prefix, value in entries:
            shift = _BITS[prefix.version] - prefix.prefixlen
            level = found.setdefault((prefix.version, shift), {})
            key = int(prefix.network_address) >> shift
            if key in level:
                raise ValueError(f"prefix {prefix} is in the table twice")
            level[key] = len(self.values)
            self.values.append(value)
            self._prefixes.append(prefix)
        self._set_levels({where: _pack(where[1], level) for where, level in found.items()})
        self._counts = {where: len(level) for where, level in found.items()}

    def _set_levels(self, levels: dict[_Where, _Level]) -> None:
        self._levels = levels
        self._v4, self._v6 = (
            tuple(levels[where] for where in sorted(levels) if where[0] == version) for version in (4, 6)
        )

    def index(self, packed: bytes) -> int:
        """Return where in `values` the longest prefix holding a 4- or 16-byte address is; 0 where there is none."""
        address = int.from_bytes(packed, "big")
        for shift, lowest, span, slots in self._v4 if len(packed) == 4 else self._v6:
            key = (address >> shift) - lowest
            if 0 <= key < span and (found := slots[key]):
                return found
        return 0

    def lookup(self, packed: bytes) -> T | None:
        """Return the value of the longest prefix holding an address of 4 or 16 bytes, or None."""
        return self.values[self.index(packed)]

    def __len__(self) -> int:
        return len(self.values) - 1 - len(self._free)

    def items(self) -> Iterator[tuple[Prefix, T]]:
        """Yield every (prefix, value): in the order given, but for what `changed` added."""
        for prefix, value in zip(self._prefixes, self.values, strict=True):
            if prefix is not None:
                yield prefix, value  # type: ignore[misc]

    def changed(self, removed: Iterable[Prefix], added: Iterable[tuple[Prefix, T]]) -> ForwardingTable[T]:
        """Return a table without the ones and with the others; a prefix that is in both gets its new value.

        Equal in every look-up to one built afresh, for the price of what changed and of some copies of memory: at
        10,000 entries about 0.1 ms. Raise KeyError when a removed prefix is not there, ValueError when an added one is.
        """
        values = self.values.copy()
        leaving: dict[Prefix, int] = {}
        for prefix in removed:
            index = self._exactly(*_place(prefix))
            if not index or prefix in leaving:
                raise KeyError(prefix)
            leaving[prefix] = index
        entering = []
        for prefix, value in added:
            if index := leaving.pop(prefix, 0):
                values[index] = value
            else:
                entering.append((prefix, value))
        if not leaving and not entering:
            return self._with(values, self._prefixes, self._free, self._levels, self._counts)
        prefixes, free = self._prefixes.copy(), list(self._free)
        patches: dict[_Where, dict[int, int]] = {}
        for prefix, index in leaving.items():
            where, key = _place(prefix)
            patches.setdefault(where, {})[key] = 0
            values[index] = prefixes[index] = None
            free.append(index)
        for prefix, value in entering:
            where, key = _place(prefix)
            patch = patches.setdefault(where, {})
            if patch.get(key) or self._exactly(where, key):
                raise ValueError(f"prefix {prefix} is in the table twice")
            if free:
                index = free.pop()
                values[index], prefixes[index] = value, prefix
            else:
                index = len(values)
                values.append(value)
                prefixes.append(prefix)
            patch[key] = index
        levels, counts = dict(self._levels), dict(self._counts)
        for where, patch in patches.items():
            enter = sum(map(bool, patch.values()))
            counts[where] = counts.get(where, 0) + 2 * enter - len(patch)
            if counts[where]:
                levels[where] = _patched(where[1], levels.get(where), patch, counts[where])
            else:
                del levels[where], counts[where]
        made = self._with(values, prefixes, tuple(free), levels, counts)
        # What once was large need not be copied for ever.
        return ForwardingTable(made.items()) if len(free) > len(made) + _FEW else made

    def _with(
        self,
        values: list[T | None],
        prefixes: list[Prefix | None],
        free: tuple[int, ...],
        levels: dict[_Where, _Level],
        counts: dict[_Where, int],
    ) -> ForwardingTable[T]:
        made: ForwardingTable[T] = ForwardingTable.__new__(ForwardingTable)
        made.values, made._prefixes, made._free, made._counts = values, prefixes, free, counts
        made._set_levels(levels)
        return made

    def _exactly(self, where: _Where, key: int) -> int:
        """Return the index of one prefix, 0 when it is not there."""
        if (level := self._levels.get(where)) is None:
            return 0
        _, lowest, span, slots = level
        return slots[key - lowest] if 0 <= key - lowest < span else 0


class _Sparse(dict[int, int]):
    """A scattered level: a key that is not there reads as 0, as in a flat one."""

    def __missing__(self, key: int) -> int:
        return 0


def _place(prefix: Prefix) -> tuple[_Where, int]:
    shift = _BITS[prefix.version] - prefix.prefixlen
    return (prefix.version, shift), int(prefix.network_address) >> shift


def _pack(shift: int, level: dict[int, int]) -> _Level:
    lowest = min(level)
    span = max(level) - lowest + 1
    if span > _FLAT_SLOTS_PER_ENTRY * len(level):
        return shift, lowest, span, _Sparse({key - lowest: value for key, value in level.items()})
    slots = array("I", bytes(4 * span))
    for key, value in level.items():
        slots[key - lowest] = value
    return shift, lowest, span, slots


def _patched(shift: int, level: _Level | None, patch: dict[int, int], count: int) -> _Level:
    """Return a copy of a level with some keys set, or cleared by 0; made anew when its form no longer suits its `count` keys."""
    if level is None:
        return _pack(shift, patch)
    _, lowest, span, slots = level
    first, end = min(lowest, *patch), max(lowest + span - 1, *patch) + 1
    if isinstance(slots, array):
        if end - first <= 2 * _FLAT_SLOTS_PER_ENTRY * count:
            # Never narrower than it was: slots at its ends that fell empty cost little, and are used again.
            flat = array("I", bytes(4 * (lowest - first))) + slots + array("I", bytes(4 * (end - lowest - span)))
            for key, index in patch.items():
                flat[key - first] = index
            return shift, first, end - first, flat
        kept = {key: index for key, index in enumerate(slots, lowest) if index}
    else:
        # What was cleared stays as a 0: a dict without gaps is copied five times as fast.
        if first == lowest and end - first > _FLAT_SLOTS_PER_ENTRY * count and len(slots) <= 2 * count + _FEW:
            sparse = _Sparse(slots)
            for key, index in patch.items():
                sparse[key - first] = index
            return shift, first, end - first, sparse
        kept = {key + lowest: index for key, index in slots.items() if index}
    merged = kept | patch
    return _pack(shift, {key: index for key, index in merged.items() if index})
