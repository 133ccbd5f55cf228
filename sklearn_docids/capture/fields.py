# SPDX-License-Identifier: BSD-3-Clause
"""Header-field policies: which header bytes of sampled flows are kept, zeroed or randomised.

A second pass over sampled rows, off the path that reads captures: 320 bytes a flow instead of the whole file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sklearn_docids.capture._native import kernel, u16
from sklearn_docids.capture.flows import FlowRows
from sklearn_docids.capture.headers import (
    LINK_ETHERNET,
    LINK_LINUX_SLL,
    LINK_LINUX_SLL2,
    LINK_PPI,
    SAMPLED,
    TCP,
    UDP,
    enter_ppi,
    find_ip,
    find_transport,
)

FIELDS = (
    "mac", "ip", "ports", "ip_id", "ttl", "checksums", "tcp_seq", "tcp_window", "tcp_options", "tcp_timestamps",
)  # fmt: skip
MAC, IP, PORTS, IP_ID, TTL, CHECKSUMS, TCP_SEQ, TCP_WINDOW, TCP_OPTIONS, TCP_TIMESTAMPS = range(len(FIELDS))
ACTIONS = ("keep", "zero", "randomize")
KEEP, ZERO, RANDOMIZE = range(len(ACTIONS))

POLICIES: dict[str, dict[str, str]] = {
    "raw": {},
    # Who talks to whom is the network's own matter: no address says what a flow does.
    "no_addresses": {"mac": "zero", "ip": "zero"},
    # The paper: MAC and IP addresses are random in the training data.
    "paper": {"mac": "randomize", "ip": "randomize"},
    # Addresses, and what tells hosts and capture points apart whatever they do: distance (TTL), counters, the
    # habits of a TCP stack, and checksums, which still encode the zeroed addresses.
    "portable": dict.fromkeys(
        ("mac", "ip", "ip_id", "ttl", "checksums", "tcp_seq", "tcp_window", "tcp_options", "tcp_timestamps"), "zero"
    ),
}


def policy_actions(fields: str | Mapping[str, str], *, training: bool) -> np.ndarray:
    """Return one action number per field of `FIELDS`; outside training, ``"randomize"`` keeps.

    Raises
    ------
    ValueError
        The policy, a field or an action is unknown.
    """
    if isinstance(fields, str):
        if fields not in POLICIES:
            raise ValueError(f"fields={fields!r} is no policy; choose from {sorted(POLICIES)} or give a mapping")
        fields = POLICIES[fields]
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise ValueError(f"fields names {unknown}, which are no header fields; choose from {list(FIELDS)}")
    wrong = sorted(str(action) for action in set(fields.values()) - set(ACTIONS))
    if wrong:
        raise ValueError(f"fields has the actions {wrong}; choose from {list(ACTIONS)}")
    actions = np.array([ACTIONS.index(fields.get(name, "keep")) for name in FIELDS], np.int64)
    return actions if training else np.where(actions == RANDOMIZE, KEEP, actions)


def apply_fields(rows: FlowRows, actions: np.ndarray, seed: int) -> None:
    """Apply actions to ``rows.X`` in place.

    A randomised value is a keyed hash of (seed, flow, field, old value): equal values of a flow stay equal in both
    directions, the same address becomes another one in each flow, and a seed gives the same rows again. Checksums
    that are kept follow the changes around them: a valid one stays valid, and the old address cannot be read from
    it; one left to the network card stays so; 0 (not computed) stays 0. From a corrupt one it could be read.
    """
    if actions.any():
        link_types = rows.records["link_type"].astype(np.int64)
        apply_to_rows(rows.X, rows.kept_bytes, link_types, actions, np.uint64(seed))


@kernel
def mix(h):
    """Return a 64-bit number each of whose bits depends on all bits of ``h`` (finaliser of SplitMix64)."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


@kernel
def change(row, first, last, stop, field, actions, seed):
    """Zero or randomise ``row[first:last]``, as far as the packet was captured (up to ``stop``)."""
    action = actions[field]
    last = min(last, stop)
    if action == ZERO:
        for i in range(first, last):
            row[i] = 0
    elif action == RANDOMIZE:
        h = mix(seed + np.uint64(field + 1) * np.uint64(0x9E3779B97F4A7C15))
        for i in range(first, last):
            h = mix(h ^ np.uint64(row[i]))
        for i in range(first, last):
            h = mix(h + np.uint64(0x9E3779B97F4A7C15))
            row[i] = h & np.uint64(0xFF)


