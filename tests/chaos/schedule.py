"""What is done when: a list of (time, action, arguments) that follows from a seed. Pure.

Pods are named by place, "n3/2" for the second of node n3, as each has many lives. Nothing here knows how long an action takes
in truth: what is given is room for it, so that a replay is the same list on every machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ROOM_S = {
    "kill_router": 7.0,
    "restart_router": 5.0,
    "replace_pod": 3.0,
    "vanish_pod": 5.0,
    "reattach_pod": 3.0,
    "move_subnets": 9.0,
    "join": 12.0,
}
"""What else is left alone for so long after an action began: its node, or its Pod."""
WEIGHTS = {
    "kill_router": 4.0,
    "restart_router": 3.0,
    "kill_etcd": 1.0,
    "replace_pod": 3.0,
    "vanish_pod": 2.0,
    "reattach_pod": 2.0,
    "impair": 3.0,
    "impair_pods": 2.0,
    "cut": 2.0,
    "partition": 1.0,
    "cut_store": 1.0,
    "join": 1.0,
    "move_subnets": 2.0,
    "capture": 2.0,
    "trace": 1.5,
    "spoof": 4.0,
    "forge": 2.0,
}
MOST_DOWN = 2
"""Nodes that are disturbed at a time."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that is done."""

    at_s: float
    """Since the beginning."""
    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        words = " ".join(f"{name}={json.dumps(value)}" for name, value in self.arguments.items())
        return f"{self.at_s:7.2f}  {self.name} {words}"


def schedule(
    seed: int, seconds: float, nodes: int, pods: int, pause_s: tuple[float, float] = (0.4, 2.2)
) -> list[Action]:
    """Return what is done in that time: first one of each kind, in a drawn order, then as the weights say."""
    return list(_Drawing(seed, nodes, pods).actions(seconds, pause_s))


