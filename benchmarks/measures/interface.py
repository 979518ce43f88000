"""What a measure is: traffic through one network for some seconds, and figures from it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Protocol

from benchmarks.contenders.interface import Network
from benchmarks.figures import Metric


class MeasureFailed(Exception):
    """A measure brought no figure; the message says why."""


class Measure(Protocol):
    """One line of the schedule."""

    @property
    def name(self) -> str:
        """As --only says it."""

    @property
    def title(self) -> str:
        """As the report says it."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What it brings."""

    def suits(self, network: Network) -> bool:
        """Tell whether this network has what the measure needs."""

    def prepare(self, stack: ExitStack, network: Network) -> None:
        """Start what must run before the first round."""

    def run(self, network: Network, seconds: float) -> dict[str, float]:
        """Measure once; return figures by metric key. MeasureFailed when there are none."""
