# SPDX-License-Identifier: BSD-3-Clause
"""Open a capture and walk its packet records, whatever container they are in, packed or not.

A capture is anything with ``readinto``. It is read once, front to back, through one buffer that is used again and
again, never mapped and never sought: files, pipes and standard input are alike, and mapping would pay a page fault
every 4 KiB.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import select
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sklearn_docids._warn import missing
from sklearn_docids.capture import records
from sklearn_docids.capture.compression import CompressionError, Unpacked, compression_of
from sklearn_docids.capture.headers import LINK_TYPES
from sklearn_docids.capture.kinds import link_name
from sklearn_docids.exceptions import CaptureError

BUFFER_BYTES = 2**20
PAGE_BYTES = 4096
RECORDS_PER_CALL = 4096
# A capture has a handful of interfaces; a file that only lists interfaces must not fill the memory.
MAX_INTERFACES = 65_536
# Room for a read: a buffered stream reads past its own buffer then, so that nothing waits in there unseen.
READ_BYTES = 2**18

# First four bytes -> (big-endian, ns per tick, bytes of a record header). The third pair is Kuznetzov's variant.
PCAP_MAGIC = {
    b"\xd4\xc3\xb2\xa1": (False, 1000, 16),
    b"\xa1\xb2\xc3\xd4": (True, 1000, 16),
    b"\x4d\x3c\xb2\xa1": (False, 1, 16),
    b"\xa1\xb2\x3c\x4d": (True, 1, 16),
    b"\x34\xcd\xb2\xa1": (False, 1000, 24),
    b"\xa1\xb2\xcd\x34": (True, 1000, 24),
}
PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
# Major version of the pcap files of an old system that has the lengths the other way round.
DG_UX_VERSION = 543
# Why a container cannot be read on.
_REASONS = {
    records.ZERO_RECORDS: f"{records.MAX_ZERO_RECORDS} empty records in a row, the rest is not read",
    records.TOO_MANY_HEADERS: f"{records.MAX_HEADERS} headers and no packet between them, the rest is not read",
    records.BAD_ORDER_MARK: "section header has no byte-order mark, but {:#010x}",
    records.BAD_SECTION: "section header claims {} bytes",
    records.BAD_INTERFACE_BLOCK: "interface block of {} bytes, at least 20 are needed",
    records.INTERFACES_FULL: f"more than {MAX_INTERFACES} interfaces in a section",
}
FOREIGN_MAGIC = {
    b"PK": "a zip archive: extract it first",
    b"7z": "a 7z archive: extract it first",
    b"vers": "a text file, perhaps a Git LFS pointer instead of the capture itself",
    b"<": "a web page or XML file",
}


class Located(NamedTuple):
    """A capture as another process finds it, and what the caller calls it: paths are often relative."""

    path: str  # absolute, or a URL
    name: str


def is_url(source: Any) -> bool:
    """Whether a source is opened by fsspec."""
    return isinstance(source, str) and "://" in source


def located(source: Any) -> Located:
    """Return where a capture is.

    Raises
    ------
    TypeError
        It is an open file, which is this process's alone.
    """
    if not isinstance(source, str | bytes | os.PathLike):
        raise TypeError(
            f"{capture_name(source)} is no path: shards, and workers of joblib in other processes, open captures "
            "themselves; give a path or a URL"
        )
    path = os.fsdecode(source)
    return Located(path if is_url(path) else os.path.abspath(path), capture_name(source))


def capture_name(source: Any) -> str:
    """Return what messages call a source: its path, the name of an open file, or its type."""
    name = source if isinstance(source, str | bytes | os.PathLike) else getattr(source, "name", None)
    if isinstance(name, bytes | os.PathLike):
        name = os.fsdecode(name)
    if isinstance(name, str):
        # A name that is not valid UTF-8 is shown with escapes, so that printing the message cannot fail.
        return name.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"<{type(source).__name__}>"


@contextmanager
def opened(source: Any) -> Iterator[BinaryIO]:
    """Open a path without Python's own buffering; leave an open file open, it belongs to the caller."""
    if isinstance(source, io.TextIOBase):
        raise TypeError(f"{capture_name(source)} is open in text mode; open it with mode 'rb', or take its .buffer")
    source = source.path if isinstance(source, Located) else source
    if hasattr(source, "readinto"):
        yield source
    elif is_url(source):
        with _opened_url(source) as file:
            yield file
    elif isinstance(source, str | bytes | os.PathLike):
        # FileIO directly: open() would say "directory" only on reading, and a path is all that is allowed here.
        with io.FileIO(os.fspath(source), "rb") as file:
            yield file
    else:
        raise TypeError(f"a capture is a path or an open binary file, got {type(source).__name__}")


