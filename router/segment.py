"""Cut super-packets into trains of true inner packets, and join trains back into super-packets. Pure.

    cut    frame from a TUN (virtio header + IP packet up to 64 KiB)
             → headers of a middle and of the last segment, written once
             → numpy lays them and the payload out as rows of equal length: one train, one UDP_SEGMENT send
    join   train from UDP_GRO (rows of equal length, the last may be shorter)
             → the longest run of rows that continue the first row
             → virtio header + first header + payloads side by side: one TUN write

What a kernel's GSO and GRO do (net/ipv4/tcp_offload.c, net/ipv4/udp_offload.c), done outside it. The L4 checksum stays
partial the whole way, so nobody sums a payload here.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from router import geneve
from router.packet import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    IPV4_BYTES,
    IPV6_BYTES,
    NEEDS_CSUM,
    TCP,
    TCP_CSUM_OFFSET,
    UDP,
    UDP_CSUM_OFFSET,
    VNET_BYTES,
    IpHeader,
    VnetHeader,
    checksum,
    finish_checksum,
    parse_ip,
)

_Bytes = npt.NDArray[np.uint8]

MAX_PACKET_BYTES = 65535
MAX_TRAIN_BYTES = 65507
"""Most bytes of one UDP send over IPv4 (65535 − 20 − 8); one bound for both families."""
UDP_BYTES = 8

_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_ACK, _ECE = 0x10, 0x40
_U16 = struct.Struct(">H")


class Train(NamedTuple):
    """Datagrams side by side, all of `segment_bytes` but the last, which may be shorter: one UDP_SEGMENT send."""

    datagrams: memoryview
    segment_bytes: int
    count: int


class Shape(NamedTuple):
    """Where the headers of a TCP or UDP packet end. Offsets count from the IP header."""

    l4: int
    header_bytes: int
    csum_offset: int

    @property
    def is_tcp(self) -> bool:
        """Tell TCP from UDP."""
        return self.csum_offset == TCP_CSUM_OFFSET


def shape_of(packet: memoryview, header: IpHeader, csum_start: int, csum_offset: int) -> Shape | None:
    """Find the end of the L4 header; None unless this is a whole TCP or UDP header where the checksum offsets say so."""
    if header.fragment or csum_start < header.header_bytes:
        return None
    if csum_offset == TCP_CSUM_OFFSET:
        protocol, minimum = TCP, 20
    elif csum_offset == UDP_CSUM_OFFSET:
        protocol, minimum = UDP, UDP_BYTES
    else:
        return None
    # An IPv6 packet may have extension headers before csum_start; they are copied to every segment as they are.
    if (csum_start == header.header_bytes and header.protocol != protocol) or csum_start + minimum > len(packet):
        return None
    if header.version == 4 and csum_start != header.header_bytes:
        return None
    size = (packet[csum_start + 12] >> 4) << 2 if protocol == TCP else UDP_BYTES
    if size < minimum or csum_start + size > len(packet):
        return None
    return Shape(csum_start, csum_start + size, csum_offset)


def packets_in(packet_bytes: int, shape: Shape, gso_size: int) -> int:
    """Return how many packets a super-packet stands for; one without payload is one."""
    return max(1, -(-(packet_bytes - shape.header_bytes) // gso_size))


def gso_shape(packet: memoryview, header: IpHeader, vnet: VnetHeader) -> Shape | None:
    """Check a super-packet's virtio header against its bytes; None when they do not belong together."""
    shape = shape_of(packet, header, vnet.csum_start, vnet.csum_offset)
    if shape is None or not vnet.gso_size or not vnet.flags & NEEDS_CSUM:
        return None
    kind = vnet.gso_type & ~GSO_ECN
    if shape.is_tcp:
        expected = GSO_TCPV4 if header.version == 4 else GSO_TCPV6
    else:
        expected = GSO_UDP_L4
    return shape if kind == expected else None


def _shift_sum(value: int, by: int) -> int:
    """Add a signed number to a partial checksum, staying in 1..0xFFFF."""
    return (value + by) % 0xFFFF or 0xFFFF


