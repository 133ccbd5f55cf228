# SPDX-License-Identifier: BSD-3-Clause
"""What the package raises and warns of, beyond the built-in and scikit-learn's classes.

::

    Exception
    ├── ValueError ──────────── unusable parameters and rows, with scikit-learn's kind of message
    └── DOCIDSError ─────────── root of the package's own errors; each is a ValueError, too
        ├── CaptureError ────── a capture is damaged, or a file is not a capture
        ├── ModelFileError ──── a file is not a usable model, or a detector cannot be written as one
        └── TooFewGroupsError ─ too few normal channels or hosts for the false-alarm rate asked for
    UserWarning
    └── CaptureWarning ──────── part of a capture could not be used; what stood before the damage is kept

Missing and unreadable files raise the built-in subclasses of OSError, detectors without a fit scikit-learn's
NotFittedError, training that stopped early warns with its ConvergenceWarning.
"""

from __future__ import annotations

__all__ = ["CaptureError", "CaptureWarning", "DOCIDSError", "ModelFileError", "TooFewGroupsError"]


class DOCIDSError(Exception):
    """Root of the package's own errors.

    Guide: :doc:`/reference/api`.

    Examples
    --------
    >>> from sklearn_docids import load_detector
    >>> from sklearn_docids.exceptions import DOCIDSError
    >>> try:
    ...     load_detector(__file__)
    ... except DOCIDSError as error:
    ...     print(type(error).__name__)
    ModelFileError
    """


class CaptureError(DOCIDSError, ValueError):
    """A capture is damaged, or the input is not a capture at all.

    Guide: :doc:`/how-to/captures`.

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

    Guide: :doc:`/how-to/captures`.

    Examples
    --------
    >>> import warnings
    >>> from sklearn_docids import CaptureWarning
    >>> warnings.simplefilter("error", CaptureWarning)  # make damage fatal in a script
    """


class ModelFileError(DOCIDSError, ValueError):
    """A file is not a usable model, or a detector cannot be written as one.

    Guide: :doc:`/reference/model-file`.
    """


class TooFewGroupsError(DOCIDSError, ValueError):
    """There are too few normal channels or hosts for the false-alarm rate asked for.

    Guide: :doc:`/how-to/false-alarm-rate`.
    """
