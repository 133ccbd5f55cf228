# SPDX-License-Identifier: BSD-3-Clause
"""Flows of a stream that has no end: those that are open, and those that have just been decided."""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sklearn_docids.capture import kernels
from sklearn_docids.capture.flows import NEVER, FlowAssembler, FlowRows, FlowRules
from sklearn_docids.capture.hashing import N_KEYS
from sklearn_docids.capture.headers import PACKET_FATES
from sklearn_docids.capture.table import FlowTable, joined

# Flows that have ended are looked for so often, where that takes less than a twentieth of the time.
LOOK_EVERY_S = 0.2
# A closed connection has ended when nothing came for so long: the last ACK and what overtook the FIN belong to it.
LINGER_NS = 3 * 10**8
MOST_OF_TIME = 0.05
ROWS = ("records", "X", "kept_bytes", "payload_lengths")
# The smallest table of open flows.
LEAST_TABLE = 8192


class LiveAssembler(FlowAssembler):
    """The flows of a stream without an end, which come out within a fraction of a second of their own.

    A connection that was closed ends after 0.3 s of silence. Should it go on, as behind a forged RST, it comes
    out once more. Files that a rotating capture writes are one stream.
    """

    def __init__(self, rules: FlowRules) -> None:
        self.done: list[FlowRows] = []
        self.names: list[tuple[int, str]] = []  # number of the first flow of each file, and its name
        self._next_look = 0.0
        self._looked_at = -NEVER
        super().__init__(rules, lambda rows: self.done.append(rows.copy()))
        self._shown = np.full((len(self.rows), 2), -1)  # of closed flows that came out: number, and payload then

    def begin_file(self, name: str) -> None:
        """Say from which file the next packets are."""
        if self.names and not self.rules.rotated:
            self._cut()
        self.names.append((self.n_rows, name))
        self._forget_names()

    def _forget_names(self) -> None:
        """Forget names of files that no flow to come has begun in."""
        oldest = int(self.rows.records["row"][self._open_slots()].min(initial=self.names[-1][0]))
        del self.names[: bisect_right([first for first, _ in self.names], oldest) - 1]

    def flush_idle(self) -> None:
        """Hand on the flows that have ended."""
        begun = time.monotonic()
        if begun >= self._next_look:
            self._end_silent()
            took = time.monotonic() - begun
            self._next_look = begun + took + max(LOOK_EVERY_S, took / MOST_OF_TIME)
        super().flush_idle()

    def _end_silent(self) -> None:
        """End what has been silent for long enough since the last look: closed connections sooner than others."""
        clock = int(self._cursor["clock"][0])
        before = self._looked_at if self._looked_at <= clock else -NEVER  # else, the clock was set back
        self._looked_at = clock
        closed = self._silent(before - LINGER_NS, clock - LINGER_NS)
        self._give_out(closed[self._is_closed(closed)])
        idle_timeout = int(self._settings["idle_timeout"][0]) + 1
        self._give_out(self._silent(before - idle_timeout, clock - idle_timeout))

    def _silent(self, after: int, until: int) -> np.ndarray:
        """Return the slots of flows whose last packet came in a span of time."""
        last_active = self._table["last_active"]
        found = np.flatnonzero((last_active > after) & (last_active <= until))
        return slots_of(self._table[found[self._table["name"][found] != 0]])

    def _is_closed(self, slots: np.ndarray) -> np.ndarray:
        """Whether flows were closed; those that went on since they came out are to come out once more."""
        records = self.rows.records[slots]
        now = np.stack([records["row"], records["payload_forward"] + records["payload_backward"]], axis=1)
        is_closed = records["end"] == kernels.CLOSED
        goes_on = (now[:, 0] == self._shown[slots, 0]) & (now[:, 1] > self._shown[slots, 1])
        self._given_out[slots[is_closed & goes_on]] = False
        self._shown[slots[is_closed]] = now[is_closed]
        return np.asarray(is_closed)

    def _give_out(self, slots: np.ndarray) -> None:
        deque(self._end(slots, kernels.IDLE), maxlen=0)

    def _resize(self, n_slots: int) -> None:
        super()._resize(n_slots)
        self._shown = np.concatenate([self._shown, np.full((n_slots - len(self._shown), 2), -1)])

    def _open_slots(self) -> np.ndarray:
        """Return the slots of the flows that have not come out."""
        slots, rules = slots_of(self._table[self._table["name"] != 0]), self._settings[0]
        is_out = self._given_out[slots]
        if rules["emit_early"]:
            records = self.rows.records[slots]
            numbers = records["packets_forward"].astype(np.int64) + records["packets_backward"]
            is_full = self.rows.payload_lengths[slots, -1] != 0
            is_out |= (numbers >= rules["n_packets"]) & ((numbers >= rules["n_looked_at"]) | is_full)
        return slots[~is_out]

    @property
    def n_open(self) -> int:
        """Number of flows that have not come out."""
        return len(self._open_slots())

    @property
    def fates(self) -> dict[str, int]:
        """Packets so far, by what became of them."""
        return {name: int(n) for name, n in zip(PACKET_FATES, self._fates, strict=True)}

    @property
    def clock(self) -> int:
        """Time of the stream, ns since 1970."""
        return int(self._cursor["latest"][0])

    def snapshot(self) -> Snapshot:
        """Return what is known of the flows that are open or remembered; finished ones have been handed on."""
        self.flush()
        entries = self._table[self._table["name"] != 0]
        # Those that are open come first: of the others, bytes are needed no more.
        entries = entries[np.argsort(self._given_out[slots_of(entries)], kind="stable")]
        slots = slots_of(entries)
        hashes = entries["name"] >> np.uint64(32) << np.uint64(32)
        entries["name"] = hashes | np.arange(1, len(entries) + 1, dtype=np.uint64)
        n_digests = min(int(self._cursor["n_digests"][0]), len(self._digests))
        return Snapshot(
            self.rows[slots], entries, self._given_out[slots], self._shown[slots],
            self._tunnels[slots] if self.rules.innermost else np.zeros(0, np.uint64),
            self._cursor.copy(), self._keys, self._digests[:n_digests].copy(), self._digest_times[:n_digests].copy(),
        )  # fmt: skip

    def restore(self, found: Snapshot) -> None:
        """Go on where an assembler of the same rules was when the snapshot was taken."""
        n = len(found.entries)
        if n >= len(self.rows):
            self._add_slots(n + 1)
        for name in ("records", "X", "kept_bytes", "payload_lengths"):
            getattr(self.rows, name)[:n] = getattr(found.rows, name)
        self._given_out[:n] = found.given_out
        self._shown[:n] = found.shown
        self._tunnels[: len(found.tunnels)] = found.tunnels
        self._keys = found.keys
        self._digests[: len(found.digests)] = found.digests
        self._digest_times[: len(found.digests)] = found.digest_times
        self._free = np.arange(len(self.rows))[::-1].copy()
        self._cursor[:] = found.cursor
        self._cursor["n_free"] = len(self.rows) - n
        for name in ("n_staged", "candidate", "n_kinds", "n_evicted"):
            self._cursor[name] = 0
        self._next_sweep = 0
        self._table = found.entries
        self._forget_storage()
        self._sweep(max(LEAST_TABLE, 2 ** int(np.ceil(np.log2(4 * n + 1)))))
        self.flush()