class _Drawing:
    def __init__(self, seed: int, nodes: int, pods: int) -> None:
        self.dice = random.Random(f"schedule {seed}")
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.pods = [f"{node}/{number}" for node in self.nodes for number in range(1, pods + 1)]
        self.busy: dict[str, float] = {}
        """Until when a node, a Pod's place or something else of which there is one is left alone."""

    def actions(self, seconds: float, pause_s: tuple[float, float]) -> Iterator[Action]:
        first = list(WEIGHTS)
        self.dice.shuffle(first)
        at_s = 0.5
        while at_s < seconds:
            name = first.pop() if first else self.dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            arguments = getattr(self, f"_{name}")(at_s, seconds - at_s)
            if arguments is not None:
                yield Action(round(at_s, 2), name, arguments)
                at_s += self.dice.uniform(*pause_s)
            elif first:
                first.insert(0, name)  # later, when there is room
                at_s += 0.1
            else:
                at_s += 0.05

    # What there is room for

    def _node(self, at_s: float, room_s: float) -> str | None:
        """Take a node that is left alone, if not too many are disturbed."""
        free = [node for node in self.nodes if self.busy.get(node, 0) <= at_s]
        if len(free) <= len(self.nodes) - MOST_DOWN:
            return None
        node = self.dice.choice(free)
        self.busy[node] = at_s + room_s
        return node

    def _pod(self, at_s: float, room_s: float) -> str | None:
        free = [pod for pod in self.pods if max(self.busy.get(pod, 0), self.busy.get(pod.split("/")[0], 0)) <= at_s]
        if not free:
            return None
        pod = self.dice.choice(free)
        self.busy[pod] = at_s + room_s
        return pod

    def _only(self, what: str, at_s: float, room_s: float) -> bool:
        if self.busy.get(what, 0) > at_s:
            return False
        self.busy[what] = at_s + room_s
        return True

    def _links(self, at_s: float, seconds: float, ends: list[str]) -> bool:
        """Whether no link between these is broken in another way already."""
        keys = [f"link {one} {other}" for one in ends for other in ends if one < other]
        if any(self.busy.get(key, 0) > at_s for key in keys):
            return False
        self.busy.update(dict.fromkeys(keys, at_s + seconds + 1))
        return True

    def _seconds(self, low_s: float, high_s: float, left_s: float) -> float:
        return round(min(self.dice.uniform(low_s, high_s), max(1.0, left_s)), 2)

    # Routers, Pods and the store

    def _kill_router(self, at_s: float, left_s: float) -> dict[str, Any] | None:
        node = self._node(at_s, ROOM_S["kill_router"])
        dead_s = 0.0 if self.dice.random() < 0.6 else self._seconds(0.5, 4, left_s)
        return None if node is None else {"node": node, "dead_s": dead_s}

    def _restart_router(self, at_s: float, _: float) -> dict[str, Any] | None:
        node = self._node(at_s, ROOM_S["restart_router"])
        return None if node is None else {"node": node}

    def _kill_etcd(self, at_s: float, left_s: float) -> dict[str, Any] | None:
        dead_s = self._seconds(0.5, 6, left_s)
        return {"dead_s": dead_s} if self._only("store", at_s, dead_s + 6) else None

    def _replace_pod(self, at_s: float, _: float) -> dict[str, Any] | None:
        pod = self._pod(at_s, ROOM_S["replace_pod"])
        return None if pod is None else {"pod": pod}

    def _vanish_pod(self, at_s: float, _: float) -> dict[str, Any] | None:
        pod = self._pod(at_s, ROOM_S["vanish_pod"])
        return None if pod is None else {"pod": pod}

    def _reattach_pod(self, at_s: float, _: float) -> dict[str, Any] | None:
        pod = self._pod(at_s, ROOM_S["reattach_pod"])
        return None if pod is None else {"pod": pod}

    def _move_subnets(self, at_s: float, left_s: float) -> dict[str, Any] | None:
        if left_s < 5 or self.busy.get("store", 0) > at_s:
            return None
        node = self._node(at_s, ROOM_S["move_subnets"])
        if node is not None:
            self.busy["store"] = at_s + ROOM_S["move_subnets"]
        return None if node is None else {"node": node}

    def _join(self, at_s: float, left_s: float) -> dict[str, Any] | None:
        if left_s < 8 or self.busy.get("store", 0) > at_s or not self._only("join", at_s, ROOM_S["join"] + 12):
            return None
        self.busy["store"] = at_s + 5
        return {"pods": self.dice.randrange(1, 3), "seconds": self._seconds(4, 12, left_s - 4)}

    # Links

    def _faults(self) -> dict[str, float]:
        dice = self.dice
        kind = dice.choice(("loss", "delay", "reorder", "duplicate", "rate", "hole", "mixed"))
        if kind == "loss":
            return {"loss": round(dice.uniform(0.01, 0.15), 3)}
        if kind == "delay":
            return {"delay_s": round(dice.uniform(0.005, 0.04), 3), "jitter_s": 0.004}
        if kind == "reorder":
            return {"delay_s": 0.01, "reorder": round(dice.uniform(0.01, 0.2), 3)}
        if kind == "duplicate":
            return {"duplicate": round(dice.uniform(0.01, 0.3), 3)}
        if kind == "rate":
            return {"rate_bits_per_s": dice.choice((1_000_000, 3_000_000, 10_000_000))}
        if kind == "hole":
            return {"mtu_hole_bytes": dice.choice((1330, 1400, 1450, 1490))}
        return {"loss": 0.02, "delay_s": 0.01, "jitter_s": 0.005, "duplicate": 0.02}

    def _impair(self, at_s: float, left_s: float) -> dict[str, Any] | None:
        ends = self.dice.sample(self.nodes, 2)
        seconds = self._seconds(4, 15, left_s)
        faults, seed = self._faults(), self.dice.randrange(1000)
        if not self._links(at_s, seconds, ends):
            return None
        one_way = self.dice.random() < 0.3
        return {
            "left": ends[0],
            "right": ends[1],
            "faults": faults,
            "seconds": seconds,
            "seed": seed,
            "one_way": one_way,
        }

    def _impair_pods(self, at_s: float, left_s: float) -> dict[str, Any] | None:
        one, other = self.dice.sample(self.pods, 2)
        ends = [one.split("/")[0], other.split("/")[0]]
        seconds = self._seconds(4, 12, left_s)
        faults = {"loss": 1.0} if self.dice.random() < 0.2 else self._faults()
        if ends[0] == ends[1] or max(self.busy.get(one, 0), self.busy.get(other, 0)) > at_s:
            return None
        if not self._links(at_s, seconds, ends):
            return None
        return {"left": one, "right": other, "faults": faults, "seconds": seconds, "seed": self.dice.randrange(1000)}

    def _cut(self, at_s: float, left_s: float) -> dict[str, Any] | None:
        ends = self.dice.sample(self.nodes, 2)
        seconds = self._seconds(0.5, 6, left_s)
        if not self._links(at_s, seconds, ends):
            return None
        return {"left": ends[0], "right": ends[1], "seconds": seconds, "one_way": self.dice.random() < 0.3}

    def _partition(self, at_s: float, left_s: float) -> dict[str, Any] | None:
        group = self.dice.sample(self.nodes, self.dice.randrange(1, max(2, len(self.nodes) // 2 + 1)))
        seconds = self._seconds(1, 5, left_s)
        if not self._links(at_s, seconds, self.nodes):
            return None
        return {"group": sorted(group), "seconds": seconds}

    def _cut_store(self, at_s: float, left_s: float) -> dict[str, Any] | None:
        node, seconds = self.dice.choice(self.nodes), self._seconds(1, 6, left_s)
        if self.busy.get(node, 0) > at_s or not self._only("store", at_s, seconds + 3):
            return None
        return {"node": node, "seconds": seconds}

    # Who looks, and who lies

    def _capture(self, _: float, left_s: float) -> dict[str, Any]:
        return {"pod": self.dice.choice(self.pods), "seconds": self._seconds(1, 5, left_s)}

    def _trace(self, _at_s: float, _: float) -> dict[str, Any]:
        one, other = self.dice.sample(self.pods, 2)
        return {"source": one, "target": other, "protocol": self.dice.choice(("icmp", "udp", "tcp"))}

    def _spoof(self, _at_s: float, _: float) -> dict[str, Any]:
        attacker, claimed, target = self.dice.sample(self.pods, 3) if len(self.pods) > 2 else (*self.pods, self.pods[0])
        return {
            "attacker": attacker,
            "claimed": claimed,
            "target": target,
            "family": self.dice.choice((4, 6)),
            "count": 20,
        }

    def _forge(self, _at_s: float, _: float) -> dict[str, Any] | None:
        if len(self.nodes) < 3:
            return None
        attacker, claimed, target = self.dice.sample(self.nodes, 3)
        pods = len(self.pods) // len(self.nodes)
        return {
            "attacker": attacker,
            "claimed": f"{claimed}/{self.dice.randrange(1, pods + 1)}",
            "target": f"{target}/{self.dice.randrange(1, pods + 1)}",
            "family": self.dice.choice((4, 6)),
            "count": 20,
        }
