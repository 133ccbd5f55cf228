# SPDX-License-Identifier: BSD-3-Clause
"""Folders for unfinished files, beside the place these get when they are whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: no litter is removed there, as nobody could tell which is
    fcntl = None  # type: ignore[assignment]

PREFIX = ".docids-"
LOCK, FILES = "lock", "files"
# There is no room for what is written.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync(path: str) -> None:
    """Wait until a file is on the disk: renamed earlier, it could be empty after a loss of power."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


@contextmanager
def named(path: str) -> Iterator[None]:
    """Name a file or folder in the error of a full disk: the system does not."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            raise OSError(error.errno, error.strerror, path) from None
        raise


@contextmanager
def scratch_folder(beside: str | os.PathLike[str]) -> Iterator[str]:
    """Make a folder inside the folder ``beside``, on the same file system therefore, and remove it in the end.

    Such folders that killed processes left there are removed first. Whoever uses one holds a lock on a file in it; the
    system releases it however the process dies. Where the file system cannot lock, nothing is removed.
    """
    _remove_litter(os.fspath(beside))
    path, lock = _new_folder(os.fspath(beside))
    try:
        with lock:
            os.mkdir(os.path.join(path, FILES))
            yield os.path.join(path, FILES)
    finally:
        _remove(path)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Let one process at a time go on; the file stays. Where the file system cannot lock, nobody waits."""
    with open(path, "ab") as file:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove(path: str) -> None:
    """Remove a scratch folder, the lock last: whoever finds a half that is left knows by it what that is."""
    shutil.rmtree(os.path.join(path, FILES), ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)


def _new_folder(beside: str) -> tuple[str, IO[bytes]]:
    """Make a folder; return it and the file in it that is locked."""
    while True:
        path = tempfile.mkdtemp(prefix=PREFIX, dir=beside)
        with suppress(FileNotFoundError), ExitStack() as opened:
            lock = opened.enter_context(open(os.path.join(path, LOCK), "xb", buffering=0))
            is_locked = _is_locked(lock.fileno())
            # Until it was locked, another process may have taken it for litter.
            if is_locked is not False and os.fstat(lock.fileno()).st_nlink:
                if is_locked is None:
                    lock.write(b"cannot be locked")
                opened.pop_all()
                return path, lock


def _remove_litter(folder: str) -> None:
    if fcntl is None:
        return
    with os.scandir(folder) as entries:
        found = [e.path for e in entries if e.name.startswith(PREFIX) and e.is_dir(follow_symlinks=False)]
    for path in found:
        with suppress(OSError):  # there are files in it, or it is another's
            os.rmdir(path)
        _remove_abandoned(path)


def _remove_abandoned(path: str) -> None:
    """Remove a scratch folder whose lock nobody holds; what has no such file is something else, and stays."""
    try:
        lock = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    try:
        if os.fstat(lock).st_size == 0 and _is_locked(lock):
            _remove(path)
    finally:
        os.close(lock)


def _is_locked(file: int) -> bool | None:
    """Lock a file until it is closed; return False if another has locked it, and None if files cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
