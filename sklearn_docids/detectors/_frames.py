# SPDX-License-Identifier: BSD-3-Clause
"""Frames at the beginning of rows: link header, tags and IP version of the first packet, and where its fields stand.

The compiled walk of the sampler is told the link type of a capture. A row of bytes is told nothing: here the link
headers are tried one after the other, and one is found where a whole chain of types and an IP header of TCP or UDP fit.
Rows of the sampler's other layout begin with the description of a packet in place of a link header.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sklearn_docids.capture import layouts
from sklearn_docids.capture.layouts import Header

# Bytes of a row that are looked at: link headers and tags of every kind, and the headers behind them.
N_HEAD = 96
UNKNOWN = "no header that is known"
IPV4, IPV6 = "IPv4", "IPv6"
TCP, UDP = 6, 17
IPV6_EXTENSIONS = {0, 43, 44, 51, 60, 135, 139, 140}
IP_TYPES = {0x0800: IPV4, 0x86DD: IPV6}
PPP_TYPES = {0x0021: IPV4, 0x0057: IPV6}
# The address family of null and loopback, whose byte order is that of the capturing machine.
FAMILIES = {
    family.to_bytes(4, order): version
    for order in ("little", "big")
    for family, version in ((2, IPV4), (10, IPV6), (24, IPV6), (28, IPV6), (30, IPV6))
}
MPLS_TYPES, PPPOE_TYPE = {0x8847, 0x8848}, 0x8864
MPLS, PPPOE, FRAMING, LLC, SNAP = "MPLS label", "PPPoE", "HDLC framing", "802.2 header", "SNAP header"
# Tags in front of an EtherType: name, and bytes up to and with that.
TAG_TYPES = {
    **dict.fromkeys((0x8100, 0x88A8, 0x9100, 0x9200), ("VLAN tag", layouts.VLAN_BYTES)),
    0x8926: ("VN-tag", layouts.VN_TAG_BYTES),
    0x893F: ("E-tag", layouts.E_TAG_BYTES),
    0x8909: ("metadata tag", layouts.METADATA_TAG_BYTES),
    0x892F: ("HSR tag", layouts.REDUNDANCY_TAG_BYTES),
}
TAGS = (*(name for name, _ in TAG_TYPES.values()), MPLS, PPPOE, FRAMING, LLC, SNAP)
MAX_LENGTH_FIELD = 1500

ETHERNET, COOKED, COOKED_2, HDLC = "Ethernet", "Linux cooked", "Linux cooked 2", "Cisco HDLC"
PPP, LOOPBACK, BARE = "PPP", "null/loopback", "no link header"
PAYLOAD = "description of payload"
# Link headers that hold an EtherType: its place, that of what follows, and how the header begins.
TYPED = (
    (ETHERNET, layouts.ETHERNET_TYPE, layouts.ETHERNET_BYTES, (b"",)),
    (COOKED, layouts.SLL_PROTOCOL, layouts.SLL_BYTES, (b"\0",)),
    (COOKED_2, layouts.SLL2_PROTOCOL, layouts.SLL2_BYTES, (b"\x08\0\0\0", b"\x86\xdd\0\0", b"\x81\0\0\0")),
    (HDLC, layouts.HDLC_PROTOCOL, layouts.HDLC_BYTES, (b"\x0f\0", b"\x8f\0")),
)
LINKS = (*(name for name, *_ in TYPED), PPP, LOOPBACK, BARE)
LINK_HEADERS = {
    ETHERNET: layouts.ETHERNET,
    COOKED: layouts.LINUX_SLL,
    COOKED_2: layouts.LINUX_SLL2,
    PAYLOAD: layouts.DESCRIPTION,
}
IP_HEADERS = {IPV4: layouts.IPV4, IPV6: layouts.IPV6}
TRANSPORT_HEADERS = {TCP: layouts.TCP, UDP: layouts.UDP}


class Frame(NamedTuple):
    """How a row begins."""

    link: str
    tags: tuple[str, ...]
    version: str  # empty where a row has no IP header
    ip: int  # first byte of the IP header
    transport: int  # of the transport header; 0 behind extension headers
    protocol: int

    @property
    def name(self) -> str:
        """Return link header, tags and IP version as one name."""
        return ", ".join(filter(None, (self.link, *self.tags, self.version)))

    def fields(self) -> Iterator[tuple[str, int, int]]:
        """Yield the fields that a policy may cover: what the policy calls them, first byte, byte behind the last."""
        yield from _fields_of(LINK_HEADERS.get(self.link), 0)
        yield from _fields_of(IP_HEADERS.get(self.version), self.ip)
        if self.transport:
            yield from _fields_of(TRANSPORT_HEADERS[self.protocol], self.transport)


def _fields_of(header: Header | None, at: int) -> Iterator[tuple[str, int, int]]:
    for field in () if header is None else header.fields:
        if field.policy:
            yield field.policy, at, at + field.n_bytes
        at += field.n_bytes


def is_frame_name(name: str) -> bool:
    """Return whether a name is one that `Frame.name` gives, or that of an unknown beginning."""
    link, *tags, version = name.split(", ") if ", " in name else ("", "")
    return name in (UNKNOWN, PAYLOAD) or (link in LINKS and version in IP_HEADERS and set(tags) <= set(TAGS))


def frame_of(row: bytes) -> Frame | None:
    """Return how a row begins; None where it is no packet of TCP or UDP, or of an unknown link."""
    for link, type_at, at, beginnings in TYPED:
        if row.startswith(beginnings):
            frame = _behind_type(row, link, (), _u16(row, type_at), at)
            if frame is not None:
                return frame
    if row[:4] in FAMILIES:
        return _ip(row, LOOPBACK, (), FAMILIES[row[:4]], layouts.LOOPBACK_BYTES)
    bare = _ip(row, BARE, (), _version_at(row, 0), 0)
    # Text may begin like an IPv6 header, but holds no control characters, as TCP and UDP are.
    if bare is not None and bare.protocol in TRANSPORT_HEADERS:
        return bare
    return _behind_ppp(row, PPP, (), 0) or _description(row)


def _description(row: bytes) -> Frame | None:
    """Return the frame of a row that begins with the description of a packet."""
    described = dict(zip(layouts.DESCRIPTION.names(), row, strict=False))
    has_number = described.get("packet number", 0) > 0
    has_direction = described.get("direction") in (layouts.FORWARD, layouts.BACKWARD)
    # UDP has no flags.
    has_protocol = row[:1] == bytes([TCP]) or (row[:1] == bytes([UDP]) and described.get("TCP flags") == 0)
    return Frame(PAYLOAD, (), "", 0, 0, row[0]) if has_number and has_direction and has_protocol else None


def _behind_type(row: bytes, link: str, tags: tuple[str, ...], ethertype: int, at: int) -> Frame | None:
    """Return the frame of an EtherType whose payload begins at ``at``."""
    if ethertype <= MAX_LENGTH_FIELD and row[at : at + layouts.LLC_BYTES] == b"\x06\x06\x03":
        return _ip(row, link, (*tags, LLC), IPV4, at + layouts.LLC_BYTES)
    if ethertype <= MAX_LENGTH_FIELD and row[at : at + layouts.SNAP_ORGANISATION] == b"\xaa\xaa\x03":
        tags, ethertype, at = (*tags, SNAP), _u16(row, at + layouts.SNAP_TYPE), at + layouts.SNAP_BYTES
    while ethertype in TAG_TYPES:
        name, n_bytes = TAG_TYPES[ethertype]
        tags, at = (*tags, name), at + n_bytes
        ethertype = _u16(row, at - 2)
    if ethertype in MPLS_TYPES:
        return _behind_labels(row, link, tags, at)
    if ethertype == PPPOE_TYPE:
        return _behind_ppp(row, link, (*tags, PPPOE), at + layouts.PPPOE_BYTES)
    return _ip(row, link, tags, IP_TYPES.get(ethertype), at)


def _behind_labels(row: bytes, link: str, tags: tuple[str, ...], at: int) -> Frame | None:
    while at + layouts.MPLS_BYTES <= len(row):
        tags, is_last = (*tags, MPLS), row[at + layouts.MPLS_BOTTOM] & 1
        at += layouts.MPLS_BYTES
        if is_last:
            return _ip(row, link, tags, _version_at(row, at), at)
    return None


def _behind_ppp(row: bytes, link: str, tags: tuple[str, ...], at: int) -> Frame | None:
    if row[at : at + 2] == b"\xff\x03":
        tags, at = (*tags, FRAMING), at + 2
    return _ip(row, link, tags, PPP_TYPES.get(_u16(row, at)), at + 2)


def _ip(row: bytes, link: str, tags: tuple[str, ...], version: str | None, at: int) -> Frame | None:
    """Return the frame of an IP header of a version, if there is one at ``at``."""
    if version is None or _version_at(row, at) != version or len(row) < at + layouts.IPV4_PROTOCOL + 1:
        return None
    if version == IPV6:
        protocol, size = row[at + layouts.IPV6_NEXT], layouts.IPV6_BYTES
        transport = at + size if protocol in TRANSPORT_HEADERS else 0
        is_ip = protocol in TRANSPORT_HEADERS or protocol in IPV6_EXTENSIONS
    else:
        protocol, size = row[at + layouts.IPV4_PROTOCOL], 4 * (row[at] & 15)
        transport = at + size
        is_ip = protocol in TRANSPORT_HEADERS and size >= layouts.IPV4_BYTES
    return Frame(link, tags, version, at, transport, protocol) if is_ip else None


def _version_at(row: bytes, at: int) -> str | None:
    return {4: IPV4, 6: IPV6}.get(row[at] >> 4) if at < len(row) else None


def _u16(row: bytes, at: int) -> int:
    return int.from_bytes(row[at : at + 2], "big")
