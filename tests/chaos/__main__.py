"""`python -m tests.chaos`: one long run, or one that has to catch a planted bug. See docs/chaos.md."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from router.engine import choose
from shim.lab import netns
from shim.lab.errors import LabError
from tests.chaos import leaks, planted, quiet
from tests.chaos.log import Log
from tests.chaos.oracle import Oracle
from tests.chaos.rig import MOST_NODES, MOST_PODS, Rig
from tests.chaos.runner import Runner
from tests.chaos.schedule import Action, schedule

PLANTED_MINUTES = 1.0
"""A planted bug has to be caught by then."""


class Run:
    """One run, from a lab that comes up to a machine that is as before."""

    def __init__(self, wanted: argparse.Namespace, log: Log) -> None:
        self.wanted = wanted
        self.log = log
        self.facts: dict[str, Any] = {}
        """What was found, for the table and for JSON."""
        self.stop = threading.Event()
        self.seconds = 60 * wanted.minutes
        self.actions = schedule(wanted.seed, self.seconds, wanted.nodes, wanted.pods) if not wanted.calm else []

    def go(self) -> None:
        wanted, log = self.wanted, self.log
        before = leaks.Machine.look()
        program = (sys.executable, "-m", "tests.chaos.planted", wanted.plant) if wanted.plant else ()
        rig = Rig(wanted.nodes, wanted.pods, wanted.engine, wanted.seed, log, program, wanted.underlay)
        oracle = Oracle(rig, log)
        runner = Runner(rig, log)
        inside: set[tuple[int, int]] = set()
        try:
            rig.up()
            base, rules = leaks.base_fds(rig), leaks.rules(rig)
            log.begin()
            log.say(
                f"{wanted.nodes} nodes with {wanted.pods} Pods each are up, engine {wanted.engine}, seed {wanted.seed}"
            )
            oracle.start()
            if wanted.plant:
                self._stop_when_caught()
            runner.run(self.actions, self.seconds, self.stop)
            self.facts["actions"] = sum(rig.done.values())
            self.facts["done"] = dict(rig.done)
            self.facts["skipped"] = runner.skipped
            if not (wanted.plant and self.caught):
                self._settle(rig, oracle, base, rules)
            inside = leaks.namespaces(rig)
        finally:
            oracle.stop()
            oracle.store.close()
            rig.down()
        self.facts["left on the machine"] = leaks.check_machine(rig, log, before, inside)

    @property
    def caught(self) -> bool:
        """Whether one of the invariants that a planted bug breaks was found broken."""
        return any(self.log.broken[each] for each in planted.CAUGHT_BY.get(self.wanted.plant, ()))

    def _stop_when_caught(self) -> None:
        def wait() -> None:
            while not self.caught and not self.stop.wait(0.2):
                pass
            self.stop.set()

        threading.Thread(target=wait, daemon=True).start()

    def _settle(self, rig: Rig, oracle: Oracle, base: dict[str, int], rules: dict[str, str]) -> None:
        log, facts = self.log, self.facts
        log.say("everything is repaired")
        facts["reach"] = quiet.settle(rig, log)
        held_s = quiet.drain(rig, log)
        facts["leases"] = quiet.leases(rig, log)
        oracle.round()
        explained = quiet.explain(rig, oracle, log, held_s)
        facts["datagrams"] = f"{explained.sent:,} sent, {explained.lost:,} lost, {explained.duplicated} came twice"
        facts["looked at closely"] = (
            f"{explained.outside_sent / max(1, explained.sent):.0%} were sent when nothing excused a loss: {explained.outside_lost} "
            f"of them lost, {explained.allowed:,} explained by counters"
        )
        connections = rig.traffic.connections.values()
        facts["TCP"] = (
            f"{sum(bool(made.opened_s) for made in connections)} connections, "
            f"{sum(made.received_bytes + made.answered_bytes for made in connections) / 1e6:.1f} MB, {rig.traffic.counts['exchanges']:,} "
            "requests answered"
        )
        counts = rig.traffic.counts
        facts["captures"] = f"{counts['captures']} files"
        facts["lies"] = f"{counts['spoofed']} spoofed, {counts['forged']} forged packets"
        facts["drops"] = f"{dict(oracle.accounts.by_reason())}, by kernels {oracle.accounts.by_kernels()}"
        facts["links"] = f"{sum(rig.relay_lost.values())} frames lost by faults, {rig.relay_duplicated} doubled"
        oracle.store.stop()
        witness = oracle.store.witness
        facts["etcd"] = f"{witness.revision} revisions, {witness.passed_on} subnets passed on"
        oracle.stop()
        facts["looks"] = oracle.looks
        facts["fds"] = leaks.check_fds(rig, log, base)
        facts["memory"] = leaks.check_memory(oracle.sizes, log)
        facts["journals, devices, rules"] = leaks.check_nodes(rig, log, rules)


def report(run: Run, took_s: float) -> None:
    """Print what was found; of a failure all that is needed to have it again."""
    log, wanted = run.log, run.wanted
    table = Table(box=SIMPLE_HEAD, show_header=False)
    for name, value in run.facts.items():
        table.add_row(name, str(value))
    table.add_row("took", f"{took_s:.0f} s")
    Console(width=140).print(table)
    if log.violations:
        print(f"\nBROKEN, with seed {wanted.seed} ({_command(wanted)}):")
        for violation in log.violations:
            print(f"  {violation.at_s:7.2f} s  {violation.invariant}: {violation.text}")
        print("  in all: " + ", ".join(f"{count}× {name}" for name, count in log.broken.items()))
        print("\nThe last actions:")
        for line in log.last:
            print(f"  {line}")
    print(f"\nlog: {log.path}")


def write_json(path: Path, run: Run, took_s: float) -> None:
    """Write all of it for programs."""
    content = {
        "seed": run.wanted.seed,
        "command": _command(run.wanted),
        "took_s": round(took_s, 1),
        "facts": run.facts,
        "violations": [
            {"at_s": round(each.at_s, 2), "invariant": each.invariant, "text": each.text} for each in run.log.violations
        ],
        "broken": dict(run.log.broken),
        "schedule": [{"at_s": each.at_s, "name": each.name, "arguments": each.arguments} for each in run.actions],
        "last_actions": list(run.log.last),
    }
    path.write_text(json.dumps(content, indent=1, default=str))


def _command(wanted: argparse.Namespace) -> str:
    plant = (f" --plant {wanted.plant}" if wanted.plant else "") + (" --calm" if wanted.calm else "")
    return (
        f"python -m tests.chaos --minutes {wanted.minutes:g} --nodes {wanted.nodes} --pods {wanted.pods} "
        f"--engine {wanted.engine} --underlay {wanted.underlay} --seed {wanted.seed}{plant}"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, help="how long things go wrong (10; with --plant 1 at most)")
    parser.add_argument("--seed", type=int, help="the same seed does the same (drawn unless given)")
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--pods", type=int, default=4, help="on each node")
    parser.add_argument("--engine", choices=(choose.AUTO, *choose.NAMES), default=choose.AUTO)
    parser.add_argument("--underlay", type=int, choices=(4, 6), default=4, help="IP of the tunnels")
    parser.add_argument("--plant", choices=tuple(planted.BUGS), default="", metavar="BUG", help=", ".join(planted.BUGS))
    parser.add_argument(
        "--calm", action="store_true", help="traffic and oracle only: nothing goes wrong, nothing may be lost"
    )
    parser.add_argument("--schedule", action="store_true", help="print what would be done when, and do nothing")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quiet", action="store_true", help="print the end only")
    wanted = parser.parse_args(arguments)
    if wanted.minutes is None:
        wanted.minutes = PLANTED_MINUTES if wanted.plant else 10.0
    if wanted.seed is None:
        wanted.seed = random.SystemRandom().randrange(1_000_000)
    if not 2 <= wanted.nodes <= MOST_NODES or not 1 <= wanted.pods <= MOST_PODS or wanted.nodes * wanted.pods < 3:
        parser.error(f"it takes 2 to {MOST_NODES} nodes, 1 to {MOST_PODS} Pods on each, and 3 Pods in all")
    if wanted.plant:
        wanted.engine = "python"  # what is planted is Python
    return wanted


def show(actions: list[Action]) -> None:
    for action in actions:
        print(action)


def main() -> int:
    wanted = parse()
    path = Path(tempfile.mkdtemp(prefix="podwire-chaos-")) / "chaos.log"
    log = Log(path, wanted.quiet)
    run = Run(wanted, log)
    if wanted.schedule:
        show(run.actions)
        return 0
    try:
        netns.need_root()
        if shutil.which("etcdctl") is None:
            raise LabError(
                "the command `etcdctl` is missing on this machine: install it (on Debian the package etcd-client)"
            )
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_command(wanted), flush=True)
    with path.with_name("schedule.txt").open("w") as out:
        out.writelines(f"{action}\n" for action in run.actions)
    began_s = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        run.go()
    except LabError as error:
        log.complain("the lab comes up", str(error))
    except KeyboardInterrupt:
        log.complain("it runs to its end", "it was interrupted")
    took_s = time.monotonic() - began_s
    report(run, took_s)
    if wanted.json:
        write_json(wanted.json, run, took_s)
    log.close()
    if wanted.plant:
        print(f"{wanted.plant}: {'caught' if run.caught else 'NOT CAUGHT'}")
        return 0 if run.caught else 1
    print("BROKEN" if log.violations else "every invariant held")
    return 1 if log.violations else 0


if __name__ == "__main__":
    sys.exit(main())
