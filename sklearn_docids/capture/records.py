# SPDX-License-Identifier: BSD-3-Clause
"""Compiled loops that find the packet records of a capture in a buffer.

They allocate nothing and stop at the end of the buffer they are given. One that lacks bytes or room for records
returns the place where it stopped and is called again from there.
"""

from __future__ import annotations

import numpy as np

from sklearn_docids.capture._native import kernel, little_u16, little_u32, part, u16, u32

# A longer record is damage: libpcap stops at 256 KiB, but files with longer records that are really there exist.
MAX_RECORD = 16 * 2**20
# Nobody captures empty packets of the year 1970: so many in a row are padding, or a decompression bomb.
MAX_ZERO_RECORDS = 1000
# Times are clamped to 1970..2116, so that neither a sum nor a difference of two overflows.
MAX_TIME = 2**62 - 1

# A capture may begin with some thousands of interfaces before the first packet.
MAX_HEADERS = 10_000
MAX_OPTION_BYTES = 65_536

# Why an index kernel returned.
(
    NEED_BYTES, RECORDS_FULL, BAD_LENGTH, ZERO_RECORDS, NEXT_CAPTURE, BAD_INTERFACE, INTERFACES_FULL, BAD_ORDER_MARK,
    BAD_SECTION, BAD_INTERFACE_BLOCK, TOO_MANY_HEADERS, ENTERED,
) = range(12)  # fmt: skip
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
        ("link_type", np.int32),
        ("original_length", np.uint32),  # as the container states it, be that less than was captured
    ],
    align=True,
)
INTERFACE_DTYPE = np.dtype(
    [
        ("link_type", np.int32),
        ("snap_length", np.int64),
        ("binary", np.bool_),  # a tick is 2**-exponent s if set, 10**-exponent s otherwise
        ("exponent", np.int64),
        ("offset", np.int64),  # ns, added to each time
    ],
    align=True,
)
# Where the walk through a container stands.
STATE_DTYPE = np.dtype(
    [
        ("big_endian", np.bool_),
        ("time", np.int64),  # ns, of the last packet
        ("n_headers", np.int64),  # since the last packet
        # pcap
        ("header_length", np.int64),  # of a record
        ("lengths", np.int64),  # where the captured length stands
        ("tick", np.int64),  # ns
        ("link_type", np.int64),
        ("n_zero", np.int64),  # records with an all-zero header, in a row
        ("enters_next", np.bool_),  # a capture behind the first one is read on
        # pcapng
        ("n_interfaces", np.int64),
    ],
    align=True,
)


@part
def file_u16(data, at, big_endian):
    """Return a number of two bytes in the byte order of the file."""
    return u16(data, at) if big_endian else little_u16(data, at)


@part
def file_u32(data, at, big_endian):
    """Container fields come in the byte order of the machine that wrote them."""
    return u32(data, at) if big_endian else little_u32(data, at)


@part
def record_lengths(data, position, big_endian, lengths):
    """Return (captured, original length) of a classic record."""
    first, second = file_u32(data, position + 8, big_endian), file_u32(data, position + 12, big_endian)
    if lengths == CAPTURED_FIRST:
        return first, second
    return (second, first) if lengths == CAPTURED_LAST else (min(first, second), max(first, second))


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
def enter_pcap(data, position, state):
    """Take over the 24 bytes of a pcap file header of version 2.4."""
    state.big_endian = data[position] == 0xA1
    magic = file_u32(data, position, state.big_endian)
    state.header_length = 24 if magic == 0xA1B2CD34 else 16
    state.tick = 1 if magic == 0xA1B23C4D else 1000
    state.lengths = CAPTURED_FIRST
    # The upper half holds the length of a frame check sequence; it lies behind the IP packet, never in our rows.
    state.link_type = file_u32(data, position + 20, state.big_endian) & 0xFFFF


@kernel
def index_pcap(data, position, stop, records, state):
    """Return (number of records found, first byte not consumed, reason, bytes needed from there)."""
    n, n_zero = 0, state.n_zero
    big_endian, header_length, lengths = state.big_endian, state.header_length, state.lengths
    while True:
        state.n_zero = n_zero
        if position + header_length > stop:
            return n, position, NEED_BYTES, header_length
        captured, original = record_lengths(data, position, big_endian, lengths)
        if captured > MAX_RECORD:
            return n, position, BAD_LENGTH, captured
        if captured == 0 and begins_capture(data, position):
            if not state.enters_next or state.n_headers > MAX_HEADERS:
                return n, position, NEXT_CAPTURE if state.n_headers <= MAX_HEADERS else TOO_MANY_HEADERS, 24
            if position + 24 > stop:
                return n, position, NEED_BYTES, 24
            enter_pcap(data, position, state)
            big_endian, header_length, lengths = state.big_endian, state.header_length, state.lengths
            state.n_headers += 1
            position += 24
            continue
        if position + header_length + captured > stop:
            return n, position, NEED_BYTES, header_length + captured
        if n == len(records):
            return n, position, RECORDS_FULL, 0
        seconds, fraction = file_u32(data, position, big_endian), file_u32(data, position + 4, big_endian)
        n_zero = n_zero + 1 if captured == 0 and seconds == 0 and fraction == 0 else 0
        if n_zero > MAX_ZERO_RECORDS:
            return n, position, ZERO_RECORDS, 0
        state.n_headers = 0
        record = records[n]
        record.start = position + header_length
        record.captured_length, record.original_length = captured, original
        record.time = seconds * 1_000_000_000 + fraction * state.tick
        record.link_type = state.link_type
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
def enter_section(data, position, stop, state):
    """Take over a section header, which sets the byte order and begins an empty list of interfaces.

    Return (reason, number that goes with it): `ENTERED` with its length, or why it was not.
    """
    if position + 28 > stop:
        return NEED_BYTES, 28
    mark = u32(data, position + 8)
    if mark not in (0x1A2B3C4D, 0x4D3C2B1A):
        return BAD_ORDER_MARK, mark
    big_endian = mark == 0x1A2B3C4D
    length = file_u32(data, position + 4, big_endian)
    if length < 28 or length % 4 or length > MAX_RECORD:
        return BAD_SECTION, length
    if position + length > stop:
        return NEED_BYTES, length
    state.big_endian = big_endian
    state.n_interfaces = 0
    state.n_headers += 1
    return ENTERED, length


