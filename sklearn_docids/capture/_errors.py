# SPDX-License-Identifier: BSD-3-Clause
"""What a capture can do wrong, said with file, byte offset and record number."""


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
