# SPDX-License-Identifier: BSD-3-Clause
"""What was found in captures, on a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sklearn_docids._alarms.allow import hides_most
from sklearn_docids._alarms.findings import doubt_of
from sklearn_docids._text import format_p_value
from sklearn_docids.cli._inputs import read_line
from sklearn_docids.cli._text import say, time_text

if TYPE_CHECKING:
    from sklearn_docids._alarms.alarm import Alarm
    from sklearn_docids._alarms.findings import Findings


def print_findings(found: Findings, n_listed: int) -> None:
    """Print a summary, and the incidents, the most abnormal first."""
    say(*_summary(found))
    listed = found.alarms[:n_listed]
    if listed:
        more = f", the {len(listed)} most abnormal of them" if len(listed) < found.n_incidents else ""
        say("", f"Incidents{more}:")
    for incident in listed:
        say(*_incident(incident))


def _summary(found: Findings) -> Iterator[str]:
    yield read_line(found.counters, found.ignored)
    span = ""
    if found.time_first is not None and found.time_last is not None:
        span = f" from {time_text(found.time_first)} to {time_text(found.time_last)}"
    share = f" ({found.n_flagged / found.n_flows:.2%})" if found.n_flows else ""
    asked = "" if found.false_alarm_rate is None else f"; {found.false_alarm_rate:.2%} of normal ones would be"
    tails = f"; {found.n_midstream} of them midstream" if found.n_midstream else ""
    yield f"{found.n_flows} flows{span}: {found.n_flagged} abnormal{share}{asked}{tails}"
    for rule, number in found.hidden.items():
        yield f"{number} more abnormal flows are hidden by {rule}"
    n_hidden = sum(found.hidden.values())
    if hides_most(n_hidden, n_hidden + found.n_flagged):
        yield "the allow-list hides nearly all that is abnormal: see whether its rules are wider than they should be"
    again = f", which come up as {found.n_alarms} alarms" if found.n_alarms != found.n_incidents else ""
    beyond = f"; {found.n_over_budget} more are beyond the budget" if found.n_over_budget else ""
    yield f"{found.n_incidents} incidents{again}{beyond}"
    if doubt := doubt_of(found):
        yield doubt
    if found.drift:
        yield found.drift


def _incident(incident: Alarm) -> Iterator[str]:
    flow = incident.most_abnormal
    until = f" to {time_text(incident.time_last)[11:]}" if incident.time_last > incident.time_first else ""
    channels = f" in {incident.n_channels} channels" if incident.n_channels > 1 else ""
    flows = "1 flow" if incident.n_flows == 1 else f"{incident.n_flows} flows"
    when = f"{time_text(incident.time_first)}{until}"
    yield f"{flow.score:10.3f}  {when}  {incident.who}  {flows}{channels}  {incident.id}"
    for reason in flow.reasons:
        yield f"{'':12}{reason.view} (p {format_p_value(reason.p_value)}): {reason.text}"


def plain(found: Findings) -> dict[str, Any]:
    """Return what was found as numbers, texts, lists and dictionaries."""
    return {
        "model": found.model,
        "captures": [
            {"name": name, **counters, "ignored": dict(ignored)}
            for name, counters, ignored in zip(found.captures, found.counters, found.ignored, strict=True)
        ],
        "threshold": found.threshold,
        "false_alarm_rate": found.false_alarm_rate,
        "time_first": found.time_first and time_text(found.time_first),
        "time_last": found.time_last and time_text(found.time_last),
        "flows": found.n_flows,
        "abnormal": found.n_flagged,
        "hidden": found.hidden,
        "incidents": found.n_incidents,
        "alarms": found.n_alarms,
        "over_budget": found.n_over_budget,
        "doubt": doubt_of(found),
        "drift": found.drift,
        "drifted": found.drifted,
        "most_abnormal": [_plain_incident(incident) for incident in found.alarms],
    }


def _plain_incident(incident: Alarm) -> dict[str, Any]:
    flow = incident.most_abnormal
    return {
        "id": incident.id,
        "level": incident.level,
        "who": incident.who,
        "time_first": time_text(incident.time_first),
        "time_last": time_text(incident.time_last),
        "flows": incident.n_flows,
        "channels": incident.n_channels,
        "score": flow.score,
        "p_value": flow.p_value,
        "community_id": str(flow.flow.community_id[0]),
        "reasons": [reason._asdict() for reason in flow.reasons],
    }
