# SPDX-License-Identifier: BSD-3-Clause
"""What a capture can do wrong, said with file, byte offset and record number."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

# Nobody wrote the lines in these: scikit-learn wraps methods and calls those of pipeline steps, joblib runs threads.
_NO_CALLERS = {"sklearn_docids", "sklearn", "joblib"}
# Who called, where the thread's own frames do not say so.
_caller: ContextVar[FrameType | None] = ContextVar("_caller", default=None)


class CaptureError(ValueError):
    """A capture is damaged, or the input is no capture at all.

    Parameters
    ----------
    reason : str
        What is wrong.
    capture : str
        Name of the file or stream.
    offset : int or None
        Byte offset of the damage in the (decompressed) capture; None when the input as a whole is refused.
    record : int or None
        Number of the damaged record, counted from 1; all records before it were read.

    Examples
    --------
    >>> from sklearn_docids import CaptureError
    >>> print(CaptureError("record cut after 10 of 60 bytes", "day.pcap", 1024, 7))
    day.pcap: byte 1024, record 7: record cut after 10 of 60 bytes
    """

    def __init__(self, reason: str, capture: str, offset: int | None = None, record: int | None = None):
        # All four go to the base class, so that the error survives pickling between workers.
        super().__init__(reason, capture, offset, record)
        self.reason = reason
        self.capture = capture
        self.offset = offset
        self.record = record

    def __str__(self) -> str:
        place = "" if self.offset is None else f": byte {self.offset}, record {self.record}"
        return f"{self.capture}{place}: {self.reason}"


class CaptureWarning(UserWarning):
    """Part of a capture could not be used; everything before the damage was kept.

    Examples
    --------
    >>> import warnings
    >>> from sklearn_docids import CaptureWarning
    >>> warnings.simplefilter("error", CaptureWarning)  # make damage fatal in a script
    """


def caller() -> FrameType:
    """Return the frame that called into the package, perhaps through scikit-learn."""
    frame: FrameType | None = sys._getframe(1)
    around = sys._getframe(1)
    while frame:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _NO_CALLERS and frame.f_back:
            around = frame.f_back
        frame = frame.f_back
    return _caller.get() or around


@contextmanager
def called_from(frame: FrameType) -> Iterator[None]:
    """Let warnings name the line a frame is at: a worker thread does not know for whom it works."""
    token = _caller.set(frame)
    try:
        yield
    finally:
        _caller.reset(token)


def warn(message: str) -> None:
    """Warn of damage, and of what was kept, at the line that called into the package."""
    frame = caller()
    warnings.warn_explicit(
        message, CaptureWarning, frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )  # fmt: skip
