"""What a runtime waits for: ADD and DEL of podwire-cni beside the stock bridge + host-local, process start included.

    python -m benchmarks.cni [--rounds 50] [--json FILE]

Interleaved in one run, in one node's namespace, a fresh Pod namespace each round. Root; containernetworking-plugins.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shim import launchers
from shim.lab import Lab, netns
from shim.lab.node import LabNode

STOCK = Path("/usr/lib/cni")
ADD_MS, IDLE_DEL_MS = 100.0, 30.0
"""What issue and architecture promise of the Python plugin, as medians."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="Pods made and removed with each [default: 50]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    asked = parser.parse_args()
    if not (STOCK / "bridge").exists():
        print(f"{STOCK}/bridge is missing; install containernetworking-plugins", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, Lab(nodes=1, pods=0, router_args=("--address-rest-s", "0")) as lab:
        figures = measure(lab.nodes[0], Path(folder), asked.rounds)
    show(figures)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1))
    fits = figures["podwire ADD"]["p50"] <= ADD_MS and figures["podwire DEL, nothing there"]["p50"] <= IDLE_DEL_MS
    return 0 if fits else 1


def measure(node: LabNode, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return milliseconds by what was done."""
    (ours,) = launchers.write(folder, ["podwire-cni"])
    podwire = {"cniVersion": "1.0.0", "name": "bench", "type": "podwire-cni", "socket": str(node.socket)}
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/16"}]], "dataDir": str(folder / "ipam")}
    stock = {
        "cniVersion": "1.0.0", "name": "stock", "type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam,
    }  # fmt: skip
    steps: dict[str, tuple[str, Path, dict[str, Any]]] = {
        "podwire ADD": ("ADD", ours, podwire),
        "podwire DEL": ("DEL", ours, podwire),
        "podwire DEL, nothing there": ("DEL", ours, podwire),
        "stock ADD": ("ADD", STOCK / "bridge", stock),
        "stock DEL": ("DEL", STOCK / "bridge", stock),
        "stock DEL, nothing there": ("DEL", STOCK / "bridge", stock),
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        pod = f"{node.netns}b{turn}"
        netns.create(pod)
        try:
            for name, (verb, plugin, config) in steps.items():
                took_ms = netns.call(node.netns_path, _one(verb, plugin, config, pod, str(netns.path_of(pod))))
                if turn:  # the first warms up
                    taken[name].append(took_ms)
        finally:
            netns.delete(pod)
    return {name: _summary(values) for name, values in taken.items()}


def _one(verb: str, plugin: Path, config: dict[str, Any], pod: str, path: str) -> Callable[[], float]:
    environ = {
        "PATH": os.environ["PATH"], "CNI_PATH": str(STOCK), "CNI_COMMAND": verb, "CNI_CONTAINERID": pod,
        "CNI_NETNS": path, "CNI_IFNAME": "eth0",
    }  # fmt: skip
    given = json.dumps(config).encode()

    def run() -> float:
        began_s = time.perf_counter()
        done = subprocess.run([plugin], input=given, env=environ, capture_output=True, check=False)
        took_s = time.perf_counter() - began_s
        if done.returncode:
            raise RuntimeError(f"{plugin.name} {verb}: {done.stdout.decode()} {done.stderr.decode()}")
        return took_s * 1000

    return run


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))],
        "least": ordered[0],
        "most": ordered[-1],
    }


def show(figures: dict[str, dict[str, float]]) -> None:
    """Print a table, each of ours beside the stock pair's."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "p50 ms", "p95 ms", "least", "most", "× stock"):
        table.add_column(column, justify="left" if not column else "right")
    for name, found in figures.items():
        stock = figures[name.replace("podwire", "stock")]["p50"]
        cells = [f"{found[key]:.1f}" for key in ("p50", "p95", "least", "most")]
        table.add_row(name, *cells, f"{found['p50'] / stock:.2f}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
