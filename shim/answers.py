"""What a router answers, as plain values. Names and meaning of the fields are those of docs/reference/api.md."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AttachmentKey:
    """A sandbox and an interface in it; an empty sandbox_id is the node itself."""

    sandbox_id: str
    if_name: str

    def __str__(self) -> str:
        return f"{self.sandbox_id or '(node)'}/{self.if_name}"


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the node that leads to a port of the Pod; an empty host address stands for all of them."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_address: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast packets go to (ingress) and from the Pod, in bits a second, and what may come at once, in bits; 0: no limit."""

    ingress_bits_per_s: int = 0
    ingress_burst_bits: int = 0
    egress_bits_per_s: int = 0
    egress_burst_bits: int = 0


@dataclass(frozen=True, slots=True)
class Attachment:
    """An attachment as it is; addresses with their prefix length."""

    key: AttachmentKey
    netns_path: str
    addresses: tuple[str, ...]
    mtu_bytes: int
    labels: dict[str, str]
    owner: str = ""
    ports: tuple[PortMapping, ...] = ()
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Underlay address and UDP port; port 0 stands for 6081 in what is sent."""

    address: str
    port: int = 0

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Node:
    """One row of the subnet table."""

    name: str
    endpoint: Endpoint
    subnets: tuple[str, ...]
    offload: bool = True
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class SubnetTable:
    """The whole subnet table at one version."""

    version: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class SubnetChange:
    """How the table came to be what it is at `version`."""

    version: int
    whole: bool
    upserted: tuple[Node, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """Packets of one source by their fate."""

    received_packets: int = 0
    received_bytes: int = 0
    received_frames: int = 0
    delivered_packets: int = 0
    tunnelled_packets: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    sent_packets: int = 0
    sent_bytes: int = 0
    icmp_errors: int = 0
    balance: int = 0
    control_packets: int = 0


@dataclass(frozen=True, slots=True)
class AttachmentCounters:
    """The count of one attachment."""

    key: AttachmentKey
    tally: Tally
    kernel_drops: int


@dataclass(frozen=True, slots=True)
class PeerCounters:
    """The count of one peer."""

    endpoint: Endpoint
    node: str
    tally: Tally


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node's router; `state` is "up", "down" or "unknown". What was not measured yet is None, or 0 bytes."""

    node: Node
    state: str
    heard_age_s: float | None
    rtt_s: float | None
    rtt_min_s: float | None
    loss: float
    mtu_bytes: int
    why: str
    tally: Tally | None


@dataclass(frozen=True, slots=True)
class ListPeersResponse:
    """All peers, and the version of the table that names them."""

    version: int
    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class Counters:
    """Everything counted since `epoch` began."""

    epoch: str
    attachments: tuple[AttachmentCounters, ...]
    peers: tuple[PeerCounters, ...]
    strangers: Tally
    gone: Tally
    icmp_suppressed: int
    socket_drops: int
    engine_restarts: int


@dataclass(frozen=True, slots=True)
class Offloads:
    """What the kernel does for the router."""

    tun_checksum: bool
    tun_tso: bool
    tun_uso: bool
    udp_segment: bool
    udp_gro: bool
    max_segments: int


@dataclass(frozen=True, slots=True)
class FreeAddresses:
    """Addresses left in one subnet."""

    subnet: str
    free: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The node's hold on its subnets."""

    held: bool
    epoch: int
    expires_in_s: float
    reserved: bool
    why: str


@dataclass(frozen=True, slots=True)
class SubnetSource:
    """Where the subnet table comes from, and how that stands; `lease` is None where nothing is leased."""

    kind: str
    where: str
    connected: bool
    confirmed_age_s: float
    error: str
    lease: Lease | None


@dataclass(frozen=True, slots=True)
class Status:
    """A router at a glance."""

    node: str
    engine: str
    version: str
    started_at_s: float
    networks: tuple[str, ...]
    subnets: tuple[str, ...]
    node_addresses: tuple[str, ...]
    endpoint: Endpoint
    mtu_bytes: int
    vni: int
    offloads: Offloads
    notes: tuple[str, ...]
    attachments: int
    peers: int
    table_version: int
    table_age_s: float
    free_addresses: tuple[FreeAddresses, ...]
    resident_bytes: int
    table_error: str
    peers_unreachable: int
    unreachable: tuple[str, ...]
    source: SubnetSource | None = None
    confinement: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `kind` is as "table_changed", "unspecified" when this client does not know it."""

    sequence: int
    at_s: float
    kind: str
    key: AttachmentKey | None
    node: str
    message: str
