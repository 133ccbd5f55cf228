# SPDX-License-Identifier: BSD-3-Clause
"""Rows that are read when they are asked for, so that a table may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, TypeAlias

import numpy as np

from sklearn_docids.capture.shards import ShardedArray, mapped_array
from sklearn_docids.capture.table import FlowTable

# Rows that are looked at together: some 20 MB of bytes, and few enough pieces that what each of them costs is nothing.
ROWS_AT_ONCE = 65_536


class SelectedRows:
    """Some rows of an array on disk, in an order of their own; indexing reads them and returns a copy.

    Parameters
    ----------
    array : ShardedArray
        The array.
    places : ndarray of int64
        Its row for each row here.
    """

    def __init__(self, array: ShardedArray, places: np.ndarray):
        self._array, self._places = array, places
        self.shape, self.dtype, self.ndim = (len(places), *array.shape[1:]), array.dtype, array.ndim

    @property
    def nbytes(self) -> int:
        """Bytes that the array would take in memory."""
        return prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, str):
            return np.asarray(self._array[key][self._places])
        rows, *rest = key if isinstance(key, tuple) else (key,)
        return np.asarray(self._array[self._places[rows], *rest])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype, copy=copy)

    def at(self, places: np.ndarray) -> SelectedRows:
        """Return some of these rows, without reading them."""
        return SelectedRows(self._array, self._places[places])


LazyArray: TypeAlias = ShardedArray | SelectedRows


def is_lazy(array: Any) -> bool:
    """Return whether an array's rows are read when they are asked for."""
    return isinstance(array, ShardedArray | SelectedRows)


def lazily(array: Any) -> Any:
    """Return an array that is mapped from a file as one whose rows are read; any other as it is."""
    found = mapped_array(array) if isinstance(array, np.ndarray) and array.nbytes > 0 else None
    return array if found is None else found


def selected(array: Any, places: np.ndarray) -> Any:
    """Return rows of an array: now, if it is in memory or they are few, otherwise when they are asked for."""
    if not is_lazy(array) or len(places) <= ROWS_AT_ONCE:
        return array[places]
    return array.at(places) if isinstance(array, SelectedRows) else SelectedRows(array, places)


def on_demand(flows: FlowTable) -> FlowTable:
    """Return a table whose arrays are read when they are asked for, as far as they are mapped from files."""
    return FlowTable(flows.rows.each(lazily), flows.capture, flows.captures, flows.counters, flows.ignored)


def selected_flows(flows: FlowTable, places: np.ndarray) -> FlowTable:
    """Return some flows of a table, in the order of ``places``; their rows as `selected` does."""
    rows = flows.rows.each(lambda array: selected(array, places))
    return FlowTable(rows, flows.capture[places], flows.captures, flows.counters, flows.ignored)


def pieces(n_rows: int) -> Iterator[slice]:
    """Yield the bounds of groups of rows."""
    for first in range(0, n_rows, ROWS_AT_ONCE):
        yield slice(first, min(first + ROWS_AT_ONCE, n_rows))
