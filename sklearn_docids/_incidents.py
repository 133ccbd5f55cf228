# SPDX-License-Identifier: BSD-3-Clause
"""From flagged flows to incidents, which an analyst looks into one by one, and the threshold for so many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils._param_validation import Interval, StrOptions, validate_parameter_constraints

from sklearn_docids._thresholds import ROUNDING
from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.table import FlowTable

LEVELS = ("channel", "host")
# Columns of a record that tell a source from others, and a channel from others of its source.
SOURCE = ("ip_version", "src_high", "src_low")
DESTINATION = ("dst_high", "dst_low", "dst_port", "protocol")
DAY = 86_400.0  # s
DAY_NS = 86_400 * 10**9
# While no host begins a flow for longer, nobody captures, or a clock is wrong.
LONGEST_PAUSE_NS = 3600 * 10**9

_CONSTRAINTS: dict[str, list[Any]] = {
    "threshold": [Interval(Real, None, None, closed="both")],
    "level": [StrOptions(set(LEVELS))],
    # No incident goes on into the next day, so a longer window would do nothing.
    "window": [Interval(Real, 1e-9, DAY, closed="both")],
    "per_day": [Interval(Real, 0, None, closed="neither")],
    "per_hosts": [Interval(Real, 0, None, closed="neither")],
}


@dataclass(frozen=True, slots=True)
class Incident:
    """Flagged flows of one channel or host, not far from each other in time.

    Guide: :doc:`/tutorials/from-alarm-to-reason`.

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
    time_first, time_last : int
        Beginning of the first and of the last flagged flow, ns since 1970-01-01 UTC.
    n_flows : int
        Number of flagged flows.
    n_channels : int
        Number of different channels among them, 1 for a channel.
    rows : ndarray of int64, shape (n_flows,)
        Rows of the flagged flows in the table, in the order of time; read-only, and not compared by ``==``.
    most_abnormal : int
        Row of the most abnormal flow.
    score : float
        Score of that flow: the lower, the more abnormal.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.aggregation import Incident
    >>> incident = Incident(
    ...     "10.0.0.7", "10.9.9.9", 443, 6, time_first=0, time_last=120 * 10**9, n_flows=3, n_channels=1,
    ...     rows=np.array([4, 7, 9]), most_abnormal=7, score=-4.5,
    ... )
    >>> (incident.time_last - incident.time_first) / 1e9  # seconds
    120.0
    """

    src_ip: str
    dst_ip: str | None
    dst_port: int | None
    protocol: int | None
    time_first: int
    time_last: int
    n_flows: int
    n_channels: int
    rows: np.ndarray = field(compare=False)
    most_abnormal: int
    score: float


def find_incidents(
    flows: FlowTable, scores: ArrayLike, threshold: float, *, level: str = "channel", window: float = 3600.0
) -> list[Incident]:
    """Return the flagged flows as incidents.

    A flow that scores below the threshold is flagged. Flagged flows of one channel or host are one incident as long as
    each begins within ``window`` of the one before. An incident ends with its day in UTC: what goes on for days comes
    up once a day, and a report of a day is the same whether the table holds that day or a month.

    Guide: :doc:`/tutorials/from-alarm-to-reason`.

    Parameters
    ----------
    flows : FlowTable
        Flows, in any order.
    scores : array-like of shape (n_flows,)
        Their scores: the lower, the more abnormal.
    threshold : float
        What a flagged flow scores below, such as a detector's ``offset_`` or `incident_budget_threshold`.
    level : {"channel", "host"}, default="channel"
        ``"channel"``: flows of one source, destination, destination port and protocol. ``"host"``: of one source.
    window : float, default=3600.0
        Seconds, from 1e-9 to 86,400.

    Returns
    -------
    list of Incident
        The most abnormal first, of equals the earliest.

    Raises
    ------
    ValueError
        A parameter is unusable, ``flows`` is not a flow table, a score is not finite, or there is not one for each
        flow.

    See Also
    --------
    FlowAggregator : Scores all channels or hosts, of flagged and of other flows, in fixed windows.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler
    >>> from sklearn_docids.aggregation import find_incidents
    >>> from sklearn_docids.datasets import make_traffic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flows = FlowSampler().flows(make_traffic(folder, n_flows=40, random_state=0).train)
    >>> scores = -flows.X.mean(axis=1)  # any score: the lower, the more abnormal
    >>> incidents = find_incidents(flows, scores, sorted(scores)[5], level="host")
    >>> sum(incident.n_flows for incident in incidents)
    5
    >>> incidents[0].score == scores.min().item()
    True
    """
    _check("find_incidents", threshold=threshold, level=level, window=window)
    scores = checked_scores(flows, scores)
    flagged = np.flatnonzero(scores < threshold)
    if not len(flagged):
        return []
    order, begins = _sequence(flows.rows.records[flagged], level, window)
    rows = flagged[order]
    rows.setflags(write=False)
    parts = zip(_keys(flows[rows[begins]], level), _n_channels(flows, rows, begins), _split(rows, begins), strict=True)
    time = flows.time_first  # made anew each time it is asked for
    found = [_incident(time, scores, *part) for part in parts]
    return sorted(found, key=lambda incident: (incident.score, incident.time_first))


def incident_budget_threshold(
    flows: FlowTable,
    scores: ArrayLike,
    *,
    per_day: float = 10.0,
    per_hosts: float = 100.0,
    level: str = "channel",
    window: float = 3600.0,
) -> float:
    """Return the score threshold with which normal traffic yields no more incidents than can be looked into.

    It is the highest of the scores with which, as with every lower threshold, `find_incidents` finds no more than the
    budget in these flows. Beyond it there may be still higher ones that hold the budget, as more flagged flows join
    incidents into one; but a threshold at which every host is one long incident tells nothing.

    Guide: :doc:`/how-to/false-alarm-rate`.

    Parameters
    ----------
    flows : FlowTable
        Normal flows that the detector was not trained on, in any order.
    scores : array-like of shape (n_flows,)
        Their scores: the lower, the more abnormal.
    per_day : float, default=10.0
        Incidents in a day.
    per_hosts : float, default=100.0
        Of so many hosts.
    level : {"channel", "host"}, default="channel"
        As of `find_incidents`, as is ``window``.
    window : float, default=3600.0
        Seconds, from 1e-9 to 86,400.

    Returns
    -------
    float
        The threshold, one of the scores.

    Raises
    ------
    ValueError
        The budget is less than one incident in these flows, a parameter is unusable, ``flows`` is not a flow table, a
        score is not finite, or there is not one for each flow.

    Warns
    -----
    UserWarning
        With this threshold, no flow is flagged, or the budget is not used up by all of them.

    Notes
    -----
    Hosts are the different sources of the table. Its days are the time from its first flow to its last, without pauses
    of more than an hour in which no flow begins: nights between captures are not time in which no incident came up.

    The count is exact for these flows. For others it is an estimate, and a rough one if the budget is a few incidents.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler
    >>> from sklearn_docids.aggregation import find_incidents, incident_budget_threshold
    >>> from sklearn_docids.datasets import make_traffic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flows = FlowSampler().flows(make_traffic(folder, n_flows=200, random_state=0).train)
    >>> scores = -flows.X.mean(axis=1)
    >>> threshold = incident_budget_threshold(flows, scores, per_day=1000, window=60)
    >>> len(find_incidents(flows, scores, threshold, window=60))
    8
    """
    _check("incident_budget_threshold", per_day=per_day, per_hosts=per_hosts, level=level, window=window)
    scores = checked_scores(flows, scores)
    budget = _budget(flows, per_day, per_hosts)
    by_score = np.argsort(scores, kind="stable")
    ordered = scores[by_score]
    n_incidents = np.cumsum(_added(flows.rows.records, by_score, level, window))
    # Flows that score alike are flagged together.
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    too_many = last[n_incidents[last] > budget]
    if not len(too_many):
        warn_caller(
            f"the budget, {budget:.0f} incidents, is not used up: the threshold is the highest score of the table, and "
            "all flows that score lower are flagged; a smaller per_day or a shorter window would set a limit"
        )
        return float(ordered[-1])
    if too_many[0] == last[0]:
        warn_caller(
            f"the threshold flags no flow of the table: the {last[0] + 1} that share the lowest score, {ordered[0]:g}, "
            f"are {n_incidents[last[0]]} incidents, and the budget is {budget:.0f}; a larger per_day, or a score that "
            "tells them apart, would flag some"
        )
    return float(ordered[too_many[0]])


def checked_scores(flows: FlowTable, scores: ArrayLike) -> np.ndarray:
    """Return one finite score for each flow of a table."""
    if not isinstance(flows, FlowTable):
        raise ValueError(f"flows must be a FlowTable, as from FlowSampler.flows; got {type(flows).__name__}")
    checked: np.ndarray = column_or_1d(scores, dtype=np.float64)
    check_consistent_length(flows.X, checked)
    assert_all_finite(checked, input_name="scores")
    return checked


def _check(caller: str, **parameters: Any) -> None:
    constraints = {name: _CONSTRAINTS[name] for name in parameters}
    validate_parameter_constraints(constraints, parameters, caller_name=caller)


def _budget(flows: FlowTable, per_day: float, per_hosts: float) -> float:
    """Return how many incidents there may be."""
    sources = [flows.rows.records[name] for name in SOURCE]
    n_hosts = int(_changes(sources, np.lexsort(sources)).sum())
    # A clock that is wrong by centuries is further from others than signed numbers go.
    gaps = np.diff(np.sort(flows.time_first)).view(np.uint64)
    n_days = float(gaps[gaps <= LONGEST_PAUSE_NS].sum(dtype=np.float64)) / DAY_NS
    budget = per_day * n_days * n_hosts / per_hosts
    if budget < 1 - ROUNDING:
        raise ValueError(
            f"{per_day:g} incidents a day of {per_hosts:g} hosts are {budget:.2g} in these flows, {n_days:.2g} days of "
            f"{n_hosts} hosts: fewer than one cannot be counted; give more normal traffic or a larger per_day"
        )
    return float(np.floor(budget + ROUNDING))


def _sequence(records: np.ndarray, level: str, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of flows by channel or host, then by time, and which of them so ordered begin an incident."""
    time = records["time_first"]
    names = SOURCE if level == "host" else SOURCE + DESTINATION
    columns = [*(records[name] for name in names), time // DAY_NS]
    order = np.lexsort((time, *columns))
    begins = _changes(columns, order)
    begins[1:] |= np.diff(time[order]) > round(window * 1e9)
    return order, begins


def _changes(columns: Sequence[np.ndarray], order: np.ndarray) -> np.ndarray:
    """Return which entries, so ordered, differ from the one before in a column; the first does."""
    changes = np.zeros(len(order), dtype=bool)
    changes[:1] = True
    for column in columns:
        changes[1:] |= np.diff(column[order]) != 0
    return changes


def _split(rows: np.ndarray, begins: np.ndarray) -> list[np.ndarray]:
    return np.split(rows, np.flatnonzero(begins)[1:])


def _keys(flows: FlowTable, level: str) -> list[tuple[str, str | None, int | None, int | None]]:
    """Return source, destination, port and protocol of each flow, as far as the level tells them apart."""
    if level == "host":
        return [(src_ip, None, None, None) for src_ip in flows.src_ip.tolist()]
    columns = (flows.src_ip, flows.dst_ip, flows.dst_port, flows.protocol)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _n_channels(flows: FlowTable, rows: np.ndarray, begins: np.ndarray) -> list[int]:
    """Return the number of different channels of each incident."""
    number = np.cumsum(begins) - 1
    columns = [number, *(flows.rows.records[name][rows] for name in DESTINATION)]
    order = np.lexsort(columns)
    return np.bincount(number[order][_changes(columns, order)]).tolist()


def _incident(
    time: np.ndarray,
    scores: np.ndarray,
    key: tuple[str, str | None, int | None, int | None],
    n_channels: int,
    rows: np.ndarray,
) -> Incident:
    most_abnormal = int(rows[scores[rows].argmin()])
    return Incident(
        *key, int(time[rows[0]]), int(time[rows[-1]]), len(rows), n_channels, rows, most_abnormal,
        float(scores[most_abnormal]),
    )  # fmt: skip


def _added(records: np.ndarray, by_score: np.ndarray, level: str, window: float) -> np.ndarray:
    """Return how many incidents more there are with each flow, when flows are flagged in the order of their scores.

    1 if it is too far from both neighbours that are flagged already, 0 if it joins one, -1 if it joins two into one.
    """
    order, begins = _sequence(records, level, window)
    place = np.empty(len(order), dtype=np.int64)
    place[by_score] = np.arange(len(order))
    before, after = _flagged_neighbors(place[order].tolist(), begins.tolist())
    time, longest = records["time_first"][order], round(window * 1e9)
    near_before = (before >= 0) & (time - time[before] <= longest)
    near_after = (after >= 0) & (time[after] - time <= longest)
    were_near = (before >= 0) & (after >= 0) & (time[after] - time[before] <= longest)
    added = np.empty(len(order), dtype=np.int64)
    added[place[order]] = 1 - near_before.astype(int) - near_after + were_near
    return added


def _flagged_neighbors(places: list[int], begins: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest flow before and after each one that has a lower place, so is flagged sooner; -1: none has.

    Flows on both sides of one that begins an incident can never be in one: they are no neighbours.
    """
    before, after = [-1] * len(places), [-1] * len(places)
    # Flows that have met none with a lower place yet; their places go up.
    waiting: list[int] = []
    for number, place in enumerate(places):
        if begins[number]:
            waiting.clear()
        while waiting and places[waiting[-1]] > place:
            after[waiting.pop()] = number
        if waiting:
            before[number] = waiting[-1]
        waiting.append(number)
    return np.array(before, dtype=np.int64), np.array(after, dtype=np.int64)
