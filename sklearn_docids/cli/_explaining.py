# SPDX-License-Identifier: BSD-3-Clause
"""The most abnormal flows, and why: by view where the detector has views, and by byte where it looks at bytes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sklearn_docids._alarms.alarm import FlaggedFlow
from sklearn_docids._meta import takes_tables
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.cli._text import format_flows
from sklearn_docids.inspection import byte_reasons

if TYPE_CHECKING:
    from sklearn_docids.detectors import ViewReason
    from sklearn_docids.inspection import ByteReason


class Explained(NamedTuple):
    """A flow and why it is abnormal."""

    flow: str  # in a line
    views: list[ViewReason] | None  # None: the detector has no views
    bytes: list[ByteReason] | None  # None: the detector looks at no bytes


def explained(
    detector: Any,
    flows: FlowTable,
    n_flows: int,
    n_bytes: int,
    before: FlowTable | None = None,
    wanted: str | None = None,
) -> list[Explained]:
    """Return the most abnormal flows of a table, scored among those of ``before`` if the past of a flow matters.

    ``wanted`` names those to choose from.
    """
    has_views = takes_tables(detector)
    network = detector.detector_ if has_views else detector
    return [
        Explained(
            next(format_flows(each.flow, np.array([each.score]))).strip(),
            list(each.reasons) if has_views else None,
            None if network is None else _bytes_of(network, each.flow, n_bytes),
        )
        for each in most_abnormal(detector, flows, n_flows, before, wanted)
    ]


def most_abnormal(
    detector: Any, flows: FlowTable, n_flows: int, before: FlowTable | None = None, wanted: str | None = None
) -> list[FlaggedFlow]:
    """Return the flows that `explained` explains, whether they are flagged or not."""
    views = None
    if takes_tables(detector):
        table = flows if before is None else FlowTable.concatenate([flows, before])
        found = detector.stream().judge(table)
        scores, views = found.scores[: len(flows)], found.reasons
    else:
        scores = detector.score_samples(flows.X)
    rows = np.arange(len(flows)) if wanted is None else _rows_named(flows, wanted)
    return [
        FlaggedFlow(
            flows[row], flows.captures[int(flows.capture[row])], float(scores[row]), float(detector.offset_), math.nan,
            () if views is None else tuple(views(row)),
        )
        for row in rows[np.argsort(scores[rows], kind="stable")[:n_flows]].tolist()
    ]  # fmt: skip


def _rows_named(flows: FlowTable, name: str) -> np.ndarray:
    """Return the rows of flows by their community ID, or ``10.0.0.7:50000->10.0.0.9:22``.

    Raises
    ------
    ValueError
        There are none.
    """
    ends = [
        f"{source}:{source_port}->{destination}:{port}"
        for source, source_port, destination, port in zip(
            flows.src_ip, flows.src_port, flows.dst_ip, flows.dst_port, strict=True
        )
    ]
    rows = np.flatnonzero((flows.community_id == name) | (np.array(ends) == name.replace(" ", "")))
    if not len(rows):
        raise ValueError(f"--flow {name}: none of the {len(flows)} flows is called so")
    return rows


def _bytes_of(detector: Any, flow: FlowTable, n_bytes: int) -> list[ByteReason]:
    (reasons,) = byte_reasons(
        detector, flow.X, n_listed=n_bytes, n_packets=flow.n_packets, link_type=int(flow.link_type[0]),
        layout=flow.layout,
    )  # fmt: skip
    return reasons
