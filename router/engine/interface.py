"""The engine contract: what carries packets, and what it may count on. Every engine passes the same tests.

Ownership: an engine is handed open fds and immutable snapshots; it opens nothing, closes nothing and calls no RPC. The
caller closes an attachment's fd after `detach` returns, and the socket after `stop`.
Order: packets of one flow leave in the order they came. A snapshot or attachment handed over takes effect before the
next batch; no packet sees half of one.
Limits: what an attachment may send is shaped: while it is in debt its fd is not read, and the device's queue pushes back
on the Pod. What it may receive is policed: a frame that finds no tokens is dropped and counted (RATE_LIMITED) with whoever
sent it; so are the router's own ICMP errors, but not counted. Both are token buckets, full at `attach`, one for all threads,
that a frame may put into debt (bucket.py); a shaper's holds 5 ms of its rate at least.
Probes: a request from a known peer (wire/probe.py) is answered in the data path, by a datagram of the header alone; an
answer goes to the host. Neither is a packet: they are counted as `control_packets`, and in no other count but frames.
Peers: one with the same node and endpoint as before stays the same peer, with its counts, whatever else its NextHop says.
Bounds: no call waits longer than one batch (at most `BATCH_PACKETS` reads), however much traffic there is.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from router.model import (
    Address,
    Attachment,
    AttachmentKey,
    Endpoint,
    NextHop,
    Offloads,
    Tally,
    Verdict,
    Zone,
)
from router.table import ForwardingTable
from router.wire.packet import Buffer

BATCH_PACKETS = 64
"""Most reads from one attachment or from the socket before others get their turn."""

BATCH_BYTES = 512 * 1024
"""Most bytes read from one of them before others get their turn."""

Source = AttachmentKey | Endpoint
"""Who handed us a packet: an attachment, or a peer by its endpoint."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything routing needs to know of the cluster, at one version of the subnet table."""

    version: int
    table: ForwardingTable[NextHop | Zone]
    """Subnets of other nodes to their NextHop; own subnets, the cluster range and never-carried ranges to a Zone."""
    peers: tuple[NextHop, ...] = ()
    egress: bool = True
    """Whether Pods may reach what lies outside the cluster, through the node."""
    node_addresses: tuple[Address, ...] = ()
    """The node's overlay addresses: it answers to them and sends ICMP errors from them."""
    epoch: int = 0
    """The node's own, sent along with every packet (modulo 256)."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is told once."""

    vni: int = 1
    mtu_bytes: int = 1452
    """Overlay MTU: the largest inner packet the underlay carries."""
    overhead_bytes: int = 48
    offloads: Offloads = field(default_factory=Offloads)
    threads: int = 2
    """1: one thread carries both directions. 2: one each; faster only where there are cores for both."""
    spin_us: int = 0
    """How long a thread looks for more before it sleeps; an engine that cannot may ignore it."""
    spin_percent: int = 50
    """Most of a core that looking may take."""
    icmp_errors_per_s: int = 100
    """Most ICMP errors a second to one source (RFC 4443 section 2.4 f), and as many at once."""


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Everything counted since the engine was made, consistent between two batches."""

    attachments: Mapping[AttachmentKey, Tally]
    peers: Mapping[Endpoint, Tally]
    strangers: Tally
    """Datagrams from no known peer."""
    gone: Tally
    """The sum of attachments and peers that are no more."""
    icmp_suppressed: int = 0
    """ICMP errors not sent because of the rate limit."""
    socket_drops: int = 0
    """Drops by the kernel at the underlay socket (SK_MEMINFO_DROPS); it counts a train of datagrams as one."""
    restarts: int = 0
    """How often a thread met a bug and began afresh; what it had in hand is counted as ENGINE_FAILED."""


class Engine(Protocol):
    """Carries packets between attachments and peers."""

    name: str
    """As `--engine` says it."""

    def replace_routes(self, snapshot: Snapshot) -> None:
        """Swap the whole snapshot in. Peers no longer in it are unknown from the next batch on."""

    def attach(self, attachment: Attachment, fd: int) -> None:
        """Carry packets of an attachment; fd is its non-blocking TUN with virtio header. ValueError if it is there."""

    def detach(self, key: AttachmentKey) -> Tally:
        """Stop carrying, return the final count; afterwards the fd is the caller's. KeyError if it is not there."""

    def decide(self, packet: Buffer, source: Source) -> Verdict:
        """Say what would become of an IP packet from that source. Pure: changes nothing, counts nothing."""

    def start(self) -> None:
        """Forward in threads of the engine's own until `stop`."""

    def stop(self) -> None:
        """End the threads; pending packets are sent first. Can be started again."""

    def close(self) -> None:
        """Free what the engine itself made; it was stopped before, and is not used again."""

    def forward(self, budget: int) -> int:
        """Handle at most `budget` waiting reads in the caller's thread, without blocking; return how many there were.

        Only while not started.
        """

    def counters(self) -> EngineCounters:
        """Return everything counted so far."""


EngineFactory = Callable[[EngineSettings, Snapshot, socket.socket, "Host"], Engine]
"""Settings, first snapshot, bound non-blocking UDP socket, and the daemon it works for."""


class Host(Protocol):
    """What an engine tells and asks its daemon, from its own threads: rare things only, never one a packet.

    None of these may call the engine back: it waits for them.
    """

    def path_mtu(self, endpoint: Endpoint) -> int:
        """Return the underlay's path MTU to an endpoint in bytes, as the kernel knows it now."""

    def attachment_lost(self, key: AttachmentKey, why: str) -> None:
        """The fd is dead: its device or namespace is gone. The engine has stopped reading it."""

    def offload_failed(self, feature: str, why: str) -> None:
        """The kernel refused an offload at run time; the engine goes on without it."""

    def probe_answered(self, endpoint: Endpoint, answer: bytes, received_ns: int) -> None:
        """The peer at an endpoint answered a probe: the datagram, and when it was received (CLOCK_MONOTONIC)."""

    def engine_failed(self, why: str) -> None:
        """A bug: a thread of the engine met an exception it did not expect; it goes on with the next batch."""
