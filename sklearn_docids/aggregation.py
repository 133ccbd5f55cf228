# SPDX-License-Identifier: BSD-3-Clause
"""From scores of flows to scores of channels and hosts.

A rare normal flow comes once; a beacon comes back, and a scan fans out. What a single flow does not give away, the
flows of a channel (source, destination, destination port, protocol) or of a host (a source) do together. And an analyst
counts his work by incidents, not by flagged flows.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted

from sklearn_docids._bases import BaseEstimator
from sklearn_docids._incidents import LEVELS, Incident, checked_scores, find_incidents, incident_budget_threshold
from sklearn_docids._meta import forget_fit
from sklearn_docids._thresholds import conformal_threshold, doubt_of, least_held_out
from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.exceptions import TooFewGroupsError

__all__ = [
    "FlowAggregator",
    "FlowGroup",
    "GroupStream",
    "Incident",
    "TooFewGroupsError",
    "find_incidents",
    "incident_budget_threshold",
]

COMBINE = ("sum", "most_abnormal")
# ``false_alarm_rate="auto"``: where there are enough normal groups for it.
AUTO_FALSE_ALARM_RATE = 0.01
# Scores of normal flows that are kept, evenly spaced among the sorted ones.
MAX_NORMAL_SCORES = 100_000
# Above 1, so that few very unusual flows outweigh many a little unusual ones, of which a busy channel has more.
POWER = 1.5
# Of the farthest scores: its reciprocal times the number of normal flows is still a number.
LEAST_PLACE = 1e-300
# The clock of a stream is the median window of so many flows: a few wrong time stamps neither stop nor hasten it.
N_CLOCK_FLOWS = 9
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class FlowGroup:
    """Flows of one channel or host in one window.

    Guide: :doc:`/how-to/false-alarm-rate`.

    Parameters
    ----------
    src_ip : str
        Address of the source.
    dst_ip : str or None
        Address of the destination; None for a host, as are ``dst_port`` and ``protocol``.
    dst_port : int or None
        Port of the destination.
    protocol : int or None
        6 for TCP, 17 for UDP.
    window : int
        Number of the window: its beginning is ``window`` times the length of a window after 1970-01-01 UTC.
    n_flows : int
        Number of flows.
    n_channels : int
        Number of different channels, 1 for a channel.
    time_first, time_last : int
        Beginning of the first and of the last flow, ns since 1970-01-01 UTC.
    most_abnormal : int
        Row of the most abnormal flow in the table that brought it.
    score : float
        The lower, the more abnormal; at most 0.

    Examples
    --------
    >>> from sklearn_docids.aggregation import FlowGroup
    >>> group = FlowGroup(
    ...     "10.0.0.7", "10.9.9.9", 443, 6, window=0, n_flows=3, n_channels=1, time_first=0, time_last=120 * 10**9,
    ...     most_abnormal=2, score=-4.5,
    ... )
    >>> (group.time_last - group.time_first) / 1e9  # seconds
    120.0
    """

    src_ip: str
    dst_ip: str | None
    dst_port: int | None
    protocol: int | None
    window: int
    n_flows: int
    n_channels: int
    time_first: int
    time_last: int
    most_abnormal: int
    score: float


class _Fit(NamedTuple):
    """What `FlowAggregator.fit` was told and has learned, and scoring must not lose sight of."""

    level: str
    window: float
    combine: str
    n_highest: int
    false_alarm_rate: float | str | None

    @property
    def window_ns(self) -> int:
        return round(self.window * 1e9)


class FlowAggregator(BaseEstimator):
    """Score channels or hosts by the scores of their flows.

    The score of a flow becomes its abnormality: of the share of normal flows that score as low, the negative logarithm
    to the power of 1.5. With ``combine="sum"``, a channel is as abnormal as the sum over its ``n_highest`` most
    abnormal flows in a window, and a host as the sum over all its channels of the most abnormal flow of each: many
    channels that are each a little unusual add up. With ``combine="most_abnormal"``, both are as abnormal as their most
    abnormal flow. That suits a detector whose score of a flow covers what its host did before: to add up such scores
    would be to count the same flows again and again.

    Flows may come all at once (`aggregate`) or as they end, in bounded memory (`stream`).

    Guide: :doc:`/how-to/false-alarm-rate`.

    Parameters
    ----------
    level : {"channel", "host"}, default="channel"
        ``"channel"``: flows of one source, destination, destination port and protocol. ``"host"``: of one source.
    window : float, default=3600.0
        Seconds, from 1e-9 to 9e9 (285 years); a flow belongs to the window in which it begins. Flows of a stream come
        out as they end, so a window shorter than the sampler's ``idle_timeout`` may close before its last flows are
        there, and they make a group of their own.
    combine : {"sum", "most_abnormal"}, default="sum"
        What makes one score of the flows of a channel or host. With ``"most_abnormal"``, channels and hosts rank as the
        scores of their most abnormal flows do, also beyond all normal ones (see `abnormality`).
    n_highest : int, default=50
        Most abnormal flows of a channel that are added up; not used with ``combine="most_abnormal"``. This and the
        power were chosen on the validation part of the testbed (:doc:`/benchmarks`).
    false_alarm_rate : float, "auto" or None, default="auto"
        Share of normal channels or hosts per window that may be flagged, in (0, 0.5]. ``"auto"``: 0.01 where there are
        enough normal groups for it, otherwise no threshold, with a warning. None: no threshold.
    max_groups : int, default=100_000
        Most channels that a stream holds at a time, in all hosts together with ``level="host"``. When there are more,
        groups come out early, a tenth of the channels at a time, and what follows of them counts as another group;
        `GroupStream` says which.

    Attributes
    ----------
    normal_scores_ : ndarray of float64
        Sorted scores of normal flows, at most 100,000.
    offset_ : float
        Threshold: a group that scores below it is abnormal; minus infinity where there is none.
    false_alarm_rate_ : float or None
        The rate that ``offset_`` holds; None where there is no threshold.
    no_threshold_reason_ : str
        Why there is no threshold; empty where there is one.

    See Also
    --------
    sklearn_docids.DOCIDSDetector : Scores the flows.

    Notes
    -----
    The threshold is a conformal one: of n calibration groups and a new one, drawn alike, the new one is beyond the k-th
    lowest with probability k / (n + 1) at most. For it, with ``combine="sum"``, flows of each calibration group are
    ranked among those of all others, as flows of a new group are; ``"most_abnormal"`` needs no such care, as only the
    order of the flow scores counts. Windows of one host are alike only as far as its work is.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler
    >>> from sklearn_docids.aggregation import FlowAggregator
    >>> from sklearn_docids.datasets import make_traffic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flows = FlowSampler().flows(make_traffic(folder, n_flows=40, random_state=0).train)
    >>> scores = -flows.X.mean(axis=1)  # any score: the lower, the more abnormal
    >>> aggregator = FlowAggregator("host", window=600, false_alarm_rate=None).fit(flows, scores)
    >>> groups = aggregator.aggregate(flows, scores)
    >>> sum(group.n_flows for group in groups)
    40
    """

    # Both are what is aggregated, not metadata of something else: there is nothing to route.
    __metadata_request__fit: ClassVar[dict[str, str]] = {"flows": UNUSED, "scores": UNUSED}

    normal_scores_: np.ndarray
    offset_: float
    false_alarm_rate_: float | None
    no_threshold_reason_: str

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "level": [StrOptions(set(LEVELS))],
        # Beyond 2**63 ns, a window has no number.
        "window": [Interval(Real, 1e-9, 9e9, closed="both")],
        "combine": [StrOptions(set(COMBINE))],
        "n_highest": [Interval(Integral, 1, None, closed="left")],
        "false_alarm_rate": [Interval(Real, 0, 0.5, closed="right"), StrOptions({"auto"}), None],
        "max_groups": [Interval(Integral, 1, None, closed="left")],
    }
    _fitted_names = ("normal_scores_", "offset_", "false_alarm_rate_", "no_threshold_reason_", "_fitted")

    def __init__(
        self,
        level: str = "channel",
        *,
        window: float = 3600.0,
        combine: str = "sum",
        n_highest: int = 50,
        false_alarm_rate: float | str | None = "auto",
        max_groups: int = 100_000,
    ):
        self.level = level
        self.window = window
        self.combine = combine
        self.n_highest = n_highest
        self.false_alarm_rate = false_alarm_rate
        self.max_groups = max_groups

    def fit(self, flows: FlowTable, scores: ArrayLike) -> FlowAggregator:
        """Learn from normal traffic how low flows, and then channels or hosts, score.

        Parameters
        ----------
        flows : FlowTable
            Normal flows that the detector was not trained on.
        scores : array-like of shape (n_flows,)
            Their scores: the lower, the more abnormal.

        Returns
        -------
        FlowAggregator
            The fitted aggregator.

        Raises
        ------
        TooFewGroupsError
            There are too few groups for a ``false_alarm_rate`` that was given as a number.
        ValueError
            A parameter or a score is unusable, ``flows`` is not a flow table, or there are no flows.

        Warns
        -----
        UserWarning
            With ``false_alarm_rate="auto"``: there are too few groups for a threshold. With any rate: all groups score
            alike, and the threshold separates nothing.
        """
        forget_fit(self)
        self._validate_params()
        scores = checked_scores(flows, scores)
        if not len(scores):
            raise ValueError("there are no flows to calibrate with")
        fitted = self._settings()
        normal = _thinned(np.sort(scores))
        group_scores: list[float] = []
        if self.false_alarm_rate is not None:
            group_scores = _calibration_scores(flows, scores, normal, fitted)
        rate, reason = self._resolved_rate(len(group_scores))
        if reason and self.false_alarm_rate is not None:
            warn_caller(f"no threshold: {reason}")
        self.false_alarm_rate_, self.no_threshold_reason_ = rate, reason
        self.offset_ = -math.inf if rate is None else conformal_threshold(np.array(group_scores), rate)
        if rate is not None and (doubt := doubt_of(np.array(group_scores))):
            warn_caller(doubt)
        self.normal_scores_ = normal
        self._fitted = fitted
        return self

    def _settings(self) -> _Fit:
        return _Fit(self.level, self.window, self.combine, self.n_highest, self.false_alarm_rate)

    def _resolved_rate(self, n_groups: int) -> tuple[float | None, str]:
        """Return the rate to hold, and where there is none the reason."""
        if self.false_alarm_rate is None:
            return None, "false_alarm_rate=None"
        rate = AUTO_FALSE_ALARM_RATE if self.false_alarm_rate == "auto" else float(self.false_alarm_rate)
        needed = least_held_out(rate)
        if n_groups >= needed:
            return rate, ""
        few = (
            f"a false-alarm rate of {rate:g} needs at least {needed} normal {self.level}s, but in windows of "
            f"{self.window:g} s there are {n_groups}: give more normal traffic, a shorter window or a higher rate"
        )
        if self.false_alarm_rate != "auto":
            raise TooFewGroupsError(f"{few}, or None for no threshold")
        return None, few

    def aggregate(self, flows: FlowTable, scores: ArrayLike) -> list[FlowGroup]:
        """Return the channels or hosts of all flows.

        Parameters
        ----------
        flows : FlowTable
            Flows, in any order.
        scores : array-like of shape (n_flows,)
            Their scores: the lower, the more abnormal.

        Returns
        -------
        list of FlowGroup
            The most abnormal first.

        Raises
        ------
        NotFittedError
            ``fit`` has not been called, or not since a parameter was changed.
        ValueError
            ``flows`` is not a flow table, a score is not finite, or there is not one for each flow.
        """
        fitted = self._checked_fit()
        return _most_abnormal_first(_all_groups(flows, self.abnormality(checked_scores(flows, scores)), fitted))

    def stream(self) -> GroupStream:
        """Return a stream, to which flows are given as they end.

        Returns
        -------
        GroupStream
            An empty stream.

        Raises
        ------
        NotFittedError
            ``fit`` has not been called, or not since a parameter was changed.
        ValueError
            ``max_groups`` is unusable.
        """
        return GroupStream(self)

    def abnormality(self, scores: ArrayLike) -> np.ndarray:
        """Return how unusual scores of flows are: what channels and hosts add up, or have the highest of.

        Parameters
        ----------
        scores : array-like of shape (n_flows,)
            Scores of flows: the lower, the more abnormal.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            Negative natural logarithm, to the power of 1.5, of the share of normal flows that score as low; at least 0.
            With ``combine="most_abnormal"`` no two scores share a value, up to rounding, unless they are higher than
            all normal ones: the share is interpolated between normal scores, and falls on below the lowest, inversely
            with the distance to it.
        """
        check_is_fitted(self, "_fitted")
        return _abnormality_among(self.normal_scores_, scores, self._fitted.combine)

    def _checked_fit(self) -> _Fit:
        """Return the settings of ``fit``; refuse others that have been set since then."""
        check_is_fitted(self, "_fitted")
        for name, now in self._settings()._asdict().items():
            before = getattr(self._fitted, name)
            if now != before:
                raise NotFittedError(
                    f"{name} was {before!r} in fit and is {now!r} now: the fit, with its threshold, does not hold for "
                    "it; call fit again"
                )
        return self._fitted


class GroupStream:
    """Channels or hosts of flows that come as they end, in bounded memory.

    It holds at most ``max_groups`` channels, with at most ``n_highest`` numbers each, and keeps to the fit it began
    with, whatever becomes of the aggregator.

    Guide: :doc:`/how-to/false-alarm-rate`.

    Parameters
    ----------
    aggregator : FlowAggregator
        Fitted aggregator; ``aggregator.stream()`` is the same.

    Attributes
    ----------
    n_evicted : int
        Groups that came out early, for want of room, since the stream began.

    Notes
    -----
    When there is no room for one channel more, groups come out until a tenth of the channels is free. If a source holds
    more than a tenth of the room, they are groups of the source that holds the most, so that a few sources, whatever
    they send, push out no group of another one. Otherwise, as in a flood with forged addresses, they are groups of all
    sources. Among these, those go first whose flows have added up to the least, and of equals those that have had no
    flow for longest: a beacon stays once it has added up to more than a flow of the flood. What stays is complete.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler
    >>> from sklearn_docids.aggregation import FlowAggregator
    >>> from sklearn_docids.datasets import make_traffic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flows = FlowSampler().flows(make_traffic(folder, n_flows=40, random_state=0).train)
    >>> scores = -flows.X.mean(axis=1)
    >>> stream = FlowAggregator("host", window=600, false_alarm_rate=None).fit(flows, scores).stream()
    >>> over = stream.update(flows[:20], scores[:20]) + stream.update(flows[20:], scores[20:])
    >>> sum(group.n_flows for group in over + stream.flush())
    40
    """

    def __init__(self, aggregator: FlowAggregator):
        aggregator._validate_params()
        self.n_evicted: int = 0
        self._fitted = aggregator._checked_fit()
        self._normal_scores = aggregator.normal_scores_
        self._max_groups = aggregator.max_groups
        self._open = _OpenGroups(self._fitted)
        self._clock = _Clock()

    def update(self, flows: FlowTable, scores: ArrayLike) -> list[FlowGroup]:
        """Take more flows; return the groups whose window is over, and those for which there is no room.

        Parameters
        ----------
        flows : FlowTable
            Flows, roughly in the order of time: a window is over when the next but one has begun, by the median of the
            last nine flows, which a few wrong time stamps do not move.
        scores : array-like of shape (n_flows,)
            Their scores: the lower, the more abnormal.

        Returns
        -------
        list of FlowGroup
            Groups that are done; ``most_abnormal`` is the row of the flow in the call that brought it.

        Raises
        ------
        ValueError
            ``flows`` is not a flow table, a score is not finite, or there is not one for each flow.

        Warns
        -----
        UserWarning
            Groups come out for want of room, for the first time in this stream.
        """
        done: list[FlowGroup] = []
        abnormality = _abnormality_among(self._normal_scores, checked_scores(flows, scores), self._fitted.combine)
        for row, (key, channel, time, value) in enumerate(_keyed(flows, abnormality, self._fitted)):
            if self._clock.moves_on(key[0]):
                # Flows come out as they end, those that began before among them: one more window is waited for.
                done += self._open.close_before(self._clock.now - 1)
            self._open.add(key, channel, row, time, value)
            if self._open.n_channels > self._max_groups:
                done += self._evict()
        return done

    def _evict(self) -> list[FlowGroup]:
        if not self.n_evicted:
            warn_caller(
                f"there are more than {self._max_groups} channels at a time: {self._fitted.level}s come out early, and "
                "what follows of them counts as another group; n_evicted counts them, and a higher max_groups or a "
                "shorter window avoids it"
            )
        evicted = self._open.evict(self._max_groups)
        self.n_evicted += len(evicted)
        return evicted

    def flush(self) -> list[FlowGroup]:
        """Return the groups that are still open, at the end of a stream.

        Returns
        -------
        list of FlowGroup
            The most abnormal first.
        """
        return _most_abnormal_first(self._open.close_before(math.inf))


class _Clock:
    """Window in which a stream is, by the median of its last flows."""

    def __init__(self) -> None:
        self.now = -(2**63)
        self._recent: deque[int] = deque(maxlen=N_CLOCK_FLOWS)

    def moves_on(self, window: int) -> bool:
        """Take the window of one more flow; return whether the clock shows another window now."""
        before = self.now
        self._recent.append(window)
        self.now = sorted(self._recent)[(len(self._recent) - 1) // 2]
        return self.now != before


class _OpenGroup(ABC):
    """Flows so far of one channel or host; a child says what they add up to."""

    def __init__(self, fitted: _Fit) -> None:
        self._adds_up = fitted.combine == "sum"
        self.n_flows = 0
        self.time_first = 2**63 - 1
        self.time_last = -(2**63)
        self.most_abnormal = -1
        self.last_added = 0
        # Added to and subtracted from, so not exact: it tells who must go, while the score is summed up at the end.
        self._running_sum = 0.0
        self._highest = -1.0

    @property
    def so_far(self) -> float:
        """Abnormality so far: what tells who must go."""
        return self._running_sum if self._adds_up else self._highest

    @property
    @abstractmethod
    def n_channels(self) -> int:
        """Number of different channels."""

    @abstractmethod
    def values(self) -> Iterable[float]:
        """Return what adds up to the abnormality of the group."""

    @abstractmethod
    def _add_value(self, channel: Key, abnormality: float) -> None: ...

    def add(self, channel: Key, row: int, time: int, abnormality: float) -> None:
        """Add a flow."""
        self.n_flows += 1
        self.time_first = min(self.time_first, time)
        self.time_last = max(self.time_last, time)
        if abnormality > self._highest:
            self._highest, self.most_abnormal = abnormality, row
        self._add_value(channel, abnormality)

    def closed(self, key: Key) -> FlowGroup:
        """Return the group, to which nothing is added any more."""
        window, src_ip, dst_ip, dst_port, protocol = key
        abnormality = math.fsum(self.values()) if self._adds_up else self._highest
        return FlowGroup(
            src_ip, dst_ip, dst_port, protocol, window, self.n_flows, self.n_channels, self.time_first, self.time_last,
            self.most_abnormal, -abnormality,
        )  # fmt: skip


class _OpenChannel(_OpenGroup):
    """A channel: its most abnormal flows count."""

    n_channels = 1

    def __init__(self, fitted: _Fit):
        super().__init__(fitted)
        self._n_highest = fitted.n_highest if self._adds_up else 1
        self._heap: list[float] = []

    def values(self) -> Iterable[float]:
        return self._heap

    def _add_value(self, channel: Key, abnormality: float) -> None:
        dropped = 0.0
        if len(self._heap) < self._n_highest:
            heapq.heappush(self._heap, abnormality)
        else:
            dropped = heapq.heappushpop(self._heap, abnormality)
        self._running_sum += abnormality - dropped


class _OpenHost(_OpenGroup):
    """A host: the most abnormal flow of each of its channels counts."""

    def __init__(self, fitted: _Fit) -> None:
        super().__init__(fitted)
        self._by_channel: dict[Key, float] = {}

    @property
    def n_channels(self) -> int:
        return len(self._by_channel)

    def values(self) -> Iterable[float]:
        return self._by_channel.values()

    def _add_value(self, channel: Key, abnormality: float) -> None:
        before = self._by_channel.get(channel, 0.0)
        self._by_channel[channel] = max(before, abnormality)
        self._running_sum += max(before, abnormality) - before


class _OpenGroups:
    """All groups to which flows are still added."""

    def __init__(self, fitted: _Fit):
        self.n_channels = 0
        self._fitted = fitted
        self._n_added = 0
        # By window, and a heap of the windows: a clock that time stamps move to and fro costs no search.
        self._of_window: dict[int, dict[Key, _OpenGroup]] = {}
        self._windows: list[int] = []

    def add(self, key: Key, channel: Key, row: int, time: int, abnormality: float) -> None:
        """Add a flow to its group."""
        groups = self._of_window.get(key[0])
        if groups is None:
            groups = self._of_window[key[0]] = {}
            heapq.heappush(self._windows, key[0])
        group = groups.get(key)
        n_before = 0 if group is None else group.n_channels
        if group is None:
            group = groups[key] = (_OpenChannel if self._fitted.level == "channel" else _OpenHost)(self._fitted)
        group.add(channel, row, time, abnormality)
        self.n_channels += group.n_channels - n_before
        self._n_added += 1
        group.last_added = self._n_added

    def close_before(self, window: float) -> list[FlowGroup]:
        """Take out the groups of all windows before one, with their scores."""
        closed = []
        while self._windows and self._windows[0] < window:
            groups = self._of_window.pop(heapq.heappop(self._windows))
            for key in list(groups):
                group = groups.pop(key)  # freed at once, not with the last
                self.n_channels -= group.n_channels
                closed.append(group.closed(key))
        return closed

    def evict(self, max_channels: int) -> list[FlowGroup]:
        """Take out those that must go for a tenth of the channels to be free: one search serves many flows."""
        keys = [key for of_window in self._of_window.values() for key in of_window]
        groups = [group for of_window in self._of_window.values() for group in of_window.values()]
        n_channels = np.array([group.n_channels for group in groups])
        closed = []
        for place in self._least_abnormal(keys, groups, n_channels, max_channels):
            self.n_channels -= int(n_channels[place])
            closed.append(self._of_window[keys[place][0]].pop(keys[place]).closed(keys[place]))
        self._of_window = {window: left for window, left in self._of_window.items() if left}
        self._windows = sorted(self._of_window)
        return closed

    def _least_abnormal(
        self, keys: list[Key], groups: list[_OpenGroup], n_channels: np.ndarray, max_channels: int
    ) -> list[int]:
        """Return the places of those that must go, first among those of a source that takes the room of others."""
        n_held: dict[str, int] = {}
        for key, n in zip(keys, n_channels.tolist(), strict=True):
            n_held[key[1]] = n_held.get(key[1], 0) + n
        largest = max(n_held, key=n_held.__getitem__)
        order = np.lexsort(([group.last_added for group in groups], [group.so_far for group in groups]))
        if n_held[largest] > max_channels / 10:
            order = order[[keys[place][1] == largest for place in order.tolist()]]
        too_many = self.n_channels - max_channels + max_channels // 10
        n_groups = int(np.searchsorted(np.cumsum(n_channels[order]), too_many)) + 1
        return order[:n_groups].tolist()


def _keyed(flows: FlowTable, abnormality: np.ndarray, fitted: _Fit) -> Iterator[tuple[Key, Key, int, float]]:
    """Yield of each flow the key of its group, its channel among those of the source, its time and abnormality."""
    channels = zip(flows.dst_ip.tolist(), flows.dst_port.tolist(), flows.protocol.tolist(), strict=True)
    return zip(_keys(flows, fitted), channels, flows.time_first.tolist(), abnormality.tolist(), strict=True)


def _keys(flows: FlowTable, fitted: _Fit) -> Iterator[Key]:
    """Return what tells the group of each flow from others: window, source, destination, port, protocol."""
    who = [flows.src_ip.tolist()]
    if fitted.level == "channel":
        who += [column.tolist() for column in (flows.dst_ip, flows.dst_port, flows.protocol)]
    else:
        who += [[None] * len(flows)] * 3
    return zip((flows.time_first // fitted.window_ns).tolist(), *who, strict=True)


def _all_groups(flows: FlowTable, abnormality: np.ndarray, fitted: _Fit) -> list[FlowGroup]:
    """Return the groups of flows that are all there, by window, then in the order in which they begin in the table."""
    opened = _OpenGroups(fitted)
    for row, (key, channel, time, value) in enumerate(_keyed(flows, abnormality, fitted)):
        opened.add(key, channel, row, time, value)
    return opened.close_before(math.inf)


def _most_abnormal_first(groups: list[FlowGroup]) -> list[FlowGroup]:
    return sorted(groups, key=lambda group: group.score)


def _calibration_scores(flows: FlowTable, scores: np.ndarray, normal: np.ndarray, fitted: _Fit) -> list[float]:
    """Return the scores of the normal groups that set the threshold."""
    if fitted.combine == "sum":
        abnormality = _abnormality_among_others(flows, scores, fitted)
    else:
        abnormality = _abnormality_among(normal, scores, fitted.combine)
    return [group.score for group in _all_groups(flows, abnormality, fitted)]


def _abnormality_among_others(flows: FlowTable, scores: np.ndarray, fitted: _Fit) -> np.ndarray:
    """Return how unusual each flow is among those of other groups."""
    numbers: dict[Key, int] = {}
    group = np.array([numbers.setdefault(key, len(numbers)) for key in _keys(flows, fitted)])
    n_lower, n_others = _n_as_low(np.sort(scores), scores), np.full(len(scores), len(scores))
    for rows in np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1]):
        n_lower[rows] -= _n_as_low(np.sort(scores[rows]), scores[rows])
        n_others[rows] -= len(rows)
    return _abnormality(n_lower + 1, n_others)


def _abnormality_among(normal: np.ndarray, scores: ArrayLike, combine: str) -> np.ndarray:
    """Return how unusual scores are among the sorted ones of normal flows."""
    scores = np.asarray(scores, dtype=np.float64)
    if combine == "sum":
        return _abnormality(_n_as_low(normal, scores) + 1, len(normal))
    return _abnormality(_place_among(normal, scores), len(normal))


def _n_as_low(normal: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return how many of the sorted normal scores are as low as each score."""
    return np.searchsorted(normal, scores, side="right")


