# SPDX-License-Identifier: BSD-3-Clause
"""Packets as pcapng: blocks of them in a buffer or a file, with link types, times in ns and original lengths."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import numpy as np

from sklearn_docids.capture._native import copy, kernel, part
from sklearn_docids.capture.records import BLOCK_ENHANCED_PACKET, BLOCK_INTERFACE, BLOCK_SECTION, INTERFACE_DTYPE

# Wireshark and libpcap refuse a file with a longer packet, which is cut here.
MAX_CAPTURED = 262_144
BLOCK_HEADER, BLOCK_END = 28, 4
MAX_BLOCK = BLOCK_HEADER + MAX_CAPTURED + BLOCK_END
BUFFER_BYTES = 2**20
NANOSECONDS = 9  # a tick is 10**-9 s
OPTION_RESOLUTION = 9


@part
def put_u32(data: Any, at: Any, number: Any) -> Any:
    """Store a little-endian number of four bytes."""
    for i in range(4):
        data[at + i] = (number >> (8 * i)) & 0xFF


@part
def block_size(length: Any) -> Any:
    """Return the bytes of a block of a packet, whose bytes are filled up to a multiple of four."""
    return BLOCK_HEADER + (length + 3) // 4 * 4 + BLOCK_END


@kernel
def put_block(data: Any, record: Any, length: Any, interface: Any, out: Any, at: Any) -> Any:
    """Write a block of the first ``length`` bytes of a packet; return its end."""
    size = block_size(length)
    put_u32(out, at, BLOCK_ENHANCED_PACKET)
    put_u32(out, at + 4, size)
    put_u32(out, at + 8, interface)
    put_u32(out, at + 12, record.time >> 32)
    put_u32(out, at + 16, record.time & 0xFFFFFFFF)
    put_u32(out, at + 20, length)
    # Captures exist that state less than they hold; readers refuse these.
    put_u32(out, at + 24, max(np.int64(record.original_length), record.captured_length))
    copy(data, record.start, out, at + BLOCK_HEADER, length)
    for i in range(at + BLOCK_HEADER + length, at + size - BLOCK_END):
        out[i] = 0
    put_u32(out, at + size - BLOCK_END, size)
    return at + size


@kernel
def put_blocks(data: Any, records: Any, wanted: Any, first: Any, numbers: Any, out: Any, at: Any) -> Any:
    """Write blocks of the wanted records from ``first`` on; return (the first one not written, end of the blocks).

    It stops where there is no room, and at a link type that has no number yet.
    """
    for i in range(first, len(records)):
        if wanted[i]:
            length = min(records[i].captured_length, MAX_CAPTURED)
            interface = numbers[records[i].link_type & 0xFFFF]
            if interface < 0 or at + block_size(length) > len(out):
                return i, at
            at = put_block(data, records[i], length, interface, out, at)
    return len(records), at


class Interfaces:
    """The interfaces of a section: one for each link type, in the order in which they came."""

    def __init__(self) -> None:
        self.numbers: np.ndarray = np.full(2**16, -1, np.int32)
        self.described: np.ndarray = np.zeros(0, INTERFACE_DTYPE)

    def number(self, link_type: int) -> bool:
        """Give a link type a number; False if it has one."""
        if self.numbers[link_type] >= 0:
            return False
        self.numbers[link_type] = len(self.described)
        new = np.zeros(1, INTERFACE_DTYPE)
        new["link_type"], new["exponent"] = link_type, NANOSECONDS
        self.described = np.concatenate([self.described, new])
        return True


class PcapngWriter:
    """Writes packets to an open binary file, which stays the caller's; readers see a section from the first on."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._interfaces = Interfaces()
        self._buffer: np.ndarray = np.empty(BUFFER_BYTES, np.uint8)
        file.write(_block(BLOCK_SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))

    def write(self, data: np.ndarray, records: np.ndarray, wanted: np.ndarray) -> int:
        """Write the packets of those records that are wanted; return their number."""
        done = 0
        while done < len(records):
            done, end = put_blocks(data, records, wanted, done, self._interfaces.numbers, self._buffer, 0)
            self._file.write(self._buffer[:end].data)
            if done < len(records):
                self._describe(int(records["link_type"][done]) & 0xFFFF)
        return int(np.count_nonzero(wanted))

    def _describe(self, link_type: int) -> None:
        if self._interfaces.number(link_type):
            resolution = struct.pack("<HHB3xHH", OPTION_RESOLUTION, 1, NANOSECONDS, 0, 0)
            self._file.write(_block(BLOCK_INTERFACE, struct.pack("<HHI", link_type, 0, MAX_CAPTURED) + resolution))


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length
