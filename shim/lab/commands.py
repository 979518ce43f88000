"""`podwire lab …` and `podwire demo`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

_NAME = click.option("--name", metavar="LAB", help="Which lab; not needed while there is only one.")


@click.group()
def lab() -> None:
    """Run a whole cluster on this machine: nodes, routers and Pods in namespaces.

    What there is of a lab is written below /run/podwire/labs (or PODWIRE_LABS_DIR): logs, sockets, subnet tables.
    """


@lab.command()
@click.option("--nodes", type=int, default=2, show_default=True, help="Nodes, 1 to 16.")
@click.option("--pods", type=int, default=1, show_default=True, help="Pods on each node.")
@click.option("--underlay-mtu", type=int, default=1500, show_default=True, help="Bytes the wire between nodes carries.")
@click.option(
    "--underlay-family", type=click.Choice(["4", "6"]), default="4", show_default=True, help="IP of the tunnel."
)
@click.option("--outside", is_flag=True, help="Add a host beyond the cluster, the nodes' default gateway.")
@click.option("--name", metavar="LAB", help="What to call it (otherwise: lab and some letters).")
def up(nodes: int, pods: int, underlay_mtu: int, underlay_family: str, outside: bool, name: str | None) -> None:
    """Bring a lab up, and leave it running."""
    from shim.lab import netns
    from shim.lab.lab import Lab
    from shim.lab.ledger import Ledger
    from shim.lab.overview import draw

    with _said_in_one_line(), ending_in_order():
        netns.need_root()
        made = Lab(
            nodes,
            pods,
            name=name,
            underlay_mtu=underlay_mtu,
            underlay_family=int(underlay_family),
            outside=outside,
            lent=False,
            progress=lambda text: click.echo(f"  {text}", err=True),
        )
        click.echo(f"lab {made.name}:", err=True)
        made.up()
        draw([Ledger(made.name)])
        if made.pods:
            hint = f"podwire lab exec --name {made.name} {made.pods[0].name} -- ping -c1 {made.pods[-1].addresses[0]}"
            click.echo(f"Try:    {hint}", err=True)
        click.echo(f"Remove: podwire lab down --name {made.name}", err=True)


@lab.command()
@_NAME
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str | None, as_json: bool) -> None:
    """Show the labs there are: nodes, their routers, Pods and addresses."""
    from shim.lab import ledger
    from shim.lab.overview import describe, draw

    with _said_in_one_line():
        found = [ledger.Ledger(name)] if name else [ledger.Ledger(each) for each in ledger.names()]
        if as_json:
            click.echo(json.dumps([describe(each) for each in found], indent=2))
        else:
            draw(found)


@lab.command("exec", context_settings={"allow_interspersed_args": False})
@_NAME
@click.argument("place", metavar="POD|NODE")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str | None, place: str, command: Sequence[str]) -> None:
    """Run a command inside a Pod (n1p1), a node (n1) or the host beyond the cluster (outside).

    Example: podwire lab exec n1p1 -- ping -c1 10.42.2.2
    """
    from shim.lab import ledger, netns

    if command[0] == "--":
        command = command[1:]
    if not command:
        raise click.UsageError("say which command to run: podwire lab exec POD -- COMMAND…")
    with _said_in_one_line():
        netns.need_root()
        path = netns.path_of(ledger.the_one(name).netns_of(place))
        found = shutil.which(command[0])
        if found is None:
            raise click.ClickException(f"there is no command {command[0]!r} on this machine")
        # In the main thread, which is what becomes the command.
        netns.enter(path)
        os.execv(found, list(command))  # noqa: S606 - a shell is what must not be in between


@lab.command()
@_NAME
@click.option("--all", "everything", is_flag=True, help="Every lab but those of programs that still run.")
def down(name: str | None, everything: bool) -> None:
    """Remove a lab, also one that a crash left half made."""
    from shim.lab import ledger, netns, teardown
    from shim.lab.errors import LabError

    if name and everything:
        raise click.UsageError("--name or --all, not both")
    with _said_in_one_line():
        netns.need_root()
        if not everything:
            one = ledger.the_one(name)
            teardown.take_down(one)
            click.echo(f"lab {one.name} is gone")
            return
        refused = []
        for each in ledger.names():
            try:
                record = ledger.Ledger(each).read()
                if record and record.lent and record.maker.alive:
                    click.echo(f"lab {each} is in use by process {record.maker.pid}: left (--name {each} removes it)")
                    continue
                teardown.take_down(ledger.Ledger(each))
                click.echo(f"lab {each} is gone")
            except LabError as error:
                refused.append(str(error))
        if refused:
            raise LabError("; ".join(refused))


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(1, 30), default=5.0, show_default=True, help="How long to measure TCP."
)
def demo(seconds: float) -> None:
    """Bring a cluster up, show that it works, and take it down again."""
    from shim.lab import netns
    from shim.lab.demo import Demo

    with _said_in_one_line(), ending_in_order():
        netns.need_root()
        failures = Demo(seconds).run()
    if failures:
        sys.exit(1)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exit that unwinds, as Ctrl-C does, so that nothing half made is left."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, leave) for number in numbers}  # ignored stays so: nohup
    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopped; everything is taken down again", err=True)
        sys.exit(130)
    finally:
        for number, action in previous.items():
            signal.signal(number, action)


@contextmanager
def _said_in_one_line() -> Iterator[None]:
    """Show what went wrong to a person: one line, and exit status 1."""
    from shim.lab.errors import LabError

    try:
        yield
    except LabError as error:
        raise click.ClickException(str(error)) from None
