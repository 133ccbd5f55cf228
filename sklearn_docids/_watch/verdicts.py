# SPDX-License-Identifier: BSD-3-Clause
"""Verdicts on flows as they come."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_docids._alarms.alarm import FlaggedFlow
from sklearn_docids._meta import takes_tables
from sklearn_docids.capture.flows import FlowRows
from sklearn_docids.capture.table import FlowTable, joined

# So many of the last flows are shown to a detector again that begins anew, as their number is part of its verdicts.
N_REMEMBERED = 16_384


class Judge:
    """A detector, with what it remembers of the flows before."""

    def __init__(self, detector: Any):
        self.detector = detector
        self.threshold = float(detector.offset_)
        self._stream = detector.stream() if takes_tables(detector) else None
        self._normal = np.sort(getattr(detector, "calibration_scores_", np.zeros(0)))
        self._last: list[FlowRows] = []

    def judge(self, flows: FlowTable) -> tuple[np.ndarray, list[FlaggedFlow]]:
        """Return the scores of flows, and those that are flagged."""
        self._remember(flows.rows)
        if self._stream is None:
            scores = self.detector.score_samples(flows.X)
            return scores, [self._flagged(flows, scores, row, ()) for row in self._below(scores)]
        judged = self._stream.judge(flows)
        scores = judged.scores
        return scores, [self._flagged(flows, scores, row, tuple(judged.reasons(row))) for row in self._below(scores)]

    def last(self) -> FlowRows | None:
        """Return the last flows judged."""
        return joined(self._last) if self._last else None

    def remember(self, flows: FlowTable) -> None:
        """Learn of flows that were judged before."""
        self._remember(flows.rows)
        if self._stream is not None:
            self._stream.judge(flows)

    def _remember(self, rows: FlowRows) -> None:
        self._last.append(rows)
        while sum(map(len, self._last[1:])) >= N_REMEMBERED:
            del self._last[0]

    def _below(self, scores: np.ndarray) -> list[int]:
        return np.flatnonzero(scores < self.threshold).tolist()

    def _flagged(self, flows: FlowTable, scores: np.ndarray, row: int, reasons: tuple[Any, ...]) -> FlaggedFlow:
        name = flows.captures[int(flows.capture[row])]
        # A copy: an incident may keep it for hours, and must not keep all others with it.
        flow = FlowTable(flows.rows[row : row + 1].copy(), np.zeros(1, np.int64), [name], [])
        return FlaggedFlow(flow, name, float(scores[row]), self.threshold, self._p_value(scores[row]), reasons)

    def _p_value(self, score: float) -> float:
        n = len(self._normal)
        return (int(np.searchsorted(self._normal, score, side="right")) + 1) / (n + 1) if n else float("nan")
