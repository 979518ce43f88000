"""What to measure in one run, and the run of it: sections one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import acceptance, rounds
from benchmarks.contenders import CONTENDERS, Contender, absence
from benchmarks.figures import Figures
from benchmarks.measures import MEASURES, Measure, MeasureFailed
from benchmarks.rounds import Progress

HOT_PATH, TABLES, PODS, ACCEPTANCE = "hot-path", "tables", "pods", "acceptance"
SECTIONS = (HOT_PATH, TABLES, PODS, ACCEPTANCE)
NEEDS_ROOT = (PODS, ACCEPTANCE)
_TOOLS = {
    "ip": "iproute2", "ss": "iproute2", "nsenter": "util-linux", "ping": "iputils-ping", "iperf3": "iperf3",
}  # fmt: skip
_HOT_PATH_SHARE = 0.25
"""Of a measure's seconds: a loop in one process settles sooner than a network."""

Step = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    sections: tuple[str, ...]
    measures: tuple[str, ...]
    contenders: tuple[str, ...]
    rounds: int
    seconds: float
    pods: int
    """How many attach in the acceptance section."""
    subnets: int
    """How large a table is put in force in the acceptance section."""

    def missing_tools(self) -> dict[str, str]:
        """Return the programs that are not installed, with their Debian packages."""
        if not set(self.sections) & set(NEEDS_ROOT):
            return {}
        return {tool: package for tool, package in _TOOLS.items() if shutil.which(tool) is None}

    def competing(self) -> tuple[list[Contender], list[str]]:
        """Return the contenders that are installed, and what is to be said of the others."""
        wanted = [contender for contender in CONTENDERS if contender.name in self.contenders]
        absent = [f"{contender.name} left out: {why}" for contender in wanted if (why := absence(contender))]
        return [contender for contender in wanted if not absence(contender)], absent

    def measuring(self) -> list[Measure]:
        """Return the measures between Pods."""
        return [measure for measure in MEASURES if measure.name in self.measures]

    def steps(self) -> int:
        """Return how often `run` reports progress, about."""
        total = sum(1 for _ in self._steps_alone(Figures())) + 1
        if PODS in self.sections:
            total += rounds.steps(self.measuring(), self.competing()[0], self.rounds)
        if ACCEPTANCE in self.sections:
            total += acceptance.STEPS
        return total

    def run(self, figures: Figures, progress: Progress) -> None:
        """Measure everything; what fails is told of in the figures."""
        for text, step in self._steps_alone(figures):
            progress(text)
            try:
                step()
            except MeasureFailed as error:
                figures.failures.append(f"{text}: {error}")
        if PODS in self.sections:
            contenders, absent = self.competing()
            figures.notes += absent
            rounds.run(figures, contenders, self.measuring(), self.rounds, self.seconds, progress)
        if ACCEPTANCE in self.sections:
            acceptance.run(figures, self.pods, self.subnets, self.seconds, progress)
        progress("done")

    def _steps_alone(self, figures: Figures) -> Iterator[tuple[str, Step]]:
        """Yield what needs no network."""
        for number in range(self.rounds):
            where = f"round {number + 1} of {self.rounds}"
            if HOT_PATH in self.sections:
                yield from self._hot_path_steps(figures, where)
            if TABLES in self.sections:
                from benchmarks import tables

                for size in tables.SIZES:
                    yield f"{where}: table of {size:,} subnets", _bind(tables.measure, figures, size, self._short_s)

    def _hot_path_steps(self, figures: Figures, where: str) -> Iterator[tuple[str, Step]]:
        from benchmarks import hot_path

        for engine in hot_path.available():
            for traffic in hot_path.TRAFFIC:
                step = _bind(hot_path.measure, figures, engine, traffic, self._short_s)
                yield f"{where}: engine {engine}, {traffic.title}", step
        for traffic in hot_path.TRAFFIC:
            if traffic.packets > 1:
                step = _bind(hot_path.measure_segments, figures, traffic, self._short_s)
                yield f"{where}: cut and join, {traffic.title}", step

    @property
    def _short_s(self) -> float:
        return self.seconds * _HOT_PATH_SHARE


def _bind(action: Callable[..., None], *arguments: object) -> Step:
    return lambda: action(*arguments)
