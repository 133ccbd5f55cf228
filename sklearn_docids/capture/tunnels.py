# SPDX-License-Identifier: BSD-3-Clause
"""Compiled walk into tunnels, down to the innermost IP packet.

Whoever can send a packet to the capture point can send one that looks like a tunnel. So a tunnel is entered only where
it carries IP, and between which hosts it goes is told.
"""

from __future__ import annotations

import numpy as np

from sklearn_docids.capture._native import kernel, part, u16
from sklearn_docids.capture.hashing import hash_tunnel
from sklearn_docids.capture.headers import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ETHERTYPE_MPLS,
    LINK_ETHERNET,
    LINK_MPLS,
    LINK_PPP,
    LINK_RAW,
    MALFORMED,
    NON_IP,
    SAMPLED,
    SHORT,
    UDP,
    find_transport,
)
from sklearn_docids.capture.layouts import (
    DESTINATION_PORT,
    ERSPAN_2_BYTES,
    ERSPAN_3_BYTES,
    ERSPAN_3_FRAME,
    ERSPAN_3_PLATFORM_BYTES,
    ETHERIP_BYTES,
    GENEVE_BYTES,
    GENEVE_PROTOCOL,
    GRE_BYTES,
    GRE_PROTOCOL,
    GTP_BYTES,
    GTP_OPTIONAL_BYTES,
    GTP_TYPE,
    UDP_BYTES,
    VXLAN_BYTES,
    VXLAN_NEXT,
)

# Real traffic stays far below this limit.
MAX_TUNNELS = 16
IPV4_IN_IP, IPV6_IN_IP, GRE, ETHERIP, MPLS_IN_IP = 4, 41, 47, 97, 137
GTP_PORT, VXLAN_GPE_PORT, GENEVE_PORT, MPLS_PORT = 2152, 4790, 6081, 6635  # of UDP
ETHERTYPE_BRIDGED, ETHERTYPE_PPP, ETHERTYPE_ERSPAN, ETHERTYPE_ERSPAN_3 = 0x6558, 0x880B, 0x88BE, 0x22EB

# All functions that enter something return (first byte, link type) of what it carries; this link type: nothing we read.
NO_TUNNEL = -1


@part
def link_of(ethertype):
    """Return the link type of a frame whose kind a tunnel names by an EtherType."""
    if ethertype in (ETHERTYPE_IPV4, ETHERTYPE_IPV6):
        return LINK_RAW
    if ethertype == ETHERTYPE_BRIDGED:
        return LINK_ETHERNET
    return LINK_MPLS if ethertype == ETHERTYPE_MPLS else NO_TUNNEL


@kernel
def enter_gre(data, at, stop):
    """Enter GRE, version 0 or PPTP's version 1, and the ERSPAN in it."""
    if at + GRE_BYTES > stop:
        return at, NO_TUNNEL
    flags, ethertype = u16(data, at), u16(data, at + GRE_PROTOCOL)
    size = GRE_BYTES
    if flags & 7 == 1:  # PPTP's: the key is always there, then sequence and acknowledgement numbers
        size += 4 + (4 if flags & 0x1000 else 0) + (4 if flags & 0x0080 else 0)
        return at + size, LINK_PPP if ethertype == ETHERTYPE_PPP else NO_TUNNEL
    if flags & 7 or flags & 0x4000:  # unknown version; source routes, long deprecated
        return at, NO_TUNNEL
    for optional in (0x8000, 0x2000, 0x1000):  # checksum, key, sequence number
        if flags & optional:
            size += 4
    if ethertype == ETHERTYPE_ERSPAN:  # type I has neither sequence numbers nor a header of its own
        return at + size + (ERSPAN_2_BYTES if flags & 0x1000 else 0), LINK_ETHERNET
    if ethertype == ETHERTYPE_ERSPAN_3:
        return enter_erspan_3(data, at + size, stop)
    return at + size, link_of(ethertype)


@kernel
def enter_erspan_3(data, at, stop):
    """Enter ERSPAN type III, which mirrors Ethernet frames or IP packets."""
    if at + ERSPAN_3_BYTES > stop:
        return at, NO_TUNNEL
    frame = u16(data, at + ERSPAN_3_FRAME)
    inside = at + ERSPAN_3_BYTES + (ERSPAN_3_PLATFORM_BYTES if frame & 1 else 0)
    kind = (frame >> 10) & 0x1F
    if kind == 0:
        return inside, LINK_ETHERNET
    return inside, LINK_RAW if kind == 2 else NO_TUNNEL


