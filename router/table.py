"""Longest-prefix match over an immutable table; a new table replaces the old one whole, by one assignment.

One level a prefix length, longest first: a cluster uses two or three lengths, so a look-up costs as many reads,
however many subnets there are. A level whose prefixes lie close together (the usual: subnets cut from one range) is
a flat array of 4-byte indices, which stays in the processor's cache at 100,000 subnets; a scattered one is a dict.
A look-up answers with an index into `values`, so that nothing cold is touched on the way.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from router.model import Prefix

T = TypeVar("T")

_BITS = {4: 32, 6: 128}
_FLAT_SLOTS_PER_ENTRY = 8
"""A level is flat while it spends at most this many 4-byte slots on an entry: about what a dict spends."""

_Level = tuple[int, int, int, "Sequence[int] | Mapping[int, int]"]
"""Shift, lowest key, number of keys, index by key − lowest key."""


class ForwardingTable(Generic[T]):
    """Immutable map from prefix to value, looked up by address with the longest prefix winning.

    Building is O(entries); a look-up is O(distinct prefix lengths of that family).
    """

    __slots__ = ("_prefixes", "_v4", "_v6", "values")

    def __init__(self, entries: Iterable[tuple[Prefix, T]] = ()) -> None:
        """Build from (prefix, value) pairs. Raise ValueError when one prefix comes twice."""
        self._prefixes: list[Prefix] = []
        self.values: list[T | None] = [None]
        found: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}
        for prefix, value in entries:
            shift = _BITS[prefix.version] - prefix.prefixlen
            level = found[prefix.version].setdefault(shift, {})
            key = int(prefix.network_address) >> shift
            if key in level:
                raise ValueError(f"prefix {prefix} is in the table twice")
            level[key] = len(self.values)
            self.values.append(value)
            self._prefixes.append(prefix)
        self._v4 = tuple(_pack(shift, level) for shift, level in sorted(found[4].items()))
        self._v6 = tuple(_pack(shift, level) for shift, level in sorted(found[6].items()))

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
        return len(self._prefixes)

    def items(self) -> Iterator[tuple[Prefix, T]]:
        """Yield every (prefix, value), in the order given."""
        return zip(self._prefixes, self.values[1:], strict=True)  # type: ignore[arg-type]


class _Sparse(dict[int, int]):
    """A scattered level: a key that is not there reads as 0, as in a flat one."""

    def __missing__(self, key: int) -> int:
        return 0


def _pack(shift: int, level: dict[int, int]) -> _Level:
    lowest = min(level)
    span = max(level) - lowest + 1
    if span > _FLAT_SLOTS_PER_ENTRY * len(level):
        return shift, lowest, span, _Sparse({key - lowest: value for key, value in level.items()})
    slots = array("I", bytes(4 * span))
    for key, value in level.items():
        slots[key - lowest] = value
    return shift, lowest, span, slots
