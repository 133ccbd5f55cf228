# SPDX-License-Identifier: BSD-3-Clause
"""Alarms as lines that other tools take: Suricata's EVE JSON, JSON lines and CSV.

Lines of EVE are valid against the schema of Suricata 8 (its ``etc/schema.json``), which has no place for keys of
others but ``alert.context``: all that is ours is there. Alerts have ``alert.gid`` 1117 and one of these identifiers, so
that a tool can group, suppress or route them:

============  =======  =============================================================
signature_id  level    which alarm
============  =======  =============================================================
1             channel  first of the incident
2             channel  the incident again: it has ten times the flows
3             host     first of the incident
4             host     the incident again
============  =======  =============================================================

``alert.severity`` goes by the p-value of the most abnormal flow, 1 below 0.0001 and 2 below 0.001, or by how far its
score is beyond the threshold, 1 from once as far as the threshold is from 0 and 2 from a quarter of that: the more
severe of the two, otherwise 3. A p-value alone is never below one in the number of flows of the calibration.

As in Suricata, ``timestamp`` is the time of a packet, the latest that is known of, ``flow_id`` has 51 bits, as numbers
in JSON may be read with no more, and all times are rounded down to microseconds. Addresses, ports, ``flow_id``,
``community_id`` and ``flow`` are those of the most abnormal flow. ``flow.bytes_*`` count IP packets, without the link
header that Suricata counts.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import IO, TYPE_CHECKING, Any

from sklearn_docids._text import PROTOCOL_NAMES, csv_cell, printable
from sklearn_docids._views.payload import first_messages, quoted
from sklearn_docids.capture.kernels import BEGINS, ENDS, FLOW_DTYPE
from sklearn_docids.capture.layouts import FORWARD

if TYPE_CHECKING:
    from sklearn_docids._alarms.alarm import Alarm
    from sklearn_docids._alarms.zeek import ZeekConnections
    from sklearn_docids.capture.table import FlowTable

GENERATOR_ID = 1117
SIGNATURES = {
    ("channel", False): (1, "DOCIDS abnormal channel"),
    ("channel", True): (2, "DOCIDS abnormal channel, again"),
    ("host", False): (3, "DOCIDS abnormal host"),
    ("host", True): (4, "DOCIDS abnormal host, again"),
}
CATEGORY = "Network Anomaly"
# By severity, what rules of others call it.
SEVERITIES = {1: "Critical", 2: "Major", 3: "Minor"}
# P-values, and distances beyond the threshold in units of it, up to which an alarm is of the severity.
RARE, FAR = ((1, 1e-4), (2, 1e-3)), ((1, 1.0), (2, 0.25))
FLOW_ID_BITS = 51
# Bytes of the first request.
N_BYTES = 64
TCP_ACK = 0x10
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAMES = FLOW_DTYPE.names or ()
# What no other protocol begins with, by Suricata's names.
APP_PROTOCOLS = {
    "http": re.compile(rb"[A-Z]{3,16} [!-~]+ HTTP/1\.[01]\r\n"),
    "ssh": re.compile(rb"SSH-(?:2\.0|1\.[0-9]+)-[!-~]"),
    "tls": re.compile(rb"\x16\x03[\x00-\x04]..\x01\x00..\x03[\x00-\x03]", re.DOTALL),
}
# Counters that Suricata has a place for, and where.
PLACES = {
    "alarms": ("detect", "alert"),
    "flows_begun": ("flow", "total"),
    "flows_open": ("flow", "active"),
    "hidden": ("detect", "alerts_suppressed"),
    "kernel_drops": ("capture", "kernel_drops"),
    "malformed": ("decoder", "invalid"),
    "packets": ("decoder", "pkts"),
}
SIZES = ("packets_forward", "packets_backward", "bytes_forward", "bytes_backward")
COLUMNS = (
    "incident", "level", "n_reported", "n_flows", "n_channels", "capture", "time_first", "time_last", "src_ip",
    "src_port", "dst_ip", "dst_port", "protocol", *SIZES, "begin", "end", "score", "threshold", "p_value", "reason",
    "flow_time_first", "flow_time_last", "flow_id", "community_id", "zeek_uid",
)  # fmt: skip
KINDS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "eve", ".eve": "eve"}


def alert_line(
    alarm: Alarm, *, sensor: str | None, interface: str | None, model: str, zeek_uid: str | None = None
) -> str:
    """Return an alarm as a line of EVE, without its end.

    What is not known is left out, but numbers of ``alert.context``: those are null, as JSON has no NaN or infinity.
    """
    record = _record(alarm.most_abnormal.flow)
    request = _request(alarm.most_abnormal.flow)
    line = {
        "timestamp": _eve_time(max(alarm.time_last, record["time_last"])),
        "flow_id": _flow_id(alarm.most_abnormal.flow, record),
        "in_iface": None if interface is None else printable(interface),
        "event_type": "alert",
        "src_ip": record["src_ip"],
        "src_port": record["src_port"],
        "dest_ip": record["dst_ip"],
        "dest_port": record["dst_port"],
        "proto": PROTOCOL_NAMES[record["protocol"]].upper(),
        "app_proto": _app_proto(request) if record["protocol"] == 6 else None,
        "community_id": str(alarm.most_abnormal.flow.community_id[0]),
        "pcap_filename": printable(alarm.most_abnormal.capture) if interface is None else None,
        "host": None if sensor is None else printable(sensor),
        "alert": _alert(alarm) | {"context": _context(alarm, request, model, zeek_uid)},
        "flow": _flow(record),
    }
    return _dumped({key: value for key, value in line.items() if value is not None})


def stats_line(counters: Mapping[str, int], *, time_ns: int, sensor: str | None, interface: str | None) -> str:
    """Return counters as a line of EVE, without its end.

    All of them are in ``metadata.flowints``, where names are free; those that Suricata has as well, also in ``stats``.
    """
    stats: dict[str, dict[str, int]] = {}
    for name, (group, member) in PLACES.items():
        if name in counters:
            stats.setdefault(group, {})[member] = int(counters[name])
    line = {
        "timestamp": _eve_time(time_ns),
        "event_type": "stats",
        "stats": stats,
        "metadata": {"flowints": {printable(name): int(value) for name, value in counters.items()}},
    }
    if interface is not None:
        line["in_iface"] = printable(interface)
    if sensor is not None:
        line["host"] = printable(sensor)
    return _dumped(line)


def flat_record(alarm: Alarm, zeek_uid: str | None = None) -> dict[str, Any]:
    """Return an alarm as one value per column; times of the incident, and the most abnormal flow."""
    flagged = alarm.most_abnormal
    record = _record(flagged.flow)
    return {
        "incident": alarm.id,
        "level": alarm.level,
        "n_reported": alarm.n_reported,
        "n_flows": alarm.n_flows,
        "n_channels": alarm.n_channels,
        "capture": printable(flagged.capture),
        "time_first": _iso_time(alarm.time_first),
        "time_last": _iso_time(alarm.time_last),
        "src_ip": record["src_ip"],
        "src_port": record["src_port"],
        "dst_ip": record["dst_ip"],
        "dst_port": record["dst_port"],
        "protocol": PROTOCOL_NAMES[record["protocol"]],
        **{name: record[name] for name in SIZES},
        "begin": BEGINS[record["begin"]],
        "end": ENDS[record["end"]],
        "score": _number(flagged.score),
        "threshold": _number(flagged.threshold),
        "p_value": _number(flagged.p_value),
        "reason": "; ".join(_reasons(alarm)),
        "flow_time_first": _iso_time(record["time_first"]),
        "flow_time_last": _iso_time(record["time_last"]),
        "flow_id": _flow_id(flagged.flow, record),
        "community_id": str(flagged.flow.community_id[0]),
        "zeek_uid": zeek_uid,
    }


def output_kind(path: str) -> str:
    """Return what a file of alarms holds, by the end of its name: ``"eve"``, ``"jsonl"`` or ``"csv"``.

    Raises
    ------
    ValueError
        It ends otherwise.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in KINDS:
        raise ValueError(f"{path} ends in none of {', '.join(KINDS)}: .json is Suricata's EVE, .jsonl has flat records")
    return KINDS[suffix]


