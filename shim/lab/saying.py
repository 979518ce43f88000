"""What the commands of the lab share: which lab is meant, errors in one line, an end that unwinds."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

NAME = click.option("--name", metavar="LAB", help="Which lab; not needed while there is only one.")


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
def said_in_one_line() -> Iterator[None]:
    """Show what went wrong to a person: one line, and exit status 1."""
    from shim.lab.errors import LabError

    try:
        yield
    except LabError as error:
        raise click.ClickException(str(error)) from None
