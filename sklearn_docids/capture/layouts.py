# SPDX-License-Identifier: BSD-3-Clause
"""The one table of header layouts: which field stands where, and which field of a policy covers it.

The compiled kernels take their positions from it, `rewriting` what a policy touches, `inspection` the names of bytes.
What a row of payload says of each packet is such a header, too, though none that is ever on a wire.
"""

from __future__ import annotations

from typing import NamedTuple

# What header-field policies call the groups of fields they act on.
FIELDS = (
    "mac", "ip", "ports", "ip_id", "ttl", "checksums", "tcp_seq", "tcp_window", "tcp_options", "tcp_timestamps",
)  # fmt: skip

# What a row holds of each packet: its first bytes, or a description and its first payload bytes.
LAYOUTS = ("packets", "payload")


class Field(NamedTuple):
    """A field of a header."""

    name: str
    n_bytes: int
    policy: str = ""  # of `FIELDS`; empty: no policy covers it


class Header:
    """Fields that follow each other; what has no fixed place, as options do, lies behind them."""

    def __init__(self, *fields: tuple[str, int] | tuple[str, int, str]):
        self.fields: tuple[Field, ...] = tuple(Field(*field) for field in fields)
        self.n_bytes: int = sum(field.n_bytes for field in self.fields)

    def at(self, name: str) -> int:
        """Return the offset of a field."""
        names = [field.name for field in self.fields]
        return sum(field.n_bytes for field in self.fields[: names.index(name)])

    def names(self) -> list[str]:
        """Return the name of the field that each byte belongs to."""
        return [field.name for field in self.fields for _ in range(field.n_bytes)]


# Link layer
ETHERNET = Header(("MAC destination", 6, "mac"), ("MAC source", 6, "mac"), ("Ethernet type", 2))
LINUX_SLL = Header(
    ("packet type", 2), ("hardware type", 2), ("address length", 2), ("address", 8, "mac"), ("protocol", 2),
)  # fmt: skip
LINUX_SLL2 = Header(
    ("protocol", 2), ("reserved", 2), ("interface", 4), ("hardware type", 2), ("packet type", 1),
    ("address length", 1), ("address", 8, "mac"),
)  # fmt: skip
LOOPBACK = Header(("address family", 4))
CISCO_HDLC = Header(("address", 1), ("control", 1), ("protocol", 2))
PPI = Header(("version", 1), ("flags", 1), ("length", 2), ("link type", 4))
PPPOE = Header(("version", 1), ("code", 1), ("session", 2), ("length", 2))
VLAN_TAG = Header(("tag", 2), ("type", 2))
MPLS_LABEL = Header(("label", 2), ("bottom", 1), ("TTL", 1))
VN_TAG = Header(("direction and virtual interfaces", 4), ("type", 2))
E_TAG = Header(("priority and channels", 6), ("type", 2))
METADATA_TAG = Header(("version", 1), ("length", 1), ("option", 2), ("security group", 2), ("type", 2))
REDUNDANCY_TAG = Header(("path and size", 2), ("sequence number", 2), ("type", 2))
LLC = Header(("destination access point", 1), ("source access point", 1), ("control", 1))
SNAP = Header(*(field[:2] for field in LLC.fields), ("organisation", 3), ("type", 2))
WIRELESS = Header(
    ("frame control", 1), ("flags", 1), ("duration", 2), ("address 1", 6, "mac"), ("address 2", 6, "mac"),
    ("address 3", 6, "mac"), ("sequence control", 2),
)  # fmt: skip
WIRELESS_ADDRESS_4 = Header(("address 4", 6, "mac"))
WIRELESS_QOS = Header(("QoS control", 2))
WIRELESS_HT = Header(("HT control", 4))
RADIOTAP = Header(("version", 1), ("padding", 1), ("length", 2), ("fields present", 4))

