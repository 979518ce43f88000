"""The pictures of docs/performance.md, each from the figures of one run.

ratios   every contender over its base, and what was promised
load     round trips beside a saturating stream: median, 99 of 100, the slowest
scaling  throughput by attachments and by peers, over that of one
profile  the routers' time by what it went into
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.figures import Figures, Metric
from benchmarks.profile import COPIES, OWN, PARTS
from benchmarks.report import HIGHLIGHTED, number

Picture = Callable[[Figures, Any], Any]
"""Draws figures with matplotlib.pyplot and returns the figure. ValueError when the run has nothing for it."""

_RATIOS = ("tcp1_gbps", "udp64_kpps", "udp64x2_kpps", "pace_machine_ns", "rtt_udp_p50_us", "local_gbps")
_OURS, _OUR_OTHERS, _THEIRS = "#d1495b", "#e39aa4", "#9db4c0"
_BOUND = "#2e7d4f"
_LINES = {"tcp": "#30638e", "udp64": "#d1495b", "tso": "#30638e"}
_DASHES = ("solid", "dashed", "dotted")
_MARKERS = {"idle": "o", "busy": "s", "out": "o", "in": "s"}
_PART_COLOURS = {
    COPIES: "#d1495b", "send": "#1d3f5e", "receive": "#30638e", "tun_read": "#5b8bb0", "tun_write": "#8fb3cf",
    "wait": "#d8cfae", "kernel": "#b9b4a5", OWN: "#edae49",
}  # fmt: skip


def colour(name: str) -> str:
    """Return a contender's colour."""
    return _OURS if name == HIGHLIGHTED else _OUR_OTHERS if name.startswith(HIGHLIGHTED) else _THEIRS


