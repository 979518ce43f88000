"""`podwire top`: a router's Pods, peers, flows and drops, live."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from shim.commands import Failure, asks, print_json

if TYPE_CHECKING:
    from shim.observe.answers import Flow
    from shim.observe.board import Board, Look
    from shim.observe.client import ObserverClient

_EVERY = 16
"""One frame in so many is looked at for the flows."""
_RETRY_S = 2.0


@click.command()
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(0.5, 3600),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Seconds from look to look.",
)
@click.option(
    "--sort", type=click.Choice(["traffic", "packets", "drops", "name"]), default="traffic", show_default=True
)
@click.option("--once", is_flag=True, help="Look twice, print what was between, and end.")
@asks(
    "an object each interval: {node, pods, peers, flows, drops, …}, rates per second",
    "podwire top\npodwire top --once\npodwire top --json | jq -c '[.carried_bytes_per_s, .dropped_per_s]'",
)
def top(client: ObserverClient, as_json: bool, interval_s: float, sort: str, once: bool) -> None:
    """Watch Pods, peers, flows and drops live, with rates.

    Keys: q ends it, s sorts by traffic, packets, drops, name in turn. SENDS and RECEIVES are the Pod's, TO IT and FROM IT
    the peer's, DROPPED is of what they sent. Flows are estimated from one frame in 16 and are those of the last interval.
    On a small terminal the sections that come last go first. When the router is away, what was last seen stays, and top
    goes on when it is back.
    """
    if as_json or once:
        _print(client, interval_s, sort, as_json, once)
    elif not sys.stdout.isatty():
        raise Failure("top draws on a terminal, and standard output is none: use --once or --json", 2)
    else:
        _live(client, interval_s, sort)


def _print(client: ObserverClient, interval_s: float, sort: str, as_json: bool, once: bool) -> None:
    from shim.observe.screen import screen
    from shim.render import console

    with _flows(client, interval_s) as flows:
        before = _look(client)
        while True:
            time.sleep(interval_s)
            now = _look(client)
            found = _board(before, now, flows, sort)
            if as_json:
                print_json(asdict(found), indent=None)
                sys.stdout.flush()
            else:
                out = console()
                out.print(screen(found, out.width, 100_000, sort, keys=False))
            if once:
                return
            before = now


def _live(client: ObserverClient, interval_s: float, sort: str) -> None:
    from rich.console import Console
    from rich.live import Live

    from shim.client import ClientError
    from shim.observe.board import SORTS
    from shim.observe.keys import Keys
    from shim.observe.screen import screen

    out = Console(highlight=False, emoji=False, markup=False)
    before, now, message = None, _look(client), ""
    with (
        _flows(client, interval_s) as flows,
        Keys() as keys,
        Live(console=out, screen=True, auto_refresh=False) as live,
    ):
        while True:
            until_s = time.monotonic() + interval_s
            while (left_s := until_s - time.monotonic()) > 0:
                found = _board(before, now, flows, sort)
                # What does not fit would be cut by rich at the bottom; a terminal may have changed its size.
                live.update(screen(found, out.width, out.height, sort, message or flows.trouble), refresh=True)
                typed = keys.wait(min(left_s, 1.0))
                if "q" in typed or "\x1b" in typed:
                    return
                for _ in range(typed.count("s")):
                    sort = SORTS[(SORTS.index(sort) + 1) % len(SORTS)]
            try:
                before, now, message = now, _look(client), ""
            except ClientError as error:
                message = error.message


def _look(client: ObserverClient) -> Look:
    from shim.observe.board import Look

    counters = client.counters()
    return Look(time.monotonic(), client.status(), client.attachments(), counters, client.peers(), client.drops().drops)


def _board(before: Look | None, now: Look, flows: _Flows, sort: str) -> Board:
    from shim.observe.board import board

    return board(before, now, flows.last(), flows.period_s, time.time(), sort)


class _Flows:
    """The flows of the last period, gathered by a thread; a stream that ends is begun anew."""

    def __init__(self, client: ObserverClient, period_s: int) -> None:
        self._client = client
        self.period_s = period_s
        self.trouble = ""
        """Why there are none; empty when there may be."""
        self._lock = threading.Lock()
        self._rows: list[tuple[float, Flow]] = []
        self._ended = threading.Event()

    def last(self) -> list[Flow]:
        """Return each flow that was told of within a period and a half."""
        oldest_s = time.monotonic() - 1.5 * self.period_s
        with self._lock:
            self._rows = [(at_s, flow) for at_s, flow in self._rows if at_s >= oldest_s]
            newest = {_key(flow): flow for _, flow in self._rows}
        return list(newest.values())

    def run(self) -> None:
        """Gather until `end`."""
        from shim.client import ClientError

        while not self._ended.is_set():
            try:
                for flow in self._client.watch_flows(_EVERY, self.period_s):
                    self.trouble = ""
                    with self._lock:
                        self._rows.append((time.monotonic(), flow))
            except ClientError as error:
                self.trouble = f"no flows: {error.message}"
            except ValueError:  # grpc: the channel is closed
                return
            self._ended.wait(_RETRY_S)

    def end(self) -> None:
        """Stop when the stream is next looked at; closing the client ends that."""
        self._ended.set()


def _key(flow: Flow) -> Any:
    return (flow.flow, flow.source, flow.target, flow.verdict, flow.reason)


@contextmanager
def _flows(client: ObserverClient, interval_s: float) -> Iterator[_Flows]:
    found = _Flows(client, max(1, round(interval_s)))
    threading.Thread(target=found.run, name="flows", daemon=True).start()
    try:
        yield found
    finally:
        found.end()
