# SPDX-License-Identifier: BSD-3-Clause
"""Compressed captures: unpacked while they are read, in a thread of their own, in bounded memory.

Whoever packed the file may be hostile: no decompressor is asked for more than `CHUNK_BYTES` at a time, those that
take a limit on the memory they need are given one, and at most `MAX_CHUNKS` chunks wait to be read.
"""

from __future__ import annotations

import bz2
import lzma
import queue
import sys
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

from sklearn_docids._warn import missing

CHUNK_BYTES = 2**17
MAX_CHUNKS = 4
# A damaged member of at most this size, packed, is searched for what can still be read.
SALVAGE_BYTES = 2**20
# xz -9 needs 65 MiB. zstd up to level 20 needs 32 MiB; --long and --ultra may ask for more, and are refused then.
MAX_XZ_BYTES = 2**27
MAX_ZSTD_WINDOW_LOG = 25
# So many members in a row without content are an attack.
MAX_EMPTY_MEMBERS = 1000
READ_BYTES = 2**16
# The thread cannot be stopped while it waits for its file; after this it is left alone.
CLOSE_SECONDS = 1.0


class CompressionError(Exception):
    """The packed data is damaged."""


def _gzip() -> Any:
    try:
        from isal import igzip_lib
    except ImportError:
        return _Zlib()
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)


class _Zlib:
    """zlib with the interface that all other decompressors share."""

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._decompressor.eof

    @property
    def unused_data(self) -> bytes:
        return self._decompressor.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._decompressor.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decompressor.decompress(self._decompressor.unconsumed_tail + data, max_length)


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        try:
            from backports import zstd
        except ImportError:
            raise missing("a capture packed with zstd", "backports.zstd") from None
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_ZSTD_WINDOW_LOG})


def _lz4() -> Any:
    try:
        import lz4.frame
    except ImportError:
        raise missing("a capture packed with lz4", "lz4") from None
    return lz4.frame.LZ4FrameDecompressor()


def _xz() -> Any:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MAX_XZ_BYTES)


# First bytes -> a new decompressor.
COMPRESSIONS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": _gzip,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x04\x22\x4d\x18": _lz4,
    b"\xfd7zX": _xz,
    b"BZh": bz2.BZ2Decompressor,
}


def compression_of(magic: bytes) -> Callable[[], Any] | None:
    """Return what makes a decompressor for a file that begins with ``magic``; None if it is not compressed."""
    return next((new for start, new in COMPRESSIONS.items() if magic.startswith(start)), None)


class _Source:
    """The packed bytes: first those already read, then those of the stream."""

    def __init__(self, prefix: bytes, stream: Any, closed: threading.Event):
        self._closed = closed
        self._prefix = memoryview(prefix)
        self.n_read = 0
        self._readinto = getattr(stream, "readinto1", None) or stream.readinto
        self._buffer = bytearray(READ_BYTES)
        self.error: BaseException | None = None

    def read(self) -> bytes:
        """Return some bytes, none at the end or when nobody wants more."""
        if self._closed.is_set():
            return b""
        if self._prefix:
            data, self._prefix = bytes(self._prefix[:READ_BYTES]), self._prefix[READ_BYTES:]
        else:
            try:
                n_read = self._readinto(self._buffer)
                if n_read is None:
                    raise BlockingIOError("the stream is non-blocking and has no data now")
                data = bytes(self._buffer[:n_read])
            except BaseException as error:
                self.error = error
                raise
        self.n_read += len(data)
        return data


def _unpack(source: _Source, new: Callable[[], Any]) -> Iterator[bytes]:
    """Yield the content of all members of a packed file, which follow one another and may be padded with zeros."""
    data, n_empty = source.read(), 0
    while data:
        n_given, data = yield from _unpack_member(data, source, new)
        n_empty = 0 if n_given else n_empty + 1
        if n_empty > MAX_EMPTY_MEMBERS:
            raise EOFError(f"{MAX_EMPTY_MEMBERS} empty members in a row")
        data = data.lstrip(b"\0")
        # Zeros pad archives: a read that holds nothing else is not the end.
        while not data and (read := source.read()):
            data = read.lstrip(b"\0")


