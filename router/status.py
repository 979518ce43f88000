"""What the daemon is asked and what it answers, beyond the words of the model: plain values for `control`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from router.engine.interface import EngineCounters
from router.model import NO_LIMITS, Address, AttachmentKey, Endpoint, Limits, Node, Offloads, PortMapping, Prefix, Tally
from router.peers.prober import Report
from router.subnets.source import SourceState


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """An attachment someone wants; `addresses` may be empty, then the daemon chooses."""

    key: AttachmentKey
    netns_path: str
    addresses: tuple[Address, ...] = ()
    mtu_bytes: int = 0
    """0 stands for the overlay MTU."""
    labels: tuple[tuple[str, str], ...] = ()
    """Ordered by key, so that equal requests compare equal."""
    owner: str = ""
    ports: tuple[PortMapping, ...] = ()
    limits: Limits = NO_LIMITS
    began_ns: int = 0
    """When the caller began (CLOCK_BOOTTIME); 0: now. One that began before its key was last detached is refused."""


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What somebody believes of an attachment."""

    key: AttachmentKey
    netns_path: str = ""
    """Empty: wherever it was attached."""
    addresses: tuple[Address, ...] = ()
    routes: tuple[Prefix, ...] = ()
    """Destinations it must have a route to."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Everything counted since `epoch` began."""

    engine: EngineCounters
    kernel_drops: Mapping[AttachmentKey, int]
    """Packets the kernel dropped at each TUN's full ring."""
    epoch: str
    """Changes when the counters start at 0."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """A peer at a glance."""

    node: Node
    report: Report | None
    """What probes found; None when it is not asked."""
    tally: Tally | None
    """None before anything was counted."""


@dataclass(frozen=True, slots=True)
class Status:
    """A router at a glance."""

    node: str
    engine: str
    version: str
    started_at_s: float
    """Unix time."""
    networks: tuple[Prefix, ...]
    subnets: tuple[Prefix, ...]
    node_addresses: tuple[Address, ...]
    endpoint: Endpoint
    mtu_bytes: int
    vni: int
    offloads: Offloads
    notes: tuple[str, ...] = ()
    """Offloads that are switched off, and why."""
    attachments: int = 0
    peers: int = 0
    table_version: int = 0
    table_age_s: float = 0.0
    free_addresses: Mapping[Prefix, int] = field(default_factory=dict)
    resident_bytes: int = 0
    table_error: str = ""
    """Why the newest table was refused; empty when it is in force."""
    peers_unreachable: int = 0
    """Peers that do not answer, or that the kernel has no way to."""
    unreachable: tuple[str, ...] = ()
    """Some of them, each with the reason."""
    source: SourceState | None = None
    confinement: str = ""
    """What the router gave up, in words."""
