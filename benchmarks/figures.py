"""Figures: what was measured, of whom, how often, and how it stands to its base. Pure; JSON in and out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT = 2


@dataclass(frozen=True, slots=True)
class Promise:
    """What a contender's figure must be: no worse than `bound`."""

    bound: float
    base: str = ""
    """What it is divided by first; empty: the metric's own base, and where that has none, the bare value."""
    of: str = "podwire"
    """Who promised."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a figure means."""

    key: str
    title: str
    unit: str
    group: str
    """The table it stands in."""
    higher_is_better: bool = True
    base: str = ""
    """The contender every other is divided by; empty when there is none to compare with."""
    promises: tuple[Promise, ...] = ()

    def keeps(self, value: float, promise: Promise) -> bool:
        """Tell whether a value, or ratio, is within the bound of a promise."""
        return value >= promise.bound if self.higher_is_better else value <= promise.bound

    def base_of(self, promise: Promise) -> str:
        """Return what a promise's figure is divided by; empty: by nothing."""
        return promise.base or self.base


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several rounds, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return the spread of at least one value, else None."""
        found = [value for value in values if not math.isnan(value)]
        return cls(statistics.median(found), min(found), max(found)) if found else None


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the value below which that part of the values lies, by nearest rank; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] if ordered else math.nan


@dataclass(slots=True)
class Figures:
    """All values of one run, by metric, contender and round; a round that failed is NaN."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    """Contender to what the report calls it, in its order."""
    notes: list[str] = field(default_factory=list)
    """What was left out, for people."""
    failures: list[str] = field(default_factory=list)
    """What went wrong, for people."""

    def add(self, metric: Metric, contender: str, value: float) -> None:
        """Take the next round's value."""
        self.metrics[metric.key] = metric
        self.values.setdefault(metric.key, {}).setdefault(contender, []).append(value)

    def spread(self, key: str, contender: str) -> Spread | None:
        """Return median and range; None when nothing was measured."""
        return Spread.of(self.values.get(key, {}).get(contender, ()))

    def ratio(self, key: str, contender: str, base: str = "") -> Spread | None:
        """Return the value over the base's, taken round by round, so that what disturbed a whole round cancels out."""
        metric = self.metrics.get(key)
        if metric is None or not (base or metric.base):
            return None
        mine = self.values[key].get(contender, ())
        bases = self.values[key].get(base or metric.base, ())
        return Spread.of(one / other for one, other in zip(mine, bases, strict=False) if other)

    def found(self, metric: Metric, promise: Promise) -> Spread | None:
        """Return what a promise is judged by, the median counts; None when it, or its base, was not measured."""
        base = metric.base_of(promise)
        return self.ratio(metric.key, promise.of, base) if base else self.spread(metric.key, promise.of)

    def to_json(self) -> dict[str, Any]:
        """Return what goes into the JSON file: every value, and the medians and ratios for those who only read."""
        return {
            "format": FORMAT,
            "machine": self.machine,
            "settings": self.settings,
            "titles": self.titles,
            "notes": self.notes,
            "failures": self.failures,
            "metrics": {key: self._metric_to_json(metric) for key, metric in self.metrics.items()},
        }

    def _metric_to_json(self, metric: Metric) -> dict[str, Any]:
        contenders: dict[str, Any] = {}
        for contender, values in self.values[metric.key].items():
            spread, ratio = self.spread(metric.key, contender), self.ratio(metric.key, contender)
            contenders[contender] = {
                "values": [None if math.isnan(value) else value for value in values],
                "median": spread and spread.median, "low": spread and spread.low, "high": spread and spread.high,
                "ratio": ratio and ratio.median,
            }  # fmt: skip
        return {
            "title": metric.title, "unit": metric.unit, "group": metric.group,
            "higher_is_better": metric.higher_is_better, "base": metric.base,
            "promises": [self._promise_to_json(metric, promise) for promise in metric.promises],
            "contenders": contenders,
        }  # fmt: skip

    def _promise_to_json(self, metric: Metric, promise: Promise) -> dict[str, Any]:
        found = self.found(metric, promise)
        return {
            "bound": promise.bound, "base": promise.base, "of": promise.of, "found": found and found.median,
            "kept": found and metric.keeps(found.median, promise),
        }  # fmt: skip

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Figures:
        """Read what `to_json` made. ValueError when it is something else."""
        if document.get("format") != FORMAT:
            raise ValueError(f"no result of this benchmark (format {document.get('format')!r}, not {FORMAT})")
        figures = cls(
            machine=document["machine"], settings=document["settings"], titles=document["titles"],
            notes=document["notes"], failures=document["failures"],
        )  # fmt: skip
        for key, entry in document["metrics"].items():
            words = {name: entry[name] for name in ("title", "unit", "group", "higher_is_better", "base")}
            promises = (Promise(each["bound"], each["base"], each["of"]) for each in entry["promises"])
            metric = Metric(key, promises=tuple(promises), **words)
            for contender, found in entry["contenders"].items():
                for value in found["values"]:
                    figures.add(metric, contender, math.nan if value is None else value)
        return figures
