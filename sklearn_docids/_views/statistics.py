# SPDX-License-Identifier: BSD-3-Clause
"""How long a flow lasts, and what it carries in each direction."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from sklearn_docids._views.arrays import ArrayRule, exactly, up_to
from sklearn_docids._views.base import MAX_NEIGHBORS, Observation, StoredView, spaced
from sklearn_docids.capture.kernels import RST
from sklearn_docids.capture.lazy import pieces
from sklearn_docids.capture.table import FlowTable

COUNTS = (
    "packets_forward", "packets_backward", "bytes_forward", "bytes_backward", "payload_forward", "payload_backward",
)  # fmt: skip
NAMES = ("duration", *COUNTS, "no payload came back", "reset")
N_NEIGHBORS = 5
# One flow of a million that differs by 1 from all others makes a deviation of 1e-3.
CONSTANT = 1e-6
# No logarithm of a number of 64 bits is larger, and rounding makes no smaller spread of numbers up to it.
LARGEST_STATISTIC, LEAST_SPREAD = 45.0, 1e-30


class StatisticsView(StoredView):
    """Mean distance to the nearest normal flows by nine statistics, standardised."""

    mean: np.ndarray
    spread: np.ndarray
    places: np.ndarray  # float64 (n, 9)
    neighbors: NearestNeighbors  # among the places
    rules: ClassVar[dict[str, ArrayRule]] = {
        "mean": ArrayRule("float64", (exactly(len(NAMES)),), 0, LARGEST_STATISTIC),
        "spread": ArrayRule("float64", (exactly(len(NAMES)),), LEAST_SPREAD, LARGEST_STATISTIC),
        "places": ArrayRule("float64", (up_to(MAX_NEIGHBORS), exactly(len(NAMES)))),
    }

    def fit(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Learn which statistics are normal."""
        scaler = StandardScaler()
        for piece in pieces(len(flows)):
            scaler.partial_fit(statistics_of(flows[piece]))
        self.mean, self.spread = np.asarray(scaler.mean_), np.sqrt(scaler.var_)
        # What never varied says more than nothing where it does vary. Its deviation may be other than 0 by rounding.
        self.spread[self.spread < CONSTANT] = 1.0
        self._place(self._standardised(statistics_of(flows[spaced(len(flows), MAX_NEIGHBORS)])))

    def observe(self, flows: FlowTable, memory: Any) -> Observation:
        """Return the logarithm of 1 and the distance."""
        places = self._standardised(statistics_of(flows))
        distances, nearest = self.neighbors.kneighbors(places)
        return Observation(
            np.log1p(distances.mean(axis=1)), lambda row: self._reason(places[row], self.places[nearest[row]])
        )

    def state(self) -> dict[str, np.ndarray]:
        """Return mean, spread and places."""
        return {name: getattr(self, name) for name in self.rules}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take them over, if they are places of statistics."""
        self.mean, self.spread, self.places = (arrays[name] for name in self.rules)
        values = self.places * self.spread + self.mean
        if not ((values > -1) & (values < LARGEST_STATISTIC + 1)).all():
            raise ValueError("its statistics are not those of flows")
        self._place(self.places)

    def _place(self, places: np.ndarray) -> None:
        """Take over normal flows; the tree of them is made once, as a stream asks for few flows at a time."""
        self.places = places
        self.neighbors = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, len(places))).fit(places)

    def _standardised(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.spread

    def _reason(self, place: np.ndarray, neighbors: np.ndarray) -> str:
        normal = neighbors.mean(axis=0)
        most = int(np.abs(place - normal).argmax())
        values = np.array([place[most], normal[most]]) * self.spread[most] + self.mean[most]
        here, there = (_text(value, most) for value in values)
        return f"{NAMES[most].replace('_', ' ')} {here}; in the most similar normal flows {there}"


def _text(value: float, number: int) -> str:
    """Return the value of a statistic as a person would write it."""
    if number == 0:
        return f"{np.expm1(value) / 1000:.3g} s"
    return f"{np.expm1(value):.4g}" if number <= len(COUNTS) else f"{max(0.0, value):.0%}"


def statistics_of(flows: FlowTable) -> np.ndarray:
    """Return logarithms of duration (ms) and of packets, bytes and payload each way, and two marks of failure."""
    duration = np.maximum(0, flows.time_last - flows.time_first) / 1e6
    logarithms = [np.log1p(duration), *(np.log1p(flows[name]) for name in COUNTS)]
    is_reset = (flows.tcp_flags_forward | flows.tcp_flags_backward) & RST != 0
    return np.stack([*logarithms, flows.payload_backward == 0, is_reset], axis=1).astype(np.float64)
