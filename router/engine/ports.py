"""What the Python engine keeps of each attachment and peer, and the view of all of them that one batch works with."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from router.decide import Origin, Place, decide_addresses
from router.engine.bucket import Bucket
from router.engine.interface import Snapshot, Source
from router.model import NODE_KEY, Attachment, AttachmentKey, Endpoint, Limit, NextHop, Tally, Verdict

EGRESS, INGRESS = 0, 1
"""The two threads. Each counts in a tally of its own, so that no count needs a lock."""

_WAYS_KEPT = 4096
"""Most flows remembered for a source; past it the memory is emptied and filled anew."""


_PATH_MTU_KEPT_S = 600.0
_LEAST_MTU_BYTES = 68
"""What every IPv4 link carries (RFC 791 section 3.2); a peer claiming less is not believed."""
_LEAST_SHAPED_S = 0.005
"""A shaper holds that much of its rate at least: woken by a clock of whole milliseconds, it would lose what comes between."""


_NOTHING = Tally()
_serials = itertools.count(1)


class Party:
    """A source and sink of packets: what it may send, and its counts by thread."""

    __slots__ = ("source", "name", "origin", "tallies", "mtu_bytes", "_ways", "_view_serial")

    def __init__(self, source: Source, origin: Origin, mtu_bytes: int) -> None:
        self.source = source
        self.name = str(source)
        """Tells it from others: a string is hashed once, a key anew each time."""
        self.origin = origin
        self.tallies = (Tally(), Tally())
        self.mtu_bytes = mtu_bytes
        self._ways: dict[bytes, Way] = {}
        self._view_serial = 0

    def ways(self, view: View) -> dict[bytes, Way]:
        """Return the flows remembered under this view: addresses to way. Of the thread that reads this party only."""
        # Not the view itself: it holds this party, and a circle is never freed here (collector.py).
        if self._view_serial != view.serial or len(self._ways) >= _WAYS_KEPT:
            self._ways = {}
            self._view_serial = view.serial
        return self._ways

    def forget_ways(self) -> None:
        """Let go of every party its flows led to; it has left."""
        self._ways = {}

    @property
    def tally(self) -> Tally:
        """Sum of both threads' counts; one and the same empty tally for all who were never heard of."""
        out, into = self.tallies
        if not (out.received_frames or into.received_frames or out.sent_packets or into.sent_packets):
            return _NOTHING
        return out.plus(into)


class Port(Party):
    """An attachment and its TUN fd."""

    __slots__ = ("attachment", "fd", "is_node", "lost", "shaper", "policer", "_policing")

    def __init__(self, attachment: Attachment, fd: int) -> None:
        addresses = frozenset(interface.ip.packed for interface in attachment.addresses)
        super().__init__(attachment.key, Origin(attachment.key, addresses), attachment.mtu_bytes)
        self.attachment = attachment
        self.fd = fd
        self.is_node = attachment.key == NODE_KEY
        self.lost = False
        limits, now_s = attachment.limits, time.monotonic()
        self.shaper = Bucket(_shaped(limits.egress), now_s) if limits.egress else None
        """What the Pod may send: of the thread that reads it."""
        self.policer = Bucket(limits.ingress, now_s) if limits.ingress else None
        """What it may receive; ask `admits`."""
        self._policing = threading.Lock()

    def admits(self, policer: Bucket, packet_bytes: int) -> bool:
        """Tell whether its policer lets a packet be written to the Pod, and count it if so. Of any thread."""
        with self._policing:
            return policer.admit(packet_bytes, time.monotonic())


def _shaped(limit: Limit) -> Limit:
    return Limit(limit.bytes_per_s, max(limit.burst_bytes, int(limit.bytes_per_s * _LEAST_SHAPED_S)))


