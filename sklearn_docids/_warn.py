# SPDX-License-Identifier: BSD-3-Clause
"""Warnings that point at the line that called the package, however deep inside they arise."""

from __future__ import annotations

import sys
import warnings

# Frames of these stand between the caller and the place that warns.
PASSED_THROUGH = ("sklearn_docids", "sklearn", "joblib", "contextlib", "functools")


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the nearest line outside of this package and of what it is called through."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in PASSED_THROUGH:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
