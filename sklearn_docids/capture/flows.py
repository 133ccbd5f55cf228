# SPDX-License-Identifier: BSD-3-Clause
"""Packets into flows: the live flows of one capture, and the rows of finished ones."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sklearn_docids._warn import warn_caller
from sklearn_docids.capture import kernels
from sklearn_docids.capture.containers import Capture, capture_name, is_url, opened
from sklearn_docids.capture.counting import described, most_frequent, mostly_ignored
from sklearn_docids.capture.hashing import N_KEYS
from sklearn_docids.capture.headers import (
    N_KINDS,
    N_LINK_TYPES,
    N_PROTOCOLS,
    PACKET_DTYPE,
    PACKET_FATES,
)
from sklearn_docids.capture.kinds import kind_counts, link_name, unknown_link_types
from sklearn_docids.capture.layouts import DESCRIPTION_BYTES, FIELDS, LAYOUTS
from sklearn_docids.capture.reordering import reordered
from sklearn_docids.capture.rewriting import KEEP, PORTS, ZERO
from sklearn_docids.exceptions import CaptureError, CaptureWarning

# Finished flows are handed on in groups of this size: large enough that most of their rows are neighbours on disk.
STAGED_ROWS = 8192
FIRST_ROWS = 4096
# Where rows are so long that they would take more, there are fewer of them at first.
FIRST_BYTES = 2**26
# Not more than this is taken on a guess, unless twice as much as there is already is more.
GUESS_BYTES = 2**30
# With so many flows, how many the whole capture has is guessed: from fewer, the guess would be poor.
GUESS_ROWS = 32_768

# More than all times are apart; that and the sum of two times do not overflow.
NEVER = 2**62

# Takes the name of a capture, the fraction of it that has been read (None: it is done), and its counters.
Progress = Callable[[str, float | None, dict[str, int]], object]


def _nanoseconds(seconds: float | None) -> int:
    """Return a time in ns; 73 years are never, as all times lie within twice that."""
    return NEVER if seconds is None or seconds * 1e9 >= 2**61 else round(seconds * 1e9)


@dataclass(frozen=True, kw_only=True)
class FlowRules:
    """What makes a flow, which of its bytes are kept, and which of these are zeroed as they are copied."""

    n_packets: int
    n_bytes: int
    bidirectional: bool
    idle_timeout: float | None
    tcp_restart: bool
    protocols: tuple[str, ...]
    max_live_flows: int
    layout: str = "packets"
    active_timeout: float | None = None
    rotated: bool = True
    innermost: bool = False
    tunnel_endpoints: bool = True
    vxlan_ports: tuple[int, ...] = ()
    duplicate_window: int = 0
    duplicate_seconds: float | None = None
    duplicate_ignore_ttl: bool = False
    reorder_window: int = 0
    emit_early: bool = False
    field_actions: tuple[int, ...] = (KEEP,) * len(FIELDS)

    @property
    def row_bytes(self) -> int:
        """Memory of a flow, without the table."""
        return kernels.FLOW_DTYPE.itemsize + self.n_packets * (self.n_bytes + 2 + 4)

    def settings(self) -> np.ndarray:
        """Return the rules as the kernels take them."""
        settings = np.zeros(1, kernels.SETTINGS_DTYPE)
        for name in (
            "n_packets", "n_bytes", "bidirectional", "tcp_restart", "max_live_flows", "innermost", "tunnel_endpoints",
            "duplicate_window", "duplicate_ignore_ttl", "emit_early",
        ):  # fmt: skip
            settings[name] = getattr(self, name)
        settings["payload"] = self.layout == "payload"
        settings["n_looked_at"] = (2 if self.layout == "payload" else 1) * self.n_packets
        settings["service_port"] = self.field_actions[PORTS] != ZERO
        settings["tcp"] = "tcp" in self.protocols
        settings["udp"] = "udp" in self.protocols
        settings["rewrites"] = any(self.field_actions)
        for name in ("idle_timeout", "active_timeout", "duplicate_seconds"):
            settings[name] = _nanoseconds(getattr(self, name))
        settings["memory"] = min(2 * int(settings["idle_timeout"][0]), NEVER)
        return settings


@dataclass
class FlowRows:
    """Flows as parallel arrays: records, bytes, how many bytes of each packet were kept, and how long its payload is.

    The payload length of a packet that goes backward is negative.
    """

    records: np.ndarray  # FLOW_DTYPE (n_flows,)
    X: np.ndarray  # uint8 (n_flows, n_packets * n_bytes)
    kept_bytes: np.ndarray  # uint16 (n_flows, n_packets)
    payload_lengths: np.ndarray  # int32 (n_flows, n_packets)
    layout: str  # one of `LAYOUTS`

    @classmethod
    def empty(cls, n_flows: int, rules: FlowRules) -> FlowRows:
        """Return room for ``n_flows``, all zero. Memory that is not written to is not taken from the system."""
        return cls(
            np.zeros(n_flows, kernels.FLOW_DTYPE),
            np.zeros((n_flows, rules.n_packets * rules.n_bytes), np.uint8),
            np.zeros((n_flows, rules.n_packets), np.uint16),
            np.zeros((n_flows, rules.n_packets), np.int32),
            rules.layout,
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Any) -> FlowRows:
        return self.each(lambda array: array[key])

    def each(self, function: Callable[[Any], Any]) -> FlowRows:
        """Return flows of what a function makes of each of the arrays."""
        arrays = [function(array) for array in (self.records, self.X, self.kept_bytes, self.payload_lengths)]
        return FlowRows(arrays[0], arrays[1], arrays[2], arrays[3], self.layout)

    def described(self) -> str:
        """Return what rows have in common that may be joined."""
        n_packets = self.kept_bytes.shape[1]
        n_bytes = self.X.shape[1] // n_packets if n_packets else 0
        return f"layout={self.layout!r}, n_packets={n_packets}, n_bytes={n_bytes}"

    def check(self) -> None:
        """Refuse arrays that compiled code, which checks no bounds, would read or write beyond.

        Raises
        ------
        ValueError
            Types, shapes or order are others than those of `empty`, more bytes were kept than there is room for, or
            the layout is none, or one that rows of this width cannot have.
        """
        arrays = [self.records, self.X, self.kept_bytes, self.payload_lengths]
        expected = [
            (kernels.FLOW_DTYPE, 1), (np.dtype(np.uint8), 2), (np.dtype(np.uint16), 2), (np.dtype(np.int32), 2),
        ]  # fmt: skip
        if (
            [(array.dtype, array.ndim) for array in arrays] != expected
            or len({len(array) for array in arrays}) > 1
            or not all(array.flags.c_contiguous for array in arrays)
            or not (self.X.shape[1] and self.kept_bytes.shape[1])
            or self.kept_bytes.shape != self.payload_lengths.shape
            or self.X.shape[1] % self.kept_bytes.shape[1]
        ):
            raise ValueError("its parts do not fit together")
        n_bytes = self.X.shape[1] // self.kept_bytes.shape[1]
        if self.kept_bytes.max(initial=0) > n_bytes:
            raise ValueError(f"kept_bytes holds {self.kept_bytes.max()}, but a packet has room for {n_bytes} bytes")
        if self.layout not in LAYOUTS:
            raise ValueError(f"its layout is {self.layout!r}, there are {' and '.join(LAYOUTS)}")
        if self.layout == "payload" and n_bytes <= DESCRIPTION_BYTES:
            raise ValueError(f"its layout is 'payload', but a packet has room for {n_bytes} bytes")

    def copy(self) -> FlowRows:
        """Return the flows in arrays of their own."""
        return self.each(np.ndarray.copy)

    def resize(self, n_flows: int) -> None:
        """Grow, the new rows all zero, or shrink."""
        self.records = _resized(self.records, n_flows)
        self.X = _resized(self.X, n_flows)
        self.kept_bytes = _resized(self.kept_bytes, n_flows)
        self.payload_lengths = _resized(self.payload_lengths, n_flows)


def _resized(array: np.ndarray, n_rows: int) -> np.ndarray:
    shape = (n_rows, *array.shape[1:])
    if n_rows <= len(array):
        array.resize(shape, refcheck=False)
        return array
    # A new array rather than a longer one: numpy asks for large pages for it, which are much quicker to come by.
    larger = np.zeros(shape, array.dtype)
    larger[: len(array)] = array
    return larger


class FlowAssembler:
    """The flows of captures. `begin_capture` names the next one, `add` files its packets under their flows.

    Without ``emit``, ``rows`` has all flows in the end. With it, ``rows`` holds live flows alone, and finished ones
    are handed to ``emit`` in groups: arrays that are valid until it returns.
    """

    def __init__(self, rules: FlowRules, emit: Callable[[FlowRows], object] | None = None):
        self.rules = rules
        most = max(FIRST_BYTES // rules.row_bytes, 4)
        # Room that is not used costs no memory: that of all live flows is never copied to a larger one.
        n_first = min(rules.max_live_flows + 1, GUESS_BYTES // rules.row_bytes) if emit else min(FIRST_ROWS, most)
        self.rows: FlowRows = FlowRows.empty(n_first, rules)
        self._emit = emit
        self._fraction_read: Callable[[], float | None] = lambda: None
        self._settings = rules.settings()
        self._settings["recycles"] = emit is not None
        self._field_actions = np.array(rules.field_actions, np.int64)
        self._table = np.zeros(2 * FIRST_ROWS, kernels.ENTRY_DTYPE)
        self._free = np.arange(len(self.rows))[::-1].copy() if emit else np.zeros(0, np.int64)
        self._staged = FlowRows.empty(min(STAGED_ROWS, most) if emit else 2, rules)
        self._candidates = np.zeros(0, kernels.CANDIDATE_DTYPE)
        self._packets = np.zeros(kernels.LOOKAHEAD, PACKET_DTYPE)
        self._given_out = np.zeros(len(self.rows) if emit else 1, np.bool_)
        self._tunnels = np.zeros(len(self.rows) if rules.innermost else 1, np.uint64)
        self._vxlan_ports = np.array(rules.vxlan_ports, np.int64)
        self._digests = np.zeros(max(rules.duplicate_window, 1), np.uint64)
        self._digest_times = np.zeros(len(self._digests), np.int64)
        self._fates = np.zeros(len(PACKET_FATES), np.int64)
        self._kinds = np.zeros(N_KINDS + N_PROTOCOLS + N_LINK_TYPES, np.int64)
        self._kinds_seen = np.zeros(len(self._kinds), np.int64)
        self._cursor = np.zeros(1, kernels.CURSOR_DTYPE)
        self._cursor["n_free"] = len(self._free)
        # Fresh keys in each process: whoever wrote the capture cannot know which five-tuples collide.
        self._keys = np.frombuffer(os.urandom(8 * N_KEYS), np.uint64)
        self._next_sweep = 0
        self._first_row = 0  # of the capture
        self._may_continue = True

    def begin_capture(self, fraction_read: Callable[[], float | None]) -> None:
        """Begin to count anew for another capture.

        ``fraction_read`` says how much of it has been read, None if nobody knows: to guess how much memory the rest
        will need.
        """
        self._fraction_read = fraction_read
        self._kinds[self._places_of_kinds] = 0
        self._cursor["n_kinds"] = 0
        self._fates[:] = 0
        self._cursor["n_evicted"] = 0
        self._first_row = self.n_rows
        self._may_continue = False

    def _continues(self, time: int) -> bool:
        """Whether a capture that begins at ``time`` goes on where the one before ended, as rotated files do."""
        cursor = self._cursor[0]
        silence = time - int(cursor["latest"])
        return self.rules.rotated and 0 <= silence <= int(self._settings["idle_timeout"][0])

    def _cut(self) -> None:
        """End all flows between two captures that have nothing to do with each other."""
        self._sweep(everything=True)
        self._cursor["started"] = self._cursor["was_behind"] = False
        self._cursor["n_digests"] = 0

    def add(self, data: np.ndarray, records: np.ndarray) -> None:
        """File all records under their flows."""
        if not self._may_continue and len(records):
            self._may_continue = True
            if self._cursor["started"][0] and not self._continues(int(records["time"][0])):
                self._cut()
        done = 0
        while True:
            done, lacking = kernels.add_packets(data, records, done, self._storage)
            if lacking == kernels.DONE:
                return
            self._make_room(lacking)

    def wait(self, silence: int) -> None:
        """Let so many ns pass in which a live stream brought nothing.

        A stream is live if its packets are of now. One that plays back an old capture is not, however slow it is.
        """
        behind = time.time_ns() - silence - int(self._cursor["latest"][0])
        if silence and abs(behind) <= int(self._settings["idle_timeout"][0]) < NEVER:
            self._cursor["latest"] += silence
            self._cursor["clock"] += silence

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

    def finish(self) -> Iterator[None]:
        """End the last capture: all flows are finished now. Yields after each group of them that was handed on."""
        if self._emit:
            yield from self._end_and_release(everything=True)
            self.flush()
        else:
            self._sweep(everything=True)
            self._forget_storage()
            self.rows.resize(self.n_rows)

    @property
    def n_rows(self) -> int:
        """Flows begun so far, of all captures."""
        return int(self._cursor["n_rows"][0])

    @property
    def counters(self) -> dict[str, int]:
        """Of the capture: packets by fate (their sum is ``packets``), flows, and flows evicted."""
        fates = {name: int(n) for name, n in zip(PACKET_FATES, self._fates, strict=True)}
        return {
            "packets": sum(fates.values()),
            **fates,
            "flows": self.n_rows - self._first_row,
            "flows_evicted": int(self._cursor["n_evicted"][0]),
        }

    @property
    def ignored(self) -> dict[str, int]:
        """Packets of the capture that are not IP or of other protocols, by what they are."""
        return kind_counts(self._places_of_kinds, self._kinds)

    @property
    def _places_of_kinds(self) -> np.ndarray:
        # A list of those that were met: to search all counts would take longer than reading a block of packets.
        return self._kinds_seen[: self._cursor["n_kinds"][0]]

    @property
    def unknown_link_types(self) -> list[int]:
        """Link types of packets of the capture that could not be read."""
        return unknown_link_types(self._places_of_kinds)

    @cached_property
    def _storage(self) -> kernels.Storage:
        """Everything as the kernels take it; forgotten when an array is replaced by another one."""
        return kernels.Storage(
            table=self._table, rows=_flat(self.rows), free=self._free, staged=_flat(self._staged),
            given_out=self._given_out, tunnels=self._tunnels, candidates=self._candidates, packets=self._packets,
            digests=self._digests, digest_times=self._digest_times, cursors=self._cursor, settings=self._settings,
            field_actions=self._field_actions, vxlan_ports=self._vxlan_ports, keys=self._keys, fates=self._fates,
            kinds=self._kinds, kinds_seen=self._kinds_seen,
        )  # fmt: skip

    def _forget_storage(self) -> None:
        self.__dict__.pop("_storage", None)

    def _make_room(self, lacking: int) -> None:
        self._replace_arrays(lacking)
        self._forget_storage()

    def _replace_arrays(self, lacking: int) -> None:
        if lacking == kernels.STAGE_FULL:
            self.flush()
        elif lacking == kernels.NO_CANDIDATE:
            self._list_candidates()
        elif lacking == kernels.CLOCK_FULL:
            self._set_clock_back()
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
            self._resize(self._expected_rows())

    def _resize(self, n_slots: int) -> None:
        self.rows.resize(n_slots)
        if self._emit:
            self._given_out = _resized(self._given_out, n_slots)
        if self.rules.innermost:
            self._tunnels = _resized(self._tunnels, n_slots)

    @property
    def _n_live(self) -> int:
        return int(self._cursor["n_live"][0])

    def _sweep(self, size: int | None = None, *, everything: bool = False) -> None:
        """End the flows that have idled out, or all; put those that are not to be forgotten into a fresh table."""
        fresh = np.zeros(size or len(self._table), kernels.ENTRY_DTYPE)
        if self._emit:
            deque(self._end_and_release(everything), maxlen=0)
        elif everything:
            kernels.reopen(self._table, self._storage)
        if everything:
            self._cursor["n_live"] = 0
        else:
            kernels.rehash(fresh, self._storage)
        self._table = fresh
        self._forget_storage()

    def _end_and_release(self, everything: bool) -> Iterator[None]:
        entries = self._table[self._table["name"] != 0]
        silence = self._cursor["clock"][0] - entries["last_active"]
        is_idle = silence > self._settings["idle_timeout"][0]
        yield from self._end(_slots(entries["name"][is_idle]), kernels.IDLE)
        if everything:
            yield from self._end(_slots(entries["name"][~is_idle]), kernels.OPEN)
        self._release(_slots(entries["name"][everything | (silence > self._settings["memory"][0])]))

    def _end(self, slots: np.ndarray, how: int) -> Iterator[None]:
        """End flows, in order of their rows; yield after each group of them that was handed on."""
        slots = slots[np.argsort(self.rows.records["row"][slots])]
        at = 0
        while at < len(slots):
            at = kernels.end_all(slots, how, at, self._storage)
            if at < len(slots):
                self.flush()
                yield

    def _release(self, slots: np.ndarray) -> None:
        """Make the slots of flows that leave the table free for others."""
        n_free = int(self._cursor["n_free"][0])
        self._free[n_free : n_free + len(slots)] = slots
        self._cursor["n_free"] = n_free + len(slots)

    def _set_clock_back(self) -> None:
        """Set the clock back to where a flow that was active at 0 is just forgotten."""
        step = int(self._cursor["clock"][0] - self._settings["memory"][0] - 1)
        self._cursor["clock"] -= step
        self._table["last_active"] -= step
        self._next_sweep -= step
        self._candidates = np.zeros(0, kernels.CANDIDATE_DTYPE)
        self._cursor["candidate"] = 0

    def _add_slots(self, n_slots: int) -> None:
        n_free, first_new = int(self._cursor["n_free"][0]), len(self.rows)
        free = np.zeros(n_slots, np.int64)
        free[:n_free] = self._free[:n_free]
        free[n_free : n_free + n_slots - first_new] = np.arange(first_new, n_slots)[::-1]
        self._cursor["n_free"] = n_free + n_slots - first_new
        self._free = free
        self._resize(n_slots)

    def _expected_rows(self) -> int:
        """Return how many rows to make room for: a quarter more than the capture will need by its size.

        Room that is not used costs no memory, room that is lacking costs copying all rows.
        """
        n_rows = len(self.rows)
        if n_rows < GUESS_ROWS:
            return min(GUESS_ROWS, 8 * n_rows)
        guess = int(n_rows * max(1.25 / (self._fraction_read() or 0.6), 1.25))
        return min(guess, max(2 * n_rows, GUESS_BYTES // self.rules.row_bytes))

    def _list_candidates(self) -> None:
        """List the flows to evict, longest idle first; among equals that which began first.

        Any flow that is active from now on has a later time than all those listed, so the first of them that has
        not been is the longest idle of all, until the list is used up. If all flows have the same time, so may
        later ones: the row decides then.
        """
        entries = self._table[self._table["name"] != 0]
        candidates = np.zeros(len(entries), kernels.CANDIDATE_DTYPE)
        candidates["name"], candidates["last_active"] = entries["name"], entries["last_active"]
        candidates["row"] = self.rows.records["row"][_slots(entries["name"])]
        earlier = candidates[candidates["last_active"] < self._cursor["clock"][0]]
        candidates = earlier if len(earlier) else candidates
        self._candidates = candidates[np.lexsort((candidates["row"], candidates["last_active"]))]
        self._cursor["candidate"] = 0


def _flat(rows: FlowRows) -> kernels.Rows:
    return kernels.Rows(rows.records, rows.X.reshape(-1), rows.kept_bytes, rows.payload_lengths)


def _slots(names: np.ndarray) -> np.ndarray:
    """Return the slots in the names of table entries."""
    return (names & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1


def assemble(
    source: Any,
    assembler: FlowAssembler,
    on_error: str,
    progress: Progress | None = None,
    patience: float | None = None,
) -> Iterator[FlowAssembler]:
    """Read one capture to its end or to its damage; yield its assembler after each block of records, and at the end.

    ``progress`` is told at every tenth of a file whose size is known, and at the end. With ``patience``, in seconds, a
    live stream from which nothing comes for so long yields as well, and its time goes on.

    Raises
    ------
    OSError
        The path is missing or cannot be read.
    CaptureError
        The source is no capture, or it is damaged and ``on_error="raise"``.
    """
    with opened(source) as stream, closing(Capture(stream, capture_name(source), patience)) as capture:
        assembler.begin_capture(capture.fraction_read)
        window, tenth = assembler.rules.reorder_window, 1
        try:
            blocks = capture.blocks()
            for data, records in reordered(blocks, window, capture.name) if window else blocks:
                if capture.joint and on_error == "raise":
                    break
                assembler.add(data, records)
                assembler.wait(capture.silence)
                fraction = capture.fraction_read() if progress else None
                if progress and fraction and 10 * fraction >= tenth:
                    tenth = int(10 * fraction) + 1
                    progress(capture.name, fraction, assembler.counters)
                yield assembler
            if capture.joint and on_error == "raise":
                raise capture.joint
        except CaptureError as error:
            if on_error == "raise":
                raise
            joint = f", another capture begins at byte {capture.joint.offset}" if capture.joint else ""
            warn_caller(f"{error}; the {capture.n_records} records before it are kept{joint}", CaptureWarning)
        else:
            if capture.joint:
                warn_caller(f"{capture.joint}; it is read, too", CaptureWarning)
        _report_link_types(capture, assembler)
        _report_ignored(capture.name, assembler)
        if progress:
            progress(capture.name, None, assembler.counters)
        yield assembler


def _report_link_types(capture: Capture, assembler: FlowAssembler) -> None:
    counters = assembler.counters
    n_unknown = counters["unknown_link_type"]
    if not n_unknown:
        return
    names = ", ".join(link_name(link_type) for link_type in assembler.unknown_link_types)
    if n_unknown == counters["packets"]:
        raise CaptureError(f"link type {names} is not supported", capture.name)
    warn_caller(f"{capture.name}: {n_unknown} packets of unsupported link type {names} are skipped", CaptureWarning)


def _report_ignored(name: str, assembler: FlowAssembler) -> None:
    """Warn of a capture of which most was not looked at: nobody should take its flows for the whole."""
    counters = assembler.counters
    unwanted = ("other_protocol",) if len(set(assembler.rules.protocols)) < 2 else ()
    if mostly_ignored(counters, unwanted):
        kinds = most_frequent([assembler.ignored])
        warn_caller(
            f"{name}: most packets are in no flow, so nothing is said about them: {described(counters)}"
            + (f"; of the ignored: {kinds}" if kinds else ""),
            CaptureWarning,
        )


def first_time(source: Any) -> int | None:
    """Return the time of the first packet of a file, None where it cannot be had without changing anything."""
    if not is_url(source) and not (isinstance(source, str | bytes | os.PathLike) and os.path.isfile(source)):
        return None
    try:
        with opened(source) as stream, closing(Capture(stream, capture_name(source))) as capture:
            return next((int(records["time"][0]) for _, records in capture.blocks() if len(records)), None)
    except (CaptureError, OSError):  # said when it is read
        return None


@dataclass
class ReadCaptures:
    """Captures that were read one after the other: their flows, those that were not handed on, and their counters."""

    rows: FlowRows
    counters: list[dict[str, int]]  # one per capture, empty for one that was refused
    ignored: list[dict[str, int]]
    errors: list[CaptureError]


def read_captures(
    sources: Sequence[Any],
    rules: FlowRules,
    on_error: str,
    progress: Progress,
    stopped: Callable[[], bool],
    emit: Callable[[FlowRows], object] | None = None,
) -> ReadCaptures:
    """Read captures in order; flows that live at the end of one go on in the next where that continues it.

    What is no capture leaves its error, where errors are warned of: others of the same call may be captures. When
    nobody waits for the result any more, ``stopped`` says so: it then is what there is so far.
    """
    assembler = FlowAssembler(rules, emit)
    read = ReadCaptures(assembler.rows, [], [], [])
    for source in sources:
        try:
            for _ in assemble(source, assembler, on_error, progress):
                if stopped():
                    return read
            read.counters.append(assembler.counters)
            read.ignored.append(assembler.ignored)
        except CaptureError as error:
            if on_error == "raise":
                raise
            read.errors.append(error)
            read.counters.append({})
            read.ignored.append({})
    deque(assembler.finish(), maxlen=0)
    read.rows = assembler.rows
    return read


def warn_of_refused(errors: Sequence[CaptureError], n_captures: int) -> None:
    """Warn of each capture that was refused; raise the first error if all were: there is nothing to go on with."""
    if errors and len(errors) == n_captures:
        raise errors[0]
    for error in errors:
        warn_caller(f"{error}; it is left out", CaptureWarning)
