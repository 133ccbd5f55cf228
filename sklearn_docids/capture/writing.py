# SPDX-License-Identifier: BSD-3-Clause
"""Flows to disk as they finish, so that memory holds only those that live."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_docids._scratch import scratch_folder, sync
from sklearn_docids.capture import folders, kernels
from sklearn_docids.capture.containers import capture_name
from sklearn_docids.capture.flows import FlowRows, FlowRules, Progress, read_whole, warn_of_refused
from sklearn_docids.exceptions import CaptureError

MAX_GAP_ROWS = 64

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
    ]


def write_flows(
    sources: Sequence[Any],
    rules: FlowRules,
    on_error: str,
    out: str,
    progress: Progress,
    run_all: RunAll,
) -> list[dict[str, int]]:
    """Write the flows of captures to ``out``; return the counters of each.

    Each capture gets files of its own in a folder beside the goal. When all are read, they are joined and get their
    names: an array file at once, the files of a folder all at once.
    """
    only_bytes = out.endswith(".npy")
    if only_bytes and os.path.isdir(out):
        raise IsADirectoryError(f"{out} is a folder; a name that ends in .npy is that of a file")
    folder = (os.path.dirname(out) or ".") if only_bytes else out
    os.makedirs(folder, exist_ok=True)
    formats = row_formats(rules)[:1] if only_bytes else row_formats(rules)
    with scratch_folder(folder) as scratch:
        parts = run_all(
            _write_capture,
            [(s, rules, on_error, scratch, number, formats, progress) for number, s in enumerate(sources)],
        )
        warn_of_refused([error for _, _, error in parts if error], len(parts))
        counters = [counts for _, counts, _ in parts]
        joined = [_join([files[i] for files, _, _ in parts]) for i in range(len(formats))]
        if only_bytes:
            sync(joined[0].path)
            os.replace(joined[0].path, out)
        else:
            described = [{"name": capture_name(s), **c} for s, c in zip(sources, counters, strict=True)]
            folders.publish(_whole(scratch, joined, described), out)
    return counters


def _whole(scratch: str, files: Sequence[RowFile], described: list[dict[str, Any]]) -> str:
    """Return a folder with all files of a run under their names."""
    whole = os.path.join(scratch, "whole")
    os.mkdir(whole)
    for file in files:
        os.rename(file.path, os.path.join(whole, file.form.name))
    with open(os.path.join(whole, folders.CAPTURES), "w", encoding="utf-8") as text:
        json.dump(described, text, indent=1)
    folders.seal(whole)
    return whole


def _write_capture(
    source: Any,
    rules: FlowRules,
    on_error: str,
    scratch: str,
    number: int,
    formats: Sequence[RowFormat],
    progress: Progress,
    stopped: Callable[[], bool],
) -> tuple[list[RowFile], dict[str, int], CaptureError | None]:
    """Write the flows of one capture; return its files, its counters and why it was refused, if it was."""
    files = [RowFile(os.path.join(scratch, f"{number}-{form.name}"), form) for form in formats]

    def put(rows: FlowRows) -> None:
        order = np.argsort(rows.records["row"])
        place = rows.records["row"][order]
        for file in files:
            file.put(place, getattr(rows, file.form.field)[order])

    try:
        read = read_whole(source, rules, on_error, progress, stopped, put)
    finally:
        for file in files:
            file.close()
    return (files, {}, read) if isinstance(read, CaptureError) else (files, read[1], None)


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
