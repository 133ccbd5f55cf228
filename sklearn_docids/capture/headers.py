# SPDX-License-Identifier: BSD-3-Clause
"""Compiled walk through the headers of a packet: link layer, tags and labels, tunnels, IP, up to the transport header.

Attackers choose what stands there: every read is behind a check against the end of the captured bytes, nesting is
walked in loops with a bound, and nothing recurs.
"""

from __future__ import annotations

import numpy as np

from sklearn_docids.capture._native import kernel, little_u16, little_u32, u16, u32
from sklearn_docids.capture.layouts import (
    DESTINATION_PORT,
    ETHERNET_BYTES,
    ETHERNET_TYPE,
    EXTENSION_BYTES,
    EXTENSION_FRAGMENT,
    EXTENSION_LENGTH,
    EXTENSION_NEXT,
    GRE_BYTES,
    GRE_PROTOCOL,
    HDLC_BYTES,
    HDLC_PROTOCOL,
    IPV4_BYTES,
    IPV4_FRAGMENT,
    IPV4_LENGTH,
    IPV4_PROTOCOL,
    IPV6_BYTES,
    IPV6_LENGTH,
    IPV6_NEXT,
    LOOPBACK_BYTES,
    MPLS_BOTTOM,
    MPLS_BYTES,
    PPI_BYTES,
    PPI_LENGTH,
    PPI_LINK_TYPE,
    PPPOE_BYTES,
    SLL2_BYTES,
    SLL2_PROTOCOL,
    SLL_BYTES,
    SLL_PROTOCOL,
    UDP_BYTES,
    VLAN_BYTES,
    VLAN_TYPE,
    VXLAN_BYTES,
)

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
ROUTING_HEADER, FRAGMENT_HEADER, AUTHENTICATION_HEADER = 43, 44, 51  # of IPv6
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

