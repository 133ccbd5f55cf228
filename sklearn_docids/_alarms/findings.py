# SPDX-License-Identifier: BSD-3-Clause
"""All that was found in captures: what `docids score` prints and `docids report` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn_docids._alarms.alarm import Alarm

HOUR_NS = 3600 * 10**9
# A share of flagged flows beyond these tells of another network, or of a model that fits nothing.
MAX_SHARE, LEAST_FLOWS = 0.2, 100


@dataclass
class HostFindings:
    """Of the flows of one source."""

    n_flows: int = 0  # since the first one that was flagged
    n_flagged: int = 0
    score: float = 0.0  # the lowest


@dataclass
class Findings:
    """What became of the packets and flows of captures, and the alarms."""

    model: str  # name of the file
    captures: Sequence[str]
    threshold: float
    false_alarm_rate: float | None
    calibration_scores: np.ndarray  # of normal flows; empty where the model has none
    counters: Sequence[Mapping[str, int]] = ()
    ignored: Sequence[Mapping[str, int]] = ()
    n_flows: int = 0
    n_flagged: int = 0
    n_midstream: int = 0  # of those flagged
    hidden: dict[str, int] = field(default_factory=dict)  # flagged flows that each rule of the allow-list hid
    time_first: int | None = None  # ns since 1970
    time_last: int | None = None
    alarms: list[Alarm] = field(default_factory=list)  # incidents as they ended, the most abnormal ones first
    n_incidents: int = 0
    n_alarms: int = 0  # an incident that grows comes up again
    n_over_budget: int = 0  # alarms that did not come up
    flows_by_hour: dict[int, int] = field(default_factory=dict)  # beginning of the hour, ns since 1970
    alarms_by_hour: dict[int, int] = field(default_factory=dict)
    hosts: dict[str, HostFindings] = field(default_factory=dict)  # those with flagged flows, the most abnormal first
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))  # of all flows, or an even sample of them
    drift: str = ""  # what the test for drift says
    drifted: bool | None = None  # None: not tested


def doubt_of(found: Findings) -> str:
    """Return why so many flagged flows say more about the model than about the traffic; empty if they are few."""
    n_all = found.n_flagged + sum(found.hidden.values())
    if found.n_flows < LEAST_FLOWS or n_all <= MAX_SHARE * found.n_flows:
        return ""
    text = f"{n_all / found.n_flows:.0%} of the flows are abnormal to this model: a scan or a flood does that"
    if found.drifted is False:
        return f"{text}; most channels are as usual"
    return (
        f"{text}, and so does a model of another network, which docids calibrate fits to this one, or one that learned "
        "too little"
    )
