# SPDX-License-Identifier: BSD-3-Clause
"""Flagged flows as they come to alarms: each incident at its first flow and at each tenfold of its flows."""

from __future__ import annotations

import hashlib
import math
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import itemgetter

from sklearn_docids._alarms.alarm import Alarm, FlaggedFlow
from sklearn_docids._incidents import DAY, DAY_NS, DESTINATION, LEVELS, SOURCE
from sklearn_docids.capture.kernels import FLOW_DTYPE

NAMES = list(FLOW_DTYPE.names or ())
TIME = NAMES.index("time_first")
source_of, destination_of = (itemgetter(*map(NAMES.index, columns)) for columns in (SOURCE, DESTINATION))
# Keys are bytes: Python hashes those with a secret, so that no traffic can make them collide.
SOURCE_KEY, DESTINATION_KEY = struct.Struct(">qBQQ"), struct.Struct(">QQHH")
# How many different channels are remembered in all, for each incident that may be open.
MAX_CHANNELS_KNOWN = 10


@dataclass(slots=True)
class _Incident:
    """An incident that is open."""

    id: str
    level: str
    source: bytes
    time_first: int
    time_last: int
    most_abnormal: FlaggedFlow
    n_flows: int = 0
    n_reported: int = 0
    next_report: int = 1  # with so many flows
    channels: set[bytes] = field(default_factory=set)  # of a host

    def alarm(self) -> Alarm:
        n_channels = max(1, len(self.channels))
        return Alarm(
            self.id, self.level, self.time_first, self.time_last, self.n_flows, n_channels, self.most_abnormal,
            self.n_reported,
        )  # fmt: skip


