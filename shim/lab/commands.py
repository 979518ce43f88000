"""`podwire lab …` and `podwire demo`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence

import click

from shim.lab import link_commands
from shim.lab.saying import NAME, ending_in_order, said_in_one_line


@click.group()
def lab() -> None:
    """Run a whole cluster on this machine: nodes, routers and Pods in namespaces.

    What there is of a lab is written below /run/podwire/labs (or PODWIRE_LABS_DIR): logs, sockets, subnet tables.
    """


@lab.command()
@click.option("--nodes", type=int, default=2, show_default=True, help="Nodes, 1 to 64.")
@click.option("--pods", type=int, default=1, show_default=True, help="Pods on each node.")
@click.option("--underlay-mtu", type=int, default=1500, show_default=True, help="Bytes the wire between nodes carries.")
@click.option(
    "--underlay-family", type=click.Choice(["4", "6"]), default="4", show_default=True, help="IP of the tunnel."
)
@click.option(
    "--store",
    type=click.Choice(["file", "etcd"]),
    default="file",
    show_default=True,
    help="The subnet table: one in a file, or leases of the nodes in an etcd, which is started too.",
)
@click.option("--etcd-ttl-s", type=int, default=10, show_default=True, help="How long a lease outlives its router.")
@click.option("--outside", is_flag=True, help="Add a host beyond the cluster, the nodes' default gateway.")
@click.option("--name", metavar="LAB", help="What to call it (otherwise: lab and some letters).")
def up(
    nodes: int,
    pods: int,
    underlay_mtu: int,
    underlay_family: str,
    store: str,
    etcd_ttl_s: int,
    outside: bool,
    name: str | None,
) -> None:
    """Bring a lab up, and leave it running."""
    from shim.lab import netns
    from shim.lab.lab import Lab
    from shim.lab.ledger import Ledger
    from shim.lab.overview import draw

    with said_in_one_line(), ending_in_order():
        netns.need_root()
        made = Lab(
            nodes,
            pods,
            name=name,
            underlay_mtu=underlay_mtu,
            underlay_family=int(underlay_family),
            outside=outside,
            store=store,
            etcd_ttl_s=etcd_ttl_s,
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
@NAME
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(name: str | None, as_json: bool) -> None:
    """Show the labs there are: nodes, their routers, Pods and addresses."""
    from shim.lab import ledger
    from shim.lab.overview import describe, draw

    with said_in_one_line():
        found = [ledger.Ledger(name)] if name else [ledger.Ledger(each) for each in ledger.names()]
        if as_json:
            click.echo(json.dumps([describe(each) for each in found], indent=2))
        else:
            draw(found)


@lab.command("exec", context_settings={"allow_interspersed_args": False})
@NAME
@click.argument("place", metavar="POD|NODE")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str | None, place: str, command: Sequence[str]) -> None:
    """Run a command inside a Pod or a node.

    Or beside etcd (store), or on the host beyond the cluster (outside).

    \b
    Examples: podwire lab exec n1p1 -- ping -c1 10.42.2.2
              podwire lab exec store -- etcdctl get --prefix /podwire/members
    """
    from shim.lab import ledger, netns

    if command[0] == "--":
        command = command[1:]
    if not command:
        raise click.UsageError("say which command to run: podwire lab exec POD -- COMMAND…")
    with said_in_one_line():
        netns.need_root()
        path = netns.path_of(ledger.the_one(name).netns_of(place))
        found = shutil.which(command[0])
        if found is None:
            raise click.ClickException(f"there is no command {command[0]!r} on this machine")
        # In the main thread, which is what becomes the command.
        netns.enter(path)
        os.execv(found, list(command))  # noqa: S606 - a shell is what must not be in between


@lab.command("add-node")
@NAME
@click.option("--pods", type=int, default=1, show_default=True, help="Pods on it.")
def add_node(name: str | None, pods: int) -> None:
    """Have one more node join."""
    from shim.lab import ledger, netns
    from shim.lab.lab import Lab

    with said_in_one_line(), ending_in_order():
        netns.need_root()
        found = Lab.open(ledger.the_one(name).name)
        node = found.add_node()
        made = [found.add_pod(node) for _ in range(pods)]
        click.echo(f"{node.name}: {' '.join(map(str, node.subnets))}")
        for pod in made:
            click.echo(f"{pod.name}: {' '.join(map(str, pod.addresses))}")


@lab.command("remove-node")
@NAME
@click.argument("node", metavar="NODE")
def remove_node(name: str | None, node: str) -> None:
    """Have a node leave, with all its Pods."""
    from shim.lab import ledger, netns
    from shim.lab.lab import Lab

    with said_in_one_line(), ending_in_order():
        netns.need_root()
        found = Lab.open(ledger.the_one(name).name)
        found.remove_node(found.node(node))
        click.echo(f"{node} is gone")


@lab.command("store")
@NAME
@click.argument("action", type=click.Choice(["start", "stop", "kill", "pause", "resume"]))
def store(name: str | None, action: str) -> None:
    """Start, stop, kill or pause the lab's etcd.

    kill is -9; what is paused is a black hole: it takes connections, and answers nothing.

    \b
    Example: podwire lab store kill
    """
    from shim.lab import ledger, netns
    from shim.lab.lab import Lab

    with said_in_one_line():
        netns.need_root()
        found = Lab.open(ledger.the_one(name).name).store
        {
            "start": found.start,
            "stop": found.stop,
            "kill": found.kill9,
            "pause": found.pause,
            "resume": found.resume,
        }[action]()
        click.echo(f"etcd {found.pid}{' (paused)' if found.paused else ''}" if found.pid else "etcd is down")


for each in (link_commands.partition, link_commands.heal, link_commands.link, link_commands.show):
    lab.add_command(each)


@lab.command()
@NAME
@click.option("--all", "everything", is_flag=True, help="Every lab but those of programs that still run.")
def down(name: str | None, everything: bool) -> None:
    """Remove a lab, also one that a crash left half made."""
    from shim.lab import ledger, netns, teardown
    from shim.lab.errors import LabError

    if name and everything:
        raise click.UsageError("--name or --all, not both")
    with said_in_one_line():
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

    with said_in_one_line(), ending_in_order():
        netns.need_root()
        failures = Demo(seconds).run()
    if failures:
        sys.exit(1)
