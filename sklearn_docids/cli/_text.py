# SPDX-License-Identifier: BSD-3-Clause
"""Scored flows as text: a table for programs, a ranking for people."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sklearn_docids._text import PROTOCOL_NAMES, format_p_value, printable

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable
    from sklearn_docids.detectors import ViewReason
    from sklearn_docids.inspection import ByteReason

# Characters of a reason in a table, which has a line per flow.
MAX_REASON = 200


def say(*lines: object) -> None:
    """Print lines for people; names in them cannot steer the terminal."""
    print(*(printable(line).rstrip() for line in lines), sep="\n", flush=True)


def note(args: argparse.Namespace, *lines: object) -> None:
    """Print lines about the work on standard error, unless they are unwanted."""
    if not args.quiet:
        for line in lines:
            print(f"docids: {printable(line)}", file=sys.stderr)


def print_json(found: Any) -> None:
    """Print an object as JSON, which has no number that is none: null stands for it."""
    print(json.dumps(_finite(found), indent=2), flush=True)


def _finite(found: Any) -> Any:
    if isinstance(found, dict):
        return {str(name): _finite(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_finite(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def format_flows(flows: FlowTable, scores: np.ndarray) -> Iterator[str]:
    """Yield a line per flow: score, time, five-tuple, and whether its beginning was not seen."""
    sources = [f"{ip}:{port}" for ip, port in zip(flows.src_ip, flows.src_port, strict=True)]
    destinations = [f"{ip}:{port}" for ip, port in zip(flows.dst_ip, flows.dst_port, strict=True)]
    width = max(map(len, sources)), max(map(len, destinations))
    marks = np.where(flows.midstream, "  midstream", "")
    rows = zip(scores, _times(flows.time_first), _protocols(flows), sources, destinations, marks, strict=True)
    for score, time, protocol, source, destination, mark in rows:
        yield f"{score:12.6f}  {time}  {protocol}  {source:{width[0]}} -> {destination:{width[1]}}{mark}"


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


def format_reasons(reasons: Sequence[ByteReason]) -> Iterator[str]:
    """Yield a table: a line per byte."""
    yield f"{'packet':>8}{'byte':>6}  {'header field':26}{'value':>6}{'normal':>8}  part in the score"
    for reason in reasons:
        normal = "-" if reason.nearest_value is None else str(reason.nearest_value)
        # Packets are counted from 1, as other tools do.
        place = f"{reason.packet + 1:>8}{reason.byte:>6}  {reason.field:26}"
        yield f"{place}{reason.value:>6}{normal:>8}  {reason.attribution:+.4g}"


def time_text(nanoseconds: int) -> str:
    """Return an ISO 8601 time to the second."""
    return str(np.datetime_as_string(np.datetime64(nanoseconds, "ns"), unit="s")) + "Z"


def _times(times: np.ndarray) -> np.ndarray:
    """Return ISO 8601 times with microseconds."""
    return np.char.add(np.datetime_as_string(times.astype("datetime64[ns]"), unit="us"), "Z")


def _protocols(flows: FlowTable) -> list[str]:
    return [PROTOCOL_NAMES[protocol] for protocol in flows.protocol.tolist()]
