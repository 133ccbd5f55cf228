# SPDX-License-Identifier: BSD-3-Clause
"""Scored flows as text: a table for programs, a ranking for people."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

import numpy as np

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

SCORE_COLUMNS = (
    "capture", "time_first", "time_last", "src_ip", "src_port", "dst_ip", "dst_port", "protocol", "score", "verdict",
)  # fmt: skip
PROTOCOL_NAMES = {6: "tcp", 17: "udp"}


def write_scores(file: TextIO, flows: FlowTable, scores: np.ndarray, offset: float) -> None:
    """Write one CSV row per flow: times (UTC), five-tuple, score (the lower, the more abnormal), verdict."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(SCORE_COLUMNS)
    names = np.array(flows.captures, dtype=object)
    verdicts = np.where(scores < offset, "abnormal", "normal")
    columns = (
        names[flows.capture], _times(flows.time_first), _times(flows.time_last), flows.src_ip, flows.src_port,
        flows.dst_ip, flows.dst_port, _protocols(flows), scores.tolist(), verdicts,
    )  # fmt: skip
    table.writerows(zip(*columns, strict=True))


def format_flows(flows: FlowTable, scores: np.ndarray) -> Iterator[str]:
    """Yield a line per flow: score, time, five-tuple."""
    sources = [f"{ip}:{port}" for ip, port in zip(flows.src_ip, flows.src_port, strict=True)]
    destinations = [f"{ip}:{port}" for ip, port in zip(flows.dst_ip, flows.dst_port, strict=True)]
    width = max(map(len, sources)), max(map(len, destinations))
    rows = zip(scores, _times(flows.time_first), _protocols(flows), sources, destinations, strict=True)
    for score, time, protocol, source, destination in rows:
        yield f"{score:12.6f}  {time}  {protocol}  {source:{width[0]}} -> {destination:{width[1]}}"


def _times(times: np.ndarray) -> np.ndarray:
    """Return ISO 8601 times with microseconds."""
    return np.char.add(np.datetime_as_string(times.astype("datetime64[ns]"), unit="us"), "Z")


def _protocols(flows: FlowTable) -> list[str]:
    return [PROTOCOL_NAMES[protocol] for protocol in flows.protocol.tolist()]
