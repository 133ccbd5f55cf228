# SPDX-License-Identifier: BSD-3-Clause
"""Warnings that point at the line that called the package, however deep inside, or in whose thread, they arise."""

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
# Where warnings are collected instead.
_collected: ContextVar[list[tuple[str, type[Warning]]] | None] = ContextVar("_collected", default=None)


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


@contextmanager
def collected() -> Iterator[list[tuple[str, type[Warning]]]]:
    """Collect what `warn_caller` would warn of, in this context alone: filters of warnings are those of all threads."""
    found: list[tuple[str, type[Warning]]] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def missing(what: str, package: str) -> ImportError:
    """Return the error of something that needs a package which is not installed, with a command that installs it."""
    return ImportError(f"{what} needs the package {package}: pip install {package}", name=package)


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called into the package."""
    found = _collected.get()
    if found is not None:
        found.append((message, category))
        return
    frame = caller()
    warnings.warn_explicit(
        message, category, frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )  # fmt: skip
