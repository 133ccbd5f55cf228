# SPDX-License-Identifier: BSD-3-Clause
"""Compiled flow table: packets are filed under their flows, first bytes are copied, finished flows leave.

The table uses open addressing. An entry holds the hash of a five-tuple, the slot of its flow and when the flow was
last active; the flow itself lies in its slot of parallel arrays (record, bytes, bytes kept). There are two ways to
give slots out:

- *keeping* all flows, a slot is the row number, so the arrays are the result and nothing is ever copied;
- *recycling*, a finished flow is copied to the next staged row and its slot is used again, so memory holds live flows.

A flow that idled out stays in the table for at least as long again: of a packet that comes then, it is known that it
continues something. Longer, it stays until its five-tuple comes again, the table is swept to make room, or it is the
one to evict. Nobody can tell the difference, and no packet pays for a list of flows in order of activity.

Memory answers in about a hundred nanoseconds, which is what a whole packet may cost. So packets are taken in groups:
all headers are read and table entries asked for, then flows are asked for, and only then is each packet filed.

All kernels release the GIL and allocate nothing. One that lacks room returns the place where it stopped and why.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sklearn_docids.capture._native import CACHE_LINE, apart, copy, kernel, part, prefetch, set_u16, u16
from sklearn_docids.capture.hashing import digest, hash_five_tuple, read_addresses
from sklearn_docids.capture.headers import (
    DUPLICATE,
    N_KINDS,
    N_LINK_TYPES,
    N_PROTOCOLS,
    NON_IP,
    OTHER_PROTOCOL,
    SAMPLED,
    SHORT,
    TCP,
    UDP,
    UNKNOWN_LINK_TYPE,
    find_transport,
)
from sklearn_docids.capture.layouts import (
    BACKWARD,
    DESCRIBED_FLAGS,
    DESCRIPTION_BYTES,
    DESTINATION_PORT,
    DIRECTION,
    FORWARD,
    IPV4_TTL,
    IPV6_LENGTH,
    PACKET_NUMBER,
    PAYLOAD_LENGTH,
    PORTS_BYTES,
    SERVICE_PORT,
    SOURCE_PORT,
    TCP_BYTES,
    TCP_FLAGS,
    TCP_HEADER_LENGTH,
    UDP_BYTES,
)
from sklearn_docids.capture.rewriting import Rewriting, zero_fields
from sklearn_docids.capture.tunnels import find_innermost

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
# Packets that are read ahead. More are not faster; their entries and flows have to stay in the nearest cache.
LOOKAHEAD = 32
# How a flow began: by a packet without connections; by SYN or SYN-ACK; by another packet of a connection, which ran
# already; behind a timeout that had ended the flow of this five-tuple before.
BEGINS = ("first", "handshake", "running", "timeout")
FIRST, HANDSHAKE, RUNNING, AFTER_TIMEOUT = range(len(BEGINS))
# How it ended; open: it had not.
ENDS = ("open", "closed", "idle", "active", "evicted")
OPEN, CLOSED, IDLE, ACTIVE, EVICTED = range(len(ENDS))
# A SYN so early in a flow is that of its handshake, out of order.
HANDSHAKE_PACKETS = 3
# Ports are system ports below the first, user ports below the second, and dynamic ones from there (RFC 6335).
USER_PORTS, DYNAMIC_PORTS = 1024, 49152

# Why `add_packets` returned.
DONE, TABLE_FULL, NO_SLOT, STAGE_FULL, NO_CANDIDATE, CLOCK_FULL = range(6)
# The clock is set back before it can overflow; only differences of it count.
MAX_CLOCK = 2**61

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
        ("protocol", np.uint16),
        ("tcp_flags_forward", np.uint8),
        ("tcp_flags_backward", np.uint8),
        ("ip_version", np.uint8),
        ("begin", np.uint8),  # of `BEGINS`
        ("end", np.uint8),  # of `ENDS`
        ("truncated", np.bool_),
    ],
    align=True,
)
ENTRY_DTYPE = np.dtype(
    [
        ("name", np.uint64),  # hash of the five-tuple in the upper half, slot + 1 in the lower; 0: empty
        ("last_active", np.int64),  # capture clock at the last packet
    ],
    align=True,
)
# A flow that may be evicted, as it stood when the candidates were listed.
CANDIDATE_DTYPE = np.dtype([("name", np.uint64), ("last_active", np.int64), ("row", np.int64)], align=True)
CURSOR_DTYPE = np.dtype(
    [
        ("clock", np.int64),  # ns, never runs backwards
        ("latest", np.int64),  # latest packet time since the last large step back
        ("started", np.bool_),
        ("was_behind", np.bool_),  # the packet before was stamped further back than the timeout
        ("n_rows", np.int64),
        ("n_live", np.int64),  # entries of the table
        ("n_free", np.int64),
        ("n_staged", np.int64),
        ("n_evicted", np.int64),
        ("candidate", np.int64),
        ("n_digests", np.int64),
        ("n_kinds", np.int64),
    ],
    align=True,
)
SETTINGS_DTYPE = np.dtype(
    [
        ("n_packets", np.int64),
        ("n_bytes", np.int64),
        ("n_looked_at", np.int64),  # packets of a flow from which those of its row are taken
        ("payload", np.bool_),  # the layout of rows
        ("service_port", np.bool_),  # whether it is in them
        ("bidirectional", np.bool_),
        ("tcp_restart", np.bool_),
        ("tcp", np.bool_),
        ("udp", np.bool_),
        ("innermost", np.bool_),
        ("emit_early", np.bool_),
        ("recycles", np.bool_),
        ("rewrites", np.bool_),  # the policy does not keep all fields
        ("tunnel_endpoints", np.bool_),
        ("duplicate_ignore_ttl", np.bool_),
        ("idle_timeout", np.int64),  # ns
        ("memory", np.int64),  # ns for which a flow without packets is known at least
        ("active_timeout", np.int64),  # ns
        ("max_live_flows", np.int64),
        ("duplicate_window", np.int64),
        ("duplicate_seconds", np.int64),  # ns
    ],
    align=True,
)


class Rows(NamedTuple):
    """Flows as parallel arrays, one slot each."""

    flows: np.ndarray  # FLOW_DTYPE
    X: np.ndarray  # uint8, all rows as a single one
    kept: np.ndarray  # uint16 (n_slots, n_packets): how many bytes of each packet were kept
    lengths: np.ndarray  # int32 (n_slots, n_packets): payload bytes of each packet, negative if it goes backward


class Storage(NamedTuple):
    """All that the kernels work on: the live flows of one capture, its finished ones, its rules and counts."""

    table: np.ndarray  # ENTRY_DTYPE
    rows: Rows
    free: np.ndarray  # int64: the slots that are not used, `n_free` of them
    staged: Rows  # finished flows, `n_staged` of them
    given_out: np.ndarray  # bool: whether the flow of a slot that is used again has been copied out
    tunnels: np.ndarray  # uint64: hash of the tunnels around the flow in each slot; while tunnels are entered
    candidates: np.ndarray  # CANDIDATE_DTYPE
    packets: np.ndarray  # PACKET_DTYPE: those that are read ahead
    digests: np.ndarray  # uint64: those of the last packets
    digest_times: np.ndarray  # int64: and their times
    cursors: np.ndarray  # CURSOR_DTYPE: one
    settings: np.ndarray  # SETTINGS_DTYPE: one
    field_actions: np.ndarray  # int64: what happens to header fields
    vxlan_ports: np.ndarray  # int64
    keys: np.ndarray  # uint64
    fates: np.ndarray  # int64: packets by what happened to them
    kinds: np.ndarray  # int64: those that are not IP, or not of a protocol that makes flows, by what they are
    kinds_seen: np.ndarray  # int64: places of the counts in `kinds` that are not zero, `n_kinds` of them


# --------------------------------------------------------------------------------------------------------------------
# Reading a packet


@kernel
def read_transport(data, protocol, transport, stop, end):
    """Return (TCP flags, payload bytes by the IP length)."""
    if protocol == UDP:
        return 0, max(end - transport - UDP_BYTES, 0)
    if transport + TCP_FLAGS + 1 > stop:  # cut inside the header
        return 0, max(end - transport - TCP_BYTES, 0)
    header = max((np.int64(data[transport + TCP_HEADER_LENGTH]) >> 4) * 4, TCP_BYTES)
    return np.int64(data[transport + TCP_FLAGS]), max(end - transport - header, 0)


@part
def kind_of(fate, kind):
    """Return the place of the count of what makes no flow: of a kind, a protocol or a link type; -1: it has none."""
    if fate == NON_IP:
        return kind
    if fate == OTHER_PROTOCOL:
        return N_KINDS + kind
    if fate == UNKNOWN_LINK_TYPE:
        return N_KINDS + N_PROTOCOLS + min(max(kind, 0), N_LINK_TYPES - 1)
    return -1


@part
def describe(data, found, start, stop, link_type, rules, packet):
    """Fill in a packet whose headers were found; return its fate."""
    fate, version, ip, protocol, transport, end = found
    if fate == SAMPLED and not ((protocol == TCP and rules.tcp) or (protocol == UDP and rules.udp)):
        fate = OTHER_PROTOCOL
    packet.start, packet.ip, packet.transport = start, ip, transport
    packet.captured_end, packet.ip_end, packet.ip_version = stop, end, version
    if fate != SAMPLED:
        packet.kind = kind_of(fate, protocol)
        return fate
    if transport + PORTS_BYTES > min(stop, end):
        return SHORT
    packet.protocol, packet.link_type = protocol, link_type
    packet.src_high, packet.src_low, packet.dst_high, packet.dst_low = read_addresses(data, ip, version)
    packet.src_port, packet.dst_port = u16(data, transport + SOURCE_PORT), u16(data, transport + DESTINATION_PORT)
    packet.ip_bytes = end - ip
    packet.tcp_flags, packet.payload_bytes = read_transport(data, protocol, transport, min(stop, end), end)
    return SAMPLED


@kernel
def read_packet(data, record, rules, packet):
    """Read the headers of a record into ``packet``; return its fate."""
    start, link_type = record.start, np.int64(record.link_type)
    stop = start + record.captured_length
    found = find_transport(data, start, stop, link_type)
    return describe(data, found, start, stop, link_type, rules, packet)


@kernel
def read_innermost(data, record, rules, packet, vxlan_ports, keys):
    """Do the work of `read_packet` for the innermost IP packet."""
    stop = record.start + record.captured_length
    found, start, stop, link_type, packet.tunnel = find_innermost(
        data, record.start, stop, np.int64(record.link_type), vxlan_ports, keys
    )
    return describe(data, found, start, stop, link_type, rules, packet)


@kernel
def digest_packet(data, record, packet, ignore_ttl, keys):
    """Return the digest of a packet from its IP header on, or of the whole record if it has none.

    Copies of a packet on several links differ in their link headers. A router on the way changes the TTL, and with it
    the checksum of an IPv4 header. The tunnels around a packet count: who can send one cannot make another a duplicate.
    """
    start, stop = record.start, record.start + record.captured_length
    masked, mask = np.int64(-1), np.uint64(0)
    if packet.ip_version and packet.ip < packet.captured_end:
        start, stop = packet.ip, min(packet.captured_end, packet.ip_end)
        if ignore_ttl and packet.ip_version == 4:
            masked, mask = start + IPV4_TTL, np.uint64(0x00FF0000)
        elif ignore_ttl:
            masked, mask = start + IPV6_LENGTH, np.uint64(0xFFFFFF00)
    return digest(data, start, stop, packet.tunnel, masked, mask, keys)


@part
def read_ahead(data, records, storage):
    """Read the headers of some records; ask memory for their table entries, then for their flows."""
    packets, table, keys, rules = storage.packets, storage.table, storage.keys, storage.settings[0]
    mask = len(table) - 1
    for i in range(len(records)):
        prefetch(data, records[i].start)
        prefetch(data, records[i].start + CACHE_LINE)
    for i in range(len(records)):
        record, packet = records[i], packets[i]
        packet.time = record.time
        if rules.innermost:
            packet.fate = read_innermost(data, record, rules, packet, storage.vxlan_ports, keys)
        else:
            packet.fate = read_packet(data, record, rules, packet)
        if rules.duplicate_window:
            packet.digest = digest_packet(data, record, packet, rules.duplicate_ignore_ttl, keys)
        if packet.fate == SAMPLED:
            packet.hash = hash_five_tuple(keys, packet, rules.bidirectional)
            if rules.innermost:
                packet.tunnel = packet.tunnel if rules.tunnel_endpoints else np.uint64(0)
                packet.hash ^= packet.tunnel
            prefetch(table, np.int64(packet.hash) & mask)
    for i in range(len(records)):
        if packets[i].fate == SAMPLED:
            name = table[np.int64(packets[i].hash) & mask].name
            if name:
                prefetch(storage.rows.flows, slot_of(name))


# --------------------------------------------------------------------------------------------------------------------
# Table


@part
def slot_of(name):
    """Return the slot in the name of an entry."""
    return np.int64(name & np.uint64(0xFFFFFFFF)) - 1


@part
def name_of(hash32, slot):
    """Return the name of an entry."""
    return (np.uint64(hash32) << np.uint64(32)) | np.uint64(slot + 1)


@part
def find_empty(table, hash32):
    """Return the place where a new entry goes."""
    mask = len(table) - 1
    at = np.int64(hash32) & mask
    while table[at].name:
        at = (at + 1) & mask
    return at


@kernel
def find_name(table, name):
    """Return the place of an entry, -1 if it is gone."""
    mask = len(table) - 1
    at = np.int64(name >> np.uint64(32)) & mask
    while table[at].name:
        if table[at].name == name:
            return at
        at = (at + 1) & mask
    return np.int64(-1)


@part
def find_flow(packet, storage):
    """Return (place in the table, slot, packet goes forward); slot -1: no flow of this five-tuple is in the table."""
    table, flows, rules = storage.table, storage.rows.flows, storage.settings[0]
    bidirectional = rules.bidirectional
    mask = len(table) - 1
    at = np.int64(packet.hash) & mask
    while table[at].name:
        if table[at].name >> np.uint64(32) == packet.hash:
            slot = slot_of(table[at].name)
            flow = flows[slot]
            if (
                flow.protocol == packet.protocol
                and flow.ip_version == packet.ip_version
                and flow.link_type == packet.link_type
                and (not rules.innermost or storage.tunnels[slot] == packet.tunnel)
            ):
                if (
                    (flow.src_low == packet.src_low and flow.dst_low == packet.dst_low)
                    and (flow.src_port == packet.src_port and flow.dst_port == packet.dst_port)
                    and (flow.src_high == packet.src_high and flow.dst_high == packet.dst_high)
                ):
                    return at, slot, True
                if (
                    bidirectional
                    and (flow.src_low == packet.dst_low and flow.dst_low == packet.src_low)
                    and (flow.src_port == packet.dst_port and flow.dst_port == packet.src_port)
                    and (flow.src_high == packet.dst_high and flow.dst_high == packet.src_high)
                ):
                    return at, slot, False
        at = (at + 1) & mask
    return at, np.int64(-1), True


@kernel
def drop_entry(table, at):
    """Empty a place of the table and close the gap, so that searches still find what stood behind it."""
    mask = len(table) - 1
    hole = at
    while True:
        at = (at + 1) & mask
        if table[at].name == 0:
            break
        home = np.int64(table[at].name >> np.uint64(32)) & mask
        if ((at - home) & mask) >= ((at - hole) & mask):  # the entry may stand in the hole
            table[hole] = table[at]
            hole = at
    table[hole].name = 0


# --------------------------------------------------------------------------------------------------------------------
# Life of a flow


@part
def n_packets_of(flow):
    """Return how many packets a flow has had."""
    return np.int64(flow.packets_forward) + np.int64(flow.packets_backward)


@part
def is_complete(slot, number, storage):
    """Whether the row of a flow that had ``number`` packets stays as it is, whatever comes.

    Behind its first packets, one with payload still takes the place of one without.
    """
    rules = storage.settings[0]
    if number < rules.n_packets:
        return False
    return number >= rules.n_looked_at or storage.rows.lengths[slot, rules.n_packets - 1] != 0


@part
def is_closed(flow):
    """Whether a connection was closed: by RST, or by FIN in every direction that has packets."""
    forward, backward = flow.tcp_flags_forward, flow.tcp_flags_backward
    if (forward | backward) & RST:
        return True
    both = (flow.packets_forward == 0 or forward & FIN) and (flow.packets_backward == 0 or backward & FIN)
    return (forward | backward) & FIN != 0 and both


@kernel
def stage(slot, rows, staged, cursor, rules):
    """Copy a flow out, with zeros where it has no bytes: its slot may hold those of an earlier flow."""
    n = cursor.n_staged
    cursor.n_staged = n + 1
    staged.flows[n] = rows.flows[slot]
    number = n_packets_of(rows.flows[slot])
    for packet in range(rules.n_packets):
        length = np.int64(rows.kept[slot, packet]) if packet < number else np.int64(0)
        staged.kept[n, packet] = length
        staged.lengths[n, packet] = rows.lengths[slot, packet] if packet < number else np.int32(0)
        place = (n * rules.n_packets + packet) * rules.n_bytes
        copy(rows.X, (slot * rules.n_packets + packet) * rules.n_bytes, staged.X, place, length)
        for i in range(place + length, place + rules.n_bytes):
            staged.X[i] = 0


@part
def end_flow(slot, how, storage):
    """End a flow, once. When all are kept it is in its row; otherwise it is copied out, unless it has been early."""
    cursor, rules = storage.cursors[0], storage.settings[0]
    flow = storage.rows.flows[slot]
    if rules.recycles and storage.given_out[slot]:
        return
    if flow.end != CLOSED:
        flow.end = how
    if rules.recycles:
        storage.given_out[slot] = True
        if not (rules.emit_early and is_complete(slot, n_packets_of(flow), storage)):
            stage(slot, storage.rows, storage.staged, cursor, rules)


@part
def release(slot, storage):
    """Make the slot of a flow that leaves the table free for another one. When all are kept there is none to free."""
    cursor = storage.cursors[0]
    if storage.settings[0].recycles:
        storage.free[cursor.n_free] = slot
        cursor.n_free += 1


@part
def port_range(port):
    """Return the number of the range a port lies in; servers listen in the lower ones."""
    return 0 if port < USER_PORTS else 1 if port < DYNAMIC_PORTS else 2


@part
def is_from_server(packet, rules):
    """Whether the first packet of a flow goes to its source: by its flags, else by the ranges of the ports."""
    if packet.protocol != TCP or not rules.bidirectional:
        return False
    if packet.src_low == packet.dst_low and packet.src_port == packet.dst_port and packet.src_high == packet.dst_high:
        return False  # one endpoint is both
    if packet.tcp_flags & SYN:
        return packet.tcp_flags & ACK != 0
    return port_range(packet.src_port) < port_range(packet.dst_port)


@part
def beginning(packet, after_timeout):
    """Return how a flow begins with a packet."""
    if packet.tcp_flags & SYN:
        return HANDSHAKE
    if after_timeout:
        return AFTER_TIMEOUT
    return RUNNING if packet.protocol == TCP else FIRST


@part
def service_port(flow, rules):
    """Return the port of a flow's destination, as a row has it."""
    return np.int64(flow.dst_port) if rules.service_port else np.int64(0)


