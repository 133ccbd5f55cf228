# SPDX-License-Identifier: BSD-3-Clause
"""What the recent past says about flows: counts of their keys, in one pass, streaming, in bounded memory.

Who sends the packets chooses keys and times. So keys are found by a keyed hash, no time is believed that lies before
the latest of its key, and a table that is full forgets the half of its keys that has not been used for longest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sklearn_docids.capture._native import kernel, part

# Not a time: the key has had no event. Clamped times lie behind it.
NEVER = np.iinfo(np.int64).min
LOW_HALF = np.uint64(0xFFFFFFFF)

KEY_DTYPE = np.dtype(
    [
        ("key", np.uint64),
        ("latest", np.int64),  # latest time of an event, ns; `NEVER` before the first
        ("used", np.int64),  # number of the last event
    ],
    align=True,
)


class Table(NamedTuple):
    """Keys and their slots, as the kernels take them. Whatever is counted lies in parallel arrays."""

    places: np.ndarray  # uint64, twice as long as `entries` or longer: hash in the upper half, slot + 1 in the lower
    entries: np.ndarray  # KEY_DTYPE
    n_keys: np.ndarray  # int64 (1,): slots taken
    n_events: np.ndarray  # int64 (1,)
    words: np.ndarray  # uint64 (3,): of the hash


@part
def hash_key(key, words):
    """Return 32 bits of a key: multilinear, so nobody who does not know the words can make keys collide."""
    return (words[0] + words[1] * (key & LOW_HALF) + words[2] * (key >> np.uint64(32))) >> np.uint64(32)


@part
def find_key(key, table):
    """Return (slot, -1 if the key is unknown; place of the key in the index, or where it would go)."""
    mask = len(table.places) - 1
    hash32 = hash_key(key, table.words)
    at = np.int64(hash32) & mask
    while table.places[at]:
        slot = np.int64(table.places[at] & LOW_HALF) - 1
        if table.places[at] >> np.uint64(32) == hash32 and table.entries[slot].key == key:
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
        table.places[at] = (hash_key(key, table.words) << np.uint64(32)) | np.uint64(slot + 1)
        table.entries[slot].key = key
        table.entries[slot].latest = NEVER
    return slot


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
        hash32 = hash_key(table.entries[slot].key, table.words)
        at = np.int64(hash32) & mask
        while table.places[at]:
            at = (at + 1) & mask
        table.places[at] = (hash32 << np.uint64(32)) | np.uint64(slot + 1)


class KeyTable:
    """At most ``max_keys`` keys, each with a slot in the arrays that count.

    Memory is that of all keys from the beginning, but the system gives it out as it is touched, slot by slot.
    """

    def __init__(self, max_keys: int):
        n_places = 2 ** (2 * max_keys - 1).bit_length()
        self.arrays = Table(
            places=np.zeros(n_places, np.uint64),
            entries=np.zeros(max_keys, KEY_DTYPE),
            n_keys=np.zeros(1, np.int64),
            n_events=np.zeros(1, np.int64),
            # Fresh words for each table: whoever chooses the keys cannot know which of them collide.
            words=np.frombuffer(bytearray(os.urandom(24)), np.uint64),
        )
        self.n_evicted = 0

    def __len__(self) -> int:
        return int(self.arrays.n_keys[0])

    def evict(self, *parallel: np.ndarray) -> np.ndarray:
        """Forget the half of the keys not used for longest; return the slots that stay, which move to the front.

        The ``parallel`` arrays, one row per slot, move with them; rows that become free are zero again.
        """
        n_keys = len(self)
        n_gone = (n_keys + 1) // 2
        kept = np.sort(np.argsort(self.arrays.entries["used"][:n_keys])[n_gone:])
        for array in (self.arrays.entries, *parallel):
            array[: len(kept)] = array[kept]
            array[len(kept) :] = np.zeros((), array.dtype)
        self.arrays.n_keys[0] = len(kept)
        self.arrays.places[:] = 0
        reindex(self.arrays)
        self.n_evicted += n_gone
        return kept


# --------------------------------------------------------------------------------------------------------------------
# Counts that decay


@kernel
def add_damped(first, keys, times, amounts, half_lives, table, sums, result):
    """Add events from ``first`` on; return the place of the first one for whose key there is no room."""
    for i in range(first, len(keys)):
        slot = enter_key(keys[i], table)
        if slot < 0:
            return i
        table.n_events[0] += 1
        entry = table.entries[slot]
        age = age_of(entry.latest, times[i])
        entry.latest, entry.used = max(entry.latest, times[i]), table.n_events[0]
        for j in range(len(half_lives)):
            sums[slot, j] = sums[slot, j] * np.exp2(-age / half_lives[j]) + amounts[i]
            result[i, j] = sums[slot, j]
    return len(keys)


@kernel
def read_damped(keys, times, half_lives, table, sums, result):
    """Fill in what the sums of keys have decayed to."""
    for i in range(len(keys)):
        slot, _ = find_key(keys[i], table)
        if slot >= 0:
            age = age_of(table.entries[slot].latest, times[i])
            for j in range(len(half_lives)):
                result[i, j] = sums[slot, j] * np.exp2(-age / half_lives[j])


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
        self.table = KeyTable(max_keys)
        self.sums = np.zeros((max_keys, len(self.half_lives)))

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
            Times, ns. One earlier than the latest of its key counts as that.
        amounts : ndarray of float64, shape (n,), default=None
            What is summed; None: 1 for each event.

        Returns
        -------
        ndarray of float64, shape (n, n_half_lives)
            Sum of ``amount * 2 ** (-age / half_life)`` over this and the earlier events of its key.
        """
        keys, times, amounts = _events(keys, times, amounts)
        result = np.empty((len(keys), len(self.half_lives)))
        done = 0
        while True:
            done = add_damped(
                done, keys, times, amounts, self.half_lives, self.table.arrays, self.sums, result
            )  # fmt: skip
            if done == len(keys):
                return result
            self.table.evict(self.sums)

    def peek(self, keys: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Return what the sums of keys are at given times, (n, n_half_lives), and add nothing; 0 for unknown keys."""
        keys, times, _ = _events(keys, times, None)
        result = np.zeros((len(keys), len(self.half_lives)))
        read_damped(keys, times, self.half_lives, self.table.arrays, self.sums, result)
        return result


def _durations(seconds: Sequence[float]) -> np.ndarray:
    durations = np.array(seconds, np.float64)
    if not (durations > 0).all():
        raise ValueError(f"half-lives and windows are longer than 0 s, got {list(seconds)}")
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
# Counts within windows

EVENT_DTYPE = np.dtype(
    [
        ("time", np.int64),  # ns, not before that of the key's event before
        ("amount", np.float64),
        ("slot", np.int64),  # of its key; -1: forgotten
        ("following", np.int64),  # place of the key's next event; -1: none
    ],
    align=True,
)


class Windows(NamedTuple):
    """The last events of all keys in a ring, and for each key and window the oldest event inside."""

    lengths: np.ndarray  # float64 (n_windows,), s
    events: np.ndarray  # EVENT_DTYPE (max_events,)
    newest: np.ndarray  # int64 (max_keys, 1): place of the key's newest event + 1; 0: none is held
    oldest: np.ndarray  # int64 (max_keys, n_windows): place of the oldest one inside + 1; 0: none is
    sums: np.ndarray  # float64 (max_keys, n_windows)
    n_dropped: np.ndarray  # int64 (1,)


@part
def leave(windows, slot, j):
    """Take the oldest event inside a window out of it."""
    event = windows.events[windows.oldest[slot, j] - 1]
    windows.oldest[slot, j] = event.following + 1
    windows.sums[slot, j] = windows.sums[slot, j] - event.amount if event.following >= 0 else 0.0


@kernel
def drop_event(windows, place):
    """Forget an event whose place in the ring is needed; count it if it was in a window still."""
    slot = windows.events[place].slot
    if slot < 0:
        return
    was_inside = False
    for j in range(len(windows.lengths)):
        if windows.oldest[slot, j] == place + 1:
            was_inside = True
            leave(windows, slot, j)
    if windows.newest[slot, 0] == place + 1:
        windows.newest[slot, 0] = 0
    windows.n_dropped[0] += was_inside


@kernel
def append_event(windows, slot, place, time, amount):
    """Store a key's event in the ring, and let the older ones leave the windows."""
    if windows.newest[slot, 0]:
        windows.events[windows.newest[slot, 0] - 1].following = place
    windows.newest[slot, 0] = place + 1
    event = windows.events[place]
    event.time, event.amount, event.slot, event.following = time, amount, slot, -1
    for j in range(len(windows.lengths)):
        windows.sums[slot, j] += amount
        if not windows.oldest[slot, j]:
            windows.oldest[slot, j] = place + 1
        while age_of(windows.events[windows.oldest[slot, j] - 1].time, time) >= windows.lengths[j]:
            leave(windows, slot, j)


@kernel
def add_to_windows(first, keys, times, amounts, table, windows, result):
    """Add events from ``first`` on; return the place of the first one for whose key there is no room."""
    for i in range(first, len(keys)):
        slot = enter_key(keys[i], table)
        if slot < 0:
            return i
        place = table.n_events[0] % len(windows.events)
        if table.n_events[0] >= len(windows.events):
            drop_event(windows, place)
        table.n_events[0] += 1
        entry = table.entries[slot]
        entry.latest, entry.used = max(entry.latest, times[i]), table.n_events[0]
        append_event(windows, slot, place, entry.latest, amounts[i])
        for j in range(len(windows.lengths)):
            result[i, j] = windows.sums[slot, j]
    return len(keys)


@kernel
def read_windows(keys, times, table, windows, result):
    """Fill in the sums that keys have within the windows at given times."""
    for i in range(len(keys)):
        slot, _ = find_key(keys[i], table)
        if slot < 0:
            continue
        time = max(table.entries[slot].latest, times[i])
        for j in range(len(windows.lengths)):
            total, at = windows.sums[slot, j], windows.oldest[slot, j] - 1
            while at >= 0 and age_of(windows.events[at].time, time) >= windows.lengths[j]:
                total -= windows.events[at].amount
                at = windows.events[at].following
            result[i, j] = total if at >= 0 else 0.0


class WindowCounts:
    """Sums over the events of a key in the last seconds.

    Exact as long as amounts are whole numbers. Each event enters and leaves each window once.

    Parameters
    ----------
    windows : sequence of float
        Lengths in seconds; an event of just that age is outside.
    max_keys : int, default=262_144
        Keys to remember. One more, and the half of them not used for longest is forgotten, in one sweep.
    max_events : int, default=1_048_576
        Events to remember, of all keys. One more, and the oldest is forgotten.
    """

    def __init__(self, windows: Sequence[float], max_keys: int = 262_144, max_events: int = 1_048_576):
        self.table = KeyTable(max_keys)
        self.windows = Windows(
            lengths=_durations(windows),
            events=np.zeros(max_events, EVENT_DTYPE),
            newest=np.zeros((max_keys, 1), np.int64),
            oldest=np.zeros((max_keys, len(windows)), np.int64),
            sums=np.zeros((max_keys, len(windows))),
            n_dropped=np.zeros(1, np.int64),
        )

    @property
    def n_evicted(self) -> int:
        """Keys forgotten to make room."""
        return self.table.n_evicted

    @property
    def n_dropped(self) -> int:
        """Events forgotten to make room while they were in a window."""
        return int(self.windows.n_dropped[0])

    def update(self, keys: np.ndarray, times: np.ndarray, amounts: np.ndarray | None = None) -> np.ndarray:
        """Add events, as `DampedCounts.update` does; return the sums within the windows, (n, n_windows)."""
        keys, times, amounts = _events(keys, times, amounts)
        result = np.empty((len(keys), len(self.windows.lengths)))
        done = 0
        while True:
            done = add_to_windows(done, keys, times, amounts, self.table.arrays, self.windows, result)
            if done == len(keys):
                return result
            self._evict()

    def peek(self, keys: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Return the sums of keys within the windows at given times, and add nothing; 0 for unknown keys."""
        keys, times, _ = _events(keys, times, None)
        result = np.zeros((len(keys), len(self.windows.lengths)))
        read_windows(keys, times, self.table.arrays, self.windows, result)
        return result

    def _evict(self) -> None:
        n_keys = len(self.table)
        kept = self.table.evict(self.windows.newest, self.windows.oldest, self.windows.sums)
        moved = np.full(n_keys + 1, -1)  # the last one stands for events that are forgotten already
        moved[kept] = np.arange(len(kept))
        held = self.windows.events[: int(self.table.arrays.n_events[0])]
        held["slot"] = moved[held["slot"]]
