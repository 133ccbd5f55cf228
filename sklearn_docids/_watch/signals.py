# SPDX-License-Identifier: BSD-3-Clause
"""What signals ask of a process, noted where its loop can look at it."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

ASKS = {"SIGTERM": "stop", "SIGINT": "stop", "SIGHUP": "reload", "SIGUSR1": "report"}


class Signals:
    """Notes what signals ask for, and wakes whoever waits for `fileno`.

    A second Ctrl-C ends the process at once. Handlers are installed in the main thread, and taken back at the end.
    """

    def __init__(self) -> None:
        self.stop: bool = False
        self.reload: bool = False
        self.report: bool = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self._wake, end = os.pipe()
        for descriptor in (self._wake, end):
            os.set_blocking(descriptor, False)
        self._end = end
        self._before_wakeup = signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        for name in ASKS:
            number = getattr(signal, name, None)
            if number is not None:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before_wakeup)
        os.close(self._wake)
        os.close(self._end)

    def fileno(self) -> int:
        """Return the number of a file that can be read once a signal has come."""
        return self._wake

    def taken(self, what: str) -> bool:
        """Return whether something was asked for since the last time."""
        asked = bool(getattr(self, what))
        setattr(self, what, False)
        return asked

    def slept(self) -> None:
        """Forget what woke us."""
        try:
            while os.read(self._wake, 512):
                pass
        except BlockingIOError:
            pass

    def _note(self, number: int, frame: FrameType | None) -> None:
        setattr(self, ASKS[signal.Signals(number).name], True)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
