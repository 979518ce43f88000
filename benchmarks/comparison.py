"""Two runs side by side. Machines and moods differ, so what is compared is each figure's ratio to its base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.figures import Figures, Metric
from benchmarks.report import number


@dataclass(frozen=True, slots=True)
class Change:
    """One figure then and now."""

    metric: Metric
    contender: str
    old: float
    new: float
    relative: bool
    """Whether old and new are ratios to the base, or bare figures, which mean something on the same machine only."""
    certain: bool
    """Whether the rounds of the two runs do not overlap."""

    @property
    def factor(self) -> float:
        """Return new over old."""
        return self.new / self.old

    @property
    def better(self) -> bool:
        """Tell which way it went."""
        return (self.new > self.old) == self.metric.higher_is_better


def compare(old: Figures, new: Figures) -> Iterator[Change]:
    """Yield a change for every figure both runs have; the bases themselves are 1 by definition and left out."""
    for key, metric in new.metrics.items():
        for contender in new.values[key]:
            if contender == metric.base:
                continue
            pair = old.ratio(key, contender), new.ratio(key, contender)
            relative = None not in pair
            if not relative:
                pair = old.spread(key, contender), new.spread(key, contender)
            was, now = pair
            if was is None or now is None or not was.median:
                continue
            apart = now.low > was.high or now.high < was.low
            yield Change(metric, contender, was.median, now.median, relative, apart)


def render_comparison(old: Figures, new: Figures) -> RenderableType:
    """Return the changes as a table a group."""
    tables: dict[str, Table] = {}
    for change in compare(old, new):
        table = tables.get(change.metric.group)
        if table is None:
            table = tables[change.metric.group] = Table(
                title=change.metric.group, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False
            )
            for title in ("", "", "then", "now", "now / then"):
                table.add_column(title, justify="right" if title else "left", no_wrap=not title)
        sign = "×" if change.relative else f" {change.metric.unit}"
        style = ("green" if change.better else "red") if change.certain else "dim"
        table.add_row(
            change.metric.title, new.titles.get(change.contender, change.contender),
            f"{number(change.old)}{sign}", f"{number(change.new)}{sign}", Text(f"{change.factor:.2f}", style=style),
        )  # fmt: skip
    then = f"{old.machine.get('commit')}, {old.machine.get('date')}"
    return Group(
        Text(f"\nAgainst {then}", style="bold"),
        *tables.values(),
        Text(
            "× = ratios to the base compared; bare figures hold on one machine only · "
            "grey: the rounds of the two runs overlap",
            style="dim",
        ),
    )