@kernel
def change_link(row, start, stop, link_type, actions, seed):
    """Apply the action of MAC addresses to the link header."""
    if link_type == LINK_PPI:
        _, start, link_type = enter_ppi(row, start, stop)
    if link_type == LINK_ETHERNET:
        change(row, start, start + 6, stop, MAC, actions, seed)
        change(row, start + 6, start + 12, stop, MAC, actions, seed)
    elif link_type == LINK_LINUX_SLL:
        change(row, start + 6, start + 14, stop, MAC, actions, seed)
    elif link_type == LINK_LINUX_SLL2:
        change(row, start + 12, start + 20, stop, MAC, actions, seed)


@kernel
def change_ip(row, ip, transport, stop, version, actions, seed):
    """Apply actions to the IP header and to the addresses between it and the transport header."""
    if version == 4:
        change(row, ip + 4, ip + 6, stop, IP_ID, actions, seed)
        change(row, ip + 8, ip + 9, stop, TTL, actions, seed)
        change(row, ip + 12, ip + 16, stop, IP, actions, seed)
        change(row, ip + 16, ip + 20, stop, IP, actions, seed)
        change(row, ip + 20, transport, stop, IP, actions, seed)  # options: recorded and source routes
    elif ip + 4 <= stop:
        # The flow label is IPv6's identifier: 20 bits; the upper half of its first byte is the traffic class.
        traffic_class = row[ip + 1] & 0xF0
        change(row, ip + 1, ip + 4, stop, IP_ID, actions, seed)
        row[ip + 1] = (row[ip + 1] & 0x0F) | traffic_class
        change(row, ip + 7, ip + 8, stop, TTL, actions, seed)
        change(row, ip + 8, ip + 24, stop, IP, actions, seed)
        change(row, ip + 24, ip + 40, stop, IP, actions, seed)
        change_routing_headers(row, ip, transport, stop, actions, seed)


@kernel
def change_routing_headers(row, ip, transport, stop, actions, seed):
    """Apply the action of addresses to those that IPv6 routing headers list."""
    at, stop = ip + 40, min(transport, stop)
    if at > stop:
        return
    header = row[ip + 6]
    while at + 2 <= stop:
        if header == 44:
            size = 8
        elif header == 51:
            size = (np.int64(row[at + 1]) + 2) * 4
        else:
            size = (np.int64(row[at + 1]) + 1) * 8
        if header == 43:
            change(row, at + 8, at + size, stop, IP, actions, seed)
        header = row[at]
        at += size


@kernel
def find_timestamps(row, options, last):
    """Return where the two values of the timestamp option begin, or ``last`` if there is none."""
    at = options
    while at < last and row[at] != 0:  # 0 ends the list
        if row[at] == 1:  # padding of one byte
            at += 1
            continue
        if at + 1 >= last or row[at + 1] < 2:  # a length that lies ends the walk
            return last
        if row[at] == 8:
            return min(at + 2, last)
        at += row[at + 1]
    return last


@kernel
def change_options(row, options, last, actions, seed):
    """Apply actions to TCP options; the timestamps have their own, and that of the options if theirs is to keep."""
    values = find_timestamps(row, options, last)
    values_end = min(values + 8, last)
    field = TCP_OPTIONS if actions[TCP_TIMESTAMPS] == KEEP else TCP_TIMESTAMPS
    change(row, options, values, last, TCP_OPTIONS, actions, seed)
    change(row, values, min(values + 4, last), last, field, actions, seed)
    change(row, min(values + 4, last), values_end, last, field, actions, seed)
    change(row, values_end, last, last, TCP_OPTIONS, actions, seed)


@kernel
def tcp_header_end(row, tcp, stop):
    """Return the end of a TCP header, as far as it was captured."""
    if tcp + 13 > stop:
        return stop
    return min(stop, tcp + max(20, (np.int64(row[tcp + 12]) >> 4) * 4))


