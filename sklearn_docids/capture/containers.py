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
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from sklearn_docids.capture import records
from sklearn_docids.capture.compression import CompressionError, Unpacked, compression_of
from sklearn_docids.capture.headers import LINK_TYPES
from sklearn_docids.exceptions import CaptureError

BUFFER_BYTES = 2**20
PAGE_BYTES = 4096
RECORDS_PER_CALL = 4096
# A capture has a handful of interfaces; a file that only lists interfaces must not fill the memory.
MAX_INTERFACES = 65_536
MAX_OPTION_BYTES = 65_536
# A capture may begin with some thousands of interfaces before the first packet.
MAX_HEADERS = 10_000

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
FOREIGN_MAGIC = {
    b"PK": "a zip archive: extract it first",
    b"7z": "a 7z archive: extract it first",
    b"vers": "a text file, perhaps a Git LFS pointer instead of the capture itself",
    b"<": "a web page or XML file",
}
LINK_NAMES = {
    3: "AX25", 6: "IEEE802_5", 7: "ARCNET_BSD", 8: "SLIP", 9: "PPP", 10: "FDDI", 11: "ATM_RFC1483", 50: "PPP_HDLC",
    51: "PPP_ETHER", 104: "C_HDLC", 105: "IEEE802_11", 107: "FRELAY", 117: "PFLOG", 119: "IEEE802_11_PRISM",
    121: "HHDLC", 127: "IEEE802_11_RADIOTAP", 129: "ARCNET_LINUX", 138: "APPLE_IP_OVER_IEEE1394", 143: "DOCSIS",
    147: "USER0", 163: "IEEE802_11_AVS", 177: "LINUX_LAPD", 187: "BLUETOOTH_HCI_H4", 189: "USB_LINUX", 192: "PPI",
    195: "IEEE802_15_4", 197: "ERF", 201: "BLUETOOTH_HCI_H4_WITH_PHDR", 202: "AX25_KISS", 203: "LAPD",
    215: "IEEE802_15_4_NONASK_PHY", 220: "USB_LINUX_MMAPPED", 224: "FC_2", 227: "CAN_SOCKETCAN",
    230: "IEEE802_15_4_NOFCS", 231: "DBUS", 239: "NFLOG", 240: "NETANALYZER", 242: "IPOIB", 243: "MPEG_2_TS",
    247: "INFINIBAND", 248: "SCTP", 249: "USBPCAP", 251: "BLUETOOTH_LE_LL", 252: "WIRESHARK_UPPER_PDU",
    253: "NETLINK", 256: "BLUETOOTH_LE_LL_WITH_PHDR",
}  # fmt: skip


