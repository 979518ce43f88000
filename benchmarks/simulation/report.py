"""The figures of simulations: a table, JSON, and a plot of how they are spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figures import percentile

Run = dict[str, Any]
"""Of one simulation: nodes, crowds, ttl_s, machine, and scenarios as of `scenario.Outcome`."""


def show(out: Console, run: Run) -> None:
    """Print one simulation."""
    table = Table("scenario", "p50", "p99", "most", title=f"{run['nodes']} nodes", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for each in run["scenarios"]:
        seconds = each["seconds"]
        table.add_row(each["title"], *(f"{percentile(seconds, percent):.3f} s" for percent in (50, 99, 100)))
    out.print(table)
    for each in run["scenarios"]:
        if each["notes"]:
            out.print(f"{each['name']}: " + ", ".join(f"{value:.1f} {name}" for name, value in each["notes"].items()))


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw one panel a scenario and one line a number of nodes: the share of nodes that were done by then."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    names = [each["name"] for each in runs[0]["scenarios"]]
    columns = 3
    figure, axes = plt.subplots(
        -(-len(names) // columns), columns, figsize=(12, 6.5), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes.flat, names, strict=False):
        title = ""
        for run in runs:
            found = next((each for each in run["scenarios"] if each["name"] == name), None)
            if found is None:
                continue
            title = found["title"] if name != "heal" else "half of the nodes come back: a node sees all"
            ordered = sorted(found["seconds"])
            share = [(index + 1) / len(ordered) for index in range(len(ordered))]
            axis.step([max(value, 1e-3) for value in ordered], share, where="post", label=f"{run['nodes']:,} nodes")
        axis.set_title(title, fontsize=9)
        axis.set_xscale("log")
        axis.set_xlabel("seconds")
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    for axis in list(axes.flat)[len(names) :]:
        axis.axis("off")
    axes.flat[0].set_ylabel("share of nodes")
    figure.suptitle(
        f"Convergence of simulated nodes on a real etcd, all on one machine ({runs[0]['machine']})", fontsize=10
    )
    mpl.rcParams["svg.hashsalt"] = "podwire"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
