# SPDX-License-Identifier: BSD-3-Clause
"""Flows to disk as they finish, so that memory holds only those that live."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sklearn_docids.capture import kernels
from sklearn_docids.capture._errors import CaptureError
from sklearn_docids.capture.containers import capture_name
from sklearn_docids.capture.flows import FlowRows, FlowRules, assemble, warn


class ArrayFile:
    """A .npy file whose rows come in any order and whose length is known last.

    Written beside its name and renamed when complete, so that a file of that name is always whole.
    """

    def __init__(self, path: str, dtype: np.dtype, row_shape: tuple[int, ...]):
        self.path = path
        self.dtype = dtype
        self.row_shape = row_shape
        self.n_rows = 0
        self._file = open(f"{path}.part", "w+b")  # noqa: SIM115 - closed by `close`
        self._write_header()
        self._data_start = self._file.tell()

    def _write_header(self) -> None:
        # numpy pads the header so that the length can grow to 20 digits in place.
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.n_rows, *self.row_shape),
        }
        self._file.seek(0)
        np.lib.format.write_array_header_2_0(self._file, header)

    def put(self, place: np.ndarray, rows: np.ndarray) -> None:
        """Write ``rows`` at the row numbers ``place`` (ascending), one write per run of neighbours."""
        row_bytes = rows[:1].nbytes
        for run in np.split(np.arange(len(place)), np.flatnonzero(np.diff(place) != 1) + 1):
            self._file.seek(self._data_start + int(place[run[0]]) * row_bytes)
            self._file.write(rows[run].tobytes())
        self.n_rows = max(self.n_rows, int(place[-1]) + 1)

    def close(self, *, keep: bool) -> None:
        """Put the file in its place, or remove it."""
        try:
            if keep:
                self._write_header()
            self._file.close()
        except OSError:  # the disk is full: what is there is not whole
            keep = False
            raise
        finally:
            if keep:
                os.replace(f"{self.path}.part", self.path)
            else:
                os.remove(f"{self.path}.part")


def write_flows(
    sources: Sequence[Any],
    rules: FlowRules,
    on_error: str,
    out: str,
    progress: Callable[[str, dict[str, int]], object],
    apply_policy: Callable[[FlowRows], object],
) -> list[dict[str, int]]:
    """Write the flows of captures to ``out``; return the counters of each."""
    width = rules.n_packets * rules.n_bytes
    if out.endswith(".npy"):
        files = {"X": ArrayFile(out, np.dtype(np.uint8), (width,))}
    else:
        os.makedirs(out, exist_ok=True)
        files = {
            "X": ArrayFile(os.path.join(out, "X.npy"), np.dtype(np.uint8), (width,)),
            "records": ArrayFile(os.path.join(out, "flows.npy"), kernels.FLOW_DTYPE, ()),
            "kept_bytes": ArrayFile(os.path.join(out, "kept_bytes.npy"), np.dtype(np.uint16), (rules.n_packets,)),
        }
    complete = False
    try:
        counters = _write_captures(sources, rules, on_error, files, progress, apply_policy)
        complete = True
    finally:
        for file in files.values():
            file.close(keep=complete)
    if len(files) > 1:
        described = [{"name": capture_name(s), **c} for s, c in zip(sources, counters, strict=True)]
        with open(os.path.join(out, "captures.json.part"), "w", encoding="utf-8") as table:
            json.dump(described, table, indent=1)
        os.replace(table.name, os.path.join(out, "captures.json"))
    return counters


def _write_captures(
    sources: Sequence[Any],
    rules: FlowRules,
    on_error: str,
    files: dict[str, ArrayFile],
    progress: Callable[[str, dict[str, int]], object],
    apply_policy: Callable[[FlowRows], object],
) -> list[dict[str, int]]:
    n_before = 0
    counters: list[dict[str, int]] = []
    refused: list[CaptureError] = []

    def put(rows: FlowRows) -> None:
        apply_policy(rows)
        order = np.argsort(rows.records["row"])
        for name, file in files.items():
            file.put(n_before + rows.records["row"][order], getattr(rows, name)[order])

    for source in sources:
        try:
            counts = assemble(source, rules, put, on_error).counters
        except CaptureError as error:
            if on_error == "raise":
                raise
            refused.append(error)
            counts = {}
        else:
            progress(capture_name(source), counts)
            n_before += counts["flows"]
        counters.append(counts)
    if len(refused) == len(sources):
        raise refused[0]
    for refusal in refused:
        warn(f"{refusal}; it is left out")
    return counters
