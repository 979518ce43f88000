"""Times at which a datagram may be lost without a counter saying so: a router was dead, a link was cut. Pure but for its lock."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from tests.chaos.flows import Datagrams

IN_FLIGHT_S = 0.5
"""What was sent so long before may still have been under way."""
LAST_WORDS_S = 1.5
"""… and of a flow that ends with its Pod, what was sent so long before its end is not looked at."""


@dataclass(slots=True)
class Excuse:
    """One such time."""

    why: str
    since_s: float
    nodes: Collection[str]
    """Whatever comes from or goes to one of these; empty: look at the pairs."""
    pairs: Collection[tuple[str, str]] = ()
    """Whatever goes from the first to the second node."""
    until_s: float = float("inf")

    def end(self, now_s: float, settle_s: float) -> None:
        """It is over so long after now."""
        self.until_s = now_s + settle_s


@dataclass(slots=True)
class Excuses:
    """All of them."""

    made: list[Excuse] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, why: str, now_s: float, nodes: Iterable[str] = (), pairs: Iterable[tuple[str, str]] = ()) -> Excuse:
        """From now on, until its `end`."""
        made = Excuse(why, now_s - IN_FLIGHT_S, frozenset(nodes), frozenset(pairs))
        with self._lock:
            self.made.append(made)
        return made

    def of(self, source: str, target: str) -> list[tuple[float, float]]:
        """Return the times that excuse what goes from one node to another."""
        with self._lock:
            made = list(self.made)
        return [
            (excuse.since_s, excuse.until_s)
            for excuse in made
            if source in excuse.nodes or target in excuse.nodes or (source, target) in excuse.pairs
        ]


@dataclass(frozen=True, slots=True)
class Loss:
    """Of one flow: how much was lost when nothing excused it."""

    flow: Datagrams
    sent: int
    lost: int
    outside_sent: int
    """Sent at times that excuse nothing."""
    outside_lost: tuple[float, ...]
    """When those were sent that were lost then."""


def losses(flows: Iterable[Datagrams], excuses: Excuses, until_s: float) -> list[Loss]:
    """Sort every flow's losses; what was sent after `until_s` is not looked at."""
    found = []
    for flow in flows:
        ways = {(flow.src.node, flow.dst.node)}
        if flow.kind == "ping":  # its answer comes back the other way
            ways.add((flow.dst.node, flow.src.node))
        times = [span for way in ways for span in excuses.of(*way)]
        last_s = until_s
        if flow.ended and flow.sent_s:
            last_s = min(last_s, flow.sent_s[-1] - LAST_WORDS_S)
        lost = list(flow.lost_s(last_s))
        outside = [at_s for at_s in flow.sent_s if at_s <= last_s and not _in(at_s, times)]
        found.append(
            Loss(flow, len(flow.sent_s), len(lost), len(outside), tuple(at_s for at_s in lost if not _in(at_s, times)))
        )
    return found


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be missing, by what was counted until then."""

    at_s: float
    read: frozenset[str]
    """Nodes whose counters were read then."""
    allowed: dict[tuple[str, str], int]
    """By source and target node."""


Ways = tuple[tuple[str, str], ...]
BEFORE_S, AFTER_S = 1.5, 1.5
"""A datagram that is lost is counted as so no earlier than this before it was sent, and no later than this after."""
CLUSTER_S = 2.0
"""Losses that are nearer to each other are looked at together."""


def unexplained(found: Iterable[Loss], history: list[Budget], began_s: float = 0.0) -> list[str]:
    """Hold losses that nothing excuses to what counters grew by at their time; say times since `began_s`.

    `history` is in order of time.
    """
    times: dict[Ways, list[float]] = {}
    flows: dict[Ways, list[Loss]] = {}
    for loss in found:
        if loss.outside_lost:
            one, other = loss.flow.src.node, loss.flow.dst.node
            ways: Ways = ((one, other),) if loss.flow.kind == "udp" or one == other else ((one, other), (other, one))
            times.setdefault(ways, []).extend(loss.outside_lost)
            flows.setdefault(ways, []).append(loss)
    wrong = []
    for ways, lost in times.items():
        for cluster in clusters(sorted(lost)):
            allowed = growth(history, ways, cluster[0], cluster[-1])
            if len(cluster) > allowed:
                theirs = {
                    f"{loss.flow} ({', '.join(str(loss.flow.sent_s.index(at_s)) for at_s in mine[:5])})"
                    for loss in flows[ways]
                    if (mine := [at_s for at_s in loss.outside_lost if at_s in cluster])
                }
                wrong.append(
                    f"{' and '.join(' → '.join(way) for way in ways)}: {len(cluster)} lost when nothing excused it, and counters "
                    f"grew by {allowed} in that time; sent from {cluster[0] - began_s:.2f} to {cluster[-1] - began_s:.2f} s: "
                    f"{'; '.join(sorted(theirs)[:5])}"
                )
    return wrong


def clusters(times: list[float]) -> list[list[float]]:
    """Put times that are near each other together."""
    found: list[list[float]] = []
    for at_s in times:
        if found and at_s - found[-1][-1] < CLUSTER_S:
            found[-1].append(at_s)
        else:
            found.append([at_s])
    return found


def growth(history: list[Budget], ways: Ways, since_s: float, until_s: float) -> int:
    """Return what counters on these ways grew by: from the last reading before to the first after, of the nodes concerned."""
    nodes = {node for way in ways for node in way}
    before = [budget for budget in history if budget.at_s <= since_s - BEFORE_S]
    after = [budget for budget in history if budget.at_s >= until_s + AFTER_S and nodes <= budget.read] or history[-1:]
    return sum(
        after[0].allowed.get(way, 0) - (before[-1].allowed.get(way, 0) if before else 0) for way in ways if after
    )


def _in(at_s: float, times: list[tuple[float, float]]) -> bool:
    return any(since_s <= at_s <= until_s for since_s, until_s in times)
