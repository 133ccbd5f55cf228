# SPDX-License-Identifier: BSD-3-Clause
"""Compiled walk through the headers of a packet: link layer, tags and labels, IP, up to the transport header.

Attackers choose what stands there: every read is behind a check against the end of the captured bytes, nesting is
walked in loops with a bound or to the end of these bytes, and nothing recurs.
"""

from __future__ import annotations

import numpy as np

from sklearn_docids.capture._native import kernel, little_u16, little_u32, u16, u32
from sklearn_docids.capture.layouts import (
    E_TAG_BYTES,
    ETHERNET_BYTES,
    ETHERNET_TYPE,
    EXTENSION_BYTES,
    EXTENSION_FRAGMENT,
    EXTENSION_LENGTH,
    EXTENSION_NEXT,
    HDLC_BYTES,
    HDLC_PROTOCOL,
    IPV4_BYTES,
    IPV4_FRAGMENT,
    IPV4_LENGTH,
    IPV4_PROTOCOL,
    IPV6_BYTES,
    IPV6_LENGTH,
    IPV6_NEXT,
    LLC_BYTES,
    LLC_CONTROL,
    LOOPBACK_BYTES,
    METADATA_TAG_BYTES,
    MPLS_BOTTOM,
    MPLS_BYTES,
    PPI_BYTES,
    PPI_LENGTH,
    PPI_LINK_TYPE,
    PPPOE_BYTES,
    RADIOTAP_BYTES,
    RADIOTAP_LENGTH,
    REDUNDANCY_TAG_BYTES,
    SLL2_BYTES,
    SLL2_PROTOCOL,
    SLL_BYTES,
    SLL_PROTOCOL,
    SNAP_BYTES,
    SNAP_ORGANISATION,
    SNAP_TYPE,
    VLAN_BYTES,
    VN_TAG_BYTES,
    WIRELESS_ADDRESS_4_BYTES,
    WIRELESS_BYTES,
    WIRELESS_FLAGS,
    WIRELESS_HT_BYTES,
    WIRELESS_QOS_BYTES,
    WIRELESS_SEQUENCE,
)

LINK_NULL, LINK_ETHERNET, LINK_PPP, LINK_RAW_BSD, LINK_RAW_OPENBSD, LINK_PPP_HDLC, LINK_PPP_ETHER = (
    0, 1, 9, 12, 14, 50, 51,
)  # fmt: skip
LINK_ATM, LINK_RAW, LINK_CISCO_HDLC, LINK_WIRELESS, LINK_LOOP, LINK_LINUX_SLL, LINK_RADIOTAP, LINK_PPI = (
    100, 101, 104, 105, 108, 113, 127, 192,
)  # fmt: skip
LINK_MPLS, LINK_IPV4, LINK_IPV6, LINK_LINUX_SLL2 = 219, 228, 229, 276
LINK_TYPES = frozenset({
    LINK_NULL, LINK_ETHERNET, LINK_PPP, LINK_RAW_BSD, LINK_RAW_OPENBSD, LINK_PPP_HDLC, LINK_PPP_ETHER, LINK_ATM,
    LINK_RAW, LINK_CISCO_HDLC, LINK_WIRELESS, LINK_LOOP, LINK_LINUX_SLL, LINK_RADIOTAP, LINK_PPI, LINK_MPLS, LINK_IPV4,
    LINK_IPV6, LINK_LINUX_SLL2,
})  # fmt: skip

TCP, UDP = 6, 17
ROUTING_HEADER, FRAGMENT_HEADER, AUTHENTICATION_HEADER = 43, 44, 51  # of IPv6, the last one of IPv4 as well
ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_MPLS, ETHERTYPE_PPPOE, ETHERTYPE_MACSEC = (
    0x0800,
    0x86DD,
    0x8847,
    0x8864,
    0x88E5,
)
# Below, the field is the length of an IEEE 802.3 frame, which begins with a header of logical link control.
MAX_LENGTH_FIELD = 1500
ACCESS_POINT_IP, ACCESS_POINT_SNAP, UNNUMBERED_INFORMATION = 0x06, 0xAA, 0x03
SLL_LLC = 4  # the protocol of a Linux cooked header in front of logical link control

# Real traffic stays far below this limit.
MAX_TAGS = 32  # VLAN and other tags, MPLS labels

# What happened to a packet; the names are the keys of ``counters_``.
PACKET_FATES = (
    "sampled", "non_ip", "other_protocol", "fragment", "short", "malformed", "unknown_link_type", "duplicate",
)  # fmt: skip
SAMPLED, NON_IP, OTHER_PROTOCOL, FRAGMENT, SHORT, MALFORMED, UNKNOWN_LINK_TYPE, DUPLICATE = range(len(PACKET_FATES))

