# SPDX-License-Identifier: BSD-3-Clause
"""What the recent past says about flows: counts of their keys, in one pass, streaming, in bounded memory.

Who sends the packets chooses keys and times. So keys are found by a keyed hash, no time is believed that lies before
the latest of its key, and a table that is full forgets the half of its keys that has not been used for longest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sklearn_docids.capture._native import kernel, part, prefetch
from sklearn_docids.capture.hashing import hash_address
from sklearn_docids.capture.kernels import FLOW_DTYPE, RST

# Not a time: the key has had no event. Clamped times lie behind it.
NEVER = np.iinfo(np.int64).min
LOW_HALF = np.uint64(0xFFFFFFFF)

# What is remembered of each key. Whatever is counted has fields of its own before these: numba takes a record that
# begins with the fields of another for the same type.
KEY_FIELDS = [
    ("key", np.uint64),
    ("latest", np.int64),  # latest time of an event, ns; `NEVER` before the first
    ("used", np.int64),  # number of the last event
]
# An event that comes so many seconds late at most counts at its own time: flows that idle out come late, many at a
# time, and are no burst. One that is later still counts as now, or a clock that was set back would make blind.
MOST_LATE = 600.0
# Tables begin with room for so many keys, and grow at least fourfold.
FIRST_KEYS = 2**10


class Table(NamedTuple):
    """Keys and what is remembered of them, as the kernels take it."""

    places: np.ndarray  # uint32, twice as many as entries or more: slot + 1, 0 where there is none
    entries: np.ndarray  # `KEY_FIELDS` and others; all zero behind the last key
    n_keys: np.ndarray  # int64 (1,)
    n_events: np.ndarray  # int64 (1,)


@part
def hash_key(key, words):
    """Return 64 bits of a key, twice 32 of a multilinear hash.

    Whoever does not know the words cannot make keys collide: two of them do with probability 2**-64.
    """
    low, high = key & LOW_HALF, key >> np.uint64(32)
    upper = (words[0] + words[1] * low + words[2] * high) >> np.uint64(32)
    return (upper << np.uint64(32)) | (words[3] + words[4] * low + words[5] * high) >> np.uint64(32)


@part
def first_place(key, table):
    """Return where the search for a key begins."""
    return np.int64(key >> np.uint64(32)) & (len(table.places) - 1)


@part
def find_key(key, table):
    """Return (slot, -1 if the key is unknown; place of the key in the index, or where it would go)."""
    mask = len(table.places) - 1
    at = first_place(key, table)
    while table.places[at]:
        slot = np.int64(table.places[at]) - 1
        if table.entries[slot].key == key:
            return slot, at
        at = (at + 1) & mask
    return -1, at


@part
def enter_key(key, table):
    """Return the slot of a key, a new one if it is unknown; -1 if there is no room for it."""
    slot, at = find_key(key, table)
    if slot < 0 and table.n_keys[0] < len(table.entries):
        slot = table.n_keys[0]
        table.n_keys[0] += 1
        table.places[at] = slot + 1
        entry = table.entries[slot]
        entry.key, entry.latest, entry.used = key, NEVER, table.n_events[0] + 1
    return slot


@part
def use_key(entry, table, time):
    """Note an event of a key at a time that is not before its latest one."""
    table.n_events[0] += 1
    entry.latest, entry.used = time, table.n_events[0]


@part
def age_of(latest, time):
    """Return the seconds from the latest time of a key to now; 0 if the clock runs backwards, or is absurd."""
    # The difference of two times may need all of 64 bits.
    return np.float64(np.uint64(time) - np.uint64(latest)) * 1e-9 if time > latest else 0.0


@kernel
def reindex(table):
    """Enter all keys into an empty index."""
    mask = len(table.places) - 1
    for slot in range(table.n_keys[0]):
        key = table.entries[slot].key
        at = first_place(key, table)
        while table.places[at]:
            at = (at + 1) & mask
        table.places[at] = slot + 1


class KeyTable:
    """At most ``max_keys`` keys and what is remembered of them. The keys are hashes that nobody outside can foresee."""

    def __init__(self, max_keys: int, fields: Sequence[tuple[Any, ...]]):
        if max_keys < 1:
            raise ValueError(f"max_keys must be 1 or more, got {max_keys}")
        self.max_keys = max_keys
        self.n_evicted = 0
        n_entries = min(max_keys, FIRST_KEYS)
        self.arrays = Table(
            places=np.zeros(_n_places(n_entries), np.uint32),
            entries=np.zeros(n_entries, np.dtype([*fields, *KEY_FIELDS], align=True)),
            n_keys=np.zeros(1, np.int64),
            n_events=np.zeros(1, np.int64),
        )

    def __len__(self) -> int:
        return int(self.arrays.n_keys[0])

    def reserve(self, n_keys: int) -> None:
        """Grow, if need be and as far as it may, until there is room for so many more keys."""
        n_entries = min(self.max_keys, len(self) + n_keys)
        if n_entries <= len(self.arrays.entries):
            return
        n_entries = min(self.max_keys, max(n_entries, 4 * len(self.arrays.entries)))
        entries = np.zeros(n_entries, self.arrays.entries.dtype)
        _raw(entries)[: len(self.arrays.entries)] = _raw(self.arrays.entries)
        self.arrays = self.arrays._replace(places=np.zeros(_n_places(n_entries), np.uint32), entries=entries)
        reindex(self.arrays)

    def forget(self) -> None:
        """Make room in a full table: forget the half of the keys that has not been used for longest.

        The others move to the front.
        """
        entries = self.arrays.entries
        n_gone = (len(entries) + 1) // 2
        last_gone = np.partition(entries["used"], n_gone - 1)[n_gone - 1]
        kept = _raw(entries)[entries["used"] > last_gone]
        _raw(entries)[: len(kept)] = kept
        _raw(entries)[len(kept) :] = np.zeros((), kept.dtype)
        self.arrays.n_keys[0] = len(kept)
        self.arrays.places[:] = 0
        reindex(self.arrays)
        self.n_evicted += n_gone


def _raw(entries: np.ndarray) -> np.ndarray:
    """Return records as bytes: copied at once, not field by field, which takes ten times as long."""
    return entries.view((np.void, entries.itemsize))


def _random_words(n_words: int) -> np.ndarray:
    """Return the words of a hash, fresh ones for each object: who chooses what is hashed cannot know them."""
    return np.frombuffer(bytearray(os.urandom(8 * n_words)), np.uint64)


def _n_places(n_entries: int) -> int:
    return 2 ** (2 * n_entries - 1).bit_length()


# --------------------------------------------------------------------------------------------------------------------
# Counts that decay


@kernel
def add_damped(first, keys, times, amounts, half_lives, words, table, result):
    """Add events from ``first`` on; return the place of the first one for whose key there is no room."""
    for i in range(first, len(keys)):
        slot = enter_key(hash_key(keys[i], words), table)
        if slot < 0:
            return i
        entry = table.entries[slot]
        age, late = age_of(entry.latest, times[i]), age_of(times[i], entry.latest)
        if entry.latest == NEVER or late > MOST_LATE:
            late = 0.0
        use_key(entry, table, max(entry.latest, times[i]))
        for j in range(len(half_lives)):
            left = amounts[i] * np.exp2(-late / half_lives[j])
            entry.sums[j] = entry.sums[j] * np.exp2(-age / half_lives[j]) + left
            result[i, j] = max(entry.sums[j], amounts[i])
    return len(keys)


class DampedCounts:
    """Sums over the events of a key that decay with time.

    The damped incremental statistics of Kitsune (Mirsky et al., NDSS 2018, doi 10.14722/ndss.2018.23204). Sums are the
    same whether events come at once or one by one.

    Parameters
    ----------
    half_lives : sequence of float
        Times, in seconds, in which the weight of an event falls to a half.
    max_keys : int, default=262_144
        Keys to remember. One more, and the half of them not used for longest is forgotten, in one sweep.
    """

    def __init__(self, half_lives: Sequence[float], max_keys: int = 262_144):
        self.half_lives = _durations(half_lives)
        self.words = _random_words(6)
        self.table = KeyTable(max_keys, [("sums", np.float64, (len(self.half_lives),))])

    @property
    def n_evicted(self) -> int:
        """Keys forgotten to make room."""
        return self.table.n_evicted

    def update(self, keys: np.ndarray, times: np.ndarray, amounts: np.ndarray | None = None) -> np.ndarray:
        """Add events; return the sums of their keys with each of them.

        Parameters
        ----------
        keys : ndarray of uint64, shape (n,)
            Keys of the events, in their order.
        times : ndarray of int64, shape (n,)
            Times, ns. One earlier than the latest of its key counts at its own time, as far as something is left of it;
            one that is more than 600 s earlier, as the latest.
        amounts : ndarray of float64, shape (n,), default=None
            What is summed; None: 1 for each event.

        Returns
        -------
        ndarray of float64, shape (n, n_half_lives)
            Sum of ``amount * 2 ** (-age / half_life)`` over this and the earlier events of its key, at its latest time;
            at least the amount itself.
        """
        keys, times, amounts = _events(keys, times, amounts)
        self.table.reserve(len(keys))
        result = np.empty((len(keys), len(self.half_lives)))
        done = 0
        while True:
            done = add_damped(done, keys, times, amounts, self.half_lives, self.words, self.table.arrays, result)
            if done == len(keys):
                return result
            self.table.forget()


def _durations(seconds: Sequence[float]) -> np.ndarray:
    durations = np.array(seconds, np.float64)
    if not (durations > 0).all():
        raise ValueError(f"half-lives are longer than 0 s, got {list(seconds)}")
    return durations


def _events(
    keys: np.ndarray, times: np.ndarray, amounts: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the arrays of events as the kernels take them: of one type and layout each, or all would be compiled anew.

    Raises
    ------
    ValueError
        Their lengths differ, or an amount is not finite: its key would never recover.
    """
    keys, times = np.require(keys, np.uint64, ["C", "W"]), np.require(times, np.int64, ["C", "W"])
    amounts = np.ones(len(keys)) if amounts is None else np.require(amounts, np.float64, ["C", "W"])
    if not keys.shape == times.shape == amounts.shape == (len(keys),):
        raise ValueError(f"keys, times and amounts differ in shape: {keys.shape}, {times.shape}, {amounts.shape}")
    if not np.isfinite(amounts).all():
        raise ValueError("amounts hold values that are not finite")
    return keys, np.maximum(times, NEVER + 1), amounts


