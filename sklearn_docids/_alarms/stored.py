# SPDX-License-Identifier: BSD-3-Clause
"""Alarms that earlier runs wrote, as lines of EVE, of JSON or of CSV: what rules of an allow-list look at."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice
from typing import Any

import numpy as np

from sklearn_docids._alarms.allow import Facts
from sklearn_docids._alarms.names import PROTOCOLS, name_in

HALF = 2**64 - 1
MAX_PORT = 2**16 - 1
LINES_AT_ONCE = 4096
CHANNEL, HOST = "channel", "host"


@dataclass(frozen=True, slots=True)
class StoredAlarm:
    """An alarm as a line has it."""

    id: str
    level: str
    time: str
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    port: int
    protocol: int
    view: str  # of the main reason; empty if there is none
    reason: str
    name: str  # what the flow asks for; empty if it is not known
    n_flows: int
    n_channels: int

    @property
    def is_of_many(self) -> bool:
        """Whether it stands for several channels, of which one alone is known."""
        return self.level == HOST and self.n_channels != 1


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, with the alarm in it if there is one."""

    number: int  # from 1
    text: bytes
    alarm: StoredAlarm | None


def read_lines(lines: Iterable[bytes]) -> Iterator[Line]:
    """Yield the lines of a file: EVE, JSON lines, or CSV behind a line with its columns."""
    columns: list[str] = []
    for number, text in enumerate(lines, 1):
        if text.lstrip().startswith(b"{"):
            yield Line(number, text, _of_json(text))
            continue
        cells = _cells(text)
        if number == 1:
            columns = cells
            yield Line(number, text, None)
        else:
            is_row = len(cells) == len(columns)
            yield Line(number, text, _of_columns(dict(zip(columns, cells, strict=True))) if is_row else None)


def in_groups(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Yield lines some thousand at a time."""
    rest = iter(lines)
    while group := list(islice(rest, LINES_AT_ONCE)):
        yield group


def facts_of(alarms: Sequence[StoredAlarm]) -> Facts:
    """Return what rules look at."""
    return Facts(
        np.array([alarm.source.version for alarm in alarms], np.uint8),
        _halves([alarm.source for alarm in alarms]),
        _halves([alarm.destination for alarm in alarms]),
        np.array([alarm.port for alarm in alarms], np.int64),
        np.array([alarm.protocol for alarm in alarms], np.int64),
        lambda row: alarms[row].name,
        [alarm.view for alarm in alarms],
        np.array([alarm.is_of_many for alarm in alarms], np.bool_),
    )


def _halves(addresses: Sequence[IPv4Address | IPv6Address]) -> tuple[np.ndarray, np.ndarray]:
    numbers = [int(address) for address in addresses]
    return np.array([n >> 64 for n in numbers], np.uint64), np.array([n & HALF for n in numbers], np.uint64)


# What a line that holds something else makes these raise.
_OTHER_CONTENT = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def _cells(text: bytes) -> list[str]:
    try:
        return next(csv.reader([text.decode("utf-8", "replace").rstrip("\r\n")]), [])
    except csv.Error:
        return []


def _of_json(text: bytes) -> StoredAlarm | None:
    try:
        entry = json.loads(text)
    except _OTHER_CONTENT:
        return None
    return _of_eve(entry) if "event_type" in entry else _of_columns(entry)


def _of_eve(entry: Mapping[str, Any]) -> StoredAlarm | None:
    """Return the alarm in a line of EVE, None if the line is of another kind or from another tool."""
    try:
        context = entry["alert"]["context"]
        reason = str(next(iter(context["reasons"]), ""))
        port, protocol = _port(entry["dest_port"]), PROTOCOLS[entry["proto"].lower()]
        return StoredAlarm(
            id=str(context["incident"]), level=_level(context["level"]), time=str(entry["timestamp"]),
            source=ip_address(str(entry["src_ip"])), destination=ip_address(str(entry["dest_ip"])), port=port,
            protocol=protocol, view=_view(reason), reason=reason,
            name=name_in([bytes.fromhex(context.get("request_hex", ""))], protocol, port),
            n_flows=int(context["n_flows"]), n_channels=int(context["n_channels"]),
        )  # fmt: skip
    except _OTHER_CONTENT:
        return None


def _of_columns(entry: Mapping[str, Any]) -> StoredAlarm | None:
    """Return the alarm in a row of CSV or a flat line of JSON."""
    try:
        reason = str(entry.get("reason") or "")
        return StoredAlarm(
            id=str(entry["incident"]), level=_level(entry["level"]), time=str(entry["time_first"]),
            source=ip_address(str(entry["src_ip"])), destination=ip_address(str(entry["dst_ip"])),
            port=_port(entry["dst_port"]), protocol=PROTOCOLS[str(entry["protocol"])],
            view=_view(reason), reason=reason, name="",
            n_flows=int(entry["n_flows"]), n_channels=int(entry["n_channels"]),
        )  # fmt: skip
    except _OTHER_CONTENT:
        return None


def _view(reason: str) -> str:
    return reason.partition(":")[0]


def _level(text: Any) -> str:
    if text not in (CHANNEL, HOST):
        raise ValueError(f"{text!r} is no level")
    return str(text)


def _port(value: Any) -> int:
    if not 0 <= int(value) <= MAX_PORT:
        raise ValueError(f"{value!r} is no port")
    return int(value)
