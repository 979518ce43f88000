"""A pcapng file as the router sends it (draft-ietf-opsawg-pcapng, little-endian): read block by block, and ended.

The router cannot write what a file ends with when it is the reader who ends it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

_INTERFACE, _STATISTICS, _PACKET = 1, 5, 6
_FRAME_BYTES, _TRAILER_BYTES = 8, 4
_INTERFACE_BYTES, _PACKET_BYTES = 8, 20
_LEAST_BYTES = _FRAME_BYTES + _TRAILER_BYTES
_LEAST_PACKET_BYTES = _LEAST_BYTES + _PACKET_BYTES
_COMMENT, _IF_NAME = 1, 2
_ISB_END, _ISB_DROPPED, _ISB_DELIVERED = 3, 5, 8

_FRAME = struct.Struct("<II")
_NUMBER = struct.Struct("<I")
_PACKET_BODY = struct.Struct("<IIIII")
_OPTION = struct.Struct("<HH")


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet of the file."""

    interface: str
    """Name of it: whose, and on which side of the router."""
    time_ns: int
    """Since 1970-01-01 UTC."""
    packet_bytes: int
    """Its length; `captured` may be less."""
    captured: bytes
    comment: str
    """What became of it."""


class Capture:
    """A file as it comes in, in pieces of whole blocks."""

    def __init__(self) -> None:
        self.packets = 0
        self._interfaces: list[str] = []
        self._counts: list[int] = []
        self._complete = False

    def count(self, piece: bytes, most: int | None = None) -> int:
        """Count the packets of a piece, and return where the file ends there that has at most so many. ValueError as `take`."""
        at = 0
        for at, _ in self._blocks(piece, most):  # noqa: B007 - the last one counts
            pass
        return len(piece) if most is None or self.packets < most else at

    def take(self, piece: bytes, most: int | None = None) -> Iterator[Packet]:
        """Yield each packet of a piece, until the file has `most`. ValueError when it is broken."""
        for end, start in self._blocks(piece, most):
            number, high, low, captured, packet_bytes = _PACKET_BODY.unpack_from(piece, start)
            first, after = start + _PACKET_BYTES, end - _TRAILER_BYTES
            if first + captured > after:
                raise ValueError("a packet longer than its block")
            packet = piece[first : first + captured]
            comment = _option(piece, first + captured + -captured % 4, after, _COMMENT)
            yield Packet(self._interfaces[number], high << 32 | low, packet_bytes, packet, comment)

    def _blocks(self, piece: bytes, most: int | None) -> Iterator[tuple[int, int]]:
        """Yield of each packet where its block ends, and where its body begins; take note of the other blocks."""
        at, size_of_piece, unpack = 0, len(piece), _FRAME.unpack_from
        while at < size_of_piece and (most is None or self.packets < most):
            if size_of_piece - at < _LEAST_BYTES:
                raise ValueError("half a block")
            kind, size = unpack(piece, at)
            if size < _LEAST_BYTES or size % 4 or at + size > size_of_piece:
                raise ValueError(f"a block of {size} bytes where {size_of_piece - at} are left")
            start, at = at + _FRAME_BYTES, at + size
            if kind == _PACKET:
                (number,) = _NUMBER.unpack_from(piece, start) if size >= _LEAST_PACKET_BYTES else (-1,)
                if not 0 <= number < len(self._counts):
                    raise ValueError("a packet of no interface")
                self._counts[number] += 1
                self.packets += 1
                yield at, start
            elif kind == _INTERFACE:
                self._interfaces.append(_option(piece, start + _INTERFACE_BYTES, at - _TRAILER_BYTES, _IF_NAME))
                self._counts.append(0)
            elif kind == _STATISTICS:
                self._complete = True

    def end(self, lost: int) -> bytes:
        """Return what the file still lacks: statistics of each interface (section 4.6), unless the router wrote them."""
        if self._complete:
            return b""
        return b"".join(
            _statistics(number, delivered, 0 if number else lost) for number, delivered in enumerate(self._counts)
        )


def _option(piece: bytes, at: int, end: int, wanted: int) -> str:
    """Return the text of the first option with a code; empty when there is none (section 3.5)."""
    while at + _OPTION.size <= end:
        code, size = _OPTION.unpack_from(piece, at)
        if code == wanted:
            return piece[at + _OPTION.size : min(at + _OPTION.size + size, end)].decode(errors="replace")
        if code == 0:
            break
        at += _OPTION.size + size + -size % 4
    return ""


def _statistics(number: int, delivered: int, lost: int) -> bytes:
    now_ns = time.time_ns()
    high_low = struct.pack("<II", now_ns >> 32, now_ns & 0xFFFFFFFF)
    options = b"".join(
        _OPTION.pack(code, 8) + value
        for code, value in (
            (_ISB_END, high_low),
            (_ISB_DROPPED, lost.to_bytes(8, "little")),
            (_ISB_DELIVERED, delivered.to_bytes(8, "little")),
        )
    )
    body = struct.pack("<I", number) + high_low + options + _OPTION.pack(0, 0)
    size = _FRAME_BYTES + len(body) + _TRAILER_BYTES
    return _FRAME.pack(_STATISTICS, size) + body + struct.pack("<I", size)
