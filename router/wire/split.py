"""Cut super-packets into trains. Pure.

super-packet
→ headers of a middle and of the last segment, written once
→ laid out with the payload as rows of equal length, by numpy: a few array assignments, however many segments
→ one train, or several where it is longer than a send
"""

from __future__ import annotations

import struct

import numpy as np

from router.wire import geneve
from router.wire.packet import IpHeader, VnetHeader, checksum, finish_checksum
from router.wire.segment import CWR, FIN, MAX_PACKET_BYTES, MAX_TRAIN_BYTES, PSH, U16, Shape, Train, set_lengths

_SEQUENCE = struct.Struct(">I")


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
        self, packet: memoryview, header: IpHeader, vnet: VnetHeader, shape: Shape, offload: bool = True, epoch: int = 0
    ) -> list[Train]:
        """Cut a super-packet checked by `gso_shape` into trains of encapsulated packets, checksums partial.

        With `offload` false the datagrams are plain Geneve with finished checksums; else they tell this node's epoch,
        modulo 256. Trains beyond the first lie in buffers of their own.
        """
        encap_bytes = geneve.HEADER_BYTES if offload else geneve.BASE_BYTES
        rows = self._rows(encap_bytes, shape, vnet.gso_size)
        payload_bytes = len(packet) - shape.header_bytes
        per_train = rows.limit * vnet.gso_size
        if payload_bytes <= per_train:
            return [self._train(packet, header, vnet, shape, rows, encap_bytes, epoch, 0, payload_bytes)]
        trains = []
        for start in range(0, payload_bytes, per_train):
            size = min(per_train, payload_bytes - start)
            train = self._train(packet, header, vnet, shape, rows, encap_bytes, epoch, start, size)
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
        encap_bytes: int, epoch: int, start: int, size: int,
    ) -> Train:  # fmt: skip
        """Lay out the payload bytes [start, start + size) of the packet as one train."""
        step = vnet.gso_size
        full, tail = divmod(size, step)
        count = full + (tail > 0) or 1
        out = self._out
        last_at = (count - 1) * rows.row_bytes
        first = self._encapsulation(header, shape, encap_bytes, epoch) + packet[: shape.header_bytes]
        if shape.is_tcp:
            flags_at = encap_bytes + shape.l4 + 13
            flags = first[flags_at]
            first[flags_at] = flags & ~(FIN | PSH | CWR)
        if count > 1 or not tail:
            set_lengths(first, encap_bytes, header.version, shape, len(packet), step if full else 0)
            rows.headers[:count] = np.frombuffer(first, np.uint8)
        if tail:
            set_lengths(
                first, encap_bytes, header.version, shape, shape.header_bytes + step if full else len(packet), tail
            )
            out[last_at : last_at + len(first)] = first
        if encap_bytes == geneve.HEADER_BYTES:
            out[last_at + geneve.FLAGS_OFFSET] |= geneve.LAST_SEGMENT
            rows.index[:count] = rows.counter[:count]

        payload_at = shape.header_bytes + start
        end = last_at + len(first) + (tail or (step if full else 0))
        if full:
            payload = np.frombuffer(packet, np.uint8, full * step, payload_at)
            rows.payload[:full] = payload.reshape(full, step)
        if tail:
            out[end - tail : end] = packet[payload_at + full * step : payload_at + size]

        if shape.is_tcp:
            (sequence,) = _SEQUENCE.unpack_from(packet, shape.l4 + 4)
            rows.sequence[:count] = rows.steps[:count] + np.uint32((sequence + start) & 0xFFFFFFFF)
            if not start:
                out[flags_at] |= flags & CWR
            if payload_at + size == len(packet):
                out[last_at + flags_at] |= flags & (FIN | PSH)
        if header.may_fragment:
            self._number(rows, encap_bytes, count, start // step)
        if encap_bytes == geneve.BASE_BYTES:
            for at in range(0, end, rows.row_bytes):
                finish_checksum(
                    self._view[at + encap_bytes : min(at + rows.row_bytes, end)], shape.l4, shape.csum_offset
                )
        return Train(self._view[:end], rows.row_bytes, count)

    def _encapsulation(self, header: IpHeader, shape: Shape, encap_bytes: int, epoch: int) -> bytearray:
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
                epoch=epoch,
            )
        )

    def _number(self, rows: _Rows, encap_bytes: int, count: int, first: int) -> None:
        """Give every segment its own IPv4 identification, as they may be fragmented (RFC 6864 section 4)."""
        for index in range(count):
            at = index * rows.row_bytes + encap_bytes
            (identification,) = U16.unpack_from(self._out, at + 4)
            U16.pack_into(self._out, at + 4, (identification + first + index) & 0xFFFF)
            U16.pack_into(self._out, at + 10, 0)
            ihl = (self._out[at] & 15) << 2
            U16.pack_into(self._out, at + 10, checksum(self._out[at : at + ihl]))