def _opened_url(url: str) -> Any:
    """Return what opens a URL and closes it again.

    Raises
    ------
    ValueError
        Nobody knows the protocol.
    """
    try:
        import fsspec
    except ImportError:
        raise missing(f"a capture at {url}", "fsspec") from None
    try:
        return fsspec.open(url, "rb")
    except ValueError as error:
        raise ValueError(f"{url} cannot be opened: {error}") from None


def _pages(n_bytes: int) -> np.ndarray:
    """Return an array of whole pages."""
    data = np.empty((n_bytes // PAGE_BYTES + 2) * PAGE_BYTES, np.uint8)
    start = -data.ctypes.data % PAGE_BYTES
    return data[start : start + (n_bytes + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES]


class Window:
    """The part of a stream that is in memory: ``data[start:stop]``, whose first byte is number ``offset``.

    Reads go to the beginning of a page wherever possible: the system copies several times slower to some others.
    """

    def __init__(self, stream: Any):
        self.data: np.ndarray = _pages(BUFFER_BYTES)
        self.start: int = 0
        self.stop: int = 0
        self.offset: int = 0
        # A pipe is read as data comes; a buffered file's readinto would wait until the buffer is full.
        self._readinto = getattr(stream, "readinto1", None) or stream.readinto

    def read(self, n_bytes: int) -> bool:
        """Read once, towards ``n_bytes``; False at the end of the stream."""
        if self.stop + READ_BYTES > len(self.data) or self.start + n_bytes > len(self.data):
            self._move_to_front(n_bytes)
        n_read = self._readinto(self.data[self.stop :].data)
        if n_read is None:
            raise BlockingIOError("the stream is non-blocking and has no data now; it would be cut off here")
        self.stop += n_read
        return n_read > 0

    def fill(self, n_bytes: int) -> bool:
        """Read once or more until ``n_bytes`` are there; False at the end of the stream."""
        while self.stop - self.start < n_bytes:
            if not self.read(n_bytes):
                return False
        return True

    def _move_to_front(self, n_bytes: int) -> None:
        """Move what is there so that it ends with the first page it needs, and the next read begins a page."""
        kept = self.data[self.start : self.stop].copy()
        self.stop = -(-len(kept) // PAGE_BYTES) * PAGE_BYTES
        self.start = self.stop - len(kept)
        needed = max(self.start + n_bytes, self.stop + READ_BYTES)
        if needed > len(self.data):
            self.data = _pages(needed)
        self.data[self.start : self.stop] = kept

    def advance(self, position: int) -> None:
        """Consume everything before ``position``."""
        self.offset += position - self.start
        self.start = position

    def peek(self, n_bytes: int) -> bytes:
        """Return the next bytes without consuming them."""
        return self.data[self.start : self.start + n_bytes].tobytes()


def _why_empty(file: Any) -> str:
    try:
        return "nothing left to read: the file is at its end already" if file.tell() else "empty file, not a capture"
    except (AttributeError, OSError):
        return "empty stream, not a capture"


class Capture:
    """An open capture: `blocks` yields its packet records.

    Damage raises `CaptureError` after the records before it have been yielded. ``joint`` is the first place where
    another pcap follows the one before.

    With ``patience``, in seconds, a pipe or another stream that is being written is not waited for any longer: a block
    without records is yielded, and ``silence`` says how long nothing has come since the block before, in ns.
    """

    def __init__(self, stream: BinaryIO, name: str, patience: float | None = None):
        self.name = name
        self.n_records: int = 0
        self.joint: CaptureError | None = None
        self.silence: int = 0
        self._patience = patience
        self._file = stream
        self._unpacked: Unpacked | None = None
        self.window: Window = Window(stream)
        self._records = np.empty(RECORDS_PER_CALL, records.RECORD_DTYPE)
        self._state = np.zeros(1, records.STATE_DTYPE)
        self._interfaces = np.zeros(16, records.INTERFACE_DTYPE)
        self._block_offset = 0  # of the block that is being used
        try:
            self._blocks = self._open()
        except BaseException:
            self.close()
            raise
        self._descriptor = None if patience is None or self._unpacked else _live_descriptor(stream)
        self._heard = time.monotonic_ns()

    def _fill(self, n_bytes: int) -> bool:
        """Read until ``n_bytes`` are there; False at the end."""
        with self._unpacking():
            return self.window.fill(n_bytes)

    @contextmanager
    def _unpacking(self) -> Iterator[None]:
        """Say where a stream that decompresses is damaged itself."""
        try:
            yield
        except (CompressionError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise self._damage(f"the packed data is damaged: {error}") from None

    def _read_more(self, needed: int, what: str) -> bool:
        """Read towards ``needed`` bytes; False at the end of the stream, which must not lie within something."""
        with self._unpacking():
            more = self.window.read(needed)
        if not more and self.window.start < self.window.stop:
            raise self._damage(f"{what} cut after {self.window.stop - self.window.start} of {needed} bytes")
        return more

    def _is_silent(self) -> bool:
        """Whether nothing comes from a live stream for as long as one is patient."""
        if self._descriptor is None:
            return False
        ready = select.select([self._descriptor], [], [], self._patience)[0]
        now = time.monotonic_ns()
        self.silence = 0 if ready else now - self._heard
        self._heard = now
        return not ready

    def close(self) -> None:
        """Stop reading. The stream itself belongs to the caller."""
        if self._unpacked:
            self._unpacked.close()

    def fraction_read(self) -> float | None:
        """Return how much of the file has been used, by its packed bytes if packed; None of what is no plain file."""
        raw = getattr(self._file, "raw", self._file)
        if not isinstance(raw, io.FileIO):  # a stream that unpacks has the file number of the packed file
            return None
        size = os.fstat(raw.fileno()).st_size
        done = self._unpacked.n_packed if self._unpacked else self._block_offset
        return min(done / size, 1.0) if size and done else None

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (buffer, records): valid until the next block is asked for."""
        return self._blocks

    def _open(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        magic = self._read_magic()
        new = compression_of(magic)
        if new:
            self._unpacked = Unpacked(self.window.peek(self.window.stop), self._file, new)
            self.window = Window(self._unpacked)
            magic = self._read_magic()
            if compression_of(magic):
                raise CaptureError("packed more than once: unpack it first", self.name)
        if magic == PCAPNG_MAGIC:
            self._read_first_section()
            return self._pcapng_blocks()
        if magic in PCAP_MAGIC:
            self._read_pcap_header(magic)
            return self._pcap_blocks()
        for start, what in FOREIGN_MAGIC.items():
            if magic.startswith(start):
                raise CaptureError(f"not a capture but {what}", self.name)
        raise CaptureError(f"not a capture: it begins with {magic!r}, neither pcap nor pcapng", self.name)

    def _read_magic(self) -> bytes:
        if not self._fill(4):
            if self.window.stop == self.window.start:
                raise CaptureError(_why_empty(self._file) if not self._unpacked else "packed, but empty", self.name)
            raise CaptureError(f"{self.window.stop - self.window.start} bytes only, not a capture", self.name)
        return self.window.peek(4)

    def _read_pcap_header(self, magic: bytes) -> None:
        if not self._fill(24):
            n_bytes = self.window.stop - self.window.start
            raise CaptureError(f"pcap file header cut after {n_bytes} of 24 bytes", self.name)
        state, header = self._state[0], self.window.peek(24)
        state["big_endian"], state["tick"], state["header_length"] = PCAP_MAGIC[magic]
        order = "big" if state["big_endian"] else "little"
        # The upper half holds the length of a frame check sequence; it lies behind the IP packet, never in our rows.
        state["link_type"] = int.from_bytes(header[20:24], order) & 0xFFFF  # type: ignore[arg-type]
        if int(state["link_type"]) not in LINK_TYPES:
            raise CaptureError(f"link type {link_name(int(state['link_type']))} is not supported", self.name)
        self.window.advance(self.window.start + 24)
        version = int.from_bytes(header[4:6], order), int.from_bytes(header[6:8], order)  # type: ignore[arg-type]
        state["lengths"] = records.CAPTURED_SMALLER if version == (2, 3) else records.CAPTURED_FIRST
        if version[0] == DG_UX_VERSION or (2, 0) <= version < (2, 3):
            state["lengths"] = records.CAPTURED_LAST

    def _read_first_section(self) -> None:
        """Check the section header, so that a file that merely begins alike is refused as a whole."""
        window = self.window
        reason, number = records.NEED_BYTES, 28
        while reason == records.NEED_BYTES:
            if not self._fill(number):
                n_bytes = window.stop - window.start
                raise CaptureError(f"not a capture: section header cut after {n_bytes} of {number} bytes", self.name)
            reason, number = records.enter_section(window.data, window.start, window.stop, self._state[0])
        if reason != records.ENTERED:
            raise CaptureError(f"not a capture: {_REASONS[reason].format(number)}", self.name)
        window.advance(window.start + number)

    def _damage(self, reason: str) -> CaptureError:
        return CaptureError(reason, self.name, self.window.offset, self.n_records + 1)

    def _taken(self, n_records: int, position: int) -> tuple[np.ndarray, np.ndarray]:
        self.n_records += n_records
        self._block_offset = self.window.offset
        self.window.advance(position)
        return self.window.data, self._records[:n_records]

    def _pcap_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        window = self.window
        while True:
            n, position, reason, number = records.index_pcap(
                window.data, window.start, window.stop, self._records, self._state[0]
            )
            block = self._taken(n, position)
            if n:
                yield block
            if reason == records.NEXT_CAPTURE:
                self.joint = self._damage("another capture begins here")
                self._state["enters_next"] = True
            elif reason == records.NEED_BYTES:
                if self._is_silent():
                    yield window.data, self._records[:0]
                elif not self._read_more(number, "record"):
                    return
            elif reason == records.BAD_LENGTH:
                self._refuse_other_capture()
                raise self._damage(f"record claims {number} bytes, more than the {records.MAX_RECORD} possible")
            elif reason != records.RECORDS_FULL:
                raise self._damage(_REASONS[reason].format(number))

    def _pcapng_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        window = self.window
        while True:
            n, position, reason, number = records.index_pcapng(
                window.data, window.start, window.stop, self._records, self._interfaces, self._state[0]
            )
            block = self._taken(n, position)
            if n:
                yield block
            if reason == records.NEED_BYTES:
                if self._is_silent():
                    yield window.data, self._records[:0]
                elif not self._read_more(number, "block"):
                    return
            elif reason == records.INTERFACES_FULL and len(self._interfaces) < MAX_INTERFACES:
                n_more = min(len(self._interfaces), MAX_INTERFACES - len(self._interfaces))
                self._interfaces = np.concatenate([self._interfaces, np.zeros(n_more, records.INTERFACE_DTYPE)])
            elif reason == records.BAD_LENGTH:
                self._refuse_other_capture()
                raise self._damage(f"a block or packet length of {number} bytes does not fit the block")
            elif reason == records.BAD_INTERFACE:
                n_interfaces = int(self._state["n_interfaces"][0])
                raise self._damage(f"packet of interface {number}, but the section has {n_interfaces}")
            elif reason != records.RECORDS_FULL:
                raise self._damage(_REASONS[reason].format(number))

    def _refuse_other_capture(self) -> None:
        magic = self.window.peek(4)
        if magic == PCAPNG_MAGIC or magic in PCAP_MAGIC or compression_of(magic):
            raise self._damage("a capture of another kind begins here: split the two")


def _live_descriptor(stream: Any) -> int | None:
    """Return the file number of a stream that may be silent for a while; None of a file, and where nobody can tell."""
    try:
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
    except (AttributeError, OSError):
        return None
    waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)
    return descriptor if waits and os.name == "posix" else None
