# SPDX-License-Identifier: BSD-3-Clause
"""Names of what makes no flow: link types, EtherTypes, IP protocols."""

from __future__ import annotations

import numpy as np

from sklearn_docids.capture import headers

# So many kinds are named; whoever writes a capture can put thousands into it.
MAX_NAMED = 16

LINK_NAMES = {
    3: "AX25", 6: "IEEE802_5", 7: "ARCNET_BSD", 8: "SLIP", 9: "PPP", 10: "FDDI", 50: "PPP_HDLC",
    51: "PPP_ETHER", 100: "ATM_RFC1483", 104: "C_HDLC", 105: "IEEE802_11", 107: "FRELAY", 117: "PFLOG",
    119: "IEEE802_11_PRISM", 121: "HHDLC", 127: "IEEE802_11_RADIOTAP", 129: "ARCNET_LINUX",
    138: "APPLE_IP_OVER_IEEE1394", 143: "DOCSIS", 147: "USER0", 163: "IEEE802_11_AVS", 177: "LINUX_LAPD",
    187: "BLUETOOTH_HCI_H4", 189: "USB_LINUX", 192: "PPI", 195: "IEEE802_15_4", 197: "ERF",
    201: "BLUETOOTH_HCI_H4_WITH_PHDR", 202: "AX25_KISS", 203: "LAPD", 215: "IEEE802_15_4_NONASK_PHY",
    219: "MPLS", 220: "USB_LINUX_MMAPPED", 224: "FC_2", 227: "CAN_SOCKETCAN", 230: "IEEE802_15_4_NOFCS", 231: "DBUS",
    239: "NFLOG", 240: "NETANALYZER", 242: "IPOIB", 243: "MPEG_2_TS", 247: "INFINIBAND", 248: "SCTP", 249: "USBPCAP",
    251: "BLUETOOTH_LE_LL", 252: "WIRESHARK_UPPER_PDU", 253: "NETLINK", 256: "BLUETOOTH_LE_LL_WITH_PHDR",
}  # fmt: skip
KIND_NAMES = {
    # access points of IEEE 802.2
    0x06: "IP in 802.2", 0x42: "STP", 0xAA: "SNAP", 0xE0: "IPX in 802.2", 0xF0: "NetBIOS in 802.2", 0xFE: "OSI",
    0xFF: "IPX in 802.3",
    # EtherTypes
    0x0806: "ARP", 0x22EA: "SRP", 0x22F0: "AVTP", 0x22F3: "TRILL", 0x6558: "bridged Ethernet", 0x8035: "RARP",
    0x8100: "VLAN", 0x8137: "IPX", 0x8809: "LACP", 0x8863: "PPPoE discovery", 0x886D: "Intel ANS", 0x887B: "HomePlug",
    0x888E: "EAPOL", 0x8892: "PROFINET", 0x8899: "Realtek", 0x88A4: "EtherCAT", 0x88B8: "GOOSE",
    0x88BA: "IEC 61850 samples", 0x88CC: "LLDP", 0x88E1: "HomePlug AV", 0x88E5: "MACsec",
    0x88E7: "provider backbone bridging",
    0x88F7: "PTP", 0x8902: "CFM", 0x8906: "FCoE", 0x890D: "IEEE 802.11 over Ethernet", 0x8912: "HomePlug 1.0",
    0x8915: "RoCE", 0x893A: "IEEE 1905", 0x894F: "NSH", 0x9000: "loopback test",
    headers.KIND_PPP: "PPP control", headers.KIND_LOOPBACK: "another address family",
    headers.KIND_NO_VERSION: "neither IPv4 nor IPv6", headers.KIND_WIRELESS: "802.11 without data",
    headers.KIND_WIRELESS_ENCRYPTED: "encrypted 802.11", headers.KIND_LINUX_COOKED: "a Linux protocol",
}  # fmt: skip
PROTOCOL_NAMES = {
    1: "ICMP", 2: "IGMP", 4: "IP in IP", 6: "TCP", 17: "UDP", 33: "DCCP", 41: "IPv6 in IP", 47: "GRE", 50: "ESP",
    51: "AH", 58: "ICMPv6", 59: "no next header", 88: "EIGRP", 89: "OSPF", 97: "EtherIP", 103: "PIM", 108: "IPComp",
    112: "VRRP", 115: "L2TP", 132: "SCTP", 136: "UDP-Lite", 137: "MPLS in IP",
}  # fmt: skip


def link_name(link_type: int) -> str:
    """Return the number of a link type with its libpcap name where we know it."""
    return f"{link_type} ({LINK_NAMES[link_type]})" if link_type in LINK_NAMES else str(link_type)


def kind_counts(places: np.ndarray, kinds: np.ndarray) -> dict[str, int]:
    """Return how many packets of each kind made no flow, most frequent first; rare ones of many are summed up.

    ``places`` are those of the counts in ``kinds`` that are not zero.
    """
    places = places[np.lexsort((places, -kinds[places]))]
    counts = {_name(place): int(kinds[place]) for place in places[:MAX_NAMED].tolist()}
    rest = int(kinds[places[MAX_NAMED:]].sum())
    return counts | ({"other kinds": rest} if rest else {})


def _name(place: int) -> str:
    if place < headers.N_KINDS:
        return KIND_NAMES.get(place) or (f"EtherType {place:#06x}" if place > 0xFF else f"802.2 type {place:#04x}")
    place -= headers.N_KINDS
    if place < headers.N_PROTOCOLS:
        return PROTOCOL_NAMES.get(place) or f"IP protocol {place}"
    return f"link type {link_name(place - headers.N_PROTOCOLS)}"


def unknown_link_types(places: np.ndarray) -> list[int]:
    """Return the link types among kinds of packets."""
    link_types = places - headers.N_KINDS - headers.N_PROTOCOLS
    return sorted(link_types[link_types >= 0].tolist())
