"""Into the Pods: from the underlay socket to TUN fds. For one thread.

receive a train (UDP_GRO) → a known peer?
→ each datagram: Geneve header; is it a probe, a question, or of an epoch that is over?
→ IP header → does the peer own the inner source? → verdict, remembered by flow
→ TCP or UDP with partial checksum: how many datagrams after it continue it? join them into one super-packet
→ take a hop, write the frame to the TUN
→ else: the slow path
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from ipaddress import ip_address
from itertools import groupby
from typing import Final, NamedTuple

from router.decide import decide_transit
from router.engine.exceptions import Exceptions, Lost, write
from router.engine.interface import BATCH_BYTES, EngineSettings, Host
from router.engine.ports import INGRESS, Peer, Port, View, Way
from router.engine.sender import SOL_UDP, Sender
from router.engine.taps import Came, Taps
from router.model import DropReason, Endpoint, Tally, VerdictKind
from router.wire import geneve, probe, question
from router.wire.flow import flow_key
from router.wire.merge import Merger
from router.wire.packet import VNET_BYTES, IpHeader, decrement_hop_limit, parse_ip
from router.wire.segment import Shape, Train, shape_of, write_plain_vnet

UDP_GRO: Final = 104  # linux/udp.h
_MOST_REFUSED: Final = 16
"""After so many super-packets that a TUN refused, none accepted between, none are made any more."""
_HEADROOM: Final = 16
"""Before the first datagram: the virtio header is written there when Geneve's is shorter than it."""
_BUFFER_BYTES: Final = 256 * 1024
_CONTROL_BYTES: Final = 64
# As plain numbers: an operation on a flag of the enum costs 3 µs.
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_TRUNCATED: Final = int(socket.MSG_TRUNC)


class _Arrival(NamedTuple):
    """A datagram of a known peer: where it lies in the buffer, and what its headers say."""

    at: int
    end: int
    encap: geneve.Encapsulation
    header: IpHeader