# --------------------------------------------------------------------------------------------------------------------
# The context of flows

# Half-lives in seconds; the place of the first one for what is distinct, and of that for intervals.
HALF_LIVES = (1, 10, 60, 600)
FIRST_DISTINCT, INTERVAL = 2, 3
N_COUNTS, N_DISTINCT = len(HALF_LIVES), len(HALF_LIVES) - FIRST_DISTINCT

_COUNTS = {
    "channel_flows": "flows of the same channel (both addresses, destination port, protocol), this one included",
    "channel_resets": "earlier flows of the channel with a RST from the destination",
    "source_flows": "flows of the same source address, this one included",
    "source_failed": "earlier flows of the source without payload from the destination, or with a RST",
}
_DISTINCT = {
    "source_destinations": "distinct destinations of the source, this one included, each as old as its last flow",
    "source_ports": "distinct destination ports of the source, this one included, each as old as its last flow",
}
_INTERVALS = "of the seconds between the beginnings of successive flows of the channel; damped, half-life 600 s"
CONTEXT_COLUMNS = {
    **{f"{name}_{s}": f"{what}; damped, half-life {s} s" for name, what in _COUNTS.items() for s in HALF_LIVES},
    **{
        f"{name}_{s}": f"{what}; damped, half-life {s} s"
        for name, what in _DISTINCT.items()
        for s in HALF_LIVES[FIRST_DISTINCT:]
    },
    "interval_mean": f"mean {_INTERVALS}; 0 for the first flow",
    "interval_spread": f"standard deviation {_INTERVALS}; 0 for the first two flows",
}
CONTEXT_DTYPE = np.dtype([(name, np.float32) for name in CONTEXT_COLUMNS])
# Places of the first columns of a channel and of a source, of what is distinct, and of the intervals.
CHANNEL_COLUMNS, SOURCE_COLUMNS = 0, 2 * N_COUNTS
DESTINATION_COLUMNS = 4 * N_COUNTS
PORT_COLUMNS = DESTINATION_COLUMNS + N_DISTINCT
INTERVAL_COLUMNS = PORT_COLUMNS + N_DISTINCT

