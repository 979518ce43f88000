"""What each reason for a drop means, and what to do about it, for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from router.model import DropReason


class Reason(NamedTuple):
    """A reason in words."""

    meaning: str
    """What happened, as it follows "dropped:"."""
    advice: str
    """What to do, as a sentence."""


REASONS: Final[Mapping[DropReason, Reason]] = MappingProxyType(
    {
        DropReason.NO_ROUTE: Reason(
            "no node owns the destination, though it is inside the cluster range",
            "See `podwire routes` and `podwire subnets list`: is its node missing in the table, or is the address wrong?",
        ),
        DropReason.NO_ATTACHMENT: Reason(
            "no Pod on this node holds the destination, though it is in this node's subnet",
            "See `podwire pods`: the Pod is gone or was never attached; who still sends to it has an old address.",
        ),
        DropReason.EGRESS_DISABLED: Reason(
            "the destination is outside the cluster, and this node lets no Pod out",
            "Run the router with --egress if Pods may reach the outside; else nothing is wrong.",
        ),
        DropReason.NOT_ROUTABLE: Reason(
            "the destination is multicast, broadcast, link-local, loopback or unspecified, and such is never carried",
            "Nothing to do for router solicitations and the like; programs must use unicast addresses of Pods.",
        ),
        DropReason.TTL_EXPIRED: Reason(
            "its hop limit (TTL) was used up",
            "Nothing to do for a traceroute; else look for a loop, or for a program that sets a small TTL.",
        ),
        DropReason.TOO_BIG: Reason(
            "it is larger than the next link carries and must not be cut into fragments",
            "The sender was told by ICMP; if it goes on, a firewall in the Pod drops ICMP, or the MTU of its "
            "interface is too large (`podwire pods`, `podwire peers`).",
        ),
        DropReason.MALFORMED: Reason(
            "it is no IP packet: lengths or checksum of its header are wrong",
            "Look at what sends it with `podwire capture --dropped`; it is a bug there, or an attack.",
        ),
        DropReason.SPOOFED_SOURCE: Reason(
            "the sender does not hold the source address",
            "From a Pod: it sends from an address that `podwire pods` does not give it (forwarding, an extra address, a VPN). "
            "From a peer: the tables of both nodes differ (`podwire subnets list` on both), or that node lies.",
        ),
        DropReason.UNKNOWN_PEER: Reason(
            "it came from an underlay address that is no node's endpoint",
            "See `podwire peers`: is that node missing in the table, or does it send from another address "
            "(NAT, a second interface, --underlay)?",
        ),
        DropReason.BAD_ENCAPSULATION: Reason(
            "it is no Geneve packet that this router understands",
            "Something else sends to this UDP port, or that node runs another tunnel or a newer version.",
        ),
        DropReason.WRONG_NETWORK: Reason(
            "it belongs to another network id (VNI)",
            "Give both routers the same --vni; two clusters on one underlay need different endpoints.",
        ),
        DropReason.STALE_EPOCH: Reason(
            "its sender has lost its subnets since it last looked at the table",
            "See `podwire status` on that node: it must reach the store of the subnet table again.",
        ),
        DropReason.PEER_DOWN: Reason(
            "the router of the node that owns the destination does not answer",
            "See `podwire peers` for why, and whether that node, its router and the underlay to it are up.",
        ),
        DropReason.WRONG_NODE: Reason(
            "a peer sent it here, but another node owns the destination: the tables differ",
            "Compare `podwire subnets list` on both nodes; the one with the lower version lags (`podwire status`).",
        ),
        DropReason.ATTACHMENT_DOWN: Reason(
            "the Pod's interface took no packet: it is set down, or gone with its namespace",
            "Set it up in the Pod (`ip link set eth0 up`), or detach the Pod (`podwire status` names lost devices).",
        ),
        DropReason.UNDERLAY_BUSY: Reason(
            "the underlay's socket stayed full",
            "The network card is slower than the Pods send; limit them (--egress-rate), or look at the card.",
        ),
        DropReason.RATE_LIMITED: Reason(
            "it came to the Pod faster than the Pod's limit lets it",
            "Raise the Pod's ingress limit if that is not meant (`podwire pods --json`).",
        ),
        DropReason.UNDERLAY_ERROR: Reason(
            "the underlay refused the datagram: no route to the peer, or its interface is down",
            "Look at `ip route get` of the peer's endpoint (`podwire peers`) on this node, and at its firewall.",
        ),
        DropReason.ENGINE_FAILED: Reason(
            "the engine met a bug while it had the packet in hand, and began afresh",
            "See `podwire events` and the router's log, and report it.",
        ),
    }
)


def meaning(reason: DropReason, packet_bytes: int = 0, limit_bytes: int = 0) -> str:
    """Say what happened; of a packet that was too big with both sizes, where they are known."""
    if reason is DropReason.TOO_BIG and packet_bytes and limit_bytes:
        return f"its {packet_bytes} bytes are more than the {limit_bytes} of the next link, and it must not be cut"
    return REASONS[reason].meaning


def explain(reason: DropReason, packet_bytes: int = 0, limit_bytes: int = 0) -> str:
    """Say what happened and what to do, in one line."""
    said = meaning(reason, packet_bytes, limit_bytes)
    return f"{said[0].upper()}{said[1:]}. {REASONS[reason].advice}"
