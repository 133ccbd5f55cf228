# SPDX-License-Identifier: BSD-3-Clause
"""Verdicts on flows as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sklearn_docids._alarms.collect import Scored, Scorer
from sklearn_docids.capture.flows import FlowRows
from sklearn_docids.capture.table import FlowTable, joined

if TYPE_CHECKING:
    from sklearn_docids._alarms.allow import AllowList

# So many of the last flows are shown again to a detector that begins anew, as their number is part of its verdicts.
N_REMEMBERED = 16_384


class Judge:
    """A detector, with what it remembers of the flows before."""

    def __init__(self, detector: Any, allow_list: AllowList | None = None):
        self.detector = detector
        self._scorer = Scorer(detector, allow_list)
        self._last: list[FlowRows] = []

    @property
    def allow_list(self) -> AllowList | None:
        """The rules that hide flagged flows."""
        return self._scorer.allow_list

    @allow_list.setter
    def allow_list(self, allow_list: AllowList | None) -> None:
        self._scorer.allow_list = allow_list

    def judge(self, flows: FlowTable) -> Scored:
        """Return what is found about flows."""
        self._last.append(flows.rows)
        while sum(map(len, self._last[1:])) >= N_REMEMBERED:
            del self._last[0]
        return self._scorer.score(flows)

    def remember(self, flows: FlowTable) -> None:
        """Learn of flows that were judged before."""
        allow_list, self.allow_list = self.allow_list, None
        self.judge(flows)
        self.allow_list = allow_list

    def last(self) -> FlowRows | None:
        """Return the last flows judged."""
        return joined(self._last) if self._last else None
