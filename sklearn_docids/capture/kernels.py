# SPDX-License-Identifier: BSD-3-Clause
"""Compiled loops over the bytes of a capture: records, headers, flow table.

Three steps, each with a slow twin in ``tests/naive.py``:

1. `index_pcap` and `index_pcapng` find the packet records in a buffer;
2. `add_packets` reads the headers of each record and files it under its flow;
3. `rehash` makes room.

All of them release the GIL, allocate nothing and stop at the end of the buffer they are given. A kernel that lacks
room (for records, flows or finished flows) returns the place where it stopped and is called again from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

LINK_NULL, LINK_ETHERNET, LINK_RAW_BSD, LINK_RAW_OPENBSD, LINK_RAW = 0, 1, 12, 14, 101
LINK_LOOP, LINK_LINUX_SLL, LINK_IPV4, LINK_IPV6, LINK_LINUX_SLL2 = 108, 113, 228, 229, 276
LINK_TYPES = frozenset({
    LINK_NULL, LINK_ETHERNET, LINK_RAW_BSD, LINK_RAW_OPENBSD, LINK_RAW, LINK_LOOP, LINK_LINUX_SLL, LINK_IPV4,
    LINK_IPV6, LINK_LINUX_SLL2,
})  # fmt: skip

TCP, UDP = 6, 17
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

# Attackers choose how deep headers nest; real traffic stays far below both limits.
MAX_VLAN_TAGS = 32
MAX_EXTENSION_HEADERS = 16

# A longer record is damage: libpcap stops at 256 KiB, but files with longer records that are really there exist.
MAX_RECORD = 16 * 2**20
# Times are clamped to 1970..2116, so that neither a sum nor a difference of two overflows.
MAX_TIME = 2**62 - 1

# What happened to a packet; the names are the keys of ``counters_``.
PACKET_FATES = ("sampled", "non_ip", "other_protocol", "fragment", "short", "malformed", "unknown_link_type")
SAMPLED, NON_IP, OTHER_PROTOCOL, FRAGMENT, SHORT, MALFORMED, UNKNOWN_LINK_TYPE = range(len(PACKET_FATES))

# Why an index kernel returned.
NEED_BYTES, RECORDS_FULL, BAD_LENGTH, SECTION_BLOCK, INTERFACE_BLOCK, BAD_INTERFACE = range(6)

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
# The widths leave no padding: its bytes would hold whatever was in memory, and `FlowSampler.write` stores records.
FLOW_DTYPE = np.dtype(
    [
        ("row", np.int64),  # number of the flow in its capture, in order of first packets
        ("time_first", np.int64),  # ns since 1970
        ("time_last", np.int64),
        ("src_high", np.uint64),  # addresses as two 64-bit halves; IPv4 uses the low 32 bits of the second
        ("src_low", np.uint64),
        ("dst_high", np.uint64),
        ("dst_low", np.uint64),
        ("bytes_forward", np.int64),
        ("bytes_backward", np.int64),
        ("payload_forward", np.int64),
        ("payload_backward", np.int64),
        ("packets_forward", np.uint32),
        ("packets_backward", np.uint32),
        ("link_type", np.uint32),
        ("src_port", np.uint16),
        ("dst_port", np.uint16),
        ("tcp_flags_forward", np.uint16),
        ("tcp_flags_backward", np.uint16),
        ("protocol", np.uint16),
        ("ip_version", np.uint8),
        ("truncated", np.bool_),
    ],
    align=True,
)
# One packet whose headers have been read.
PACKET_DTYPE = np.dtype(
    [
        ("start", np.int64),  # first byte in the buffer
        ("captured_end", np.int64),
        ("ip_end", np.int64),  # by the IP length; may lie beyond the captured end
        ("time", np.int64),
        ("src_high", np.uint64),
        ("src_low", np.uint64),
        ("dst_high", np.uint64),
        ("dst_low", np.uint64),
        ("src_port", np.int64),
        ("dst_port", np.int64),
        ("protocol", np.int64),
        ("ip_version", np.int64),
        ("link_type", np.int64),
        ("tcp_flags", np.int64),
        ("ip_bytes", np.int64),
        ("payload_bytes", np.int64),
    ],
    align=True,
)
# What the flow table needs beside: the list of live flows from longest idle to last active, and the free slots,
# both chained through slot numbers (-1: end).
LINK_DTYPE = np.dtype(
    [
        ("last_active", np.int64),  # capture clock at the last packet
        ("idler", np.int32),
        ("newer", np.int32),
        ("hash", np.uint32),
        ("state", np.uint8),
        ("tcp_flags", np.uint8),  # of both directions; goes on in a tombstone, whose record must not change
    ],
    align=True,
)
# Life of a slot: live, queued early (given out with its n_packets-th packet, still live), early row copied out (a
# tombstone that absorbs later packets), finished and queued.
LIVE, QUEUED_EARLY, TOMBSTONE, FINISHED = range(4)
CURSOR_DTYPE = np.dtype(
    [
        ("clock", np.int64),  # ns, never runs backwards
        ("latest", np.int64),  # latest packet time since the last large step back
        ("started", np.bool_),
        ("n_rows", np.int64),
        ("n_live", np.int64),
        ("n_finished", np.int64),
        ("n_evicted", np.int64),
        ("idlest", np.int64),
        ("newest", np.int64),
        ("free", np.int64),
    ],
    align=True,
)
SETTINGS_DTYPE = np.dtype(
    [
        ("bidirectional", np.bool_),
        ("tcp_restart", np.bool_),
        ("tcp", np.bool_),
        ("udp", np.bool_),
        ("idle_timeout", np.int64),  # ns; -1: none
        ("max_live_flows", np.int64),
        ("emit_early", np.bool_),
    ],
    align=True,
)
N_HASH_KEYS = 11


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the GIL; keep the machine code on disk where a folder for it can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError as error:  # "no locator available": read-only install and no home directory
        warnings.warn(f"compiled code is not cached, each process compiles anew: {error}", stacklevel=2)
        return numba.njit(nogil=True)(function)


@kernel
def u16(data, at):
    """Return a big-endian number of two bytes."""
    return (np.int64(data[at]) << 8) | np.int64(data[at + 1])


@kernel
def u32(data, at):
    """Return a big-endian number of four bytes."""
    return (u16(data, at) << 16) | u16(data, at + 2)


@kernel
def file_u32(data, at, big_endian):
    """Container fields come in the byte order of the machine that wrote them."""
    if big_endian:
        return u32(data, at)
    return (
        np.int64(data[at])
        | (np.int64(data[at + 1]) << 8)
        | (np.int64(data[at + 2]) << 16)
        | (np.int64(data[at + 3]) << 24)
    )


@kernel
def u64(data, at):
    """Return a big-endian number of eight bytes."""
    return (np.uint64(u32(data, at)) << np.uint64(32)) | np.uint64(u32(data, at + 4))


# --------------------------------------------------------------------------------------------------------------------
# Records


@kernel
def index_pcap(data, position, stop, records, big_endian, header_length, tick, link_type):
    """Return (number of records found, first byte not consumed, reason, bytes needed from there)."""
    n = 0
    while True:
        if position + header_length > stop:
            return n, position, NEED_BYTES, header_length
        captured = file_u32(data, position + 8, big_endian)
        if captured > MAX_RECORD:
            return n, position, BAD_LENGTH, captured
        if position + header_length + captured > stop:
            return n, position, NEED_BYTES, header_length + captured
        if n == len(records):
            return n, position, RECORDS_FULL, 0
        seconds, fraction = file_u32(data, position, big_endian), file_u32(data, position + 4, big_endian)
        records[n].start = position + header_length
        records[n].captured_length = captured
        records[n].time = seconds * 1_000_000_000 + fraction * tick
        records[n].link_type = link_type
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
        if kind == 0x0A0D0D0A:  # the same in both byte orders; its length may be in the other one
            return n, position, SECTION_BLOCK, 28
        length = file_u32(data, position + 4, big_endian)
        if length < 12 or length % 4 or length > MAX_RECORD:
            return n, position, BAD_LENGTH, length
        if position + length > stop:
            return n, position, NEED_BYTES, length
        if file_u32(data, position + length - 4, big_endian) != length:
            return n, position, BAD_LENGTH, length
        if kind == 1:
            return n, position, INTERFACE_BLOCK, length
        if kind == 6 or kind == 2 or kind == 3:
            if n == len(records):
                return n, position, RECORDS_FULL, 0
            simple = kind == 3
            header = 12 if simple else 28
            if length < header + 4:
                return n, position, BAD_LENGTH, length
            number = 0
            if kind == 6:
                number = file_u32(data, position + 8, big_endian)
            elif kind == 2:  # the interface is a 16-bit field there
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
            records[n].start = position + header
            records[n].captured_length = captured
            records[n].time = time
            records[n].link_type = interface.link_type
            n += 1
        position += length


# --------------------------------------------------------------------------------------------------------------------
# Headers


@kernel
def find_ip(data, start, stop, link_type):
    """Return (fate, first byte of the IP header, IP version) of the packet in ``data[start:stop]``."""
    if link_type == LINK_ETHERNET:
        at = start + 12
    elif link_type == LINK_LINUX_SLL:
        at = start + 14
    elif link_type == LINK_LINUX_SLL2:
        at = start
    elif link_type in (LINK_NULL, LINK_LOOP):
        if start + 4 > stop:
            return SHORT, start, 0
        family = u32(data, start)
        if family > 0xFFFF:  # null/loopback has the byte order of the capturing machine
            family = file_u32(data, start, False)
        if family == 2:
            return SAMPLED, start + 4, 4
        if family == 10 or family == 24 or family == 28 or family == 30:  # AF_INET6 of Linux and the BSDs
            return SAMPLED, start + 4, 6
        return NON_IP, start, 0
    elif link_type == LINK_IPV4:
        return SAMPLED, start, 4
    elif link_type == LINK_IPV6:
        return SAMPLED, start, 6
    elif link_type < 0:
        return UNKNOWN_LINK_TYPE, start, 0
    else:
        if start >= stop:
            return SHORT, start, 0
        version = data[start] >> 4
        if version == 4 or version == 6:
            return SAMPLED, start, np.int64(version)
        return NON_IP, start, 0

    for _ in range(MAX_VLAN_TAGS + 1):
        if at + 2 > stop:
            return SHORT, start, 0
        ethertype = u16(data, at)
        if ethertype == 0x8100 or ethertype == 0x88A8 or ethertype == 0x9100:
            # SLL2 has the protocol first: a tag there follows the header.
            at = start + 22 if link_type == LINK_LINUX_SLL2 and at == start else at + 4
            continue
        at = start + 20 if link_type == LINK_LINUX_SLL2 and at == start else at + 2
        if ethertype == 0x0800:
            return SAMPLED, at, 4
        if ethertype == 0x86DD:
            return SAMPLED, at, 6
        return NON_IP, start, 0
    return MALFORMED, start, 0


@kernel
def find_transport_ipv4(data, at, stop):
    """Return (fate, protocol, first byte of the transport header, end of the IP packet)."""
    if at + 20 > stop:
        return SHORT, 0, at, stop
    header = (data[at] & 15) * 4
    if data[at] >> 4 != 4 or header < 20:
        return MALFORMED, 0, at, stop
    length = u16(data, at + 2)
    end = at + length
    if length == 0:  # segmentation offload: the card fills it in later
        end = stop
    elif length < header:
        return MALFORMED, 0, at, stop
    if u16(data, at + 6) & 0x1FFF:
        return FRAGMENT, 0, at, stop
    return SAMPLED, np.int64(data[at + 9]), at + header, end


@kernel
def find_transport_ipv6(data, at, stop):
    """Return (fate, protocol, first byte of the transport header, end of the IP packet)."""
    if at + 40 > stop:
        return SHORT, 0, at, stop
    if data[at] >> 4 != 6:
        return MALFORMED, 0, at, stop
    length = u16(data, at + 4)
    end = at + 40 + length if length else stop  # 0: jumbogram or offload
    header = np.int64(data[at + 6])
    at += 40
    for _ in range(MAX_EXTENSION_HEADERS + 1):
        # hop-by-hop, routing, destination options, mobility, HIP, Shim6; fragment; authentication
        plain = header == 0 or header == 43 or header == 60 or header == 135 or header == 139 or header == 140
        if not (plain or header == 44 or header == 51):
            return SAMPLED, header, at, end
        if at + 8 > stop:
            return SHORT, 0, at, stop
        if header == 44:
            if u16(data, at + 2) & 0xFFF8:
                return FRAGMENT, 0, at, stop
            size = 8
        elif header == 51:
            size = (np.int64(data[at + 1]) + 2) * 4
        else:
            size = (np.int64(data[at + 1]) + 1) * 8
        header = np.int64(data[at])
        at += size
    return MALFORMED, 0, at, stop


@kernel
def find_transport(data, start, stop, link_type):
    """Return (fate, IP version, first byte of IP, protocol, first byte of transport, end of the IP packet)."""
    fate, ip, version = find_ip(data, start, stop, link_type)
    if fate != SAMPLED:
        return fate, 0, start, 0, start, stop
    if version == 4:
        fate, protocol, transport, end = find_transport_ipv4(data, ip, stop)
    else:
        fate, protocol, transport, end = find_transport_ipv6(data, ip, stop)
    return fate, version, ip, protocol, transport, end


# --------------------------------------------------------------------------------------------------------------------
# Flow table: open addressing over 64-bit entries (hash in the upper half, slot number + 1 in the lower; 0 is empty)


@kernel
def hash_address(keys, at, high, low, version):
    """Return the share of one address: multilinear over its 32-bit words."""
    h = keys[at] * (low & np.uint64(0xFFFFFFFF))
    if version == 6:
        h += keys[at + 1] * (low >> np.uint64(32))
        h += keys[at + 2] * (high & np.uint64(0xFFFFFFFF))
        h += keys[at + 3] * (high >> np.uint64(32))
    return h


@kernel
def destination_first(packet):
    """Whether the destination is the smaller endpoint: then both directions of a flow hash alike."""
    if packet.src_high != packet.dst_high:
        return packet.src_high > packet.dst_high
    if packet.src_low != packet.dst_low:
        return packet.src_low > packet.dst_low
    return packet.src_port > packet.dst_port


@kernel
def hash_five_tuple(keys, packet, bidirectional):
    """Return 32 bits that an attacker who does not know the keys cannot make collide.

    Multilinear hashing is strongly universal: any two five-tuples collide with probability 2**-32 over the keys.
    """
    swap = bidirectional and destination_first(packet)
    version = packet.ip_version
    h = keys[0] + hash_address(keys, 5 if swap else 1, packet.src_high, packet.src_low, version)
    h += hash_address(keys, 1 if swap else 5, packet.dst_high, packet.dst_low, version)
    first, second = (packet.dst_port, packet.src_port) if swap else (packet.src_port, packet.dst_port)
    h += keys[9] * np.uint64((first << 16) | second)
    h += keys[10] * np.uint64((packet.link_type << 16) | (version << 8) | packet.protocol)
    return h >> np.uint64(32)


@kernel
def unlink(links, cursor, slot):
    """Take a flow out of the list of live flows."""
    idler, newer = links[slot].idler, links[slot].newer
    if idler >= 0:
        links[idler].newer = newer
    else:
        cursor[0].idlest = newer
    if newer >= 0:
        links[newer].idler = idler
    else:
        cursor[0].newest = idler


@kernel
def link_as_newest(links, cursor, slot):
    """Put a flow at the active end of the list of live flows."""
    newest = cursor[0].newest
    links[slot].idler = newest
    links[slot].newer = -1
    if newest >= 0:
        links[newest].newer = slot
    else:
        cursor[0].idlest = slot
    cursor[0].newest = slot


@kernel
def drop_entry(table, slot, hash32):
    """Remove a slot from the table and close the gap, so that no tombstones pile up."""
    mask = len(table) - 1
    at = np.int64(hash32) & mask
    while np.int64(table[at] & np.uint64(0xFFFFFFFF)) != slot + 1:
        at = (at + 1) & mask
    hole = at
    while True:
        at = (at + 1) & mask
        entry = table[at]
        if entry == 0:
            break
        home = np.int64(entry >> np.uint64(32)) & mask
        if ((at - home) & mask) >= ((at - hole) & mask):  # the entry may stand in the hole
            table[hole] = entry
            hole = at
    table[hole] = 0


@kernel
def free(slot, links, cursor):
    """Give a slot back."""
    links[slot].newer = cursor[0].free
    cursor[0].free = slot


@kernel
def enqueue(slot, finished, cursor):
    """Queue a flow to be copied out."""
    finished[cursor[0].n_finished] = slot
    cursor[0].n_finished += 1


@kernel
def finish(slot, links, table, finished, cursor):
    """Take a live flow out of the table; put it into the queue of finished flows."""
    unlink(links, cursor, slot)
    drop_entry(table, slot, links[slot].hash)
    cursor[0].n_live -= 1
    state = links[slot].state
    links[slot].state = FINISHED
    if state == TOMBSTONE:
        free(slot, links, cursor)
    elif state == LIVE:
        enqueue(slot, finished, cursor)


@kernel
def release(links, finished, cursor):
    """Empty the queue, once its flows have been copied out: free their slots, leave a tombstone of live ones."""
    for i in range(cursor[0].n_finished):
        slot = finished[i]
        if links[slot].state == FINISHED:
            free(slot, links, cursor)
        else:
            links[slot].state = TOMBSTONE
    cursor[0].n_finished = 0


@kernel
def add_free_slots(links, cursor, first):
    """Give out the slots from ``first`` on."""
    for slot in range(len(links) - 1, first - 1, -1):
        free(slot, links, cursor)


@kernel
def rehash(old, new):
    """Enter all flows of one table into a larger, empty one."""
    mask = len(new) - 1
    for entry in old:
        if entry != 0:
            at = np.int64(entry >> np.uint64(32)) & mask
            while new[at] != 0:
                at = (at + 1) & mask
            new[at] = entry


@kernel
def finish_all(links, table, finished, cursor):
    """Finish live flows, longest idle first, until none is left or the queue is full."""
    while cursor[0].n_live > 0 and cursor[0].n_finished < len(finished):
        finish(cursor[0].idlest, links, table, finished, cursor)


@kernel
def advance_clock(cursor, time, idle_timeout):
    """Move the capture clock: forwards with the packets, never back.

    After a step back by more than the timeout (captures put one behind the other, a wrong time stamp) it goes on
    from the new time, so that one wrong stamp cannot switch the timeout off for the rest of the capture.
    """
    if not cursor[0].started:
        cursor[0].started = True
        cursor[0].latest = time
    elif time > cursor[0].latest:
        # A longer step ends all flows just as well; cut short, absurd stamps cannot make the clock overflow.
        cursor[0].clock += min(time - cursor[0].latest, idle_timeout + 1)
        cursor[0].latest = time
    elif time < cursor[0].latest - idle_timeout:
        cursor[0].latest = time


@kernel
def expire(links, table, finished, cursor, idle_timeout):
    """Finish the flows that have idled out by now, as far as the queue has room."""
    while cursor[0].n_live > 0 and cursor[0].n_finished < len(finished):
        if cursor[0].clock - links[cursor[0].idlest].last_active <= idle_timeout:
            return
        finish(cursor[0].idlest, links, table, finished, cursor)


@kernel
def find_flow(flows, table, hash32, packet, bidirectional):
    """Return (slot, packet goes forward); slot -1: no live flow of this five-tuple."""
    mask = len(table) - 1
    at = np.int64(hash32) & mask
    while table[at] != 0:
        if table[at] >> np.uint64(32) == hash32:
            slot = np.int64(table[at] & np.uint64(0xFFFFFFFF)) - 1
            flow = flows[slot]
            if (
                flow.protocol == packet.protocol
                and flow.ip_version == packet.ip_version
                and flow.link_type == packet.link_type
            ):
                if (
                    (flow.src_low == packet.src_low and flow.dst_low == packet.dst_low)
                    and (flow.src_port == packet.src_port and flow.dst_port == packet.dst_port)
                    and (flow.src_high == packet.src_high and flow.dst_high == packet.dst_high)
                ):
                    return slot, True
                if (
                    bidirectional
                    and (flow.src_low == packet.dst_low and flow.dst_low == packet.src_low)
                    and (flow.src_port == packet.dst_port and flow.dst_port == packet.src_port)
                    and (flow.src_high == packet.dst_high and flow.dst_high == packet.src_high)
                ):
                    return slot, False
        at = (at + 1) & mask
    return np.int64(-1), True


@kernel
def start_flow(flows, links, X, kept, table, cursor, hash32, packet):
    """Take a free slot, enter it in the table and return it with its row zeroed."""
    slot = cursor[0].free
    cursor[0].free = links[slot].newer
    cursor[0].n_live += 1
    link_as_newest(links, cursor, slot)
    links[slot].hash = np.uint32(hash32)
    links[slot].state = LIVE
    links[slot].tcp_flags = 0
    mask = len(table) - 1
    at = np.int64(hash32) & mask
    while table[at] != 0:
        at = (at + 1) & mask
    table[at] = (hash32 << np.uint64(32)) | np.uint64(slot + 1)
    X[slot, :] = 0
    kept[slot, :] = 0
    flow = flows[slot]
    flow.row = cursor[0].n_rows
    cursor[0].n_rows += 1
    flow.time_first = flow.time_last = packet.time
    flow.src_high, flow.src_low, flow.src_port = packet.src_high, packet.src_low, packet.src_port
    flow.dst_high, flow.dst_low, flow.dst_port = packet.dst_high, packet.dst_low, packet.dst_port
    flow.protocol, flow.ip_version, flow.link_type = packet.protocol, packet.ip_version, packet.link_type
    flow.bytes_forward = flow.bytes_backward = 0
    flow.payload_forward = flow.payload_backward = 0
    flow.packets_forward = flow.packets_backward = 0
    flow.tcp_flags_forward = flow.tcp_flags_backward = 0
    flow.truncated = False
    return slot


@kernel
def keep_bytes(flow, X, kept, slot, number, data, packet):
    """Copy the first bytes of the flow's packet ``number``: from the link header to the end of the IP packet."""
    n_bytes = X.shape[1] // kept.shape[1]
    length = min(n_bytes, min(packet.captured_end, packet.ip_end) - packet.start)
    column = number * n_bytes
    for i in range(length):
        X[slot, column + i] = data[packet.start + i]
    kept[slot, number] = length
    if packet.captured_end < packet.ip_end and packet.captured_end - packet.start < n_bytes:
        flow.truncated = True