COUNT_FIELDS = [("flows", np.float64, (N_COUNTS,)), ("marked", np.float64, (N_COUNTS,))]
SOURCE_FIELDS = [
    *COUNT_FIELDS,  # marked: those that failed
    ("destinations", np.float64, (N_DISTINCT,)),
    ("ports", np.float64, (N_DISTINCT,)),
    ("born", np.int64),  # number of the first event
]
CHANNEL_FIELDS = [
    *COUNT_FIELDS,  # marked: those that were reset
    ("weight", np.float64),  # of all intervals
    ("mean", np.float64),  # s
    ("squares", np.float64),  # weighted sum of squared deviations from the mean, s^2
]
# The tables, and what identifies their keys: a source; and of a source each channel, destination and port.
SOURCES, CHANNELS, DESTINATIONS, PORTS = range(4)
N_WORDS = 12
# Flows whose keys are looked for ahead, as memory answers late.
LOOKAHEAD = 32


class Context(NamedTuple):
    """All that is remembered, as the kernels take it."""

    sources: Table  # `SOURCE_FIELDS`
    channels: Table  # `CHANNEL_FIELDS`
    destinations: Table
    ports: Table
    words: np.ndarray  # uint64 (2, N_WORDS): of the hashes that make the keys
    ahead: np.ndarray  # uint64 (LOOKAHEAD, 4): keys of the next flows


