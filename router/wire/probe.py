"""Probes: control packets (RFC 8926 section 3.4, O bit) that ask a peer's data path whether it is there. Pure.

    0                   1                   2                   3
    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
   |Ver|  Opt Len  |1|1|    Rsvd.  |        Protocol 0x0000        |
   |       Virtual Network Identifier (VNI)        |    Reserved   |
   |     option class 0xFFFF       |   type 0x82   | Rsvd|   4     |
   |     kind      |   reserved    |         size in bytes         |
   |                           sequence                            |
   |                sent, in ns of the asker's clock               |
   |                                                               |
   |  zeros, up to `size`: only in a request                       |

A request is as long as the path is asked to carry, and `size` says so; the answer is the header of what arrived, with
another kind. So an answer says that a datagram of that size came through, and is never longer than its request.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from router.wire.packet import Buffer

REQUEST, ANSWER = 1, 2
HEADER_BYTES = 28
KIND_OFFSET = 12
"""Where the kind stands in a datagram."""
OPTION_TYPE = 0x82


def option_head(option_type: int) -> int:
    """Return class, type and length of the option of a control packet."""
    return 0xFFFF << 16 | option_type << 8 | 4


CONTROL = struct.Struct(">BBHIIBBHIQ")
"""The header of our control packets: base header and one option, as above; question.py has another type."""
FIRST, BITS = 5, 0xC0
"""What its first two bytes are, reserved bits left out."""
_OPTION_HEAD = option_head(OPTION_TYPE)


class Probe(NamedTuple):
    """A request or an answer."""

    kind: int
    size_bytes: int
    """UDP payload of the request."""
    sequence: int
    sent_ns: int


def encode(vni: int, probe: Probe) -> bytes:
    """Return a datagram: a request is filled up to its size, an answer is the header alone."""
    header = CONTROL.pack(
        FIRST, BITS, 0, vni << 8, _OPTION_HEAD, probe.kind, 0, probe.size_bytes, probe.sequence, probe.sent_ns
    )
    return header.ljust(probe.size_bytes, b"\0") if probe.kind == REQUEST else header


def answer_to(header: bytes) -> bytes:
    """Return the answer to the request that begins with this header."""
    return header[:KIND_OFFSET] + bytes((ANSWER,)) + header[KIND_OFFSET + 1 :]


def decode(buffer: Buffer, start: int, end: int) -> Probe | None:
    """Read the control packet in buffer[start:end], whose VNI was looked at; None when it is no probe.

    A request must be as long as it says, an answer the header alone.
    """
    if end - start < HEADER_BYTES:
        return None
    first, bits, protocol, _, head, kind, _, size_bytes, sequence, sent_ns = CONTROL.unpack_from(buffer, start)
    if first != FIRST or bits & 0x80 == 0 or protocol or head & 0xFFFFFF1F != _OPTION_HEAD:
        return None
    if end - start != (size_bytes if kind == REQUEST else HEADER_BYTES) or kind not in (REQUEST, ANSWER):
        return None
    if size_bytes < HEADER_BYTES:
        return None
    return Probe(kind, size_bytes, sequence, sent_ns)
