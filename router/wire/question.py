"""Questions: control packets that ask a peer what it would do with a packet, and its replies. Pure.

The header is that of a probe (wire/probe.py) with another option type, and after it comes what is said:

    question   first bytes of the inner packet, as the asker would send it; zeros up to `QUESTION_BYTES`
    reply      verdict u8 · 0 u8 · MTU u16 · 0 u16 · three texts, each a length u8 and UTF-8: reason, target, node

A question's `packet_bytes`, how long the packet is said to be, stands before the packet as u16. Questions have one size, which no
reply exceeds: asking in another's name gains nobody any traffic.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from router.wire.packet import Buffer
from router.wire.probe import BITS, CONTROL, FIRST, HEADER_BYTES, option_head

QUESTION, REPLY = 1, 2
OPTION_TYPE = 0x83
QUESTION_BYTES = 512
MOST_BYTES = QUESTION_BYTES
MOST_PACKET_BYTES = 256
"""Most of the inner packet that a question quotes."""
_MOST_TEXT_BYTES = 128

_OPTION_HEAD = option_head(OPTION_TYPE)
_QUOTE = struct.Struct(">HH")
_REPLY = struct.Struct(">BBHH")


class Header(NamedTuple):
    """What questions and replies begin with."""

    kind: int
    size_bytes: int
    """UDP payload of this datagram."""
    sequence: int
    sent_ns: int
    """When the question was sent, by the asker's clock."""


@dataclass(frozen=True, slots=True)
class Question:
    """What would become of this packet, had it come from me?"""

    sequence: int
    sent_ns: int
    packet: bytes
    """Its first bytes, from the IP header on; at most `MOST_PACKET_BYTES`."""
    packet_bytes: int
    """Its whole length."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What would become of it."""

    sequence: int
    sent_ns: int
    """As in the question."""
    verdict: int
    """1 local, 2 tunnel, 3 reject, 4 drop, as in podwire.v1.Verdict; 0: none could be reached."""
    mtu_bytes: int
    """Of the next link; 0 when there is none."""
    reason: str
    target: str
    """Who would get it, in the words of the replying router."""
    node: str
    """Name of the node that replies."""


def encode_question(vni: int, question: Question) -> bytes:
    """Return a datagram of `QUESTION_BYTES`."""
    quoted = question.packet[:MOST_PACKET_BYTES]
    said = _QUOTE.pack(question.packet_bytes, len(quoted)) + quoted
    head = _head(vni, QUESTION, QUESTION_BYTES, question.sequence, question.sent_ns)
    return (head + said).ljust(QUESTION_BYTES, b"\0")


def encode_reply(vni: int, reply: Reply) -> bytes:
    """Return a datagram no longer than a question; texts too long for it are cut."""
    said = _REPLY.pack(reply.verdict, 0, reply.mtu_bytes, 0)
    for text in (reply.reason, reply.target, reply.node):
        cut = text.encode(errors="replace")[:_MOST_TEXT_BYTES].decode(errors="ignore").encode()  # no half letter
        said += bytes((len(cut),)) + cut
    return _head(vni, REPLY, HEADER_BYTES + len(said), reply.sequence, reply.sent_ns) + said


def _head(vni: int, kind: int, size_bytes: int, sequence: int, sent_ns: int) -> bytes:
    return CONTROL.pack(FIRST, BITS, 0, vni << 8, _OPTION_HEAD, kind, 0, size_bytes, sequence, sent_ns)


def decode_header(buffer: Buffer, start: int, end: int) -> Header | None:
    """Read the header of the control packet in buffer[start:end], whose VNI was looked at; None when it is neither."""
    if not HEADER_BYTES < end - start <= MOST_BYTES:
        return None
    first, bits, protocol, _, head, kind, _, size_bytes, sequence, sent_ns = CONTROL.unpack_from(buffer, start)
    if first != FIRST or bits & 0x80 == 0 or protocol or head & 0xFFFFFF1F != _OPTION_HEAD:
        return None
    if end - start != size_bytes or kind not in (QUESTION, REPLY):
        return None
    if kind == QUESTION and size_bytes != QUESTION_BYTES:
        return None
    return Header(kind, size_bytes, sequence, sent_ns)


def decode(datagram: bytes) -> Question | Reply | None:
    """Read a whole question or reply; None when it is not one."""
    header = decode_header(datagram, 0, len(datagram))
    if header is None:
        return None
    said = datagram[HEADER_BYTES:]
    if header.kind == QUESTION:
        packet_bytes, quoted_bytes = _QUOTE.unpack_from(said)
        quoted = said[_QUOTE.size : _QUOTE.size + quoted_bytes]
        if quoted_bytes > min(MOST_PACKET_BYTES, packet_bytes) or len(quoted) < quoted_bytes:
            return None
        return Question(header.sequence, header.sent_ns, quoted, packet_bytes)
    return _decode_reply(header, said)


def _decode_reply(header: Header, said: bytes) -> Reply | None:
    if len(said) < _REPLY.size:
        return None
    verdict, _, mtu_bytes, _ = _REPLY.unpack_from(said)
    texts = []
    at = _REPLY.size
    for _ in range(3):
        if at >= len(said) or at + 1 + said[at] > len(said):
            return None
        text = said[at + 1 : at + 1 + said[at]].decode(errors="replace")
        texts.append("".join(letter if letter.isprintable() else "�" for letter in text))
        at += 1 + said[at]
    return Reply(header.sequence, header.sent_ns, verdict, mtu_bytes, *texts)
