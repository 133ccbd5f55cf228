# SPDX-License-Identifier: BSD-3-Clause
"""Captures in 7z archives, unpacked within bounds: whoever packed them may be hostile.

py7zr does the unpacking. What could harm it or the machine is refused first: large headers, methods whose decompressors
are not those of Python's standard library, and more content than the data set has. It is given little at a time and
writes to files that are named here, so nothing depends on what a member is called.
"""

from __future__ import annotations

import errno
import io
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

# All of USTC-TFC2016 is 3.71 GB unpacked (Wang et al., ICOIN 2017), and an archive holds one class of it.
MOST_BYTES = 2**32
MOST_FILES = 100
# The archives of the set hold about ten times their size. No capture gets near the limit: each of its records, of 1,530
# bytes for a full Ethernet frame, has a time of its own, and that alone takes about two bytes packed.
MOST_TIMES_PACKED = 1000
# Room for the names, sizes and times of so many files. py7zr makes a dictionary of each byte that claims to be a file.
MOST_HEADER_BYTES = 2**14
# zlib unpacks at once all that it is given, to 1,032 times as much.
READ_AT_ONCE = 2**14
SIGNATURE = struct.Struct("<6sBBIQQI")  # magic, version, checksum; place, size and checksum of the header
# A packed header as 7-Zip and py7zr write it: one stream, unpacked by LZMA or LZMA2 to less than 2**14 bytes.
NUMBER = rb"(?:[\x00-\x7f]|[\x80-\xbf].|[\xc0-\xdf].{2}|[\xe0-\xef].{3}|[\xf0-\xf7].{4}|[\xf8-\xfb].{5})"
PACKED_HEADER = re.compile(
    rb"\x17\x06" + NUMBER + rb"\x01\x09" + NUMBER + rb"(?:\x0a\x01.{4})?\x00"
    rb"\x07\x0b\x01\x00\x01(?:\x23\x03\x01\x01\x05.{5}|\x21\x21\x01.)"
    rb"\x0c(?:[\x00-\x7f]|[\x80-\xbf].)(?:\x0a\x01.{4})?\x00\x00",
    re.DOTALL,
)  # fmt: skip
PLAIN_HEADER = b"\x01"
# Methods that Python's own decompressors unpack: LZMA, LZMA2, bzip2, Deflate, and none at all. Those of the others are
# not safe: the one of PPMd corrupts the memory of the process when a bit is wrong.
METHODS = (b"\x03\x01\x01", b"\x21", b"\x04\x02\x02", b"\x04\x01\x08", b"\x00")
# py7zr packs with a filter for programs before LZMA2, which liblzma undoes along with it.
FILTERED = [b"\x21", b"\x03\x03\x01\x03"]
ENCRYPTED = b"\x06\xf1\x07\x01"
PLAIN_NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)


def extract(archive: Path, folder: Path) -> list[Path]:
    """Unpack the files of an archive into an empty folder; return them in the order of their names.

    Raises
    ------
    OSError
        The archive cannot be read, or the folder cannot be written.
    ValueError
        The archive is damaged or encrypted, packed by another method than those of 7-Zip for data, holds links or no
        file, or more than the data set can.
    """
    import py7zr

    members = _Members(folder)
    with _Sipped(archive) as packed:
        try:
            _check_header(packed)
            with py7zr.SevenZipFile(packed) as opened:
                _check_methods(opened.header)
                _check_content(opened.list(), archive.stat().st_size)
                opened.extractall(factory=members)
        except Exception as error:  # damage makes py7zr raise whatever its decompressors and its assertions do
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise  # of the disk: a wrong place to seek is EINVAL, a wrong bzip2 stream has no number
            raise ValueError(
                f"{archive}: not a usable archive: {_reason(error)}; get it again, or unpack it (7z x) and put the "
                "captures in its place"
            ) from None
        finally:
            members.close()
    return members.paths()


def _check_header(packed: BinaryIO) -> None:
    """Refuse a header that py7zr must not unpack, and leave the file at its beginning."""
    start = packed.read(SIGNATURE.size)
    if len(start) < SIGNATURE.size or not start.startswith(b"7z\xbc\xaf\x27\x1c"):
        raise ValueError("it does not begin like one")
    *_, place, size, _ = SIGNATURE.unpack(start)
    if size > MOST_HEADER_BYTES:
        raise ValueError(f"its header has {size} bytes, too many for {MOST_FILES} files")
    packed.seek(SIGNATURE.size + place)
    header = packed.read(size)
    packed.seek(0)
    if not header.startswith(PLAIN_HEADER) and not PACKED_HEADER.fullmatch(header):
        raise ValueError("its header is damaged, encrypted, too large, or packed otherwise than 7-Zip packs it")


def _check_methods(header: Any) -> None:
    """Refuse what others than Python's own decompressors would unpack."""
    for folder in header.main_streams.unpackinfo.folders if header.main_streams else ():
        methods = [coder["method"] for coder in folder.coders]
        if ENCRYPTED in methods:
            raise ValueError("it is encrypted")
        if methods != FILTERED and not (len(methods) == 1 and methods[0] in METHODS):
            raise ValueError("it is packed otherwise than by LZMA, LZMA2, bzip2 or Deflate")


def _check_content(members: list[Any], n_packed: int) -> None:
    """Refuse what is not one class of the data set, before anything is unpacked."""
    files = [member for member in members if not member.is_directory]
    if not files:
        raise ValueError("it holds no file")
    if len(members) > MOST_FILES:
        raise ValueError(f"it holds {len(members)} files and folders, more than {MOST_FILES}")
    if not all(member.is_file for member in files):
        raise ValueError("it holds a link or a special file")
    n_bytes = sum(max(0, member.uncompressed) for member in members)
    if n_bytes > min(MOST_BYTES, MOST_TIMES_PACKED * n_packed):
        raise ValueError(
            f"its {n_packed} bytes unpack to {n_bytes}, more than {MOST_TIMES_PACKED} times as much or more than "
            f"{MOST_BYTES}, which no capture of the set does"
        )


def _reason(error: Exception) -> str:
    """Return what is wrong in one line, without the control characters that names in an archive may have."""
    text = "".join(char if char.isprintable() else "?" for char in str(error)[:200])
    return text if type(error) is ValueError else f"{type(error).__name__} {text}".rstrip()


class _Sipped(io.FileIO):
    """A file of which py7zr gets little at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most `READ_AT_ONCE` bytes."""
        return super().read(READ_AT_ONCE if size is None or size < 0 else min(size, READ_AT_ONCE))


class _Members:
    """What py7zr asks for a file for each member of an archive."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}

    def create(self, name: str) -> BinaryIO:
        """Return a file in which a member is to be written."""
        last = name.rpartition("/")[2]
        plain = last if PLAIN_NAME.fullmatch(last) else "member"
        file = (self._folder / f"{len(self._files)}-{plain}").open("wb")
        self._files[name] = file
        return file

    def close(self) -> None:
        """Close the files that py7zr has left open."""
        for file in self._files.values():
            file.close()

    def paths(self) -> list[Path]:
        """Return the files, sorted by the names of their members."""
        return [Path(self._files[name].name) for name in sorted(self._files)]