@kernel
def enter_gtp(data, at, stop):
    """Enter user data of the GPRS tunnelling protocol, version 1, behind any number of extension headers."""
    if at + GTP_BYTES > stop or data[at] & 0xF0 != 0x30 or data[at + GTP_TYPE] != 0xFF:
        return at, NO_TUNNEL
    inside = at + GTP_BYTES
    if data[at] & 7:
        inside += GTP_OPTIONAL_BYTES
        if inside > stop:
            return at, NO_TUNNEL
        following = data[inside - 1] if data[at] & 4 else 0
        while following:
            size = np.int64(data[inside]) * 4 if inside < stop else 0
            if size == 0 or inside + size > stop:
                return at, NO_TUNNEL
            inside += size
            following = data[inside - 1]
    return inside, LINK_RAW


@kernel
def enter_vxlan_gpe(data, at):
    """Enter VXLAN's generic extension, which says what it carries."""
    following = data[at + VXLAN_NEXT] if data[at] & 4 else 3
    if following == 1 or following == 2:
        return at + VXLAN_BYTES, LINK_RAW
    return at + VXLAN_BYTES, LINK_ETHERNET if following == 3 else NO_TUNNEL


@kernel
def enter_udp(data, port, at, stop, vxlan_ports):
    """Enter what the destination port says a UDP packet carries."""
    if port == MPLS_PORT:
        return at, LINK_MPLS
    if port == GTP_PORT:
        return enter_gtp(data, at, stop)
    if at + VXLAN_BYTES > stop:  # Geneve's header has as many
        return at, NO_TUNNEL
    if port == VXLAN_GPE_PORT:
        return enter_vxlan_gpe(data, at)
    if port == GENEVE_PORT:
        inside = at + GENEVE_BYTES + 4 * (np.int64(data[at]) & 0x3F)
        return inside, link_of(u16(data, at + GENEVE_PROTOCOL)) if data[at] < 0x40 else NO_TUNNEL  # version 0
    if port in vxlan_ports and data[at] & 8:
        return at + VXLAN_BYTES, LINK_ETHERNET
    return at, NO_TUNNEL


@kernel
def enter_tunnel(data, protocol, transport, stop, vxlan_ports):
    """Enter what an IP packet carries."""
    if protocol == GRE:
        return enter_gre(data, transport, stop)
    if protocol in (IPV4_IN_IP, IPV6_IN_IP):
        return transport, LINK_RAW
    if protocol == ETHERIP:
        return transport + ETHERIP_BYTES, LINK_ETHERNET
    if protocol == MPLS_IN_IP:
        return transport, LINK_MPLS
    if protocol == UDP and transport + UDP_BYTES <= stop:
        port = u16(data, transport + DESTINATION_PORT)
        return enter_udp(data, port, transport + UDP_BYTES, stop, vxlan_ports)
    return transport, NO_TUNNEL


@kernel
def find_innermost(data, start, stop, link_type, vxlan_ports, keys):
    """Return (what `find_transport` does, where the frame begins, ends, its link type, hash of the tunnels around it).

    All of the innermost IP packet. A tunnel is entered only where it carries IP: of any other, and of what merely looks
    like a tunnel, the IP packet around it is the innermost.
    """
    tunnel = np.uint64(0)
    found = find_transport(data, start, stop, link_type)
    for _ in range(MAX_TUNNELS + 1):
        fate, version, ip, protocol, transport, end = found
        if fate != SAMPLED:
            return found, start, stop, link_type, tunnel
        inner_stop = min(stop, end)
        inner_start, inner_type = enter_tunnel(data, protocol, transport, inner_stop, vxlan_ports)
        if inner_type < 0:
            return found, start, stop, link_type, tunnel
        inner = find_transport(data, inner_start, inner_stop, inner_type)
        if inner[0] == NON_IP or inner[0] == MALFORMED or (inner[0] == SHORT and end <= stop):
            return found, start, stop, link_type, tunnel
        tunnel = hash_tunnel(data, ip, version, tunnel, keys)
        found, start, stop, link_type = inner, inner_start, inner_stop, np.int64(inner_type)
    return (MALFORMED, 0, start, 0, start, stop), start, stop, link_type, tunnel
