"""TCP throughput by iperf3, and what a gigabyte of it costs in CPU time."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.contenders.interface import Network, Way
from benchmarks.cpu import CpuTime, read_cpu_time
from benchmarks.figures import Metric, Promise
from benchmarks.measures.interface import MeasureFailed
from benchmarks.namespace import end

_PORT = 5201
_ATTEMPTS = 5


class Stream:
    """A number of TCP streams in one direction."""

    def __init__(
        self, name: str, title: str, streams: int = 1, *,
        reverse: bool = False, beside: bool = False, cpu: bool = False,
        promises: tuple[Promise, ...] = (),
    ) -> None:  # fmt: skip
        self.name = name
        self._streams = streams
        self._reverse = reverse
        self._beside = beside
        base = "veth" if beside else "vxlan"
        where = "TCP, same node" if beside else "TCP across nodes"
        self.title = f"{where}: {title}"
        self._rate = Metric(f"{name}_gbps", title, "Gbit/s", where, base=base, promises=promises)
        group = f"CPU time of TCP, {title}"
        self._router = Metric(f"{name}_router_cpu", "Routers alone", "CPU s/GB", group, False)
        self._machine = Metric(f"{name}_machine_cpu", "Whole machine", "CPU s/GB", group, False, base)
        self.metrics = (self._rate, self._router, self._machine) if cpu else (self._rate,)

    def suits(self, network: Network) -> bool:
        """Tell whether there is such a way."""
        return not self._beside or network.beside is not None

    def prepare(self, stack: ExitStack, network: Network) -> None:
        """Start a server, unless another measure has."""
        serve(stack, self._way(network))

    def run(self, network: Network, seconds: float) -> dict[str, float]:
        """Run iperf3 once; it counts whole seconds."""
        way = self._way(network)
        command = _client(way, max(1, round(seconds)), self._streams)
        command += ["--reverse"] if self._reverse else []
        for attempt in range(_ATTEMPTS):
            before = read_cpu_time(network.router_pids)
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 20, check=False)
            spent = read_cpu_time(network.router_pids) - before
            try:
                return self._figures(json.loads(done.stdout), spent, bool(network.router_pids))
            except MeasureFailed as error:
                # The server of the last round may not have finished yet.
                if "busy" not in str(error) or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.1)
            except ValueError as error:
                raise MeasureFailed(f"iperf3 printed no JSON (status {done.returncode}): {done.stderr}") from error
        raise AssertionError("not reached")

    def _figures(self, document: dict[str, Any], spent: CpuTime, has_router: bool) -> dict[str, float]:
        size_bytes, rate_bps = received(document)
        figures = {
            self._rate.key: rate_bps / 1e9,
            self._machine.key: spent.machine_s / (size_bytes / 1e9),
        }
        if has_router:
            figures[self._router.key] = spent.processes_s / (size_bytes / 1e9)
        return figures

    def _way(self, network: Network) -> Way:
        if not self._beside:
            return network.across
        assert network.beside is not None
        return network.beside


def received(document: dict[str, Any]) -> tuple[int, float]:
    """Return bytes and bits a second at the receiver out of iperf3's JSON. MeasureFailed when it reports an error."""
    if "error" in document:
        raise MeasureFailed(f"iperf3: {document['error']}")
    total = document["end"]["sum_received"]
    if not total["bytes"]:
        raise MeasureFailed("iperf3: connected, but nothing arrived")
    return int(total["bytes"]), float(total["bits_per_second"])


def serve(stack: ExitStack, way: Way) -> None:
    """Start a server at the end of a way, unless there is one."""
    if _listening(way):
        return
    way.server.spawn(stack, "iperf3", "--server", "--port", _PORT)
    deadline = time.monotonic() + 5
    while not _listening(way):
        if time.monotonic() > deadline:
            raise MeasureFailed(f"iperf3 --server does not listen in {way.server.name}")
        time.sleep(0.02)


@contextmanager
def saturating(way: Way, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Keep one stream going inside the `with` block, for that long at most; the server must be there."""
    command = _client(way, round(seconds) + 1, 1)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        end(process)
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def _client(way: Way, whole_seconds: int, streams: int) -> list[str]:
    return way.client.command(
        "iperf3", "--client", way.address, "--port", _PORT, "--json", "--connect-timeout", 2000,
        "--time", whole_seconds, "--parallel", streams,
    )  # fmt: skip


def _listening(way: Way) -> bool:
    return bool(way.server.run("ss", "--no-header", "--listening", "--tcp", "--numeric", f"sport = :{_PORT}").strip())
