"""What a contender is: a way to carry packets between Pods, set up in namespaces of its own."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from benchmarks.namespace import Namespace


@dataclass(frozen=True, slots=True)
class Way:
    """From one Pod to another."""

    client: Namespace
    server: Namespace
    address: str
    """The server's."""


@dataclass(frozen=True, slots=True)
class Network:
    """A contender that is up."""

    across: Way
    """Between Pods on two nodes."""
    beside: Way | None = None
    """Between Pods on one node, where the contender has a way of its own for that."""
    other: Way | None = None
    """Between two more Pods of the same two nodes."""
    router_pids: tuple[int, ...] = ()
    """Processes that carry packets: their CPU time is the contender's. None for the kernel."""
    note: str = ""


class Contender(Protocol):
    """One row of the report."""

    @property
    def name(self) -> str:
        """As --contenders says it."""

    @property
    def title(self) -> str:
        """As the report says it."""

    @property
    def programs(self) -> tuple[str, ...]:
        """What must be installed."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Debian packages that bring the programs."""

    @property
    def engine(self) -> str:
        """The router's engine; empty for whoever has none to choose."""

    @property
    def only(self) -> tuple[str, ...]:
        """The measures it is there for; empty: all."""

    def open(self, stack: ExitStack) -> Network:
        """Set up; everything goes with the stack. CommandFailed when it does not work."""


def absence(contender: Contender) -> str:
    """Say what of a contender's programs is not installed and how to get it; empty when all is there."""
    missing = [program for program in contender.programs if shutil.which(program) is None]
    if not missing:
        return ""
    return f"{', '.join(missing)} not installed: apt-get install {' '.join(contender.packages)}"