@kernel
def enter_interface(data, position, length, interfaces, state):
    """Take over an interface block of ``length`` bytes, all of which are there; return as `enter_section`."""
    if length < 20:
        return BAD_INTERFACE_BLOCK, length
    if state.n_interfaces == len(interfaces):
        return INTERFACES_FULL, length
    interface = interfaces[state.n_interfaces]
    interface.link_type = file_u16(data, position + 8, state.big_endian)
    interface.snap_length = file_u32(data, position + 12, state.big_endian)
    read_time_options(data, position + 16, position + length - 4, interface, state.big_endian)
    state.n_interfaces += 1
    state.n_headers += 1
    return ENTERED, length


@kernel
def read_time_options(data, at, stop, interface, big_endian):
    """Read resolution and offset of time stamps from options; options that lie about their length end the list."""
    interface.binary, interface.exponent, interface.offset = False, 6, 0
    stop = min(stop, at + MAX_OPTION_BYTES)
    while at + 4 <= stop:
        code, length = file_u16(data, at, big_endian), file_u16(data, at + 2, big_endian)
        if code == 0 or at + 4 + length > stop:
            return
        if code == 9 and length == 1:
            interface.binary, interface.exponent = data[at + 4] >= 128, data[at + 4] & 127
        elif code == 14 and length == 8:
            first, second = file_u32(data, at + 4, big_endian), file_u32(data, at + 8, big_endian)
            high, low = (first, second) if big_endian else (second, first)
            seconds = np.int64((np.uint64(high) << np.uint64(32)) | np.uint64(low))
            most = 2**61 // 1_000_000_000
            interface.offset = min(max(seconds, -most), most) * 1_000_000_000
        at += 4 + (length + 3) // 4 * 4


@kernel
def index_pcapng(data, position, stop, records, interfaces, state):
    """Return (number of records found, first byte not consumed, reason, bytes needed from there or a bad number).

    A simple packet block has no time stamp; it takes the time of the packet before it.
    """
    n = 0
    while True:
        if state.n_headers > MAX_HEADERS:
            return n, position, TOO_MANY_HEADERS, 0
        if position + 12 > stop:
            return n, position, NEED_BYTES, 12
        kind = file_u32(data, position, state.big_endian)
        if kind == BLOCK_SECTION:
            reason, length = enter_section(data, position, stop, state)
            if reason != ENTERED:
                return n, position, reason, length
            position += length
            continue
        length = file_u32(data, position + 4, state.big_endian)
        if length < 12 or length % 4 or length > MAX_RECORD:
            return n, position, BAD_LENGTH, length
        if position + length > stop:
            return n, position, NEED_BYTES, length
        if file_u32(data, position + length - 4, state.big_endian) != length:
            return n, position, BAD_LENGTH, length
        if kind == BLOCK_INTERFACE:
            reason, length = enter_interface(data, position, length, interfaces, state)
            if reason != ENTERED:
                return n, position, reason, length
        elif kind in (BLOCK_ENHANCED_PACKET, BLOCK_OLD_PACKET, BLOCK_SIMPLE_PACKET):
            if n == len(records):
                return n, position, RECORDS_FULL, 0
            reason, number = read_packet_block(data, position, kind, length, records[n], interfaces, state)
            if reason != ENTERED:
                return n, position, reason, number
            state.n_headers = 0
            n += 1
        position += length


@part
def interface_number(data, position, kind, big_endian):
    """Return the number of the interface of a packet block."""
    if kind == BLOCK_SIMPLE_PACKET:
        return 0
    number = file_u32(data, position + 8, big_endian)
    if kind == BLOCK_OLD_PACKET:  # a 16-bit field there
        return number >> 16 if big_endian else number & 0xFFFF
    return number


@kernel
def read_packet_block(data, position, kind, length, record, interfaces, state):
    """Fill in the record of a packet block, which lies whole in the buffer; return as `enter_section`."""
    simple = kind == BLOCK_SIMPLE_PACKET
    header = 12 if simple else 28
    if length < header + 4:
        return BAD_LENGTH, length
    number = interface_number(data, position, kind, state.big_endian)
    if number >= state.n_interfaces:
        return BAD_INTERFACE, number
    interface = interfaces[number]
    room = length - header - 4
    original = file_u32(data, position + (8 if simple else 24), state.big_endian)
    if simple:
        captured = min(original, room)
        if interface.snap_length:
            captured = min(captured, interface.snap_length)
    else:
        captured = file_u32(data, position + 20, state.big_endian)
        if captured > room:
            return BAD_LENGTH, captured
        high, low = file_u32(data, position + 12, state.big_endian), file_u32(data, position + 16, state.big_endian)
        state.time = pcapng_time(high, low, interface)
    record.start = position + header
    record.captured_length, record.original_length = captured, original
    record.time = state.time
    record.link_type = interface.link_type
    return ENTERED, length