# Network layer
IPV4 = Header(
    ("IP version", 1), ("IP TOS", 1), ("IP length", 2), ("IP ID", 2, "ip_id"), ("IP fragment", 2), ("IP TTL", 1, "ttl"),
    ("IP protocol", 1), ("IP checksum", 2, "checksums"), ("IP source", 4, "ip"), ("IP destination", 4, "ip"),
)  # fmt: skip
IPV6 = Header(
    ("IP version", 1), ("IP flow label", 3, "ip_id"), ("IP length", 2), ("IP next header", 1),
    ("IP hop limit", 1, "ttl"), ("IP source", 16, "ip"), ("IP destination", 16, "ip"),
)  # fmt: skip
IPV6_EXTENSION = Header(("next header", 1), ("length", 1), ("fragment offset or data", 2), ("data", 4))

# Transport layer, and tunnels
TCP = Header(
    ("source port", 2, "ports"), ("destination port", 2, "ports"), ("TCP sequence number", 4, "tcp_seq"),
    ("TCP acknowledgment number", 4, "tcp_seq"), ("TCP header length", 1), ("TCP flags", 1),
    ("TCP window", 2, "tcp_window"), ("TCP checksum", 2, "checksums"), ("TCP urgent pointer", 2),
)  # fmt: skip
UDP = Header(
    ("source port", 2, "ports"), ("destination port", 2, "ports"), ("UDP length", 2), ("UDP checksum", 2, "checksums"),
)  # fmt: skip
GRE = Header(("flags", 2), ("protocol", 2))
VXLAN = Header(("flags", 1), ("reserved", 2), ("next protocol", 1), ("network", 3), ("reserved 2", 1))
GENEVE = Header(("options length", 1), ("flags", 1), ("protocol", 2), ("network", 3), ("reserved", 1))
GTP = Header(("flags", 1), ("message type", 1), ("length", 2), ("tunnel", 4))
GTP_OPTIONAL = Header(("sequence number", 2), ("N-PDU number", 1), ("next extension", 1))
ETHERIP = Header(("version", 2))
ERSPAN_2 = Header(("version and VLAN", 2), ("session", 2), ("index", 4))
ERSPAN_3 = Header(("version and VLAN", 2), ("session", 2), ("time", 4), ("security group", 2), ("frame type", 2))
ERSPAN_3_PLATFORM = Header(("platform", 8))

# In front of the payload of each packet in a row of layout "payload"
DESCRIPTION = Header(
    ("protocol", 1), ("direction", 1), ("payload length", 2), ("TCP flags", 1), ("packet number", 1),
    ("service port", 2, "ports"),
)  # fmt: skip
FORWARD, BACKWARD = 1, 2  # directions

