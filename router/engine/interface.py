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
answer goes to the host, and so does a question (wire/question.py) of at most `question.MOST_BYTES`, when no more than
`QUESTIONS_KEPT` wait. None is a packet: they are counted as `control_packets`, and in no other count but frames.
Drops: every packet that is counted as dropped is remembered with its flow, bounded (`drops`).
Peers: one with the same node and endpoint as before stays the same peer, with its counts, whatever else its NextHop says.
Bounds: no call waits longer than one batch (at most `BATCH_PACKETS` reads), however much traffic there is.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import NamedTuple, Protocol

from router.model import (
    Address,
    Attachment,
    AttachmentKey,
    DropReason,
    Endpoint,
    Flow,
    NextHop,
    Offloads,
    Tally,
    Verdict,
    VerdictKind,
    Zone,
)
from router.table import ForwardingTable
from router.wire.packet import Buffer

BATCH_PACKETS = 64
"""Most reads from one attachment or from the socket before others get their turn."""

BATCH_BYTES = 512 * 1024
"""Most bytes read from one of them before others get their turn."""

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64)
"""Upper bounds of the classes that `EngineCounters.batches` counts batches in, by their reads."""

QUESTIONS_KEPT = 64
"""Questions that may wait for the host; more are lost."""

DROPS_KEPT = 256
"""Flows whose drops each direction remembers; the oldest give way."""

SIGHTINGS_KEPT = 16384
"""Sightings that may wait to be fetched …"""

SIGHTING_BYTES_KEPT = 16 << 20
"""… and bytes of packets in them; what finds no room is counted as lost."""

Source = AttachmentKey | Endpoint
"""Who handed us a packet: an attachment, or a peer by its endpoint."""


@unique
class Side(Enum):
    """Of the router, on which a packet was seen."""

    BEFORE = "before"
    """As it was handed to the router."""
    AFTER = "after"
    """As the router handed it on."""


class Instruction(NamedTuple):
    """Of a classic BPF program (linux/filter.h, struct sock_filter)."""

    code: int
    jt: int
    jf: int
    k: int


@dataclass(frozen=True, slots=True)
class Tap:
    """What to copy of packets that pass.

    BEFORE is seen once for each frame, when its fate is known: for a packet that joins a run of others, that it is to be
    sent. AFTER is seen for what was written to an attachment, and for each packet that was sent to a peer, as it was in
    its datagram. What fails after all (UNDERLAY_BUSY, UNDERLAY_ERROR, TOO_BIG at the socket) is seen BEFORE once more,
    with that reason.
    """

    number: int
    """Tells whose sightings are whose; from 1."""
    party: Source | None = None
    """Only packets from or to that attachment or peer; None: all."""
    program: tuple[Instruction, ...] = ()
    """Only packets for which it returns anything but 0; it sees them from their IP header on, the packet whole. Empty:
    all. It was checked (router/wire/bpf.py)."""
    snap_bytes: int = 0xFFFF
    """Most bytes to copy of each."""
    every: int = 1
    """Look at one frame in so many, chosen at random."""
    sides: frozenset[Side] = frozenset(Side)
    dropped_only: bool = False
    """Only packets that are dropped or rejected; these are seen BEFORE."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet that a tap saw."""

    tap: int
    time_ns: int
    """CLOCK_REALTIME."""
    side: Side
    source: Source | None
    """Who handed it over; None for the router itself. An endpoint may be a stranger's."""
    target: Source | None
    """Where it went; None when nowhere."""
    verdict: VerdictKind
    reason: DropReason | None
    packets: int
    """How many it stands for: a super-packet is seen whole."""
    packet_bytes: int
    """Its length; `packet` may be less."""
    packet: bytes
    """From the IP header on; of a stranger's datagram, and of one that is no Geneve, the datagram."""


@dataclass(frozen=True, slots=True)
class DroppedFlow:
    """Packets of one flow from one source that were dropped for one reason."""

    source: Source
    """An endpoint may be a stranger's, or a peer's that is no more."""
    reason: DropReason
    flow: Flow | None
    """None when they were no packets."""
    packets: int
    first_ns: int
    """CLOCK_REALTIME."""
    last_ns: int
    packet_bytes: int
    """Of the last one: of a super-packet, what one of its packets has on the wire."""
    limit_bytes: int = 0
    """What the next link carries, of TOO_BIG; else 0."""


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
    batches: tuple[int, ...] = (0,) * len(BATCH_BOUNDS)
    """Batches that read something, by how many reads they had: class i up to BATCH_BOUNDS[i]."""


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

    def drops(self) -> tuple[DroppedFlow, ...]:
        """Return what was dropped lately, of each direction the `DROPS_KEPT` flows that were dropped last; newest first."""

    def watch(self, taps: tuple[Tap, ...]) -> None:
        """See packets by these taps from now on, by no others; () costs nothing. A party that is not there sees nothing."""

    def sightings(self, timeout_s: float) -> tuple[tuple[Sighting, ...], Mapping[int, int]]:
        """Return what was seen since the last call, oldest first, and by tap how many were lost since for lack of room.

        Waits for the first at most so long, and returns early when `watch` is called. One caller at a time.
        """


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

    def question_came(self, endpoint: Endpoint, datagram: bytes, received_ns: int) -> None:
        """The peer at an endpoint asks, or answers, a question about a packet (wire/question.py); CLOCK_MONOTONIC."""

    def engine_failed(self, why: str) -> None:
        """A bug: a thread of the engine met an exception it did not expect; it goes on with the next batch."""