@kernel
def count_packet(flow, packet, forward):
    """Add a packet to the counts of its flow."""
    if packet.time > flow.time_last:
        flow.time_last = packet.time
    if forward:
        flow.packets_forward += np.uint32(1)
        flow.bytes_forward += packet.ip_bytes
        flow.payload_forward += packet.payload_bytes
        flow.tcp_flags_forward |= np.uint8(packet.tcp_flags)
    else:
        flow.packets_backward += np.uint32(1)
        flow.bytes_backward += packet.ip_bytes
        flow.payload_backward += packet.payload_bytes
        flow.tcp_flags_backward |= np.uint8(packet.tcp_flags)


@kernel
def read_transport(data, protocol, transport, stop, end):
    """Return (TCP flags, payload bytes by the IP length)."""
    if protocol == UDP:
        return 0, max(end - transport - 8, 0)
    if transport + 14 > stop:  # cut inside the header
        return 0, max(end - transport - 20, 0)
    return np.int64(data[transport + 13]), max(end - transport - (np.int64(data[transport + 12]) >> 4) * 4, 0)


@kernel
def read_packet(data, record, rules, packet):
    """Read the headers of a record into ``packet``; return its fate."""
    start = record.start
    stop = start + record.captured_length
    fate, version, ip, protocol, transport, end = find_transport(data, start, stop, record.link_type)
    if fate != SAMPLED:
        return fate
    if not ((protocol == TCP and rules.tcp) or (protocol == UDP and rules.udp)):
        return OTHER_PROTOCOL
    if transport + 4 > min(stop, end):
        return SHORT
    packet.start, packet.captured_end, packet.ip_end, packet.time = start, stop, end, record.time
    packet.ip_version, packet.protocol, packet.link_type = version, protocol, record.link_type
    if version == 4:
        packet.src_high, packet.src_low = 0, np.uint64(u32(data, ip + 12))
        packet.dst_high, packet.dst_low = 0, np.uint64(u32(data, ip + 16))
    else:
        packet.src_high, packet.src_low = u64(data, ip + 8), u64(data, ip + 16)
        packet.dst_high, packet.dst_low = u64(data, ip + 24), u64(data, ip + 32)
    packet.src_port, packet.dst_port = u16(data, transport), u16(data, transport + 2)
    packet.ip_bytes = end - ip
    packet.tcp_flags, packet.payload_bytes = read_transport(data, protocol, transport, min(stop, end), end)
    return SAMPLED