class Peer(Party):
    """A remote router and the socket address it receives at."""

    __slots__ = ("next_hop", "sockaddr", "segmenting", "_overlay_mtu_bytes", "_lowered_bytes", "_lowered_until_s")

    next_hop: NextHop
    """What the snapshot in force says of it."""

    def __init__(self, next_hop: NextHop, mtu_bytes: int) -> None:
        # The origin stays that of the first next hop: who it is does not change, and its rate of errors is kept by it.
        super().__init__(next_hop.endpoint, Origin(peer=next_hop), mtu_bytes)
        self._overlay_mtu_bytes = self._lowered_bytes = mtu_bytes
        self._lowered_until_s = 0.0
        self.sockaddr = (str(next_hop.endpoint.address), next_hop.endpoint.port)
        self.segmenting = True
        """Whether trains go out by UDP_SEGMENT; off once its interface has refused one."""
        self.become(next_hop)

    def become(self, next_hop: NextHop) -> None:
        """Take over what a new snapshot says of the same peer; between two batches."""
        self.next_hop = next_hop
        self._limit()

    def _limit(self) -> None:
        """Let packets be as large as the path is known to carry, and as the kernel has not refused of late."""
        known_bytes = self.next_hop.mtu_bytes or self._overlay_mtu_bytes
        self.mtu_bytes = min(self._overlay_mtu_bytes, max(_LEAST_MTU_BYTES, min(known_bytes, self._lowered_bytes)))

    def lower_mtu(self, mtu_bytes: int, now_s: float) -> None:
        """Take the path for smaller than it was, for ten minutes (RFC 1191 section 6.3)."""
        self._lowered_bytes = min(self._lowered_bytes, mtu_bytes)
        self._lowered_until_s = now_s + _PATH_MTU_KEPT_S
        self._limit()

    def forget_mtu(self, now_s: float) -> None:
        """Try the full size again once a lowered MTU has grown old."""
        if now_s >= self._lowered_until_s:
            self._lowered_bytes = self._overlay_mtu_bytes
            self._limit()


class Way(NamedTuple):
    """A verdict with its target looked up, ready to be used."""

    verdict: Verdict
    port: Port | None
    peer: Peer | None


class View:
    """Snapshot, attachments and peers as one batch sees them: never changed, replaced whole."""

    __slots__ = ("snapshot", "ports", "peers", "place", "serial", "epoch", "by_sockaddr", "by_host")

    def __init__(
        self,
        snapshot: Snapshot,
        ports: Mapping[AttachmentKey, Port],
        peers: Mapping[Endpoint, Peer],
        last: View | None = None,
    ) -> None:
        """`last` is the view this one replaces; with the same peers, it lends what is known of them."""
        self.serial = next(_serials)
        self.snapshot = snapshot
        self.epoch = snapshot.epoch & 0xFF
        """As it goes on the wire."""
        self.ports = ports
        self.peers = peers
        holders = {address: key for key, port in ports.items() for address in port.origin.addresses}
        self.place = Place(snapshot.table, holders, snapshot.egress and NODE_KEY in ports)
        self.by_sockaddr: dict[tuple[str, int], Peer]
        self.by_host: dict[str, Peer | None]
        if last is not None and last.peers is peers:
            self.by_sockaddr, self.by_host = last.by_sockaddr, last.by_host
            return
        self.by_sockaddr = {peer.sockaddr: peer for peer in peers.values()}
        self.by_host = {}
        for peer in peers.values():
            host = peer.sockaddr[0]
            self.by_host[host] = None if host in self.by_host else peer

    def sender(self, sockaddr: tuple[str, int]) -> Peer | None:
        """Return the peer that sent from there, or None for a stranger.

        A peer that speaks plain Geneve may use any source port (RFC 8926 section 3.3), as long as its host is its own.
        """
        peer = self.by_sockaddr.get(sockaddr)
        if peer is None:
            peer = self.by_host.get(sockaddr[0])
            if peer is not None and peer.next_hop.offload:
                return None
        return peer

    def way(self, addresses: bytes, origin: Origin) -> Way:
        """Decide by addresses and look the target up."""
        verdict = decide_addresses(addresses, origin, self.place)
        target = verdict.target
        if isinstance(target, AttachmentKey):
            return Way(verdict, self.ports[target], None)
        return Way(verdict, None, self.peers[target.endpoint] if target is not None else None)