def ratios(figures: Figures, plt: Any) -> Any:
    """Draw each contender's ratio to its base, a panel a measure."""
    metrics = [figures.metrics[key] for key in _RATIOS if key in figures.metrics]
    drawn = [metric for metric in metrics if any(True for _ in _rated(figures, metric))]
    if not drawn:
        raise ValueError("nothing measured between Pods")
    rows = -(-len(drawn) // 3)
    most = max(len(list(_rated(figures, metric))) for metric in drawn)
    figure, axes = plt.subplots(
        rows, 3, figsize=(12, (0.3 * most + 1.2) * rows), squeeze=False, layout="constrained"
    )  # fmt: skip
    for panel, metric in zip(axes.flat, drawn, strict=False):
        _ratio_panel(panel, figures, metric)
    for panel in list(axes.flat)[len(drawn) :]:
        panel.axis("off")
    return figure


def _rated(figures: Figures, metric: Metric) -> Iterator[tuple[str, float, float, float]]:
    for name in sorted(figures.values[metric.key], key=list(figures.titles).index):
        ratio = figures.ratio(metric.key, name)
        if ratio is not None:
            yield name, ratio.median, ratio.low, ratio.high


def _ratio_panel(panel: Any, figures: Figures, metric: Metric) -> None:
    shown = list(_rated(figures, metric))
    for place, (name, median, low, high) in enumerate(shown):
        panel.barh(place, median, height=0.7, color=colour(name))
        panel.plot([low, high], [place, place], color="#333333", linewidth=1)
        panel.annotate(f"{number(median)}×", (max(high, median), place), xytext=(4, 0), textcoords="offset points",
                       va="center", fontsize=8)  # fmt: skip
    for promise in metric.promises:
        if not promise.base and promise.of in (names := [name for name, *_ in shown]):
            place = names.index(promise.of)
            panel.plot([promise.bound] * 2, [place - 0.45, place + 0.45], color=_BOUND, linewidth=2.5)
    panel.axvline(1, color="#777777", linewidth=0.8, linestyle="dashed")
    panel.set_yticks(range(len(shown)), [figures.titles.get(name, name) for name, *_ in shown], fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.2)
    panel.set_xlim(left=0)
    panel.spines[["top", "right"]].set_visible(False)
    base = figures.titles.get(metric.base, metric.base)
    arrow = "more is better" if metric.higher_is_better else "less is better"
    panel.set_title(f"{metric.group}: {metric.title}\n× {base}, {arrow}; green: promised", fontsize=8, loc="left")


def load(figures: Figures, plt: Any) -> Any:
    """Draw p50, p99 and the slowest round trip beside a stream, of each contender."""
    wheres = [where for where in ("same", "other") if f"load_{where}_p99" in figures.metrics]
    if not wheres:
        raise ValueError("no round trips measured under load")
    names = sorted(figures.values[f"load_{wheres[0]}_p99"], key=list(figures.titles).index)
    least = min(
        value
        for where in wheres
        for values in figures.values[f"load_{where}_p50"].values()
        for value in values
        if value > 0
    )
    size = (12, 0.4 * len(names) + 1.3)
    figure, axes = plt.subplots(1, len(wheres), figsize=size, squeeze=False, layout="constrained")
    for panel, where in zip(axes.flat, wheres, strict=True):
        shown = [name for name in names if figures.spread(f"load_{where}_p99", name) is not None]
        for place, name in enumerate(shown):
            spreads = [figures.spread(f"load_{where}_{what}", name) for what in ("p50", "p99", "max")]
            points = [spread.median for spread in spreads if spread is not None]
            if len(points) != len(spreads):
                continue
            panel.plot([points[0], points[-1]], [place, place], color=colour(name), linewidth=1.5)
            for marker, point in zip("o|x", points, strict=True):
                panel.plot(point, place, marker, color=colour(name), markersize=9 if marker == "|" else 5,
                           markeredgewidth=2)  # fmt: skip
            panel.annotate(f"p99 {number(points[1])} ms", (points[-1], place), xytext=(6, 0),
                           textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        for promise in figures.metrics[f"load_{where}_p99"].promises:
            panel.axvline(promise.bound, color=_BOUND, linewidth=1.5)
        panel.set_xscale("log")
        panel.set_xlim(least / 2, 400)
        panel.set_yticks(range(len(shown)), [figures.titles.get(name, name) for name in shown], fontsize=8)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.spines[["top", "right"]].set_visible(False)
        pods = "the stream's two Pods" if where == "same" else "two other Pods of its nodes"
        panel.set_title(f"UDP round trip beside a TCP stream, between {pods}\nms: • p50, | p99, × slowest; green: p99 promised",
                        fontsize=9, loc="left")  # fmt: skip
    return figure


def scaling(figures: Figures, plt: Any) -> Any:
    """Draw throughput over that of one attachment, and of one peer, a line an engine and kind."""
    panels = {
        "attachments": [key for key in figures.metrics if key.startswith("scaling_")],
        "peers": [key for key in figures.metrics if key.startswith("peers_")],
    }
    drawn = {what: keys for what, keys in panels.items() if keys}
    if not drawn:
        raise ValueError("scaling was not measured")
    figure, axes = plt.subplots(1, len(drawn), figsize=(12, 4.8), squeeze=False, layout="constrained")
    for panel, (what, keys) in zip(axes.flat, drawn.items(), strict=True):
        engines = list(dict.fromkeys(key.split("_")[1] for key in keys))
        for key in keys:
            _scaling_line(panel, figures, figures.metrics[key], engines)
        panel.axhline(1, color="#777777", linewidth=0.8, linestyle="dashed")
        panel.set_xscale("log")
        sizes = sorted({_size(name) for key in keys for name in figures.values[key]})
        panel.set_xticks(sizes, [f"{size}" for size in sizes])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        for promise in (promise for key in keys for promise in figures.metrics[key].promises):
            panel.axhline(promise.bound, color=_BOUND, linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)
        panel.set_title(f"Throughput by the number of {what}, over that with one", fontsize=9, loc="left")
    return figure


def _scaling_line(panel: Any, figures: Figures, metric: Metric, engines: list[str]) -> None:
    points = [(_size(name), figures.ratio(metric.key, name)) for name in figures.values[metric.key]]
    shown = sorted((size, ratio.median) for size, ratio in points if ratio is not None)
    words = metric.key.split("_")
    kind = next(word for word in words if word in _MARKERS)
    traffic = next(word for word in words if word in _LINES)
    panel.plot(*zip(*shown, strict=True), color=_LINES[traffic], linestyle=_DASHES[engines.index(words[1])],
               marker=_MARKERS[kind], markersize=5, fillstyle="full" if kind in {"idle", "out"} else "none",
               label=f"{words[1]}: {metric.title}")  # fmt: skip


def _size(name: str) -> int:
    return int(name.partition(":")[2])


def profile(figures: Figures, plt: Any) -> Any:
    """Draw the shares of the routers' time, a bar an engine and kind of traffic."""
    engines = list(dict.fromkeys(key.split("_")[1] for key in figures.metrics if key.startswith("profile_")))
    bars = [(engine, name) for engine in engines for name in figures.values[f"profile_{engine}_{OWN}"]]
    if not bars:
        raise ValueError("no profile was taken")
    figure, panel = plt.subplots(figsize=(12, 0.45 * len(bars) + 1.2), layout="constrained")
    for place, (engine, name) in enumerate(bars):
        left = 0.0
        for part, title in PARTS.items():
            spread = figures.spread(f"profile_{engine}_{part}", name)
            share = 0.0 if spread is None or math.isnan(spread.median) else spread.median
            panel.barh(
                place, share, left=left, height=0.7, color=_PART_COLOURS[part], label=title if not place else None
            )
            if share >= 4:
                panel.text(left + share / 2, place, f"{share:.0f}", ha="center", va="center", fontsize=8,
                           color="black" if part in {OWN, "wait", "kernel", "tun_write"} else "white")  # fmt: skip
            left += share
    panel.set_yticks(
        range(len(bars)), [f"{engine}: {figures.titles.get(name, name)}" for engine, name in bars], fontsize=8
    )
    panel.invert_yaxis()
    panel.set_xlim(0, 100)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, frameon=False, ncols=len(PARTS), loc="upper center", bbox_to_anchor=(0.5, -0.15))
    panel.set_title("Both routers' processor time, % of samples (medians)", fontsize=9, loc="left")
    return figure


PICTURES: dict[str, Picture] = {"ratios": ratios, "load": load, "scaling": scaling, "profile": profile}
