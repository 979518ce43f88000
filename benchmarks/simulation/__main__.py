"""The command line: `python -m benchmarks.simulation`."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from benchmarks.figures import percentile
from benchmarks.namespace import sweep
from benchmarks.simulation.report import Run, plot, show
from benchmarks.simulation.scenario import Play
from benchmarks.simulation.stage import Stage

_JOIN_PROMISE_S = {1000: 3.0}


@click.command()
@click.option(
    "--nodes", default="50,1000", show_default=True, metavar="N,…", help="How many nodes, each a run of its own."
)
@click.option("--joins", type=click.IntRange(1, 100), default=10, show_default=True, help="Nodes that join one by one.")
@click.option("--ttl-s", type=click.IntRange(3, 300), default=15, show_default=True, help="TTL of the leases.")
@click.option("--crowds", type=click.IntRange(2, 16), default=2, show_default=True, help="Processes the nodes live in.")
@click.option(
    "--followers",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Of more nodes, so many keep a table of their own; all lease.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every figure there.")
@click.option("--load", multiple=True, type=click.Path(path_type=Path), help="Show and draw what --json wrote; repeat.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw all runs there (SVG).")
def main(
    nodes: str,
    joins: int,
    ttl_s: int,
    crowds: int,
    followers: int,
    json_path: Path | None,
    load: tuple[Path, ...],
    plot_path: Path | None,
) -> None:
    """Simulate clusters of many nodes on a real etcd, and measure how fast tables converge.

    Watches, leases, tables and snapshots of all nodes are the router's own code, on this machine's clock and processors;
    data paths are left out. Tables take processor time by the square of the nodes: of more than --followers nodes only so many
    keep one, and the figures of who sees whom are theirs. Needs root (a network namespace of its own) and etcd.

    \b
    Exit status: 0 done, and what is promised was kept (1,000 nodes: a node that joins is in the snapshots of all others
    within 3 s, p99); 1 not so.
    """
    signal.signal(signal.SIGTERM, _leave)
    sweep()
    runs: list[Run] = [run for path in load for run in json.loads(path.read_text())]
    out = Console()
    for count in [] if load else [int(text) for text in nodes.split(",")]:
        one_follows_of = max(1, -(-count // followers))
        with Stage(crowds, ttl_s, one_follows_of) as stage:
            play = Play(stage, count, joins, ttl_s, lambda text: click.echo(f"  {text}", err=True))
            outcomes = play.all()
        runs.append({
            "nodes": count, "crowds": crowds, "ttl_s": ttl_s, "followers": -(-count // one_follows_of), "machine": f"{os.cpu_count()} processors",
            "scenarios": [asdict(outcome) for outcome in outcomes],
        })  # fmt: skip
        if json_path is not None:
            json_path.write_text(json.dumps(runs))
    kept = True
    for run in runs:
        show(out, run)
        bound_s = _JOIN_PROMISE_S.get(run["nodes"])
        if bound_s is not None:
            join = next(each for each in run["scenarios"] if each["name"] == "join")
            found_s = percentile(join["seconds"], 99)
            kept &= found_s <= bound_s
            out.print(f"a join among {run['nodes']}: p99 {found_s:.3f} s, promised {bound_s} s")
    if plot_path is not None:
        plot(runs, plot_path)
    sys.exit(0 if kept else 1)


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
