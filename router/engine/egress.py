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
from router.engine.exceptions import Exceptions, Lost, write
from router.engine.interface import BATCH_BYTES, EngineSettings, Host
from router.engine.ports import EGRESS, Party, Peer, Port, View, Way
from router.engine.runs import Run
from router.engine.sender import Sender
from router.engine.taps import Came, Taps, with_its_hop
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
    came: Came | None = None
    """As it came, for those who watch; None when nobody does."""

    @property
    def wire_bytes(self) -> int:
        """Tell what one of its packets has on the wire."""
        packet_bytes = self.end - self.at - _HEADER
        return packet_bytes if self.shape is None else min(packet_bytes, self.shape.header_bytes + self.vnet.gso_size)


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
        self._taps: Taps | None

    def batch(self, port: Port, view: View, most: int, most_bytes: int = BATCH_BYTES) -> int:
        """Read and forward at most `most` frames of one attachment; return how many there were.

        No frame is begun once `most_bytes` have been read.
        """
        fd, buffer, space = port.fd, self._buffer, self._bytes
        tally = self._tally = port.tallies[EGRESS]
        self._port, self._view = port, view
        taps = self._taps = self.exceptions.taps
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
                self.exceptions.drop(port, Lost(DropReason.MALFORMED, space[at + _HEADER : end]))
                continue
            way = ways.get(header.addresses)
            if way is None:
                way = ways[header.addresses] = view.way(header.addresses, port.origin)
            came = None if taps is None else taps.look(space[at + _HEADER : end])
            at = self._forward(_Frame(at, end, header, vnet, shape, packets, came), way)
        self._flush()
        del self._port, self._view, self._taps  # who leaves meanwhile is not kept by a batch that is over
        return reads

    def forget(self) -> None:
        """Let go of what a batch that failed had in hand."""
        self._run.forget()
        for name in ("_port", "_view", "_taps"):
            self.__dict__.pop(name, None)

    def _forward(self, frame: _Frame, way: Way) -> int:
        """Send one frame on its way; return where the next may be read."""
        at, end, header, vnet, shape, packets, _ = frame
        packet_bytes = end - at - _HEADER
        wire_bytes = packet_bytes if shape is None else min(packet_bytes, shape.header_bytes + vnet.gso_size)
        verdict, to_port, to_peer = way
        target = to_port or to_peer
        if target is None:
            reason = verdict.reason or DropReason.NO_ROUTE
            if verdict.kind is VerdictKind.DROP:
                self._drop(frame, reason)
            else:
                self._refuse(frame, reason)
            return at
        hop = not (self._port.is_node or (to_port is not None and to_port.is_node))
        if to_peer is not None and wire_bytes > to_peer.mtu_bytes:
            to_peer.forget_mtu(self.exceptions.now_s())
        refusal = decide_transit(header, wire_bytes, target.mtu_bytes, hop)
        if refusal is not None:
            self._refuse(frame, refusal.reason or DropReason.TOO_BIG, target)
            return at
        if hop:
            decrement_hop_limit(self._buffer, at + _HEADER)
        if wire_bytes > target.mtu_bytes:
            self._flush()  # what came before leaves before
            self._forward_in_fragments(frame, way, target.mtu_bytes)
        elif to_port is not None:
            failed = write(to_port, self._bytes[at + _FRAME_AT : end], EGRESS, packets, packet_bytes)
            self._settle(frame, way, failed)
            if failed is None and self._taps is not None:
                packet = self._bytes[at + _HEADER : end]
                self._taps.after(packet, self._port, to_port, VerdictKind.LOCAL, packets)
        elif to_peer is not None and shape is not None:
            self._flush()
            self._send_super_packet(frame, shape, to_peer)
            return 0
        elif to_peer is not None:
            return self._join_run(frame, to_peer) if to_peer.next_hop.offload else self._send_plain(frame, to_peer)
        return at

    def _settle(self, frame: _Frame, way: Way, reason: DropReason | None) -> None:
        """Count the fate of a frame."""
        if reason is not None:
            self._drop(frame, reason, way.port or way.peer)
            return
        if way.port is not None:
            self._tally.delivered_packets += frame.packets
        else:
            self._tally.tunnelled_packets += frame.packets
        if frame.came is not None:
            frame.came.show(self._port, way.port or way.peer, way.verdict.kind, None, frame.packets)

    def _drop(self, frame: _Frame, reason: DropReason, target: Party | None = None) -> None:
        self.exceptions.drop(self._port, self._lost(frame, reason, target))

    def _refuse(self, frame: _Frame, reason: DropReason, target: Party | None = None) -> None:
        self.exceptions.refuse(self._port, self._view, self._lost(frame, reason, target))

    def _lost(self, frame: _Frame, reason: DropReason, target: Party | None) -> Lost:
        packet = self._bytes[frame.at + _HEADER : frame.end]
        limit_bytes = 0 if target is None else target.mtu_bytes
        return Lost(reason, packet, frame.packets, frame.wire_bytes, limit_bytes, target=target, came=frame.came)

    def _send(self, train: Train, peer: Peer, packet: memoryview, encap_bytes: int, alike: bool = False) -> None:
        """Send a train and count its fate; `packet` is what an ICMP error about it would quote.

        `alike`: all of it is of one flow.
        """
        reason, unsent = self._sender.send(train, peer)
        packets = train.packets - len(unsent)
        self._tally.tunnelled_packets += packets
        tally = peer.tallies[EGRESS]
        tally.sent_packets += packets
        if self._taps is not None:
            for row in range(train.packets):
                if row not in unsent:
                    self._taps.after(train.row(row)[encap_bytes:], self._port, peer, VerdictKind.TUNNEL)
        if reason is None:
            tally.sent_bytes += len(train.datagrams) - packets * encap_bytes
            return
        tally.sent_bytes += packets * (train.segment_bytes - encap_bytes)
        kind, limit_bytes = VerdictKind.DROP, 0
        if reason is DropReason.TOO_BIG:  # the path has become smaller than we knew
            kind, limit_bytes = VerdictKind.REJECT, peer.mtu_bytes
        together = len(unsent) if alike and self._taps is None else 1
        for row in unsent[together - 1 :: together]:
            inner = train.row(row)[encap_bytes:]
            came = self._taps.look(inner if self._port.is_node else with_its_hop(inner)) if self._taps else None
            self.exceptions.drop(self._port, Lost(reason, inner, together, 0, limit_bytes, kind, peer, came))
        if kind is VerdictKind.REJECT:
            self.exceptions.tell(self._port, self._view, packet, reason, limit_bytes)

    # Super-packets

    def _send_super_packet(self, frame: _Frame, shape: Shape, peer: Peer) -> None:
        packet = self._bytes[frame.at + _HEADER : frame.end]
        offload = peer.next_hop.offload
        if frame.came is not None:
            frame.came.show(self._port, peer, VerdictKind.TUNNEL, None, frame.packets)
        for train in self._splitter.split(packet, frame.header, frame.vnet, shape, offload, self._epoch):
            self._send(train, peer, packet, _HEADER if offload else geneve.BASE_BYTES, alike=True)

    # Single packets

    def _send_plain(self, frame: _Frame, peer: Peer) -> int:
        """Send one packet as plain Geneve, its checksum finished, to a peer that does not know our option."""
        packet_at, vnet = frame.at + _HEADER, frame.vnet
        packet = self._bytes[packet_at : frame.end]
        if vnet.flags & NEEDS_CSUM and not finish_checksum(packet, vnet.csum_start, vnet.csum_offset):
            self._drop(frame, DropReason.MALFORMED, peer)
            return frame.at
        if frame.came is not None:
            frame.came.show(self._port, peer, VerdictKind.TUNNEL)
        start = packet_at - geneve.BASE_BYTES
        self._buffer[start:packet_at] = geneve.encode_plain(self._vni, frame.header.version)
        self._send(Train(self._bytes[start : frame.end], frame.end - start, 1), peer, packet, geneve.BASE_BYTES)
        return frame.at

    def _join_run(self, frame: _Frame, peer: Peer) -> int:
        """Write the Geneve header before the packet and make it the run's next datagram, or a new run's first."""
        at, end, header, vnet, _, _, _ = frame
        if vnet.flags & NEEDS_CSUM:
            where = vnet.csum_start + vnet.csum_offset
            if vnet.csum_start < header.header_bytes or vnet.csum_offset > 0xFF or where + 2 > end - at - _HEADER:
                self._drop(frame, DropReason.MALFORMED, peer)
                return at
            key = (header.version, geneve.PARTIAL_CHECKSUM, vnet.csum_offset, vnet.csum_start)
        else:
            key = (header.version, 0, 0, 0)
        encapsulation = self._encapsulations.get(key)
        if encapsulation is None:
            if len(self._encapsulations) >= 256:
                self._encapsulations.clear()
            encapsulation = self._encapsulations[key] = geneve.encode(self._vni, *key, epoch=self._epoch)
        if frame.came is not None:
            frame.came.show(self._port, peer, VerdictKind.TUNNEL)
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
            outcome = cut(packet, partial, self._port, way, self._view, mtu_bytes)
        else:
            for train in self._splitter.split(packet, frame.header, vnet, frame.shape, offload=False):
                for row in range(train.packets):
                    inner = train.row(row)[geneve.BASE_BYTES :]
                    outcome = cut(inner, None, self._port, way, self._view, mtu_bytes) or outcome
        self._settle(frame, way, outcome)