@part
def hash_parts(flow, words):
    """Return 32 bits each of the source of a flow, and of it with its channel, its destination and its port."""
    source = words[0] + words[9] * np.uint64(flow.ip_version)
    source += hash_address(words, 1, flow.src_high, flow.src_low, flow.ip_version)
    destination = hash_address(words, 5, flow.dst_high, flow.dst_low, flow.ip_version)
    port = words[10] * np.uint64(flow.dst_port)
    channel = source + destination + port + words[11] * np.uint64(flow.protocol)
    half = np.uint64(32)
    return source >> half, channel >> half, (source + destination) >> half, (source + port) >> half


@part
def hash_flow(flow, words, keys):
    """Fill in the keys of a flow: twice 32 bits of a multilinear hash.

    Whoever does not know the words cannot make keys collide: two of them do with probability 2**-64.
    """
    upper, lower = hash_parts(flow, words[0]), hash_parts(flow, words[1])
    for j in range(4):
        keys[j] = (upper[j] << np.uint64(32)) | lower[j]


@part
def ask_for_place(key, table):
    """Ask memory for the place where the search for a key begins."""
    prefetch(table.places, first_place(key, table))


@part
def ask_for_entry(key, table):
    """Ask memory for the entry that most probably is that of a key."""
    place = table.places[first_place(key, table)]
    if place:
        prefetch(table.entries, np.int64(place) - 1)


@part
def read_ahead(flows, order, first, context):
    """Hash what identifies the next flows, and ask memory for what is remembered of it."""
    n_ahead = min(LOOKAHEAD, len(order) - first)
    for i in range(n_ahead):
        keys = context.ahead[i]
        hash_flow(flows[order[first + i]], context.words, keys)
        ask_for_place(keys[SOURCES], context.sources)
        ask_for_place(keys[CHANNELS], context.channels)
        ask_for_place(keys[DESTINATIONS], context.destinations)
        ask_for_place(keys[PORTS], context.ports)
    for i in range(n_ahead):
        keys = context.ahead[i]
        ask_for_entry(keys[SOURCES], context.sources)
        ask_for_entry(keys[CHANNELS], context.channels)
        ask_for_entry(keys[DESTINATIONS], context.destinations)
        ask_for_entry(keys[PORTS], context.ports)


