# SPDX-License-Identifier: BSD-3-Clause
"""Packets from a pipe, a device or a file, which can be stopped at any time."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any, NamedTuple

import numpy as np

from sklearn_docids._warn import warn_caller
from sklearn_docids._watch.signals import Signals
from sklearn_docids.capture.containers import Capture
from sklearn_docids.capture.reordering import reordered
from sklearn_docids.exceptions import CaptureError, CaptureWarning

# A source says so often, at least, that nothing has come.
TICK_S = 0.1
# What is on its way when we are told to stop is read for so long, unless nothing comes for a tick or two.
GRACE_S, QUIET_S = 1.0, 0.2
# Room between who captures and us, if the system grants it.
PIPE_BYTES = 2**20
F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", None)


class File(NamedTuple):
    """The next packets are from another file or stream."""

    name: str


class Block(NamedTuple):
    """Records and the buffer that they point into, until the next event; how long nothing came before them, in ns."""

    data: np.ndarray
    records: np.ndarray
    silence: int


# None: nothing has come for a tick.
Event = File | Block | None


class LiveStream:
    """A descriptor as a stream that ends soon after a signal to stop."""

    def __init__(self, descriptor: int, name: str, signals: Signals, end_writer: Callable[[], object] | None = None):
        self.name = name
        self._descriptor = descriptor
        self._signals = signals
        self._end_writer = end_writer
        self._deadline: float | None = None

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def readinto(self, buffer: Any) -> int:
        """Read what is there, at least a byte; 0 at the end."""
        while True:
            if self._signals.stop and not self.still_comes():
                return 0
            if is_readable(self._descriptor, self._signals):
                with suppress(BlockingIOError):
                    return os.readv(self._descriptor, [buffer])

    def still_comes(self) -> bool:
        """Whether something is on its way that was sent before the signal to stop."""
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE_S
            if self._end_writer:
                self._end_writer()
        return time.monotonic() < self._deadline and bool(select.select([self._descriptor], [], [], QUIET_S)[0])


def is_readable(descriptor: int, signals: Signals) -> bool:
    """Wait for a tick, or until a descriptor can be read or a signal comes; return whether it can."""
    ready = select.select([descriptor, signals.fileno()], [], [], TICK_S)[0]
    if signals.fileno() in ready:
        signals.slept()
    return descriptor in ready


def rest(signals: Signals, seconds: float) -> None:
    """Wait for some time, or until a signal comes."""
    if select.select([signals], [], [], seconds)[0]:
        signals.slept()


def opened(path: str, *, only_files: bool = False) -> int:
    """Open a file, pipe or device without waiting for a writer.

    Raises
    ------
    OSError
        It cannot be opened, or, with ``only_files``, is something else than a file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if only_files and not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a file", path)
    return descriptor


def widened(descriptor: int) -> None:
    """Ask the system for more room in a pipe; what is no pipe, or may not have it, stays as it is."""
    if F_SETPIPE_SZ is not None:
        with suppress(OSError):
            fcntl.fcntl(descriptor, F_SETPIPE_SZ, PIPE_BYTES)


def blocks_of(stream: LiveStream, window: int) -> Iterator[Block]:
    """Yield the records of a stream, with a ``window`` of more than 0 in order of time, and empty blocks in silence.

    Raises
    ------
    CaptureError
        The stream is no capture, or damaged; what came before the damage has been yielded.
    """
    with closing(Capture(stream, stream.name, TICK_S)) as capture:  # type: ignore[arg-type] # readinto is all it takes
        blocks = capture.blocks()
        for data, records in reordered(blocks, window, stream.name) if window else blocks:
            yield Block(data, records, capture.silence)


class StreamSource:
    """Packets of a pipe, a device or a file, to its end."""

    def __init__(self, descriptor: int, name: str, signals: Signals):
        self.name = name
        self.window: int = 0  # of records that are put in order of time
        self.descriptor = descriptor
        self._signals = signals
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        widened(descriptor)

    def events(self) -> Iterator[Event]:
        """Yield the one file that there is, blocks of records, and None where nothing comes.

        Raises
        ------
        CaptureError
            It is no capture, or a stream that is damaged; what came before the damage has been yielded.

        Warns
        -----
        CaptureWarning
            It is a file that is damaged.
        """
        yield File(self.name)
        while not is_readable(self.descriptor, self._signals):
            if self._signals.stop:
                return
            yield None
        stream = LiveStream(self.descriptor, self.name, self._signals, self._end_writer)
        try:
            for block in blocks_of(stream, self.window):
                yield block
                if self._signals.stop and not stream.still_comes():
                    return
        except CaptureError as error:
            if self._signals.stop:  # it is we who have cut it
                return
            if error.record is None or not self._is_file:
                raise
            warn_caller(f"{error}; the {error.record - 1} records before it are kept", CaptureWarning)

    def drops(self) -> dict[str, int]:
        """Return counts of packets that were lost on their way to us, as far as anybody can tell: none."""
        return {}

    def close(self) -> None:
        """Close the descriptor, unless it is standard input."""
        if self.descriptor > 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def _end_writer(self) -> None:
        """Tell who writes to end: nobody we could tell."""
