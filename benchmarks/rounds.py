"""The schedule: all contenders up at once, every measure in turn on each, round after round.

Contenders are neighbours in time on the same measure, and each round begins with another one, so that a machine that
gets slower or faster for a while does it to all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from benchmarks.contenders import Contender, Network
from benchmarks.figures import Figures
from benchmarks.measures import Measure, MeasureFailed
from benchmarks.namespace import CommandFailed

Progress = Callable[[str], None]
"""Told what is done next, once a step."""


def order(names: Sequence[str], rounds: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield each round's number and order of contenders: every one is first in its turn."""
    for number in range(rounds):
        shift = number % len(names) if names else 0
        yield number, [*names[shift:], *names[:shift]]


def steps(measures: Sequence[Measure], contenders: Sequence[Contender], rounds: int) -> int:
    """Return how often `run` reports progress at most."""
    turns = sum(takes(contender, measure) for contender in contenders for measure in measures)
    return len(contenders) + rounds * turns


def takes(contender: Contender, measure: Measure) -> bool:
    """Tell whether a contender is there for a measure."""
    return not contender.only or measure.name in contender.only


def run(
    figures: Figures, contenders: Sequence[Contender], measures: Sequence[Measure],
    rounds: int, seconds: float, progress: Progress,
) -> None:  # fmt: skip
    """Measure every contender; one that does not come up, or a round that fails, is told of and goes without figures."""
    with ExitStack() as stack:
        networks: dict[str, Network] = {}
        suiting: dict[str, set[str]] = {}
        for contender in contenders:
            taken = {measure.name for measure in measures if takes(contender, measure)}
            if measures and not taken:
                continue
            progress(f"setting up {contender.title}")
            try:
                with ExitStack() as attempt:
                    network = contender.open(attempt)
                    for measure in measures:
                        if measure.name in taken and measure.suits(network):
                            measure.prepare(attempt, network)
                    stack.push(attempt.pop_all())
            except (CommandFailed, MeasureFailed) as error:
                figures.failures.append(f"{contender.name} did not come up: {error}")
                continue
            networks[contender.name] = network
            suiting[contender.name] = {each.name for each in measures if each.name in taken and each.suits(network)}
            figures.titles[contender.name] = contender.title
            if network.note:
                figures.notes.append(f"{contender.name}: {network.note}")
        for number, names in order(list(networks), rounds):
            for measure in measures:
                for name in names:
                    if measure.name in suiting[name]:
                        progress(f"round {number + 1} of {rounds}: {measure.title}: {figures.titles[name]}")
                        _measure_once(figures, measure, name, networks[name], seconds)
        progress("taking everything down")


def _measure_once(figures: Figures, measure: Measure, name: str, network: Network, seconds: float) -> None:
    try:
        found = measure.run(network, seconds)
    except (MeasureFailed, CommandFailed, OSError) as error:
        figures.failures.append(f"{measure.title}, {name}: {error}")
        found = {metric.key: math.nan for metric in measure.metrics}
    for metric in measure.metrics:
        if metric.key in found:
            figures.add(metric, name, found[metric.key])
