# SPDX-License-Identifier: BSD-3-Clause
"""Captures into flows: bytes in, `FlowTable` out, with numpy and numba alone.

`CaptureError`, `CaptureWarning` and `FlowTable` are public; everything else in this package is private.
"""

from sklearn_docids.exceptions import CaptureError, CaptureWarning

__all__ = ["CaptureError", "CaptureWarning", "FlowTable"]


def __getattr__(name: str) -> object:
    # The errors are cheap; the table brings numba.
    if name == "FlowTable":
        from sklearn_docids.capture.table import FlowTable

        return FlowTable
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
