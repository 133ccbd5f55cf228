# SPDX-License-Identifier: BSD-3-Clause
"""Connections of Zeek's ``conn.log``, so that alarms name them by Zeek's ``uid``.

Format: https://docs.zeek.org/en/current/log-formats.html
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from array import array
from datetime import UTC, datetime, timedelta
from functools import partial
from socket import AF_INET, AF_INET6, inet_pton
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

# What is read of a connection; without a duration it is one packet.
FIELDS = ("ts", "uid", "id.orig_h", "id.orig_p", "id.resp_h", "id.resp_p", "proto", "duration")
REQUIRED = FIELDS[:-1]
PROTOCOLS = {b"tcp": 6, b"udp": 17}
UID = re.compile(rb"[!-~]{1,24}")  # of 128 bits, the longest that Zeek makes, has 23 characters
UID_BYTES = 24
MAX_LINE = 2**20
GZIP = b"\x1f\x8b"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Sums and differences of two such times are ns that 64 bits hold; the year is 2115.
LONGEST_TIME = 4.6e9  # s
LONGEST_TIME_NS = 4_600_000_000 * 10**9
# Times above are milliseconds, as with Zeek's JSON::TS_MILLIS: as seconds they would be beyond the year 5138.
MILLISECONDS = 1e11
# Clocks of two programs that capture the same traffic differ, and Zeek rounds.
TOLERANCE_NS = 10**9

Row: TypeAlias = "tuple[bytes, ...]"


class ZeekConnections:
    """TCP and UDP connections of a log.

    Parameters
    ----------
    path : str
        A ``conn.log`` as tab-separated text with its header, or as JSON lines; also compressed by gzip.

    Attributes
    ----------
    n_connections : int
        Connections that are remembered; each takes 64 bytes.
    n_skipped : int
        Lines of other protocols, and a last line that was not written to its end.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no log of connections, or damaged: the message names the file and the line.
    """

    def __init__(self, path: str):
        self.n_skipped: int = 0
        self._path = path
        self._keys, self._first, self._last = array("q"), array("q"), array("q")
        self._uids = bytearray()
        self._read()
        self.n_connections: int = len(self._keys)
        keys = np.frombuffer(self._keys, np.int64)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def uid(self, flow: FlowTable) -> str | None:
        """Return the name of the connection that has most of a flow, a table of one row; None if there is none.

        The five-tuples are the same, in either direction, and the times overlap, or are apart by a second at most.
        """
        record = dict(zip(flow.rows.records.dtype.names or (), flow.rows.records[0].item(), strict=True))
        key = _key(_packed(record, "src"), record["src_port"], _packed(record, "dst"), record["dst_port"],
                   record["protocol"])  # fmt: skip
        begin, end = (np.searchsorted(self._sorted, key, side=side) for side in ("left", "right"))
        found = self._order[begin:end]
        first, last = (np.frombuffer(column, np.int64)[found] for column in (self._first, self._last))
        start, stop = (
            min(max(record[name], -LONGEST_TIME_NS), LONGEST_TIME_NS) for name in ("time_first", "time_last")
        )
        # Negative: so far are they apart.
        overlap = np.minimum(last, stop) - np.maximum(first, start)
        distance = np.abs(first - start)
        best = np.lexsort((distance, -overlap))[:1]
        if not len(best) or overlap[best[0]] < -TOLERANCE_NS:
            return None
        place = int(found[best[0]]) * UID_BYTES
        return self._uids[place : place + UID_BYTES].rstrip(b"\0").decode()

    def _read(self) -> None:
        with open(self._path, "rb") as plain:
            is_packed = plain.read(len(GZIP)) == GZIP
            plain.seek(0)
            file: Any = gzip.GzipFile(fileobj=plain) if is_packed else plain
            try:
                self._read_lines(file)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{self._path}: damaged: {error}") from None

    def _read_lines(self, file: BinaryIO) -> None:
        header = _Header()
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), start=1):
            try:
                row = header.row(line)
                if row is not None:
                    self._add(*row)
            except (ValueError, OSError, RecursionError) as error:
                if number > 1 and not line.endswith(b"\n") and len(line) <= MAX_LINE:
                    self.n_skipped += 1
                    return
                raise ValueError(f"{self._path}, line {number}: {error}") from None

    def _add(
        self, time: bytes, uid: bytes, origin: bytes, origin_port: bytes, responder: bytes, responder_port: bytes,
        proto: bytes, duration: bytes,
    ) -> None:  # fmt: skip
        protocol = PROTOCOLS.get(proto)
        if protocol is None:
            self.n_skipped += 1
            return
        if not UID.fullmatch(uid):
            raise ValueError(f"uid is {_shown(uid)}, which Zeek never writes")
        first = _time_ns(time)
        last = first + max(0, _ns("duration", _number("duration", duration)))
        key = _key(_address(origin), _port(origin_port), _address(responder), _port(responder_port), protocol)
        self._keys.append(key)
        self._first.append(first)
        self._last.append(last)
        self._uids += uid.ljust(UID_BYTES, b"\0")


class _Header:
    """What the lines of a log are: its header says so, if it is not JSON."""

    def __init__(self) -> None:
        self._separator = b"\t"
        self._unset = b"-"
        self._n_fields = 0
        self._places: list[int | None] | None = None

    def row(self, line: bytes) -> Row | None:
        """Return the fields of a line that is a connection."""
        if len(line) > MAX_LINE:
            raise ValueError(f"longer than {MAX_LINE:,} bytes, which no line of Zeek's is")
        line = line.rstrip(b"\r\n")
        if line.startswith(b"#"):
            self._take(line)
            return None
        if not line:
            return None
        return _json_row(line) if line.startswith(b"{") else self._split(line)

    def _take(self, line: bytes) -> None:
        if line.startswith(b"#separator "):
            self._separator = _unescaped(line.removeprefix(b"#separator "))
            return
        name, *values = line.split(self._separator)
        if name == b"#unset_field" and values:
            self._unset = values[0]
        if name == b"#fields":
            names = [value.decode("ascii", "replace") for value in values]
            missing = [field for field in REQUIRED if field not in names]
            if missing:
                raise ValueError(f"the log has no field {', '.join(missing)}: give a conn.log")
            self._n_fields = len(names)
            self._places = [names.index(field) if field in names else None for field in FIELDS]

    def _split(self, line: bytes) -> Row:
        if self._places is None:
            raise ValueError("neither JSON nor behind a #fields line: give a conn.log as Zeek writes it")
        values = line.split(self._separator)
        if len(values) != self._n_fields:
            raise ValueError(f"{len(values)} fields, and #fields names {self._n_fields}")
        row = [self._unset if place is None else values[place] for place in self._places]
        if row[-1] == self._unset:
            row[-1] = b"0"
        return tuple(row)


def _json_row(line: bytes) -> Row:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg}") from None
    missing = [field for field in REQUIRED if field not in values]
    if missing:
        raise ValueError(f"no {', '.join(missing)}: give a conn.log")
    return tuple(str(values.get(field, 0)).encode("utf-8", "replace") for field in FIELDS)


def _unescaped(separator: bytes) -> bytes:
    r"""Return the separator that a header spells, such as ``\x09``."""
    found = re.fullmatch(rb"\\x([0-9a-fA-F]{2})|([^\\])", separator)
    if found is None:
        raise ValueError(f"#separator {_shown(separator)} is not one character")
    return bytes.fromhex(found[1].decode()) if found[1] else found[2]


def _time_ns(value: bytes) -> int:
    """Return ns since 1970 of a time as Zeek writes it: seconds, milliseconds, or ISO 8601."""
    if b"T" in value:
        time = datetime.fromisoformat(value.decode("ascii"))
        microseconds = (time.replace(tzinfo=time.tzinfo or UTC) - EPOCH) // timedelta(microseconds=1)
        return _ns("ts", microseconds / 1e6)
    seconds = _number("ts", value)
    return _ns("ts", seconds / 1000 if abs(seconds) > MILLISECONDS else seconds)


def _number(name: str, value: bytes) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} is {_shown(value)}, which is no number") from None


def _ns(name: str, seconds: float) -> int:
    if not abs(seconds) < LONGEST_TIME:
        raise ValueError(f"{name} is {seconds:g} seconds: no time of a connection")
    return round(seconds * 1e9)


def _address(text: bytes) -> bytes:
    try:
        return inet_pton(AF_INET6 if b":" in text else AF_INET, text.decode("ascii"))
    except (OSError, ValueError):
        raise ValueError(f"{_shown(text)} is no address") from None


def _port(text: bytes) -> int:
    if not text.isdigit() or len(text) > 5 or int(text) > 65_535:
        raise ValueError(f"{_shown(text)} is no port")
    return int(text)


def _packed(record: dict[str, Any], side: str) -> bytes:
    address = record[f"{side}_high"] << 64 | record[f"{side}_low"]
    return int(address).to_bytes(4 if record["ip_version"] == 4 else 16, "big")


def _key(source: bytes, source_port: int, destination: bytes, destination_port: int, protocol: int) -> int:
    """Return 64 bits of a five-tuple, the same in both directions; nobody outside can make two collide."""
    one, other = source + source_port.to_bytes(2, "big"), destination + destination_port.to_bytes(2, "big")
    return hash(bytes([protocol]) + min(one, other) + max(one, other))


def _shown(value: bytes) -> str:
    return repr(value[:32])[1:]
