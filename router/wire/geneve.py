"""The wire header: Geneve (RFC 8926) with one option of Podwire's own. Pure.

    0                   1                   2                   3
    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
   |Ver|  Opt Len  |O|C|    Rsvd.  |  Protocol 0x0800 or 0x86DD    |
   |       Virtual Network Identifier (VNI)        |    Reserved   |
   |     option class 0xFFFF       |   type 0x81   | Rsvd|   2     |
   |     flags     |  csum_offset  |          csum_start           |
   |           frame id            |     index     |     epoch     |

The option is critical (C bit, high bit of the type): who does not understand it must not deliver a packet whose
checksum is partial (RFC 8926 section 3.5).

Epoch is the sender's own, modulo 256: how often its node has taken its subnets anew. Who sends with an older one than the
table says has lost them since, and does not know it yet.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from router.model import DropReason
from router.wire.packet import Buffer

BASE_BYTES = 8
OPTION_BYTES = 12
HEADER_BYTES = BASE_BYTES + OPTION_BYTES

OPTION_CLASS = 0xFFFF
OPTION_TYPE = 0x81
_OPTION_HEAD = OPTION_CLASS << 16 | OPTION_TYPE << 8 | 2

PARTIAL_CHECKSUM = 1
SEGMENT = 2
LAST_SEGMENT = 4

PROTOCOL = {4: 0x0800, 6: 0x86DD}

INDEX_OFFSET = 18
"""Where the index byte stands in an encapsulated datagram."""
EPOCH_OFFSET = 19
FLAGS_OFFSET = 12

_BASE = struct.Struct(">BBHI")
_FULL = struct.Struct(">BBHIIBBHHBB")


class Encapsulation(NamedTuple):
    """A decoded header; the inner packet starts `header_bytes` into the datagram."""

    header_bytes: int
    ip_version: int
    flags: int = 0
    csum_offset: int = 0
    csum_start: int = 0
    frame_id: int = 0
    row: int = 0
    """The index on the wire: the segment's place in its train."""
    epoch: int | None = None
    """Of the sender, modulo 256; None without Podwire's option."""

    def is_older(self, epoch: int) -> bool:
        """Tell whether it was sent in an earlier epoch than that: behind it by serial number arithmetic (RFC 1982)."""
        return self.epoch is not None and (self.epoch - epoch) & 0x80 != 0


def encode(
    vni: int,
    ip_version: int,
    flags: int = 0,
    csum_offset: int = 0,
    csum_start: int = 0,
    frame_id: int = 0,
    index: int = 0,
    epoch: int = 0,
) -> bytes:
    """Return the 20-byte header with Podwire's option; `epoch` is modulo 256."""
    return _FULL.pack(
        OPTION_BYTES >> 2, 0x40, PROTOCOL[ip_version], vni << 8, _OPTION_HEAD,
        flags, csum_offset, csum_start, frame_id, index, epoch,
    )  # fmt: skip


def encode_plain(vni: int, ip_version: int) -> bytes:
    """Return the 8-byte header without options, for a peer that does not know ours."""
    return _BASE.pack(0, 0, PROTOCOL[ip_version], vni << 8)


def decode(buffer: Buffer, start: int, end: int, vni: int) -> Encapsulation | DropReason:
    """Check the header of the datagram in buffer[start:end], or say why it is dropped.

    A control packet of this network is BAD_ENCAPSULATION: it holds no packet, but may be a probe (probe.py).
    """
    if end - start < BASE_BYTES:
        return DropReason.BAD_ENCAPSULATION
    first, bits, protocol, network = _BASE.unpack_from(buffer, start)
    if first >> 6:  # a version not known
        return DropReason.BAD_ENCAPSULATION
    if network >> 8 != vni:
        return DropReason.WRONG_NETWORK
    ip_version = 4 if protocol == 0x0800 else 6 if protocol == 0x86DD else 0
    header_bytes = BASE_BYTES + ((first & 0x3F) << 2)
    if bits & 0x80 or not ip_version or end - start < header_bytes:
        return DropReason.BAD_ENCAPSULATION
    if header_bytes == BASE_BYTES:
        return Encapsulation(BASE_BYTES, ip_version)
    if header_bytes == HEADER_BYTES:
        _, _, _, _, head, flags, csum_offset, csum_start, frame_id, index, epoch = _FULL.unpack_from(buffer, start)
        if head & 0xFFFFFF1F == _OPTION_HEAD:
            return Encapsulation(HEADER_BYTES, ip_version, flags, csum_offset, csum_start, frame_id, index, epoch)
    return _walk_options(buffer, start, header_bytes, ip_version)


def _walk_options(buffer: Buffer, start: int, header_bytes: int, ip_version: int) -> Encapsulation | DropReason:
    """Decode a header with options of others beside or instead of ours (RFC 8926 section 3.5)."""
    found = Encapsulation(header_bytes, ip_version)
    at, end = start + BASE_BYTES, start + header_bytes
    while at < end:
        if at + 4 > end:
            return DropReason.BAD_ENCAPSULATION
        option_class, kind, length = struct.unpack_from(">HBB", buffer, at)
        after = at + 4 + ((length & 0x1F) << 2)
        if after > end:
            return DropReason.BAD_ENCAPSULATION
        if option_class == OPTION_CLASS and kind == OPTION_TYPE and after - at == OPTION_BYTES:
            found = Encapsulation(header_bytes, ip_version, *struct.unpack_from(">BBHHBB", buffer, at + 4))
        elif kind & 0x80:
            return DropReason.BAD_ENCAPSULATION
        at = after
    return found
