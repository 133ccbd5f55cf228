# SPDX-License-Identifier: BSD-3-Clause
"""Files that a rotating capture writes into a folder: each of them once, in order of time."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from sklearn_docids._text import printable
from sklearn_docids._watch.signals import Signals
from sklearn_docids._watch.streams import Block, Event, File, LiveStream, blocks_of, opened, rest
from sklearn_docids.capture.flows import first_time
from sklearn_docids.exceptions import CaptureError

# The folder is looked at so often.
LOOK_EVERY_S = 0.5


class Stamp(NamedTuple):
    """How a file looks from outside."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Taken:
    """How far a file has been read, and how it looked then."""

    size: int
    mtime_ns: int
    first: int | None  # time of its first packet: another file of the name begins at another time
    records: int

    @property
    def stamp(self) -> Stamp:
        """How the file looked."""
        return Stamp(self.size, self.mtime_ns)


UNFINISHED = Stamp(-1, 0)


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers in names by their size, as those of tcpdump -C."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


class FolderSource:
    """Packets of the files of a folder, and of those to come.

    A file is taken when it has not changed for ``settle`` seconds, or another one was written to later. One that grows
    after it was taken is read on from there.
    """

    def __init__(
        self,
        path: str,
        signals: Signals,
        *,
        settle: float,
        note: Callable[[str], object],
    ):
        self.name = path
        self.window: int = 0  # of records that are put in order of time
        self.taken: dict[str, Taken] = {}
        self.n_read: int = 0  # times that a file was read to its end
        self.n_files: int = 0
        self.n_damaged: int = 0
        self.n_lost: int = 0
        self._signals = signals
        self._settle = settle
        self._note = note
        self._waiting: dict[str, tuple[Stamp, float]] = {}  # how each looks, and since when
        self._firsts: dict[str, int] = {}

    def events(self) -> Iterator[Event]:
        """Yield each file, blocks of its records, and None where nothing comes.

        Raises
        ------
        OSError
            The folder is gone.
        """
        while not self._signals.stop:
            name = self._next()
            if name is None:
                yield None
                rest(self._signals, LOOK_EVERY_S if self._waiting else 2 * LOOK_EVERY_S)
            else:
                yield from self._read(name)

    def drops(self) -> dict[str, int]:
        """Return counts of files, and of those that were gone before they were read."""
        return {"files": self.n_files, "files_damaged": self.n_damaged, "files_lost": self.n_lost}

    def close(self) -> None:
        """Nothing is open between two events."""

    @property
    def between_files(self) -> bool:
        """Whether no file is being read."""
        return all(each.stamp != UNFINISHED for each in self.taken.values())

    def described(self) -> dict[str, dict[str, Any]]:
        """Return for a state file how far each file has been read."""
        return {name: asdict(each) for name, each in self.taken.items()}

    def _next(self) -> str | None:
        """Return the earliest file that can be taken."""
        stamps = self._listed()
        self._forget(stamps)
        now, latest = time.monotonic(), max((stamp.mtime_ns for stamp in stamps.values()), default=0)
        ready = []
        for name, stamp in stamps.items():
            if not self._is_new(name, stamp):
                continue
            before = self._waiting.get(name)
            if before is None or before[0] != stamp:
                before = self._waiting[name] = (stamp, now)
            if stamp.mtime_ns < latest or now - before[1] >= self._settle:
                ready.append(name)
        return min(ready, key=lambda name: (self._first(name) or stamps[name].mtime_ns, natural(name)), default=None)

    def _listed(self) -> dict[str, Stamp]:
        """Return how each file looks; hidden ones are still being copied, or not meant."""
        found = {}
        with os.scandir(self.name) as entries:
            for entry in entries:
                try:
                    seen = entry.stat()
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(seen.st_mode) and seen.st_size and not entry.name.startswith("."):
                    found[entry.name] = Stamp(seen.st_size, seen.st_mtime_ns)
        return found

    def _forget(self, stamps: Mapping[str, Stamp]) -> None:
        """Forget files that are gone; those that nobody has read are counted."""
        unfinished = {name for name, taken in self.taken.items() if taken.stamp == UNFINISHED}
        for name in (self._waiting.keys() | unfinished) - stamps.keys():
            self._lost(name)
        self.taken = {name: taken for name, taken in self.taken.items() if name in stamps}
        self._firsts = {name: first for name, first in self._firsts.items() if name in stamps}

    def _lost(self, name: str) -> None:
        self.n_lost += 1
        self._waiting.pop(name, None)
        self.taken.pop(name, None)
        self._note(f"{self._path(name)} was removed before it could be read: give the capture more files")

    def _is_new(self, name: str, stamp: Stamp) -> bool:
        """Whether there is anything in a file that has not been read."""
        taken = self.taken.get(name)
        if taken is None:
            return True
        if taken.stamp == stamp:
            return False
        if name not in self._waiting:
            self._firsts.pop(name, None)
            if self._first(name) != taken.first:  # another file of this name
                del self.taken[name]
        return True

    def _first(self, name: str) -> int | None:
        """Return the time of the first packet."""
        if name not in self._firsts:
            with suppress(ImportError):  # packed in a way that cannot be looked into: said when it is read
                first = first_time(self._path(name))
                if first is not None:
                    self._firsts[name] = first
        return self._firsts.get(name)

    def _path(self, name: str) -> str:
        return os.path.join(self.name, name)

    def _read(self, name: str) -> Iterator[Event]:
        """Yield the blocks of a file, without what has been read of it before."""
        before = self.taken.get(name)
        n_before = before.records if before else 0
        stamp, _ = self._waiting[name]
        reading = Taken(*UNFINISHED, self._first(name), n_before)
        try:
            descriptor = opened(self._path(name), only_files=True)
        except FileNotFoundError:
            self._lost(name)
            return
        except OSError as error:
            self._refused(f"{error}; it is left out")
            descriptor = -1
        self.taken[name] = reading
        yield File(printable(name))
        if descriptor >= 0:
            try:
                yield from self._blocks(name, descriptor, n_before)
            except (CaptureError, ImportError) as error:
                if not self._signals.stop:
                    self._refused(_what_is_wrong(error))
            finally:
                os.close(descriptor)
        if not self._signals.stop:
            self.n_read += 1
            self.n_files += before is None
            self.taken[name] = replace(self.taken[name], size=stamp.size, mtime_ns=stamp.mtime_ns)
            del self._waiting[name]
            yield None

    def _blocks(self, name: str, descriptor: int, n_before: int) -> Iterator[Block]:
        n_read = 0
        for block in blocks_of(LiveStream(descriptor, self._path(name), self._signals), self.window):
            n_new = min(max(n_read + len(block.records) - n_before, 0), len(block.records))
            n_read += len(block.records)
            # Counted first: whoever asks how far we are has taken the block.
            self.taken[name] = replace(self.taken[name], records=max(n_read, n_before))
            if n_new:
                yield block._replace(records=block.records[len(block.records) - n_new :])
            if self._signals.stop:
                return

    def _refused(self, text: str) -> None:
        self.n_damaged += 1
        self._note(text)


def _what_is_wrong(error: CaptureError | ImportError) -> str:
    if isinstance(error, ImportError) or error.record is None:
        return f"{error}; it is left out"
    return f"{error}; the {error.record - 1} records before it are kept"


def taken_of(described: Mapping[str, Mapping[str, Any]]) -> dict[str, Taken]:
    """Return how far each file has been read, from a state file."""
    return {name: Taken(**each) for name, each in described.items()}
