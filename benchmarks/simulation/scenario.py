"""What is played, and what is measured of it. Times are seconds of CLOCK_MONOTONIC, which all processes share.

storm       all nodes start at once on an empty store: until each holds, until each sees all
joins       one more node: from its start until it is in the snapshot of each other one
restarts    every node is restarted, a twentieth at a time: until it holds again; what the others notice
deaths      a twentieth of the nodes ends without a word: until nobody's snapshot leads to one of them
partition   half of the nodes is cut off from the store until the others have dropped it: after the heal, until all see all
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.simulation.stage import Stage

_SETTLED_S = 900.0
_WAVES = 20
_SEED = 5


@dataclass(slots=True)
class Outcome:
    """What one scenario took: a number of seconds a node, or a node and join."""

    name: str
    title: str
    seconds: list[float]
    notes: dict[str, float] = field(default_factory=dict)


class Play:
    """Plays the scenarios with `nodes` nodes, one after another on the same stage."""

    def __init__(self, stage: Stage, nodes: int, joins: int, ttl_s: int, say: Callable[[str], None]) -> None:
        self._stage, self._nodes, self._joins, self._ttl_s, self._say = stage, nodes, joins, ttl_s, say
        for index in range(nodes + joins):
            stage.crowds[index % len(stage.crowds)].nodes.append(index)
        self._alive: list[int] = []

    def all(self) -> list[Outcome]:
        """Play everything."""
        return [*self._storm(), self._joining(), self._restarts(), self._deaths(), self._partition()]

    def _storm(self) -> list[Outcome]:
        self._say(f"{self._nodes} nodes start at once")
        self._alive = list(range(self._nodes))
        cpu_s = self._cpu_s()
        began_s = min(told["began_s"] for told in self._stage.each("start", self._alive))
        self._settle()
        state = self._state()
        notes = self._spent(cpu_s) | {"table changes a node": state["changes"] / self._nodes}
        held = [at_s - began_s for at_s in state["held_s"]]
        seen = [at_s - began_s for at_s in state["changed_s"]]
        return [
            Outcome("storm, holds", "all start at once: a node holds its subnets", held),
            Outcome("storm, sees all", "all start at once: a node sees all", seen, notes),
        ]

    def _joining(self) -> Outcome:
        self._say(f"{self._joins} nodes join, one after another")
        cpu_s = self._cpu_s()
        found: list[float] = []
        for index in range(self._nodes, self._nodes + self._joins):
            self._alive.append(index)
            began_s = min(told["began_s"] for told in self._stage.each("start", [index]) if "began_s" in told)
            self._settle()
            for told in self._stage.all("arrivals", name=f"n{index:05}"):
                found += [at_s - began_s for at_s in told["seen_s"]]
        return Outcome("join", "one more node is in the snapshot of each other one", found, self._spent(cpu_s))

    def _restarts(self) -> Outcome:
        self._say("every node is restarted")
        order = self._alive[:]
        random.Random(_SEED).shuffle(order)
        before = self._state()
        size = -(-len(order) // _WAVES)
        cpu_s = self._cpu_s()
        for at in range(0, len(order), size):
            self._stage.each("restart", order[at : at + size])
            self._settle()
        after = self._state()
        if sorted(after["subnets"]) != sorted(before["subnets"]) or sum(after["epochs"]) != sum(before["epochs"]):
            raise RuntimeError("a restart cost somebody its subnets, or an epoch")
        seconds = [held_s - start_s for held_s, start_s in zip(after["held_s"], after["start_s"], strict=True)]
        return Outcome("restart", "a restarted node holds its subnets again", seconds, self._spent(cpu_s))

    def _deaths(self) -> Outcome:
        dying = random.Random(_SEED).sample(self._alive, max(1, len(self._alive) // _WAVES))
        self._say(f"{len(dying)} nodes die")
        ended_s = max(told["ended_s"] for told in self._stage.each("stop", dying))
        self._alive = [index for index in self._alive if index not in set(dying)]
        self._settle()
        return Outcome(
            "death",
            f"nodes have died: the others drop them (leases of {self._ttl_s} s)",
            [at_s - ended_s for at_s in self._state()["changed_s"]],
        )

    def _partition(self) -> Outcome:
        self._say("half of the nodes are cut off from the store until their leases have ended, and then not any more")
        cut, *rest = range(len(self._stage.crowds))
        there = sum(index in self._stage.crowds[cut].nodes for index in self._alive)
        self._stage.cut(cut)
        self._stage.settle([self._stage.crowds[index] for index in rest], len(self._alive) - there, _SETTLED_S)
        time.sleep(self._ttl_s)
        before = self._state()
        self._stage.heal()
        healed_s = time.monotonic()
        self._settle()
        after = self._state()
        if len(set(after["subnets"])) != len(after["subnets"]):
            raise RuntimeError("a subnet is held twice")
        if set(after["subnets"]) != set(before["subnets"]):
            raise RuntimeError("somebody came back with other subnets, though its own were free")
        return Outcome(
            "heal",
            f"{there} of {len(self._alive)} nodes come back: a node sees all",
            [max(0.0, at_s - healed_s) for at_s in after["changed_s"]],
        )

    def _settle(self) -> None:
        self._stage.settle(self._stage.crowds, len(self._alive), _SETTLED_S)

    def _state(self) -> dict[str, Any]:
        """Return what all nodes say, put together."""
        told = self._stage.all("state")
        if refused := [message for each in told for message in each["refused"]]:
            raise RuntimeError(f"a table was refused: {refused[0]}")
        found: dict[str, Any] = {}
        for key in told[0]:
            values = [each[key] for each in told]
            found[key] = [entry for each in values for entry in each] if isinstance(values[0], list) else sum(values)
        return found

    def _cpu_s(self) -> tuple[float, float, float]:
        return time.monotonic(), sum(told["cpu_s"] for told in self._stage.all("state")), self._stage.store.cpu_s

    def _spent(self, before: tuple[float, float, float]) -> dict[str, float]:
        after = self._cpu_s()
        memory = sum(told["resident_bytes"] for told in self._stage.all("state"))
        return {
            "seconds": after[0] - before[0],
            "CPU seconds of the nodes": after[1] - before[1],
            "CPU seconds of etcd": after[2] - before[2],
            "MB of the nodes": memory / 1e6,
        }