# One packet whose headers have been read; places are in the buffer.
PACKET_DTYPE = np.dtype(
    [
        ("fate", np.int64),
        ("hash", np.uint64),  # 32 bits
        ("digest", np.uint64),  # of all captured bytes; while duplicates are looked for
        ("start", np.int64),
        ("ip", np.int64),  # first byte of the IP header
        ("transport", np.int64),  # first byte of the TCP or UDP header
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


@kernel
def follow_mpls(data, at, stop):
    """Return (fate, first byte of the IP header, IP version) behind the label stack at ``at``."""
    for _ in range(MAX_TAGS):
        if at + MPLS_BYTES > stop:
            return SHORT, at, 0
        bottom = data[at + MPLS_BOTTOM] & 1
        at += MPLS_BYTES
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
        if ethertype == ETHERTYPE_PPPOE:
            return follow_ppp(data, at + PPPOE_BYTES, stop)
        if not (ethertype == 0x8100 or ethertype == 0x88A8 or ethertype == 0x9100):
            return NON_IP, at, 0
        if at + VLAN_BYTES > stop:
            return SHORT, at, 0
        ethertype = u16(data, at + VLAN_TYPE)
        at += VLAN_BYTES
    return MALFORMED, at, 0


@kernel
def follow_typed(data, type_at, payload, stop):
    """Return (fate, first byte of the IP header, IP version) behind a link header that holds an EtherType."""
    if type_at + 2 > stop:
        return SHORT, payload, 0
    return follow_ethertype(data, u16(data, type_at), payload, stop)


@kernel
def enter_ppi(data, start, stop):
    """Return (fate, first byte, link type) of the frame inside per-packet information."""
    if start + PPI_BYTES > stop:
        return SHORT, start, LINK_PPI
    length = little_u16(data, start + PPI_LENGTH)
    if length < PPI_BYTES:
        return MALFORMED, start, LINK_PPI
    return SAMPLED, start + length, little_u32(data, start + PPI_LINK_TYPE)


@kernel
def find_ip(data, start, stop, link_type):
    """Return (fate, first byte of the IP header, IP version) of the packet in ``data[start:stop]``."""
    if link_type == LINK_ETHERNET:
        if start + ETHERNET_BYTES > stop:
            return SHORT, start, 0
        return follow_ethertype(data, u16(data, start + ETHERNET_TYPE), start + ETHERNET_BYTES, stop)
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
    if link_type == LINK_ETHERNET:
        return follow_typed(data, start + ETHERNET_TYPE, start + ETHERNET_BYTES, stop)
    if link_type == LINK_LINUX_SLL:
        return follow_typed(data, start + SLL_PROTOCOL, start + SLL_BYTES, stop)
    if link_type == LINK_LINUX_SLL2:
        return follow_typed(data, start + SLL2_PROTOCOL, start + SLL2_BYTES, stop)
    if link_type in (LINK_NULL, LINK_LOOP):
        return find_ip_loopback(data, start, stop)
    if link_type == LINK_IPV4:
        return SAMPLED, start, 4
    if link_type == LINK_IPV6:
        return SAMPLED, start, 6
    if link_type in (LINK_RAW, LINK_RAW_BSD, LINK_RAW_OPENBSD):
        return version_at(data, start, stop)
    if link_type == LINK_PPP_ETHER:
        return follow_ppp(data, start + PPPOE_BYTES, stop)
    if link_type == LINK_PPP_HDLC and start + HDLC_BYTES <= stop and (data[start] == 0x0F or data[start] == 0x8F):
        return follow_typed(data, start + HDLC_PROTOCOL, start + HDLC_BYTES, stop)  # Cisco's framing
    if link_type in (LINK_PPP, LINK_PPP_HDLC):
        return follow_ppp(data, start, stop)
    return UNKNOWN_LINK_TYPE, start, 0


@kernel
def find_ip_loopback(data, start, stop):
    """Return (fate, first byte of the IP header, IP version) behind the address family of null or loopback."""
    if start + LOOPBACK_BYTES > stop:
        return SHORT, start, 0
    family = u32(data, start)
    if family > 0xFFFF:  # null/loopback has the byte order of the capturing machine
        family = little_u32(data, start)
    if family == 2:
        return SAMPLED, start + LOOPBACK_BYTES, 4
    if family == 10 or family == 24 or family == 28 or family == 30:  # AF_INET6 of Linux and the BSDs
        return SAMPLED, start + LOOPBACK_BYTES, 6
    return NON_IP, start, 0


@kernel
def find_transport_ipv4(data, at, stop):
    """Return (fate, protocol, first byte of the transport header, end of the IP packet)."""
    if at + IPV4_BYTES > stop:
        return SHORT, 0, at, stop
    header = np.int64(data[at] & 15) * 4
    if data[at] >> 4 != 4 or header < IPV4_BYTES:
        return MALFORMED, 0, at, stop
    length = u16(data, at + IPV4_LENGTH)
    end = at + length
    if length == 0:  # segmentation offload: the card fills it in later
        end = stop
    elif length < header:
        return MALFORMED, 0, at, stop
    if u16(data, at + IPV4_FRAGMENT) & 0x1FFF:
        return FRAGMENT, 0, at, stop
    return SAMPLED, np.int64(data[at + IPV4_PROTOCOL]), at + header, end


@kernel
def extension_size(data, at, header):
    """Return the bytes of the IPv6 extension header at ``at``."""
    if header == FRAGMENT_HEADER:
        return EXTENSION_BYTES
    length = np.int64(data[at + EXTENSION_LENGTH])
    return (length + 2) * 4 if header == AUTHENTICATION_HEADER else (length + 1) * 8


@kernel
def find_transport_ipv6(data, at, stop):
    """Return (fate, protocol, first byte of the transport header, end of the IP packet)."""
    if at + IPV6_BYTES > stop:
        return SHORT, 0, at, stop
    if data[at] >> 4 != 6:
        return MALFORMED, 0, at, stop
    length = u16(data, at + IPV6_LENGTH)
    end = at + IPV6_BYTES + length if length else stop  # 0: jumbogram or offload
    header = np.int64(data[at + IPV6_NEXT])
    at += IPV6_BYTES
    for _ in range(MAX_EXTENSION_HEADERS + 1):
        # hop-by-hop, routing, destination options, mobility, HIP, Shim6
        plain = (
            header == 0 or header == ROUTING_HEADER or header == 60 or header == 135 or header == 139 or header == 140
        )
        if not (plain or header in (FRAGMENT_HEADER, AUTHENTICATION_HEADER)):
            return SAMPLED, header, at, end
        if at + EXTENSION_BYTES > stop:
            return SHORT, 0, at, stop
        if header == FRAGMENT_HEADER and u16(data, at + EXTENSION_FRAGMENT) & 0xFFF8:
            return FRAGMENT, 0, at, stop
        size = extension_size(data, at, header)
        header = np.int64(data[at + EXTENSION_NEXT])
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
    if at + GRE_BYTES > stop:
        return at, -1
    flags, ethertype = u16(data, at), u16(data, at + GRE_PROTOCOL)
    size = GRE_BYTES
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
    inside = transport + UDP_BYTES + VXLAN_BYTES
    if (
        protocol == UDP
        and inside <= stop
        and u16(data, transport + DESTINATION_PORT) == VXLAN_PORT
        and data[transport + UDP_BYTES] & 8
    ):
        return inside, LINK_ETHERNET
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
