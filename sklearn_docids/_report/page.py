# SPDX-License-Identifier: BSD-3-Clause
"""The page of a shift's work: what was looked at, what came of it, and each incident with its reasons and bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from sklearn_docids._alarms.findings import doubt_of
from sklearn_docids._report.bytemap import ByteMap, byte_maps, request_of
from sklearn_docids._report.charts import QUANTILES, score_chart, share_heights, timeline
from sklearn_docids._report.render import counted, moment, write
from sklearn_docids._text import PROTOCOL_NAMES, printable
from sklearn_docids.capture.counting import described, most_frequent, summed

if TYPE_CHECKING:
    from sklearn_docids._alarms.alarm import Alarm, FlaggedFlow
    from sklearn_docids._alarms.findings import Findings
    from sklearn_docids.capture.table import FlowTable

# What has its bytes shown takes some tens of kilobytes; a page of more is read by nobody.
MOST_DETAILED, MOST_LISTED, MOST_HOSTS = 50, 1000, 50
SECTIONS = {
    "summary": "Summary",
    "drift": "Drift",
    "hours": "Alarms by time",
    "incidents": "Incidents",
    "hosts": "Hosts",
    "scores": "Scores against those of normal traffic",
    "hidden": "Hidden by the allow-list",
    "read": "What was read and ignored",
    "reading": "How to read this page",
}


class Flow(NamedTuple):
    """A flow as the page shows it."""

    flagged: FlaggedFlow
    filter: str  # for Wireshark
    request: str
    byte_map: ByteMap | None

    @property
    def table(self) -> FlowTable:
        """The flow itself."""
        return self.flagged.flow

    @property
    def ends(self) -> str:
        """Five-tuple."""
        source, destination = (_end(self.table, side) for side in ("src", "dst"))
        return f"{PROTOCOL_NAMES[int(self.table.protocol[0])]} {source} -> {destination}"

    def number(self, column: str) -> int:
        """Return an entry of the table."""
        return int(self.table[column][0])

    def word(self, column: str) -> str:
        """Return an entry of the table."""
        return str(self.table[column][0])


class Incident(NamedTuple):
    """An alarm as the page shows it."""

    alarm: Alarm
    filter: str
    flow: Flow


def write_page(path: str | os.PathLike[str], findings: Findings, detector: Any, *, command: str = "") -> None:
    """Write what was found, with the command that found it, as one HTML page.

    Nothing but ``path`` is read or written. What is named in the captures is shown with all that steers spelled out,
    and the page forbids scripts and whatever lies outside it.
    """
    detailed = findings.alarms[:MOST_DETAILED]
    flows = flows_of([alarm.most_abnormal for alarm in detailed], detector)
    pairs = zip(detailed, flows, strict=True)
    sets = {"normal flows of the calibration": findings.calibration_scores, "flows looked at": findings.scores}
    write(
        path,
        "shift.html",
        title=_title(findings),
        sections=SECTIONS,
        findings=findings,
        doubt=doubt_of(findings),
        command=command,
        detector=detector,
        views=getattr(detector, "view_names_", []),
        incidents=[Incident(alarm, _incident_filter(alarm), flow) for alarm, flow in pairs],
        further=findings.alarms[MOST_DETAILED:MOST_LISTED],
        hosts=list(findings.hosts.items())[:MOST_HOSTS],
        timeline=timeline(findings.alarms_by_hour, findings.flows_by_hour),
        share_heights=share_heights,
        chart=score_chart(sets, findings.threshold),
        quantiles=QUANTILES,
        read=described(summed(findings.counters)),
        kinds=most_frequent(findings.ignored),
        captures=_captures(findings),
    )


def flows_of(flagged: list[FlaggedFlow], detector: Any) -> list[Flow]:
    """Return flows with all that a page shows of them."""
    maps = byte_maps(detector, [each.flow for each in flagged])
    return [
        Flow(each, _flow_filter(each.flow), request_of(each.flow), byte_map)
        for each, byte_map in zip(flagged, maps, strict=True)
    ]


def _title(findings: Findings) -> str:
    names = [os.path.basename(name) or name for name in findings.captures[:1]]
    more = f" and {len(findings.captures) - 1} more" if len(findings.captures) > 1 else ""
    incidents = counted(findings.n_incidents, "incident")
    return printable(f"{incidents} in {''.join(names)}{more}{_period(findings)}")


def _period(findings: Findings) -> str:
    if findings.time_first is None or findings.time_last is None:
        return ""
    first, last = moment(findings.time_first), moment(findings.time_last)
    day = first[: len("2026-11-24")]
    return f", {first} to {last.removeprefix(f'{day} ')} UTC"


def _captures(findings: Findings) -> list[tuple[str, str, str]]:
    """Return of each capture its name, what became of its packets, and what those ignored were."""
    found = []
    for place, name in enumerate(findings.captures):
        counters = findings.counters[place : place + 1]
        kinds = most_frequent(findings.ignored[place : place + 1])
        found.append((name, described(summed(counters)) if counters else "not read", kinds))
    return found


def _end(flow: FlowTable, side: str) -> str:
    address = str(flow[f"{side}_ip"][0])
    return f"{f'[{address}]' if ':' in address else address}:{flow[f'{side}_port'][0]}"


def _address_filter(address: str) -> str:
    return f"{'ipv6' if ':' in address else 'ip'}.addr == {address}"


def _channel_filter(flow: FlowTable) -> str:
    addresses = [_address_filter(str(flow[f"{side}_ip"][0])) for side in ("src", "dst")]
    return " && ".join([*addresses, f"{PROTOCOL_NAMES[int(flow.protocol[0])]}.port == {flow.dst_port[0]}"])


def _flow_filter(flow: FlowTable) -> str:
    return f"{_channel_filter(flow)} && {PROTOCOL_NAMES[int(flow.protocol[0])]}.port == {flow.src_port[0]}"


def _incident_filter(alarm: Alarm) -> str:
    flow = alarm.most_abnormal.flow
    return _address_filter(str(flow.src_ip[0])) if alarm.level == "host" else _channel_filter(flow)
