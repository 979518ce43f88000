"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import machine
from benchmarks.comparison import render_comparison
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.podwire import sweep_labs
from benchmarks.figures import Figures
from benchmarks.measures import MEASURES, QUICK
from benchmarks.namespace import sweep
from benchmarks.plan import NEEDS_ROOT, PODS, PROMISING_SECTIONS, QUICK_SECTIONS, SECTIONS, Plan
from benchmarks.plot import SUFFIXES, draw_all
from benchmarks.report import print_report
from router.engine.choose import available

_CONTENDERS = tuple(contender.name for contender in CONTENDERS)
_MEASURES = tuple(measure.name for measure in MEASURES)
_ENGINES = available()
_FILE_COLUMNS = 120
"""Of a report that goes into a file or pipe."""
_QUICK: dict[str, Any] = {
    "rounds": 1, "seconds": 1.0, "pods": 40, "subnets": 10_000, "contenders": ("podwire", "veth", "vxlan"), "measures": QUICK,
}  # fmt: skip

_PROMISING = [(metric, promise) for measure in MEASURES for metric in measure.metrics for promise in metric.promises]
_NEEDED = {name for metric, promise in _PROMISING for name in (promise.of, metric.base_of(promise))}
_PROMISES: dict[str, Any] = {
    "contenders": tuple(name for name in _CONTENDERS if name in _NEEDED), "engines": _ENGINES[:1],
    "measures": tuple(each.name for each in MEASURES if any(metric.promises for metric in each.metrics)),
}  # fmt: skip

HELP = f"""Measure Podwire: its hot path alone, and Pod to Pod beside the kernel and other userspace networks.

All contenders are up at once, each in network namespaces of its own, and take turns on every measure, round
after round; ratios are taken within a round. So trust the ratios: the absolute figures move with the machine.

\b
Sections (--only)
  hot-path    engines over socketpairs and loopback UDP, by packet size;
              no root needed
  peers       one engine among 1, 10 and 100 peers; no root needed
  tables      look-up, building and changing a table of 10, 1,000 and
              100,000 subnets; no root needed
  pods        Pod to Pod, across two nodes and on one; needs root
  scaling     1, 2, 10 and 100 attachments a node: one of them busy, and
              all of them; needs root
  profile     the routers' time in copies, system calls and own code, under
              tcp1 and under udp64; needs root and perf
  acceptance  many Pods on one node, control calls under load, a large
              table put in force under traffic; needs root

\b
Measures of `pods` (--only takes them too)
  tcp1 tcp1r  one TCP stream there, and back; with the CPU time a gigabyte
              costs: of the router processes, and of the whole machine
  tcp4 tcp4r  four streams
  local       one stream between Pods of the same node
  udp64       one flow of 64-byte datagrams, true single packets, half more
              offered than arrives; what the receiver's kernel counted, and
              the CPU time of a million
  udp64x2     the same from two senders at once: kernel VXLAN carries a flow
              on its sender's processor, and only so has two
  udp1400     udp64 of 1,400 bytes
  pace        50,000 packets/s of 64 bytes in bursts of ten: CPU time of the
              whole machine a packet, less what it spends on nothing; loss
  rtt         UDP and ICMP round trips on the idle network, p50 and p99
  load        UDP round trips beside a saturating TCP stream, between the
              same Pods and between two others of these nodes

\b
Contenders (--contenders)
  {", ".join(_CONTENDERS)}
Ratios are to vxlan, those of `local` to veth. `podwire` runs the best engine there is, podwire-ENGINE another,
podwire-spin spins before it sleeps and is there for rtt only; podwire-capture has everything captured meanwhile,
podwire-filter what matches a filter, which nothing does: both are there for tcp1 and udp64. What is not installed is left out, and named with the
apt-get line that brings it; nothing is downloaded.

\b
Examples
  sudo python -m benchmarks                       everything, about 35 minutes
  sudo python -m benchmarks --promises            what is promised, and no more: 12 minutes
  sudo python -m benchmarks --quick               under a minute
  python -m benchmarks --only hot-path,tables     without root
  sudo python -m benchmarks --only tcp1,udp64 --contenders podwire,vxlan --rounds 7
  sudo python -m benchmarks --json new.json --plot new.svg --compare old.json
  sudo python -m benchmarks --only pods,scaling --engine native
  python -m benchmarks --load new.json --compare old.json
  python -m benchmarks.plot new.json docs         the pictures of docs/performance.md

\b
Exit status: 0 measured, 1 nothing measured or a section failed, 2 wrong use, 130 interrupted. Whatever
happens, namespaces are removed; those of a run that was killed are removed by the next."""


class Names(click.ParamType[tuple[str, ...]]):
    """Names out of a known set, parted by commas."""

    name = "name,…"

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Part and check."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in str(value).split(",") if name.strip())
        for name in names:
            if name not in self._known:
                self.fail(f"there is no {name!r}; known are {', '.join(self._known)}", param, ctx)
        return names


