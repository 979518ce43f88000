"""`podwire lab partition`, `heal`, `link` and `links`: what is wrong with links, and what goes over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from shim.lab.quantities import bits_per_s, fraction, seconds, whole_bytes
from shim.lab.saying import NAME, said_in_one_line

if TYPE_CHECKING:
    from shim.lab.ledger import Ledger
    from shim.lab.links import Links
    from shim.lab.relay.switch import Pair

_SHOWN_PAIRS = 8


@click.command()
@NAME
@click.option("--one-way", is_flag=True, help="Only what A sends to B.")
@click.argument("left", metavar="A[,A…]")
@click.argument("right", metavar="B[,B…]")
def partition(name: str | None, one_way: bool, left: str, right: str) -> None:
    """Cut the links between A and B.

    Nothing goes between them any more. A and B are nodes (n1), store or outside, or several with commas: each link between the two groups is cut. `rest` is
    everybody who is not in the other group. Or they are Pods (n1p1): then only what these say to each other is lost; `rest` is all Pods of other nodes.

    \b
    Examples: podwire lab partition n1 n2
              podwire lab partition n1,n2 rest
              podwire lab partition n3 store
              podwire lab partition n1p1 n2p1,n3p1
    """
    with said_in_one_line():
        ledger, links = _open(name)
        with ledger.locked():
            pairs = links.partition(left, right, one_way=one_way)
    click.echo(f"cut: {_said(pairs)}")


@click.command()
@NAME
@click.option("--only-partitions", is_flag=True, help="Leave the faults that `podwire lab link` gave.")
@click.argument("left", metavar="[A[,A…]]", default="rest")
@click.argument("right", metavar="[B[,B…]]", default="rest")
def heal(name: str | None, only_partitions: bool, left: str, right: str) -> None:
    """Make links as good as new.

    Those between A and B, all those of A, or all there are. A node's links and those of its Pods are healed one by one.

    \b
    Examples: podwire lab heal
              podwire lab heal n1 n2
    """
    with said_in_one_line():
        ledger, links = _open(name)
        with ledger.locked():
            pairs = links.heal(left, right, only_partitions=only_partitions)
    click.echo(f"healed: {_said(pairs)}" if pairs else "nothing was wrong")


@click.command()
@NAME
@click.option("--loss", type=fraction, default=0.0, metavar="5%", help="Frames that are lost.")
@click.option("--delay", type=seconds, default=0.0, metavar="20ms", help="Time a frame takes.")
@click.option(
    "--jitter", type=seconds, default=0.0, metavar="5ms", help="Vary it by as much, evenly; frames may overtake."
)
@click.option(
    "--reorder", type=fraction, default=0.0, metavar="2%", help="Frames that are not delayed, and so overtake."
)
@click.option("--duplicate", type=fraction, default=0.0, metavar="1%", help="Frames that arrive twice.")
@click.option("--rate", type=bits_per_s, default=0.0, metavar="50mbit", help="Bits a second, with a queue of 0.1 s.")
@click.option(
    "--mtu-hole",
    type=whole_bytes,
    default=0.0,
    metavar="1400",
    help="IP packets larger than that on the wire, tunnel included, vanish.",
)
@click.option("--one-way", is_flag=True, help="Only what A sends to B; otherwise each direction has all of it.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same fates.")
@click.argument("left", metavar="A[,A…]")
@click.argument("right", metavar="B[,B…]")
def link(
    name: str | None,
    loss: float,
    delay: float,
    jitter: float,
    reorder: float,
    duplicate: float,
    rate: float,
    mtu_hole: float,
    one_way: bool,
    seed: int,
    left: str,
    right: str,
) -> None:
    """Give the links between A and B faults.

    They are all that these links have, in place of those they had; without options none. Such a link is carried by a process
    (some 100 Mbit/s, and a tenth of a millisecond), not by the kernel's bridge. A and B are as for `podwire lab partition`; faults
    of two Pods come before those of the link between their nodes.

    \b
    Examples: podwire lab link n1 n2 --loss 5% --delay 20ms --jitter 5ms
              podwire lab link n3 rest --rate 50mbit
              podwire lab link n1 n2 --mtu-hole 1400
              podwire lab link n1p1 n2p1 --loss 20%
    """
    from shim.lab.relay.faults import Faults

    with said_in_one_line():
        faults = Faults(loss, delay, jitter, reorder, duplicate, round(rate), round(mtu_hole))
        ledger, links = _open(name)
        with ledger.locked():
            pairs = links.impair(left, right, faults, one_way=one_way, seed=seed)
    click.echo(f"{faults}: {_said(pairs)}")


@click.command("links")
@NAME
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str | None, as_json: bool) -> None:
    """Show which links are cut or bad, with counts."""
    from shim.lab.overview import console, links_table

    with said_in_one_line():
        _, links = _open(name)
        state = links.state()
    if as_json:
        click.echo(json.dumps(state.to_json(), indent=2))
    elif state.links:
        console().print(links_table(state))
    else:
        click.echo("Every link is as good as new.")


def _open(name: str | None) -> tuple[Ledger, Links]:
    from shim.lab import ledger, netns
    from shim.lab.errors import LabError
    from shim.lab.links import Links

    netns.need_root()
    found = ledger.the_one(name)
    record = found.read()
    if record is None:
        raise LabError(f"lab {found.name} is half made: remove it with `podwire lab down --name {found.name}`")
    return found, Links(found, record.plan)


def _said(pairs: Sequence[Pair]) -> str:
    """Name links once each, with arrows where only one direction is meant."""
    known = set(pairs)
    names = [
        f"{source} ↔ {target}" if (target, source) in known else f"{source} → {target}"
        for source, target in pairs
        if (target, source) not in known or source < target
    ]
    more = len(names) - _SHOWN_PAIRS
    return ", ".join(names[:_SHOWN_PAIRS]) + (f" and {more} more" if more > 0 else "")
