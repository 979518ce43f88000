"""What a kubelet waits for: RunPodSandbox through one containerd, with podwire-cni and with the stock bridge + host-local.

    python -m benchmarks.runtime [--rounds 50] [--containerd 1.6] [--json FILE]

Interleaved in one run, through the same containerd: each network is a runtime handler's. Root; scripts/conformance-setup.sh
installs what it takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shim.lab import Lab
from tests.conformance import images, network, parts
from tests.conformance.containerd import Containerd
from tests.conformance.kubelet import Kubelet, pod_config

MOST_TIMES_STOCK = 1.5
"""How much longer a Pod's sandbox may take than with the stock pair, as medians."""
HANDLERS = {"podwire": "", "stock": "other"}
"""Network to the runtime handler that has it."""
Figures = dict[str, dict[str, dict[str, float]]]
"""Call to network to figure to milliseconds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="Pods made and removed with each [default: 50]")
    parser.add_argument("--containerd", default="1.6", metavar="VERSION", help="1.6, 1.7 or 2 [default: 1.6]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    asked = parser.parse_args()
    try:
        release = parts.release(asked.containerd)
    except parts.MissingPart as missing:
        print(missing, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, Lab(nodes=1, pods=0) as lab:
        [node] = lab.nodes
        image = images.build(Path(folder, "busybox.tar"))
        stock = network.stock(["10.99.0.0/16", "fd99::/64"], Path(folder, "ipam"))
        with (
            Containerd(node, release, network.podwire(node.socket), image, other=stock) as containerd,
            Kubelet(containerd) as kubelet,
        ):
            figures = measure(kubelet, asked.rounds)
    show(figures)
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1))
    return 0 if ratio(figures, "RunPodSandbox") <= MOST_TIMES_STOCK else 1


def measure(kubelet: Kubelet, rounds: int) -> Figures:
    """Make and remove Pods with each network in turn, one more than counts: the first warms up."""
    calls = ("RunPodSandbox", "StopPodSandbox", "RemovePodSandbox")
    taken: dict[str, dict[str, list[float]]] = {call: {name: [] for name in HANDLERS} for call in calls}
    for turn in range(rounds + 1):
        # Who comes first takes turns too: the second finds the machine as the first has left it.
        for name in list(HANDLERS)[:: 1 if turn % 2 else -1]:
            marks = [time.perf_counter()]
            config = pod_config(f"{name}-{turn}")
            made = kubelet.cri.call("RunPodSandbox", config=config, runtime_handler=HANDLERS[name])
            marks.append(time.perf_counter())
            kubelet.stop_pod(made["pod_sandbox_id"])
            marks.append(time.perf_counter())
            kubelet.cri.call("RemovePodSandbox", pod_sandbox_id=made["pod_sandbox_id"])
            marks.append(time.perf_counter())
            for call, began_s, ended_s in zip(calls, marks, marks[1:], strict=False):
                if turn:
                    taken[call][name].append((ended_s - began_s) * 1000)
    return {call: {name: _summary(values) for name, values in each.items()} for call, each in taken.items()}


def ratio(figures: Figures, call: str) -> float:
    """Return how much longer a call takes than with the stock pair, as medians."""
    return figures[call]["podwire"]["p50"] / figures[call]["stock"]["p50"]


def show(figures: Figures) -> None:
    """Print a table, ours beside the stock pair's."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "", "p50 ms", "p95 ms", "least", "most", "× stock"):
        table.add_column(column, justify="left" if not column else "right")
    for call, each in figures.items():
        for name, found in each.items():
            cells = [f"{found[key]:.1f}" for key in ("p50", "p95", "least", "most")]
            table.add_row(call, name, *cells, f"{ratio(figures, call):.2f}" if name == "podwire" else "")
    Console(highlight=False).print(table)


def _summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": statistics.median(ordered),
        "p95": ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))],
        "least": ordered[0],
        "most": ordered[-1],
    }


if __name__ == "__main__":
    sys.exit(main())
