# SPDX-License-Identifier: BSD-3-Clause
"""Packets into flows: the live flows of one capture, and the rows of finished ones."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sklearn_docids._warn import warn_caller
from sklearn_docids.capture import kernels
from sklearn_docids.capture.containers import Capture, capture_name, link_name, opened
from sklearn_docids.capture.counting import described, mostly_ignored
from sklearn_docids.capture.headers import LINK_PPI, PACKET_DTYPE, PACKET_FATES
from sklearn_docids.capture.layouts import FIELDS
from sklearn_docids.capture.reordering import reordered
from sklearn_docids.capture.rewriting import KEEP
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

# Set when nobody waits any more for what a thread reads.
interrupted: ContextVar[threading.Event | None] = ContextVar("interrupted", default=None)

# Takes the name of a capture, the fraction of it that has been read (None: it is done), and its counters.
Progress = Callable[[str, float | None, dict[str, int]], object]


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
    innermost: bool = False
    duplicate_window: int = 0
    reorder_window: int = 0
    emit_early: bool = False
    field_actions: tuple[int, ...] = (KEEP,) * len(FIELDS)

    @property
    def row_bytes(self) -> int:
        """Memory of a flow, without the table."""
        return kernels.FLOW_DTYPE.itemsize + self.n_packets * (self.n_bytes + 2)

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
        settings["rewrites"] = any(self.field_actions)
        # 73 years are never, as all times lie within twice that; so sums of times and timeouts do not overflow.
        never = self.idle_timeout is None or self.idle_timeout * 1e9 >= 2**61
        settings["idle_timeout"] = 2**62 if never else round(self.idle_timeout * 1e9)  # type: ignore[operator]
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
    if n_rows <= len(array):
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
        most = max(FIRST_BYTES // rules.row_bytes, 4)
        # Room that is not used costs no memory: that of all live flows is never copied to a larger one.
        n_first = min(rules.max_live_flows + 1, GUESS_BYTES // rules.row_bytes) if emit else min(FIRST_ROWS, most)
        self.rows: FlowRows = FlowRows.empty(n_first, rules)
        self._emit = emit
        self.fraction_read = fraction_read
        self._settings = rules.settings()
        self._settings["recycles"] = emit is not None
        self._field_actions = np.array(rules.field_actions, np.int64)
        self._table = np.zeros(2 * FIRST_ROWS, kernels.ENTRY_DTYPE)
        self._free = np.arange(len(self.rows))[::-1].copy() if emit else np.zeros(0, np.int64)
        self._staged = FlowRows.empty(min(STAGED_ROWS, most) if emit else 2, rules)
        self._candidates = np.zeros(0, kernels.CANDIDATE_DTYPE)
        self._packets = np.zeros(kernels.LOOKAHEAD, PACKET_DTYPE)
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
            done, lacking = kernels.add_packets(data, records, done, self._storage)
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

    def finish(self) -> Iterator[None]:
        """End the capture: all flows are finished now. Yields after each group of them that was handed on."""
        if self._emit:
            names = self._table["name"]
            self._replace_table(np.zeros_like(self._table))
            yield from self._hand_on(names[names != 0])
            self.flush()
        else:
            self._forget_storage()
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

    @cached_property
    def _storage(self) -> kernels.Storage:
        """Everything as the kernels take it; forgotten when an array is replaced by another one."""
        return kernels.Storage(
            table=self._table, rows=_flat(self.rows), free=self._free, staged=_flat(self._staged),
            candidates=self._candidates, packets=self._packets, digests=self._digests, cursors=self._cursor,
            settings=self._settings, field_actions=self._field_actions, keys=self._keys, fates=self._fates,
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
            self.rows.resize(self._expected_rows())

    @property
    def _n_live(self) -> int:
        return int(self._cursor["n_live"][0])

    def _sweep(self, size: int | None = None) -> None:
        """Finish the flows that have idled out; put the others into a fresh table."""
        entries = self._table[self._table["name"] != 0]
        idle = self._cursor["clock"][0] - entries["last_active"] > self._settings["idle_timeout"][0]
        fresh = np.zeros(size or len(self._table), kernels.ENTRY_DTYPE)
        kernels.rehash(fresh, self._storage)
        self._replace_table(fresh)
        deque(self._hand_on(entries["name"][idle]), maxlen=0)

    def _replace_table(self, table: np.ndarray) -> None:
        self._table = table
        self._forget_storage()

    def _hand_on(self, names: np.ndarray) -> Iterator[None]:
        """Finish flows that have left the table, in order of their rows; yield after each group of them."""
        if not self._emit:
            return
        slots = _slots(names)
        slots = slots[np.argsort(self.rows.records["row"][slots])]
        at = 0
        while at < len(slots):
            at = kernels.finish_all(slots, at, self._storage)
            if at < len(slots):
                self.flush()
                yield

    def _set_clock_back(self) -> None:
        """Set the clock back to where a flow that was active at 0 has just idled out."""
        step = int(self._cursor["clock"][0] - self._settings["idle_timeout"][0] - 1)
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
        self.rows.resize(n_slots)

    def _expected_rows(self) -> int:
        """Return how many rows to make room for: a quarter more than the capture will need by its size.

        Room that is not used costs no memory, room that is lacking costs copying all rows.
        """
        n_rows = len(self.rows)
        if n_rows < GUESS_ROWS:
            return min(GUESS_ROWS, 8 * n_rows)
        guess = int(n_rows * max(1.25 / (self.fraction_read() or 0.6), 1.25))
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
    return kernels.Rows(rows.records, rows.X.reshape(-1), rows.kept_bytes)


def _slots(names: np.ndarray) -> np.ndarray:
    """Return the slots in the names of table entries."""
    return (names & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1


def assemble(
    source: Any,
    rules: FlowRules,
    on_error: str,
    emit: Callable[[FlowRows], object] | None = None,
    progress: Progress | None = None,
) -> Iterator[FlowAssembler]:
    """Read one capture to its end or to its damage; yield its assembler after each block of records, and at the end.

    ``progress`` is told at every tenth of a file whose size is known, and at the end.

    Raises
    ------
    OSError
        The path is missing or cannot be read.
    CaptureError
        The source is no capture, or it is damaged and ``on_error="raise"``.
    CancelledError
        ``interrupted`` was set.
    """
    interruption = interrupted.get()
    with opened(source) as stream, closing(Capture(stream, capture_name(source))) as capture:
        assembler = FlowAssembler(rules, emit, capture.fraction_read)
        tenth = 1
        try:
            blocks = capture.blocks()
            for data, records in reordered(blocks, rules.reorder_window) if rules.reorder_window else blocks:
                if capture.joint and on_error == "raise":
                    break
                if interruption and interruption.is_set():
                    raise CancelledError
                assembler.add(data, records)
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
        for _ in assembler.finish():
            yield assembler
        _report_link_types(capture, assembler.counters)
        _report_ignored(capture.name, assembler.counters, rules)
        if progress:
            progress(capture.name, None, assembler.counters)
        yield assembler


def _report_link_types(capture: Capture, counters: dict[str, int]) -> None:
    n_unknown = counters["unknown_link_type"]
    if not n_unknown:
        return
    names = ", ".join(link_name(link_type) for link_type in sorted(capture.unsupported))
    names = names or f"{link_name(LINK_PPI)} around another"
    if n_unknown == counters["packets"]:
        raise CaptureError(f"link type {names} is not supported", capture.name)
    warn_caller(f"{capture.name}: {n_unknown} packets of unsupported link type {names} are skipped", CaptureWarning)


def _report_ignored(name: str, counters: dict[str, int], rules: FlowRules) -> None:
    """Warn of a capture of which most was not looked at: nobody should take its flows for the whole."""
    unwanted = ("other_protocol",) if len(set(rules.protocols)) < 2 else ()
    if mostly_ignored(counters, unwanted):
        warn_caller(
            f"{name}: most packets are in no flow, so nothing is said about them: {described(counters)}", CaptureWarning
        )


def read_whole(
    source: Any,
    rules: FlowRules,
    on_error: str,
    progress: Progress,
    emit: Callable[[FlowRows], object] | None = None,
) -> tuple[FlowRows, dict[str, int]] | CaptureError:
    """Return the flows of one capture, those that ``emit`` was not handed, and its counters.

    What is no capture returns its error, where errors are warned of: others of the same call may be captures.
    """
    try:
        assembler = deque(assemble(source, rules, on_error, emit, progress), maxlen=1).pop()
    except CaptureError as error:
        if on_error == "raise":
            raise
        return error
    return assembler.rows, assembler.counters


def warn_of_refused(errors: Sequence[CaptureError], n_captures: int) -> None:
    """Warn of each capture that was refused; raise the first error if all were: there is nothing to go on with."""
    if errors and len(errors) == n_captures:
        raise errors[0]
    for error in errors:
        warn_caller(f"{error}; it is left out", CaptureWarning)
