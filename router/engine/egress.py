"""Out of the Pods: from a TUN fd to another TUN fd or to the underlay socket. One thread.

    read a frame (virtio header, IP packet or super-packet) where its datagram can stand
      → check the header → verdict, remembered by flow → lives long enough, small enough?
      → LOCAL: take a hop, write the frame as it is
      → TUNNEL: a super-packet is split into a train and sent; a packet gets its Geneve header in place and joins the
        train before it, if it is for the same peer and no longer: one send for a run of small packets
      → else: the slow path

The buffer, while a train of single packets grows:

    | Geneve | packet | Geneve | packet | Geneve | next frame is read here …
    0                                   ^ at     ^ at + 20; the virtio header before it gives way to Geneve
"""

from __future__ import annotations

import os
from typing import Final

from router.decide import decide_transit
from router.engine.exceptions import Exceptions, write
from router.engine.interface import BATCH_BYTES, EngineSettings, Host
from router.engine.ports import EGRESS, Peer, Port, View, Way
from router.engine.sender import Sender
from router.model import DropReason, Tally, VerdictKind
from router.wire import geneve
from router.wire.packet import (
    GSO_NONE,
    NEEDS_CSUM,
    VNET_BYTES,
    IpHeader,
    VnetHeader,
    decrement_hop_limit,
    finish_checksum,
    parse_ip,
)
from router.wire.segment import MAX_PACKET_BYTES, MAX_TRAIN_BYTES, Shape, Train, gso_shape, packets_in
from router.wire.split import Splitter

_HEADER: Final = geneve.HEADER_BYTES
_FRAME_AT: Final = _HEADER - VNET_BYTES
_BUFFER_BYTES: Final = 4 * (MAX_PACKET_BYTES + 1)
_LAST_START: Final = _BUFFER_BYTES - _HEADER - MAX_PACKET_BYTES - 1


