# SPDX-License-Identifier: BSD-3-Clause
"""Which packets belong to given flows: by five-tuple, in both directions, and time."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from sklearn_docids.capture._native import kernel, part
from sklearn_docids.capture.flows import FlowRules
from sklearn_docids.capture.hashing import N_KEYS, hash_five_tuple
from sklearn_docids.capture.headers import PACKET_DTYPE, SAMPLED
from sklearn_docids.capture.kernels import CURSOR_DTYPE, advance_clock, read_innermost, read_packet

ENDS = ("src_high", "src_low", "src_port", "dst_high", "dst_low", "dst_port")
FIVE_TUPLE = (*ENDS, "protocol", "ip_version", "link_type")

# A five-tuple, and when its flows had packets: ``spans[first_span:stop_span]``.
TUPLE_DTYPE = np.dtype(
    [
        *((name, np.uint64 if name.endswith(("high", "low")) else np.int64) for name in FIVE_TUPLE),
        ("first_span", np.int64),
        ("stop_span", np.int64),
        ("current", np.int64),  # the span that had the last packet; -1: none yet
        ("last_active", np.int64),  # clock of the capture at that packet
    ],
    align=True,
)
SPAN_DTYPE = np.dtype([("first", np.int64), ("last", np.int64)], align=True)  # ns


class Sought(NamedTuple):
    """Flows that are looked for, as the kernels take them."""

    places: np.ndarray  # int64: a hash table of numbers of five-tuples, -1: empty
    tuples: np.ndarray  # TUPLE_DTYPE
    spans: np.ndarray  # SPAN_DTYPE: those of a five-tuple in order, none of which overlaps another
    packet: np.ndarray  # PACKET_DTYPE: one
    settings: np.ndarray  # SETTINGS_DTYPE: one
    vxlan_ports: np.ndarray  # int64
    keys: np.ndarray  # uint64


@part
def are_same(a: Any, b: Any, bidirectional: Any) -> Any:
    """Whether two five-tuples are one."""
    if a.protocol != b.protocol or a.ip_version != b.ip_version or a.link_type != b.link_type:
        return False
    is_source = a.src_low == b.src_low and a.src_port == b.src_port and a.src_high == b.src_high
    if is_source and a.dst_low == b.dst_low and a.dst_port == b.dst_port and a.dst_high == b.dst_high:
        return True
    is_destination = a.src_low == b.dst_low and a.src_port == b.dst_port and a.src_high == b.dst_high
    is_back = is_destination and a.dst_low == b.src_low and a.dst_port == b.src_port and a.dst_high == b.src_high
    return bidirectional and is_back


@kernel
def place_of(five_tuple: Any, sought: Any) -> Any:
    """Return the place of a five-tuple in the hash table, or that where it would go."""
    bidirectional = sought.settings[0].bidirectional
    mask = len(sought.places) - 1
    at = np.int64(hash_five_tuple(sought.keys, five_tuple, bidirectional)) & mask
    while sought.places[at] >= 0 and not are_same(sought.tuples[sought.places[at]], five_tuple, bidirectional):
        at = (at + 1) & mask
    return at


@kernel
def enter_all(sought: Any) -> Any:
    """Enter all five-tuples into the hash table."""
    for number in range(len(sought.tuples)):
        sought.places[place_of(sought.tuples[number], sought)] = number


@kernel
def span_of(time: Any, entry: Any, spans: Any) -> Any:
    """Return the number of the span that a time lies in, -1 if there is none."""
    low, high = entry.first_span, entry.stop_span
    while low < high:
        middle = (low + high) // 2
        if spans[middle].first <= time:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low > entry.first_span and time <= spans[low - 1].last else np.int64(-1)


@kernel
def belongs(time: Any, entry: Any, spans: Any, clock: Any, timeout: Any) -> Any:
    """Whether a packet of a five-tuple is of one of the flows.

    One that was stamped earlier than the first packet of its flow, but stands behind it in the capture, is of the flow
    as long as that has not idled out.
    """
    span = span_of(time, entry, spans)
    if span < 0 and entry.current >= 0 and time < spans[entry.current].first and clock - entry.last_active <= timeout:
        span = entry.current
    if span >= 0:
        entry.current, entry.last_active = span, clock
    return span >= 0


@kernel
def mark_packets(data: Any, records: Any, sought: Any, cursor: Any, wanted: Any) -> Any:
    """Mark the packets of the flows; let the clock of the capture go on with all of them."""
    rules, packet = sought.settings[0], sought.packet[0]
    for i in range(len(records)):
        advance_clock(cursor, records[i].time, rules.idle_timeout, rules.memory)
        if rules.innermost:
            fate = read_innermost(data, records[i], rules, packet, sought.vxlan_ports, sought.keys)
        else:
            fate = read_packet(data, records[i], rules, packet)
        wanted[i] = False
        if fate == SAMPLED:
            number = sought.places[place_of(packet, sought)]
            if number >= 0:
                entry = sought.tuples[number]
                wanted[i] = belongs(records[i].time, entry, sought.spans, cursor.clock, rules.idle_timeout)


class FlowSelection:
    """Tells the packets of flows from others, as a sampler with these rules would.

    It takes all packets of a flow, and where several flows of one five-tuple had packets at the same time, those of the
    others as well.
    """

    def __init__(self, flows: np.ndarray, rules: FlowRules):
        tuples, spans = _tuples_and_spans(flows, rules.bidirectional)
        n_places = 2 ** int(2 * len(tuples) + 1).bit_length()
        # Fresh keys: whoever wrote the capture cannot know which five-tuples collide.
        keys = np.frombuffer(os.urandom(8 * N_KEYS), np.uint64)
        self._sought = Sought(
            np.full(n_places, -1, np.int64), tuples, spans, np.zeros(1, PACKET_DTYPE), rules.settings(),
            np.array(rules.vxlan_ports, np.int64), keys,
        )  # fmt: skip
        enter_all(self._sought)

    def marked(self, data: np.ndarray, records: np.ndarray, clock: np.ndarray) -> np.ndarray:
        """Return which records are packets of the flows; ``clock`` (`CURSOR_DTYPE`) goes on."""
        wanted = np.empty(len(records), np.bool_)
        mark_packets(data, records, self._sought, clock[0], wanted)
        return wanted


def new_clock() -> np.ndarray:
    """Return the clock of a capture that has not begun."""
    return np.zeros(1, CURSOR_DTYPE)


def _tuples_and_spans(flows: np.ndarray, bidirectional: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct five-tuples of flow records, and when each had packets."""
    columns = np.stack([flows[name].astype(np.uint64) for name in FIVE_TUPLE], axis=1)
    if bidirectional:
        _put_smaller_end_first(columns)
    distinct, number = np.unique(columns, axis=0, return_inverse=True)
    order = np.lexsort((flows["time_first"], number.ravel()))
    numbers, spans = _merged(number.ravel()[order], flows["time_first"][order], flows["time_last"][order])
    tuples = np.zeros(len(distinct), TUPLE_DTYPE)
    for place, name in enumerate(FIVE_TUPLE):
        tuples[name] = distinct[:, place]
    tuples["current"] = -1
    tuples["first_span"] = np.searchsorted(numbers, np.arange(len(distinct)))
    tuples["stop_span"] = np.searchsorted(numbers, np.arange(len(distinct)), side="right")
    return tuples, spans


def _put_smaller_end_first(columns: np.ndarray) -> None:
    source, destination = columns[:, :3].copy(), columns[:, 3:6].copy()
    differs = source != destination
    first = differs.argmax(axis=1)
    rows = np.arange(len(columns))
    swap = source[rows, first] > destination[rows, first]
    columns[swap, :3], columns[swap, 3:6] = destination[swap], source[swap]


def _merged(numbers: np.ndarray, firsts: np.ndarray, lasts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return spans of time, each with the number of its five-tuple, of which those that overlapped have become one."""
    merged: list[tuple[int, int, int]] = []
    for number, first, last in zip(numbers.tolist(), firsts.tolist(), lasts.tolist(), strict=True):
        if merged and merged[-1][0] == number and first <= merged[-1][2]:
            merged[-1] = number, merged[-1][1], max(last, merged[-1][2])
        else:
            merged.append((number, first, last))
    spans = np.zeros(len(merged), SPAN_DTYPE)
    spans["first"], spans["last"] = [m[1] for m in merged], [m[2] for m in merged]
    return np.array([m[0] for m in merged], np.int64), spans
