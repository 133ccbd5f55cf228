# SPDX-License-Identifier: BSD-3-Clause
"""Compiled loops that find the packet records of a capture in a buffer.

They allocate nothing and stop at the end of the buffer they are given. One that lacks bytes or room for records
returns the place where it stopped and is called again from there.
"""

from __future__ import annotations

import numpy as np

from sklearn_docids.capture._native import kernel, little_u32, part, u32

# A longer record is damage: libpcap stops at 256 KiB, but files with longer records that are really there exist.
MAX_RECORD = 16 * 2**20
# Nobody captures empty packets of the year 1970: so many in a row are padding, or a decompression bomb.
MAX_ZERO_RECORDS = 1000
# Times are clamped to 1970..2116, so that neither a sum nor a difference of two overflows.
MAX_TIME = 2**62 - 1

# Why an index kernel returned.
NEED_BYTES, RECORDS_FULL, BAD_LENGTH, ZERO_RECORDS, SECTION_BLOCK, INTERFACE_BLOCK, BAD_INTERFACE, NEXT_CAPTURE = range(
    8
)
# Types of pcapng blocks. That of a section is the same in both byte orders; its length may be in the other one.
BLOCK_INTERFACE, BLOCK_OLD_PACKET, BLOCK_SIMPLE_PACKET, BLOCK_ENHANCED_PACKET = 1, 2, 3, 6
BLOCK_SECTION = 0x0A0D0D0A
# Where a classic record has its captured length: before the original one; behind it (before version 2.3); either
# (version 2.3), the captured one being the smaller.
CAPTURED_FIRST, CAPTURED_LAST, CAPTURED_SMALLER = range(3)

RECORD_DTYPE = np.dtype(
    [
        ("start", np.int64),  # first byte of the packet in the buffer
        ("captured_length", np.int64),
        ("time", np.int64),  # ns since 1970
        ("link_type", np.int32),  # -1: not supported
    ],
    align=True,
)
INTERFACE_DTYPE = np.dtype(
    [
        ("link_type", np.int32),  # -1: not supported
        ("snap_length", np.int64),
        ("binary", np.bool_),  # a tick is 2**-exponent s if set, 10**-exponent s otherwise
        ("exponent", np.int64),
        ("offset", np.int64),  # ns, added to each time
    ],
    align=True,
)


@part
def file_u32(data, at, big_endian):
    """Container fields come in the byte order of the machine that wrote them."""
    return u32(data, at) if big_endian else little_u32(data, at)


@part
def captured_length(data, position, big_endian, lengths):
    """Return the captured length of a classic record."""
    first, second = file_u32(data, position + 8, big_endian), file_u32(data, position + 12, big_endian)
    if lengths == CAPTURED_FIRST:
        return first
    return second if lengths == CAPTURED_LAST else min(first, second)


@kernel
def begins_capture(data, position):
    """Whether a record is in truth the file header of version 2.4 of the next of several captures."""
    little, big = little_u32(data, position), u32(data, position)
    for magic in (0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34):
        if little == magic:
            return little_u32(data, position + 4) == 0x00040002
        if big == magic:
            return u32(data, position + 4) == 0x00020004
    return False


@kernel
def index_pcap(data, position, stop, records, big_endian, header_length, lengths, tick, link_type, n_zero):
    """Return (number of records found, first byte not consumed, reason, bytes needed from there, zero records).

    The last is the number of records with an all-zero header, in a row, up to there; ``n_zero`` those before.
    """
    n = 0
    while True:
        if position + header_length > stop:
            return n, position, NEED_BYTES, header_length, n_zero
        captured = captured_length(data, position, big_endian, lengths)
        if captured > MAX_RECORD:
            return n, position, BAD_LENGTH, captured, n_zero
        if position + header_length + captured > stop:
            return n, position, NEED_BYTES, header_length + captured, n_zero
        if n == len(records):
            return n, position, RECORDS_FULL, 0, n_zero
        seconds, fraction = file_u32(data, position, big_endian), file_u32(data, position + 4, big_endian)
        if captured == 0 and begins_capture(data, position):
            return n, position, NEXT_CAPTURE, 24, n_zero
        n_zero = n_zero + 1 if captured == 0 and seconds == 0 and fraction == 0 else 0
        if n_zero > MAX_ZERO_RECORDS:
            return n, position, ZERO_RECORDS, 0, n_zero
        record = records[n]
        record.start = position + header_length
        record.captured_length = captured
        record.time = seconds * 1_000_000_000 + fraction * tick
        record.link_type = link_type
        n += 1
        position += header_length + captured


