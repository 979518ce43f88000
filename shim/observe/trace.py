"""`podwire trace`: what becomes of a packet, step by step, and what that means."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from shim.commands import asks, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from shim.observe.answers import TraceStep
    from shim.observe.client import ObserverClient

ARRIVES, DOES_NOT = 0, 1


@click.command()
@click.argument("src")
@click.argument("dst")
@click.option("--proto", type=click.Choice(["icmp", "tcp", "udp"]), default="icmp", show_default=True, help="Protocol.")
@click.option(
    "--dport", type=click.IntRange(1, 65535), metavar="N", help="Destination port. [default: TCP 80, UDP 33434]"
)
@click.option(
    "--size", type=click.IntRange(1, 65535), metavar="BYTES", help="Size from the IP header on. [default: least]"
)
@click.option("--df", is_flag=True, help="Do not let it be cut into fragments.")
@click.option("--dry-run", is_flag=True, help="Only ask what routers decide; send nothing.")
@click.option("-4", "ip_version", flag_value=4, type=int, help="IPv4 …")
@click.option("-6", "ip_version", flag_value=6, type=int, help="… or IPv6; by default IPv4 where both ends have it.")
@asks(
    "one TraceStep message a line",
    "podwire trace web-1 10.1.2.7\n"
    "podwire trace default/web-1 fd00:0:0:2::7 --proto tcp --dport 443\n"
    "podwire trace web-1 web-2 --size 1400 --df\n"
    "podwire trace node 10.1.2.7 --dry-run --json | jq -r 'select(.kind == \"conclusion\").text'",
)
def trace(
    client: ObserverClient,
    as_json: bool,
    src: str,
    dst: str,
    proto: str,
    dport: int | None,
    size: int | None,
    df: bool,
    dry_run: bool,
    ip_version: int | None,
) -> None:
    """Say what becomes of a packet from a Pod of this node to an address, and why.

    SRC is a Pod of this node (name, namespace/name, sandbox id or address), or "node" for the node itself. DST is an address,
    a Pod of this node, or the name of a node. First each router on the way says what it would do with that packet, and how
    large a packet the next link carries. Then real packets are sent from inside the Pod, with one hop to live, two, and so on, and
    it is shown who answered, and after how long. The last line says what all of that means, and what to do.

    Of TCP only connections are opened (and ended at once): with --size, ICMP packets of that size are sent as well. All of it
    takes ten seconds at most.

    The exit status is 0 when the packet arrives, be it that nothing listens there, and 1 when it does not, or that cannot be told.
    """
    steps = client.trace(
        src,
        dst,
        protocol=proto,
        dst_port=dport or 0,
        packet_bytes=size or 0,
        dont_fragment=df,
        dry_run=dry_run,
        ip_version=ip_version or 0,
    )
    reached = False
    for step in _as_json(steps) if as_json else _as_text(steps):
        reached = step.reached
    sys.exit(ARRIVES if reached else DOES_NOT)


def _as_json(steps: Iterator[TraceStep]) -> Iterator[TraceStep]:
    for step in steps:
        print_json(step, indent=None)
        yield step


def _as_text(steps: Iterator[TraceStep]) -> Iterator[TraceStep]:
    """Print a table a phase, each when it is over, then the sentence."""
    from shim import render

    out = render.console()
    kind, table = "", None
    for step in steps:
        if step.kind != kind and table is not None:
            out.print(table)
            out.print()
            table = None
        kind = step.kind
        if kind == "conclusion":
            out.print(step.text, style="bold green" if step.reached else "bold red")
        else:
            table = _table(kind) if table is None else table
            table.add_row(*(_decision(step) if kind == "decision" else _probe(step)))
        yield step


def _table(kind: str) -> Table:
    from rich.table import Table

    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    columns = ("ROUTER OF", "VERDICT", "NEXT", "MTU", "WHAT IT SAYS")
    for column in columns if kind == "decision" else ("HOP", "WHO", "NODE", "RTT", "MTU", "WHAT A PACKET MET"):
        right = column in ("HOP", "RTT", "MTU")
        made.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    return made


def _decision(step: TraceStep) -> tuple[str, ...]:
    verdict = "-" if step.verdict == "unspecified" else step.verdict
    if step.reason:
        verdict += f" ({step.reason})"
    return step.node, verdict, step.target or "-", str(step.mtu_bytes or "-"), step.text


def _probe(step: TraceStep) -> tuple[str, ...]:
    rtt = "-" if step.rtt_s is None else f"{step.rtt_s * 1000:.2f} ms"
    hop = str(step.hop or "-")
    return hop, step.address or "*", step.node or "-", rtt, str(step.mtu_bytes or "-"), step.text
