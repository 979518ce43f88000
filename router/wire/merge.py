"""Join trains into super-packets. Pure.

    train (rows of equal length, the last may be shorter)
      → the longest run of rows that continue the first: same flow, next sequence number, nothing else different
      → virtio header + first header + payloads side by side: one TUN write

What is not the same flow's next packet, bit for bit, ends the run: joining must never change what arrives.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from router.wire import geneve
from router.wire.packet import (
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    VNET_BYTES,
    IpHeader,
    parse_ip,
    write_vnet,
)
from router.wire.segment import ACK, ECE, FIN, MAX_PACKET_BYTES, PSH, U16, Shape, Train, set_lengths, shift_sum

_Bytes = npt.NDArray[np.uint8]

_INDICES = bytes(range(256))
_FRAME_ID_TO_EPOCH = range(geneve.INDEX_OFFSET - 2, geneve.EPOCH_OFFSET + 1)


class _Pattern(NamedTuple):
    """Which header bits of a row must equal the first row's for it to continue the run."""

    same: _Bytes
    """Mask for a middle row."""
    closing: int
    """Mask for a last row, as a big-endian integer: lengths, sums and closing flags may differ."""


class Merger:
    """Joins neighbouring packets of one flow into super-packets. Not for two threads: one buffer, as in Splitter."""

    _PATTERNS = 256

    def __init__(self, max_segments: int = 128) -> None:
        """Join at most `max_segments` UDP datagrams: more the kernel refuses (virtio_net_hdr_to_skb, UDP_MAX_SEGMENTS)."""
        self._max_segments = max_segments
        self._out = bytearray(VNET_BYTES + MAX_PACKET_BYTES)
        self._view = memoryview(self._out)
        self._bytes = np.frombuffer(self._out, np.uint8)
        self._patterns: dict[tuple[int, Shape, int, bool], _Pattern] = {}
        self._steps: dict[int, npt.NDArray[np.uint32]] = {}

    def run(self, train: Train, at: int, encap: geneve.Encapsulation, header: IpHeader, shape: Shape) -> int:
        """Return how many datagrams from byte `at` of the train on make one super-packet; 1 when only the first.

        `encap`, `header` and `shape` are those of the datagram at `at`, already checked.
        """
        step = train.segment_bytes
        left = len(train.datagrams) - at
        full, tail = divmod(left, step)
        headers = encap.header_bytes + shape.header_bytes
        payload_bytes = step - headers
        packet = at + encap.header_bytes
        if full < 1 or payload_bytes <= 0 or full + (tail > 0) < 2 or encap.header_bytes != geneve.HEADER_BYTES:
            return 1  # with options of others the masks would lie elsewhere
        if shape.is_tcp:
            if train.datagrams[packet + shape.l4 + 13] & ~ECE != ACK:
                return 1
        elif U16.unpack_from(train.datagrams, packet + shape.l4 + 4)[0] != step - encap.header_bytes - shape.l4:
            return 1
        full = min(full, (MAX_PACKET_BYTES - shape.header_bytes) // payload_bytes)
        most = full + 1 if shape.is_tcp else self._max_segments
        full = min(full, most)
        if encap.flags & geneve.SEGMENT:
            count = self._of_one_frame(train, at, encap, min(most, full + 1))
            start = at + (count - 1) * step
            end = min(start + step, len(train.datagrams))
            # A shorter last row must be whole, and as long as it says.
            if shape.header_bytes + (count - 1) * payload_bytes + end - start - headers > MAX_PACKET_BYTES:
                return count - 1
            short = end - start < step
            if short and (end - start <= headers or not parse_ip(train.datagrams, start + encap.header_bytes, end)):
                return count - 1
            return count
        if header.version == 4:
            full = self._rightly_numbered(train, packet, full, header.may_fragment)
        pattern = self._pattern(encap.header_bytes, shape, header)
        # The last row often has closing flags of its own, so it is not asked to be a middle one.
        middle = full - 1 if full * step == left else full
        count = self._middle(train, at, middle, headers, pattern, encap, shape, payload_bytes)
        after = at + count * step
        more = min(step, len(train.datagrams) - after)
        if count * payload_bytes + shape.header_bytes + more - headers > MAX_PACKET_BYTES:
            return count
        if header.may_fragment and not self._numbered(train, packet, count):
            return count
        if count < most and more > headers and self._closes(train, at, after, more, count, encap, shape, pattern):
            count += 1
        return count

    @staticmethod
    def _of_one_frame(train: Train, at: int, encap: geneve.Encapsulation, most: int) -> int:
        """Count the datagrams that the option says are the next segments of one super-packet.

        Only the option is looked at: the sending router made all their headers from one. If it lies, it puts bytes of
        its own into a flow of its own, whose source was checked; it could have sent them so in the first place.
        """
        view, step = train.datagrams, train.segment_bytes
        tail = (len(view) - at) % step
        if tail < encap.header_bytes:
            view = view[: len(view) - tail]
        flags = view[at + geneve.FLAGS_OFFSET :: step].tobytes()[:most]
        last = flags.find(encap.flags | geneve.LAST_SEGMENT)
        rows = last + 1 if last >= 0 else len(flags)
        high, low, index, epoch = (view[at + place :: step].tobytes()[:rows] for place in _FRAME_ID_TO_EPOCH)
        if (
            (flags[:last] if last >= 0 else flags).strip(flags[:1]) == b""
            and high == high[:1] * rows
            and low == low[:1] * rows
            and index == _INDICES[encap.row : encap.row + rows]
            and epoch == epoch[:1] * rows
        ):
            return rows
        # Something was lost or reordered on the way: as far as it goes.
        for row in range(1, rows):
            known = (high[row], low[row], index[row], epoch[row])
            if known != (high[0], low[0], encap.row + row, epoch[0]) or (flags[row] != flags[0] and row != last):
                return row
        return rows

    @staticmethod
    def _rightly_numbered(train: Train, packet: int, full: int, may_fragment: bool) -> int:
        """Count the rows whose IPv4 checksum fits their identification: the two differ by row, their sum does not.

        A packet that may be fragmented must also have the number that the kernel will give it when it cuts the
        super-packet (inet_gso_segment); what may not has a number without meaning (RFC 6864 section 4.1).
        """
        shape, strides = (full,), (train.segment_bytes,)
        identifications = np.ndarray(shape, ">u2", train.datagrams, packet + 4, strides).astype(np.uint32)
        sums = (identifications + np.ndarray(shape, ">u2", train.datagrams, packet + 10, strides)) % 0xFFFF
        wrong = sums != sums[0]
        if may_fragment:
            wrong |= identifications != (identifications[0] + np.arange(full, dtype=np.uint32)) & 0xFFFF
        return int(wrong.argmax()) or full

    @staticmethod
    def _numbered(train: Train, packet: int, count: int) -> bool:
        """Tell whether the row after `count` rows, if there is one, has the identification that comes next."""
        at = packet + count * train.segment_bytes + 4
        if at + 2 > len(train.datagrams):
            return False
        (first,) = U16.unpack_from(train.datagrams, packet + 4)
        (own,) = U16.unpack_from(train.datagrams, at)
        return bool(own == (first + count) & 0xFFFF)

    def _middle(
        self, train: Train, at: int, full: int, headers: int, pattern: _Pattern,
        encap: geneve.Encapsulation, shape: Shape, payload_bytes: int,
    ) -> int:  # fmt: skip
        """Count the rows, the first included, that continue it with full length and no closing flag."""
        if full < 2:
            return 1
        step = train.segment_bytes
        rows = np.frombuffer(train.datagrams, np.uint8, full * step, at).reshape(full, step)[:, :headers]
        # Masked headers side by side are compared as one string: cheaper than numpy's element by element.
        masked = rows & pattern.same
        text = masked.tobytes()
        equal = text == text[:headers] * full
        if not shape.is_tcp:
            return full if equal else 1 + int((masked[1:] != masked[0]).any(axis=1).argmax())
        sequence = np.ndarray((full,), ">u4", train.datagrams, at + encap.header_bytes + shape.l4 + 4, (step,))
        ahead = sequence.astype(np.uint32)
        ahead -= ahead[0]
        expected = self._steps_of(payload_bytes)[:full]
        if equal and ahead.tobytes() == expected.tobytes():
            return full
        breaks = (masked != masked[0]).any(axis=1) | (ahead != expected)
        return int(breaks.argmax())

    def _steps_of(self, payload_bytes: int) -> npt.NDArray[np.uint32]:
        """Return how far each row of a run is ahead of the first in sequence numbers."""
        steps = self._steps.get(payload_bytes)
        if steps is None:
            if len(self._steps) >= self._PATTERNS:
                self._steps.clear()
            rows = MAX_PACKET_BYTES // payload_bytes + 1
            steps = self._steps[payload_bytes] = np.arange(rows, dtype=np.uint32) * np.uint32(payload_bytes)
        return steps

    def _closes(
        self, train: Train, at: int, after: int, size: int, count: int,
        encap: geneve.Encapsulation, shape: Shape, pattern: _Pattern,
    ) -> bool:  # fmt: skip
        """Tell whether the datagram at `after`, shorter or with closing flags, is the last of the run."""
        view = train.datagrams
        headers = encap.header_bytes + shape.header_bytes
        first = int.from_bytes(view[at : at + headers], "big")
        other = int.from_bytes(view[after : after + headers], "big")
        if (first ^ other) & pattern.closing:
            return False
        ip = after + encap.header_bytes
        if parse_ip(view, ip, after + size) is None:
            return False
        mine = at + encap.header_bytes + shape.l4
        its = ip + shape.l4
        if shape.is_tcp:
            payload_bytes = train.segment_bytes - headers
            (start,) = struct.unpack_from(">I", view, mine + 4)
            (sequence,) = struct.unpack_from(">I", view, its + 4)
            if (sequence - start) & 0xFFFFFFFF != count * payload_bytes:
                return False
        elif U16.unpack_from(view, its + 4)[0] != size - encap.header_bytes - shape.l4:
            return False
        (was,) = U16.unpack_from(view, mine + shape.csum_offset)
        (now,) = U16.unpack_from(view, its + shape.csum_offset)
        return shift_sum(was, size - train.segment_bytes) == (now or 0xFFFF)

    def _pattern(self, encap_bytes: int, shape: Shape, header: IpHeader) -> _Pattern:
        key = (encap_bytes, shape, header.version, header.may_fragment)
        pattern = self._patterns.get(key)
        if pattern is None:
            if len(self._patterns) >= self._PATTERNS:
                self._patterns.clear()
            pattern = self._patterns[key] = _make_pattern(encap_bytes, shape, header)
        return pattern

    def merge(
        self, train: Train, at: int, count: int, encap: geneve.Encapsulation, header: IpHeader, shape: Shape
    ) -> memoryview:
        """Join `count` datagrams from byte `at` on, as `run` found them, into one frame with its virtio header.

        The hop limit and everything else not a length, sum or closing flag is the first packet's.
        """
        step = train.segment_bytes
        headers = encap.header_bytes + shape.header_bytes
        payload_bytes = step - headers
        last_at = at + (count - 1) * step
        last_bytes = min(step, len(train.datagrams) - last_at) - headers
        size = (count - 1) * payload_bytes + last_bytes
        ip = at + encap.header_bytes

        out = self._out
        start = VNET_BYTES + shape.header_bytes
        out[VNET_BYTES:start] = train.datagrams[ip : ip + shape.header_bytes]
        set_lengths(out, VNET_BYTES, header.version, shape, payload_bytes + shape.header_bytes, size)
        if shape.is_tcp:
            flags_at = shape.l4 + 13
            out[VNET_BYTES + flags_at] |= train.datagrams[last_at + encap.header_bytes + flags_at] & (FIN | PSH)
            gso_type = GSO_TCPV4 if header.version == 4 else GSO_TCPV6
        else:
            gso_type = GSO_UDP_L4
        write_vnet(out, 0, NEEDS_CSUM, gso_type, shape.header_bytes, payload_bytes, shape.l4, shape.csum_offset)
        middle = count if last_bytes == payload_bytes else count - 1
        rows = np.frombuffer(train.datagrams, np.uint8, middle * step, at).reshape(middle, step)[:, headers:]
        end = start + middle * payload_bytes
        self._bytes[start:end].reshape(middle, payload_bytes)[:] = rows
        if middle < count:
            out[end : end + last_bytes] = train.datagrams[last_at + headers : last_at + headers + last_bytes]
            end += last_bytes
        return self._view[:end]


def _make_pattern(encap_bytes: int, shape: Shape, header: IpHeader) -> _Pattern:
    """Build the masks of bits that must agree within a run."""
    same = np.full(encap_bytes + shape.header_bytes, 0xFF, np.uint8)
    ip, l4 = encap_bytes, encap_bytes + shape.l4
    same[geneve.INDEX_OFFSET - 2 : geneve.INDEX_OFFSET + 1] = 0  # frame id, index: whose frame it was is no matter
    same[geneve.FLAGS_OFFSET] = geneve.PARTIAL_CHECKSUM
    if header.version == 4:
        same[ip + 4 : ip + 6] = 0
        same[ip + 10 : ip + 12] = 0
    if shape.is_tcp:
        same[l4 + 4 : l4 + 8] = 0
    closing = same.copy()
    if header.version == 4:
        closing[ip + 2 : ip + 4] = 0
        closing[ip + 10 : ip + 12] = 0
    else:
        closing[ip + 4 : ip + 6] = 0
    closing[l4 + shape.csum_offset : l4 + shape.csum_offset + 2] = 0
    if shape.is_tcp:
        closing[l4 + 13] = ~(FIN | PSH) & 0xFF
    else:
        closing[l4 + 4 : l4 + 6] = 0
    return _Pattern(same, int.from_bytes(closing.tobytes(), "big"))
