"""`podwire doctor`: examine this node."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shim.install import cni, containerd

if TYPE_CHECKING:
    from shim.doctor.finding import Finding


@click.command("doctor")
@click.option(
    "--socket",
    "socket_path",
    default=cni.DEFAULT_SOCKET,
    show_default=True,
    envvar="PODWIRE_SOCKET",
    show_envvar=True,
    metavar="PATH",
    help="Unix socket of the router.",
)
@click.option("--pods", type=click.IntRange(1), default=110, show_default=True, help="How many Pods it is to carry.")
@click.option("--containerd-config", default=containerd.CONFIG, show_default=True, help="Where its configuration is.")
@click.option(
    "--root", "directory", default="/", type=click.Path(path_type=Path, exists=True), help="Tree instead of /."
)
@click.option("--quiet", "-q", is_flag=True, help="Only what is not well.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: {findings: [{check, verdict, what, remedy}], verdict}."
)
def doctor(socket_path: str, pods: int, containerd_config: str, directory: Path, quiet: bool, as_json: bool) -> None:
    """Look what is wrong on this node, and say how to mend it.

    Kernel, router, runtimes, MTU, overlapping addresses, limits, clocks, and what Pods that are gone have left. It changes
    nothing.

    \b
    Examples:
      podwire doctor
      podwire doctor --quiet --pods 250
      podwire doctor --json | jq '.findings[] | select(.verdict != "ok")'

    \b
    Exit status:
      0  well, or with warnings
      1  something is broken
    """
    from shim.doctor.examination import examine
    from shim.doctor.finding import Verdict
    from shim.doctor.site import Site, ask
    from shim.install.root import Root

    answers, unreachable, pid = ask(socket_path)
    site = Site(Root(directory.resolve()), socket_path, pods, containerd_config, answers, unreachable, pid)
    findings = [each for each in examine(site) if not quiet or each.verdict is not Verdict.OK]
    worst = max((each.verdict for each in findings), key=list(Verdict).index, default=Verdict.OK)
    if as_json:
        document = {"findings": [dataclasses.asdict(each) for each in findings], "verdict": worst}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _show(findings)
    sys.exit(1 if worst is Verdict.FAIL else 0)


def _show(findings: Sequence[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    from shim import render

    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        table.add_row(Text(each.verdict, colours[each.verdict]), each.check, each.what)
        if each.remedy:
            table.add_row("", "", Text(f"→ {each.remedy}", "cyan"))
    out = render.console()
    out.print(table)
    counts = {verdict: sum(each.verdict == verdict for each in findings) for verdict in colours}
    out.print(f"\n{counts['fail']} broken, {counts['warn']} doubtful, {counts['ok']} well")
