# SPDX-License-Identifier: BSD-3-Clause
"""Flows to disk as they finish, so that memory holds only those that live."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from sklearn_docids._scratch import scratch_folder, sync
from sklearn_docids.capture import folders, kernels
from sklearn_docids.capture.containers import capture_name
from sklearn_docids.capture.flows import FlowRows, FlowRules, Progress, ReadCaptures, read_captures, warn_of_refused
from sklearn_docids.capture.shard_folders import is_list_in
from sklearn_docids.capture.table import is_midstream, less_dropped

MAX_GAP_ROWS = 64
COPIED_ROWS = 4096

# Runs a function on many argument tuples, perhaps in several threads, and returns the results in order. It adds an
# argument: a function that says whether the result is still waited for.
RunAll = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]


@dataclass
class RowFormat:
    """What a .npy file of rows holds."""

    field: str  # of `FlowRows`
    name: str
    dtype: np.dtype
    row_shape: tuple[int, ...]


class RowFile:
    """A .npy file whose rows come in any order and whose length is known last."""

    def __init__(self, path: str, form: RowFormat):
        self.path = path
        self.form = form
        self.n_rows: int = 0
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 - closed by `close`
        self._write_header()
        self.data_start: int = self._file.tell()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}  # closed, where a file goes to another process

    def _write_header(self) -> None:
        # numpy pads the header so that the length can grow to 20 digits in place.
        self._file.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(self.form.dtype),
            "fortran_order": False,
            "shape": (self.n_rows, *self.form.row_shape),
        }
        np.lib.format.write_array_header_2_0(self._file, header)

    def put(self, place: np.ndarray, rows: np.ndarray) -> None:
        """Write ``rows`` at the row numbers ``place`` (ascending).

        Behind the last row so far, gaps are of flows that still live: they are filled with zeros, to be written later,
        so that neighbours go out together.
        """
        n_late = int(np.searchsorted(place, self.n_rows))
        for first, last in _runs(place[:n_late], 1):
            self._write(int(place[first]), rows[first:last])
        for first, last in _runs(place[n_late:], MAX_GAP_ROWS):
            where = place[n_late + first : n_late + last]
            filled = np.zeros((int(where[-1] - where[0]) + 1, *rows.shape[1:]), rows.dtype)
            filled[where - where[0]] = rows[n_late + first : n_late + last]
            self._write(int(where[0]), filled)
        self.n_rows = max(self.n_rows, int(place[-1]) + 1)

    def _write(self, place: int, rows: np.ndarray) -> None:
        self._file.seek(self.data_start + place * rows.strides[0])
        self._write_all(memoryview(rows.view(np.uint8).reshape(-1)))  # type: ignore[arg-type]

    def _write_all(self, rest: memoryview) -> None:
        while rest:  # a write may be short
            rest = rest[self._file.write(rest) :]

    def remove(self, places: np.ndarray) -> None:
        """Remove the rows at ``places`` (ascending): those behind move up, some thousands at a time."""
        kept = np.delete(np.arange(self.n_rows), places)
        row_bytes = self.form.dtype.itemsize * int(np.prod(self.form.row_shape, dtype=np.int64))
        for first in range(0, len(kept), COPIED_ROWS):
            some = kept[first : first + COPIED_ROWS]
            self._file.seek(self.data_start + int(some[0]) * row_bytes)
            data = np.frombuffer(self._file.read((int(some[-1] - some[0]) + 1) * row_bytes), np.uint8)
            self._file.seek(self.data_start + first * row_bytes)
            self._write_all(memoryview(data.reshape(-1, row_bytes)[some - some[0]].reshape(-1)))
        self._file.truncate(self.data_start + len(kept) * row_bytes)
        self.n_rows = len(kept)

    def append(self, other: RowFile) -> None:
        """Write the rows of another, closed file behind those of this one; remove that file."""
        self._file.seek(0, os.SEEK_END)
        with open(other.path, "rb") as source:
            source.seek(other.data_start)
            while data := source.read(2**20):
                self._write_all(memoryview(data))
        self.n_rows += other.n_rows
        os.remove(other.path)

    def reopen(self) -> None:
        """Open the file again after `close`."""
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115 - closed by `close`

    def close(self) -> None:
        """Write the final header."""
        try:
            self._write_header()
        finally:
            self._file.close()


def row_formats(rules: FlowRules) -> list[RowFormat]:
    """Return what a folder of flows holds; the bytes first."""
    return [
        RowFormat("X", "X.npy", np.dtype(np.uint8), (rules.n_packets * rules.n_bytes,)),
        RowFormat("records", "flows.npy", kernels.FLOW_DTYPE, ()),
        RowFormat("kept_bytes", "kept_bytes.npy", np.dtype(np.uint16), (rules.n_packets,)),
        RowFormat("payload_lengths", "payload_lengths.npy", np.dtype(np.int32), (rules.n_packets,)),
    ]


def write_flows(
    runs: Sequence[Sequence[Any]],
    rules: FlowRules,
    on_error: str,
    out: str,
    progress: Progress,
    run_all: RunAll,
    drop_midstream: bool,
) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Write the flows of captures to ``out``; return the counters of each, and what was ignored.

    Each run of captures that are read one after the other gets files of its own in a folder beside the goal. When all
    are read, they are joined and get their names: an array file at once, the files of a folder all at once.
    """
    only_bytes = out.endswith(".npy")
    if is_list_in(out):
        raise ValueError(f"{out} has shards: use another folder, or write more of them with shards=")
    if only_bytes and os.path.isdir(out):
        raise IsADirectoryError(f"{out} is a folder; a name that ends in .npy is that of a file")
    folder = (os.path.dirname(out) or ".") if only_bytes else out
    os.makedirs(folder, exist_ok=True)
    formats = row_formats(rules)[:1] if only_bytes else row_formats(rules)
    with scratch_folder(folder) as scratch:
        parts = run_all(write_run, [(run, rules, on_error, scratch, formats, progress, drop_midstream) for run in runs])
        sources = [source for run in runs for source in run]
        warn_of_refused([error for _, read in parts for error in read.errors], len(sources))
        counters = [counts for _, read in parts for counts in read.counters]
        ignored = [kinds for _, read in parts for kinds in read.ignored]
        joined = [_join([files[i] for files, _ in parts]) for i in range(len(formats))]
        if only_bytes:
            sync(joined[0].path)
            os.replace(joined[0].path, out)
        else:
            described = [
                {"name": capture_name(source), **counts, "ignored": kinds, "layout": rules.layout}
                for source, counts, kinds in zip(sources, counters, ignored, strict=True)
            ]
            folders.publish(whole_folder(joined, described), out)
    return counters, ignored


