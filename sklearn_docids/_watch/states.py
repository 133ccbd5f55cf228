# SPDX-License-Identifier: BSD-3-Clause
"""State files: a line of JSON, and arrays behind it; written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

import numpy as np

FORMAT = 1
# A line of JSON is not longer: a million files.
MOST_JSON = 2**28


def write_state(path: str, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Replace a state file as a whole, and wait until it is on the disk."""
    parts = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    digest = hashlib.sha256()
    for array in parts.values():
        digest.update(array.reshape(-1).view(np.uint8).data)
    shapes = {name: list(array.shape) for name, array in parts.items()}
    head = {"docids_state": FORMAT, **config, "arrays": shapes, "sha256": digest.hexdigest()}
    part = f"{path}.part"
    try:
        # What hosts have sent is in it.
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(json.dumps(head).encode() + b"\n")
            for array in parts.values():
                file.write(array.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(os.path.dirname(path))
    except OSError as error:
        with suppress(OSError):
            os.remove(part)
        raise OSError(error.errno, f"{error.strerror}; the state stays as it was", path) from None


def _sync_folder(path: str) -> None:
    """Wait until a new name is on the disk; some systems cannot."""
    with suppress(OSError):
        descriptor = os.open(path or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_state(path: str, like: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Return the JSON object and the arrays of a state file, of the types of ``like``; None where there is no file.

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is no state file, or damaged.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, like)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no state of docids watch, or damaged ({error}): remove it, and all files count as new"
        ) from None


def _read(file: IO[bytes], like: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    head = json.loads(file.readline(MOST_JSON))
    if head["docids_state"] != FORMAT:
        raise ValueError(f"it is of format {head['docids_state']}, this version knows {FORMAT}")
    body = file.read()
    if hashlib.sha256(body).hexdigest() != head["sha256"]:
        raise ValueError("its checksum is wrong")
    arrays, at = {}, 0
    for name, shape in head["arrays"].items():
        dtype, n = like[name].dtype, int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(body, dtype, n, at).reshape(shape).copy()
        at += n * dtype.itemsize
    if set(arrays) != set(like) or at != len(body):
        raise ValueError("its arrays are others")
    return head, arrays


class StateLock:
    """The right to write a state file, until `close` or the end of the process."""

    def __init__(self, path: str):
        self._file = open(f"{path}.lock", "ab")  # noqa: SIM115 - held until the end
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise FileExistsError(
                f"another docids watch uses the state {path}: end it, or name another --state"
            ) from None

    def close(self) -> None:
        """Let others have it."""
        self._file.close()