@kernel
def add_packets(data, records, first, flows, links, X, kept, table, finished, cursor, settings, keys, packets, fates):
    """File records from ``first`` on under their flows; return the first one that was not filed.

    It stops early when fewer than three places are left in the queue (a packet can finish two flows: by a restart
    or an eviction, and by giving its own out early) or when no slot is free.
    """
    rules, packet = settings[0], packets[0]
    for r in range(first, len(records)):
        if rules.idle_timeout >= 0:
            advance_clock(cursor, records[r].time, rules.idle_timeout)
            expire(links, table, finished, cursor, rules.idle_timeout)
        if cursor[0].free < 0 or cursor[0].n_finished > len(finished) - 3:
            return r
        fate = read_packet(data, records[r], rules, packet)
        if fate != SAMPLED:
            fates[fate] += 1
            continue

        hash32 = hash_five_tuple(keys, packet, rules.bidirectional)
        slot, forward = find_flow(flows, table, hash32, packet, rules.bidirectional)
        opens = rules.tcp_restart and packet.tcp_flags & (SYN | ACK) == SYN
        if slot >= 0 and opens and links[slot].tcp_flags & (FIN | RST):
            finish(slot, links, table, finished, cursor)
            slot, forward = np.int64(-1), True
        if slot < 0:
            if cursor[0].n_live >= rules.max_live_flows:
                finish(cursor[0].idlest, links, table, finished, cursor)
                cursor[0].n_evicted += 1
            if cursor[0].free < 0:
                # The restarted or evicted flow still holds its slot; it is out of the table, so filing this
                # record again starts the new flow.
                return r
            slot = start_flow(flows, links, X, kept, table, cursor, hash32, packet)
        elif slot != cursor[0].newest:
            unlink(links, cursor, slot)
            link_as_newest(links, cursor, slot)
        fates[SAMPLED] += 1

        links[slot].last_active = cursor[0].clock
        links[slot].tcp_flags |= np.uint8(packet.tcp_flags)
        if links[slot].state != LIVE:
            continue
        flow = flows[slot]
        number = np.int64(flow.packets_forward) + np.int64(flow.packets_backward)
        count_packet(flow, packet, forward)
        if number < kept.shape[1]:
            keep_bytes(flow, X, kept, slot, number, data, packet)
            if rules.emit_early and number == kept.shape[1] - 1:
                links[slot].state = QUEUED_EARLY
                enqueue(slot, finished, cursor)
    return len(records)