def check_seen(scratch: str) -> None:
    """Refuse to work where the caller's folder cannot be seen: in a worker elsewhere, or when the caller has gone."""
    if not os.path.isdir(scratch):
        why = (
            f"a worker on {socket.gethostname()} does not see the caller's folder: workers need a file system that "
            "they share with the caller, also for JOBLIB_TEMP_FOLDER"
        )
        raise FileNotFoundError(errno.ENOENT, why, os.path.dirname(os.path.dirname(scratch)))


def whole_folder(files: Sequence[RowFile], described: list[dict[str, Any]]) -> str:
    """Return the folder that the files lie in, with all that belongs to them."""
    folder = os.path.dirname(files[0].path)
    with open(os.path.join(folder, folders.CAPTURES), "w", encoding="utf-8") as text:
        json.dump(described, text, indent=1)
    folders.seal(folder)
    return folder


def write_run(
    sources: Sequence[Any],
    rules: FlowRules,
    on_error: str,
    scratch: str,
    formats: Sequence[RowFormat],
    progress: Progress,
    drop_midstream: bool,
    stopped: Callable[[], bool],
) -> tuple[list[RowFile], ReadCaptures]:
    """Write the flows of captures that are read one after the other; return the files and what was read.

    Another process may do so: what is returned has no flows in it.
    """
    check_seen(scratch)
    folder = os.path.join(scratch, uuid4().hex)  # a worker that was given up may still write to its own
    os.mkdir(folder)
    files = [RowFile(os.path.join(folder, form.name), form) for form in formats]
    left_out: list[np.ndarray] = []

    def put(rows: FlowRows) -> None:
        order = np.argsort(rows.records["row"])
        place = rows.records["row"][order]
        if drop_midstream:
            left_out.append(rows.records["row"][is_midstream(rows.records)])
        for file in files:
            file.put(place, getattr(rows, file.form.field)[order])

    try:
        read = read_captures(sources, rules, on_error, progress, stopped, put)
        if drop_midstream:
            _leave_out(np.sort(np.concatenate([np.zeros(0, np.int64), *left_out])), files, read)
    finally:
        for file in files:
            file.close()
    del read.rows  # room for live flows, which have all gone: nothing to send to whoever waits elsewhere
    return files, read


def flows_through_files(
    runs: Sequence[Sequence[Any]], rules: FlowRules, on_error: str, beside: str, progress: Progress, run_all: RunAll
) -> list[ReadCaptures]:
    """Return the flows of runs of captures as `read_captures` does, which whoever read them left in files."""
    with scratch_folder(beside) as scratch:
        formats = row_formats(rules)
        parts = run_all(write_run, [(run, rules, on_error, scratch, formats, progress, False) for run in runs])
        for files, read in parts:
            arrays = {file.form.field: np.load(file.path, allow_pickle=False) for file in files}
            read.rows = FlowRows(**arrays, layout=rules.layout)
    return [read for _, read in parts]


def _leave_out(places: np.ndarray, files: Sequence[RowFile], read: ReadCaptures) -> None:
    """Remove rows from files, and from the counts of their captures."""
    for file in files:
        file.remove(places)
    ends = np.cumsum([0, *(counts.get("flows", 0) for counts in read.counters)])
    dropped = np.diff(np.searchsorted(places, ends)).tolist()
    read.counters = less_dropped(read.counters, dropped)


def _runs(place: np.ndarray, max_step: int) -> list[tuple[int, int]]:
    """Return (first, last) of each run of ascending row numbers that are at most ``max_step`` apart."""
    if not len(place):
        return []
    borders = (np.flatnonzero(np.diff(place) > max_step) + 1).tolist()
    return list(zip([0, *borders], [*borders, len(place)], strict=True))


def _join(files: Sequence[RowFile]) -> RowFile:
    """Append the files of all captures to that of the first one."""
    first = files[0]
    first.reopen()
    try:
        for file in files[1:]:
            first.append(file)
    finally:
        first.close()
    return first
