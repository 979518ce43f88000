"""What becomes of a packet: the one place where a packet is forwarded, refused or dropped for a reason. Pure.

    addresses → does the source hold its address? → who holds the destination? → Verdict (the same for a whole flow)
    header    → does it live long enough, is it small enough for the way the verdict names?

Policy will sit here: nothing else may drop a well-formed packet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.model import NODE_KEY, AttachmentKey, DropReason, NextHop, Verdict, VerdictKind, Zone
from router.table import ForwardingTable
from router.wire.packet import IpHeader


@dataclass(frozen=True, slots=True)
class Origin:
    """Who handed us a packet: an attachment with the addresses it holds, a peer, or (neither) the router itself."""

    attachment: AttachmentKey | None = None
    addresses: frozenset[bytes] = frozenset()
    peer: NextHop | None = None

    @property
    def is_node(self) -> bool:
        """Tell the node's own attachment, which with its router counts as one hop."""
        return self.attachment == NODE_KEY


@dataclass(frozen=True, slots=True)
class Place:
    """Where the deciding router stands: its table, and who on this node holds which address."""

    table: ForwardingTable[NextHop | Zone]
    holders: Mapping[bytes, AttachmentKey]
    """Packed address to attachment; the node's own addresses lead to NODE_KEY."""
    egress: bool = True


def _refuse(kind: VerdictKind, reason: DropReason) -> Verdict:
    return Verdict(kind, None, reason)


_SPOOFED = _refuse(VerdictKind.DROP, DropReason.SPOOFED_SOURCE)
_NOT_ROUTABLE = _refuse(VerdictKind.DROP, DropReason.NOT_ROUTABLE)
_NO_ROUTE = _refuse(VerdictKind.REJECT, DropReason.NO_ROUTE)
_NO_ATTACHMENT = _refuse(VerdictKind.REJECT, DropReason.NO_ATTACHMENT)
_PEER_DOWN = _refuse(VerdictKind.REJECT, DropReason.PEER_DOWN)
_WRONG_NODE = _refuse(VerdictKind.REJECT, DropReason.WRONG_NODE)
_EGRESS_DISABLED = _refuse(VerdictKind.REJECT, DropReason.EGRESS_DISABLED)
_TO_NODE = Verdict(VerdictKind.LOCAL, NODE_KEY)
MALFORMED = _refuse(VerdictKind.DROP, DropReason.MALFORMED)
TTL_EXPIRED = _refuse(VerdictKind.REJECT, DropReason.TTL_EXPIRED)
TOO_BIG = _refuse(VerdictKind.REJECT, DropReason.TOO_BIG)


def decide_addresses(addresses: bytes, origin: Origin, place: Place) -> Verdict:
    """Decide by source and destination, as they stand side by side in the header (8 or 32 bytes)."""
    half = len(addresses) >> 1
    src, dst = addresses[:half], addresses[half:]
    leads_to = place.table.lookup(dst)
    if leads_to is Zone.NEVER:
        return _NOT_ROUTABLE
    if not _holds_source(src, origin, place):
        return _SPOOFED
    holder = place.holders.get(dst)
    if holder is not None:
        return Verdict(VerdictKind.LOCAL, holder)
    if isinstance(leads_to, NextHop):
        if origin.peer is not None:
            return _WRONG_NODE
        if origin.is_node and src not in origin.addresses:
            return _SPOOFED  # the peer would take it for an intruder: its source lies in no subnet of ours
        return Verdict(VerdictKind.TUNNEL, leads_to) if leads_to.up else _PEER_DOWN
    if leads_to is Zone.OWN_SUBNET:
        return _NO_ATTACHMENT
    if leads_to is Zone.CLUSTER or origin.peer is not None or origin.is_node:
        return _NO_ROUTE
    return _TO_NODE if place.egress else _EGRESS_DISABLED


def same_peer(one: NextHop, other: NextHop) -> bool:
    """Tell whether two next hops are one peer, whatever else is known of it at either time."""
    return one is other or (one.node == other.node and one.endpoint == other.endpoint)


def _holds_source(src: bytes, origin: Origin, place: Place) -> bool:
    """Tell whether the origin may send from that address.

    An attachment sends from its own addresses; a peer from the prefixes routed to it; the node from its own, and for
    the outside world, whose answers to Pods come through it.
    """
    if origin.peer is not None:
        leads_to = place.table.lookup(src)
        return isinstance(leads_to, NextHop) and same_peer(leads_to, origin.peer)
    return src in origin.addresses or (origin.is_node and place.table.index(src) == 0)


def decide_transit(header: IpHeader, packet_bytes: int, limit_bytes: int, hop: bool) -> Verdict | None:
    """Refuse a packet that may go no further: hop limit used up, or too big for the way and not to be fragmented.

    `packet_bytes` is the size on the wire: of one segment, for a super-packet. `hop` is False where node and router
    count as one. None means it may pass, if need be in fragments.
    """
    if hop and header.hop_limit <= 1:
        return TTL_EXPIRED
    if packet_bytes > limit_bytes and not header.may_fragment:
        return TOO_BIG
    return None