@kernel
def change_transport(row, at, stop, protocol, actions, seed):
    """Apply actions to the TCP or UDP header."""
    change(row, at, at + 2, stop, PORTS, actions, seed)
    change(row, at + 2, at + 4, stop, PORTS, actions, seed)
    if protocol == TCP:
        change(row, at + 4, at + 8, stop, TCP_SEQ, actions, seed)
        change(row, at + 8, at + 12, stop, TCP_SEQ, actions, seed)
        change(row, at + 14, at + 16, stop, TCP_WINDOW, actions, seed)
        end = tcp_header_end(row, at, stop)
        change_options(row, min(at + 20, end), end, actions, seed)


@kernel
def sum_words(row, first, last):
    """Return the sum of the 16-bit words of ``row[first:last]``, odd end padded with zero."""
    total = 0
    for i in range(first, last - 1, 2):
        total += u16(row, i)
    if (last - first) % 2 == 1:
        total += np.int64(row[last - 1]) << 8
    return total


@kernel
def fold(total):
    """Return a sum of words as one's complement sum of 16 bits."""
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@kernel
def patch_checksum(row, at, stop, before, after, pseudo_before, pseudo_after, actions, seed):
    """Carry a change of the covered words over into a checksum (RFC 1624).

    A host that leaves checksums to its network card sends itself the sum of the pseudo-header in their place: it is
    replaced by that of the new pseudo-header.
    """
    if actions[CHECKSUMS] != KEEP:
        change(row, at, at + 2, stop, CHECKSUMS, actions, seed)
    elif at + 2 <= stop and before != after:
        old = u16(row, at)
        if old == 0:  # not computed
            return
        # The checksum itself is among the summed words and did not change: it cancels out.
        new = 0xFFFF - ((0xFFFF - old) + (after - before)) % 0xFFFF
        if old == fold(pseudo_before):
            new = fold(pseudo_after)
        row[at], row[at + 1] = new >> 8, new & 0xFF


@kernel
def apply_to_packet(row, start, stop, link_type, actions, seed):
    """Apply actions to the packet in ``row[start:stop]``."""
    change_link(row, start, stop, link_type, actions, seed)
    fate, ip, version = find_ip(row, start, stop, link_type)
    if fate != SAMPLED:
        return
    fate, _, _, protocol, transport, end = find_transport(row, start, stop, link_type)
    if fate != SAMPLED:  # the row ends before the transport header
        transport, end, protocol = stop, stop, 0
    addresses = ip + 12 if version == 4 else ip + 8
    addresses_end = min(stop, ip + 20 if version == 4 else ip + 40)
    header_end = min(stop, transport) if version == 4 else addresses_end
    transport_end = min(stop, transport)
    if protocol == TCP:
        transport_end = tcp_header_end(row, transport, stop)
    elif protocol == UDP:
        transport_end = min(stop, transport + 8)

    ip_before = sum_words(row, ip, header_end)
    pseudo_before = sum_words(row, addresses, addresses_end) + protocol + end - transport
    transport_before = pseudo_before + sum_words(row, transport, transport_end)
    change_ip(row, ip, transport, stop, version, actions, seed)
    if transport_end > transport:
        change_transport(row, transport, stop, protocol, actions, seed)
    if version == 4:
        ip_after = sum_words(row, ip, header_end)
        patch_checksum(row, ip + 10, stop, ip_before, ip_after, 0, 0, actions, seed)
    if transport_end > transport:
        pseudo_after = sum_words(row, addresses, addresses_end) + protocol + end - transport
        after = pseudo_after + sum_words(row, transport, transport_end)
        at = transport + 16 if protocol == TCP else transport + 6
        patch_checksum(row, at, stop, transport_before, after, pseudo_before, pseudo_after, actions, seed)


@kernel
def apply_to_rows(X, kept, link_types, actions, seed):
    """Apply actions to all packets of all flows."""
    n_bytes = X.shape[1] // kept.shape[1]
    for flow in range(len(X)):
        flow_seed = mix(seed + np.uint64(flow) * np.uint64(0xD1342543DE82EF95))
        for number in range(kept.shape[1]):
            start = number * n_bytes
            apply_to_packet(X[flow], start, start + kept[flow, number], link_types[flow], actions, flow_seed)