@apart
def exchange_ends(live, slot):
    """Make the source of a flow its destination, in its row as well; ``live`` are rows and settings."""
    rows, rules = live[0], live[1][0]
    flow = rows.flows[slot]
    flow.src_high, flow.dst_high = flow.dst_high, flow.src_high
    flow.src_low, flow.dst_low = flow.dst_low, flow.src_low
    flow.src_port, flow.dst_port = flow.dst_port, flow.src_port
    flow.bytes_forward, flow.bytes_backward = flow.bytes_backward, flow.bytes_forward
    flow.payload_forward, flow.payload_backward = flow.payload_backward, flow.payload_forward
    flow.packets_forward, flow.packets_backward = flow.packets_backward, flow.packets_forward
    flow.tcp_flags_forward, flow.tcp_flags_backward = flow.tcp_flags_backward, flow.tcp_flags_forward
    for packet in range(min(n_packets_of(flow), rules.n_packets)):
        rows.lengths[slot, packet] = -rows.lengths[slot, packet]
        if rules.payload:
            place = (slot * rules.n_packets + packet) * rules.n_bytes
            rows.X[place + DIRECTION] = FORWARD + BACKWARD - rows.X[place + DIRECTION]
            set_u16(rows.X, place + SERVICE_PORT, service_port(flow, rules))
    return 0