@dataclass
class Snapshot:
    """All that a `LiveAssembler` knows, its open flows in slots from 0 on."""

    rows: FlowRows
    entries: np.ndarray  # ENTRY_DTYPE
    given_out: np.ndarray  # bool
    shown: np.ndarray  # int64 (n, 2)
    tunnels: np.ndarray  # uint64; empty unless tunnels are entered
    cursor: np.ndarray  # CURSOR_DTYPE, one
    keys: np.ndarray  # uint64
    digests: np.ndarray  # uint64
    digest_times: np.ndarray  # int64

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name; ``X`` has the open flows alone."""
        of_rows = {name: getattr(self.rows, name) for name in ROWS}
        of_rows["X"] = of_rows["X"][: int((~self.given_out).sum())]
        return of_rows | {name: value for name, value in vars(self).items() if name != "rows"}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], rules: FlowRules) -> Snapshot:
        """Return the snapshot that arrays make, if compiled code, which checks no bounds, can go on with it.

        Raises
        ------
        ValueError
            They do not fit each other or the rules.
        """
        X, given_out = arrays["X"], arrays["given_out"]
        n_closed = int(given_out.sum())
        if given_out[: len(given_out) - n_closed].any() or X.ndim != 2 or len(X) != len(given_out) - n_closed:
            raise ValueError("its parts do not fit together")
        rows = rows_of({**arrays, "X": np.concatenate([X, np.zeros((n_closed, X.shape[1]), np.uint8)])}, rules)
        found = cls(rows, **{name: array for name, array in arrays.items() if name not in ROWS})
        n = len(found.entries)
        slots = found.entries["name"] & np.uint64(0xFFFFFFFF)
        fits = (
            rows.kept_bytes.shape == (n, rules.n_packets)
            and rows.X.shape == (n, rules.n_packets * rules.n_bytes)
            and np.array_equal(slots, np.arange(1, n + 1))
            and len(found.given_out) == n <= 2**31
            and found.shown.shape == (n, 2)
            and len(found.tunnels) == (n if rules.innermost else 0)
            and (len(found.cursor), len(found.keys)) == (1, N_KEYS)
            and len(found.digests) == len(found.digest_times) <= rules.duplicate_window
            and found.cursor["n_digests"][0] >= 0
        )
        if not fits:
            raise ValueError("its parts do not fit together")
        rows.check()
        return found


def slots_of(entries: np.ndarray) -> np.ndarray:
    """Return the slots of flows by their entries in the table."""
    return (entries["name"] & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1


def rows_of(arrays: Mapping[str, np.ndarray], rules: FlowRules) -> FlowRows:
    """Return flows whose parts are among arrays."""
    records, X, kept_bytes, payload_lengths = (arrays[name] for name in ROWS)
    return FlowRows(records, X, kept_bytes, payload_lengths, rules.layout)


def fingerprint(rules: FlowRules) -> str:
    """Return a name of the rules: a snapshot is of use under the same ones alone."""
    return hashlib.sha256(f"{rules!r} {kernels.FLOW_DTYPE} {kernels.CURSOR_DTYPE}".encode()).hexdigest()[:16]


def decided_at(records: np.ndarray, rules: FlowRules) -> np.ndarray:
    """Return when the fate of flows was decided, ns since 1970: with their last packet, or when they had idled out."""
    idle_timeout = int(rules.settings()["idle_timeout"][0])
    return records["time_last"] + np.where(records["end"] == kernels.IDLE, idle_timeout, 0)


def table_of(parts: list[FlowRows], names: list[tuple[int, str]]) -> FlowTable:
    """Return one table of flows, each with the name of the file in which it began."""
    rows = joined(parts)
    firsts = [first for first, _ in names]
    capture = np.maximum(np.searchsorted(firsts, rows.records["row"], side="right") - 1, 0)
    return FlowTable(rows, capture, [name for _, name in names], [])
