"""What a router decides about a packet: asked of its engine, and said in words."""

from __future__ import annotations

from dataclasses import dataclass

from router.engine.interface import Engine, Source
from router.model import NODE_KEY, AttachmentKey, DropReason, NextHop, VerdictKind
from router.observe.names import Names
from router.observe.trace.packet import MOST_BYTES, resized
from router.wire.flow import flow_of
from router.wire.packet import parse_ip

LATELY_NS = 10_000_000_000
"""How long ago a drop may be that still explains the packets of now."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A router's."""

    node: str
    verdict: VerdictKind | None
    """None: it did not say."""
    reason: str = ""
    """Why it goes no further; where it does, why packets of that flow were dropped lately in spite of it."""
    target: str = ""
    mtu_bytes: int = 0
    """Of the link it would take; 0 where none is taken."""
    outside: bool = False
    """Whether it leaves the cluster here, through the node's own kernel."""

    @property
    def holder(self) -> bool:
        """Whether the target is who holds the destination."""
        return self.verdict is VerdictKind.LOCAL and not self.outside

    @property
    def refused(self) -> bool:
        """Whether it goes no further."""
        return self.verdict in (VerdictKind.REJECT, VerdictKind.DROP)


@dataclass(frozen=True, slots=True)
class Judged:
    """A decision, and whom it leads to."""

    decision: Decision
    next_hop: NextHop | None = None


def judge(engine: Engine, names: Names, packet: bytes, source: Source) -> Judged:
    """Ask this node's engine. Raise KeyError for a source that is not there."""
    verdict = engine.decide(packet, source)
    mtu_bytes = _link_mtu(engine, packet, source)
    target, next_hop, outside = "", None, False
    if isinstance(verdict.target, NextHop):
        next_hop = verdict.target
        target = next_hop.node
    elif isinstance(verdict.target, AttachmentKey):
        target = names.pod(verdict.target)
        header = parse_ip(packet, 0, len(packet))
        outside = (
            verdict.target == NODE_KEY
            and header is not None
            and header.addresses[len(header.addresses) >> 1 :] not in {address.packed for address in names.own}
        )
    reason = str(verdict.reason) if verdict.reason is not None else ""
    return Judged(Decision(names.own_name, verdict.kind, reason, target, mtu_bytes, outside), next_hop)


def dropped_lately(engine: Engine, packet: bytes, source: Source | None, since_ns: int) -> str:
    """Return why packets between these two addresses were dropped since then (CLOCK_REALTIME), or nothing.

    Only those that a source handed over; None: from anybody.
    """
    flow = flow_of(packet)
    if flow is None:
        return ""
    for drop in engine.drops():
        if drop.flow is None or drop.last_ns < since_ns or source not in (None, drop.source):
            continue
        # A hop limit that is used up is what a probe of the trace itself is for.
        if (drop.flow.src, drop.flow.dst) == (flow.src, flow.dst) and drop.reason is not DropReason.TTL_EXPIRED:
            return str(drop.reason)
    return ""


def _link_mtu(engine: Engine, packet: bytes, source: Source) -> int:
    """Return the largest packet that may go where this one goes: what the engine itself would let pass. 0: none."""
    header = parse_ip(packet, 0, len(packet))
    if header is None:
        return 0
    low, high = header.header_bytes + 20, MOST_BYTES
    if engine.decide(resized(packet, low), source).reason is not None:
        return 0
    while low < high:
        size = (low + high + 1) // 2
        if engine.decide(resized(packet, size), source).reason is DropReason.TOO_BIG:
            high = size - 1
        else:
            low = size
    return low