class Ingress:
    """The way from the underlay to attachments. `batch` handles what the socket has waiting."""

    def __init__(self, settings: EngineSettings, underlay: socket.socket, sender: Sender, host: Host) -> None:
        self._vni = settings.vni
        self._socket = underlay
        self._host = host
        self.exceptions = Exceptions(settings, sender, INGRESS)
        self.strangers = Tally()
        self._merger = Merger(settings.offloads.max_segments)
        self._merge_tcp = settings.offloads.tun_checksum and settings.offloads.tun_tso
        self._merge_udp = settings.offloads.tun_checksum and settings.offloads.tun_uso
        self._buffer = bytearray(_BUFFER_BYTES)
        self._space = memoryview(self._buffer)[_HEADROOM:]
        self._bytes = memoryview(self._buffer)
        self._refused = 0
        self._at_hand: tuple[Tally, int] | None = None
        """Whose train is at hand, and how many packets of its will have been received when it is done."""
        # Whose train is at hand.
        self._peer: Peer
        self._tally: Tally
        self._view: View
        self._taps: Taps | None
        self.came_from: tuple[str, int] = ("::", 0)
        """Where the last train came from, as the socket says it."""

    def batch(self, view: View, most: int) -> int:
        """Receive and deliver at most `most` trains; return how many there were."""
        receive, space = self._socket.recvmsg_into, (self._space,)
        received = 0
        for reads in range(most):
            if received >= BATCH_BYTES:
                return reads
            try:
                size, control, flags, sockaddr = receive(space, _CONTROL_BYTES, _DONTWAIT)
            except BlockingIOError:
                return reads
            except OSError:  # an ICMP error about something sent earlier; nothing was received
                continue
            received += size
            segment_bytes = size
            for level, kind, value in control:
                if level == SOL_UDP and kind == UDP_GRO:
                    segment_bytes = struct.unpack_from("=i", value)[0] or size
            count = -(-size // segment_bytes) if size else 1
            self.came_from = sockaddr
            peer = view.sender(sockaddr[:2])
            if peer is None:
                self._receive(self.strangers, count, size)
                self._turn_away(Train(self._space[:size], segment_bytes, count))
            elif flags & _TRUNCATED or not size:
                self._receive(peer.tallies[INGRESS], count, size)
                lost = Lost(DropReason.BAD_ENCAPSULATION, self._space[:segment_bytes], count, is_packet=False)
                self.exceptions.drop(peer, lost)
            else:
                end = _HEADROOM + size
                self._deliver(peer, view, Train(self._bytes[:end], segment_bytes, count), end)
        return most

    def forget(self) -> None:
        """Let go of what a batch that failed had in hand; the rest of its train was received too."""
        if self._at_hand is not None:
            tally, due = self._at_hand
            tally.received_packets = max(tally.received_packets, due)
            self._at_hand = None
        for name in ("_peer", "_view", "_taps"):
            self.__dict__.pop(name, None)

    @staticmethod
    def _receive(tally: Tally, packets: int, packet_bytes: int) -> None:
        tally.received_frames += 1
        tally.received_packets += packets
        tally.received_bytes += packet_bytes

    def _turn_away(self, train: Train) -> None:
        """Drop what a stranger sent."""
        reason, taps = DropReason.UNKNOWN_PEER, self.exceptions.taps
        self.strangers.drop(reason, train.packets)
        who = self.came_from[:2]
        self.exceptions.log.note(who, reason, None, train.packets, min(train.segment_bytes, len(train.datagrams)))
        if taps is not None:
            source = Endpoint(ip_address(who[0]), who[1])
            for row in range(train.packets):
                taps.look(train.row(row)).show(source, None, VerdictKind.DROP, reason)

    def _deliver(self, peer: Peer, view: View, train: Train, end: int) -> None:
        """Deliver every datagram of a train, runs of them joined."""
        self._peer, self._view, self._taps = peer, view, self.exceptions.taps
        tally = self._tally = peer.tallies[INGRESS]
        tally.received_frames += 1
        self._at_hand = (tally, tally.received_packets + train.packets)
        ways, vni, step = peer.ways(view), self._vni, train.segment_bytes
        epoch = peer.next_hop.epoch
        at = _HEADROOM
        while at < end:
            after = min(at + step, end)
            encap = geneve.decode(train.datagrams, at, after, vni)
            if isinstance(encap, DropReason):
                if encap is not DropReason.BAD_ENCAPSULATION or not self._take_control(at, after):
                    tally.received_packets += 1
                    tally.received_bytes += after - at
                    self.exceptions.drop(peer, Lost(encap, self._bytes[at:after], is_packet=False))
                at = after
                continue
            packet_at = at + encap.header_bytes
            tally.received_packets += 1
            tally.received_bytes += after - packet_at
            if epoch and encap.is_older(epoch):
                self.exceptions.drop(peer, Lost(DropReason.STALE_EPOCH, self._bytes[packet_at:after]))
                at = after
                continue
            header = parse_ip(train.datagrams, packet_at, after)
            if header is None or header.version != encap.ip_version:
                self.exceptions.drop(peer, Lost(DropReason.MALFORMED, self._bytes[packet_at:after]))
                at = after
                continue
            way = ways.get(header.addresses)
            if way is None:
                way = ways[header.addresses] = view.way(header.addresses, peer.origin)
            arrival = _Arrival(at, after, encap, header)
            if way.port is not None:
                at = self._deliver_to(way.port, way, train, arrival)
                continue
            lost = Lost(way.verdict.reason or DropReason.NO_ROUTE, self._bytes[packet_at:after])
            if way.verdict.kind is VerdictKind.DROP:
                self.exceptions.drop(peer, lost)
            else:
                self.exceptions.refuse(peer, view, lost)
            at = after
        self._at_hand = None
        del self._peer, self._view, self._taps  # who leaves meanwhile is not kept by a train that is over

    def _take_control(self, at: int, end: int) -> bool:
        """Answer a request, hand answers and questions over; False for what is none of them. Its VNI was looked at."""
        found = probe.decode(self._buffer, at, end)
        asked = None if found is not None else question.decode_header(self._buffer, at, end)
        if found is None and asked is None:
            return False
        self._tally.control_packets += 1
        if self._at_hand is not None:
            tally, due = self._at_hand
            self._at_hand = tally, due - 1  # it is no packet
        endpoint = self._peer.next_hop.endpoint
        if found is None:
            self._host.question_came(endpoint, bytes(self._bytes[at:end]), time.monotonic_ns())
            return True
        header = bytes(self._bytes[at : at + probe.HEADER_BYTES])
        if found.kind == probe.ANSWER:
            self._host.probe_answered(endpoint, header, time.monotonic_ns())
            return True
        with suppress(OSError):  # as good as lost on the way
            self._socket.sendto(probe.answer_to(header), _DONTWAIT, self.came_from)
        return True

    def _deliver_to(self, port: Port, way: Way, train: Train, arrival: _Arrival) -> int:
        """Write a datagram, with those that continue it, to an attachment; return where the next begins."""
        at, after, encap, header = arrival
        packet_at = at + encap.header_bytes
        packet = self._bytes[packet_at:after]
        hop = not port.is_node
        refusal = decide_transit(header, len(packet), port.mtu_bytes, hop)
        if refusal is not None and refusal.reason is not None:
            lost = Lost(refusal.reason, packet, limit_bytes=port.mtu_bytes, target=port)
            self.exceptions.refuse(self._peer, self._view, lost)
            return after
        partial = encap.flags & geneve.PARTIAL_CHECKSUM
        if partial and (
            encap.csum_start < header.header_bytes or encap.csum_start + encap.csum_offset + 2 > len(packet)
        ):
            self.exceptions.drop(self._peer, Lost(DropReason.MALFORMED, packet, target=port))
            return after
        count, shape = 1, None
        if partial and after < len(train.datagrams):
            shape = shape_of(packet, header, encap.csum_start, encap.csum_offset)
            if shape is not None and (self._merge_tcp if shape.is_tcp else self._merge_udp):
                count = self._merger.run(train, at, encap, header, shape)
        came = None if self._taps is None else self._taps.look(packet)
        if hop:
            decrement_hop_limit(self._buffer, packet_at)
        if len(packet) > port.mtu_bytes:
            sums = (encap.csum_start, encap.csum_offset) if partial else None
            cut = self.exceptions.forward_in_fragments
            self._settle(cut(packet, sums, self._peer, way, self._view, port.mtu_bytes), packet, port, came)
            return after
        if count > 1 and shape is not None:
            return self._write_merged(port, train, arrival, shape, count, came)
        start = packet_at - VNET_BYTES
        write_plain_vnet(self._bytes, start, encap)
        reason = write(port, self._bytes[start:after], INGRESS, 1, after - packet_at)
        self._settle(reason, packet, port, came)
        if reason is None and self._taps is not None:
            self._taps.after(packet, self._peer, port, VerdictKind.LOCAL)
        return after

    def _write_merged(
        self, port: Port, train: Train, arrival: _Arrival, shape: Shape, count: int, came: Came | None
    ) -> int:
        """Write `count` datagrams as one super-packet; return where the next begins. `came` is the first of them."""
        at, after, encap, header = arrival
        frame = self._merger.merge(train, at, count, encap, header, shape)
        step = train.segment_bytes
        end = min(at + count * step, len(train.datagrams))
        reason = write(port, frame, INGRESS, count, len(frame) - VNET_BYTES)
        if reason is DropReason.MALFORMED:
            self._refused += 1
            if self._refused == _MOST_REFUSED:
                # Some kernels refuse super-packets on a TUN write (seen on 6.6.44): say so, and go on one by one.
                self._merge_tcp = self._merge_udp = False
                self._host.offload_failed("tun_tso", f"the TUN refused {_MOST_REFUSED} super-packets in a row")
        elif reason is None:
            self._refused = 0
        self._tally.received_packets += count - 1
        self._tally.received_bytes += end - after - (count - 1) * encap.header_bytes
        if reason is None and came is None:
            self._tally.delivered_packets += count
            return end
        inner = encap.header_bytes
        rows = [self._bytes[start + inner : min(start + step, end)] for start in range(at, end, step)]
        self._settle_each(reason, rows, port, came)
        if reason is None and self._taps is not None:
            self._taps.after(frame[VNET_BYTES:], self._peer, port, VerdictKind.LOCAL, count)
        return end

    def _settle_each(self, reason: DropReason | None, rows: list[memoryview], port: Port, came: Came | None) -> None:
        """Count the fate of packets that were joined, as each came."""
        if came is None or self._taps is None:
            for _, alike in groupby(rows, flow_key):  # of one flow, unless the sender lied about its segments
                lost = list(alike)
                self._settle(reason, lost[-1], port, None, len(lost))
            return
        self._settle(reason, rows[0], port, came)
        for row in rows[1:]:
            self._settle(reason, row, port, self._taps.look(row))

    def _settle(
        self, reason: DropReason | None, packet: memoryview, port: Port, came: Came | None, packets: int = 1
    ) -> None:
        """Count the fate of packets that were meant for a port."""
        if reason is not None:
            self.exceptions.drop(self._peer, Lost(reason, packet, packets, target=port, came=came))
            return
        self._tally.delivered_packets += packets
        if came is not None:
            came.show(self._peer, port, VerdictKind.LOCAL)
