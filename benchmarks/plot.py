"""The figures as a picture: one panel a metric, a bar a contender, the spread of the rounds as a whisker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures, Metric
from benchmarks.report import HIGHLIGHTED, number

SUFFIXES = (".svg", ".png", ".pdf")
_GROUPS = ("TCP across nodes", "TCP, same node", "UDP at saturation", "Round trip", "CPU time of TCP, 1 stream →")
_COLOURS = {HIGHLIGHTED: "#d1495b", "vxlan": "#30638e", "veth": "#9db4c0"}
_OTHERS = "#c9c5ba"
_COLUMNS = 3


def draw(figures: Figures, path: Path) -> None:
    """Write the picture; the file's suffix says its format. ValueError when there is nothing to draw."""
    panels = [
        metric
        for group in _GROUPS
        for metric in figures.metrics.values()
        if metric.group == group and _drawn(figures, metric)
    ]
    if not panels:
        raise ValueError("nothing measured between Pods, so nothing to draw")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in figures.titles if any(name in figures.values[metric.key] for metric in panels)]
    rows = -(-len(panels) // _COLUMNS)
    height = (0.28 * len(names) + 0.9) * rows + 0.9
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(13, height), squeeze=False, layout="constrained")
    for panel, metric in zip(axes.flat, panels, strict=False):
        _draw_panel(panel, figures, metric, names)
    for panel in list(axes.flat)[len(panels) :]:
        panel.axis("off")
    machine = figures.machine
    figure.suptitle(
        f"Pod to Pod, {machine.get('cores')} cores, Linux {machine.get('kernel')}, commit {machine.get('commit')}: "
        f"medians, whiskers lowest and highest of {figures.settings.get('rounds')} rounds",
        fontsize=10,
    )
    figure.savefig(path)
    plt.close(figure)


def _drawn(figures: Figures, metric: Metric) -> bool:
    return not metric.key.endswith("_offered") and len(figures.values[metric.key]) > 1


def _draw_panel(panel: Any, figures: Figures, metric: Metric, names: Sequence[str]) -> None:
    shown = [name for name in names if figures.spread(metric.key, name) is not None]
    for place, name in enumerate(shown):
        spread = figures.spread(metric.key, name)
        assert spread is not None
        panel.barh(place, spread.median, height=0.7, color=_COLOURS.get(name, _OTHERS))
        panel.plot([spread.low, spread.high], [place, place], color="#333333", linewidth=1)
        ratio = figures.ratio(metric.key, name)
        label = number(spread.median) + (f"  ({ratio.median:.2f}×)" if ratio and name != metric.base else "")
        panel.annotate(label, (max(spread.high, spread.median), place), xytext=(4, 0), textcoords="offset points",
                       va="center", fontsize=8)  # fmt: skip
    panel.set_yticks(range(len(shown)), [figures.titles.get(name, name) for name in shown], fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.35)
    panel.set_xlim(left=0)
    panel.tick_params(axis="x", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
    arrow = "more is better" if metric.higher_is_better else "less is better"
    panel.set_title(f"{metric.group}: {metric.title}\n{metric.unit}, {arrow}", fontsize=9, loc="left")
