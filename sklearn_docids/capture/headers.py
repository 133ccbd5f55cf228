# SPDX-License-Identifier: BSD-3-Clause
"""Compiled walk through the headers of a packet: link layer, tags and labels, tunnels, IP, up to the transport header.

Attackers choose what stands there: every read is behind a check against the end of the captured bytes, nesting is
walked in loops with a bound, and nothing recurs.
"""

from __future__ import annotations

import numpy as np

from sklearn_docids.capture._native import kernel, little_u32, u16, u32

LINK_NULL, LINK_ETHERNET, LINK_PPP, LINK_RAW_BSD, LINK_RAW_OPENBSD, LINK_PPP_HDLC, LINK_PPP_ETHER = (
    0, 1, 9, 12, 14, 50, 51,
)  # fmt: skip
LINK_RAW, LINK_LOOP, LINK_LINUX_SLL, LINK_PPI, LINK_IPV4, LINK_IPV6, LINK_LINUX_SLL2 = (
    101, 108, 113, 192, 228, 229, 276,
)  # fmt: skip
LINK_TYPES = frozenset({
    LINK_NULL, LINK_ETHERNET, LINK_PPP, LINK_RAW_BSD, LINK_RAW_OPENBSD, LINK_PPP_HDLC, LINK_PPP_ETHER, LINK_RAW,
    LINK_LOOP, LINK_LINUX_SLL, LINK_PPI, LINK_IPV4, LINK_IPV6, LINK_LINUX_SLL2,
})  # fmt: skip

IPV4_IN_IP, TCP, UDP, IPV6_IN_IP, GRE = 4, 6, 17, 41, 47
VXLAN_PORT = 4789
ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_PPPOE, ETHERTYPE_BRIDGED, ETHERTYPE_PPP = (
    0x0800,
    0x86DD,
    0x8864,
    0x6558,
    0x880B,
)

# Real traffic stays far below these limits.
MAX_TAGS = 32  # VLAN tags and MPLS labels
MAX_EXTENSION_HEADERS = 16
MAX_TUNNELS = 16

# What happened to a packet; the names are the keys of ``counters_``.
PACKET_FATES = (
    "sampled", "non_ip", "other_protocol", "fragment", "short", "malformed", "unknown_link_type", "duplicate",
)  # fmt: skip
SAMPLED, NON_IP, OTHER_PROTOCOL, FRAGMENT, SHORT, MALFORMED, UNKNOWN_LINK_TYPE, DUPLICATE = range(len(PACKET_FATES))


@kernel
def follow_mpls(data, at, stop):
    """Return (fate, first byte of the IP header, IP version) behind the label stack at ``at``."""
    for _ in range(MAX_TAGS):
        if at + 4 > stop:
            return SHORT, at, 0
        bottom = data[at + 2] & 1
        at += 4
        if bottom:
            # Labels do not say what they carry; the first half byte of an IP packet does.
            return version_at(data, at, stop)
    return MALFORMED, at, 0


@kernel
def version_at(data, at, stop):
    """Return (fate, at, IP version) of a packet that begins with its IP header, if it is one."""
    if at >= stop:
        return SHORT, at, 0
    version = np.int64(data[at] >> 4)
    return SAMPLED if version == 4 or version == 6 else NON_IP, at, version


@kernel
def follow_ppp(data, at, stop):
    """Return (fate, first byte of the IP header, IP version) of the PPP frame at ``at``."""
    if at < stop and data[at] == 0xFF:  # HDLC-like framing: address and control precede
        at += 2
    if at >= stop:
        return SHORT, at, 0
    protocol = np.int64(data[at])
    if protocol & 1:  # compressed to one byte
        at += 1
    elif at + 2 > stop:
        return SHORT, at, 0
    else:
        protocol = u16(data, at)
        at += 2
    if protocol == 0x21:
        return SAMPLED, at, 4
    if protocol == 0x57:
        return SAMPLED, at, 6
    if protocol == 0x281:
        return follow_mpls(data, at, stop)
    return NON_IP, at, 0


@kernel
def follow_ethertype(data, ethertype, at, stop):
    """Return (fate, first byte of the IP header, IP version) behind an EtherType whose payload begins at ``at``."""
    for _ in range(MAX_TAGS + 1):
        if ethertype == ETHERTYPE_IPV4:
            return SAMPLED, at, 4
        if ethertype == ETHERTYPE_IPV6:
            return SAMPLED, at, 6
        if ethertype == 0x8847 or ethertype == 0x8848:
            return follow_mpls(data, at, stop)
        if ethertype == ETHERTYPE_PPPOE:  # version, code, session and length precede
            return follow_ppp(data, at + 6, stop)
        if not (ethertype == 0x8100 or ethertype == 0x88A8 or ethertype == 0x9100):
            return NON_IP, at, 0
        if at + 4 > stop:
            return SHORT, at, 0
        ethertype = u16(data, at + 2)
        at += 4
    return MALFORMED, at, 0


@kernel
def enter_ppi(data, start, stop):
    """Return (fate, first byte, link type) of the frame inside per-packet information."""
    if start + 8 > stop:
        return SHORT, start, LINK_PPI
    length = np.int64(data[start + 2]) | (np.int64(data[start + 3]) << 8)
    if length < 8:
        return MALFORMED, start, LINK_PPI
    return SAMPLED, start + length, little_u32(data, start + 4)


