"""The figures as tables for a terminal: one a group, contenders down, metrics across."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.figures import Figures, Metric, Promise

HIGHLIGHTED = "podwire"
ENOUGH_ROUNDS = 5
"""Promises are of medians of that many."""


def render(figures: Figures) -> RenderableType:
    """Return the whole report."""
    machine = figures.machine
    head = Text(
        f"{machine.get('cpu')}, {machine.get('cores')} cores · Linux {machine.get('kernel')} · "
        f"Python {machine.get('versions', {}).get('python')} · commit {machine.get('commit')} · {machine.get('date')}",
        style="dim",
    )
    parts: list[RenderableType] = [head]
    parts += (
        _table(figures, group, [metric for metric in figures.metrics.values() if metric.group == group])
        for group in _groups(figures)
    )
    if parts[1:]:
        parts.append(
            Text("median, lowest–highest round · × is the ratio to its base, taken round by round", style="dim")
        )
    if any(metric.promises for metric in figures.metrics.values()):
        parts.append(_promises(figures))
    parts += [Text(f"note: {note}", style="yellow") for note in figures.notes]
    parts += [Text(f"failed: {failure}", style="bold red") for failure in figures.failures]
    return Group(*parts)


def print_report(figures: Figures, console: Console) -> None:
    """Print the report."""
    console.print(render(figures))


def _groups(figures: Figures) -> Iterator[str]:
    yield from dict.fromkeys(metric.group for metric in figures.metrics.values())


def _table(figures: Figures, group: str, metrics: list[Metric]) -> Table:
    bases = sorted({metric.base for metric in metrics if metric.base})
    caption = f"× of {' or '.join(figures.titles.get(base, base) for base in bases)}" if bases else None
    table = Table(title=group, caption=caption, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for metric in metrics:
        table.add_column(f"{metric.title}\n{metric.unit}{_promise(metric)}", justify="right")
    present = {name for metric in metrics for name in figures.values[metric.key]}
    for name in sorted(present, key=[*figures.titles, *sorted(present)].index):
        cells = [_cell(figures, metric, name) for metric in metrics]
        table.add_row(figures.titles.get(name, name), *cells, style="bold" if name.startswith(HIGHLIGHTED) else "")
    return table


def _promises(figures: Figures) -> Table:
    """Return what was promised beside what was found."""
    table = Table(title="Promises", box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    rounds = figures.settings.get("rounds", ENOUGH_ROUNDS)
    if rounds < ENOUGH_ROUNDS:
        table.caption = f"{rounds} round{'s' * (rounds != 1)} of the {ENOUGH_ROUNDS} that a promise is judged by"
    for column, justify in (("", "left"), ("promised", "left"), ("found", "right"), ("", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for metric in figures.metrics.values():
        for promise in metric.promises:
            found = figures.found(metric, promise)
            verdict = Text("not measured", style="dim")
            if found is not None:
                kept = metric.keeps(found.median, promise)
                verdict = Text("kept", style="green") if kept else Text("broken", style="bold red")
            who = figures.titles.get(promise.of, promise.of)
            table.add_row(
                f"{metric.group}: {metric.title}, {who}", promised(figures, metric, promise),
                number(found.median) if found else "–", verdict,
            )  # fmt: skip
    return table


def promised(figures: Figures, metric: Metric, promise: Promise) -> str:
    """Return a promise in words: "≥ 0.85 × kernel VXLAN"."""
    base = metric.base_of(promise)
    of = f"× {figures.titles.get(base, base)}" if base else metric.unit
    return f"{_sign(metric)} {promise.bound:g} {of}"


def _sign(metric: Metric) -> str:
    return "≥" if metric.higher_is_better else "≤"


def _promise(metric: Metric) -> str:
    first = next((promise for promise in metric.promises if not promise.base), None)
    return f" {_sign(metric)} {first.bound:g}{'×' if metric.base else ''}" if first else ""


def _cell(figures: Figures, metric: Metric, contender: str) -> Text:
    spread, ratio = figures.spread(metric.key, contender), figures.ratio(metric.key, contender)
    if spread is None:
        return Text("–", style="dim")
    found = [(promise, figures.found(metric, promise)) for promise in metric.promises if promise.of == contender]
    kept = [metric.keeps(value.median, promise) for promise, value in found if value is not None]
    judgement = "" if not kept else "green" if all(kept) else "red"
    text = Text(number(spread.median), style="" if ratio else judgement, no_wrap=True)
    if ratio is not None:
        text.append(f"  {ratio.median:.2f}×", style=judgement or "cyan")
    if spread.low != spread.high:
        text.append(f"\n{number(spread.low)}–{number(spread.high)}", style="dim")
    return text


def number(value: float) -> str:
    """Return three significant digits, thousands parted."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"
