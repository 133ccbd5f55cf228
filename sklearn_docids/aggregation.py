# SPDX-License-Identifier: BSD-3-Clause
"""From scores of flows to scores of channels and hosts.

A rare normal flow comes once; a beacon comes back, and a scan fans out. What a single flow does not give away, the
flows of a channel (source, destination, destination port, protocol) or of a host (a source) do together.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sklearn_docids._thresholds import conformal_threshold

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

LEVELS = ("channel", "host")
# Scores of normal flows that are kept, evenly spaced among the sorted ones.
MAX_NORMAL_SCORES = 100_000
# Above 1, so that few very unusual flows outweigh many a little unusual ones, of which a busy channel has more.
POWER = 1.5
# The clock of a stream is the median window of so many flows: a few wrong time stamps neither stop nor hasten it.
N_CLOCK_FLOWS = 9
Key = tuple[Any, ...]


class TooFewGroupsError(ValueError):
    """There are too few normal channels or hosts for the false-alarm rate asked for."""


@dataclass
class FlowGroup:
    """Flows of one channel or host in one window.

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
        Number of the window: its beginning is ``window`` times the length of a window after 1970-01-01.
    """

    src_ip: str
    dst_ip: str | None
    dst_port: int | None
    protocol: int | None
    window: int
    n_flows: int = 0
    time_first: int = 0
    time_last: int = 0
    most_abnormal: int = -1
    score: float = 0.0
    _highest: list[float] = field(default_factory=list, repr=False)
    _by_channel: dict[Key, float] = field(default_factory=dict, repr=False)
    _abnormality: float = field(default=-1.0, repr=False)

    @property
    def n_channels(self) -> int:
        """Number of different channels, 1 for a channel."""
        return max(1, len(self._by_channel))

    def _add(self, row: int, time: int, abnormality: float) -> None:
        self.time_first = time if not self.n_flows else min(self.time_first, time)
        self.time_last = max(self.time_last, time)
        self.n_flows += 1
        if abnormality > self._abnormality:
            self._abnormality, self.most_abnormal = abnormality, row


class FlowAggregator(BaseEstimator):
    """Score channels or hosts by the scores of their flows.

    The score of a flow becomes its abnormality: of the share of normal flows that score as low, the negative logarithm
    to the power of 1.5. A channel is as abnormal as the sum over its ``n_highest`` most abnormal flows in a window. A
    host is as abnormal as the sum over all its channels of the most abnormal flow of each: many channels that are each
    a little unusual add up.

    Flows may come all at once (`score`) or as they end (`update`), with bounded memory.

    Parameters
    ----------
    level : {"channel", "host"}, default="channel"
        ``"channel"``: flows of one source, destination, destination port and protocol. ``"host"``: of one source.
    window : float, default=3600.0
        Seconds, at least 1e-9; a flow belongs to the window in which it begins. Flows of a stream come out as they end,
        so a window shorter than the sampler's ``idle_timeout`` may close before its last flows are there, and they
        make a group of their own.
    n_highest : int, default=50
        Most abnormal flows of a channel that count. This and the power were chosen on the validation part of the
        testbed (docs/benchmarks.md).
    false_alarm_rate : float or None, default=0.01
        Share of normal channels or hosts per window that may be flagged, in (0, 0.5]. None: no threshold.
    max_groups : int, default=100_000
        Most channels that `update` holds at a time, in all hosts together with ``level="host"``. When there are more,
        the groups of the oldest windows, a tenth of all or more, come out early, and what follows of them counts as
        another group.

    Attributes
    ----------
    normal_scores_ : ndarray of float64
        Sorted scores of normal flows, at most 100,000.
    offset_ : float
        Threshold: a group that scores below it is abnormal; minus infinity without ``false_alarm_rate``.
    n_evicted_ : int
        Groups that came out early in `update` since the last `flush`.

    See Also
    --------
    sklearn_docids.DOCIDSDetector : Scores the flows.

    Notes
    -----
    The threshold is a conformal one: of n calibration groups and a new one, drawn alike, the new one is beyond the k-th
    lowest with probability k / (n + 1) at most. For it, flows of each calibration group are ranked among those of all
    others, as flows of a new group are. Windows of one host are alike only as far as its work is.

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
    >>> groups = aggregator.score(flows, scores)
    >>> sum(group.n_flows for group in groups)
    40
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "level": [StrOptions(set(LEVELS))],
        "window": [Interval(Real, 1e-9, None, closed="left")],
        "n_highest": [Interval(Integral, 1, None, closed="left")],
        "false_alarm_rate": [Interval(Real, 0, 0.5, closed="right"), None],
        "max_groups": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        level: str = "channel",
        *,
        window: float = 3600.0,
        n_highest: int = 50,
        false_alarm_rate: float | None = 0.01,
        max_groups: int = 100_000,
    ):
        self.level = level
        self.window = window
        self.n_highest = n_highest
        self.false_alarm_rate = false_alarm_rate
        self.max_groups = max_groups

    def fit(self, flows: FlowTable, scores: Any) -> FlowAggregator:
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
        ValueError
            A parameter or a score is unusable, there are no flows, or too few groups for ``false_alarm_rate``.
        """
        self._validate_params()
        scores = _checked(flows, scores)
        if not len(scores):
            raise ValueError("there are no flows to calibrate with")
        ordered = np.sort(scores)
        if len(ordered) > MAX_NORMAL_SCORES:
            ordered = ordered[np.linspace(0, len(ordered) - 1, MAX_NORMAL_SCORES).round().astype(int)]
        offset = -math.inf
        if self.false_alarm_rate is not None:
            live = self._no_groups(sys.maxsize)
            list(live.add(flows, self._abnormality_among_others(flows, scores), closes=False))
            offset = self._threshold([group.score for group in live.close(live.groups)])
        self.normal_scores_, self.offset_, self._live = ordered, offset, self._no_groups(self.max_groups)
        return self

    def _abnormality_among_others(self, flows: FlowTable, scores: np.ndarray) -> np.ndarray:
        """Return how unusual each flow is among those of other groups."""
        numbers: dict[Key, int] = {}
        keys = _keys(flows, self.level, self._window_ns)
        group = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
        lower, n_others = _as_low(np.sort(scores), scores), np.full(len(scores), len(scores))
        for rows in np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1]):
            lower[rows] -= _as_low(np.sort(scores[rows]), scores[rows])
            n_others[rows] -= len(rows)
        return _abnormality(lower, n_others)

    def score(self, flows: FlowTable, scores: Any) -> list[FlowGroup]:
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
            The most abnormal first. ``score``: the lower, the more abnormal, at most 0; ``src_ip``, ``dst_ip``,
            ``dst_port``, ``protocol``: the channel, or the host (its other fields are None); ``time_first``,
            ``time_last``: beginning of its first and last flow, ns since 1970-01-01 UTC; ``n_flows``; ``n_channels``;
            ``most_abnormal``: number of its most abnormal flow in ``flows``.

        Raises
        ------
        ValueError
            A score is not finite, or there is not one for each flow.
        """
        check_is_fitted(self)
        live = self._no_groups(sys.maxsize)
        groups = list(live.add(flows, self.abnormality(_checked(flows, scores)), closes=False))
        return sorted([*groups, *live.close(live.groups)], key=lambda group: group.score)

    def update(self, flows: FlowTable, scores: Any) -> list[FlowGroup]:
        """Take more flows of a stream; return the groups whose window is over.

        Parameters
        ----------
        flows : FlowTable
            Flows, roughly in the order of time: a window is over when the next one is, by the median of the last nine
            flows, which a few wrong time stamps do not move.
        scores : array-like of shape (n_flows,)
            Their scores: the lower, the more abnormal.

        Returns
        -------
        list of FlowGroup
            Groups that are done, as in `score`; ``most_abnormal`` is the number of the flow in the call that brought
            it.

        Raises
        ------
        ValueError
            A score is not finite, or there is not one for each flow.
        """
        check_is_fitted(self)
        return list(self._live.add(flows, self.abnormality(_checked(flows, scores)), closes=True))

    def flush(self) -> list[FlowGroup]:
        """Return the groups that are still open, at the end of a stream.

        Returns
        -------
        list of FlowGroup
            As in `score`.
        """
        check_is_fitted(self)
        groups = sorted(self._live.close(self._live.groups), key=lambda group: group.score)
        self._live = self._no_groups(self.max_groups)
        return groups

    def abnormality(self, scores: Any) -> np.ndarray:
        """Return how unusual scores of flows are: what channels and hosts add up.

        Parameters
        ----------
        scores : array-like of shape (n_flows,)
            Scores of flows: the lower, the more abnormal.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            Negative natural logarithm, to the power of 1.5, of the share of normal flows that score as low; at least 0.
        """
        check_is_fitted(self)
        lower = _as_low(self.normal_scores_, np.asarray(scores, dtype=np.float64))
        return _abnormality(lower, len(self.normal_scores_))

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether there are normal scores to compare with."""
        return hasattr(self, "offset_")

    @property
    def n_evicted_(self) -> int:
        """Groups that came out early in `update` since the last `flush`."""
        return self._live.n_evicted

    def _no_groups(self, max_groups: int) -> _LiveGroups:
        return _LiveGroups(self.level, self._window_ns, self.n_highest, max_groups)

    @property
    def _window_ns(self) -> int:
        return round(self.window * 1e9)

    def _threshold(self, scores: list[float]) -> float:
        needed = math.ceil(1 / float(self.false_alarm_rate or 1) - 1e-9) - 1
        if len(scores) < needed:
            raise TooFewGroupsError(
                f"false_alarm_rate={self.false_alarm_rate} needs at least {needed} normal {self.level}s, but in "
                f"windows of {self.window:g} s there are {len(scores)}: give more normal traffic, a shorter window, a "
                "higher rate, or None"
            )
        return conformal_threshold(np.array(scores), float(self.false_alarm_rate or 1))


class _LiveGroups:
    """Groups whose window is not over."""

    def __init__(self, level: str, window_ns: int, n_highest: int, max_groups: int):
        self.level = level
        self.window_ns = window_ns
        self.n_highest = n_highest
        self.max_groups = max_groups
        self.groups: dict[Key, FlowGroup] = {}
        self.n_channels = 0
        self.n_evicted = 0
        self.recent: deque[int] = deque(maxlen=N_CLOCK_FLOWS)
        self.now = -(2**63)

    def add(self, flows: FlowTable, abnormality: np.ndarray, *, closes: bool) -> Iterator[FlowGroup]:
        """Add flows; yield the groups that are over, if ``closes``, and those for which there is no room."""
        columns = (flows.dst_ip, flows.dst_port, flows.protocol, flows.time_first, abnormality)
        keyed = zip(_keys(flows, self.level, self.window_ns), *(column.tolist() for column in columns), strict=True)
        for row, (key, *channel, time, value) in enumerate(keyed):
            if closes and self._moves_on(key[0]):
                # Flows come out as they end, those that began before among them: one more window is waited for.
                yield from self.close([key for key in self.groups if key[0] < self.now - 1])
            self._add_one(key, tuple(channel), time, row, value)
            if self.n_channels > self.max_groups:
                evicted = self.close(self._oldest())
                self.n_evicted += len(evicted)
                yield from evicted

    def _moves_on(self, window: int) -> bool:
        """Take the window of one more flow; return whether the clock has another window now."""
        before = self.now
        self.recent.append(window)
        self.now = sorted(self.recent)[(len(self.recent) - 1) // 2]
        return self.now != before

    def _oldest(self) -> list[Key]:
        """Return the groups of the oldest windows: a tenth of the channels, so that looking for them seldom happens."""
        keys, n_left = sorted(self.groups, key=lambda key: key[0]), 0.9 * self.max_groups
        n_channels = self.n_channels
        for place, key in enumerate(keys):
            if n_channels <= n_left and key[0] != keys[place - 1][0]:
                return keys[:place]
            n_channels -= self.groups[key].n_channels
        return keys

    def _add_one(self, key: Key, channel: Key, time: int, row: int, abnormality: float) -> None:
        group = self.groups.get(key)
        if group is None:
            window, src_ip, dst_ip, dst_port, protocol = key
            group = self.groups[key] = FlowGroup(src_ip, dst_ip, dst_port, protocol, window)
        group._add(row, time, abnormality)
        if self.level == "channel":
            self.n_channels += group.n_flows == 1
            push = heapq.heappush if len(group._highest) < self.n_highest else heapq.heappushpop
            push(group._highest, abnormality)
        else:
            self.n_channels += channel not in group._by_channel
            group._by_channel[channel] = max(abnormality, group._by_channel.get(channel, 0.0))

    def close(self, keys: Iterable[Key]) -> list[FlowGroup]:
        """Take groups out, with their scores."""
        groups = [self.groups.pop(key) for key in list(keys)]
        for group in groups:
            self.n_channels -= group.n_channels
            group.score = -math.fsum(group._highest or group._by_channel.values())
        return groups


def _keys(flows: FlowTable, level: str, window_ns: int) -> Iterator[Key]:
    """Return what tells the group of each flow from others: window, source, destination, port, protocol."""
    who = [flows.src_ip.tolist()]
    if level == "channel":
        who += [column.tolist() for column in (flows.dst_ip, flows.dst_port, flows.protocol)]
    else:
        who += [[None] * len(flows)] * 3
    return zip((flows.time_first // window_ns).tolist(), *who, strict=True)


def _as_low(normal: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return how many normal scores are as low as each score."""
    return np.searchsorted(normal, scores, side="right")


def _abnormality(n_lower: np.ndarray, n_normal: int | np.ndarray) -> np.ndarray:
    # Not minus the logarithm of the share: where all normal flows score as low, 0 and not -0.
    return np.log((n_normal + 1) / (n_lower + 1)) ** POWER


def _checked(flows: FlowTable, scores: Any) -> np.ndarray:
    scores = column_or_1d(scores, dtype=np.float64)
    check_consistent_length(flows.X, scores)
    assert_all_finite(scores, input_name="scores")
    return scores
