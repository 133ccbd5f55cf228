# SPDX-License-Identifier: BSD-3-Clause
"""The bytes of a flow and of the normal flow most like it, each with how much it adds to the abnormality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sklearn_docids._meta import takes_tables
from sklearn_docids._views.payload import first_messages, quoted
from sklearn_docids.capture.layouts import BACKWARD, DESCRIPTION, DESCRIPTION_BYTES, FORWARD, PAYLOAD_LENGTH
from sklearn_docids.inspection import field_names

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

# Shares of the largest attribution in a flow from which a byte is shown the more unusual.
LEVELS = (0.02, 0.1, 0.25, 0.5)
# Fields are listed that have such a share of the whole, so many at most.
LEAST_SHARE, MOST_FIELDS = 0.05, 5
FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
PROTOCOLS = {6: "TCP", 17: "UDP"}
DIRECTIONS = {FORWARD: "from the source", BACKWARD: "from the destination"}
QUOTED_BYTES = 24
LONGEST_NUMBER = 4
PAYLOAD, NO_PACKET, NONE = "payload", "no packet", "none"
# Fields of a description that are shown, and in what words.
DESCRIBED = {"direction": "{}", "payload length": "{} bytes of payload", "TCP flags": "{}"}
# In place of a largest attribution that is 0 or less.
TINY = float(np.finfo(float).tiny)


class Field(NamedTuple):
    """A field of a description, in words."""

    text: str
    level: int  # 0: as usual, to 4


class Cell(NamedTuple):
    """A byte."""

    value: int
    name: str  # of the field that it is in
    level: int  # 0: as usual, to 4
    is_same: bool  # as that of the other flow

    @property
    def text(self) -> str:
        """The byte as a character, if it is one that can be seen."""
        return chr(self.value) if 0x20 < self.value < 0x7F else ""


class Packet(NamedTuple):
    """A packet of a row."""

    fields: list[Field]  # of its description; none where the row has its headers
    cells: list[Cell]


class FieldReason(NamedTuple):
    """A header field, or the payload, of a packet, and its share in what makes the flow abnormal."""

    packet: int  # from 1
    name: str
    value: str
    normal: str | None  # of the most similar normal flow, if one is known
    share: float


class ByteMap(NamedTuple):
    """Packets of a flow, each beside that of the most similar normal flow."""

    pairs: list[tuple[Packet, Packet | None]]
    has_normal: bool
    fields: list[FieldReason]


def byte_maps(detector: Any, flows: Sequence[FlowTable]) -> list[ByteMap | None]:
    """Return a map of each flow, which are tables of one row; None of all where the detector looks at no bytes."""
    network = detector.detector_ if takes_tables(detector) else detector
    if not flows or not hasattr(network, "explain"):
        return [None] * len(flows)
    X = np.concatenate([flow.X for flow in flows])
    attributions = network.explain(X, n_packets=flows[0].n_packets)
    similar: Any = [None] * len(X)
    if getattr(network, "template_flows_", None) is not None:
        similar = network.template_flows_[network.most_similar_templates(X)].astype(np.uint8)
    return [_map(*each) for each in zip(flows, attributions, similar, strict=True)]


def request_of(flow: FlowTable) -> str:
    """Return what is kept of the first message that the source sent, as text; empty where there is none."""
    if flow.layout != "payload":
        return ""
    request = first_messages(flow, FORWARD)
    n_bytes = int(request.lengths[0])
    return quoted(request.data[0, :n_bytes].tobytes(), n_bytes) if n_bytes else ""


class _Row(NamedTuple):
    """A row as packets, with the names of their fields."""

    packets: np.ndarray  # uint8 (n_packets, n_bytes)
    kept: list[int]  # bytes of each packet that are there
    names: np.ndarray  # str (n_packets, n_bytes)
    n_described: int  # bytes of the description in front of each packet

    @classmethod
    def of(cls, packets: np.ndarray, kept: list[int], flow: FlowTable) -> _Row:
        names = np.array([field_names(packet, int(flow.link_type[0]), layout=flow.layout) for packet in packets])
        names[np.char.startswith(names, "payload byte")] = PAYLOAD
        return cls(packets, kept, names, DESCRIPTION_BYTES if flow.layout == "payload" else 0)

    def field(self, place: int, name: str) -> str:
        """Return the value of a field of a packet, wherever it lies in it."""
        n_kept = self.kept[place]
        if NO_PACKET in (name, self.names[place, 0]):
            return f"{n_kept} bytes" if n_kept else NO_PACKET
        return _value(name, self.packets[place, :n_kept][self.names[place, :n_kept] == name].tobytes())


def _map(flow: FlowTable, attribution: np.ndarray, similar: np.ndarray | None) -> ByteMap:
    row = _Row.of(flow.X[0].reshape(attribution.shape), flow.kept_bytes[0].tolist(), flow)
    normal = None
    if similar is not None:
        packets = similar.reshape(attribution.shape)
        normal = _Row.of(packets, [_n_kept(packet, flow.layout) for packet in packets], flow)
    levels = np.searchsorted(LEVELS, attribution / max(attribution.max(), TINY), side="right")
    pairs = [
        (_packet(row, place, levels[place], normal), None if normal is None else _packet(normal, place, usual, row))
        for place, usual in enumerate(np.zeros_like(levels))
        if row.kept[place] or (normal is not None and normal.kept[place])
    ]
    return ByteMap(pairs, normal is not None, _fields(row, normal, attribution))


def _n_kept(packet: np.ndarray, layout: str) -> int:
    """Return how many bytes of a packet of a template there are: it keeps no such number."""
    if not packet.any():
        return 0
    if layout == "payload":
        n_payload = int.from_bytes(packet[PAYLOAD_LENGTH : PAYLOAD_LENGTH + 2].tobytes())
        return min(len(packet), DESCRIPTION_BYTES + n_payload)
    return int(np.flatnonzero(packet)[-1]) + 1


def _packet(row: _Row, place: int, levels: np.ndarray, other: _Row | None) -> Packet:
    packet, n_kept, names = row.packets[place], row.kept[place], row.names[place]
    if not n_kept:
        return Packet([], [])
    is_same = np.zeros(len(packet), bool) if other is None else packet == other.packets[place]
    cells = [
        Cell(int(packet[byte]), str(names[byte]), int(levels[byte]), bool(is_same[byte]))
        for byte in range(row.n_described, n_kept)
    ]
    return Packet(_described(packet, levels) if row.n_described else [], cells)


def _described(packet: np.ndarray, levels: np.ndarray) -> list[Field]:
    """Return the description of a packet in words, without what is the same in all packets of a flow."""
    names, fields = np.array(DESCRIPTION.names()), []
    for name, text in DESCRIBED.items():
        columns = np.flatnonzero(names == name)
        value = _value(name, packet[columns].tobytes())
        if value != NONE:
            fields.append(Field(text.format(value), int(levels[columns].max())))
    return fields


def _value(name: str, data: bytes) -> str:
    """Return the value of a field as a person would write it."""
    number = int.from_bytes(data)
    if name == "TCP flags":
        return " ".join(flag for bit, flag in enumerate(FLAGS) if number >> bit & 1) or NONE
    if name == "direction":
        return DIRECTIONS.get(number, str(number))
    if name in ("protocol", "IP protocol", "IP next header"):
        return PROTOCOLS.get(number, str(number))
    if not data:
        return NONE
    return quoted(data, QUOTED_BYTES) if name == PAYLOAD or len(data) > LONGEST_NUMBER else str(number)


def _fields(row: _Row, normal: _Row | None, attribution: np.ndarray) -> list[FieldReason]:
    """Return the fields that have the largest part in what makes the flow abnormal."""
    shares = np.maximum(attribution, 0) / max(np.maximum(attribution, 0).sum(), TINY)
    found = []
    for place, names in enumerate(row.names):
        for name in dict.fromkeys(names.tolist()):
            there = None if normal is None else normal.field(place, name)
            found.append(
                FieldReason(place + 1, name, row.field(place, name), there, float(shares[place, names == name].sum()))
            )
    found = [reason for reason in found if reason.share >= LEAST_SHARE]
    return sorted(found, key=lambda reason: -reason.share)[:MOST_FIELDS]
