# SPDX-License-Identifier: BSD-3-Clause
"""Arrays that lie in files, more than memory holds: rows are read where they are asked for."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

# Rows picked here and there are read in pieces of at most so many bytes; what lies between two of them is read along
# where that is less than another read costs.
PIECE_BYTES, GAP_BYTES = 2**20, 2**13
# An array in memory is compared with the file it was mapped from at so many places.
N_COMPARED = 16


class Part(NamedTuple):
    """Rows of an array that lie in one file, one behind the other."""

    path: str
    offset: int  # bytes before the first row
    n_rows: int
    stamp: tuple[int, int]  # size in bytes and time of the last change, ns: another file of that name has others


class ShardedArray:
    """Rows in many files as one array, of which nothing is held in memory.

    Indexing reads rows from disk and returns a copy: a slice, an index, an array of indices or a mask; of structured
    rows also the name of a field. ``numpy.asarray`` reads everything. A file is open only while it is read, so there
    may be more files than a process may open. Arithmetic is for the copies.

    Parameters
    ----------
    parts : sequence of Part
        Where the rows are, in order.
    dtype : dtype
        Type of an entry.
    row_shape : tuple of int
        Shape of a row.
    owner : object, default=None
        Kept alive as long as this array is: it may remove files in its end.

    Raises
    ------
    OSError
        When rows are read: a file is missing or cannot be read.
    ValueError
        When rows are read: a file was changed since it was found.
    """

    def __init__(self, parts: Sequence[Part], dtype: Any, row_shape: tuple[int, ...], owner: object = None):
        self.parts = tuple(parts)
        self.dtype = np.dtype(dtype)
        self._row_shape = tuple(row_shape)
        self._starts = np.cumsum([0, *(part.n_rows for part in self.parts)])
        self._row_bytes = self.dtype.itemsize * prod(self._row_shape)
        self._owner = owner

    def __getstate__(self) -> dict[str, Any]:
        # Whoever gets a copy, perhaps in another process, does not own the files.
        return self.__dict__ | {"_owner": None}

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, then the shape of a row."""
        return (len(self), *self._row_shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return 1 + len(self._row_shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an entry."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes that the array would take in memory."""
        return len(self) * self._row_bytes

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"<ShardedArray: {self.dtype} {self.shape} in {len(self.parts)} files>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the rows lie in files: an array of them is always a copy")
        rows = self._between(0, len(self))
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self._field(key)
        if isinstance(key, tuple):
            rows = self[key[0]]
            return rows[key[1:] if isinstance(key[0], int | np.integer) else (slice(None), *key[1:])]
        if isinstance(key, int | np.integer):
            return self._picked(self._places(np.array([key])))[0]
        if isinstance(key, slice):
            first, last, step = key.indices(len(self))
            return self._between(first, max(first, last)) if step == 1 else self._picked(np.arange(first, last, step))
        return self._picked(self._places(np.asarray(key)))

    def _places(self, key: np.ndarray) -> np.ndarray:
        """Return row numbers from 0, of an array of indices or of a mask.

        Raises
        ------
        IndexError
            They are of another kind, or beyond the end.
        """
        if key.dtype == np.bool_ and key.ndim == 1:
            if len(key) != len(self):
                raise IndexError(f"a mask of {len(key)} rows was given for {len(self)} rows")
            return np.flatnonzero(key)
        if key.size == 0 and key.ndim == 1:
            return np.zeros(0, np.int64)
        if key.dtype.kind not in "iu" or key.ndim != 1:
            raise IndexError(f"rows are chosen by whole numbers or a mask, not by {key.dtype} of shape {key.shape}")
        places = key.astype(np.int64)
        places[places < 0] += len(self)
        if ((places < 0) | (places >= len(self))).any():
            raise IndexError(f"a row number is beyond the {len(self)} rows")
        return places

    def _field(self, name: str) -> np.ndarray:
        values = np.empty(len(self), self.dtype[name])
        at_once = max(PIECE_BYTES // self._row_bytes, 1)
        for first in range(0, len(self), at_once):
            values[first : first + at_once] = self[first : first + at_once][name]
        return values

    def _between(self, first: int, last: int) -> np.ndarray:
        """Return the rows from ``first`` on, before ``last``."""
        rows = np.empty((last - first, *self._row_shape), self.dtype)
        for number in self._numbers(np.array([first, last - 1])) if last > first else ():
            start = int(self._starts[number])
            begin, end = max(first - start, 0), min(last - start, self.parts[number].n_rows)
            if begin < end:
                with _Opened(self.parts[number], self._row_bytes) as file:
                    file.read(begin, rows[start + begin - first : start + end - first])
        return rows

    def _numbers(self, places: np.ndarray) -> range:
        """Return the numbers of the parts that may have rows between the first place and the last."""
        first, last = np.searchsorted(self._starts, places[[0, -1]], side="right") - 1
        return range(int(first), int(last) + 1)

    def _picked(self, places: np.ndarray) -> np.ndarray:
        """Return rows in any order; they are read in that of the files."""
        picked = np.empty((len(places), *self._row_shape), self.dtype)
        order = np.argsort(places, kind="stable")
        ascending = places[order]
        part = np.searchsorted(self._starts, ascending, side="right") - 1
        for a, b in _groups(np.diff(part) > 0, len(places)):
            number = int(part[a])
            with _Opened(self.parts[number], self._row_bytes) as file:
                self._pick(file, ascending[a:b] - self._starts[number], order[a:b], picked)
        return picked

    def _pick(self, file: _Opened, ascending: np.ndarray, order: np.ndarray, picked: np.ndarray) -> None:
        """Read rows of one file to their places, those that lie near each other at once."""
        piece = ascending // max(PIECE_BYTES // self._row_bytes, 1)
        far = (np.diff(ascending) * self._row_bytes > GAP_BYTES) | (np.diff(piece) > 0)
        for a, b in _groups(far, len(ascending)):
            first = int(ascending[a])
            rows = np.empty((int(ascending[b - 1]) - first + 1, *self._row_shape), self.dtype)
            file.read(first, rows)
            picked[order[a:b]] = rows[ascending[a:b] - first]


class _Opened:
    """The file of a part, while it is read."""

    def __init__(self, part: Part, row_bytes: int):
        self._part, self._row_bytes = part, row_bytes
        self._file = io.FileIO(part.path)
        if stamp_of(self._file.fileno()) != part.stamp:
            self._file.close()
            raise ValueError(f"{part.path} was changed since it was opened: load it again")

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def read(self, first: int, rows: np.ndarray) -> None:
        """Fill ``rows``, which is contiguous, from row ``first`` on."""
        self._file.seek(self._part.offset + first * self._row_bytes)
        rest = memoryview(rows.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while rest:
            n_read = self._file.readinto(rest)
            if not n_read:
                raise ValueError(f"{self._part.path} ends before its last row: it was cut while it was read")
            rest = rest[n_read:]


def stamp_of(file: str | int) -> tuple[int, int]:
    """Return what tells a file from another one of its name: its size, and when it was last changed, in ns."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def mapped_array(array: np.ndarray) -> ShardedArray | None:
    """Return a mapped array as one that is read: pages that are mapped count as memory once they are looked at.

    None for any other array, where its rows do not lie one behind the other, where it was mapped copy-on-write, as
    changes are not in the file, and where another file has the name by now.
    """
    mapped = array
    while isinstance(mapped, np.ndarray) and not isinstance(mapped.base, mmap.mmap):
        mapped = mapped.base  # type: ignore[assignment]
    if not isinstance(mapped, np.memmap) or mapped.mode not in ("r", "r+") or mapped.filename is None:
        return None
    if not (array.ndim and array.size and array.flags.c_contiguous) or array.dtype.hasobject:
        return None
    path, offset = os.path.abspath(mapped.filename), mapped.offset + array.ctypes.data - mapped.ctypes.data
    try:
        stamp = stamp_of(path)
        found = ShardedArray([Part(path, offset, len(array), stamp)], array.dtype, array.shape[1:])
        some = np.linspace(0, len(array) - 1, N_COMPARED).astype(np.int64)
        return found if found[some].tobytes() == array[some].tobytes() else None
    except (OSError, ValueError):
        return None


def _groups(ends: np.ndarray, n: int) -> list[tuple[int, int]]:
    """Return (first, last) of each group; ``ends`` says behind which entries but the last one a group ends."""
    borders = (np.flatnonzero(ends) + 1).tolist()
    return list(zip([0, *borders], [*borders, n], strict=True)) if n else []