@kernel
def find_ip(data, start, stop, link_type):
    """Return (fate, first byte of the IP header, IP version) of the packet in ``data[start:stop]``."""
    if link_type == LINK_ETHERNET:
        if start + 14 > stop:
            return SHORT, start, 0
        return follow_ethertype(data, u16(data, start + 12), start + 14, stop)
    return find_ip_elsewhere(data, start, stop, link_type)


@kernel
def find_ip_elsewhere(data, start, stop, link_type):
    """Do the work of `find_ip` for all link types, of which Ethernet alone is worth a way of its own."""
    if link_type == LINK_PPI:
        fate, start, link_type = enter_ppi(data, start, stop)
        if fate != SAMPLED:
            return fate, start, 0
        if link_type == LINK_PPI:  # inside itself
            return MALFORMED, start, 0
    if link_type in (LINK_ETHERNET, LINK_LINUX_SLL, LINK_LINUX_SLL2):
        ethertype_at = start + (12 if link_type == LINK_ETHERNET else 14 if link_type == LINK_LINUX_SLL else 0)
        if ethertype_at + 2 > stop:
            return SHORT, start, 0
        payload = start + 20 if link_type == LINK_LINUX_SLL2 else ethertype_at + 2
        return follow_ethertype(data, u16(data, ethertype_at), payload, stop)
    if link_type in (LINK_NULL, LINK_LOOP):
        return find_ip_loopback(data, start, stop)
    if link_type == LINK_IPV4:
        return SAMPLED, start, 4
    if link_type == LINK_IPV6:
        return SAMPLED, start, 6
    if link_type in (LINK_RAW, LINK_RAW_BSD, LINK_RAW_OPENBSD):
        return version_at(data, start, stop)
    if link_type == LINK_PPP_ETHER:
        return follow_ppp(data, start + 6, stop)
    if link_type == LINK_PPP_HDLC and start + 4 <= stop and (data[start] == 0x0F or data[start] == 0x8F):
        return follow_ethertype(data, u16(data, start + 2), start + 4, stop)  # Cisco's framing
    if link_type in (LINK_PPP, LINK_PPP_HDLC):
        return follow_ppp(data, start, stop)
    return UNKNOWN_LINK_TYPE, start, 0


@kernel
def find_ip_loopback(data, start, stop):
    """Return (fate, first byte of the IP header, IP version) behind the address family of null or loopback."""
    if start + 4 > stop:
        return SHORT, start, 0
    family = u32(data, start)
    if family > 0xFFFF:  # null/loopback has the byte order of the capturing machine
        family = little_u32(data, start)
    if family == 2:
        return SAMPLED, start + 4, 4
    if family == 10 or family == 24 or family == 28 or family == 30:  # AF_INET6 of Linux and the BSDs
        return SAMPLED, start + 4, 6
    return NON_IP, start, 0


@kernel
def find_transport_ipv4(data, at, stop):
    """Return (fate, protocol, first byte of the transport header, end of the IP packet)."""
    if at + 20 > stop:
        return SHORT, 0, at, stop
    header = np.int64(data[at] & 15) * 4
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


@kernel
def enter_gre(data, at, stop):
    """Return (first byte, link type) of what a GRE header carries; link type -1: nothing we read."""
    if at + 4 > stop:
        return at, -1
    flags, ethertype = u16(data, at), u16(data, at + 2)
    size = 4
    if flags & 7 == 1:  # PPTP's: the key is always there, then sequence and acknowledgement numbers
        size += 4 + (4 if flags & 0x1000 else 0) + (4 if flags & 0x0080 else 0)
        return at + size, LINK_PPP if ethertype == ETHERTYPE_PPP else -1
    if flags & 7 or flags & 0x4000:  # unknown version; source routes, long deprecated
        return at, -1
    for optional in (0x8000, 0x2000, 0x1000):  # checksum, key, sequence number
        if flags & optional:
            size += 4
    if ethertype in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
        return at + size, LINK_RAW
    return at + size, LINK_ETHERNET if ethertype == ETHERTYPE_BRIDGED else -1


@kernel
def enter_tunnel(data, protocol, transport, stop):
    """Return (first byte, link type) of what the IP packet carries; link type -1: no tunnel we read."""
    if protocol == GRE:
        return enter_gre(data, transport, stop)
    if protocol in (IPV4_IN_IP, IPV6_IN_IP):
        return transport, LINK_RAW
    if (
        protocol == UDP
        and transport + 16 <= stop
        and u16(data, transport + 2) == VXLAN_PORT
        and data[transport + 8] & 8
    ):
        return transport + 16, LINK_ETHERNET
    return transport, -1


@kernel
def find_innermost(data, start, stop, link_type):
    """Return what `find_transport` does for the innermost IP packet, then where its frame begins, ends, and its type.

    A tunnel is entered only where it carries IP: of any other, and of what merely looks like a tunnel, the IP packet
    around it is the innermost.
    """
    found = find_transport(data, start, stop, link_type)
    for _ in range(MAX_TUNNELS + 1):
        fate, _, _, protocol, transport, end = found
        if fate != SAMPLED:
            return found, start, stop, link_type
        inner_stop = min(stop, end)
        inner_start, inner_type = enter_tunnel(data, protocol, transport, inner_stop)
        if inner_type < 0:
            return found, start, stop, link_type
        inner = find_transport(data, inner_start, inner_stop, inner_type)
        if inner[0] == NON_IP or inner[0] == MALFORMED or (inner[0] == SHORT and end <= stop):
            return found, start, stop, link_type
        found, start, stop, link_type = inner, inner_start, inner_stop, np.int64(inner_type)
    return (MALFORMED, 0, start, 0, start, stop), start, stop, link_type
