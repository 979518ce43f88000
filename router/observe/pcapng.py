"""Blocks of a pcapng file (draft-ietf-opsawg-pcapng), written little-endian. Pure.

    section header (4.1) · interface description (4.2), before the first packet of each · enhanced packet (4.3) ·
    interface statistics (4.6)

A block is: type u32 · total length u32 · body, padded to 32 bits · total length u32 (section 3.1). Options are: code u16 ·
length u16 · value, padded to 32 bits (section 3.5).
"""

from __future__ import annotations

import struct
from enum import IntEnum, unique
from typing import Final

LINKTYPE_RAW: Final = 101
"""Packets from their IP header on (tcpdump.org/linktypes.html)."""

_SECTION, _INTERFACE, _PACKET, _STATISTICS = 0x0A0D0D0A, 1, 6, 5
_BYTE_ORDER: Final = 0x1A2B3C4D
_LENGTH_UNKNOWN: Final = -1
_END_OF_OPTIONS, _COMMENT = 0, 1
_SHB_OS, _SHB_APPLICATION = 3, 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL = 2, 3, 9
_NANOSECONDS: Final = b"\x09"
_EPB_FLAGS: Final = 2
_ISB_START, _ISB_END, _ISB_DROPPED, _ISB_DELIVERED = 2, 3, 5, 8
_MOST_TEXT_BYTES: Final = 4096

_FRAME = struct.Struct("<II")
_TRAILER = struct.Struct("<I")
_SECTION_BODY = struct.Struct("<IHHq")
_INTERFACE_BODY = struct.Struct("<HHI")
_PACKET_HEAD = struct.Struct("<IIIIIII")
_STATISTICS_BODY = struct.Struct("<III")
_OPTION = struct.Struct("<HH")
_PADDING: Final = (b"", b"\0", b"\0\0", b"\0\0\0")


@unique
class Direction(IntEnum):
    """Of a packet on its interface, as the low bits of epb_flags (section 4.3.1)."""

    INBOUND = 1
    OUTBOUND = 2


def section(application: str, system: str) -> bytes:
    """Return the header of a file (section 4.1), whose length nobody knows yet."""
    options = _text(_SHB_OS, system) + _text(_SHB_APPLICATION, application)
    return _block(_SECTION, _SECTION_BODY.pack(_BYTE_ORDER, 1, 0, _LENGTH_UNKNOWN), options)


def interface(name: str, description: str, snap_bytes: int) -> bytes:
    """Return the description of the next interface (section 4.2): of IP packets, with times in nanoseconds."""
    options = _text(_IF_NAME, name) + _text(_IF_DESCRIPTION, description) + _option(_IF_TSRESOL, _NANOSECONDS)
    return _block(_INTERFACE, _INTERFACE_BODY.pack(LINKTYPE_RAW, 0, snap_bytes), options)


def packet_options(direction: Direction, comment: str) -> bytes:
    """Return what is said of a packet beside itself; for many packets at once, since it is the dear part."""
    options = _text(_COMMENT, comment) + _option(_EPB_FLAGS, direction.to_bytes(4, "little"))
    return options + _OPTION.pack(_END_OF_OPTIONS, 0)


def packet(number: int, time_ns: int, found: bytes, packet_bytes: int, options: bytes) -> bytes:
    """Return a packet of that interface (section 4.3), of which the file has the first bytes; time since 1970-01-01 UTC.

    `options` are of `packet_options`.
    """
    size = len(found)
    padding = -size & 3
    block_bytes = _PACKET_HEAD.size + size + padding + len(options) + _TRAILER.size
    head = _PACKET_HEAD.pack(
        _PACKET, block_bytes, number, time_ns >> 32, time_ns & 0xFFFFFFFF, size, max(packet_bytes, size)
    )
    return b"".join((head, found, _PADDING[padding], options, _TRAILER.pack(block_bytes)))


def statistics(number: int, started_ns: int, ended_ns: int, delivered: int, lost: int, comment: str) -> bytes:
    """Return what was counted of that interface (section 4.6)."""
    body = _STATISTICS_BODY.pack(number, ended_ns >> 32, ended_ns & 0xFFFFFFFF)
    options = b"".join(
        (
            _text(_COMMENT, comment),
            _option(_ISB_START, _time(started_ns)),
            _option(_ISB_END, _time(ended_ns)),
            _option(_ISB_DROPPED, lost.to_bytes(8, "little")),
            _option(_ISB_DELIVERED, delivered.to_bytes(8, "little")),
        )
    )
    return _block(_STATISTICS, body, options)


def _time(time_ns: int) -> bytes:
    return struct.pack("<II", time_ns >> 32, time_ns & 0xFFFFFFFF)


def _block(kind: int, body: bytes, options: bytes) -> bytes:
    """Frame a body, itself padded, and its options (section 3.1)."""
    if options:
        options += _OPTION.pack(_END_OF_OPTIONS, 0)
    size = _FRAME.size + len(body) + len(options) + _TRAILER.size
    return b"".join((_FRAME.pack(kind, size), body, options, _TRAILER.pack(size)))


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value + _PADDING[-len(value) & 3]


def _text(code: int, text: str) -> bytes:
    """Return a UTF-8 option, none of an empty text; what is too long is cut between characters."""
    value = text.encode(errors="replace")[:_MOST_TEXT_BYTES].decode(errors="ignore").encode()
    return _option(code, value) if value else b""
