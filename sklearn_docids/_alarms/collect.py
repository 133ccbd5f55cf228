# SPDX-License-Identifier: BSD-3-Clause
"""Flows are scored as they come, those that rules hide are counted, and incidents of the others become alarms."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sklearn_docids._alarms.alarm import Alarm, FlaggedFlow
from sklearn_docids._alarms.findings import HOUR_NS, Findings, HostFindings
from sklearn_docids._alarms.incidents import IncidentTracker
from sklearn_docids._meta import takes_tables

if TYPE_CHECKING:
    from sklearn_docids._alarms.allow import AllowList
    from sklearn_docids.capture.table import FlowTable
    from sklearn_docids.detectors import ViewReason
    from sklearn_docids.monitoring import DriftMonitor

# Of more incidents and hosts, the least abnormal are counted and not kept; of more scores, an even sample is.
MAX_KEPT, MAX_SCORES = 1000, 200_000
NORMAL, ABNORMAL, HIDDEN = "normal", "abnormal", "hidden"


@dataclass(frozen=True)
class Scored:
    """Flows with what was found about each."""

    flows: FlowTable
    scores: np.ndarray  # float64 (n_flows,): the lower, the more abnormal
    threshold: float
    p_values: np.ndarray  # float64 (n_flows,): how often normal flows score as low; NaN: unknown
    verdicts: np.ndarray  # str (n_flows,): "normal", "abnormal", or "hidden" by a rule
    reasons: Mapping[int, tuple[ViewReason, ...]] | None  # by row, of what is flagged; None: the detector has no views

    def flagged(self) -> list[FlaggedFlow]:
        """Return the abnormal flows in the order of time."""
        rows = np.flatnonzero(self.verdicts == ABNORMAL)
        rows = rows[np.argsort(self.flows.time_first[rows], kind="stable")]
        return [
            FlaggedFlow(
                self.flows[[row]], self.flows.captures[self.flows.capture[row]], float(self.scores[row]),
                self.threshold, float(self.p_values[row]), self.reasons[row] if self.reasons else (),
            )
            for row in rows.tolist()
        ]  # fmt: skip

    def visible(self) -> tuple[np.ndarray, FlowTable]:
        """Return scores and flows that no rule hides: what one hides is known, and says nothing of the rest."""
        rows = np.flatnonzero(self.verdicts != HIDDEN)
        return self.scores[rows], self.flows[rows]

    def abnormal(self) -> Scored:
        """Return the abnormal flows alone."""
        rows = np.flatnonzero(self.verdicts == ABNORMAL)
        reasons = None if self.reasons is None else {n: self.reasons[row] for n, row in enumerate(rows.tolist())}
        return Scored(
            self.flows[rows], self.scores[rows], self.threshold, self.p_values[rows], self.verdicts[rows], reasons
        )


class Scorer:
    """A detector that scores tables of flows one after the other, and remembers what it has seen if it can."""

    def __init__(self, detector: Any, allow_list: AllowList | None = None):
        self.detector = detector
        self.allow_list = allow_list
        self.hidden: Counter[str] = Counter()  # flagged flows that each rule hid
        self._stream = detector.stream() if takes_tables(detector) else None
        self._normal = np.sort(getattr(detector, "calibration_scores_", np.zeros(0)))

    def score(self, flows: FlowTable) -> Scored:
        """Score flows, and let rules hide some of those that are flagged."""
        scores, reasons_of = self._judged(flows)
        threshold = float(self.detector.offset_)
        rows = np.flatnonzero(scores < threshold).tolist()
        reasons = None if reasons_of is None else {row: tuple(reasons_of(row)) for row in rows}
        verdicts = np.full(len(flows), NORMAL, dtype="U8")
        verdicts[rows] = ABNORMAL
        if self.allow_list is not None and rows:
            views = None if reasons is None else [reasons[row][0].view if reasons[row] else "" for row in rows]
            rules = self.allow_list.hides(flows[rows], views=views)
            verdicts[np.array(rows)[rules >= 0]] = HIDDEN
            self.hidden.update(self.allow_list.rules[rule].label for rule in rules[rules >= 0])
        return Scored(flows, scores, threshold, self._p_values(scores), verdicts, reasons)

    def _judged(self, flows: FlowTable) -> tuple[np.ndarray, Callable[[int], list[ViewReason]] | None]:
        if self._stream is None:
            return self.detector.score_samples(flows.X), None
        judged = self._stream.judge(flows)
        return judged.scores, judged.reasons

    def _p_values(self, scores: np.ndarray) -> np.ndarray:
        """Return how often normal flows score as low: (1 + those that do) / (1 + all)."""
        if not len(self._normal):
            return np.full(len(scores), np.nan)
        return np.asarray((1 + np.searchsorted(self._normal, scores, side="right")) / (1 + len(self._normal)))


class Collector:
    """Adds up what is found in flows that come in pieces; memory does not grow with them.

    ``incidents`` holds parameters of `IncidentTracker`.
    """

    def __init__(
        self, findings: Findings, scorer: Scorer, incidents: Mapping[str, Any], drift: DriftMonitor | None = None
    ):
        self.findings = findings
        self._scorer = scorer
        self._tracker = IncidentTracker(**incidents, on_end=self._keep)
        self._drift = drift
        self._most_abnormal: list[tuple[float, int, Alarm]] = []
        self._n_seen = 0
        self._stride = 1
        self._scores: list[np.ndarray] = []

    def add(self, flows: FlowTable) -> tuple[Scored, list[Alarm]]:
        """Score flows; return what was found about each, and the alarms that came up."""
        scored = self._scorer.score(flows)
        self._count(scored)
        self._keep_scores(scored.scores)
        if self._drift is not None:
            self._drift.update(*scored.visible())
        flagged = scored.flagged()
        self._count_hosts(scored)
        alarms = self._tracker.update(flagged)
        by_hour = self.findings.alarms_by_hour
        for alarm in alarms:
            hour = alarm.time_last // HOUR_NS * HOUR_NS
            by_hour[hour] = by_hour.get(hour, 0) + 1
        return scored, alarms

    def _keep(self, incident: Alarm) -> None:
        """Keep an incident that is over, if it is among the most abnormal ones."""
        self.findings.n_incidents += 1
        entry = (-incident.most_abnormal.score, -self.findings.n_incidents, incident)
        put = heapq.heappush if len(self._most_abnormal) < MAX_KEPT else heapq.heappushpop
        put(self._most_abnormal, entry)

    def finish(self) -> Findings:
        """End what is still going on; return all that was found."""
        found = self.findings
        for incident in self._tracker.close():
            self._keep(incident)
        found.alarms = [incident for *_, incident in sorted(self._most_abnormal, reverse=True)]
        found.n_alarms, found.n_over_budget = self._tracker.n_alarms, self._tracker.n_over_budget
        found.hosts = dict(sorted(found.hosts.items(), key=lambda each: each[1].score))
        found.scores = np.concatenate([*self._scores, np.zeros(0)])
        found.hidden = dict(self._scorer.hidden)
        if self._drift is not None and found.n_flows:
            found.drift, found.drifted = self._drift.describe(), self._drift.drifted_
        return found

    def _count(self, scored: Scored) -> None:
        found, flows = self.findings, scored.flows
        is_flagged = scored.verdicts == ABNORMAL
        found.n_flows += len(flows)
        found.n_flagged += int(is_flagged.sum())
        found.n_midstream += int((is_flagged & flows.midstream).sum())
        if len(flows):
            found.time_first = min(found.time_first or int(flows.time_first.min()), int(flows.time_first.min()))
            found.time_last = max(found.time_last or 0, int(flows.time_last.max()))
        hours, numbers = np.unique(flows.time_first // HOUR_NS * HOUR_NS, return_counts=True)
        for hour, number in zip(hours.tolist(), numbers.tolist(), strict=True):
            found.flows_by_hour[hour] = found.flows_by_hour.get(hour, 0) + number

    def _count_hosts(self, scored: Scored) -> None:
        """Count the flows of each source that has flagged ones, or had some before."""
        hosts, is_flagged = self.findings.hosts, scored.verdicts == ABNORMAL
        sources, number = np.unique(scored.flows.src_ip, return_inverse=True)
        n_flows = np.bincount(number, minlength=len(sources))
        n_flagged = np.bincount(number[is_flagged], minlength=len(sources))
        lowest = np.zeros(len(sources))
        np.minimum.at(lowest, number[is_flagged], scored.scores[is_flagged])
        for place, source in enumerate(sources.tolist()):
            if n_flagged[place] or source in hosts:
                host = hosts.setdefault(source, HostFindings())
                host.n_flows += int(n_flows[place])
                host.n_flagged += int(n_flagged[place])
                host.score = min(host.score, float(lowest[place]))
        if len(hosts) > 2 * MAX_KEPT:
            kept = heapq.nsmallest(MAX_KEPT, hosts, key=lambda name: hosts[name].score)
            self.findings.hosts = {name: hosts[name] for name in kept}

    def _keep_scores(self, scores: np.ndarray) -> None:
        """Keep every so many-th score, so that all parts of the traffic have the same share."""
        first = -self._n_seen % self._stride
        self._n_seen += len(scores)
        self._scores.append(scores[first :: self._stride])
        if sum(map(len, self._scores)) > MAX_SCORES:
            self._scores = [np.concatenate(self._scores)[::2]]
            self._stride *= 2