@part
def decays_of(age):
    """Return what a weight of 1 has become after so many seconds, for each of `HALF_LIVES`.

    One power of 2 and products are quicker than four powers; the error grows to 1e-13 of the weight.
    """
    after_600 = np.exp2(age * (-1 / 600))
    after_60 = after_600**10
    after_10 = after_60**6
    return after_10**10, after_10, after_60, after_600


@part
def advance(entry, table, time):
    """Note a flow with its source or channel; return the seconds since the one before, 0 for the first."""
    time = max(time, NEVER + 1)
    age = age_of(entry.latest, time) if entry.latest != NEVER else 0.0
    use_key(entry, table, max(entry.latest, time))
    return age


@part
def count_flow(entry, is_marked, decays, out, at):
    """Add a flow to the counts of its source or channel, and say them; that of marked ones without this one."""
    for j in range(N_COUNTS):
        entry.flows[j] = entry.flows[j] * decays[j] + 1.0
        out[at + j] = entry.flows[j]
        out[at + N_COUNTS + j] = entry.marked[j] * decays[j]
        entry.marked[j] = entry.marked[j] * decays[j] + is_marked


@part
def count_distinct(counts, entry, table, source, decays, out, at):
    """Make a destination or port of a source count 1 again, whatever it has decayed to, and say the count.

    One that was met before the source was forgotten is not in its count.
    """
    left = decays_of(age_of(entry.latest, source.latest))
    is_counted = entry.latest != NEVER and entry.used >= source.born
    for j in range(N_DISTINCT):
        missing = 1.0 - left[FIRST_DISTINCT + j] if is_counted else 1.0
        counts[j] = counts[j] * decays[FIRST_DISTINCT + j] + missing
        out[at + j] = counts[j]
    # By the clock of the source, so that what has decayed is known exactly.
    use_key(entry, table, source.latest)


@part
def add_to_source(flow, source, destination, port, context, out):
    """Add a flow to what is remembered of its source, and say it."""
    if source.latest == NEVER:
        source.born = context.sources.n_events[0] + 1
    decays = decays_of(advance(source, context.sources, flow.time_first))
    has_failed = flow.payload_backward == 0 or (flow.tcp_flags_forward | flow.tcp_flags_backward) & RST != 0
    count_flow(source, has_failed, decays, out, SOURCE_COLUMNS)
    count_distinct(source.destinations, destination, context.destinations, source, decays, out, DESTINATION_COLUMNS)
    count_distinct(source.ports, port, context.ports, source, decays, out, PORT_COLUMNS)


@part
def add_interval(channel, interval, decay):
    """Add an interval to the weighted mean and sum of squares (West, CACM 22(9), 1979), the earlier ones decayed."""
    kept = channel.weight * decay
    channel.weight = kept + 1.0
    deviation = interval - channel.mean
    channel.mean += deviation / channel.weight
    channel.squares = channel.squares * decay + deviation * deviation * (kept / channel.weight)


@part
def add_to_channel(flow, channel, context, out):
    """Add a flow to what is remembered of its channel, and say it."""
    is_first = channel.latest == NEVER
    interval = advance(channel, context.channels, flow.time_first)
    decays = decays_of(interval)
    count_flow(channel, flow.tcp_flags_backward & RST != 0, decays, out, CHANNEL_COLUMNS)
    if not is_first:
        add_interval(channel, interval, decays[INTERVAL])
    out[INTERVAL_COLUMNS] = channel.mean
    out[INTERVAL_COLUMNS + 1] = 0.0 if is_first else np.sqrt(channel.squares / channel.weight)


@kernel
def add_flows(first, flows, order, context, result):
    """Add flows from ``first`` on, in an order; return (place of the first that lacks room, table that is full)."""
    for i in range(first, len(order)):
        ahead = (i - first) % LOOKAHEAD
        if ahead == 0:
            read_ahead(flows, order, i, context)
        keys = context.ahead[ahead]
        source = enter_key(keys[SOURCES], context.sources)
        channel = enter_key(keys[CHANNELS], context.channels)
        destination = enter_key(keys[DESTINATIONS], context.destinations)
        port = enter_key(keys[PORTS], context.ports)
        if min(source, channel, destination, port) < 0:
            return i, SOURCES if source < 0 else CHANNELS if channel < 0 else DESTINATIONS if destination < 0 else PORTS
        flow, out = flows[order[i]], result[order[i]]
        add_to_source(
            flow, context.sources.entries[source], context.destinations.entries[destination],
            context.ports.entries[port], context, out,
        )  # fmt: skip
        add_to_channel(flow, context.channels.entries[channel], context, out)
    return len(order), 0