@part
def start_flow(storage, packet, after_timeout, backward):
    """Return the slot of a new flow, its record filled in but for the first packet's counts."""
    cursor, rules = storage.cursors[0], storage.settings[0]
    slot = cursor.n_rows
    if rules.recycles:
        cursor.n_free -= 1
        slot = storage.free[cursor.n_free]
        storage.given_out[slot] = False
    if rules.innermost:
        storage.tunnels[slot] = packet.tunnel
    flow = storage.rows.flows[slot]
    flow.row = cursor.n_rows
    cursor.n_rows += 1
    flow.time_first = flow.time_last = packet.time
    flow.src_high, flow.src_low, flow.src_port = packet.src_high, packet.src_low, packet.src_port
    flow.dst_high, flow.dst_low, flow.dst_port = packet.dst_high, packet.dst_low, packet.dst_port
    flow.protocol, flow.ip_version, flow.link_type = packet.protocol, packet.ip_version, packet.link_type
    # Where all are kept nobody looks again at a flow that idles out: it does unless it is told otherwise.
    flow.begin, flow.end = beginning(packet, after_timeout), OPEN if rules.recycles else IDLE
    flow.bytes_forward = flow.bytes_backward = 0
    flow.payload_forward = flow.payload_backward = 0
    flow.packets_forward = flow.packets_backward = 0
    flow.tcp_flags_forward = flow.tcp_flags_backward = 0
    flow.truncated = False
    if backward:
        exchange_ends((storage.rows, storage.settings), slot)
    return slot


