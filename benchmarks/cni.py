"""What a runtime waits for: ADD and DEL of podwire-cni, compiled and in Python, beside the stock bridge + host-local.

    python -m benchmarks.cni [--rounds 50] [--json FILE]

Process start included. Interleaved in one run, in one node's namespace, a fresh Pod namespace each round and plugin; who
comes first changes with the round. Root; containernetworking-plugins; scripts/build-native.sh for the compiled one.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shim import launchers
from shim.lab import Lab, netns
from shim.lab.node import LabNode

Figures = dict[str, dict[str, float]]
"""Name to p50, p95, least and most, in milliseconds."""

STOCK = Path("/usr/lib/cni")
KINDS = ("native", "python", "stock")
ADD, DEL, IDLE_DEL = "ADD", "DEL", "DEL, nothing there"
STEPS = {ADD: "ADD", DEL: "DEL", IDLE_DEL: "DEL"}
"""What is measured, in order, with its verb."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A median that must not be exceeded."""

    kind: str
    step: str
    most_ms: float = 0.0
    times_stock: float = 0.0

    def allowed_ms(self, figures: Figures) -> float:
        """Return the bound in milliseconds."""
        return self.most_ms or self.times_stock * figures[f"stock {self.step}"]["p50"]


BOUNDS = (
    Bound("native", ADD, times_stock=2.0),
    Bound("native", DEL, times_stock=1.0),
    Bound("python", ADD, most_ms=100.0),
    Bound("python", IDLE_DEL, most_ms=30.0),
)
"""What issues and architecture promise."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="Pods made and removed with each [default: 50]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    asked = parser.parse_args()
    if not (STOCK / "bridge").exists():
        print(f"{STOCK}/bridge is missing; install containernetworking-plugins", file=sys.stderr)
        return 1
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            Lab(nodes=1, pods=0, router_args=("--address-rest-s", "0")) as lab,
        ):
            figures = measure(lab.nodes[0], Path(folder), asked.rounds)
    except launchers.LauncherError as error:
        print(error, file=sys.stderr)
        return 1
    show(figures)
    if asked.json:
        bounds = [
            {"what": f"{each.kind} {each.step}", "most_ms": each.allowed_ms(figures), "times_stock": each.times_stock,
             "p50_ms": figures[f"{each.kind} {each.step}"]["p50"], "kept": kept(each, figures)}
            for each in BOUNDS
        ]  # fmt: skip
        asked.json.write_text(json.dumps({"rounds": asked.rounds, "ms": figures, "bounds": bounds}, indent=1))
    return 0 if all(kept(each, figures) for each in BOUNDS) else 1


def kept(bound: Bound, figures: Figures) -> bool:
    """Tell whether a bound holds."""
    return figures[f"{bound.kind} {bound.step}"]["p50"] <= bound.allowed_ms(figures)


def measure(node: LabNode, folder: Path, rounds: int) -> Figures:
    """Return milliseconds by what was done. LauncherError when the compiled plugin is not there."""
    podwire = {"cniVersion": "1.0.0", "name": "bench", "type": "podwire-cni", "socket": str(node.socket)}
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/16"}]], "dataDir": str(folder / "ipam")}
    stock = {
        "cniVersion": "1.0.0", "name": "stock", "type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam,
    }  # fmt: skip
    plugins: dict[str, tuple[Path, dict[str, Any]]] = {"stock": (STOCK / "bridge", stock)}
    for kind in ("native", "python"):
        (made,) = launchers.write(folder / kind, [launchers.PLUGIN], client=kind)
        plugins[kind] = (made, podwire)
    taken: dict[str, list[float]] = {f"{kind} {step}": [] for kind in KINDS for step in STEPS}
    for turn in range(rounds + 1):
        for place in range(len(KINDS)):
            kind = KINDS[(turn + place) % len(KINDS)]
            pod = f"{node.netns}b{turn}{kind[0]}"
            netns.create(pod)
            try:
                for step, verb in STEPS.items():
                    took_ms = netns.call(node.netns_path, _one(verb, *plugins[kind], pod, str(netns.path_of(pod))))
                    if turn:  # the first warms up
                        taken[f"{kind} {step}"].append(took_ms)
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


def show(figures: Figures) -> None:
    """Print a table, each of ours beside the stock pair's, with what was promised."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "p50 ms", "p95 ms", "least", "most", "× stock", "at most"):
        table.add_column(column, justify="left" if not column else "right")
    bounds = {(each.kind, each.step): each for each in BOUNDS}
    for step in STEPS:
        for kind in KINDS:
            found, bound = figures[f"{kind} {step}"], bounds.get((kind, step))
            cells = [f"{found[key]:.1f}" for key in ("p50", "p95", "least", "most")]
            cells.append(f"{found['p50'] / figures[f'stock {step}']['p50']:.2f}")
            if bound:
                limit = f"{bound.times_stock:g} × stock" if bound.times_stock else f"{bound.most_ms:g} ms"
                cells.append(f"{limit} {'✓' if kept(bound, figures) else '✗'}")
            table.add_row(f"{kind} {step}", *cells)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