class IncidentTracker:
    """Incidents of a stream of flagged flows, and the alarms that come of them.

    A flagged flow belongs to the open incident of its channel if it begins within ``window`` of the incident's last
    flow, or before it, as after a clock was set back; incidents end with their day in UTC. Of flows in the order of
    time these are the incidents of `find_incidents`. An incident comes up at its first flow, and again with ten,
    hundred, and so on.

    Parameters
    ----------
    level : {"channel", "host"}, default="channel"
        ``"channel"``: flows of one source, destination, destination port and protocol. ``"host"``: of one source.
    window : float, default=3600.0
        Seconds, up to 86,400.
    max_channels : int or float, default=10
        Open incidents of channels that a source may have; its further channels are one incident of the host. A scan is
        then so many alarms and one, and not 65,535. ``math.inf``: any number.
    per_day : float, default=None
        Budget: alarms per day of the traffic's time. As many may come up at once, and they are granted anew evenly.
        Beyond it comes up what is more abnormal than every alarm of the last 24 h; the others are counted. None: all.
    max_open : int, default=100_000
        Open incidents that are remembered. One more ends the one that is idle for longest.
    on_end : callable, default=None
        Is called with each incident as it ended, except by `close`.

    Attributes
    ----------
    n_alarms : int
        Alarms that came up.
    n_incidents : int
        Incidents that began.
    n_over_budget : int
        Alarms that did not come up.
    n_evicted : int
        Incidents that ended to make room.
    """

    def __init__(
        self,
        *,
        level: str = "channel",
        window: float = 3600.0,
        max_channels: float = 10,
        per_day: float | None = None,
        max_open: int = 100_000,
        on_end: Callable[[Alarm], object] | None = None,
    ):
        _check(level, window, max_channels, per_day, max_open)
        self.n_alarms: int = 0
        self.n_incidents: int = 0
        self.n_over_budget: int = 0
        self.n_evicted: int = 0
        self._level = level
        self._window = round(window * 1e9)
        self._max_channels = max_channels
        self._max_open = max_open
        self._on_end = on_end
        self._budget = _Budget(per_day) if per_day is not None else None
        self._open: OrderedDict[bytes, _Incident] = OrderedDict()  # the longest idle first
        self._channels_of: dict[bytes, OrderedDict[bytes, None]] = {}  # by source; likewise
        self._n_known = 0  # channels, of all hosts
        self._last_time = -(2**63)

    def update(self, flagged: Iterable[FlaggedFlow]) -> list[Alarm]:
        """Take the next flagged flows, in any order, and return the alarms that come up, in the order of time."""
        flows = [(flow.flow.rows.records[0].item(), flow) for flow in flagged]
        flows.sort(key=lambda pair: pair[0][TIME])
        alarms = (self._add(record, flow) for record, flow in flows)
        return [alarm for alarm in alarms if alarm is not None]

    def close(self) -> list[Alarm]:
        """End all open incidents and return them as they stand, in the order of time."""
        alarms = [incident.alarm() for incident in self._open.values()]
        self._open.clear()
        self._channels_of.clear()
        self._n_known = 0
        return sorted(alarms, key=lambda alarm: alarm.time_first)

    def _add(self, record: tuple[int, ...], flagged: FlaggedFlow) -> Alarm | None:
        time = record[TIME]
        source = SOURCE_KEY.pack(time // DAY_NS, *source_of(record))
        channel = source + DESTINATION_KEY.pack(*destination_of(record))
        self._end_idle(time)
        key = self._key(source, channel, time)
        incident = self._open.get(key) or self._begun(key, source, time, flagged)
        self._touch(key, incident)
        incident.n_flows += 1
        incident.time_first = min(incident.time_first, time)
        incident.time_last = max(incident.time_last, time)
        if flagged.score < incident.most_abnormal.score:
            incident.most_abnormal = _alone(flagged)
        if key == source and self._n_known < MAX_CHANNELS_KNOWN * self._max_open:
            self._n_known += channel not in incident.channels
            incident.channels.add(channel)
        return self._report(incident, time) if incident.n_flows == incident.next_report else None

    def _key(self, source: bytes, channel: bytes, time: int) -> bytes:
        """Return the key of the incident that a flow belongs to, open or yet to begin."""
        if self._level == "channel" and (self._is_open(channel, time) or not self._is_full(source, time)):
            return channel
        self._is_open(source, time)
        return source

    def _is_open(self, key: bytes, time: int) -> bool:
        """Return whether an incident goes on; one that a flow would come too late for is ended."""
        incident = self._open.get(key)
        if incident is None:
            return False
        if time - incident.time_last > self._window:
            self._end(key)
            return False
        return True

    def _is_full(self, source: bytes, time: int) -> bool:
        while len(keys := self._channels_of.get(source, ())) >= self._max_channels:
            if self._is_open(next(iter(keys)), time):
                return True
        return False

    def _touch(self, key: bytes, incident: _Incident) -> None:
        self._open.move_to_end(key)
        if incident.level == "channel":
            self._channels_of[incident.source].move_to_end(key)

    def _begun(self, key: bytes, source: bytes, time: int, flagged: FlaggedFlow) -> _Incident:
        if len(self._open) >= self._max_open:
            self._end(next(iter(self._open)))
            self.n_evicted += 1
        # The same in each run over the same traffic.
        name = hashlib.blake2b(key + struct.pack(">q", time), digest_size=8).hexdigest()
        level = "host" if key == source else "channel"
        incident = _Incident(name, level, source, time, time, _alone(flagged))
        self._open[key] = incident
        if level == "channel":
            self._channels_of.setdefault(source, OrderedDict())[key] = None
        self.n_incidents += 1
        return incident

    def _end_idle(self, time: int) -> None:
        """End incidents that no flow in time can belong to any more; one wrong clock alone ends none."""
        now, self._last_time = min(time, self._last_time), time
        while self._open:
            key, incident = next(iter(self._open.items()))
            if now - incident.time_last <= self._window:
                return
            self._end(key)

    def _end(self, key: bytes) -> None:
        incident = self._open.pop(key)
        self._n_known -= len(incident.channels)
        if incident.level == "channel":
            keys = self._channels_of[incident.source]
            del keys[key]
            if not keys:
                del self._channels_of[incident.source]
        if self._on_end is not None:
            self._on_end(incident.alarm())

    def _report(self, incident: _Incident, time: int) -> Alarm | None:
        incident.next_report *= 10
        if self._budget is not None and not self._budget.grants(time, incident.most_abnormal.score):
            self.n_over_budget += 1
            return None
        incident.n_reported += 1
        self.n_alarms += 1
        return incident.alarm()


class _Budget:
    """Alarms that may come up: a bucket that holds those of a day, and is refilled evenly."""

    def __init__(self, per_day: float):
        self._per_day = per_day
        self._capacity = max(1.0, per_day)
        self._left = self._capacity
        self._now: int | None = None
        # Alarms of the last 24 h, but for those before a more abnormal one: the first is the most abnormal.
        self._reported: deque[tuple[int, float]] = deque()

    def grants(self, time: int, score: float) -> bool:
        now = self._advanced(time)
        if self._left < 1 and self._reported and not score < self._reported[0][1]:
            return False
        self._left = max(0.0, self._left - 1)
        while self._reported and self._reported[-1][1] >= score:
            self._reported.pop()
        self._reported.append((now, score))
        return True

    def _advanced(self, time: int) -> int:
        """Refill the bucket, and return the time."""
        if self._now is None or time < self._now - DAY_NS:  # a clock was set back, or one flow's was wrong
            self._now = time
            self._reported.clear()
        passed = max(0, time - self._now)
        self._left = min(self._capacity, self._left + self._per_day * passed / DAY_NS)
        self._now += passed
        while self._reported and self._reported[0][0] <= self._now - DAY_NS:
            self._reported.popleft()
        return self._now


def _alone(flagged: FlaggedFlow) -> FlaggedFlow:
    """Return a flow whose arrays are its own: a slice would keep those of all flows in memory."""
    if flagged.flow.rows.records.base is None:
        return flagged
    return FlaggedFlow(
        flagged.flow[[0]], flagged.capture, flagged.score, flagged.threshold, flagged.p_value, flagged.reasons
    )


def _check(level: str, window: float, max_channels: float, per_day: float | None, max_open: int) -> None:
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is none of {', '.join(map(repr, LEVELS))}")
    if not 0 < window <= DAY:
        raise ValueError(
            f"window={window!r} is not more than 0 and at most {DAY:.0f} seconds: incidents end with the day"
        )
    if not max_channels >= 1:
        raise ValueError(f"max_channels={max_channels!r} is not at least 1")
    if per_day is not None and not 0 < per_day < math.inf:
        raise ValueError(f"per_day={per_day!r} is not a number of alarms more than 0; None sets no limit")
    if not max_open >= 1:
        raise ValueError(f"max_open={max_open!r} is not at least 1")