@kernel
def count_packet(flow, packet, forward, recycles):
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
    if packet.tcp_flags & (FIN | RST) or flow.end == CLOSED:
        flow.end = CLOSED if is_closed(flow) else OPEN if recycles else IDLE


@part
def keep_packet(slot, number, data, packet, forward, storage):
    """Copy the first bytes of a flow's packet ``number``, from the link header to the end of the IP packet."""
    rows, rules = storage.rows, storage.settings[0]
    length = min(rules.n_bytes, min(packet.captured_end, packet.ip_end) - packet.start)
    place = (slot * rules.n_packets + number) * rules.n_bytes
    copy(data, packet.start, rows.X, place, length)
    if rules.rewrites:
        stop = packet.start + length
        zero_fields(Rewriting(data, rows.X, place - packet.start, stop, storage.field_actions, np.uint64(0)), packet)
    rows.kept[slot, number] = length
    rows.lengths[slot, number] = packet.payload_bytes if forward else -packet.payload_bytes
    if packet.captured_end < packet.ip_end and packet.captured_end - packet.start < rules.n_bytes:
        rows.flows[slot].truncated = True


@part
def describe_packet(slot, at, number, packet, forward, storage):
    """Write what a row of payload says of a flow's packet ``number``; return where its payload goes."""
    rows, rules = storage.rows, storage.settings[0]
    place = (slot * rules.n_packets + at) * rules.n_bytes
    rows.X[place] = packet.protocol
    rows.X[place + DIRECTION] = FORWARD if forward else BACKWARD
    set_u16(rows.X, place + PAYLOAD_LENGTH, min(packet.payload_bytes, 0xFFFF))
    rows.X[place + DESCRIBED_FLAGS] = packet.tcp_flags
    rows.X[place + PACKET_NUMBER] = min(number + 1, 0xFF)
    set_u16(rows.X, place + SERVICE_PORT, service_port(rows.flows[slot], rules))
    return place + DESCRIPTION_BYTES


