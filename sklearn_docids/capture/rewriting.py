# SPDX-License-Identifier: BSD-3-Clause
"""Compiled header-field policies: zero or randomise what a policy names, and carry that over into checksums.

The bytes of a packet lie in ``data``, their copy in ``row``; the copy is changed, and only as far as it goes. All
reading is from ``data``: the processor would wait for bytes it has just stored, and the row may be far from its caches.
Both may be the same array, as in the second pass that random values need.

Nearly all packets are `plain`: their headers lie whole in the copy, and nothing becomes random. All lengths are known
to the compiler then, which keeps the code short enough for the processor's cache of instructions. The same functions
are compiled once more for the others, as a call.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from sklearn_docids.capture import layouts
from sklearn_docids.capture._native import apart, clear, kernel, part, set_u16, u16, u64
from sklearn_docids.capture.headers import (
    LINK_ETHERNET,
    LINK_LINUX_SLL,
    LINK_LINUX_SLL2,
    LINK_WIRELESS,
    ROUTING_HEADER,
    TCP,
    enter_envelope,
    extension_size,
)
from sklearn_docids.capture.layouts import (
    EXTENSION_BYTES,
    EXTENSION_NEXT,
    FIELDS,
    IPV4_BYTES,
    IPV4_CHECKSUM,
    IPV4_LENGTH,
    IPV4_SOURCE,
    IPV6_BYTES,
    IPV6_FLOW_LABEL,
    IPV6_LENGTH,
    IPV6_NEXT,
    IPV6_SOURCE,
    TCP_BYTES,
    TCP_CHECKSUM,
    TCP_HEADER_LENGTH,
    UDP_BYTES,
    UDP_CHECKSUM,
    WIRELESS_BYTES,
    WIRELESS_FLAGS,
)

MAC, IP, PORTS, IP_ID, TTL, CHECKSUMS, TCP_SEQ, TCP_WINDOW, TCP_OPTIONS, TCP_TIMESTAMPS = range(len(FIELDS))
ACTIONS = ("keep", "zero", "randomize")
KEEP, ZERO, RANDOMIZE = range(len(ACTIONS))


def _spans(header: layouts.Header, *fields: str) -> tuple[tuple[int, int, int], ...]:
    """Return (first byte, end, number of the policy's field) of the parts of a header that some fields cover."""
    ends = list(accumulate(field.n_bytes for field in header.fields))
    return tuple(
        (end - field.n_bytes, end, FIELDS.index(field.policy))
        for end, field in zip(ends, header.fields, strict=True)
        if field.policy in fields
    )


# Checksums are in none of these: they are changed last. Addresses are apart: transport checksums cover them.
ETHERNET_SPANS, SLL_SPANS, SLL2_SPANS = (
    _spans(header, "mac") for header in (layouts.ETHERNET, layouts.LINUX_SLL, layouts.LINUX_SLL2)
)
WIRELESS_SPANS, WIRELESS_4_SPANS = (_spans(h, "mac") for h in (layouts.WIRELESS, layouts.WIRELESS_ADDRESS_4))
IPV4_ADDRESSES, IPV6_ADDRESSES = (_spans(header, "ip") for header in (layouts.IPV4, layouts.IPV6))
IPV4_SPANS, IPV6_SPANS = (_spans(header, "ip_id", "ttl") for header in (layouts.IPV4, layouts.IPV6))
PORTS_SPANS, TCP_SPANS = _spans(layouts.UDP, "ports"), _spans(layouts.TCP, "tcp_seq", "tcp_window")  # ports: TCP's, too


class Rewriting(NamedTuple):
    """A packet in ``data`` whose copy ends at ``stop`` and lies ``shift`` bytes further in ``row``."""

    data: Any
    row: Any
    shift: Any
    stop: Any
    actions: Any  # one per field of `FIELDS`
    seed: Any  # of the flow, for random values


@kernel
def mix(h):
    """Return a 64-bit number each of whose bits depends on all bits of ``h`` (finaliser of SplitMix64)."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


# --------------------------------------------------------------------------------------------------------------------
# Spans of bytes


@part
def word_sum(eight_bytes):
    """Return the sum of four 16-bit words."""
    evens = np.uint64(0x0000FFFF0000FFFF)
    pairs = (eight_bytes & evens) + ((eight_bytes >> np.uint64(16)) & evens)
    return np.int64((pairs >> np.uint64(32)) + (pairs & np.uint64(0xFFFFFFFF)))


@part
def field_sum(data, at, n_bytes):
    """Return the sum of the 16-bit words of a field below 32 bytes; without a loop, whose code would be far longer."""
    total = 0
    if n_bytes & 16:
        total += word_sum(u64(data, at)) + word_sum(u64(data, at + 8))
        at += 16
    if n_bytes & 8:
        total += word_sum(u64(data, at))
        at += 8
    if n_bytes & 4:
        total += u16(data, at) + u16(data, at + 2)
        at += 4
    if n_bytes & 2:
        total += u16(data, at)
        at += 2
    if n_bytes & 1:
        total += np.int64(data[at]) << 8
    return total


@kernel
def sum_words(data, first, last):
    """Return the sum of the 16-bit words of ``data[first:last]``, an odd end padded with zero."""
    total = 0
    for i in range(first, last - 1, 2):
        total += u16(data, i)
    if (last - first) % 2 == 1:
        total += np.int64(data[last - 1]) << 8
    return total


@kernel
def randomize(job, first, last, field):
    """Replace bytes by a keyed hash of them: equal bytes of a field become equal ones."""
    h = mix(job.seed + np.uint64(field + 1) * np.uint64(0x9E3779B97F4A7C15))
    for i in range(first, last):
        h = mix(h ^ np.uint64(job.data[i]))
    for i in range(first + job.shift, last + job.shift):
        h = mix(h + np.uint64(0x9E3779B97F4A7C15))
        job.row[i] = h & np.uint64(0xFF)


@part
def rewrite(job, first, last, field, plain):
    """Apply the action of a field to bytes, as far as the copy goes; return by how much the sum of their words fell."""
    action = job.actions[field]
    if action == KEEP:
        return 0
    if plain:
        fallen = field_sum(job.data, first, last - first)
        clear(job.row, first + job.shift, last - first)
        return fallen
    last = min(last, job.stop)
    if first >= last:
        return 0
    before = sum_words(job.data, first, last)
    if action == ZERO:
        clear(job.row, first + job.shift, last - first)
    else:
        randomize(job, first, last, field)
    return before - sum_words(job.row, first + job.shift, last + job.shift)


@part
def rewrite_spans(job, at, spans, plain):
    """Rewrite parts of the header that begins at ``at``; return by how much the sum of its words fell."""
    fallen = 0
    for first, last, field in spans:
        fallen += rewrite(job, at + first, at + last, field, plain)
    return fallen


# --------------------------------------------------------------------------------------------------------------------
# Headers


@part
def rewrite_link(job, packet, plain):
    """Rewrite the addresses of the link header."""
    if packet.link_type == LINK_ETHERNET:
        rewrite_spans(job, packet.start, ETHERNET_SPANS, plain)
    else:
        rewrite_link_elsewhere(job, packet)


@apart
def rewrite_link_elsewhere(job, packet):
    """Do the work of `rewrite_link` for all link types, of which Ethernet alone is worth a way of its own."""
    _, start, link_type = enter_envelope(job.data, packet.start, job.stop, packet.link_type)
    if link_type == LINK_ETHERNET:
        rewrite_spans(job, start, ETHERNET_SPANS, False)
    elif link_type == LINK_LINUX_SLL:
        rewrite_spans(job, start, SLL_SPANS, False)
    elif link_type == LINK_LINUX_SLL2:
        rewrite_spans(job, start, SLL2_SPANS, False)
    elif link_type == LINK_WIRELESS:
        rewrite_spans(job, start, WIRELESS_SPANS, False)
        if start + WIRELESS_BYTES <= job.stop and job.data[start + WIRELESS_FLAGS] & 0x03 == 0x03:
            rewrite_spans(job, start + WIRELESS_BYTES, WIRELESS_4_SPANS, False)


@part
def rewrite_ipv4(job, packet, plain):
    """Rewrite an IPv4 header with its checksum; return by how much the sum of the addresses fell."""
    ip = packet.ip
    addresses = rewrite_spans(job, ip, IPV4_ADDRESSES, plain)
    fallen = addresses + rewrite_spans(job, ip, IPV4_SPANS, plain)
    if packet.transport > ip + IPV4_BYTES:  # an authentication header may stand there, too
        fallen += rewrite_ip_options(job, packet)
    patch_checksum(job, ip + IPV4_CHECKSUM, fallen, 0, 0, plain)
    return addresses


@apart
def rewrite_ip_options(job, packet):
    """Rewrite the options of an IPv4 header, which record and prescribe addresses."""
    end = packet.ip + (np.int64(job.data[packet.ip]) & 15) * 4
    return rewrite(job, packet.ip + IPV4_BYTES, end, IP, False)


@part
def rewrite_ipv6(job, packet, plain):
    """Rewrite an IPv6 header and the addresses behind it; return by how much the sum of the header's fell."""
    ip, label = packet.ip, packet.ip + IPV6_FLOW_LABEL
    if ip + IPV6_LENGTH > job.stop:
        return 0
    traffic_class = job.data[label] & 0xF0
    rewrite_spans(job, ip, IPV6_SPANS, plain)
    if job.actions[IP_ID] != KEEP:  # the flow label, 20 bits: the upper half of its first byte is not of it
        job.row[label + job.shift] = (job.row[label + job.shift] & 0x0F) | traffic_class
    if packet.transport > ip + IPV6_BYTES:
        rewrite_routing_headers(job, packet)
    return rewrite_spans(job, ip, IPV6_ADDRESSES, plain)


@apart
def rewrite_routing_headers(job, packet):
    """Rewrite the addresses that IPv6 routing headers list."""
    at, stop = packet.ip + IPV6_BYTES, min(packet.transport, job.stop)
    if at > stop:
        return
    header = job.data[packet.ip + IPV6_NEXT]
    while at + 2 <= stop:
        size = extension_size(job.data, at, header)
        following = job.data[at + EXTENSION_NEXT]
        if header == ROUTING_HEADER:
            rewrite(job, at + EXTENSION_BYTES, min(at + size, stop), IP, False)
        header = following
        at += size


@kernel
def find_timestamps(data, options, last):
    """Return where the two values of the timestamp option begin, or ``last`` if there is none."""
    at = options
    while at < last and data[at] != 0:  # 0 ends the list
        if data[at] == 1:  # padding of one byte
            at += 1
            continue
        if at + 1 >= last or data[at + 1] < 2:  # a length that lies ends the walk
            return last
        if data[at] == 8:
            return min(at + 2, last)
        at += data[at + 1]
    return last


@kernel
def tcp_header_end(data, tcp, stop):
    """Return the end of a TCP header, as far as it was captured."""
    if tcp + TCP_HEADER_LENGTH + 1 > stop:
        return stop
    return min(stop, tcp + max(TCP_BYTES, (np.int64(data[tcp + TCP_HEADER_LENGTH]) >> 4) * 4))


@apart
def rewrite_options(job, tcp):
    """Rewrite TCP options; the timestamps have their own action, and that of the options if theirs is to keep."""
    last = tcp_header_end(job.data, tcp, job.stop)
    first = min(tcp + TCP_BYTES, last)
    # Options may begin at odd places, so their sum is taken as a whole.
    before = sum_words(job.data, first, last)
    values = find_timestamps(job.data, first, last)
    middle, end = min(values + 4, last), min(values + 8, last)
    field = TCP_OPTIONS if job.actions[TCP_TIMESTAMPS] == KEEP else TCP_TIMESTAMPS
    rewrite(job, first, values, TCP_OPTIONS, False)
    rewrite(job, values, middle, field, False)
    rewrite(job, middle, end, field, False)
    rewrite(job, end, last, TCP_OPTIONS, False)
    return before - sum_words(job.row, first + job.shift, last + job.shift)


@part
def rewrite_transport(job, packet, addresses_before, addresses_fallen, plain):
    """Rewrite the TCP or UDP header with its checksum, which covers the addresses as well."""
    at, actions = packet.transport, job.actions
    is_tcp = packet.protocol == TCP
    fallen = addresses_fallen + rewrite_spans(job, at, PORTS_SPANS, plain)
    # Nobody can guess whether the next packet is TCP: it is asked where it matters.
    if (actions[TCP_SEQ] | actions[TCP_WINDOW]) != KEEP and is_tcp:
        fallen += rewrite_spans(job, at, TCP_SPANS, plain)
    if (actions[TCP_OPTIONS] | actions[TCP_TIMESTAMPS]) != KEEP and is_tcp:
        fallen += rewrite_options(job, at)
    checksum = at + (TCP_CHECKSUM if is_tcp else UDP_CHECKSUM)
    pseudo = addresses_before + packet.protocol + ip_end(job, packet) - at
    patch_checksum(job, checksum, fallen, pseudo, pseudo - addresses_fallen, plain)


@part
def ip_end(job, packet):
    """Return the end of the IP packet by its length; the end of the copy where the network card was to fill that in."""
    if packet.ip_version == 4:
        length = u16(job.data, packet.ip + IPV4_LENGTH)
        return packet.ip + length if length else job.stop
    length = u16(job.data, packet.ip + IPV6_LENGTH)
    return packet.ip + IPV6_BYTES + length if length else job.stop


@part
def address_sum(job, packet):
    """Return the sum of the words of both addresses."""
    if packet.ip_version == 4:
        return word_sum(u64(job.data, packet.ip + IPV4_SOURCE))
    first = packet.ip + IPV6_SOURCE
    total = 0
    for at in range(first, first + 32, 8):
        total += word_sum(u64(job.data, at))
    return total


@part
def fold(total):
    """Return a sum of words, below 2**32, as one's complement sum of 16 bits: twice, rather than guess how often."""
    once = (total & 0xFFFF) + (total >> 16)
    return (once & 0xFFFF) + (once >> 16)


@part
def patch_checksum(job, at, fallen, pseudo_before, pseudo_after, plain):
    """Carry over into a checksum by how much the words it covers fell (RFC 1624).

    A host that leaves checksums to its network card sends itself the sum of the pseudo-header in their place: it is
    replaced by that of the new pseudo-header.
    """
    if job.actions[CHECKSUMS] != KEEP:
        rewrite(job, at, at + 2, CHECKSUMS, plain)
    elif fallen != 0 and (plain or at + 2 <= job.stop):
        old = u16(job.data, at)
        if old == 0:  # not computed
            return
        new = fold(pseudo_after) if old == fold(pseudo_before) else fold(old + fallen % 0xFFFF)
        set_u16(job.row, at + job.shift, new)


@part
def rewrite_headers(job, packet, plain):
    """Apply the actions to a packet; IP version 0 says that no IP header was found."""
    if job.actions[MAC] != KEEP:
        rewrite_link(job, packet, plain)
    if packet.ip_version == 0:
        return
    has_transport = plain or packet.transport < job.stop
    before = address_sum(job, packet) if has_transport else 0
    fallen = rewrite_ipv4(job, packet, plain) if packet.ip_version == 4 else rewrite_ipv6(job, packet, plain)
    if has_transport:
        rewrite_transport(job, packet, before, fallen, plain)


@apart
def rewrite_packet(job, packet):
    """Apply the actions to any packet."""
    rewrite_headers(job, packet, False)


@part
def zero_fields(job, packet):
    """Apply the actions, of which none is random, to a packet that is being copied."""
    if packet.transport + (TCP_BYTES if packet.protocol == TCP else UDP_BYTES) <= job.stop:
        rewrite_headers(job, packet, True)
    else:
        rewrite_packet(job, packet)
