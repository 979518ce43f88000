"""Out of the Pods: from a TUN fd to another TUN fd or to the underlay socket. For one thread.

    read a frame (virtio header, IP packet or super-packet) where its datagram can stand
      → check the header → verdict, remembered by flow → lives long enough, small enough?
      → LOCAL: take a hop, write the frame as it is
      → TUNNEL: a super-packet is split into a train and sent; a packet gets its Geneve header in place and joins the
        run before it (runs.py): one send for a run of small packets
      → else: the slow path

The buffer, while a run of single packets grows:

    | Geneve | packet | Geneve | packet | Geneve | next frame is read here …
    0                                   ^ at     ^ at + 20; the virtio header before it gives way to Geneve
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from router.decide import decide_transit
from router.engine.exceptions import Exceptions, write
from router.engine.interface import BATCH_BYTES, EngineSettings, Host
from router.engine.ports import EGRESS, Peer, Port, View, Way
from router.engine.runs import Run
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
from router.wire.segment import MAX_PACKET_BYTES, Shape, Train, gso_shape, packets_in
from router.wire.split import Splitter

_HEADER: Final = geneve.HEADER_BYTES
_FRAME_AT: Final = _HEADER - VNET_BYTES
_BUFFER_BYTES: Final = 4 * (MAX_PACKET_BYTES + 1)
_LAST_START: Final = _BUFFER_BYTES - _HEADER - MAX_PACKET_BYTES - 1


class _Frame(NamedTuple):
    """What was read last: where it lies in the buffer, and what its headers say."""

    at: int
    """Where its datagram would begin; the IP packet begins a Geneve header later."""
    end: int
    header: IpHeader
    vnet: VnetHeader
    shape: Shape | None
    """Of a super-packet; None for a single packet."""
    packets: int
    """How many it stands for."""


class Egress:
    """The way from attachments outwards. `batch` handles what one attachment has waiting."""

    def __init__(self, settings: EngineSettings, sender: Sender, host: Host) -> None:
        self._vni = settings.vni
        self._sender = sender
        self._host = host
        self.exceptions = Exceptions(settings, sender, EGRESS)
        self._splitter = Splitter(settings.vni, settings.offloads.max_segments)
        self._buffer = bytearray(_BUFFER_BYTES)
        self._bytes = memoryview(self._buffer)
        self._run = Run(self._bytes, settings.offloads.max_segments)
        self._encapsulations: dict[tuple[int, int, int, int], bytes] = {}
        self._epoch = 0
        """What stands in them."""
        # Whom the batch at hand works for.
        self._port: Port
        self._tally: Tally
        self._view: View

    def batch(self, port: Port, view: View, most: int, most_bytes: int = BATCH_BYTES) -> int:
        """Read and forward at most `most` frames of one attachment; return how many there were.

        No frame is begun once `most_bytes` have been read.
        """
        fd, buffer, space = port.fd, self._buffer, self._bytes
        tally = self._tally = port.tallies[EGRESS]
        self._port, self._view = port, view
        if view.epoch != self._epoch:
            self._encapsulations.clear()
            self._epoch = view.epoch
        ways = port.ways(view)
        self._run.forget()
        at, reads, read_bytes = 0, 0, 0
        while reads < most and read_bytes < most_bytes:
            try:
                size = os.readv(fd, (space[at + _FRAME_AT : at + _HEADER + MAX_PACKET_BYTES],))
            except BlockingIOError:
                break
            except OSError as error:  # EBADFD: the device is gone with its namespace (tun_chr_read_iter)
                port.lost = True
                self._host.attachment_lost(port.attachment.key, error.strerror or str(error))
                break
            reads += 1
            read_bytes += size
            tally.received_frames += 1
            end = at + _FRAME_AT + size
            header = parse_ip(buffer, at + _HEADER, end) if size > VNET_BYTES else None
            vnet = VnetHeader.read(buffer, at + _FRAME_AT)
            shape, packets = None, 1
            if header is not None and vnet.gso_type != GSO_NONE:
                shape = gso_shape(space[at + _HEADER : end], header, vnet)
                if shape is None:
                    header = None
                else:
                    packets = packets_in(end - at - _HEADER, shape, vnet.gso_size)
            tally.received_packets += packets
            tally.received_bytes += max(0, size - VNET_BYTES)
            if header is None:
                tally.drop(DropReason.MALFORMED)
                continue
            way = ways.get(header.addresses)
            if way is None:
                way = ways[header.addresses] = view.way(header.addresses, port.origin)
            at = self._forward(_Frame(at, end, header, vnet, shape, packets), way)
        self._flush()
        del self._port, self._view  # who leaves meanwhile is not kept by a batch that is over
        return reads

    def forget(self) -> None:
        """Let go of what a batch that failed had in hand."""
        self._run.forget()
        for name in ("_port", "_view"):
            self.__dict__.pop(name, None)

    def _forward(self, frame: _Frame, way: Way) -> int:
        """Send one frame on its way; return where the next may be read."""
        at, end, header, vnet, shape, packets = frame
        packet_bytes = end - at - _HEADER
        wire_bytes = packet_bytes if shape is None else min(packet_bytes, shape.header_bytes + vnet.gso_size)
        verdict, to_port, to_peer = way
        target = to_port or to_peer
        if target is None:
            if verdict.kind is VerdictKind.DROP:
                self._tally.drop(verdict.reason or DropReason.NO_ROUTE, packets)
            else:
                self._refuse(frame, verdict.reason or DropReason.NO_ROUTE)
            return at
        hop = not (self._port.is_node or (to_port is not None and to_port.is_node))
        if to_peer is not None and wire_bytes > to_peer.mtu_bytes:
            to_peer.forget_mtu(self.exceptions.now_s())
        refusal = decide_transit(header, wire_bytes, target.mtu_bytes, hop)
        if refusal is not None:
            self._refuse(frame, refusal.reason or DropReason.TOO_BIG, target.mtu_bytes)
            return at
        if hop:
            decrement_hop_limit(self._buffer, at + _HEADER)
        if wire_bytes > target.mtu_bytes:
            self._flush()  # what came before leaves before
            self._forward_in_fragments(frame, way, target.mtu_bytes)
        elif to_port is not None:
            reason = write(to_port, self._bytes[at + _FRAME_AT : end], EGRESS, packets, packet_bytes)
            self._settle(reason, packets, local=True)
        elif to_peer is not None and shape is not None:
            self._flush()
            self._send_super_packet(frame, shape, to_peer)
            return 0
        elif to_peer is not None:
            return self._join_run(frame, to_peer) if to_peer.next_hop.offload else self._send_plain(frame, to_peer)
        return at

    def _settle(self, reason: DropReason | None, packets: int, local: bool) -> None:
        """Count the fate of packets received before."""
        if reason is not None:
            self._tally.drop(reason, packets)
        elif local:
            self._tally.delivered_packets += packets
        else:
            self._tally.tunnelled_packets += packets

    def _refuse(self, frame: _Frame, reason: DropReason, mtu_bytes: int = 0) -> None:
        packet = self._bytes[frame.at + _HEADER : frame.end]
        self.exceptions.refuse(self._port, self._view, packet, reason, frame.packets, mtu_bytes)

    def _send(self, train: Train, peer: Peer, packet: memoryview, encap_bytes: int) -> None:
        """Send a train and count its fate; `packet` is what an ICMP error about it would quote."""
        packets, reason = self._sender.send(train, peer)
        self._tally.tunnelled_packets += packets
        tally = peer.tallies[EGRESS]
        tally.sent_packets += packets
        if reason is None:
            tally.sent_bytes += len(train.datagrams) - packets * encap_bytes
            return
        tally.sent_bytes += packets * (train.segment_bytes - encap_bytes)
        if reason is DropReason.TOO_BIG:  # the path has become smaller than we knew
            self.exceptions.refuse(self._port, self._view, packet, reason, train.packets - packets, peer.mtu_bytes)
        else:
            self._tally.drop(reason, train.packets - packets)

    # Super-packets

    def _send_super_packet(self, frame: _Frame, shape: Shape, peer: Peer) -> None:
        packet = self._bytes[frame.at + _HEADER : frame.end]
        offload = peer.next_hop.offload
        for train in self._splitter.split(packet, frame.header, frame.vnet, shape, offload, self._epoch):
            self._send(train, peer, packet, _HEADER if offload else geneve.BASE_BYTES)

    # Single packets

    def _send_plain(self, frame: _Frame, peer: Peer) -> int:
        """Send one packet as plain Geneve, its checksum finished, to a peer that does not know our option."""
        packet_at, vnet = frame.at + _HEADER, frame.vnet
        packet = self._bytes[packet_at : frame.end]
        if vnet.flags & NEEDS_CSUM and not finish_checksum(packet, vnet.csum_start, vnet.csum_offset):
            self._tally.drop(DropReason.MALFORMED)
            return frame.at
        start = packet_at - geneve.BASE_BYTES
        self._buffer[start:packet_at] = geneve.encode_plain(self._vni, frame.header.version)
        self._send(Train(self._bytes[start : frame.end], frame.end - start, 1), peer, packet, geneve.BASE_BYTES)
        return frame.at

    def _join_run(self, frame: _Frame, peer: Peer) -> int:
        """Write the Geneve header before the packet and make it the run's next datagram, or a new run's first."""
        at, end, header, vnet, _, _ = frame
        if vnet.flags & NEEDS_CSUM:
            where = vnet.csum_start + vnet.csum_offset
            if vnet.csum_start < header.header_bytes or vnet.csum_offset > 0xFF or where + 2 > end - at - _HEADER:
                self._tally.drop(DropReason.MALFORMED)
                return at
            key = (header.version, geneve.PARTIAL_CHECKSUM, vnet.csum_offset, vnet.csum_start)
        else:
            key = (header.version, 0, 0, 0)
        encapsulation = self._encapsulations.get(key)
        if encapsulation is None:
            if len(self._encapsulations) >= 256:
                self._encapsulations.clear()
            encapsulation = self._encapsulations[key] = geneve.encode(self._vni, *key, epoch=self._epoch)
        if not self._run.takes(peer, at, end):
            self._flush()
        self._buffer[at : at + _HEADER] = encapsulation
        if self._run.add(peer, at, end) or end > _LAST_START:
            self._flush()
            return 0
        return end

    def _flush(self) -> None:
        """Send the run of single packets, if there is one."""
        peer = self._run.peer
        if peer is not None:
            train = self._run.take()
            self._send(train, peer, train.datagrams[_HEADER : train.segment_bytes], _HEADER)

    # Packets larger than the way, which IPv4 lets a router cut

    def _forward_in_fragments(self, frame: _Frame, way: Way, mtu_bytes: int) -> None:
        packet, vnet = self._bytes[frame.at + _HEADER : frame.end], frame.vnet
        cut = self.exceptions.forward_in_fragments
        outcome: DropReason | None = None
        if frame.shape is None:
            partial = (vnet.csum_start, vnet.csum_offset) if vnet.flags & NEEDS_CSUM else None
            outcome = cut(packet, partial, way, self._view, mtu_bytes)
        else:
            for train in self._splitter.split(packet, frame.header, vnet, frame.shape, offload=False):
                for start in range(0, len(train.datagrams), train.segment_bytes):
                    inner = train.datagrams[start + geneve.BASE_BYTES : start + train.segment_bytes]
                    outcome = cut(inner, None, way, self._view, mtu_bytes) or outcome
        self._settle(outcome, frame.packets, local=way.port is not None)