@part
def place_of_payload(slot, n_kept, storage):
    """Make room behind the kept packets with payload: those without move on, the last one out where there is none."""
    rows, rules = storage.rows, storage.settings[0]
    at = np.int64(0)
    while at < n_kept and rows.lengths[slot, at] != 0:
        at += 1
    for packet in range(min(n_kept, rules.n_packets - 1), at, -1):
        place = (slot * rules.n_packets + packet) * rules.n_bytes
        copy(rows.X, place - rules.n_bytes, rows.X, place, DESCRIPTION_BYTES)  # they have nothing else
        rows.kept[slot, packet], rows.lengths[slot, packet] = DESCRIPTION_BYTES, 0
    return at


@part
def keep_payload(slot, number, data, packet, forward, storage):
    """Keep the first payload bytes of a flow's packet ``number``, those with payload in front of those without."""
    rows, rules = storage.rows, storage.settings[0]
    n_kept = min(number, rules.n_packets)
    at = n_kept
    if packet.payload_bytes > 0:
        at = place_of_payload(slot, n_kept, storage)
    if at == rules.n_packets:
        return
    place = describe_packet(slot, at, number, packet, forward, storage)
    first, room = packet.ip_end - packet.payload_bytes, min(packet.payload_bytes, rules.n_bytes - DESCRIPTION_BYTES)
    length = min(max(packet.captured_end - first, 0), room)
    copy(data, first, rows.X, place, length)
    rows.kept[slot, at] = DESCRIPTION_BYTES + length
    rows.lengths[slot, at] = packet.payload_bytes if forward else -packet.payload_bytes
    if length < room:
        rows.flows[slot].truncated = True