class Egress:
    """The way from attachments outwards. `batch` handles what one attachment has waiting."""

    def __init__(self, settings: EngineSettings, sender: Sender, host: Host) -> None:
        self._settings = settings
        self._sender = sender
        self._host = host
        self.exceptions = Exceptions(settings, sender, EGRESS)
        self._splitter = Splitter(settings.vni, settings.offloads.max_segments)
        self._max_train_packets = settings.offloads.max_segments
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._headers: dict[tuple[int, int, int, int], bytes] = {}
        self._train_peer: Peer | None = None
        self._train_start = 0
        self._train_end = 0
        self._train_segment = 0
        self._train_count = 0
        self._train_inner_bytes = 0

    def batch(self, port: Port, view: View, most: int) -> int:
        """Read and forward at most `most` frames of one attachment; return how many there were."""
        fd, buffer, frames = port.fd, self._buffer, self._view
        tally = port.tallies[EGRESS]
        ways = port.ways(view)
        at, reads, read_bytes = 0, 0, 0
        self._train_count = 0
        while reads < most and read_bytes < BATCH_BYTES:
            try:
                size = os.readv(fd, (frames[at + _FRAME_AT : at + _HEADER + MAX_PACKET_BYTES],))
            except BlockingIOError:
                break
            except OSError as error:  # EBADFD: the device is gone with its namespace (tun_chr_read_iter)
                port.lost = True
                self._host.attachment_lost(port.attachment.key, error.strerror or str(error))
                break
            reads += 1
            read_bytes += size
            packet_at, end = at + _HEADER, at + _FRAME_AT + size
            tally.received_frames += 1
            header = parse_ip(buffer, packet_at, end) if size > VNET_BYTES else None
            vnet = VnetHeader.read(buffer, at + _FRAME_AT)
            shape = None
            if header is not None and vnet.gso_type != GSO_NONE:
                shape = gso_shape(frames[packet_at:end], header, vnet)
            if header is None or (shape is None and vnet.gso_type != GSO_NONE):
                self._receive(tally, 1, max(0, size - VNET_BYTES))
                tally.drop(DropReason.MALFORMED)
                continue
            way = ways.get(header.addresses)
            if way is None:
                way = ways[header.addresses] = view.way(header.addresses, port.origin)
            at = self._forward(port, view, way, header, vnet, shape, at, end)
        self._flush(port, view)
        return reads

    @staticmethod
    def _receive(tally: Tally, packets: int, packet_bytes: int) -> None:
        tally.received_packets += packets
        tally.received_bytes += packet_bytes

    def _forward(
        self,
        port: Port,
        view: View,
        way: Way,
        header: IpHeader,
        vnet: VnetHeader,
        shape: Shape | None,
        at: int,
        end: int,
    ) -> int:
        """Send one frame on its way; return where the next may be read."""
        packet_at = at + _HEADER
        packet_bytes = end - packet_at
        tally = port.tallies[EGRESS]
        if shape is None:
            packets, wire_bytes = 1, packet_bytes
        else:
            packets = packets_in(packet_bytes, shape, vnet.gso_size)
            wire_bytes = min(packet_bytes, shape.header_bytes + vnet.gso_size)
        self._receive(tally, packets, packet_bytes)

        verdict, to_port, to_peer = way
        target = to_port or to_peer
        if target is None:
            self._refuse(port, view, way, verdict.reason or DropReason.NO_ROUTE, at, end, packets)
            return at
        hop = not (port.is_node or (to_port is not None and to_port.is_node))
        refusal = decide_transit(header, wire_bytes, target.mtu_bytes, hop)
        if refusal is not None:
            if to_peer is not None and refusal.reason is DropReason.TOO_BIG:
                to_peer.forget_mtu(self.exceptions.now_s())
            self._refuse(port, view, way, refusal.reason or DropReason.TOO_BIG, at, end, packets, target.mtu_bytes)
            return at
        if hop:
            decrement_hop_limit(self._buffer, packet_at)
        if wire_bytes > target.mtu_bytes:
            self._flush(port, view)  # what came before leaves before
            self._forward_in_fragments(port, way, header, vnet, shape, at, end, packets)
            return at
        if to_port is not None:
            frame = self._view[at + _FRAME_AT : end]
            reason = write(to_port, frame, EGRESS, packets, packet_bytes)
            self._settle(tally, reason, packets, local=True)
            return at
        assert to_peer is not None
        if shape is not None:
            self._flush(port, view)
            self._send_super_packet(port, view, to_peer, header, vnet, shape, at, end)
            return 0
        if not to_peer.next_hop.offload:
            self._send_plain(port, view, to_peer, header, vnet, at, end)
            return at
        return self._join_train(port, view, to_peer, header, vnet, at, end)

    @staticmethod
    def _settle(tally: Tally, reason: DropReason | None, packets: int, local: bool = False) -> None:
        """Count the fate of packets received before."""
        if reason is not None:
            tally.drop(reason, packets)
        elif local:
            tally.delivered_packets += packets
        else:
            tally.tunnelled_packets += packets

    def _refuse(
        self, port: Port, view: View, way: Way, reason: DropReason, at: int, end: int, packets: int, mtu_bytes: int = 0
    ) -> None:
        if way.verdict.kind is VerdictKind.DROP:
            port.tallies[EGRESS].drop(reason, packets)
        else:
            self.exceptions.refuse(port, view, self._view[at + _HEADER : end], reason, packets, mtu_bytes)

    # Super-packets

    def _send_super_packet(
        self, port: Port, view: View, peer: Peer, header: IpHeader, vnet: VnetHeader, shape: Shape, at: int, end: int
    ) -> None:
        packet = self._view[at + _HEADER : end]
        tally, sent = port.tallies[EGRESS], peer.tallies[EGRESS]
        encap_bytes = _HEADER if peer.next_hop.offload else geneve.BASE_BYTES
        for train in self._splitter.split(packet, header, vnet, shape, peer.next_hop.offload):
            reason = self._sender.send(train, peer)
            if reason is DropReason.TOO_BIG:
                self.exceptions.refuse(port, view, packet, reason, train.packets, peer.mtu_bytes)
                continue
            self._settle(tally, reason, train.packets)
            if reason is None:
                sent.sent_packets += train.packets
                sent.sent_bytes += len(train.datagrams) - train.packets * encap_bytes

    # Single packets

    def _send_plain(
        self, port: Port, view: View, peer: Peer, header: IpHeader, vnet: VnetHeader, at: int, end: int
    ) -> None:
        """Send one packet as plain Geneve, its checksum finished, to a peer that does not know our option."""
        packet_at = at + _HEADER
        packet = self._view[packet_at:end]
        tally, sent = port.tallies[EGRESS], peer.tallies[EGRESS]
        if vnet.flags & NEEDS_CSUM and not finish_checksum(packet, vnet.csum_start, vnet.csum_offset):
            tally.drop(DropReason.MALFORMED)
            return
        start = packet_at - geneve.BASE_BYTES
        self._buffer[start:packet_at] = geneve.encode_plain(self._settings.vni, header.version)
        reason = self._sender.send(Train(self._view[start:end], end - start, 1), peer)
        if reason is DropReason.TOO_BIG:
            self.exceptions.refuse(port, view, packet, reason, 1, peer.mtu_bytes)
            return
        self._settle(tally, reason, 1)
        if reason is None:
            sent.sent_packets += 1
            sent.sent_bytes += end - packet_at

    def _join_train(
        self, port: Port, view: View, peer: Peer, header: IpHeader, vnet: VnetHeader, at: int, end: int
    ) -> int:
        """Write the Geneve header before the packet and make it the train's next datagram, or a new train's first."""
        if vnet.flags & NEEDS_CSUM:
            where = vnet.csum_start + vnet.csum_offset
            if vnet.csum_start < header.header_bytes or vnet.csum_offset > 0xFF or where + 2 > end - at - _HEADER:
                port.tallies[EGRESS].drop(DropReason.MALFORMED)
                return at
            key = (header.version, geneve.PARTIAL_CHECKSUM, vnet.csum_offset, vnet.csum_start)
        else:
            key = (header.version, 0, 0, 0)
        encapsulation = self._headers.get(key)
        if encapsulation is None:
            if len(self._headers) >= 256:
                self._headers.clear()
            encapsulation = self._headers[key] = geneve.encode(self._settings.vni, *key)
        size = end - at
        if self._train_count and (
            peer is not self._train_peer
            or size > self._train_segment
            or self._train_count >= self._max_train_packets
            or end - self._train_start > MAX_TRAIN_BYTES
        ):
            self._flush(port, view)
        self._buffer[at : at + _HEADER] = encapsulation
        if not self._train_count:
            self._train_peer = peer
            self._train_start = at
            self._train_segment = size
        self._train_count += 1
        self._train_end = end
        if size < self._train_segment or end > _LAST_START:
            self._flush(port, view)
            return 0
        return end

    def _flush(self, port: Port, view: View) -> None:
        """Send the train of single packets, if there is one."""
        count, peer = self._train_count, self._train_peer
        if not count or peer is None:
            return
        self._train_count = 0
        datagrams = self._view[self._train_start : self._train_end]
        reason = self._sender.send(Train(datagrams, self._train_segment, count), peer)
        if reason is DropReason.TOO_BIG:
            packet = datagrams[_HEADER : self._train_segment]
            self.exceptions.refuse(port, view, packet, reason, count, peer.mtu_bytes)
            return
        self._settle(port.tallies[EGRESS], reason, count)
        if reason is None:
            sent = peer.tallies[EGRESS]
            sent.sent_packets += count
            sent.sent_bytes += len(datagrams) - count * _HEADER

    # Packets larger than the way, which IPv4 lets a router cut

    def _forward_in_fragments(
        self, port: Port, way: Way, header: IpHeader, vnet: VnetHeader, shape: Shape | None,
        at: int, end: int, packets: int,
    ) -> None:  # fmt: skip
        packet = self._view[at + _HEADER : end]
        target = way.port or way.peer
        assert target is not None
        outcome: DropReason | None
        if shape is None:
            partial = (vnet.csum_start, vnet.csum_offset) if vnet.flags & NEEDS_CSUM else None
            outcome = self.exceptions.forward_in_fragments(packet, partial, way, target.mtu_bytes)
        else:
            outcome = None
            for train in self._splitter.split(packet, header, vnet, shape, offload=False):
                for start in range(0, len(train.datagrams), train.segment_bytes):
                    inner = train.datagrams[start + geneve.BASE_BYTES : start + train.segment_bytes]
                    outcome = self.exceptions.forward_in_fragments(inner, None, way, target.mtu_bytes) or outcome
        self._settle(port.tallies[EGRESS], outcome, packets, local=way.port is not None)