@click.command(help=HELP, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.option("--only", type=Names(SECTIONS + _MEASURES), default=(), help="Sections and measures to run. [all]")
@click.option("--contenders", type=Names(_CONTENDERS), default=_CONTENDERS, show_default="all",
              help="Who is measured Pod to Pod.")  # fmt: skip
@click.option("--engine", "engines", type=Names(_ENGINES), default=_ENGINES, show_default="all",
              help="Engines of Podwire that are measured.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Turns of everybody.")
@click.option("--seconds", type=click.FloatRange(0.2, 600), default=2.0, show_default=True,
              help="Length of one measure; iperf3 rounds to whole seconds.")  # fmt: skip
@click.option("--pods", type=click.IntRange(2, 250), default=200, show_default=True,
              help="Pods attached to one node by `acceptance`.")  # fmt: skip
@click.option("--subnets", type=click.IntRange(10, 130_000), default=100_000, show_default=True,
              help="Subnets in the table put in force by `acceptance`.")  # fmt: skip
@click.option("--promises", is_flag=True, help="What Podwire promises with its best engine, and whom that takes; "
              "other options still hold.")  # fmt: skip
@click.option("--quick", is_flag=True, help="One short round of the main measures, for CI; other options still hold.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write all values, medians, ratios and facts of the machine.")  # fmt: skip
@click.option("--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Draw the figures between Pods, and beside them FILE-ratios, -load, -scaling and -profile; .svg, .png or .pdf.")  # fmt: skip
@click.option("--compare", "old_path", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="OLD.json",
              help="Show how each ratio changed since an earlier --json.")  # fmt: skip
@click.option("--load", "load_path", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Measure nothing: report, plot and compare an earlier --json.")  # fmt: skip
@click.pass_context
def main(
    ctx: click.Context, only: tuple[str, ...], contenders: tuple[str, ...], engines: tuple[str, ...], rounds: int, seconds: float, pods: int,
    subnets: int, promises: bool, quick: bool, json_path: Path | None, plot_path: Path | None, old_path: Path | None, load_path: Path | None,
) -> None:  # fmt: skip
    if plot_path is not None and plot_path.suffix not in SUFFIXES:
        raise click.UsageError(f"--plot {plot_path}: the file's name must end in one of {', '.join(SUFFIXES)}")
    if plot_path is not None and find_spec("matplotlib") is None:
        raise click.ClickException("--plot needs matplotlib: pip install 'matplotlib>=3.9,<4', or leave --plot out")
    for path in (json_path, plot_path):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"{path}: there is no directory {path.absolute().parent}")
    old = _load(old_path) if old_path else None
    console = Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS)
    if load_path is not None:
        figures = _load(load_path)
    else:
        chosen = {
            "contenders": contenders, "engines": engines, "measures": _MEASURES, "rounds": rounds, "seconds": seconds, "pods": pods,
            "subnets": subnets,
        }  # fmt: skip
        given = {name for name in chosen if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        sections = SECTIONS
        for wanted, preset, its_sections in (
            (promises, _PROMISES, PROMISING_SECTIONS),
            (quick, _QUICK, QUICK_SECTIONS),
        ):
            if wanted:
                chosen |= {name: value for name, value in preset.items() if name not in given}
                sections = its_sections
        figures = _measure(_plan(only, sections, chosen), console)
    print_report(figures, console)
    if json_path is not None:
        json_path.write_text(json.dumps(figures.to_json(), indent=1, ensure_ascii=False) + "\n")
        console.print(f"wrote {json_path}")
    if plot_path is not None:
        written, left_out = draw_all(figures, plot_path, plot_path.stem)
        if not written:
            raise click.ClickException(f"--plot: {'; '.join(left_out)}")
        console.print(f"wrote {', '.join(map(str, written))}")
    if old is not None:
        console.print(render_comparison(old, figures))
    if not figures.metrics or figures.failures:
        sys.exit(1)


def _plan(only: tuple[str, ...], preset: tuple[str, ...], chosen: dict[str, Any]) -> Plan:
    sections = tuple(name for name in SECTIONS if name in only) if only else preset
    measures = tuple(name for name in only if name in _MEASURES)
    if measures:
        chosen["measures"] = measures
        sections = tuple(name for name in SECTIONS if name in sections or name == PODS)
    refused = [name for name in sections if name in NEEDS_ROOT] if os.geteuid() else []
    if refused:
        if only:
            raise click.ClickException(f"{', '.join(refused)} needs root, for its namespaces: run this with sudo")
        sections = tuple(name for name in sections if name not in NEEDS_ROOT)
        click.echo(
            f"not root: only {', '.join(sections)} can be measured; run with sudo for {', '.join(refused)}", err=True
        )
    plan = Plan(sections, **chosen)
    if missing := plan.missing_tools():
        raise click.ClickException(
            f"{', '.join(missing)} not installed: apt-get install {' '.join(dict.fromkeys(missing.values()))}"
        )
    return plan


def _measure(plan: Plan, console: Console) -> Figures:
    figures = Figures(
        machine=machine.describe(plan.contenders if PODS in plan.sections else ()),
        settings={"sections": plan.sections, "engines": plan.engines, "rounds": plan.rounds, "seconds": plan.seconds},
    )
    if busy := machine.busy_note():
        figures.notes.append(busy)
    if set(plan.sections) & set(NEEDS_ROOT) and (removed := [*sweep(), *sweep_labs()]):
        console.print(f"removed what a killed run had left: {', '.join(removed)}", style="dim")
    signal.signal(signal.SIGTERM, _interrupt)
    columns = (SpinnerColumn(), BarColumn(24), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as progress:
        task = progress.add_task("", total=plan.steps())

        def tell(text: str) -> None:
            progress.update(task, advance=1, description=text, refresh=True)
            if not console.is_terminal:
                console.print(text, style="dim", highlight=False)

        try:
            plan.run(figures, tell)
        except KeyboardInterrupt:
            progress.stop()
            console.print("interrupted; everything set up was taken down")
            sys.exit(130)
    return figures


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _load(path: Path) -> Figures:
    try:
        return Figures.from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise click.ClickException(f"{path} cannot be read as a result of --json: {error}") from error


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
