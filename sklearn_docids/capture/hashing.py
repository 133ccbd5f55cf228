# SPDX-License-Identifier: BSD-3-Clause
"""Compiled keyed hashes of five-tuples, of the ends of tunnels, and of packets.

Whoever writes a capture chooses what is hashed, but not the keys: these are fresh in each process.
"""

from __future__ import annotations

import numpy as np

from sklearn_docids.capture._native import kernel, part, product, u32, u64
from sklearn_docids.capture.layouts import IPV4_DESTINATION, IPV4_SOURCE, IPV6_DESTINATION, IPV6_SOURCE

# The first ones hash five-tuples, the last one hashes packets.
N_KEYS = 12


@part
def read_addresses(data, ip, version):
    """Return both addresses of an IP header as (source high, low, destination high, low), 64 bits each."""
    if version == 4:
        return (
            np.uint64(0),
            np.uint64(u32(data, ip + IPV4_SOURCE)),
            np.uint64(0),
            np.uint64(u32(data, ip + IPV4_DESTINATION)),
        )
    source, destination = ip + IPV6_SOURCE, ip + IPV6_DESTINATION
    return u64(data, source), u64(data, source + 8), u64(data, destination), u64(data, destination + 8)


@part
def hash_address(keys, at, high, low, version):
    """Return the share of one address: multilinear over its 32-bit words."""
    h = keys[at] * (low & np.uint64(0xFFFFFFFF))
    if version == 6:
        h += keys[at + 1] * (low >> np.uint64(32))
        h += keys[at + 2] * (high & np.uint64(0xFFFFFFFF))
        h += keys[at + 3] * (high >> np.uint64(32))
    return h


@part
def destination_first(packet):
    """Whether the destination is the smaller endpoint: then both directions of a flow hash alike."""
    if packet.src_high != packet.dst_high:
        return packet.src_high > packet.dst_high
    if packet.src_low != packet.dst_low:
        return packet.src_low > packet.dst_low
    return packet.src_port > packet.dst_port


@part
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
def hash_tunnel(data, ip, version, around, keys):
    """Return 32 bits of the two hosts of a tunnel, the same in both directions, and of the tunnels around it."""
    src_high, src_low, dst_high, dst_low = read_addresses(data, ip, version)
    swap = src_high > dst_high or (src_high == dst_high and src_low > dst_low)
    h = keys[0] + hash_address(keys, 5 if swap else 1, src_high, src_low, version)
    h += hash_address(keys, 1 if swap else 5, dst_high, dst_low, version)
    h += keys[9] * around + keys[10] * np.uint64(version)
    return h >> np.uint64(32)


@kernel
def times_modulo(a, b):
    """Return a * b modulo the prime 2**61 - 1, for a and b below 2**61."""
    prime = np.uint64(2**61 - 1)
    upper, lower = product(a, b)
    total = (lower & prime) + ((lower >> np.uint64(61)) | (upper << np.uint64(3)))
    return total - prime if total >= prime else total


@kernel
def digest(data, start, stop, first, masked, mask, keys):
    """Return 61 bits of ``data[start:stop]`` and of ``first``: a polynomial over 32-bit words, taken at a secret point.

    The bits of ``mask`` alone count of the word at ``masked``. Two packets of 16 KiB that differ have the same digest
    with probability 2**-49, whoever chose them.
    """
    point = keys[N_KEYS - 1] & np.uint64(2**60 - 1)
    # The length counts: zeros at the end would not.
    total = times_modulo(np.uint64(stop - start), point) + first
    at = start
    while at + 4 <= stop:
        word = np.uint64(u32(data, at))
        total = times_modulo(total, point) + (word & mask if at == masked else word)
        at += 4
    rest = np.uint64(0)
    while at < stop:
        rest = (rest << np.uint64(8)) | np.uint64(data[at])
        at += 1
    return times_modulo(times_modulo(total, point) + rest, point)
