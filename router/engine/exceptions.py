"""The slow path: packets that are not simply forwarded, and the packets a router itself makes about them.

dropped   → counted, remembered (droplog.py), shown to who watches (taps.py)
refused   → dropped → ICMP error, if the RFCs ask for one and the rate allows → towards the source
oversize  → IPv4 fragments → onwards
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from router.decide import Origin
from router.engine.droplog import DropLog
from router.engine.interface import EngineSettings
from router.engine.ports import Party, Peer, Port, View, Way
from router.engine.rate import RateLimit
from router.engine.sender import Sender
from router.engine.taps import Came, Taps
from router.model import DropReason, VerdictKind
from router.wire import geneve
from router.wire.fragment import fragment
from router.wire.icmp import make_error
from router.wire.packet import NO_OFFLOAD, finish_checksum, parse_ip
from router.wire.segment import Train


class Lost(NamedTuple):
    """Packets that went no further."""

    reason: DropReason
    packet: memoryview
    """As it is now; of several of one flow, any, and the last of those that came one by one."""
    packets: int = 1
    packet_bytes: int = 0
    """What one of them has on the wire; 0: the length of `packet`."""
    limit_bytes: int = 0
    """What the next link carries; 0 when there is none."""
    kind: VerdictKind = VerdictKind.DROP
    target: Party | None = None
    """Whom it was meant for."""
    came: Came | None = None
    """As it came, where that was kept; None: it still is as it was."""
    is_packet: bool = True
    """False for a datagram in which none was found."""


class Exceptions:
    """Handles one thread's exceptions; its packets are not counted as received from anybody."""

    def __init__(self, settings: EngineSettings, sender: Sender, thread: int) -> None:
        self._settings = settings
        self._sender = sender
        self._thread = thread
        self._rate = RateLimit(settings.icmp_errors_per_s, settings.icmp_errors_per_s)
        self.suppressed = 0
        self.log = DropLog()
        self.taps: Taps | None = None
        """None while nobody watches."""

    @staticmethod
    def now_s() -> float:
        """Return a monotonic time."""
        return time.monotonic()

    def drop(self, source: Party, lost: Lost) -> None:
        """Count packets as dropped, remember them, and show them as they came."""
        reason, packet, packets, packet_bytes, limit_bytes, kind, target, came, is_packet = lost
        source.tallies[self._thread].drop(reason, packets)
        flow_of = packet if is_packet else None
        limit_bytes = limit_bytes if reason is DropReason.TOO_BIG else 0
        self.log.note(source, reason, flow_of, packets, packet_bytes or len(packet), limit_bytes)
        if self.taps is not None:
            (self.taps.look(packet) if came is None else came).show(source, target, kind, reason, packets)

    def refuse(self, source: Party, view: View, lost: Lost) -> None:
        """Drop packets, and tell the sender by ICMP about the one at hand."""
        self.drop(source, lost._replace(kind=VerdictKind.REJECT))
        self.tell(source, view, lost.packet, lost.reason, lost.limit_bytes)

    def tell(self, source: Party, view: View, packet: memoryview, reason: DropReason, mtu_bytes: int = 0) -> None:
        """Tell the sender of a packet by ICMP why it went no further."""
        if not self._rate.allow(source.origin, self.now_s()):
            self.suppressed += 1
            return
        limit_bytes = mtu_bytes or self._settings.mtu_bytes
        error = make_error(bytes(packet), reason, view.snapshot.node_addresses, limit_bytes)
        if error is not None and self.emit(error, view) is None:
            source.tallies[self._thread].icmp_errors += 1

    def forward_in_fragments(
        self, packet: memoryview, partial: tuple[int, int] | None, source: Party, way: Way, view: View, mtu_bytes: int
    ) -> DropReason | None:
        """Fragment an IPv4 packet for a smaller link and send the pieces; the first failure ends it.

        `partial` is (csum_start, csum_offset) of a checksum still to be finished, as only whole packets can be.
        """
        whole = bytearray(packet)
        if partial is not None and not finish_checksum(whole, *partial):
            return DropReason.MALFORMED
        pieces = fragment(bytes(whole), mtu_bytes)
        if not pieces:
            return DropReason.MALFORMED
        for piece in pieces:
            reason = self._send(piece, source, way, view)
            if reason is not None:
                return reason
        return None

    def emit(self, packet: bytes, view: View) -> DropReason | None:
        """Send a packet of the router's own where the table leads; None when it is under way."""
        header = parse_ip(packet, 0, len(packet))
        if header is None:
            return DropReason.MALFORMED
        router = Origin(addresses=frozenset(address.packed for address in view.snapshot.node_addresses))
        way = view.way(header.addresses, router)
        return way.verdict.reason or self._send(packet, None, way, view)

    def _send(self, packet: bytes, source: Party | None, way: Way, view: View) -> DropReason | None:
        """Send a packet on; one of the router's own has no source."""
        target: Party
        if way.port is not None:
            target = way.port
            reason = write(way.port, memoryview(NO_OFFLOAD + packet), self._thread, 1, len(packet))
        else:
            assert way.peer is not None
            target = way.peer
            reason = self._tunnel(packet, way.peer, view.epoch)
        if reason is None and self.taps is not None:
            self.taps.after(packet, source, target, way.verdict.kind)
        return reason

    def _tunnel(self, packet: bytes, peer: Peer, epoch: int) -> DropReason | None:
        version = packet[0] >> 4
        vni = self._settings.vni
        offload = peer.next_hop.offload
        head = geneve.encode(vni, version, epoch=epoch) if offload else geneve.encode_plain(vni, version)
        datagram = head + packet
        reason, _ = self._sender.send(Train(memoryview(datagram), len(datagram), 1), peer)
        if reason is None:
            tally = peer.tallies[self._thread]
            tally.sent_packets += 1
            tally.sent_bytes += len(packet)
        return reason


def write(port: Port, frame: memoryview, thread: int, packets: int, packet_bytes: int) -> DropReason | None:
    """Write a frame (virtio header, IP packet) to a TUN and count it; None when the kernel took it."""
    if port.policer is not None and not port.admits(port.policer, packet_bytes):
        return DropReason.RATE_LIMITED
    try:
        os.write(port.fd, frame)
    except OSError as error:
        # EINVAL: virtio header and packet do not fit together (virtio_net_hdr_to_skb); EIO: the device is down
        return DropReason.MALFORMED if error.errno == 22 else DropReason.ATTACHMENT_DOWN
    tally = port.tallies[thread]
    tally.sent_packets += packets
    tally.sent_bytes += packet_bytes
    return None