@kernel
def advance_clock(cursor, time, idle_timeout, memory):
    """Move the capture clock: forwards with the packets, never back.

    One packet stamped further back than the timeout is a wrong stamp and leaves the clock alone. Two in a row are
    captures put one behind the other, or the end of wrong stamps from the future: the clock goes on from there, so that
    they cannot switch the timeout off for the rest of the capture.
    """
    behind = cursor.started and time < cursor.latest - idle_timeout
    if not cursor.started or (behind and cursor.was_behind):
        cursor.started = True
        cursor.latest = time
    elif time > cursor.latest:
        # A longer step makes all flows forgotten just as well; cut short, absurd stamps cannot make the clock overflow.
        cursor.clock += min(time - cursor.latest, memory + 1)
        cursor.latest = time
    cursor.was_behind = behind


@kernel
def is_duplicate(packet, digests, times, seconds, cursor):
    """Whether one of the packets before, not too long ago, has the same bytes; remember this one."""
    window = len(digests)
    found = False
    for i in range(min(cursor.n_digests, window)):
        found |= (digests[i] == packet.digest) & (abs(packet.time - times[i]) <= seconds)
    digests[cursor.n_digests % window], times[cursor.n_digests % window] = packet.digest, packet.time
    cursor.n_digests += 1
    return found


