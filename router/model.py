"""The words of the router: immutable values that every other module speaks in. Pure, imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum, unique
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface

GENEVE_PORT = 6081
"""UDP port of Geneve (RFC 8926 section 3.3)."""

OVERHEAD_BYTES = {4: 48, 6: 68}
"""Bytes an underlay of that IP version adds: IP 20/40 + UDP 8 + Geneve 8 + option 12."""


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """Underlay address and UDP port at which a router receives."""

    address: Address
    port: int = GENEVE_PORT

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Node:
    """One row of the subnet table: a node, where its router listens, and the Pod ranges it owns."""

    name: str
    endpoint: Endpoint
    subnets: tuple[Prefix, ...]
    offload: bool = True
    """Whether its router understands Podwire's Geneve option; if not it gets plain Geneve, checksums finished."""
    epoch: int = 0
    """Grows by one each time the node takes its subnets anew, from 1; 0 when the table's source keeps no count."""


@dataclass(frozen=True, slots=True)
class SubnetTable:
    """The whole cluster's subnets at one version. Versions only grow; equal versions mean equal tables."""

    version: int
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where a route leads: the router of another node.

    Node and endpoint say which; the rest is what is known of it now, and may change while it stays the same peer.
    """

    node: str
    endpoint: Endpoint
    offload: bool = True
    epoch: int = 0
    """As in `Node`: its datagrams of an earlier epoch are dropped; 0: not looked at."""
    up: bool = True
    """Whether it answers probes; packets to one that does not are rejected at once."""
    mtu_bytes: int = 0
    """Largest inner packet that the path carries, as probes found it; 0: not known to be less than the overlay MTU."""


@dataclass(frozen=True, slots=True, order=True)
class AttachmentKey:
    """What identifies an attachment everywhere: a sandbox and an interface in it."""

    sandbox_id: str
    if_name: str

    def __str__(self) -> str:
        return f"{self.sandbox_id}/{self.if_name}"


@unique
class Zone(Enum):
    """What a prefix is that leads to no other node."""

    OWN_SUBNET = "own_subnet"
    """This node's Pod range: only attachments live there."""
    CLUSTER = "cluster"
    """The cluster range where nobody owns a part of it."""
    NEVER = "never"
    """Multicast, broadcast, link-local, loopback, unspecified."""


NODE_KEY = AttachmentKey("", "podwire0")
"""The node itself: the TUN in the node's own namespace. No sandbox can have an empty id."""


@unique
class Protocol(StrEnum):
    """A transport with ports."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the node that leads to a port of a Pod."""

    host_port: int
    container_port: int
    protocol: Protocol = Protocol.TCP
    host_address: Address | None = None
    """Of the node; None: each of its addresses, of every IP version the Pod has."""

    def overlaps(self, other: PortMapping) -> bool:
        """Tell whether a packet to the node could be meant by both."""
        same = (self.host_port, self.protocol) == (other.host_port, other.protocol)
        return same and (self.host_address == other.host_address or None in (self.host_address, other.host_address))

    def __str__(self) -> str:
        where = self.host_address or "*"
        return f"{f'[{where}]' if ':' in str(where) else where}:{self.host_port}/{self.protocol}"


@dataclass(frozen=True, slots=True)
class Limit:
    """How fast packets may go one way, as a token bucket; both in bytes of inner packets, from their IP header on."""

    bytes_per_s: int
    burst_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a Pod may receive (ingress) and send (egress); None: whatever it can."""

    ingress: Limit | None = None
    egress: Limit | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Attachment:
    """A Pod's TUN device, bound to a sandbox.

    `addresses` are the Pod's own (at most one a family unless asked for more), with the node subnet's prefix length.
    """

    key: AttachmentKey
    netns_path: str
    addresses: tuple[Interface, ...]
    mtu_bytes: int
    labels: tuple[tuple[str, str], ...] = ()
    """What the runtime told of the Pod (`namespace`, `name`, `uid`), for people to read."""
    owner: str = ""
    """Who asked for it: a runtime's Sync releases its own and nobody else's."""
    ports: tuple[PortMapping, ...] = ()
    limits: Limits = NO_LIMITS


@unique
class DropReason(StrEnum):
    """Why a packet went no further. The value is the counter's name."""

    NO_ROUTE = "no_route"
    """Inside the cluster range, but no node owns the destination."""
    NO_ATTACHMENT = "no_attachment"
    """Inside this node's subnet, but no Pod holds the destination."""
    EGRESS_DISABLED = "egress_disabled"
    """Outside the cluster, and this node does not let Pods out."""
    NOT_ROUTABLE = "not_routable"
    """Multicast, broadcast, link-local, loopback or unspecified: never carried."""
    TTL_EXPIRED = "ttl_expired"
    TOO_BIG = "too_big"
    """Larger than the next link and not to be fragmented."""
    MALFORMED = "malformed"
    """Not a packet: lengths or checksum of its IP header, or its virtio header, are wrong."""
    SPOOFED_SOURCE = "spoofed_source"
    """The sender does not hold the source address."""
    UNKNOWN_PEER = "unknown_peer"
    """A datagram from an underlay address that is no node's endpoint."""
    BAD_ENCAPSULATION = "bad_encapsulation"
    """Not Geneve version 0, a control packet, a critical option unknown here, or lengths that do not fit."""
    WRONG_NETWORK = "wrong_network"
    """Geneve of another network id (VNI)."""
    STALE_EPOCH = "stale_epoch"
    """From a peer that has lost its subnets since it last looked: they may be another's by now."""
    PEER_DOWN = "peer_down"
    """The router of the node that owns the destination does not answer."""
    WRONG_NODE = "wrong_node"
    """A peer sent what belongs to a third node: the tables differ."""
    ATTACHMENT_DOWN = "attachment_down"
    """The TUN took no packet: set down, or gone with its namespace."""
    UNDERLAY_BUSY = "underlay_busy"
    """The underlay socket stayed full."""
    RATE_LIMITED = "rate_limited"
    """It came to a Pod faster than its limit lets it."""
    UNDERLAY_ERROR = "underlay_error"
    """The underlay refused the datagram (no route to the peer's endpoint, interface down)."""
    ENGINE_FAILED = "engine_failed"
    """A thread of the engine met a bug while it had the packet in hand; it has begun afresh."""


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """Which packets belong together: the five-tuple of RFC 6146 section 2."""

    src: Address
    dst: Address
    protocol: int
    """IP protocol number: 6 TCP, 17 UDP, 132 SCTP, 1 ICMP, 58 ICMPv6."""
    src_port: int = 0
    """Of ICMP the type; 0 where there is none, as in fragments but the first."""
    dst_port: int = 0
    """Of ICMP the code."""


