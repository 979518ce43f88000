"""What many attachments cost: two routers, 1, 2, 10 and 100 Pods on each, measured in the same two processes.

idle   one pair of Pods is busy, the others are attached and silent
busy   each Pod of one node sends to one of the other, all at once; what they get together

Pods are attached and detached between one size and the next, the most and one alone being neighbours in time: from 2
upwards and then one alone in one round, the other way round in the next. Each figure is divided by that of one attachment
in the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.contenders.interface import Way
from benchmarks.figures import Figures, Metric, Promise
from benchmarks.measures.bundle import throughput_bps
from benchmarks.measures.flow import Flow
from benchmarks.measures.interface import MeasureFailed
from benchmarks.namespace import CommandFailed, Namespace
from benchmarks.rounds import Progress
from shim.client import Client, ClientError
from shim.lab import Lab
from shim.lab.errors import LabError

SIZES = (1, 2, 10, 100)
_LEAST_OF_ALONE = 0.97
"""What 99 idle attachments must leave of the throughput of one."""
_WARM_UP_S = 0.4
_PAYLOAD_BYTES = 64


@dataclass(frozen=True, slots=True)
class _Pod:
    namespace: Namespace
    client: Client
    """Of its node's router."""


@dataclass(frozen=True, slots=True)
class _Probe:
    """One way to load the ways, and the figure it gives."""

    name: str
    title: str
    unit: str
    run: Callable[[Sequence[Way], float], float]


def metric(engine: str, kind: str, probe: _Probe, promises: tuple[Promise, ...] = ()) -> Metric:
    """Return what a figure of one engine means: kind is "idle" or "busy"."""
    title = "one busy" if kind == "idle" else "all busy"
    return Metric(f"scaling_{engine}_{kind}_{probe.name}", f"{probe.title}, {title}", probe.unit,
                  f"Scaling with attachments, Podwire {engine}", base=_name(SIZES[0]), promises=promises)  # fmt: skip


def steps(engines: Sequence[str], rounds: int) -> int:
    """Return how often `run` reports progress."""
    return len(engines) * (1 + rounds * len(SIZES))


def run(
    figures: Figures, engines: Sequence[str], best: str, rounds: int, seconds: float, progress: Progress,
    sizes: Sequence[int] = SIZES,
) -> None:  # fmt: skip
    """Measure each engine in a lab of its own, all up at once; promises are the best one's."""
    for size in sizes:
        figures.titles.setdefault(_name(size), f"{size} attachment{'s' * (size > 1)}")
    promises = (Promise(_LEAST_OF_ALONE, of=_name(sizes[-1])),)
    turn = (*sizes[1:], sizes[0])
    with ExitStack() as stack:
        crowds: dict[str, _Crowd] = {}
        for engine in engines:
            progress(f"scaling: bringing a lab up, engine {engine}")
            try:
                crowds[engine] = _Crowd(stack, engine, sizes[-1])
            except (LabError, ClientError, CommandFailed, OSError) as error:
                figures.failures.append(f"scaling, {engine}: the lab did not come up: {error}")
        for number in range(rounds):
            for engine, crowd in crowds.items():
                for size in turn if number % 2 == 0 else reversed(turn):
                    progress(f"round {number + 1} of {rounds}: {size} attachments, engine {engine}")
                    try:
                        crowd.resize(size)
                        found = list(crowd.measure(seconds))
                    except (MeasureFailed, ClientError, CommandFailed, OSError) as error:
                        figures.failures.append(f"scaling, {engine}, {size} attachments: {error}")
                        continue
                    for kind, probe, value in found:
                        promised = promises if kind == "idle" and engine == best else ()
                        figures.add(metric(engine, kind, probe, promised), _name(size), value)


class _Crowd:
    """A lab of two nodes with one Pod each, and as many more Pods as are wanted at a time."""

    def __init__(self, stack: ExitStack, engine: str, most: int) -> None:
        lab = stack.enter_context(Lab(nodes=2, pods=1, router_args=("--engine", engine)))
        client, server = lab.pods
        ends = [Namespace.existing(str(pod.netns_path)) for pod in (client, server)]
        self._ways = [Way(ends[0], ends[1], _ipv4(map(str, server.addresses)))]
        clients = [stack.enter_context(node.client()) for node in lab.nodes]
        self._spare = [
            tuple(_Pod(Namespace(stack, f"{engine}-crowd{node}-{index}"), clients[node]) for node in range(2))
            for index in range(1, most)
        ]

    def resize(self, size: int) -> None:
        """Attach or detach until there are that many on each node."""
        while len(self._ways) > size:
            for pod in self._spare[len(self._ways) - 2]:
                pod.client.detach(pod.namespace.name, "eth0")
            self._ways.pop()
        while len(self._ways) < size:
            sender, receiver = self._spare[len(self._ways) - 1]
            answers = [pod.client.attach(pod.namespace.name, "eth0", pod.namespace.path) for pod in (sender, receiver)]
            address = _ipv4(each.split("/")[0] for each in answers[1].addresses)
            self._ways.append(Way(sender.namespace, receiver.namespace, address))
        time.sleep(_WARM_UP_S)  # neighbours and routes settle, and what attaching leaves to do is done

    def measure(self, seconds: float) -> Iterator[tuple[str, _Probe, float]]:
        """Yield each figure of the present size; all of one are one of one."""
        for probe in PROBES:
            alone = probe.run(self._ways[:1], seconds)
            yield "idle", probe, alone
            yield "busy", probe, alone if len(self._ways) == 1 else probe.run(self._ways, seconds / 2)


def _tcp_gbps(ways: Sequence[Way], seconds: float) -> float:
    return throughput_bps(ways, seconds, _WARM_UP_S) / 1e9


def _udp_kpps(ways: Sequence[Way], seconds: float) -> float:
    with Flow(ways[0], _PAYLOAD_BYTES, more=ways[1:], ahead=True) as flow:
        time.sleep(_WARM_UP_S)
        start, before = time.monotonic(), flow.arrived
        time.sleep(seconds)
        return (flow.arrived - before) / (time.monotonic() - start) / 1e3


PROBES = (
    _Probe("tcp", "TCP", "Gbit/s", _tcp_gbps),
    _Probe("udp64", "UDP 64 B", "kpps", _udp_kpps),
)


def _name(size: int) -> str:
    return f"attachments:{size}"


def _ipv4(addresses: Iterator[str]) -> str:
    return next(address for address in addresses if "." in address)
