# SPDX-License-Identifier: BSD-3-Clause
"""Scored flows as text: a table for programs, a ranking for people."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

import numpy as np

from sklearn_docids._text import csv_cell, printable

if TYPE_CHECKING:
    from sklearn_docids.aggregation import FlowGroup
    from sklearn_docids.capture.table import FlowTable
    from sklearn_docids.detectors import ViewReason
    from sklearn_docids.inspection import ByteReason

SCORE_COLUMNS = (
    "capture", "time_first", "time_last", "src_ip", "src_port", "dst_ip", "dst_port", "protocol", "begin", "end",
    "score", "verdict",
)  # fmt: skip
PROTOCOL_NAMES = {6: "tcp", 17: "udp"}
# Characters of a reason in a table, which has a line per flow.
MAX_REASON = 200
# Beyond the scores of calibration, a p-value is an extrapolation: how small it is says nothing.
LEAST_P_VALUE = 1e-6
# What parameters that errors and warnings name are called on the command line.
OPTIONS = {
    "checkpoint_folder": "--checkpoint-folder",
    "duplicate_window": "--duplicate-window",
    "false_alarm_rate": "--false-alarm-rate",
    "max_epochs": "--max-epochs",
    "n_jobs": "--jobs",
    "random_state": "--seed",
    "score_method": "--score-method",
    "window": "--window",
}
NAMES = "|".join(OPTIONS)
VALUE = r"(?:'[^']*'|None|[-+.\de]+)(?=[\s,;:)]|$)"
# No file is called so, unless it has a space or an end behind a number.
PARAMETER = re.compile(rf"(?:(?<=\s)|^)(?:The '(?P<named>{NAMES})' parameter of \w+|(?P<given>{NAMES})=(?={VALUE}))")


def say(*lines: object) -> None:
    """Print lines for people; names in them cannot steer the terminal."""
    print(*(printable(line).rstrip() for line in lines), sep="\n", flush=True)


def in_options(text: str) -> str:
    """Return text with options of the command line in place of parameters of Python."""

    def option(found: re.Match[str]) -> str:
        return OPTIONS[found["named"]] if found["named"] else f"{OPTIONS[found['given']]} "

    return PARAMETER.sub(option, text)


class ScoreTable:
    """A CSV table with a line per flow: times (UTC), five-tuple, begin, end, score (low is abnormal), verdict.

    Where reasons are given, it has a column of them.
    """

    def __init__(self, file: TextIO, offset: float, *, has_reasons: bool):
        self._table = csv.writer(file, lineterminator="\n")
        self._table.writerow((*SCORE_COLUMNS, "reason") if has_reasons else SCORE_COLUMNS)
        self._offset = offset

    def add(self, flows: FlowTable, scores: np.ndarray, reasons: Sequence[str] | None) -> None:
        """Write lines of scored flows."""
        names = np.array([csv_cell(name) for name in flows.captures], dtype=object)
        verdicts = np.where(scores < self._offset, "abnormal", "normal")
        columns: tuple[Sequence[object] | np.ndarray, ...] = (
            names[flows.capture], _times(flows.time_first), _times(flows.time_last), flows.src_ip, flows.src_port,
            flows.dst_ip, flows.dst_port, _protocols(flows), flows.begin, flows.end, scores.tolist(), verdicts,
        )  # fmt: skip
        if reasons is not None:
            columns += ([csv_cell(reason) for reason in reasons],)
        self._table.writerows(zip(*columns, strict=True))


def format_flows(flows: FlowTable, scores: np.ndarray) -> Iterator[str]:
    """Yield a line per flow: score, time, five-tuple, and whether its beginning was not seen."""
    sources = [f"{ip}:{port}" for ip, port in zip(flows.src_ip, flows.src_port, strict=True)]
    destinations = [f"{ip}:{port}" for ip, port in zip(flows.dst_ip, flows.dst_port, strict=True)]
    width = max(map(len, sources)), max(map(len, destinations))
    marks = np.where(flows.midstream, "  midstream", "")
    rows = zip(scores, _times(flows.time_first), _protocols(flows), sources, destinations, marks, strict=True)
    for score, time, protocol, source, destination, mark in rows:
        yield f"{score:12.6f}  {time}  {protocol}  {source:{width[0]}} -> {destination:{width[1]}}{mark}"


def format_groups(groups: Sequence[FlowGroup], offset: float) -> Iterator[str]:
    """Yield a line per channel or host: score, beginning, who, flows; a star where it is beyond the threshold."""
    for group in groups:
        (time,) = _times(np.array([group.time_first]))
        who = group.src_ip
        if group.dst_ip is not None:
            who += f" -> {group.dst_ip}:{group.dst_port}/{PROTOCOL_NAMES[group.protocol or 0]}"
        channels = f" in {group.n_channels} channels" if group.dst_ip is None else ""
        star = "*" if group.score < offset else " "
        yield f"{group.score:12.3f}{star} {time}  {who}  {group.n_flows} flows{channels}"


def main_reason(reasons: Sequence[ViewReason]) -> str:
    """Return in one line why a flow is flagged: what the view says in which it is most unusual."""
    if not reasons:
        return "several views: a little unusual in each, very unusual in none"
    text = f"{reasons[0].view}: {reasons[0].text}"
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 3]}..."


def format_views(reasons: Sequence[ViewReason]) -> Iterator[str]:
    """Yield a table: a line per view, with the share of normal flows that are as unusual in it."""
    if not reasons:
        yield "        normal, or nearly so, in each view"
        return
    width = max(len("view"), *(len(reason.view) for reason in reasons))
    yield f"        {'view':{width}}  {'p':>8}  what is unusual (p: share of normal flows that are as unusual in it)"
    for reason in reasons:
        yield f"        {reason.view:{width}}  {format_p_value(reason.p_value):>8}  {reason.text}"


def format_p_value(p_value: float) -> str:
    """Return a p-value, but for extrapolations: those are smaller than any that could be counted."""
    return f"{p_value:.2g}" if p_value >= LEAST_P_VALUE else f"<{LEAST_P_VALUE:.0e}"


def format_reasons(reasons: Sequence[ByteReason]) -> Iterator[str]:
    """Yield a table: a line per byte."""
    yield f"{'packet':>8}{'byte':>6}  {'header field':26}{'value':>6}{'normal':>8}  part in the score"
    for reason in reasons:
        normal = "-" if reason.nearest_value is None else str(reason.nearest_value)
        place = f"{reason.packet:>8}{reason.byte:>6}  {reason.field:26}"
        yield f"{place}{reason.value:>6}{normal:>8}  {reason.attribution:+.4g}"


def _times(times: np.ndarray) -> np.ndarray:
    """Return ISO 8601 times with microseconds."""
    return np.char.add(np.datetime_as_string(times.astype("datetime64[ns]"), unit="us"), "Z")


def _protocols(flows: FlowTable) -> list[str]:
    return [PROTOCOL_NAMES[protocol] for protocol in flows.protocol.tolist()]