class FlowContext:
    """What the past says about each flow, from the flows before it alone.

    Counts are damped (Kitsune; Mirsky et al., NDSS 2018, doi 10.14722/ndss.2018.23204): each flow weighs
    ``2 ** (-age / half_life)``, where its age runs from its beginning to that of the flow in question.
    `CONTEXT_COLUMNS` defines the columns. All goes by ``time_first``, on clocks of each source and of each channel
    that never run backwards: a flow that begins before the latest one of its source counts as if it began with it.

    That a flow failed or was reset is known at its end only; it counts for all later flows all the same, also for those
    that began before that end.

    Parameters
    ----------
    max_keys : int, default=262_144
        Sources to remember; and so many channels, pairs of source and destination, and pairs of source and destination
        port. One more of a kind, and the half of them not used for longest is forgotten, in one sweep: as if their
        flows had not been, but that a forgotten destination or port of a known source counts twice for a while when it
        is met again. Memory grows as it is needed, up to 85 MB by default, and 17 MB more during a sweep.

    Raises
    ------
    ValueError
        ``max_keys`` is less than 1.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.capture.context import FlowContext
    >>> from sklearn_docids.capture.kernels import FLOW_DTYPE
    >>> flows = np.zeros(3, FLOW_DTYPE)
    >>> flows["time_first"] = np.array([0, 60, 120]) * 10**9
    >>> context = FlowContext().update(flows)
    >>> context["source_flows_60"].tolist(), context["interval_mean"].tolist()
    ([1.0, 1.5, 1.75], [0.0, 60.0, 60.0])
    """

    def __init__(self, max_keys: int = 262_144):
        self.tables = [KeyTable(max_keys, fields) for fields in (SOURCE_FIELDS, CHANNEL_FIELDS, [], [])]
        self._words = _random_words(2 * N_WORDS).reshape(2, N_WORDS)
        self._ahead = np.zeros((LOOKAHEAD, 4), np.uint64)

    @property
    def n_evicted(self) -> int:
        """Keys forgotten to make room, of all kinds."""
        return sum(table.n_evicted for table in self.tables)

    def update(self, flows: np.ndarray) -> np.ndarray:
        """Add flows; return the context of each of them.

        Flows are taken in the order of ``time_first``, those of equal times in their own. Given in that order, they may
        come at once or one by one.

        Parameters
        ----------
        flows : ndarray of FLOW_DTYPE, shape (n_flows,)
            Records of flows, such as ``table.rows.records`` of a `FlowTable`.

        Returns
        -------
        structured ndarray, shape (n_flows,)
            One float32 field per name in `CONTEXT_COLUMNS`, rows in the order of ``flows``.

        Raises
        ------
        ValueError
            These are no records of flows.
        """
        if flows.dtype != FLOW_DTYPE or flows.ndim != 1:
            raise ValueError(f"expected records of flows, got an array of {flows.dtype} with shape {flows.shape}")
        # A view that nobody writes to, so that the kernel is compiled once: for read-only and other arrays.
        flows = np.ascontiguousarray(flows).view()
        flows.flags.writeable = False
        order = np.argsort(flows["time_first"], kind="stable")
        result = np.empty((len(flows), len(CONTEXT_COLUMNS)), np.float32)
        for table in self.tables:
            table.reserve(len(flows))
        done = 0
        while done < len(flows):
            sources, channels, destinations, ports = (table.arrays for table in self.tables)
            context = Context(sources, channels, destinations, ports, self._words, self._ahead)
            done, full = add_flows(done, flows, order, context, result)
            if done < len(flows):
                self.tables[full].forget()
        return result.view(CONTEXT_DTYPE)[:, 0]
