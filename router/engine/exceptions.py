"""The slow path: packets that are not simply forwarded, and the packets a router itself makes about them.

refused   → drop counted → ICMP error, if the RFCs ask for one and the rate allows → towards the source
oversize  → IPv4 fragments → onwards
"""

from __future__ import annotations

import os
import time

from router.decide import Origin
from router.engine.interface import EngineSettings
from router.engine.ports import Party, Peer, Port, View, Way
from router.engine.rate import RateLimit
from router.engine.sender import Sender
from router.model import DropReason, VerdictKind
from router.wire import geneve
from router.wire.fragment import fragment
from router.wire.icmp import make_error
from router.wire.packet import NO_OFFLOAD, finish_checksum, parse_ip
from router.wire.segment import Train


class Exceptions:
    """Handles one thread's exceptions; its packets are not counted as received from anybody."""

    def __init__(self, settings: EngineSettings, sender: Sender, thread: int) -> None:
        self._settings = settings
        self._sender = sender
        self._thread = thread
        self._rate = RateLimit(settings.icmp_errors_per_s, settings.icmp_errors_per_s)
        self.suppressed = 0

    @staticmethod
    def now_s() -> float:
        """Return a monotonic time."""
        return time.monotonic()

    def refuse(
        self, source: Party, view: View, packet: memoryview, reason: DropReason, packets: int = 1, mtu_bytes: int = 0
    ) -> None:
        """Count `packets` as dropped, and tell the sender by ICMP about the one at hand."""
        tally = source.tallies[self._thread]
        tally.drop(reason, packets)
        if not self._rate.allow(source.origin, self.now_s()):
            self.suppressed += 1
            return
        limit_bytes = mtu_bytes or self._settings.mtu_bytes
        error = make_error(bytes(packet), reason, view.snapshot.node_addresses, limit_bytes)
        if error is not None and self.emit(error, view) is None:
            tally.icmp_errors += 1

    def forward_in_fragments(
        self, packet: memoryview, partial: tuple[int, int] | None, way: Way, view: View, mtu_bytes: int
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
            reason = self._send(piece, way, view)
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
        return way.verdict.reason or self._send(packet, way, view)

    def _send(self, packet: bytes, way: Way, view: View) -> DropReason | None:
        if way.verdict.kind is VerdictKind.LOCAL and way.port is not None:
            return write(way.port, memoryview(NO_OFFLOAD + packet), self._thread, 1, len(packet))
        assert way.peer is not None
        return self._tunnel(packet, way.peer, view.epoch)

    def _tunnel(self, packet: bytes, peer: Peer, epoch: int) -> DropReason | None:
        version = packet[0] >> 4
        vni = self._settings.vni
        offload = peer.next_hop.offload
        head = geneve.encode(vni, version, epoch=epoch) if offload else geneve.encode_plain(vni, version)
        datagram = head + packet
        _, reason = self._sender.send(Train(memoryview(datagram), len(datagram), 1), peer)
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