# --------------------------------------------------------------------------------------------------------------------
# Filing packets, and making room


@kernel
def candidate_is_true(candidate, table, flows):
    """Whether a flow has had no packet since the candidates for eviction were listed."""
    at = find_name(table, candidate.name)
    return (
        at >= 0
        and table[at].last_active == candidate.last_active
        and flows[slot_of(candidate.name)].row == candidate.row
    )


@part
def missing_room(storage):
    """Return what is lacking for one more packet, whatever it is: `DONE` if nothing."""
    cursor, rules, candidates = storage.cursors[0], storage.settings[0], storage.candidates
    if 2 * (cursor.n_live + 1) > len(storage.table):
        return TABLE_FULL
    if cursor.clock > MAX_CLOCK + rules.memory:
        return CLOCK_FULL
    if (cursor.n_free == 0) if rules.recycles else (cursor.n_rows == len(storage.rows.flows)):
        return NO_SLOT
    if cursor.n_staged + 2 > len(storage.staged.flows):  # a flow can end by this packet, and its own be given out early
        return STAGE_FULL
    if cursor.n_live >= rules.max_live_flows:
        while cursor.candidate < len(candidates):
            if candidate_is_true(candidates[cursor.candidate], storage.table, storage.rows.flows):
                return DONE
            cursor.candidate += 1
        return NO_CANDIDATE
    return DONE


@part
def evict(storage):
    """End the flow that has been idle longest."""
    cursor = storage.cursors[0]
    victim = storage.candidates[cursor.candidate]
    how = IDLE
    if cursor.clock - victim.last_active <= storage.settings[0].idle_timeout:  # it would not have ended anyway
        how = EVICTED
        cursor.n_evicted += 1
    drop_entry(storage.table, find_name(storage.table, victim.name))
    end_flow(slot_of(victim.name), how, storage)
    release(slot_of(victim.name), storage)
    cursor.n_live -= 1


@part
def how_ended(flow, last_active, packet, cursor, rules):
    """Return how a flow has ended if a packet of its five-tuple begins a new one; `OPEN` if it does not."""
    if cursor.clock - last_active > rules.idle_timeout:
        return IDLE
    opens = rules.tcp_restart and packet.tcp_flags & (SYN | ACK) == SYN
    closed = (flow.tcp_flags_forward | flow.tcp_flags_backward) & (FIN | RST)
    if opens and closed != 0:
        return CLOSED
    return ACTIVE if packet.time - flow.time_first > rules.active_timeout else OPEN


@part
def note_handshake(storage, slot, packet, forward):
    """Give a flow the direction that its first SYN or SYN-ACK tells; return whether this packet goes forward.

    The capture may hold it behind packets that were sent later.
    """
    flow, rules = storage.rows.flows[slot], storage.settings[0]
    if not packet.tcp_flags & SYN or (flow.tcp_flags_forward | flow.tcp_flags_backward) & SYN:
        return forward
    if n_packets_of(flow) < HANDSHAKE_PACKETS:
        flow.begin = HANDSHAKE
    if rules.bidirectional and is_from_server(packet, rules) == forward:
        exchange_ends((storage.rows, storage.settings), slot)
        return not forward
    return forward


@part
def flow_of(packet, storage):
    """Return (slot, packet goes forward) of the flow a packet belongs to; start one if there is none."""
    cursor, rules, table, flows = storage.cursors[0], storage.settings[0], storage.table, storage.rows.flows
    at, slot, forward = find_flow(packet, storage)
    after_timeout = False
    if slot < 0:
        if cursor.n_live >= rules.max_live_flows:
            evict(storage)
            at = find_empty(table, packet.hash)
        cursor.n_live += 1
    else:
        how = how_ended(flows[slot], table[at].last_active, packet, cursor, rules)
        if how == OPEN:
            table[at].last_active = cursor.clock
            return slot, note_handshake(storage, slot, packet, forward)
        end_flow(slot, how, storage)
        release(slot, storage)
        after_timeout = how != CLOSED and cursor.clock - table[at].last_active <= rules.memory
    keeps_direction = after_timeout and not packet.tcp_flags & SYN
    backward = not forward if keeps_direction else is_from_server(packet, rules)
    slot = start_flow(storage, packet, after_timeout, backward)
    table[at].name = name_of(packet.hash, slot)
    table[at].last_active = cursor.clock
    return slot, not backward