class AlarmWriter:
    """Alarms at the end of a file, which may be moved away while it is written to.

    What is written waits for `flush`. Where that fails, as on a full disk, the rest goes on waiting: a later flush
    writes it.

    Parameters
    ----------
    path : str
        The file; it is made, or lines are added. ``-``: standard output.
    kind : {"eve", "jsonl", "csv"}, default=None
        What is written; None: as `output_kind` says.
    model : str
        Name of the model, for EVE, as are ``sensor`` and ``interface``, of which None is left out.
    zeek : ZeekConnections, default=None
        What to look up connections in.

    Raises
    ------
    OSError
        The file cannot be written to.
    ValueError
        The name says no kind.
    """

    def __init__(
        self,
        path: str,
        kind: str | None = None,
        *,
        model: str,
        sensor: str | None = None,
        interface: str | None = None,
        zeek: ZeekConnections | None = None,
    ):
        self._path = path
        self._kind = kind or output_kind(path)
        self._model = model
        self._sensor = sensor
        self._interface = interface
        self._zeek = zeek
        self._waiting = bytearray()
        self._file: IO[bytes]
        self._open()

    def __enter__(self) -> AlarmWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, alarm: Alarm) -> None:
        """Add an alarm."""
        uid = self._zeek.uid(alarm.most_abnormal.flow) if self._zeek is not None else None
        if self._kind == "eve":
            line = alert_line(alarm, sensor=self._sensor, interface=self._interface, model=self._model, zeek_uid=uid)
        elif self._kind == "jsonl":
            line = _dumped(flat_record(alarm, uid))
        else:
            line = _csv_line(_cell(value) for value in flat_record(alarm, uid).values())
        self._waiting += f"{line}\n".encode()

    def write_stats(self, counters: Mapping[str, int], *, time_ns: int) -> None:
        """Add counters; only EVE has a place for them."""
        if self._kind == "eve":
            line = stats_line(counters, time_ns=time_ns, sensor=self._sensor, interface=self._interface)
            self._waiting += f"{line}\n".encode()

    def flush(self) -> None:
        """Write what waits."""
        while self._waiting:
            n_written = self._file.write(self._waiting)
            del self._waiting[:n_written]
        self._file.flush()

    def reopen(self) -> None:
        """Go on in a new file where the old one was moved away; if there can be none, the old one stays in use."""
        self.flush()
        before = self._file
        self._open()
        self._close(before)

    def close(self) -> None:
        """Write what waits, and close the file."""
        try:
            self.flush()
        finally:
            self._close(self._file)

    def _open(self) -> None:
        if self._path == "-":
            self._file = sys.stdout.buffer
            is_new, is_torn = True, False
        else:
            # Without a buffer, what could not be written is known.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
            is_new, is_torn = _beginning(self._path)
        if is_torn:
            # The line before was not written to its end: the next one is not to be lost with it.
            self._waiting[:0] = b"\n"
        if is_new and self._kind == "csv":
            self._waiting[:0] = f"{_csv_line(COLUMNS)}\n".encode()

    def _close(self, file: IO[bytes]) -> None:
        if file is not sys.stdout.buffer:
            file.close()


