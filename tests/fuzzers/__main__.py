"""`python -m tests.fuzzers`: run targets for a time, and say what they found."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzzers.run import Finding, Outcome, replay, run
from tests.fuzzers.targets import targets


def main(words: Sequence[str] | None = None) -> int:
    """Return 1 when there is a finding, 2 when no target is meant."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzers", description="Feed every parser hostile input.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="default: one from the clock, which is shown")
    parser.add_argument("--only", action="append", metavar="NAME", help="a target; repeat for more")
    parser.add_argument("--list", action="store_true", help="name the targets and who reaches them")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="feed one input again, to the target named by --only"
    )
    parser.add_argument("--findings", type=Path, metavar="DIR", help="where inputs that found something are written")
    options = parser.parse_args(words)
    chosen = [each for each in targets() if not options.only or each.name in options.only]
    if missing := set(options.only or ()) - {each.name for each in chosen}:
        print(f"error: no target {', '.join(sorted(missing))}; --list names them", file=sys.stderr)
        return 2
    out = Console()
    if options.list:
        table = Table("target", "reached by")
        for each in chosen:
            table.add_row(each.name, each.reached_by)
        out.print(table)
        return 0
    if options.replay is not None:
        if len(chosen) != 1:
            print("error: --replay needs --only NAME", file=sys.stderr)
            return 2
        found = replay(chosen[0], options.replay.read_bytes())
        print(found.trace if found else "it is taken without a finding")
        return 1 if found else 0
    seed = options.seed if options.seed is not None else time.time_ns() & 0xFFFFFFFF
    directory = options.findings or Path(tempfile.gettempdir()) / f"podwire-findings-{seed}"
    total = sum(each.weight for each in chosen)
    outcomes = [run(each, seed, options.seconds * each.weight / total) for each in chosen]
    return report(out, outcomes, seed, directory)


def report(out: Console, outcomes: list[Outcome], seed: int, directory: Path) -> int:
    """Show what came of it, and write down what found something."""
    table = Table("target", "inputs", "a second", "findings", title=f"seed {seed}")
    for each in outcomes:
        rate = f"{each.inputs / each.seconds:,.0f}" if each.seconds else "-"
        table.add_row(
            each.name, f"{each.inputs:,}", rate, str(len(each.findings)), style="red" if each.findings else None
        )
    out.print(table)
    findings = [(each.name, finding) for each in outcomes for finding in each.findings]
    for name, finding in findings:
        path = write(directory, name, seed, finding)
        out.print(f"\n[bold red]{name}[/] input {finding.number}, written to {path}:", highlight=False)
        out.print(finding.trace, markup=False, highlight=False)
        again = f"python -m tests.fuzzers --only {name} --replay {path}"
        out.print(f"again: {again}", markup=False, highlight=False)
    return 1 if findings else 0


def write(directory: Path, name: str, seed: int, finding: Finding) -> Path:
    """Write the input that found something to a file of its own."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{name}-{seed}-{finding.number}.bin"
    if finding.given:
        path.write_bytes(finding.given)
    return path


if __name__ == "__main__":
    sys.exit(main())
