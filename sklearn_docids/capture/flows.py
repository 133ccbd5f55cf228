# SPDX-License-Identifier: BSD-3-Clause
"""Packets into flows: the flow table of one capture, and the table of finished flows a user gets."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np

from sklearn_docids.capture import kernels
from sklearn_docids.capture._errors import CaptureError, CaptureWarning
from sklearn_docids.capture.community_id import community_id
from sklearn_docids.capture.containers import Capture, capture_name, link_name, opened
from sklearn_docids.capture.headers import PACKET_FATES

# Finished flows are handed on in groups of this size.
STAGED_ROWS = 4096
FIRST_ROWS = 16_384
# From this size on the allocator gives an array pages of its own, which the system moves instead of copying them.
OWN_PAGES_BYTES = 2**25
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
    innermost: bool = False
    duplicate_window: int = 0
    emit_early: bool = False

    def settings(self) -> np.ndarray:
        """Return the rules as the kernels take them."""
        settings = np.zeros(1, kernels.SETTINGS_DTYPE)
        for name in (
            "n_packets", "n_bytes", "bidirectional", "tcp_restart", "max_live_flows", "innermost", "duplicate_window",
            "emit_early",
        ):  # fmt: skip
            settings[name] = getattr(self, name)
        settings["tcp"] = "tcp" in self.protocols
        settings["udp"] = "udp" in self.protocols
        seconds = np.inf if self.idle_timeout is None else self.idle_timeout
        settings["idle_timeout"] = round(min(seconds * 1e9, 2**62))
        return settings


@dataclass
class FlowRows:
    """Flows as parallel arrays: records, bytes, and how many bytes of each packet were kept."""

    records: np.ndarray  # FLOW_DTYPE (n_flows,)
    X: np.ndarray  # uint8 (n_flows, n_packets * n_bytes)
    kept_bytes: np.ndarray  # uint16 (n_flows, n_packets)

    @classmethod
    def empty(cls, n_flows: int, rules: FlowRules) -> FlowRows:
        """Return room for ``n_flows``, all zero. Memory that is not written to is not taken from the system."""
        return cls(
            np.zeros(n_flows, kernels.FLOW_DTYPE),
            np.zeros((n_flows, rules.n_packets * rules.n_bytes), np.uint8),
            np.zeros((n_flows, rules.n_packets), np.uint16),
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Any) -> FlowRows:
        return FlowRows(self.records[key], self.X[key], self.kept_bytes[key])

    def copy(self) -> FlowRows:
        """Return the flows in arrays of their own."""
        return FlowRows(self.records.copy(), self.X.copy(), self.kept_bytes.copy())

    def resize(self, n_flows: int) -> None:
        """Grow, the new rows all zero, or shrink."""
        self.records = _resized(self.records, n_flows)
        self.X = _resized(self.X, n_flows)
        self.kept_bytes = _resized(self.kept_bytes, n_flows)


def _resized(array: np.ndarray, n_rows: int) -> np.ndarray:
    shape = (n_rows, *array.shape[1:])
    if n_rows <= len(array) or array.nbytes >= OWN_PAGES_BYTES:
        array.resize(shape, refcheck=False)
        return array
    # A new array rather than a longer one: numpy asks for large pages for it, which are much quicker to come by.
    larger = np.zeros(shape, array.dtype)
    larger[: len(array)] = array
    return larger


class FlowAssembler:
    """The flows of one capture. `add` files packets under them.

    Without ``emit``, ``rows`` has all flows in the end. With it, ``rows`` holds live flows alone, and finished ones
    are handed to ``emit`` in groups: arrays that are valid until it returns.

    ``fraction_read`` says how much of the capture has been read, None if nobody knows: to guess how much memory the
    rest will need.
    """

    def __init__(
        self,
        rules: FlowRules,
        emit: Callable[[FlowRows], object] | None = None,
        fraction_read: Callable[[], float | None] = lambda: None,
    ):
        self.rules = rules
        self.rows = FlowRows.empty(min(FIRST_ROWS, rules.max_live_flows + 1) if emit else FIRST_ROWS, rules)
        self._emit = emit
        self._fraction_read = fraction_read
        self._settings = rules.settings()
        self._settings["recycles"] = emit is not None
        self._table = np.zeros(2 * FIRST_ROWS, kernels.ENTRY_DTYPE)
        self._free = np.arange(len(self.rows))[::-1].copy() if emit else np.zeros(0, np.int64)
        self._staged = FlowRows.empty(STAGED_ROWS if emit else 2, rules)
        self._candidates = np.zeros(0, kernels.CANDIDATE_DTYPE)
        self._packets = np.zeros(kernels.LOOKAHEAD, kernels.PACKET_DTYPE)
        self._digests = np.zeros(max(rules.duplicate_window, 1), np.uint64)
        self._fates = np.zeros(len(PACKET_FATES), np.int64)
        self._cursor = np.zeros(1, kernels.CURSOR_DTYPE)
        self._cursor["n_free"] = len(self._free)
        # Fresh keys in each process: whoever wrote the capture cannot know which five-tuples collide.
        self._keys = np.frombuffer(os.urandom(8 * kernels.N_KEYS), np.uint64)
        self._next_sweep = 0

    def add(self, data: np.ndarray, records: np.ndarray) -> None:
        """File all records under their flows."""
        done = 0
        while True:
            done, lacking = kernels.add_packets(
                data, records, done, self._packets, self._digests, self._table, *self._storage(), self._candidates,
                self._cursor, self._settings, self._keys, self._fates,
            )  # fmt: skip
            if lacking == kernels.DONE:
                return
            self._make_room(lacking)

    def flush(self) -> None:
        """Hand on the flows that are finished by now."""
        n_staged = int(self._cursor["n_staged"][0])
        if self._emit and n_staged:
            self._emit(self._staged[:n_staged])
        self._cursor["n_staged"] = 0

    def flush_idle(self) -> None:
        """Hand on the flows that are finished or have idled out, the latter an eighth of the timeout late at most."""
        clock = int(self._cursor["clock"][0])
        if clock >= self._next_sweep:
            self._sweep()
            self._next_sweep = clock + int(self._settings["idle_timeout"][0]) // 8
        self.flush()

    def finish(self) -> None:
        """End the capture: all flows are finished now."""
        if self._emit:
            self._sweep(everything=True)
            self.flush()
        else:
            self.rows.resize(int(self._cursor["n_rows"][0]))

    @property
    def counters(self) -> dict[str, int]:
        """Packets by fate (their sum is ``packets``), flows, and flows ended early by ``max_live_flows``."""
        fates = {name: int(n) for name, n in zip(PACKET_FATES, self._fates, strict=True)}
        cursor = self._cursor[0]
        return {
            "packets": sum(fates.values()),
            **fates,
            "flows": int(cursor["n_rows"]),
            "flows_evicted": int(cursor["n_evicted"]),
        }

    def _storage(self) -> tuple[np.ndarray, ...]:
        """Return the flows, the free slots and the staged flows as the kernels take them."""
        rows, staged = self.rows, self._staged
        return (
            rows.records, rows.X.reshape(-1), rows.kept_bytes, self._free,
            staged.records, staged.X.reshape(-1), staged.kept_bytes,
        )  # fmt: skip

    def _make_room(self, lacking: int) -> None:
        if lacking == kernels.STAGE_FULL:
            self.flush()
        elif lacking == kernels.NO_CANDIDATE:
            self._list_candidates()
        elif lacking == kernels.TABLE_FULL:
            self._sweep()
            # Sweeping again soon would cost more than a larger table.
            if 8 * self._n_live > 3 * len(self._table):
                self._sweep(2 * len(self._table))
        elif self._emit:
            self._sweep()
            if 4 * int(self._cursor["n_free"][0]) < len(self.rows):
                self._add_slots(min(2 * len(self.rows), self.rules.max_live_flows + 1))
        else:
            self.rows.resize(self._expected_rows())

    @property
    def _n_live(self) -> int:
        return int(self._cursor["n_live"][0])

    def _sweep(self, size: int | None = None, *, everything: bool = False) -> None:
        """Finish the flows that have idled out and put the others into a fresh table."""
        fresh = np.zeros(size or len(self._table), kernels.ENTRY_DTYPE)
        at = 0
        while True:
            at = kernels.sweep(
                self._table, at, fresh, everything, *self._storage(), self._cursor, self._settings
            )  # fmt: skip
            if at == len(self._table):
                break
            self.flush()
        self._table = fresh

    def _add_slots(self, n_slots: int) -> None:
        n_free, first_new = int(self._cursor["n_free"][0]), len(self.rows)
        free = np.zeros(n_slots, np.int64)
        free[:n_free] = self._free[:n_free]
        free[n_free : n_free + n_slots - first_new] = np.arange(first_new, n_slots)[::-1]
        self._cursor["n_free"] = n_free + n_slots - first_new
        self._free = free
        self.rows.resize(n_slots)

    def _expected_rows(self) -> int:
        """Return how many rows to make room for: once what the capture will need by its size, then an eighth more."""
        n_rows = len(self.rows)
        if n_rows > FIRST_ROWS:
            return n_rows * 9 // 8
        return int(n_rows * min(max(1.1 / (self._fraction_read() or 0.25), 2), 64))

    def _list_candidates(self) -> None:
        """List the flows to evict, longest idle first; among equals that which began first.

        Any flow that is active from now on has a later time than all those listed, so the first of them that has
        not been is the longest idle of all, until the list is used up. If all flows have the same time, so may
        later ones: the row decides then.
        """
        entries = self._table[self._table["name"] != 0]
        candidates = np.zeros(len(entries), kernels.CANDIDATE_DTYPE)
        candidates["name"], candidates["last_active"] = entries["name"], entries["last_active"]
        slots = (entries["name"] & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1
        candidates["row"] = self.rows.records["row"][slots]
        earlier = candidates[candidates["last_active"] < self._cursor["clock"][0]]
        candidates = earlier if len(earlier) else candidates
        self._candidates = candidates[np.lexsort((candidates["row"], candidates["last_active"]))]
        self._cursor["candidate"] = 0


def assemble(source: Any, rules: FlowRules, emit: Callable[[FlowRows], object] | None, on_error: str) -> FlowAssembler:
    """Read one capture to its end or to its damage; return its assembler.

    Raises
    ------
    OSError
        The path is missing or cannot be read.
    CaptureError
        The source is no capture, or it is damaged and ``on_error="raise"``.
    """
    for assembler in assemble_blocks(source, rules, emit, on_error):
        last = assembler
    return last


def assemble_blocks(
    source: Any, rules: FlowRules, emit: Callable[[FlowRows], object] | None, on_error: str
) -> Iterator[FlowAssembler]:
    """Do the work of `assemble`, pausing after each block of records and at the end."""
    with opened(source) as stream, closing(Capture(stream, capture_name(source))) as capture:
        assembler = FlowAssembler(rules, emit, capture.fraction_read)
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
        return FlowTable(self.rows[key], self.capture[key], self.captures, self.counters)

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
    try:
        assembler = assemble(source, rules, None, on_error)
    except CaptureError as error:
        if on_error == "raise":
            raise
        return error
    progress(capture_name(source), assembler.counters)
    return capture_name(source), assembler.rows, assembler.counters


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
