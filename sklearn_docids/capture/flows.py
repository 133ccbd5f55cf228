# SPDX-License-Identifier: BSD-3-Clause
"""Packets into flows: the flow table of one capture, and the table of finished flows a user gets."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np

from sklearn_docids.capture import kernels
from sklearn_docids.capture._errors import CaptureError, CaptureWarning
from sklearn_docids.capture.community_id import community_id
from sklearn_docids.capture.containers import Capture, capture_name, link_name, opened

# Finished flows are copied out in groups of this size; the group stays in the processor's cache.
QUEUE_LENGTH = 4096
FIRST_CAPACITY = 1024
NUMERIC_COLUMNS = (
    *(name for name in kernels.FLOW_DTYPE.names or () if name[:3] not in ("src", "dst", "row")),
    "src_port",
    "dst_port",
)
COLUMNS = (
    "capture", "time_first", "time_last", "src_ip", "dst_ip", "src_port", "dst_port", "protocol",
    "packets_forward", "packets_backward", "bytes_forward", "bytes_backward", "payload_forward", "payload_backward",
    "tcp_flags_forward", "tcp_flags_backward", "link_type", "truncated", "community_id",
)  # fmt: skip


@dataclass(frozen=True)
class FlowRules:
    """What makes a flow, and which of its bytes are kept."""

    n_packets: int
    n_bytes: int
    bidirectional: bool
    idle_timeout: float | None
    tcp_restart: bool
    protocols: tuple[str, ...]
    max_live_flows: int
    emit_early: bool = False

    def settings(self) -> np.ndarray:
        """Return the rules as the kernels take them."""
        settings = np.zeros(1, kernels.SETTINGS_DTYPE)
        settings["bidirectional"] = self.bidirectional
        settings["tcp_restart"] = self.tcp_restart
        settings["tcp"] = "tcp" in self.protocols
        settings["udp"] = "udp" in self.protocols
        settings["idle_timeout"] = -1 if self.idle_timeout is None else round(min(self.idle_timeout * 1e9, 2**61))
        settings["max_live_flows"] = self.max_live_flows
        settings["emit_early"] = self.emit_early
        return settings


@dataclass
class FlowRows:
    """Flows as parallel arrays: records, bytes, and how many bytes of each packet were kept."""

    records: np.ndarray  # FLOW_DTYPE (n_flows,)
    X: np.ndarray  # uint8 (n_flows, n_packets * n_bytes)
    kept_bytes: np.ndarray  # uint16 (n_flows, n_packets)

    @classmethod
    def empty(cls, n_flows: int, rules: FlowRules) -> FlowRows:
        """Return room for ``n_flows``, all zero."""
        return cls(
            np.zeros(n_flows, kernels.FLOW_DTYPE),
            np.zeros((n_flows, rules.n_packets * rules.n_bytes), np.uint8),
            np.zeros((n_flows, rules.n_packets), np.uint16),
        )

    def __len__(self) -> int:
        return len(self.records)

    def resize(self, n_flows: int) -> None:
        """Grow or shrink in place: the system moves the pages of a large array, it does not copy them."""
        self.records.resize(n_flows, refcheck=False)
        self.X.resize((n_flows, self.X.shape[1]), refcheck=False)
        self.kept_bytes.resize((n_flows, self.kept_bytes.shape[1]), refcheck=False)

    def put(self, rows: FlowRows) -> None:
        """Store flows at the places given by their row numbers."""
        place = rows.records["row"]
        needed = int(place.max()) + 1
        if needed > len(self):
            self.resize(max(needed, len(self) * 5 // 4, FIRST_CAPACITY))
        self.records[place] = rows.records
        self.X[place] = rows.X
        self.kept_bytes[place] = rows.kept_bytes


class FlowAssembler:
    """The live flows of one capture. `add` files packets, finished flows come out through ``emit``."""

    def __init__(self, rules: FlowRules, emit: Callable[[FlowRows], object]):
        self.rules = rules
        self.emit = emit
        # One slot more than may live, and those that wait in the queue.
        self._max_capacity = rules.max_live_flows + QUEUE_LENGTH + 1
        self._settings = rules.settings()
        self._live = FlowRows.empty(0, rules)
        self._links = np.zeros(0, kernels.LINK_DTYPE)
        self._table = np.zeros(0, np.uint64)
        self._finished = np.empty(QUEUE_LENGTH, np.int64)
        self._packet = np.zeros(1, kernels.PACKET_DTYPE)
        self._fates = np.zeros(len(kernels.PACKET_FATES), np.int64)
        self._cursor = np.zeros(1, kernels.CURSOR_DTYPE)
        self._cursor["idlest"] = self._cursor["newest"] = self._cursor["free"] = -1
        # Fresh keys in each process: whoever wrote the capture cannot know which five-tuples collide.
        self._keys = np.frombuffer(os.urandom(8 * kernels.N_HASH_KEYS), np.uint64)
        self._grow(FIRST_CAPACITY)

    def add(self, data: np.ndarray, records: np.ndarray) -> None:
        """File all records under their flows."""
        live, done = self._live, 0
        while True:
            done = kernels.add_packets(
                data,
                records,
                done,
                live.records,
                self._links,
                live.X,
                live.kept_bytes,
                self._table,
                self._finished,
                self._cursor,
                self._settings,
                self._keys,
                self._packet,
                self._fates,
            )
            if done == len(records):
                return
            starved = self._cursor["free"][0] < 0
            self.flush()
            # Also when the flush freed a few slots: a table that is just large enough would stop at every packet.
            if starved and len(live) < self._max_capacity:
                self._grow(2 * len(live))

    def flush(self) -> None:
        """Give out the flows that are finished by now."""
        slots = self._finished[: int(self._cursor["n_finished"][0])]
        if len(slots):
            live = self._live
            self.emit(FlowRows(live.records[slots], live.X[slots], live.kept_bytes[slots]))
            kernels.release(self._links, self._finished, self._cursor)

    def finish(self) -> None:
        """End the capture: all flows are finished now."""
        self.flush()
        while self._cursor["n_live"][0]:
            kernels.finish_all(self._links, self._table, self._finished, self._cursor)
            self.flush()

    @property
    def counters(self) -> dict[str, int]:
        """Packets by fate (their sum is ``packets``), flows, and flows ended early by ``max_live_flows``."""
        fates = {name: int(n) for name, n in zip(kernels.PACKET_FATES, self._fates, strict=True)}
        cursor = self._cursor[0]
        return {
            "packets": sum(fates.values()),
            **fates,
            "flows": int(cursor["n_rows"]),
            "flows_evicted": int(cursor["n_evicted"]),
        }

    def _grow(self, capacity: int) -> None:
        capacity = min(capacity, self._max_capacity)
        first_new = len(self._live)
        self._live.resize(capacity)
        self._links.resize(capacity, refcheck=False)
        kernels.add_free_slots(self._links, self._cursor, first_new)
        table = np.zeros(1 << (2 * capacity - 1).bit_length(), np.uint64)
        kernels.rehash(self._table, table)
        self._table = table


def assemble(source: Any, rules: FlowRules, emit: Callable[[FlowRows], object], on_error: str) -> dict[str, int]:
    """Read one capture to its end or to its damage; return its counters.

    Raises
    ------
    OSError
        The path is missing or cannot be read.
    CaptureError
        The source is no capture, or it is damaged and ``on_error="raise"``.
    """
    for assembler in assemble_blocks(source, rules, emit, on_error):
        last = assembler
    return last.counters


def assemble_blocks(
    source: Any, rules: FlowRules, emit: Callable[[FlowRows], object], on_error: str
) -> Iterator[FlowAssembler]:
    """Do the work of `assemble`, pausing after each block of records and at the end."""
    with opened(source) as stream:
        capture = Capture(stream, capture_name(source))
        assembler = FlowAssembler(rules, emit)
        try:
            for data, records in capture.blocks():
                assembler.add(data, records)
                yield assembler
        except CaptureError as error:
            if on_error == "raise":
                raise
            warn(f"{error}; the {capture.n_records} records before it are kept")
        assembler.finish()
        _report_link_types(capture, assembler.counters)
        yield assembler


def warn(message: str) -> None:
    """Warn of damage, and of what was kept."""
    warnings.warn(message, CaptureWarning, stacklevel=2)


def _report_link_types(capture: Capture, counters: dict[str, int]) -> None:
    n_unknown = counters["unknown_link_type"]
    if not n_unknown:
        return
    names = ", ".join(link_name(link_type) for link_type in sorted(capture.unsupported))
    if n_unknown == counters["packets"]:
        raise CaptureError(f"link type {names} is not supported", capture.name)
    warn(f"{capture.name}: {n_unknown} packets of unsupported link type {names} are skipped")


class FlowTable:
    """Flows of one or more captures, as columns.

    Every column is an attribute and an item: ``table.src_ip`` is ``table["src_ip"]``. A slice, an index array or a
    mask selects flows: ``table[table.dst_port == 443]``.

    Parameters
    ----------
    rows : FlowRows
        The flows, in order of capture, then of first packet.
    capture : ndarray of int64, shape (n_flows,)
        Number of the capture each flow comes from.
    captures : sequence of str
        Names of the captures.
    counters : sequence of dict
        For each capture: ``packets`` read, packets by fate (``sampled``, ``non_ip``, ``other_protocol``,
        ``fragment``, ``short``, ``malformed``, ``unknown_link_type``; their sum is ``packets``), ``flows``, and
        ``flows_evicted`` (ended early by ``max_live_flows``).

    Attributes
    ----------
    X : ndarray of uint8, shape (n_flows, n_packets * n_bytes)
        First bytes of the first packets, from the link header to the end of the IP packet, zero-padded.
    kept_bytes : ndarray of uint16, shape (n_flows, n_packets)
        How many of the ``n_bytes`` of each packet are there.
    capture : ndarray of int64
        Index into ``captures``.
    time_first, time_last : ndarray of int64
        Time of the first packet, latest time of a packet; ns since 1970-01-01 UTC.
    src_ip, dst_ip : ndarray of str
        Addresses; the source sent the first packet that was seen.
    src_port, dst_port, protocol, link_type : ndarray of int64
        Ports; 6 for TCP or 17 for UDP; libpcap's number of the link type.
    packets_forward, packets_backward : ndarray of int64
        Packets from source to destination and back, all of the flow.
    bytes_forward, bytes_backward, payload_forward, payload_backward : ndarray of int64
        Bytes of those packets by their IP length: with IP header, and behind the TCP or UDP header.
    tcp_flags_forward, tcp_flags_backward : ndarray of int64
        All flags seen, OR-ed; 0 for UDP.
    truncated : ndarray of bool
        The capture holds fewer bytes of one of the kept packets than ``X`` has room for.
    community_id : ndarray of str
        Community ID version 1, seed 0, as Zeek and Suricata write it.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from sklearn_docids import FlowSampler
    >>> from sklearn_docids.datasets import make_traffic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     traffic = make_traffic(folder, n_flows=20, random_state=0)
    ...     flows = FlowSampler().flows(traffic.train)
    >>> flows.X.shape, flows.X.dtype
    ((20, 320), dtype('uint8'))
    >>> set(flows.protocol) <= {6, 17}
    True
    """

    def __init__(
        self, rows: FlowRows, capture: np.ndarray, captures: Sequence[str], counters: Sequence[dict[str, int]]
    ):
        self.rows = rows
        self.capture = capture
        self.captures = list(captures)
        self.counters = list(counters)

    @property
    def X(self) -> np.ndarray:
        """Bytes of the first packets."""
        return self.rows.X

    @property
    def kept_bytes(self) -> np.ndarray:
        """Bytes kept of each packet."""
        return self.rows.kept_bytes

    @cached_property
    def src_ip(self) -> np.ndarray:
        """Addresses of the senders of the first packets."""
        return _addresses(self.rows.records, "src")

    @cached_property
    def dst_ip(self) -> np.ndarray:
        """Addresses of the other sides."""
        return _addresses(self.rows.records, "dst")

    @cached_property
    def community_id(self) -> np.ndarray:
        """Community IDs, version 1."""
        return community_id(self.rows.records)

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in NUMERIC_COLUMNS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        column = self.rows.records[name]
        # Small unsigned integers wrap around in a user's arithmetic.
        return column.copy() if column.dtype == np.bool_ else column.astype(np.int64)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *NUMERIC_COLUMNS]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<FlowTable: {len(self)} flows of {len(self.captures)} captures>"

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in COLUMNS:
                raise KeyError(key)
            return getattr(self, key)
        if isinstance(key, int | np.integer):
            key = [key]
        rows = FlowRows(self.rows.records[key], self.rows.X[key], self.rows.kept_bytes[key])
        return FlowTable(rows, self.capture[key], self.captures, self.counters)

    def to_pandas(self) -> Any:
        """Return the columns as a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            One row per flow, the columns of the table, times as UTC timestamps.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        import pandas

        frame = pandas.DataFrame({name: self[name] for name in COLUMNS})
        for name in ("time_first", "time_last"):
            frame[name] = pandas.to_datetime(frame[name], unit="ns", utc=True)
        return frame