def _unpack_member(data: bytes, source: _Source, new: Callable[[], Any]) -> Generator[bytes, None, tuple[int, bytes]]:
    """Yield the content of one member; return its size, and what was read beyond its end."""
    decompressor = new()
    packed, n_given, last_piece = bytearray(), 0, 0
    while not decompressor.eof:
        if not data and decompressor.needs_input:
            data = source.read()
            if not data:
                raise EOFError("it ends in the middle")
        if data:
            last_piece = len(packed)
            if last_piece <= SALVAGE_BYTES:
                packed += data
        try:
            chunk = decompressor.decompress(data, max_length=CHUNK_BYTES)
        except Exception:
            if n_given == 0 and new is _gzip and not isinstance(decompressor, _Zlib):
                # isal does not get over the end of a read inside a long header; zlib does.
                decompressor, data, packed = _Zlib(), bytes(packed), bytearray()
                continue
            if len(packed) <= SALVAGE_BYTES:
                yield from _salvage(packed, last_piece, n_given, new)
            raise
        data = b""
        n_given += len(chunk)
        if chunk:
            yield chunk
    return n_given, decompressor.unused_data or b""


def _salvage(packed: bytearray, last_piece: int, n_given: int, new: Callable[[], Any]) -> Iterator[bytes]:
    """Yield what a damaged member holds beyond its first ``n_given`` bytes.

    Of a call that fails, a decompressor gives nothing, not even what it read before the damage. So the packed bytes
    are given to another one: those before the last piece at once, those of the last piece singly.
    """
    decompressor = new()
    n_bytes = 0
    pieces = [bytes(packed[:last_piece]), *(bytes(packed[i : i + 1]) for i in range(last_piece, len(packed)))]
    for piece in pieces:
        chunk, data = b"-", piece
        while chunk and not decompressor.eof:
            try:
                chunk = decompressor.decompress(data, max_length=CHUNK_BYTES)
            except Exception:
                return
            data = b""
            fresh = chunk[max(n_given - n_bytes, 0) :]
            n_bytes += len(chunk)
            if fresh:
                yield fresh


class Unpacked:
    """The content of a packed stream, unpacked in a thread: anything that has ``readinto``.

    Parameters
    ----------
    prefix : bytes
        The bytes of the stream that have been read already.
    stream : binary file
        The rest.
    new : callable
        Returns a new decompressor.
    """

    def __init__(self, prefix: bytes, stream: Any, new: Callable[[], Any]):
        new()  # a package that is missing is said now
        self._closed = threading.Event()
        self._source = _Source(prefix, stream, self._closed)
        self._chunks: queue.Queue[bytes | BaseException] = queue.Queue(MAX_CHUNKS)
        self._rest = memoryview(b"")
        self._thread = threading.Thread(target=self._run, args=(new,), daemon=True, name="unpack a capture")
        self._thread.start()

    def _run(self, new: Callable[[], Any]) -> None:
        try:
            for chunk in _unpack(self._source, new):
                self._put(chunk)
                if self._closed.is_set():
                    return
            self._put(b"")
        except BaseException as error:  # whatever it is, whoever reads must not wait for ever
            self._put(self._source.error or CompressionError(str(error) or type(error).__name__))

    def _put(self, chunk: bytes | BaseException) -> None:
        while not self._closed.is_set():
            try:
                return self._chunks.put(chunk, timeout=0.1)
            except queue.Full:
                continue

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, or a part of it; return how many bytes, 0 at the end.

        Raises
        ------
        CompressionError
            The packed data is damaged here.
        OSError
            The packed data cannot be read.
        """
        if not self._rest:
            chunk = self._chunks.get()
            if isinstance(chunk, BaseException):
                self._chunks.put(chunk)  # for whoever asks again
                raise chunk
            if not chunk:
                self._chunks.put(chunk)
                return 0
            self._rest = memoryview(chunk)
        n_bytes = min(len(buffer), len(self._rest))
        buffer[:n_bytes] = self._rest[:n_bytes]
        self._rest = self._rest[n_bytes:]
        return n_bytes

    @property
    def n_packed(self) -> int:
        """Packed bytes that have been unpacked."""
        return self._source.n_read

    def close(self) -> None:
        """Stop the thread, so that it reads no more from the stream."""
        self._closed.set()
        self._thread.join(CLOSE_SECONDS)