@part
def file_packet(data, packet, storage):
    """Count a packet with its flow, and keep its bytes if its row is not complete."""
    rows, cursor, rules = storage.rows, storage.cursors[0], storage.settings[0]
    slot, forward = flow_of(packet, storage)
    number = n_packets_of(rows.flows[slot])
    count_packet(rows.flows[slot], packet, forward, rules.recycles)
    if is_complete(slot, number, storage):
        return
    if rules.payload:
        keep_payload(slot, number, data, packet, forward, storage)
    else:
        keep_packet(slot, number, data, packet, forward, storage)
    if rules.emit_early and is_complete(slot, number + 1, storage):
        stage(slot, rows, storage.staged, cursor, rules)


@kernel
def count_kind(kind, storage):
    """Count a packet that makes no flow by what it is."""
    cursor = storage.cursors[0]
    if storage.kinds[kind] == 0:
        storage.kinds_seen[cursor.n_kinds] = kind
        cursor.n_kinds += 1
    storage.kinds[kind] += 1


@kernel
def add_packets(data, records, first, storage):
    """File records from ``first`` on under their flows; return (the first one that was not filed, what is lacking)."""
    cursor, rules = storage.cursors[0], storage.settings[0]
    for group in range(first, len(records), LOOKAHEAD):
        ahead = records[group : group + LOOKAHEAD]
        read_ahead(data, ahead, storage)
        for i in range(len(ahead)):
            lacking = missing_room(storage)
            if lacking != DONE:
                return group + i, lacking
            packet = storage.packets[i]
            if rules.duplicate_window and is_duplicate(
                packet, storage.digests, storage.digest_times, rules.duplicate_seconds, cursor
            ):
                storage.fates[DUPLICATE] += 1
                continue
            advance_clock(cursor, packet.time, rules.idle_timeout, rules.memory)
            storage.fates[packet.fate] += 1
            if packet.fate == SAMPLED:
                file_packet(data, packet, storage)
            elif packet.fate == NON_IP or packet.fate == OTHER_PROTOCOL or packet.fate == UNKNOWN_LINK_TYPE:
                count_kind(packet.kind, storage)
    return len(records), DONE


@kernel
def rehash(fresh, storage):
    """Enter the flows of the table that are not to be forgotten into a fresh one."""
    cursor, rules = storage.cursors[0], storage.settings[0]
    cursor.n_live = 0
    for i in range(len(storage.table)):
        entry = storage.table[i]
        if entry.name and cursor.clock - entry.last_active <= rules.memory:
            fresh[find_empty(fresh, entry.name >> np.uint64(32))] = entry
            cursor.n_live += 1


@kernel
def ask_for_flow(slot, rows, rules):
    """Ask memory for a flow that is to be copied out soon."""
    prefetch(rows.flows, slot)
    width = rules.n_packets * rules.n_bytes
    for column in range(slot * width, slot * width + width, CACHE_LINE):
        prefetch(rows.X, column)


@kernel
def reopen(table, storage):
    """Say of the flows that live, where all are kept, that they have not ended by the end of the capture."""
    flows, cursor, rules = storage.rows.flows, storage.cursors[0], storage.settings[0]
    for i in range(len(table)):
        entry = table[i]
        if entry.name and cursor.clock - entry.last_active <= rules.idle_timeout:
            flow = flows[slot_of(entry.name)]
            if flow.end != CLOSED:
                flow.end = OPEN


@kernel
def end_all(slots, how, at, storage):
    """End the flows of ``slots[at:]``, as many as can be staged; return the place of the next one."""
    cursor, rules = storage.cursors[0], storage.settings[0]
    while at < len(slots) and cursor.n_staged < len(storage.staged.flows):
        if at + LOOKAHEAD < len(slots):
            ask_for_flow(slots[at + LOOKAHEAD], storage.rows, rules)
        end_flow(slots[at], how, storage)
        at += 1
    return at
