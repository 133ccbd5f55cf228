# SPDX-License-Identifier: BSD-3-Clause
"""Folders of flows: files that belong together change all at once, and are read only if they belong together.

No system can replace a folder that is not empty, and other files in it are the user's. So a run makes a folder of its
own, with all its files, and renames it to `NEXT` inside the goal: from then on, it counts. Only then does each of its
files move to its place, over an older one. Whoever reads looks for a file in `NEXT` first. Whoever finds a `NEXT` with
files may move them on, as the process that should have done so may be dead: nobody waits, and no lock is needed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import IO, NamedTuple, TypeVar

import numpy as np

from sklearn_docids._scratch import sync

ARRAYS = ("X.npy", "flows.npy", "kept_bytes.npy", "payload_lengths.npy")
CAPTURES, CHECKSUMS = "captures.json", "checksums.json"
NAMES = (*ARRAYS, CAPTURES, CHECKSUMS)
NEXT = ".docids-next"
# Whoever comes in the way of another begins anew; it takes far less time than the other needs for a capture.
MOST_TRIES = 100
# The checksum of a large array is of so many parts, evenly spread: loading must not read gigabytes.
N_PARTS, PART_BYTES = 64, 2**16

T = TypeVar("T")


class Stored(NamedTuple):
    """What the files of a folder hold."""

    X: np.ndarray
    records: np.ndarray
    kept_bytes: np.ndarray
    payload_lengths: np.ndarray
    captures: bytes
    checksums: bytes


def seal(folder: str) -> None:
    """Write the checksums that tie arrays and captures together; wait until all are on the disk."""
    arrays = [_mapped(os.path.join(folder, name)) for name in ARRAYS]
    with _opened(os.path.join(folder, CAPTURES)) as file:
        sums = _checksums(arrays, file.read())
    with open(os.path.join(folder, CHECKSUMS), "w", encoding="utf-8") as text:
        json.dump(sums, text, indent=1)
    for name in NAMES:
        sync(os.path.join(folder, name))


def publish(folder: str, goal: str) -> None:
    """Let the files of a folder, which lies inside ``goal``, take the places of older ones in ``goal``, all at once.

    Raises
    ------
    OSError
        A file cannot be replaced; the older ones still count.
    """
    for name in NAMES:
        if os.path.isdir(os.path.join(goal, name)):
            raise IsADirectoryError(f"{os.path.join(goal, name)} is a folder, but a file is to get this name")
    following = os.path.join(goal, NEXT)
    for _ in range(MOST_TRIES):
        _move_on(goal)
        try:
            os.rename(folder, following)
            break
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # those: another writer was quicker
                raise
    else:
        raise FileExistsError(f"{following} holds files that do not belong there; remove it")
    _move_on(goal)


def _move_on(goal: str) -> None:
    """Move the files of the run that counts to their places."""
    following = os.path.join(goal, NEXT)
    for name in NAMES:
        with suppress(FileNotFoundError):  # it is there, or another writer has moved it
            os.replace(os.path.join(following, name), os.path.join(goal, name))
    with suppress(OSError):
        os.rmdir(following)  # not if another run is in it by now


def stored(folder: str) -> Stored:
    """Return what the files of one run hold, the arrays mapped into memory.

    Raises
    ------
    OSError
        A file is missing or cannot be read.
    ValueError
        A file is of another kind.
    """
    for _ in range(MOST_TRIES):
        with _found(folder, CAPTURES, _opened) as file:  # its inode is not used again while it is open
            X, records, kept_bytes, payload_lengths = (_found(folder, name, _mapped) for name in ARRAYS)
            with _found(folder, CHECKSUMS, _opened) as sums:
                found = Stored(X, records, kept_bytes, payload_lengths, file.read(), sums.read())
            if os.path.samestat(os.fstat(file.fileno()), _found(folder, CAPTURES, os.stat)):
                return found
    raise ValueError("it is replaced again and again; load it when its writers have ended")


def check_seal(found: Stored) -> None:
    """Refuse files that were not written together.

    Raises
    ------
    ValueError
        A checksum is another one.
    """
    expected = json.loads(found.checksums)
    arrays = [found.X, found.records, found.kept_bytes, found.payload_lengths]
    for name, checksum in _checksums(arrays, found.captures).items():
        if expected.get(name) != checksum:
            raise ValueError(f"{name} was not written together with {CHECKSUMS}: write the folder again")


def array_from(read: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that numpy reads; its own message about any other file would advise to load a pickle."""
    try:
        return read()
    except ValueError:
        raise ValueError("it is no file of arrays") from None


def _found(folder: str, name: str, read: Callable[[str], T]) -> T:
    """Read a file of the run that counts."""
    try:
        return read(os.path.join(folder, NEXT, name))
    except (FileNotFoundError, NotADirectoryError):
        return read(os.path.join(folder, name))


def _mapped(path: str) -> np.ndarray:
    """Map an array; `numpy.load` opens a file twice, and the second time it may be another one."""
    with _opened(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, is_fortran, dtype = read_header[version](file)
            n_bytes = os.fstat(file.fileno()).st_size - file.tell()
            if dtype.hasobject or is_fortran or math.prod(shape) * dtype.itemsize != n_bytes:
                raise ValueError
            return np.memmap(file, dtype, "r", file.tell(), shape)
        except (ValueError, KeyError):
            raise ValueError(f"{os.path.basename(path)} is no file of an array") from None


def _opened(path: str) -> IO[bytes]:
    _check_regular(path)
    return open(path, "rb")


def _check_regular(path: str) -> None:
    """Refuse pipes and devices, which may have no end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{os.path.basename(path)} is not a regular file")


def _checksums(arrays: list[np.ndarray], captures: bytes) -> dict[str, str]:
    sums = dict(zip(ARRAYS, map(_checksum, arrays), strict=True))
    return sums | {CAPTURES: hashlib.sha256(captures).hexdigest()}


def _checksum(array: np.ndarray) -> str:
    """Return a checksum of type, shape and bytes of an array, of a large one of some of its bytes."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    is_small = len(data) <= N_PARTS * PART_BYTES
    for first in [0] if is_small else np.linspace(0, len(data) - PART_BYTES, N_PARTS).astype(np.int64):
        digest.update(data[first : len(data) if is_small else first + PART_BYTES].data)
    return digest.hexdigest()