@kernel
def pcapng_time(high, low, interface):
    """Return ns since 1970 of a 64-bit count of ticks, clamped."""
    ticks = (np.uint64(high) << np.uint64(32)) | np.uint64(low)
    exponent = interface.exponent
    if interface.binary:
        seconds = np.float64(ticks) * 2.0**-exponent
        if exponent < 64:
            whole = ticks >> np.uint64(exponent)
            rest = np.float64(ticks - (whole << np.uint64(exponent))) * 2.0**-exponent
        else:
            whole, rest = np.uint64(0), seconds
        nanoseconds = np.int64(rest * 1e9)
    else:
        seconds = np.float64(ticks) * 10.0**-exponent
        if exponent < 20:
            unit = np.uint64(1)
            for _ in range(exponent):
                unit *= np.uint64(10)
            whole = ticks // unit
            rest = ticks - whole * unit
            # The remainder is below 10**exponent: scaled without rounding on either side of 10**9.
            for _ in range(exponent, 9):
                rest *= np.uint64(10)
            for _ in range(9, exponent):
                rest //= np.uint64(10)
            nanoseconds = np.int64(rest)
        else:
            whole, nanoseconds = np.uint64(0), np.int64(seconds * 1e9)
    if seconds > MAX_TIME / 1e9:
        return MAX_TIME
    time = np.int64(whole) * 1_000_000_000 + nanoseconds + interface.offset
    return min(max(time, 0), MAX_TIME)


@kernel
def index_pcapng(data, position, stop, records, big_endian, interfaces, n_interfaces, time):
    """Return (number of records found, first byte not consumed, reason, bytes needed from there).

    Section and interface blocks are left to the caller: they are rare and need option parsing. A simple packet block
    has no time stamp; it takes the time of the packet before it (``time`` for the first one).
    """
    n = 0
    while True:
        if position + 12 > stop:
            return n, position, NEED_BYTES, 12
        kind = file_u32(data, position, big_endian)
        if kind == BLOCK_SECTION:
            return n, position, SECTION_BLOCK, 28
        length = file_u32(data, position + 4, big_endian)
        if length < 12 or length % 4 or length > MAX_RECORD:
            return n, position, BAD_LENGTH, length
        if position + length > stop:
            return n, position, NEED_BYTES, length
        if file_u32(data, position + length - 4, big_endian) != length:
            return n, position, BAD_LENGTH, length
        if kind == BLOCK_INTERFACE:
            return n, position, INTERFACE_BLOCK, length
        if kind in (BLOCK_ENHANCED_PACKET, BLOCK_OLD_PACKET, BLOCK_SIMPLE_PACKET):
            if n == len(records):
                return n, position, RECORDS_FULL, 0
            simple = kind == BLOCK_SIMPLE_PACKET
            header = 12 if simple else 28
            if length < header + 4:
                return n, position, BAD_LENGTH, length
            number = 0
            if kind == BLOCK_ENHANCED_PACKET:
                number = file_u32(data, position + 8, big_endian)
            elif kind == BLOCK_OLD_PACKET:  # the interface is a 16-bit field there
                number = file_u32(data, position + 8, big_endian)
                number = number >> 16 if big_endian else number & 0xFFFF
            if number >= n_interfaces:
                return n, position, BAD_INTERFACE, number
            interface = interfaces[number]
            room = length - header - 4
            if simple:
                captured = min(file_u32(data, position + 8, big_endian), room)
                if interface.snap_length:
                    captured = min(captured, interface.snap_length)
            else:
                captured = file_u32(data, position + 20, big_endian)
                if captured > room:
                    return n, position, BAD_LENGTH, captured
                time = pcapng_time(
                    file_u32(data, position + 12, big_endian), file_u32(data, position + 16, big_endian), interface
                )
            record = records[n]
            record.start = position + header
            record.captured_length = captured
            record.time = time
            record.link_type = interface.link_type
            n += 1
        position += length