def _beginning(path: str) -> tuple[bool, bool]:
    """Return whether a file is empty, and whether its last line lacks its end; a pipe has no lines."""
    if not os.path.isfile(path):
        return True, False
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True, False
        file.seek(-1, os.SEEK_END)
        return False, file.read(1) != b"\n"


def _csv_line(cells: Any) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _cell(value: Any) -> Any:
    return csv_cell(value) if isinstance(value, str) else value


def _dumped(line: Mapping[str, Any]) -> str:
    # ASCII, so that no reader takes a character for the end of a line.
    return json.dumps(line, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _record(flow: FlowTable) -> dict[str, Any]:
    """Return the numbers of a flow, and its addresses as text."""
    record: dict[str, Any] = dict(zip(NAMES, flow.rows.records[0].item(), strict=True))
    for side in ("src", "dst"):
        address = record[f"{side}_high"] << 64 | record[f"{side}_low"]
        record[f"{side}_ip"] = str(IPv4Address(address) if record["ip_version"] == 4 else IPv6Address(address))
    return record


def _flow_id(flow: FlowTable, record: Mapping[str, Any]) -> int:
    name = f"{flow.community_id[0]} {record['time_first']}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> (64 - FLOW_ID_BITS)


def _request(flow: FlowTable) -> bytes:
    """Return the beginning of the first request, as far as rows hold payload."""
    if flow.layout != "payload":
        return b""
    message = first_messages(flow, FORWARD)
    return message.data[0, : message.lengths[0]].tobytes()


def _app_proto(request: bytes) -> str | None:
    return next((name for name, beginning in APP_PROTOCOLS.items() if beginning.match(request)), None)


def _alert(alarm: Alarm) -> dict[str, Any]:
    signature_id, signature = SIGNATURES[alarm.level, alarm.n_reported > 1]
    severity = _severity(alarm)
    return {
        "action": "allowed",
        "gid": GENERATOR_ID,
        "signature_id": signature_id,
        "rev": 1,
        "signature": signature,
        "category": CATEGORY,
        "severity": severity,
        "metadata": {"signature_severity": [SEVERITIES[severity]], "tag": ["docids", "anomaly", alarm.level]},
    }


def _severity(alarm: Alarm) -> int:
    flagged = alarm.most_abnormal
    beyond = flagged.threshold - flagged.score
    # Comparisons with NaN are false.
    found = [severity for severity, bound in RARE if flagged.p_value < bound]
    found += [severity for severity, bound in FAR if beyond >= bound * abs(flagged.threshold)]
    return min(found, default=3)


def _context(alarm: Alarm, request: bytes, model: str, zeek_uid: str | None) -> dict[str, Any]:
    flagged = alarm.most_abnormal
    context: dict[str, Any] = {
        "incident": alarm.id,
        "level": alarm.level,
        "n_reported": alarm.n_reported,
        "n_flows": alarm.n_flows,
        "n_channels": alarm.n_channels,
        "time_first": _eve_time(alarm.time_first),
        "time_last": _eve_time(alarm.time_last),
        "score": _number(flagged.score),
        "threshold": _number(flagged.threshold),
        "p_value": _number(flagged.p_value),
        "p_values": {printable(reason.view): _number(reason.p_value) for reason in flagged.reasons},
        "reasons": _reasons(alarm),
        "model": printable(model),
    }
    if request:
        context |= {"request": quoted(request, N_BYTES), "request_hex": request[:N_BYTES].hex()}
    if zeek_uid is not None:
        context["zeek_uid"] = printable(zeek_uid)
    return context


def _reasons(alarm: Alarm) -> list[str]:
    return [printable(f"{reason.view}: {reason.text}") for reason in alarm.most_abnormal.reasons]


def _flow(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "pkts_toserver": record["packets_forward"],
        "pkts_toclient": record["packets_backward"],
        "bytes_toserver": record["bytes_forward"],
        "bytes_toclient": record["bytes_backward"],
        "start": _eve_time(record["time_first"]),
        "end": _eve_time(record["time_last"]),
        # As Suricata has it: the difference of whole seconds.
        "age": record["time_last"] // 10**9 - record["time_first"] // 10**9,
        "state": _state(record),
    }


def _state(record: Mapping[str, Any]) -> str:
    """Return what Suricata calls the state of such a flow; a TCP flow is established when the handshake is over."""
    if ENDS[record["end"]] == "closed":
        return "closed"
    is_agreed = record["protocol"] != 6 or record["tcp_flags_forward"] & TCP_ACK
    return "established" if is_agreed and record["packets_backward"] else "new"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _iso_time(time_ns: int) -> str:
    return _time(time_ns) + "Z"


def _eve_time(time_ns: int) -> str:
    return _time(time_ns) + "+0000"


def _time(time_ns: int) -> str:
    time = EPOCH + timedelta(microseconds=time_ns // 1000)
    return time.replace(tzinfo=None).isoformat(timespec="microseconds")