# Positions for compiled code, which cannot ask an object.
ETHERNET_TYPE, ETHERNET_BYTES = ETHERNET.at("Ethernet type"), ETHERNET.n_bytes
SLL_PROTOCOL, SLL_BYTES = LINUX_SLL.at("protocol"), LINUX_SLL.n_bytes
SLL2_PROTOCOL, SLL2_BYTES = LINUX_SLL2.at("protocol"), LINUX_SLL2.n_bytes
HDLC_PROTOCOL, HDLC_BYTES = CISCO_HDLC.at("protocol"), CISCO_HDLC.n_bytes
PPI_LENGTH, PPI_LINK_TYPE, PPI_BYTES = PPI.at("length"), PPI.at("link type"), PPI.n_bytes
VLAN_TYPE, VLAN_BYTES = VLAN_TAG.at("type"), VLAN_TAG.n_bytes
MPLS_BOTTOM, MPLS_BYTES = MPLS_LABEL.at("bottom"), MPLS_LABEL.n_bytes
LOOPBACK_BYTES, PPPOE_BYTES = LOOPBACK.n_bytes, PPPOE.n_bytes
VN_TAG_BYTES, E_TAG_BYTES = VN_TAG.n_bytes, E_TAG.n_bytes
METADATA_TAG_BYTES, REDUNDANCY_TAG_BYTES = METADATA_TAG.n_bytes, REDUNDANCY_TAG.n_bytes
LLC_CONTROL, LLC_BYTES = LLC.at("control"), LLC.n_bytes
SNAP_ORGANISATION, SNAP_TYPE, SNAP_BYTES = SNAP.at("organisation"), SNAP.at("type"), SNAP.n_bytes
WIRELESS_FLAGS, WIRELESS_SEQUENCE, WIRELESS_BYTES = (
    WIRELESS.at("flags"),
    WIRELESS.at("sequence control"),
    WIRELESS.n_bytes,
)
WIRELESS_ADDRESS_4_BYTES, WIRELESS_QOS_BYTES = WIRELESS_ADDRESS_4.n_bytes, WIRELESS_QOS.n_bytes
WIRELESS_HT_BYTES = WIRELESS_HT.n_bytes
RADIOTAP_LENGTH, RADIOTAP_BYTES = RADIOTAP.at("length"), RADIOTAP.n_bytes
IPV4_LENGTH, IPV4_FRAGMENT, IPV4_PROTOCOL = IPV4.at("IP length"), IPV4.at("IP fragment"), IPV4.at("IP protocol")
IPV4_TTL = IPV4.at("IP TTL")
IPV4_CHECKSUM, IPV4_SOURCE, IPV4_DESTINATION = IPV4.at("IP checksum"), IPV4.at("IP source"), IPV4.at("IP destination")
IPV4_BYTES = IPV4.n_bytes
IPV6_FLOW_LABEL, IPV6_LENGTH, IPV6_NEXT = IPV6.at("IP flow label"), IPV6.at("IP length"), IPV6.at("IP next header")
IPV6_SOURCE, IPV6_DESTINATION, IPV6_BYTES = IPV6.at("IP source"), IPV6.at("IP destination"), IPV6.n_bytes
EXTENSION_NEXT, EXTENSION_LENGTH = IPV6_EXTENSION.at("next header"), IPV6_EXTENSION.at("length")
EXTENSION_FRAGMENT, EXTENSION_BYTES = IPV6_EXTENSION.at("fragment offset or data"), IPV6_EXTENSION.n_bytes
SOURCE_PORT, DESTINATION_PORT = TCP.at("source port"), TCP.at("destination port")  # UDP's as well
PORTS_BYTES = DESTINATION_PORT + 2
TCP_HEADER_LENGTH, TCP_FLAGS, TCP_CHECKSUM = TCP.at("TCP header length"), TCP.at("TCP flags"), TCP.at("TCP checksum")
TCP_BYTES, UDP_CHECKSUM, UDP_BYTES = TCP.n_bytes, UDP.at("UDP checksum"), UDP.n_bytes
GRE_PROTOCOL, GRE_BYTES = GRE.at("protocol"), GRE.n_bytes
VXLAN_NEXT, VXLAN_BYTES = VXLAN.at("next protocol"), VXLAN.n_bytes
GENEVE_PROTOCOL, GENEVE_BYTES = GENEVE.at("protocol"), GENEVE.n_bytes
GTP_TYPE, GTP_BYTES, GTP_OPTIONAL_BYTES = GTP.at("message type"), GTP.n_bytes, GTP_OPTIONAL.n_bytes
ETHERIP_BYTES, ERSPAN_2_BYTES = ETHERIP.n_bytes, ERSPAN_2.n_bytes
ERSPAN_3_FRAME, ERSPAN_3_BYTES = ERSPAN_3.at("frame type"), ERSPAN_3.n_bytes
ERSPAN_3_PLATFORM_BYTES = ERSPAN_3_PLATFORM.n_bytes
DIRECTION, PAYLOAD_LENGTH = DESCRIPTION.at("direction"), DESCRIPTION.at("payload length")
DESCRIBED_FLAGS, PACKET_NUMBER = DESCRIPTION.at("TCP flags"), DESCRIPTION.at("packet number")
SERVICE_PORT, DESCRIPTION_BYTES = DESCRIPTION.at("service port"), DESCRIPTION.n_bytes