def _addresses(records: np.ndarray, side: str) -> np.ndarray:
    """Return addresses as strings; each distinct one is formatted once."""
    packed = np.stack([records["ip_version"].astype(np.uint64), records[f"{side}_high"], records[f"{side}_low"]], 1)
    distinct, place = np.unique(packed, axis=0, return_inverse=True)
    texts = [
        str(IPv4Address(int(low))) if version == 4 else str(IPv6Address(int(high) << 64 | int(low)))
        for version, high, low in distinct
    ]
    return np.array(texts, dtype="U39")[place.ravel()]


def read_capture(
    source: Any, rules: FlowRules, on_error: str, progress: Callable[[str, dict[str, int]], object]
) -> tuple[str, FlowRows, dict[str, int]] | CaptureError:
    """Return (name, flows, counters) of one capture, and tell ``progress`` of it.

    What is no capture returns its error, where errors are warned of: others of the same call may be captures.
    """
    rows = FlowRows.empty(0, rules)
    try:
        counters = assemble(source, rules, rows.put, on_error)
    except CaptureError as error:
        if on_error == "raise":
            raise
        return error
    rows.resize(counters["flows"])
    progress(capture_name(source), counters)
    return capture_name(source), rows, counters


def concatenate(parts: Sequence[tuple[str, FlowRows, dict[str, int]] | CaptureError], rules: FlowRules) -> FlowTable:
    """Return one table of the flows of captures that could be read, with a warning for each that could not.

    If none could be read, the first error is raised: there is nothing to go on with.
    """
    errors = [part for part in parts if isinstance(part, CaptureError)]
    if errors and len(errors) == len(parts):
        raise errors[0]
    for error in errors:
        warn(f"{error}; it is left out")
    # A capture that was left out keeps its number and has no flows.
    read = [
        part if not isinstance(part, CaptureError) else (part.capture, FlowRows.empty(0, rules), {}) for part in parts
    ]
    rows = [part[1] for part in read]
    if len(rows) == 1:
        joined = rows[0]
    else:
        joined = FlowRows(
            np.concatenate([r.records for r in rows]),
            np.concatenate([r.X for r in rows]),
            np.concatenate([r.kept_bytes for r in rows]),
        )
    capture = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    return FlowTable(joined, capture, [part[0] for part in read], [part[2] for part in read])