@unique
class VerdictKind(Enum):
    """What becomes of a packet."""

    LOCAL = "local"
    TUNNEL = "tunnel"
    REJECT = "reject"
    """Dropped, and its sender is told by an ICMP error."""
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a packet, where it goes, or why it does not.

    LOCAL has an AttachmentKey as target, TUNNEL a NextHop; REJECT and DROP have a reason and no target.
    """

    kind: VerdictKind
    target: AttachmentKey | NextHop | None = None
    reason: DropReason | None = None


@dataclass(frozen=True, slots=True)
class Offloads:
    """What the kernel does for us; each switch can be set off, or is set off by the start-up self-test."""

    tun_checksum: bool = True
    """TUN hands over and takes packets whose L4 checksum is partial (TUN_F_CSUM)."""
    tun_tso: bool = True
    """TUN carries TCP super-packets (TUN_F_TSO4, TSO6)."""
    tun_uso: bool = True
    """TUN carries UDP super-packets (TUN_F_USO4, USO6; Linux 6.2)."""
    udp_segment: bool = True
    """One send carries a train of datagrams (UDP_SEGMENT)."""
    udp_gro: bool = True
    """One receive brings a train of datagrams (UDP_GRO)."""
    max_segments: int = 128
    """Most datagrams in a train: 128, or 64 before Linux 6.9."""


@dataclass(slots=True)
class Tally:
    """Packets of one source by their fate. `received == delivered + tunnelled + sum(dropped)` between batches.

    A super-packet counts as the packets it stands for; bytes are those of inner packets' IP headers and payloads
    as read (a super-packet's header once).
    """

    received_packets: int = 0
    received_bytes: int = 0
    received_frames: int = 0
    """Reads that brought something: with super-packets and trains far fewer than packets."""
    delivered_packets: int = 0
    """Written to an attachment of this node."""
    tunnelled_packets: int = 0
    """Sent to another node."""
    dropped: dict[DropReason, int] = field(default_factory=dict)
    sent_packets: int = 0
    """The other direction: packets written to this attachment, or sent to this peer."""
    sent_bytes: int = 0
    icmp_errors: int = 0
    """ICMP errors made about this source's packets."""
    control_packets: int = 0
    """Probes and answers to probes that came from it. They are no packets of its Pods, and not in `received_packets`."""

    def drop(self, reason: DropReason, packets: int = 1) -> None:
        """Count packets that went no further."""
        self.dropped[reason] = self.dropped.get(reason, 0) + packets

    @property
    def balance(self) -> int:
        """Packets received and not accounted for; 0 unless there is a bug."""
        return self.received_packets - self.delivered_packets - self.tunnelled_packets - sum(self.dropped.values())

    def plus(self, other: Tally) -> Tally:
        """Return the sum of two tallies."""
        dropped = dict(self.dropped)
        for reason, packets in other.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + packets
        return Tally(
            self.received_packets + other.received_packets,
            self.received_bytes + other.received_bytes,
            self.received_frames + other.received_frames,
            self.delivered_packets + other.delivered_packets,
            self.tunnelled_packets + other.tunnelled_packets,
            dropped,
            self.sent_packets + other.sent_packets,
            self.sent_bytes + other.sent_bytes,
            self.icmp_errors + other.icmp_errors,
            self.control_packets + other.control_packets,
        )