def link_name(link_type: int) -> str:
    """Return the number of a link type with its libpcap name where we know it."""
    return f"{link_type} ({LINK_NAMES[link_type]})" if link_type in LINK_NAMES else str(link_type)


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
    if hasattr(source, "readinto"):
        yield source
    elif isinstance(source, str | bytes | os.PathLike):
        # FileIO directly: open() would say "directory" only on reading, and a path is all that is allowed here.
        with io.FileIO(os.fspath(source), "rb") as file:
            yield file
    else:
        raise TypeError(f"a capture is a path or an open binary file, got {type(source).__name__}")


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

    def fill(self, n_bytes: int) -> bool:
        """Read once or more until ``n_bytes`` are there; False at the end of the stream."""
        while self.stop - self.start < n_bytes:
            if self.stop == len(self.data) or self.start + n_bytes > len(self.data):
                self._move_to_front(n_bytes)
            n_read = self._readinto(self.data[self.stop :].data)
            if n_read is None:
                raise BlockingIOError("the stream is non-blocking and has no data now; it would be cut off here")
            if not n_read:
                return False
            self.stop += n_read
        return True

    def _move_to_front(self, n_bytes: int) -> None:
        """Move what is there so that it ends with the first page it needs, and the next read begins a page."""
        kept = self.data[self.start : self.stop].copy()
        self.stop = -(-len(kept) // PAGE_BYTES) * PAGE_BYTES
        self.start = self.stop - len(kept)
        if self.start + n_bytes > len(self.data):
            self.data = _pages(self.start + n_bytes)
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

    Damage raises `CaptureError` after the records before it have been yielded. ``unsupported`` collects the link
    types that were met and cannot be parsed, ``joint`` is the first place where another pcap follows the one before.
    """

    def __init__(self, stream: BinaryIO, name: str):
        self.name = name
        self.n_records: int = 0
        self.unsupported: set[int] = set()
        self.joint: CaptureError | None = None
        self._file = stream
        self._unpacked: Unpacked | None = None
        self.window: Window = Window(stream)
        self._records = np.empty(RECORDS_PER_CALL, records.RECORD_DTYPE)
        self._big_endian = False
        self._time = 0  # ns, of the last packet
        self._n_zero = 0
        self._n_headers = 0  # since the last packet
        self._block_offset = 0  # of the block that is being used
        try:
            self._blocks = self._open()
        except BaseException:
            self.close()
            raise

    def _fill(self, n_bytes: int) -> bool:
        """Read until ``n_bytes`` are there; False at the end. A stream that decompresses may be damaged itself."""
        try:
            return self.window.fill(n_bytes)
        except (CompressionError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise self._damage(f"the packed data is damaged: {error}") from None

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
            # The section header is checked here, so that a file that merely begins alike is refused as a whole.
            try:
                self._read_section()
            except CaptureError as error:
                raise CaptureError(f"not a capture: {error.reason}", self.name) from None
            return self._pcapng_blocks()
        if magic in PCAP_MAGIC:
            return self._pcap_blocks(*PCAP_MAGIC[magic], *self._read_pcap_header(magic))
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

    def _read_pcap_header(self, magic: bytes) -> tuple[int, int]:
        """Return the link type of a classic capture and where its records have the captured length."""
        if not self._fill(24):
            n_bytes = self.window.stop - self.window.start
            raise self._damage_of_header(f"pcap file header cut after {n_bytes} of 24 bytes")
        header = self.window.peek(24)
        order = "big" if PCAP_MAGIC[magic][0] else "little"
        # The upper half holds the length of a frame check sequence; it lies behind the IP packet, never in our rows.
        link_type = int.from_bytes(header[20:24], order) & 0xFFFF  # type: ignore[arg-type]
        if link_type not in LINK_TYPES:
            raise self._damage_of_header(f"link type {link_name(link_type)} is not supported")
        self.window.advance(self.window.start + 24)
        major, minor = int.from_bytes(header[4:6], order), int.from_bytes(header[6:8], order)  # type: ignore[arg-type]
        if major == DG_UX_VERSION or (major == 2 and minor < 3):
            return link_type, records.CAPTURED_LAST
        return link_type, records.CAPTURED_SMALLER if (major, minor) == (2, 3) else records.CAPTURED_FIRST

    def _damage_of_header(self, reason: str) -> CaptureError:
        """Return the error of a file header: it has a place if it is that of a capture behind the first."""
        return self._damage(reason) if self.window.offset else CaptureError(reason, self.name)

    def _damage(self, reason: str) -> CaptureError:
        return CaptureError(reason, self.name, self.window.offset, self.n_records + 1)

    def _taken(self, n_records: int, position: int) -> tuple[np.ndarray, np.ndarray]:
        self.n_records += n_records
        self._block_offset = self.window.offset
        if n_records:
            self._n_headers = 0
            self._time = int(self._records["time"][n_records - 1])
        self.window.advance(position)
        return self.window.data, self._records[:n_records]

    def _pcap_blocks(
        self, big_endian: bool, tick: int, header_length: int, link_type: int, lengths: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        window = self.window
        while True:
            n, position, reason, needed, self._n_zero = records.index_pcap(
                window.data, window.start, window.stop, self._records, big_endian, header_length, lengths, tick,
                link_type, self._n_zero,
            )  # fmt: skip
            block = self._taken(n, position)
            if n:
                yield block
            if reason == records.BAD_LENGTH:
                self._refuse_other_capture()
                raise self._damage(f"record claims {needed} bytes, more than the {records.MAX_RECORD} possible")
            if reason == records.NEXT_CAPTURE:
                self.joint = self.joint or self._damage("another capture begins here")
                self._count_header()
                magic = self._read_magic()
                (big_endian, tick, header_length), (link_type, lengths) = (
                    PCAP_MAGIC[magic],
                    self._read_pcap_header(magic),
                )
                continue
            if reason == records.ZERO_RECORDS:
                raise self._damage(f"{records.MAX_ZERO_RECORDS} empty records in a row, the rest is not read")
            if reason == records.NEED_BYTES and not self._fill(needed):
                if window.start == window.stop:
                    return
                raise self._damage(f"record cut after {window.stop - window.start} of {needed} bytes")

    def _pcapng_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        window = self.window
        while True:
            n, position, reason, needed = records.index_pcapng(
                window.data,
                window.start,
                window.stop,
                self._records,
                self._big_endian,
                self._interfaces,
                self._n_interfaces,
                self._time,
            )
            block = self._taken(n, position)
            if n:
                yield block
            if reason == records.BAD_LENGTH:
                self._refuse_other_capture()
                raise self._damage(f"a block or packet length of {needed} bytes does not fit the block")
            if reason == records.BAD_INTERFACE:
                raise self._damage(f"packet of interface {needed}, but the section has {self._n_interfaces}")
            if reason == records.SECTION_BLOCK:
                self._read_section()
            elif reason == records.INTERFACE_BLOCK:
                self._read_interface(needed)
            elif reason == records.NEED_BYTES and not self._fill(needed):
                if window.start == window.stop:
                    return
                raise self._damage(f"block cut after {window.stop - window.start} of {needed} bytes")

    def _count_header(self) -> None:
        """Stop at headers without packets between them: a small packed file can hold millions."""
        self._n_headers += 1
        if self._n_headers > MAX_HEADERS:
            raise self._damage(f"{MAX_HEADERS} headers and no packet between them, the rest is not read")

    def _refuse_other_capture(self) -> None:
        magic = self.window.peek(4)
        if magic == PCAPNG_MAGIC or magic in PCAP_MAGIC or compression_of(magic):
            raise self._damage("a capture of another kind begins here: split the two")

    def _read_section(self) -> None:
        """Read a section header: it sets the byte order and starts an empty list of interfaces."""
        window = self.window
        if not self._fill(28):
            raise self._damage(f"section header cut after {window.stop - window.start} of 28 bytes")
        order_mark = window.peek(12)[8:]
        if order_mark not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
            raise self._damage(f"section header has no byte-order mark, but {order_mark!r}")
        self._big_endian = order_mark == b"\x1a\x2b\x3c\x4d"
        length = records.file_u32(window.data, window.start + 4, self._big_endian)
        if length < 28 or length % 4 or length > records.MAX_RECORD:
            raise self._damage(f"section header claims {length} bytes")
        if not self._fill(length):
            raise self._damage(f"section header cut after {window.stop - window.start} of {length} bytes")
        self._interfaces = np.zeros(16, records.INTERFACE_DTYPE)
        self._n_interfaces = 0
        window.advance(window.start + length)
        self._count_header()

    def _read_interface(self, length: int) -> None:
        window = self.window
        if length < 20:
            raise self._damage(f"interface block of {length} bytes, at least 20 are needed")
        if self._n_interfaces == MAX_INTERFACES:
            raise self._damage(f"more than {MAX_INTERFACES} interfaces in a section")
        if self._n_interfaces == len(self._interfaces):
            self._interfaces = np.concatenate([self._interfaces, np.zeros_like(self._interfaces)])
        block = window.peek(length)
        order = "big" if self._big_endian else "little"
        interface = self._interfaces[self._n_interfaces]
        link_type = int.from_bytes(block[8:10], order)  # type: ignore[arg-type]
        if link_type not in LINK_TYPES:
            self.unsupported.add(link_type)
            link_type = -1
        interface["link_type"] = link_type
        interface["snap_length"] = int.from_bytes(block[12:16], order)  # type: ignore[arg-type]
        interface["binary"], interface["exponent"], interface["offset"] = _time_options(
            block[16:-4][:MAX_OPTION_BYTES], order
        )
        self._n_interfaces += 1
        window.advance(window.start + length)
        self._count_header()


def _time_options(options: bytes, order: Any) -> tuple[bool, int, int]:
    """Return (binary, exponent, offset in ns) of an interface; options that lie about their length are ignored."""
    binary, exponent, offset = False, 6, 0
    at = 0
    while at + 4 <= len(options):
        code = int.from_bytes(options[at : at + 2], order)
        length = int.from_bytes(options[at + 2 : at + 4], order)
        value = options[at + 4 : at + 4 + length]
        if code == 0 or len(value) < length:
            break
        if code == 9 and length == 1:
            binary, exponent = value[0] >= 128, value[0] & 127
        elif code == 14 and length == 8:
            seconds = int.from_bytes(value, order, signed=True)
            offset = max(-(2**61), min(seconds * 10**9, 2**61))
        at += 4 + (length + 3) // 4 * 4
    return binary, exponent, offset
