"""UDP at saturation: half more is sent than arrives, what arrives is counted, and what a million packets cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.contenders.interface import Network
from benchmarks.cpu import read_cpu_time
from benchmarks.figures import Figures, Metric, Promise
from benchmarks.measures.flow import Flow
from benchmarks.measures.interface import MeasureFailed

_WARM_UP_S = 0.3
SATURATING = 1.3
"""How many times what arrives must be offered, or the sender bounds the figure."""


class Flood:
    """Datagrams of one size, of one flow or of as many as there are senders."""

    def __init__(self, payload_bytes: int, senders: int = 1, promises: tuple[Promise, ...] = ()) -> None:
        size = f"udp{payload_bytes}"
        self.name = size if senders == 1 else f"{size}x{senders}"
        self.title = f"UDP {payload_bytes} B" if senders == 1 else f"UDP {payload_bytes} B, {senders} senders"
        self._payload_bytes = payload_bytes
        self._senders = senders
        group = "UDP at saturation"
        self._arrived = Metric(f"{self.name}_kpps", self.title, "kpps", group, base="vxlan", promises=promises)
        self._offered = Metric(f"{self.name}_offered", "offered", "kpps", group)
        group = f"CPU time of {self.title} at saturation"
        self._router = Metric(f"{self.name}_router_cpu", "Routers alone", "CPU s/M packets", group, False)
        self._machine = Metric(f"{self.name}_machine_cpu", "Whole machine", "CPU s/M packets", group, False, "vxlan")
        self.metrics = (self._arrived, self._offered, self._router, self._machine)

    def suits(self, network: Network) -> bool:  # noqa: ARG002
        """Every network carries UDP."""
        return True

    def prepare(self, stack: ExitStack, network: Network) -> None:
        """Open no socket before the run: a queue left over would be counted."""

    def run(self, network: Network, seconds: float) -> dict[str, float]:
        """Flood for that long after a warm-up; return what came, what was offered, and what a million cost."""
        with Flow(network.across, self._payload_bytes, senders=self._senders, ahead=True) as flow:
            time.sleep(_WARM_UP_S)
            start, sent, came, before = time.monotonic(), flow.sent, flow.arrived, read_cpu_time(network.router_pids)
            time.sleep(seconds)
            span_s, spent = time.monotonic() - start, read_cpu_time(network.router_pids) - before
            sent, came = flow.sent - sent, flow.arrived - came
        if not came:
            raise MeasureFailed(f"{sent} datagrams sent, none arrived")
        figures = {
            self._arrived.key: came / span_s / 1e3,
            self._offered.key: sent / span_s / 1e3,
            self._machine.key: spent.machine_s / came * 1e6,
        }
        if network.router_pids:
            figures[self._router.key] = spent.processes_s / came * 1e6
        return figures

    def notes(self, figures: Figures) -> Iterator[str]:
        """Say of whom the sender bounds the figure: it offered hardly more than came."""
        bounded = []
        for name in figures.values.get(self._arrived.key, {}):
            came, offered = figures.spread(self._arrived.key, name), figures.spread(self._offered.key, name)
            if came and offered and offered.median < SATURATING * came.median:
                bounded.append(figures.titles.get(name, name))
        if bounded:
            yield (
                f"{self.title}: to {', '.join(bounded)} less than {SATURATING:g} times what arrived could be offered, so the "
                "sender bounds the figure (a network of the kernel carries packets on their sender's own processor)"
            )
