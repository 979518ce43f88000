"""What to measure in one run, and the run of it: sections one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks import acceptance, profile, rounds
from benchmarks.contenders import CONTENDERS, Contender, absence
from benchmarks.figures import Figures
from benchmarks.measures import MEASURES, Measure, MeasureFailed
from benchmarks.measures.flood import Flood
from benchmarks.measures.pace import Pace
from benchmarks.rounds import Progress
from router.engine.choose import available

HOT_PATH, PEERS, TABLES = "hot-path", "peers", "tables"
PODS, SCALING, PROFILE, ACCEPTANCE = "pods", "scaling", "profile", "acceptance"
SECTIONS = (HOT_PATH, PEERS, TABLES, PODS, SCALING, PROFILE, ACCEPTANCE)
QUICK_SECTIONS = (HOT_PATH, TABLES, PODS, ACCEPTANCE)
PROMISING_SECTIONS = (TABLES, PODS, SCALING, ACCEPTANCE)
NEEDS_ROOT = (PODS, SCALING, PROFILE, ACCEPTANCE)
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
    engines: tuple[str, ...]
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
        wanted = [
            contender
            for contender in CONTENDERS
            if contender.name in self.contenders and (not contender.engine or contender.engine in self.engines)
        ]
        absent = [f"{contender.name} left out: {why}" for contender in wanted if (why := absence(contender))]
        return [contender for contender in wanted if not absence(contender)], absent

    def profiled(self) -> list[Contender]:
        """Return one contender an engine."""
        return [each for each in CONTENDERS if each.engine in self.engines and not each.only]

    def measuring(self) -> list[Measure]:
        """Return the measures between Pods."""
        return [measure for measure in MEASURES if measure.name in self.measures]

    def steps(self) -> int:
        """Return how often `run` reports progress, about."""
        total = sum(1 for _ in self._steps_alone(Figures())) + 1
        if PODS in self.sections:
            total += rounds.steps(self.measuring(), self.competing()[0], self.rounds)
        if SCALING in self.sections:
            from benchmarks import scaling

            total += scaling.steps(self.engines, self.rounds)
        if PROFILE in self.sections:
            total += profile.steps(self.profiled(), self.rounds)
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
            for measure in self.measuring():
                if isinstance(measure, Flood | Pace):
                    figures.notes += measure.notes(figures)
        if SCALING in self.sections:
            from benchmarks import scaling

            scaling.run(figures, self.engines, available()[0], self.rounds, self.seconds, progress)
        if PROFILE in self.sections:
            profile.run(figures, self.profiled(), self.rounds, self.seconds, progress)
        if ACCEPTANCE in self.sections:
            acceptance.run(figures, self.pods, self.subnets, self.seconds, progress)
        progress("done")

    def _steps_alone(self, figures: Figures) -> Iterator[tuple[str, Step]]:
        """Yield what needs no network."""
        for number in range(self.rounds):
            where = f"round {number + 1} of {self.rounds}"
            if HOT_PATH in self.sections:
                yield from self._hot_path_steps(figures, where)
            if PEERS in self.sections:
                from benchmarks import peers

                for engine in self.engines:
                    for size in peers.SIZES:
                        step = _bind(peers.measure, figures, engine, size, 2 * self._short_s)
                        yield f"{where}: engine {engine}, {size} peers", step
            if TABLES in self.sections:
                from benchmarks import tables

                for size in tables.SIZES:
                    step = _bind(tables.measure, figures, size, self.engines, self._short_s)
                    yield f"{where}: table of {size:,} subnets", step

    def _hot_path_steps(self, figures: Figures, where: str) -> Iterator[tuple[str, Step]]:
        from benchmarks import hot_path

        for engine in self.engines:
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
