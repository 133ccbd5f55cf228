# SPDX-License-Identifier: BSD-3-Clause
"""What is reported: flagged flows, and alarms, each of which is an incident of one or more of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sklearn_docids._text import PROTOCOL_NAMES

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable
    from sklearn_docids.detectors import ViewReason


@dataclass(frozen=True, slots=True, eq=False)
class FlaggedFlow:
    """A flow that scores below the threshold, and all that outputs say of it."""

    flow: FlowTable  # of one row, with its bytes
    capture: str  # name of the file or stream
    score: float  # the lower, the more abnormal
    threshold: float
    p_value: float  # how often normal flows of the calibration score as low; NaN where nothing is known of them
    reasons: tuple[ViewReason, ...]  # of a detector with views, the most unusual first


@dataclass(frozen=True, slots=True, eq=False)
class Alarm:
    """An incident as it stands: flagged flows of one channel or host that are not far from each other in time."""

    id: str  # the same whenever the incident is reported
    level: str  # "channel": source, destination, port and protocol; "host": the source
    time_first: int  # beginning of its first flagged flow, ns since 1970
    time_last: int  # beginning of the last one
    n_flows: int
    n_channels: int
    most_abnormal: FlaggedFlow
    n_reported: int = 1  # how often it has come up, this time included; 0: it never has

    @property
    def who(self) -> str:
        """Source and, of a channel, destination."""
        flow = self.most_abnormal.flow
        source, destination, port = str(flow.src_ip[0]), str(flow.dst_ip[0]), int(flow.dst_port[0])
        if self.level == "host":
            return source
        name = PROTOCOL_NAMES[int(flow.protocol[0])]
        return f"{source} -> {f'[{destination}]' if ':' in destination else destination}:{port}/{name}"
