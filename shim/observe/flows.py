"""`podwire flows`: flows as they are sampled, a line of JSON each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from shim.commands import asks, print_json

if TYPE_CHECKING:
    from shim.observe.client import ObserverClient


@click.command()
@click.option(
    "--every",
    type=click.IntRange(1, 65536),
    default=64,
    show_default=True,
    metavar="N",
    help="Look at one frame in so many.",
)
@click.option(
    "--period",
    "period_s",
    type=click.IntRange(1, 3600),
    default=5,
    show_default=True,
    metavar="S",
    help="Seconds from report to report.",
)
@click.option("--count", "-c", type=click.IntRange(1), metavar="N", help="End after so many lines.")
@asks(
    "one Flow message a line, which is the only form there is",
    "podwire flows\n"
    "podwire flows --every 1 --period 1 | jq 'select(.reason != \"\")'\n"
    "podwire flows | jq -c '[.source.name, .target.name, .bytes]'",
)
def flows(client: ObserverClient, as_json: bool, every: int, period_s: int, count: int | None) -> None:  # noqa: ARG001 - the same with it
    """Print flows as they are sampled: a line of JSON for each flow and period.

    The router looks at one frame in --every, chosen at random, and tells every --period seconds what passed: five-tuple,
    who sent it, where it went, verdict, and the reason of a drop. Packets and bytes are estimates: what was sampled, times
    --every; of n frames that were looked at (`sampled`) the error is about 1/√n. `latency_s` is half of the round trip to
    the peer it was sent to. 4,096 flows are told apart; the rest of a period is one line without a flow.

    Looking costs the router little, and nothing while nobody does. Ends when interrupted (exit status 130), or when the
    router stops (69).
    """
    for number, flow in enumerate(client.watch_flows(every, period_s), 1):
        print_json(flow, indent=None)
        sys.stdout.flush()
        if number == count:
            return