def _set_lengths(header: bytearray, at: int, version: int, shape: Shape, was_bytes: int, payload_bytes: int) -> None:
    """Make the headers at `at` (IP to L4) those of a packet of that payload, their lengths and sums changed to fit."""
    size = shape.header_bytes + payload_bytes
    if version == 4:
        _U16.pack_into(header, at + 2, size)
        _U16.pack_into(header, at + 10, 0)
        ihl = (header[at] & 15) << 2
        _U16.pack_into(header, at + 10, checksum(header[at : at + ihl]))
    else:
        _U16.pack_into(header, at + 4, size - IPV6_BYTES)
    l4 = at + shape.l4
    if not shape.is_tcp:
        _U16.pack_into(header, l4 + 4, UDP_BYTES + payload_bytes)
    where = l4 + shape.csum_offset
    (partial,) = _U16.unpack_from(header, where)
    _U16.pack_into(header, where, _shift_sum(partial, size - was_bytes))


class _Rows:
    """Views of the outgoing buffer as rows of one length: made once a shape, used for every train of it."""

    __slots__ = ("headers", "payload", "index", "sequence", "limit", "steps", "counter", "row_bytes")

    def __init__(self, out: bytearray, row_bytes: int, header_bytes: int, sequence_at: int, step: int, limit: int):
        self.limit = max(1, min(limit, MAX_TRAIN_BYTES // row_bytes))
        self.row_bytes = row_bytes
        rows = np.frombuffer(out, np.uint8, self.limit * row_bytes).reshape(self.limit, row_bytes)
        self.headers = rows[:, :header_bytes]
        self.payload = rows[:, header_bytes:]
        self.index = rows[:, geneve.INDEX_OFFSET]
        self.sequence = np.ndarray((self.limit,), ">u4", out, sequence_at, (row_bytes,))
        self.steps = np.arange(self.limit, dtype=np.uint32) * np.uint32(step)
        self.counter = np.arange(self.limit, dtype=np.uint8)


class Splitter:
    """Cuts super-packets into trains. Not for two threads: the trains lie in one buffer, valid until the next call."""

    _LAYOUTS = 256

    def __init__(self, vni: int, max_segments: int = 128) -> None:
        self._vni = vni
        self._max_segments = max_segments
        self._out = bytearray(MAX_PACKET_BYTES + 1)
        self._view = memoryview(self._out)
        self._layouts: dict[tuple[int, int, int, int], _Rows] = {}
        self._frame_id = 0

    def split(
        self, packet: memoryview, header: IpHeader, vnet: VnetHeader, shape: Shape, offload: bool = True
    ) -> list[Train]:
        """Cut a super-packet checked by `gso_shape` into trains of encapsulated packets, checksums partial.

        With `offload` false the datagrams are plain Geneve with finished checksums. Trains beyond the first lie in
        buffers of their own.
        """
        encap_bytes = geneve.HEADER_BYTES if offload else geneve.BASE_BYTES
        rows = self._rows(encap_bytes, shape, vnet.gso_size)
        payload_bytes = len(packet) - shape.header_bytes
        per_train = rows.limit * vnet.gso_size
        if payload_bytes <= per_train:
            return [self._train(packet, header, vnet, shape, rows, encap_bytes, 0, payload_bytes)]
        trains = []
        for start in range(0, payload_bytes, per_train):
            size = min(per_train, payload_bytes - start)
            train = self._train(packet, header, vnet, shape, rows, encap_bytes, start, size)
            trains.append(train._replace(datagrams=memoryview(bytes(train.datagrams))))
        return trains

    def _rows(self, encap_bytes: int, shape: Shape, gso_size: int) -> _Rows:
        key = (encap_bytes, shape.l4, shape.header_bytes, gso_size)
        rows = self._layouts.get(key)
        if rows is None:
            if len(self._layouts) >= self._LAYOUTS:
                self._layouts.clear()
            header_bytes = encap_bytes + shape.header_bytes
            rows = self._layouts[key] = _Rows(
                self._out,
                header_bytes + gso_size,
                header_bytes,
                encap_bytes + shape.l4 + 4,
                gso_size,
                self._max_segments,
            )
        return rows

    def _train(
        self, packet: memoryview, header: IpHeader, vnet: VnetHeader, shape: Shape, rows: _Rows,
        encap_bytes: int, start: int, size: int,
    ) -> Train:  # fmt: skip
        """Lay out the payload bytes [start, start + size) of the packet as one train."""
        step = vnet.gso_size
        full, tail = divmod(size, step)
        count = full + (tail > 0) or 1
        ends_packet = shape.header_bytes + start + size == len(packet)

        middle = self._encapsulation(header, shape, encap_bytes) + bytearray(packet[: shape.header_bytes])
        if shape.is_tcp:
            flags_at = encap_bytes + shape.l4 + 13
            flags = middle[flags_at]
            middle[flags_at] = flags & ~(_FIN | _PSH | _CWR)
        last = bytearray(middle)
        _set_lengths(last, encap_bytes, header.version, shape, len(packet), size - (count - 1) * step)
        if encap_bytes == geneve.HEADER_BYTES:
            last[geneve.FLAGS_OFFSET] |= geneve.LAST_SEGMENT

        if count > 1:
            _set_lengths(middle, encap_bytes, header.version, shape, len(packet), step)
            rows.headers[: count - 1] = np.frombuffer(middle, np.uint8)
        out = self._out
        last_at = (count - 1) * rows.row_bytes
        out[last_at : last_at + len(last)] = last
        if encap_bytes == geneve.HEADER_BYTES:
            rows.index[:count] = rows.counter[:count]

        payload = np.frombuffer(packet, np.uint8, size, shape.header_bytes + start)
        if full:
            rows.payload[:full] = payload[: full * step].reshape(full, step)
        end = last_at + len(last) + size - (count - 1) * step
        if tail:
            out[end - tail : end] = packet[len(packet) - tail :] if ends_packet else payload[full * step :].tobytes()

        if shape.is_tcp:
            (sequence,) = struct.unpack_from(">I", packet, shape.l4 + 4)
            rows.sequence[:count] = rows.steps[:count] + np.uint32((sequence + start) & 0xFFFFFFFF)
            if not start:
                out[flags_at] |= flags & _CWR
            if ends_packet:
                out[last_at + flags_at] |= flags & (_FIN | _PSH)
        if header.may_fragment:
            self._number(rows, encap_bytes, count, start // step)
        if encap_bytes == geneve.BASE_BYTES:
            for at in range(0, end, rows.row_bytes):
                finish_checksum(
                    self._view[at + encap_bytes : min(at + rows.row_bytes, end)], shape.l4, shape.csum_offset
                )
        return Train(self._view[:end], rows.row_bytes, count)

    def _encapsulation(self, header: IpHeader, shape: Shape, encap_bytes: int) -> bytearray:
        if encap_bytes == geneve.BASE_BYTES:
            return bytearray(geneve.encode_plain(self._vni, header.version))
        self._frame_id = (self._frame_id + 1) & 0xFFFF
        return bytearray(
            geneve.encode(
                self._vni,
                header.version,
                geneve.PARTIAL_CHECKSUM | geneve.SEGMENT,
                shape.csum_offset,
                shape.l4,
                self._frame_id,
            )  # fmt: skip
        )

    def _number(self, rows: _Rows, encap_bytes: int, count: int, first: int) -> None:
        """Give every segment its own IPv4 identification, as they may be fragmented (RFC 6864 section 4)."""
        for index in range(count):
            at = index * rows.row_bytes + encap_bytes
            (identification,) = _U16.unpack_from(self._out, at + 4)
            _U16.pack_into(self._out, at + 4, (identification + first + index) & 0xFFFF)
            _U16.pack_into(self._out, at + 10, 0)
            ihl = (self._out[at] & 15) << 2
            _U16.pack_into(self._out, at + 10, checksum(self._out[at : at + ihl]))


class _Pattern(NamedTuple):
    """Which header bits of a row must equal the first row's for it to continue the run."""

    same: _Bytes
    """Mask for a middle row."""
    closing: int
    """Mask for a last row, as a big-endian integer: lengths, sums and closing flags may differ."""


class Merger:
    """Joins neighbouring packets of one flow into super-packets. Not for two threads: one buffer, as in Splitter."""

    _PATTERNS = 256

    def __init__(self) -> None:
        self._out = bytearray(VNET_BYTES + MAX_PACKET_BYTES)
        self._view = memoryview(self._out)
        self._bytes = np.frombuffer(self._out, np.uint8)
        self._patterns: dict[tuple[int, Shape, int, bool], _Pattern] = {}
        self._steps = np.arange(MAX_PACKET_BYTES, dtype=np.uint32)

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
        if full < 1 or payload_bytes <= 0 or full + (tail > 0) < 2:
            return 1
        if shape.is_tcp and train.datagrams[packet + shape.l4 + 13] & ~_ECE != _ACK:
            return 1
        full = min(full, (MAX_PACKET_BYTES - shape.header_bytes) // payload_bytes)
        pattern = self._pattern(encap.header_bytes, shape, header)
        count = self._middle(train, at, full, headers, pattern, encap, shape, payload_bytes)
        after = at + count * step
        more = min(step, len(train.datagrams) - after)
        if count * payload_bytes + shape.header_bytes + more - headers > MAX_PACKET_BYTES:
            return count
        if more > headers and self._closes(train, at, after, more, count, encap, header, shape, pattern):
            count += 1
        return count

    def _middle(
        self, train: Train, at: int, full: int, headers: int, pattern: _Pattern,
        encap: geneve.Encapsulation, shape: Shape, payload_bytes: int,
    ) -> int:  # fmt: skip
        """Count the rows, the first included, that continue it with full length and no closing flag."""
        if full < 2:
            return 1
        step = train.segment_bytes
        rows = np.frombuffer(train.datagrams, np.uint8, full * step, at).reshape(full, step)[:, :headers]
        differs = (rows[1:] ^ rows[0]) & pattern.same
        if shape.is_tcp:
            sequence = np.ndarray((full,), ">u4", train.datagrams, at + encap.header_bytes + shape.l4 + 4, (step,))
            breaks = sequence[1:] - sequence[0] != self._steps[payload_bytes : full * payload_bytes : payload_bytes]
            if not differs.any() and not breaks.any():
                return full
            breaks |= differs.any(axis=1)
        else:
            if not differs.any():
                return full
            breaks = differs.any(axis=1)
        return 1 + int(breaks.argmax())

    def _closes(
        self, train: Train, at: int, after: int, size: int, count: int,
        encap: geneve.Encapsulation, header: IpHeader, shape: Shape, pattern: _Pattern,
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
        elif _U16.unpack_from(view, its + 4)[0] != size - encap.header_bytes - shape.l4:
            return False
        (was,) = _U16.unpack_from(view, mine + shape.csum_offset)
        (now,) = _U16.unpack_from(view, its + shape.csum_offset)
        return _shift_sum(was, size - train.segment_bytes) == (now or 0xFFFF)

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
        first = bytearray(train.datagrams[ip : ip + shape.header_bytes])
        _set_lengths(first, 0, header.version, shape, payload_bytes + shape.header_bytes, size)
        if shape.is_tcp:
            first[shape.l4 + 13] |= train.datagrams[last_at + encap.header_bytes + shape.l4 + 13] & (_FIN | _PSH)
            gso_type = GSO_TCPV4 if header.version == 4 else GSO_TCPV6
        else:
            gso_type = GSO_UDP_L4
        start = VNET_BYTES + shape.header_bytes
        VnetHeader(NEEDS_CSUM, gso_type, shape.header_bytes, payload_bytes, shape.l4, shape.csum_offset).write(out, 0)
        out[VNET_BYTES:start] = first
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
    if header.version == 4 and header.may_fragment:
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
        closing[l4 + 13] = ~(_FIN | _PSH) & 0xFF
    else:
        closing[l4 + 4 : l4 + 6] = 0
    return _Pattern(same, int.from_bytes(closing.tobytes(), "big"))


def plain_vnet(encap: geneve.Encapsulation) -> VnetHeader:
    """Return the virtio header for one decapsulated packet: its checksum partial if the option says so."""
    if encap.flags & geneve.PARTIAL_CHECKSUM:
        return VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, encap.csum_start, encap.csum_offset)
    return VnetHeader()


__all__ = [
    "IPV4_BYTES", "MAX_TRAIN_BYTES", "Merger", "Shape", "Splitter", "Train", "gso_shape", "packets_in",
    "plain_vnet", "shape_of",
]  # fmt: skip