# What a packet that is not IP is instead: an EtherType, the access point of an 802.2 frame, or one of these.
KIND_PPP, KIND_LOOPBACK, KIND_NO_VERSION, KIND_WIRELESS, KIND_WIRELESS_ENCRYPTED, KIND_LINUX_COOKED = range(
    0x10000, 0x10006
)
# Places of counts: of packets that are not IP by kind, that are of another protocol by its number, of link types.
N_KINDS, N_PROTOCOLS, N_LINK_TYPES = 0x10006, 256, 0x10000

# One packet whose headers have been read; places are in the buffer.
PACKET_DTYPE = np.dtype(
    [
        ("fate", np.int64),
        ("kind", np.int64),  # of what makes no flow: place of its count
        ("hash", np.uint64),  # 32 bits
        ("digest", np.uint64),  # of all captured bytes; while duplicates are looked for
        ("start", np.int64),
        ("ip", np.int64),  # first byte of the IP header
        ("transport", np.int64),  # first byte of the TCP or UDP header
        ("captured_end", np.int64),
        ("ip_end", np.int64),  # by the IP length; may lie beyond the captured end
        ("time", np.int64),
        ("tunnel", np.uint64),  # 32 bits, keyed: between which hosts the tunnels around it go; 0: none
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


# The functions below return (fate, first byte of the IP header, IP version); in place of the version, where what they
# found is not IP, its kind.


@kernel
def follow_mpls(data, at, stop):
    """Walk the label stack at ``at``."""
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
    """Find the version of a packet that begins with its IP header, if it is one."""
    if at >= stop:
        return SHORT, at, 0
    version = np.int64(data[at] >> 4)
    if version == 4 or version == 6:
        return SAMPLED, at, version
    return NON_IP, at, KIND_NO_VERSION


@kernel
def follow_ppp(data, at, stop):
    """Walk the PPP frame at ``at``."""
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
    return NON_IP, at, KIND_PPP


@kernel
def tag_size(data, ethertype, at, stop):
    """Return the bytes of a tag at ``at`` up to and with the EtherType behind it; 0 if the EtherType is not a tag's."""
    if ethertype == 0x8100 or ethertype == 0x88A8 or ethertype == 0x9100 or ethertype == 0x9200:
        return VLAN_BYTES
    if ethertype == 0x8926:
        return VN_TAG_BYTES
    if ethertype == 0x893F:
        return E_TAG_BYTES
    if ethertype == 0x8909:
        return METADATA_TAG_BYTES
    if ethertype == 0x892F:
        return REDUNDANCY_TAG_BYTES
    if ethertype == ETHERTYPE_MACSEC and at < stop and not data[at] & 0x0C:  # authenticated, but not encrypted
        return 16 if data[at] & 0x20 else 8  # with or without a channel identifier
    return 0


@kernel
def enter_llc(data, at, stop):
    """Return (fate, EtherType or access point, first byte behind) of logical link control with or without SNAP."""
    if at + LLC_BYTES > stop:
        return SHORT, 0, at
    access_point = np.int64(data[at])
    if data[at + 1] != access_point or data[at + LLC_CONTROL] != UNNUMBERED_INFORMATION:
        return NON_IP, access_point, at
    if access_point == ACCESS_POINT_IP:
        return SAMPLED, ETHERTYPE_IPV4, at + LLC_BYTES
    if access_point != ACCESS_POINT_SNAP:
        return NON_IP, access_point, at
    if at + SNAP_BYTES > stop:
        return SHORT, 0, at
    organisation = (u16(data, at + SNAP_ORGANISATION) << 8) | np.int64(data[at + SNAP_ORGANISATION + 2])
    if organisation != 0 and organisation != 0x0000F8:  # RFC 1042, and bridges to Ethernet (IEEE 802.1H)
        return NON_IP, access_point, at
    return SAMPLED, u16(data, at + SNAP_TYPE), at + SNAP_BYTES


@kernel
def follow_ethertype(data, ethertype, at, stop):
    """Walk from an EtherType, or the length in its place, whose payload begins at ``at``."""
    for _ in range(MAX_TAGS + 1):
        if ethertype == ETHERTYPE_IPV4:
            return SAMPLED, at, 4
        if ethertype == ETHERTYPE_IPV6:
            return SAMPLED, at, 6
        if ethertype == ETHERTYPE_MPLS or ethertype == 0x8848:
            return follow_mpls(data, at, stop)
        if ethertype == ETHERTYPE_PPPOE:
            return follow_ppp(data, at + PPPOE_BYTES, stop)
        if ethertype <= MAX_LENGTH_FIELD:
            fate, ethertype, at = enter_llc(data, at, stop)
            if fate != SAMPLED:
                return fate, at, ethertype
            continue
        size = tag_size(data, ethertype, at, stop)
        if size == 0:
            return NON_IP, at, ethertype
        if at + size > stop:
            return SHORT, at, 0
        at += size
        ethertype = u16(data, at - 2)
    return MALFORMED, at, 0


@kernel
def follow_typed(data, type_at, payload, stop):
    """Walk from a link header that holds an EtherType."""
    if type_at + 2 > stop:
        return SHORT, payload, 0
    return follow_ethertype(data, u16(data, type_at), payload, stop)


@kernel
def follow_cooked(data, type_at, payload, stop):
    """Walk from a Linux cooked header: a protocol below the EtherTypes is a number of Linux, no length."""
    if type_at + 2 > stop:
        return SHORT, payload, 0
    protocol = u16(data, type_at)
    if protocol <= MAX_LENGTH_FIELD and protocol != SLL_LLC:
        return NON_IP, payload, KIND_LINUX_COOKED
    return follow_ethertype(data, protocol, payload, stop)


@kernel
def wireless_header_size(data, at):
    """Return the bytes of the header of an 802.11 data frame."""
    size, flags = WIRELESS_BYTES, data[at + WIRELESS_FLAGS]
    if flags & 0x03 == 0x03:  # between two access points
        size += WIRELESS_ADDRESS_4_BYTES
    if data[at] & 0x80:
        size += WIRELESS_QOS_BYTES
        if flags & 0x80:
            size += WIRELESS_HT_BYTES
    return size


@kernel
def follow_wireless(data, at, stop):
    """Walk from an 802.11 frame; only one that carries readable data of its own can be IP."""
    if at + WIRELESS_BYTES > stop:
        return SHORT, at, 0
    flags = data[at + WIRELESS_FLAGS]
    if data[at] & 0x4F != 0x08:  # version 0, data, with data
        return NON_IP, at, KIND_WIRELESS
    if flags & 0x40:
        return NON_IP, at, KIND_WIRELESS_ENCRYPTED
    if data[at + WIRELESS_SEQUENCE] & 0x0F:
        return FRAGMENT, at, 0
    inside = at + wireless_header_size(data, at)
    if inside > stop:
        return SHORT, at, 0
    control = inside - (WIRELESS_HT_BYTES if flags & 0x80 else 0) - WIRELESS_QOS_BYTES
    if data[at] & 0x80 and data[control] & 0x80:  # several frames in one
        return NON_IP, at, KIND_WIRELESS
    return follow_ethertype(data, 0, inside, stop)


@kernel
def enter_envelope(data, start, stop, link_type):
    """Return (fate, first byte, link type) of the frame behind what the capturing machine put before it."""
    if link_type == LINK_PPI:
        size, length_at = PPI_BYTES, start + PPI_LENGTH
    elif link_type == LINK_RADIOTAP:
        size, length_at = RADIOTAP_BYTES, start + RADIOTAP_LENGTH
    else:
        return SAMPLED, start, link_type
    if start + size > stop:
        return SHORT, start, link_type
    length = little_u16(data, length_at)
    if length < size:
        return MALFORMED, start, link_type
    inside = little_u32(data, start + PPI_LINK_TYPE) if link_type == LINK_PPI else LINK_WIRELESS
    if inside in (LINK_PPI, LINK_RADIOTAP):  # inside itself
        return MALFORMED, start, link_type
    return SAMPLED, start + length, inside


@kernel
def find_ip(data, start, stop, link_type):
    """Walk the frame in ``data[start:stop]``."""
    if link_type == LINK_ETHERNET:
        if start + ETHERNET_BYTES > stop:
            return SHORT, start, 0
        return follow_ethertype(data, u16(data, start + ETHERNET_TYPE), start + ETHERNET_BYTES, stop)
    return find_ip_elsewhere(data, start, stop, link_type)


@kernel
def find_ip_elsewhere(data, start, stop, link_type):
    """Do the work of `find_ip` for all link types, of which Ethernet alone is worth a way of its own."""
    fate, start, link_type = enter_envelope(data, start, stop, link_type)
    if fate != SAMPLED:
        return fate, start, 0
    if link_type == LINK_ETHERNET:
        return follow_typed(data, start + ETHERNET_TYPE, start + ETHERNET_BYTES, stop)
    if link_type == LINK_LINUX_SLL:
        return follow_cooked(data, start + SLL_PROTOCOL, start + SLL_BYTES, stop)
    if link_type == LINK_LINUX_SLL2:
        return follow_cooked(data, start + SLL2_PROTOCOL, start + SLL2_BYTES, stop)
    if link_type == LINK_WIRELESS:
        return follow_wireless(data, start, stop)
    if link_type == LINK_ATM:
        return follow_ethertype(data, 0, start, stop)
    if link_type == LINK_MPLS:
        return follow_mpls(data, start, stop)
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
    is_cisco = start + HDLC_BYTES <= stop and (data[start] == 0x0F or data[start] == 0x8F)
    if link_type == LINK_CISCO_HDLC or (link_type == LINK_PPP_HDLC and is_cisco):
        return follow_typed(data, start + HDLC_PROTOCOL, start + HDLC_BYTES, stop)
    if link_type in (LINK_PPP, LINK_PPP_HDLC):
        return follow_ppp(data, start, stop)
    return UNKNOWN_LINK_TYPE, start, link_type


@kernel
def find_ip_loopback(data, start, stop):
    """Walk from the address family of null or loopback."""
    if start + LOOPBACK_BYTES > stop:
        return SHORT, start, 0
    family = u32(data, start)
    if family > 0xFFFF:  # null/loopback has the byte order of the capturing machine
        family = little_u32(data, start)
    if family == 2:
        return SAMPLED, start + LOOPBACK_BYTES, 4
    if family == 10 or family == 24 or family == 28 or family == 30:  # AF_INET6 of Linux and the BSDs
        return SAMPLED, start + LOOPBACK_BYTES, 6
    return NON_IP, start, KIND_LOOPBACK


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
        return FRAGMENT, 0, at, end
    protocol = np.int64(data[at + IPV4_PROTOCOL])
    if protocol == AUTHENTICATION_HEADER:
        fate, protocol, transport = follow_extensions(data, protocol, at + header, stop)
        return fate, protocol, transport, end
    return SAMPLED, protocol, at + header, end


@kernel
def extension_size(data, at, header):
    """Return the bytes of the extension header at ``at``."""
    if header == FRAGMENT_HEADER:
        return EXTENSION_BYTES
    length = np.int64(data[at + EXTENSION_LENGTH])
    return (length + 2) * 4 if header == AUTHENTICATION_HEADER else (length + 1) * 8


@kernel
def follow_extensions(data, header, at, stop):
    """Return (fate, protocol, first byte of the transport header) behind any number of extension headers."""
    while True:
        # hop-by-hop, routing, destination options, mobility, HIP, Shim6
        plain = (
            header == 0 or header == ROUTING_HEADER or header == 60 or header == 135 or header == 139 or header == 140
        )
        if not (plain or header in (FRAGMENT_HEADER, AUTHENTICATION_HEADER)):
            return SAMPLED, header, at
        if at + EXTENSION_BYTES > stop:
            return SHORT, 0, at
        if header == FRAGMENT_HEADER and u16(data, at + EXTENSION_FRAGMENT) & 0xFFF8:
            return FRAGMENT, 0, at
        size = extension_size(data, at, header)
        header = np.int64(data[at + EXTENSION_NEXT])
        at += size


@kernel
def find_transport_ipv6(data, at, stop):
    """Return (fate, protocol, first byte of the transport header, end of the IP packet)."""
    if at + IPV6_BYTES > stop:
        return SHORT, 0, at, stop
    if data[at] >> 4 != 6:
        return MALFORMED, 0, at, stop
    length = u16(data, at + IPV6_LENGTH)
    end = at + IPV6_BYTES + length if length else stop  # 0: jumbogram or offload
    fate, protocol, transport = follow_extensions(data, np.int64(data[at + IPV6_NEXT]), at + IPV6_BYTES, stop)
    return fate, protocol, transport, end


@kernel
def find_transport(data, start, stop, link_type):
    """Return (fate, IP version, first byte of IP, protocol, first byte of transport, end of the IP packet).

    Of what is not IP, the version is 0 and its kind stands in place of the protocol.
    """
    fate, ip, version = find_ip(data, start, stop, link_type)
    if fate != SAMPLED:
        return fate, 0, start, version, start, stop
    if version == 4:
        fate, protocol, transport, end = find_transport_ipv4(data, ip, stop)
    else:
        fate, protocol, transport, end = find_transport_ipv6(data, ip, stop)
    return fate, version, ip, protocol, transport, end
