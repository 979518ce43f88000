"""The figures as a picture: one panel a metric, a bar a contender, the spread of the rounds as a whisker.

    python -m benchmarks.plot RESULT.json [DIRECTORY]

writes it as benchmark.svg, and each picture of pictures.py as performance-NAME.svg, into the directory (docs).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures, Metric
from benchmarks.pictures import PICTURES, colour
from benchmarks.report import number

SUFFIXES = (".svg", ".png", ".pdf")
_GROUPS = (
    "TCP across nodes", "TCP, same node", "UDP at saturation", "Round trip", "CPU time of TCP, 1 stream →",
    "CPU time of UDP 64 B at saturation",
)  # fmt: skip
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
    plt = _pyplot()
    names = [name for name in figures.titles if any(name in figures.values[metric.key] for metric in panels)]
    rows = -(-len(panels) // _COLUMNS)
    height = (0.28 * len(names) + 0.9) * rows + 0.9
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(13, height), squeeze=False, layout="constrained")
    for panel, metric in zip(axes.flat, panels, strict=False):
        _draw_panel(panel, figures, metric, names)
    for panel in list(axes.flat)[len(panels) :]:
        panel.axis("off")
    _save(figure, figures, path, "Pod to Pod, ")
    plt.close(figure)


def draw_all(figures: Figures, overview: Path, stem: str) -> tuple[list[Path], list[str]]:
    """Write every picture there are figures for, the others beside the overview as STEM-NAME in the same format.

    Return what was written, and what was not and why.
    """
    written, left_out = [], []
    try:
        draw(figures, overview)
        written.append(overview)
    except ValueError as error:
        left_out.append(f"{overview.name}: {error}")
    plt = _pyplot()
    for name, picture in PICTURES.items():
        path = overview.with_name(f"{stem}-{name}{overview.suffix}")
        try:
            figure = picture(figures, plt)
        except ValueError as error:
            left_out.append(f"{path.name}: {error}")
            continue
        _save(figure, figures, path)
        plt.close(figure)
        written.append(path)
    return written, left_out


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    # The same figures give the same file, with text that can be searched.
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "podwire", "font.family": "sans-serif"}
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, figures: Figures, path: Path, what: str = "") -> None:
    machine = figures.machine
    figure.suptitle(
        f"{what}{machine.get('cores')} cores, Linux {machine.get('kernel')}, commit {machine.get('commit')}: "
        f"medians of {figures.settings.get('rounds')} rounds, whiskers from the lowest to the highest",
        fontsize=10,
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _drawn(figures: Figures, metric: Metric) -> bool:
    return not metric.key.endswith("_offered") and len(figures.values[metric.key]) > 1


def _draw_panel(panel: Any, figures: Figures, metric: Metric, names: Sequence[str]) -> None:
    shown = [name for name in names if figures.spread(metric.key, name) is not None]
    for place, name in enumerate(shown):
        spread = figures.spread(metric.key, name)
        assert spread is not None
        panel.barh(place, spread.median, height=0.7, color=colour(name))
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


def main() -> int:
    if len(sys.argv) not in {2, 3} or sys.argv[1] in {"-h", "--help"}:
        print(__doc__, file=sys.stderr)
        return 2
    source, directory = Path(sys.argv[1]), Path(*sys.argv[2:] or ["docs"])
    written, left_out = draw_all(
        Figures.from_json(json.loads(source.read_text())), directory / "benchmark.svg", "performance"
    )
    for path in written:
        print(f"wrote {path}")
    for why in left_out:
        print(f"left out {why}", file=sys.stderr)
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
