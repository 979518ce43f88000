"""UDP at saturation: one core sends as fast as it can, what arrives is counted."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks.contenders.interface import Network
from benchmarks.figures import Metric
from benchmarks.measures.flow import Flow
from benchmarks.measures.interface import MeasureFailed

_WARM_UP_S = 0.2


class Flood:
    """Datagrams of one size, unpaced."""

    def __init__(self, payload_bytes: int) -> None:
        self.name = f"udp{payload_bytes}"
        self.title = f"UDP {payload_bytes} B"
        self._payload_bytes = payload_bytes
        self._arrived = Metric(f"{self.name}_kpps", self.title, "kpps", "UDP at saturation", base="vxlan")
        self._offered = Metric(f"{self.name}_offered", f"{payload_bytes} B offered", "kpps", "UDP at saturation")
        self.metrics = (self._arrived, self._offered)

    def suits(self, network: Network) -> bool:  # noqa: ARG002
        """Every network carries UDP."""
        return True

    def prepare(self, stack: ExitStack, network: Network) -> None:
        """Open no socket before the run: a queue left over would be counted."""

    def run(self, network: Network, seconds: float) -> dict[str, float]:
        """Flood for that long after a warm-up; return thousands of packets a second that came and that were sent."""
        with Flow(network.across, self._payload_bytes) as flow:
            time.sleep(_WARM_UP_S)
            start, sent, came = time.monotonic(), flow.sent, flow.arrived
            time.sleep(seconds)
            span_s = time.monotonic() - start
            sent, came = flow.sent - sent, flow.arrived - came
        if not came:
            raise MeasureFailed(f"{sent} datagrams sent, none arrived")
        return {self._arrived.key: came / span_s / 1e3, self._offered.key: sent / span_s / 1e3}
