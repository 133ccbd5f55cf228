# SPDX-License-Identifier: BSD-3-Clause
"""Flows far enough from each other that they can be counted as different evidence."""

from __future__ import annotations

import numpy as np

from sklearn_docids._views.payload import hashed, services
from sklearn_docids.capture.table import FlowTable

# Of each channel, one flow in so many seconds. All flows of the testbed's own next period look like drift, thinned ones
# do not; with one in five minutes, too few are left (docs/design.md).
SECONDS = 60.0
SPACING_NS = int(SECONDS * 1e9)
# Keys that are remembered before those of the past are dropped.
MAX_KEYS = 100_000
# Whoever makes two channels look like one loses a flow that could be counted: the words need not be secret.
SALT = np.frombuffer(np.random.RandomState(0).bytes(8 * 11), np.uint64)


class Recent:
    """What was seen in the last minute, in bounded memory."""

    def __init__(self) -> None:
        self._times: dict[int, int] = {}

    def has(self, key: int, time: int) -> bool:
        """Return whether a key was added at most a minute before, or, where clocks are set back, after."""
        before = self._times.get(key)
        return before is not None and abs(time - before) < SPACING_NS

    def add(self, key: int, time: int) -> None:
        """Remember a key."""
        if len(self._times) >= MAX_KEYS:
            self._times = {old: seen for old, seen in self._times.items() if abs(time - seen) < SPACING_NS}
            if len(self._times) > MAX_KEYS // 2:  # a flood: looking through all of it each time would take too long
                self._times = {}
        self._times[key] = time


class Thinner:
    """Chooses one flow per channel (source, destination, service) and minute."""

    def __init__(self) -> None:
        self._channels = Recent()

    def sources(self, flows: FlowTable) -> list[int]:
        """Return a number per flow for its source."""
        records = flows.rows.records
        return hashed(SALT, records["src_high"], records["src_low"]).tolist()

    def chosen(self, flows: FlowTable) -> np.ndarray:
        """Return which of the next flows, in order of time, are chosen: bool (n_flows,)."""
        records, chosen = flows.rows.records, np.zeros(len(flows), bool)
        addresses = [records[f"{side}_{half}"] for side in ("src", "dst") for half in ("high", "low")]
        channels = hashed(SALT, *addresses, services(flows)).tolist()
        for row, (channel, time) in enumerate(zip(channels, flows.time_first.tolist(), strict=True)):
            if not self._channels.has(channel, time):
                self._channels.add(channel, time)
                chosen[row] = True
        return chosen
