# SPDX-License-Identifier: BSD-3-Clause
"""Where the bars and lines of a chart are, in percent of its width and height; templates draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

HOUR_NS = 3600 * 10**9
MOST_BARS = 96
# Hours that one bar may stand for; beyond the last, as many days as it takes.
HOURS = (1, 2, 3, 6, 12, 24)
N_BINS = 48
# Scores less abnormal than the threshold by such a factor are as good as each other.
SHOWN_FACTOR = 1000
QUANTILES = (0.5, 0.9, 0.99)
MOST_TICKS = 6


class Interval(NamedTuple):
    """What happened in a time that one bar stands for."""

    time: int  # its beginning, ns since 1970
    n_alarms: int
    n_flows: int


class Timeline(NamedTuple):
    """Alarms and flows by time."""

    unit: str  # "hour", "6 hours", "day", "3 days"
    intervals: list[Interval]

    @property
    def most(self) -> Interval:
        """The first of those with the most alarms."""
        return max(self.intervals, key=lambda interval: interval.n_alarms)

    @property
    def most_flows(self) -> int:
        """The most flows in an interval."""
        return max(interval.n_flows for interval in self.intervals)


def timeline(alarms: Mapping[int, int], flows: Mapping[int, int]) -> Timeline | None:
    """Return what happened in each hour, or in as many hours that there are not too many bars; None: nothing did."""
    hours = sorted({*alarms, *flows})
    if not hours:
        return None
    n_hours = (hours[-1] - hours[0]) // HOUR_NS + 1
    per_bar = next((n for n in HOURS if n_hours <= n * (MOST_BARS - 1)), 24 * -(-n_hours // (24 * (MOST_BARS - 1))))
    width = per_bar * HOUR_NS
    first, last = hours[0] // width, hours[-1] // width
    counts = np.zeros((last - first + 1, 2), np.int64)
    for column, numbers in enumerate((alarms, flows)):
        for hour, n in numbers.items():
            counts[hour // width - first, column] += n
    intervals = [Interval((first + place) * width, *row) for place, row in enumerate(counts.tolist())]
    return Timeline(_unit(per_bar), intervals)


def _unit(n_hours: int) -> str:
    n, thing = (n_hours // 24, "day") if n_hours % 24 == 0 else (n_hours, "hour")
    return thing if n == 1 else f"{n} {thing}s"


class Tick(NamedTuple):
    """A label on an axis."""

    place: float  # percent
    label: str


class Distribution(NamedTuple):
    """Abnormality (the opposite of scores) of some flows."""

    name: str
    n: int
    quantiles: list[float]  # those of `QUANTILES`, and the largest
    share_flagged: float
    points: str  # of an SVG polygon, in percent


class ScoreChart(NamedTuple):
    """How abnormal flows are, of several sets: shares on a logarithmic axis, as what is rare is what matters."""

    distributions: list[Distribution]
    threshold: float  # percent
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def score_chart(sets: Mapping[str, np.ndarray], threshold: float) -> ScoreChart | None:
    """Return the distributions of scores; None: there are none."""
    finite = {name: -scores[np.isfinite(scores)] for name, scores in sets.items()}
    finite = {name: values for name, values in finite.items() if len(values)}
    if not finite:
        return None
    axis = _Axis(np.concatenate(list(finite.values())), -threshold)
    least_share = 0.5 / max(map(len, finite.values()))
    distributions = [_distribution(name, values, axis, -threshold, least_share) for name, values in finite.items()]
    return ScoreChart(distributions, float(axis.places(-threshold)), axis.ticks(), _share_ticks(least_share))


class _Axis:
    """The axis of abnormality: logarithmic where all of it is positive, or nearly."""

    def __init__(self, values: np.ndarray, threshold: float):
        self._is_logarithmic = threshold > 0 and float(values.min()) >= 0
        low, high = min(values.min(), threshold), max(values.max(), threshold)
        if self._is_logarithmic:
            low = max(low, threshold / SHOWN_FACTOR)
        self._low, self._high = float(self._scaled(low)), float(self._scaled(high))
        if self._high <= self._low:
            self._low, self._high = self._low - 0.5, self._high + 0.5

    def _scaled(self, values: np.ndarray | float) -> np.ndarray:
        return np.log10(np.maximum(values, np.finfo(float).tiny)) if self._is_logarithmic else np.asarray(values)

    def places(self, values: np.ndarray | float) -> np.ndarray:
        """Return where values are, in percent; those beyond the ends are at the ends."""
        return np.clip(100 * (self._scaled(values) - self._low) / (self._high - self._low), 0, 100)

    def ticks(self) -> list[Tick]:
        """Return six labels or fewer, at round values if there are two in what is shown."""
        if self._is_logarithmic:
            values = _round_values(10**self._low, 10**self._high)
        else:
            step = _round_step((self._high - self._low) / 4)
            numbers = range(int(np.ceil(self._low / step)), int(np.floor(self._high / step)) + 1)
            values = [number * step for number in numbers]
        return [Tick(float(self.places(value)), f"{value:.4g}") for value in values]


def _round_values(low: float, high: float) -> list[float]:
    """Return two to six values for a logarithmic axis, as evenly spaced as round values are."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        values = [n * 10.0**decade for decade in decades for n in mantissas if low <= n * 10.0**decade <= high]
        if 2 <= len(values) <= MOST_TICKS:
            return values
    return np.geomspace(low, high, MOST_TICKS - 1).tolist()


def _round_step(step: float) -> float:
    decade = 10.0 ** np.floor(np.log10(step))
    return float(decade * next(n for n in (1, 2, 5, 10) if n * decade >= step))


def _share_ticks(least: float) -> list[Tick]:
    decades = range(int(-np.log10(least)) + 1)
    return [Tick(float(_share_place(10.0**-n, least)), f"{100 * 10.0**-n:g} %") for n in decades]


def _share_place(share: np.ndarray | float, least: float) -> np.ndarray:
    return np.asarray(100 * (1 - np.log(np.maximum(share, least)) / np.log(least)))


def _distribution(name: str, values: np.ndarray, axis: _Axis, threshold: float, least_share: float) -> Distribution:
    counts, edges = np.histogram(axis.places(values), N_BINS, (0, 100))
    heights = _share_place(counts / len(values), least_share)
    points = [(0.0, 0.0)]
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        points += [(left, height), (right, height)]
    points.append((100.0, 0.0))
    quantiles = [*np.quantile(values, QUANTILES).tolist(), float(values.max())]
    drawn = " ".join(f"{x:.4g},{100 - y:.4g}" for x, y in points)
    return Distribution(name, len(values), quantiles, float(np.mean(values > threshold)), drawn)


def share_heights(numbers: Sequence[int]) -> list[float]:
    """Return the heights of bars, in percent of the highest."""
    most = max(numbers, default=0)
    return [100 * n / most if most else 0.0 for n in numbers]
