"""Counters of routers that come and go: held to what they promise, and added up over their lives. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from shim.answers import AttachmentKey, Counters, Tally

_FIELDS = (
    "received_packets", "received_bytes", "received_frames", "delivered_packets", "tunnelled_packets",
    "sent_packets", "sent_bytes", "icmp_errors", "control_packets",
)  # fmt: skip
OF_LIARS = frozenset({"spoofed_source", "unknown_peer", "bad_encapsulation", "wrong_network", "not_routable"})
"""Reasons that no datagram of ours is dropped for (not routable is what kernels send to all): they explain nothing."""


@dataclass(slots=True)
class _Node:
    """One router in all its lives."""

    epoch: str = ""
    totals: Counter[str] = field(default_factory=Counter)
    """Of the epoch at hand: the sum of every tally, those that are gone included."""
    local: Counter[str] = field(default_factory=Counter)
    """Of the epoch at hand: drops of attachments, and of whatever is gone, by reason."""
    peers: dict[str, Counter[str]] = field(default_factory=dict)
    rings: dict[AttachmentKey, int] = field(default_factory=dict)
    sockets: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    """Of all epochs: drops by reason, whoever was the source."""
    drops_local: int = 0
    drops_from: Counter[str] = field(default_factory=Counter)
    ring_drops: int = 0
    socket_drops: int = 0


class Accounts:
    """All routers' counters, as they were read one after the other."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def observe(self, node: str, found: Counters) -> list[str]:
        """Take a reading; return what is wrong with it."""
        wrong = [
            f"{node}: {name} has a balance of {tally.balance}: {tally}"
            for name, tally in _tallies(found)
            if tally.balance
        ]
        if found.engine_restarts:
            wrong.append(f"{node}: a thread of the engine met a bug and began afresh, {found.engine_restarts} times")
        known = self._nodes.setdefault(node, _Node())
        if known.epoch != found.epoch:
            known.epoch = found.epoch
            known.totals, known.local = Counter(), Counter()
            known.peers, known.rings, known.sockets = {}, {}, 0
        totals, drops = _sum(found)
        now = totals + Counter({f"dropped {reason}": packets for reason, packets in drops.items()})
        wrong += [
            f"{node}: {name} went from {before} back to {now[name]} in one epoch"
            for name, before in known.totals.items()
            if now[name] < before
        ]
        known.drops += Counter(
            {reason: packets - known.totals[f"dropped {reason}"] for reason, packets in drops.items()}
        )
        known.totals = now
        local = Counter[str]()
        for tally in (*(each.tally for each in found.attachments), found.gone):
            local.update(tally.dropped)
        known.drops_local += sum((_honest(local) - _honest(known.local)).values())
        known.local = local
        for peer in found.peers:
            before, after = known.peers.get(peer.node, Counter()), Counter(peer.tally.dropped)
            known.drops_from[peer.node] += sum((_honest(after) - _honest(before)).values())
            known.peers[peer.node] = after
        rings = {each.key: each.kernel_drops for each in found.attachments}
        known.ring_drops += sum(
            drops - before if drops >= (before := known.rings.get(key, 0)) else drops for key, drops in rings.items()
        )
        known.rings = rings
        if found.socket_drops < known.sockets:
            wrong.append(f"{node}: socket_drops went from {known.sockets} back to {found.socket_drops}")
        known.socket_drops += max(0, found.socket_drops - known.sockets)
        known.sockets = found.socket_drops
        return wrong

    def budget(self, source: str, target: str) -> int:
        """Return how many packets from one node to another may be missing, by what routers and kernels counted."""
        one, other = self._nodes.get(source, _Node()), self._nodes.get(target, _Node())
        kernels = one.ring_drops + (other.ring_drops + other.socket_drops if source != target else 0)
        return one.drops_local + kernels + (other.drops_from[source] + other.drops_local if source != target else 0)

    def everything(self) -> int:
        """Return how many packets were dropped everywhere, each counted once."""
        return sum(
            sum(_honest(node.drops).values()) + node.ring_drops + node.socket_drops for node in self._nodes.values()
        )

    def strayed(self, node: str) -> int:
        """Return how many packets other nodes sent to this one that belong to a third."""
        return self._nodes.get(node, _Node()).drops["wrong_node"]

    def by_reason(self) -> Counter[str]:
        """Return the drops of all routers by reason."""
        return sum((node.drops for node in self._nodes.values()), Counter[str]())

    def by_kernels(self) -> int:
        """Return the drops of kernels, at rings and sockets."""
        return sum(node.ring_drops + node.socket_drops for node in self._nodes.values())


def _tallies(found: Counters) -> Iterator[tuple[str, Tally]]:
    yield "strangers", found.strangers
    yield "gone", found.gone
    for each in found.attachments:
        yield str(each.key), each.tally
    for peer in found.peers:
        yield f"peer {peer.node or peer.endpoint}", peer.tally


def _sum(found: Counters) -> tuple[Counter[str], Counter[str]]:
    totals, drops = Counter[str](), Counter[str]()
    for _, tally in _tallies(found):
        totals.update({name: getattr(tally, name) for name in _FIELDS})
        drops.update(tally.dropped)
    return totals, drops


def _honest(drops: Counter[str]) -> Counter[str]:
    return Counter({reason: packets for reason, packets in drops.items() if reason not in OF_LIARS})
