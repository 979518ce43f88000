"""What a packet costs at a rate everybody can carry: 64 bytes, 50,000 a second, in bursts of ten.

    CPU a packet = (busy time of the whole machine − what it spends on nothing) / packets that arrived

Both in one turn, the pause first. The sender's own part, the same for everybody, is in the figure and dilutes its ratio
towards 1; it is measured as well, by sending as many into a portless bridge, and reported as a column of its own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.contenders.interface import Network, Way
from benchmarks.cpu import read_cpu_time
from benchmarks.figures import Figures, Metric, Promise
from benchmarks.measures.flow import Flow
from benchmarks.measures.interface import MeasureFailed
from benchmarks.namespace import Namespace

PACE_PPS = 50_000
_PAYLOAD_BYTES = 64
_WARM_UP_S = 0.2
_LEAST_S = 0.3
_MOST_IDLE_SHARE = 0.15
"""Of the processors' time, spent on other things before the flow: beyond that, nothing can be told from the difference."""
_NOWHERE, _NEIGHBOUR = "10.98.0.1", "10.98.0.2"
_GROUP = f"UDP 64 B at {PACE_PPS:,} packets/s"


class Pace:
    """CPU and loss of a paced flow."""

    name = "pace"
    title = _GROUP

    def __init__(self, most_cpu_times_vxlan: float) -> None:
        promises = (Promise(most_cpu_times_vxlan),)
        self._machine = Metric("pace_machine_ns", "CPU, whole machine", "ns/packet", _GROUP, False, "vxlan", promises)
        self._router = Metric("pace_router_ns", "Routers alone", "ns/packet", _GROUP, False)
        self._sender = Metric("pace_sender_ns", "Sender alone", "ns/packet", _GROUP, False)
        self._lost = Metric("pace_lost", "Lost", "packets", _GROUP, False, promises=(Promise(0),))
        self._rate = Metric("pace_kpps", "Sent", "kpps", _GROUP)
        self.metrics = (self._machine, self._router, self._sender, self._lost, self._rate)
        self._nowhere: Way | None = None

    def suits(self, network: Network) -> bool:  # noqa: ARG002
        """Every network carries UDP."""
        return True

    def prepare(self, stack: ExitStack, network: Network) -> None:  # noqa: ARG002
        """Make the portless bridge, one for all contenders."""
        if self._nowhere is None:
            self._nowhere = _open_nowhere(stack)
            stack.callback(self._forget)

    def run(self, network: Network, seconds: float) -> dict[str, float]:
        """Rest for half the time, send for all of it, and send into nothing for half."""
        if self._nowhere is None:
            raise MeasureFailed("the portless bridge went with the contender that made it")
        idle_share = _idle_share(seconds / 2)
        busy = idle_share > _MOST_IDLE_SHARE * (os.cpu_count() or 1)
        flow_figures = self._paced(network.across, network.router_pids, seconds, idle_share)
        sender = self._paced(self._nowhere, (), max(_LEAST_S, seconds / 2), idle_share)
        return {
            self._machine.key: math.nan if busy else flow_figures["machine_ns"],
            **({self._router.key: flow_figures["router_ns"]} if network.router_pids else {}),
            self._sender.key: math.nan if busy else sender["machine_ns"],
            self._lost.key: flow_figures["lost"],
            self._rate.key: flow_figures["kpps"],
        }

    def notes(self, figures: Figures) -> Iterator[str]:
        """Say which rounds are void."""
        values = [value for found in figures.values.get(self._machine.key, {}).values() for value in found]
        if void := sum(map(math.isnan, values)):
            yield (
                f"{self.title}: CPU time is void in {void} of {len(values)} turns, as other processes kept the machine "
                "busy (or the turn failed)"
            )

    def _paced(self, way: Way, pids: tuple[int, ...], seconds: float, idle_share: float) -> dict[str, float]:
        with Flow(way, _PAYLOAD_BYTES, PACE_PPS) as flow:
            time.sleep(_WARM_UP_S)
            start, sent, came, before = time.monotonic(), flow.sent, flow.arrived, read_cpu_time(pids)
            time.sleep(seconds)
            span_s, spent = time.monotonic() - start, read_cpu_time(pids) - before
            sent, came = flow.sent - sent, flow.arrived - came
            flow.stop()
            lost = flow.sent - flow.arrived
        if not sent:
            raise MeasureFailed("nothing was sent")
        packets = sent if way is self._nowhere else came
        if not packets:
            raise MeasureFailed(f"{sent} datagrams sent, none arrived")
        return {
            "machine_ns": (spent.machine_s - idle_share * span_s) / packets * 1e9,
            "router_ns": spent.processes_s / packets * 1e9,
            "lost": lost,
            "kpps": sent / span_s / 1e3,
        }

    def _forget(self) -> None:
        self._nowhere = None


def _open_nowhere(stack: ExitStack) -> Way:
    """Return a way that ends in a bridge without ports, which drops everything; the receiver waits elsewhere, in vain."""
    client, server = Namespace(stack, "sender"), Namespace(stack, "nowhere")
    client.ip("link", "add", "br0", "type", "bridge")
    client.ip("address", "add", f"{_NOWHERE}/24", "dev", "br0")
    client.ip("link", "set", "br0", "up")
    client.ip("neigh", "replace", _NEIGHBOUR, "lladdr", "02:00:00:00:00:02", "dev", "br0", "nud", "permanent")
    server.ip("address", "add", f"{_NEIGHBOUR}/32", "dev", "lo")
    return Way(client, server, _NEIGHBOUR)


def _idle_share(seconds: float) -> float:
    """Return busy seconds a second while nothing is sent."""
    start, before = time.monotonic(), read_cpu_time()
    time.sleep(seconds)
    return (read_cpu_time() - before).machine_s / (time.monotonic() - start)