def _place_among(normal: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the place of each score among the sorted normal ones; without steps, as steps would be ties.

    It is interpolated between normal scores. Below the lowest it falls from 1 towards 0.
    """
    n_lower = _n_as_low(normal, scores)
    below, above = normal[np.maximum(n_lower - 1, 0)], normal[np.minimum(n_lower, len(normal) - 1)]
    # Halves, as the difference of two finite numbers may be infinite.
    gap = above / 2 - below / 2
    share = np.divide(scores / 2 - below / 2, gap, out=np.zeros_like(gap), where=gap > 0)
    place = n_lower + 1 + share * (_n_as_low(normal, above) - n_lower)
    spread = normal[-1] / 2 - normal[0] / 2 or 1.0
    beyond = spread / (spread + np.maximum(normal[0] / 2 - scores / 2, 0.0))
    return np.where(n_lower > 0, place, np.maximum(beyond, LEAST_PLACE))


def _abnormality(place: np.ndarray, n_normal: int | np.ndarray) -> np.ndarray:
    # Not minus the logarithm of the share: where all normal flows score as low, 0 and not -0.
    return np.log((n_normal + 1) / place) ** POWER


def _thinned(ordered: np.ndarray) -> np.ndarray:
    """Return at most `MAX_NORMAL_SCORES` of sorted scores, evenly spaced."""
    if len(ordered) <= MAX_NORMAL_SCORES:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, MAX_NORMAL_SCORES).round().astype(int)]
