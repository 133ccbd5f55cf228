# SPDX-License-Identifier: BSD-3-Clause
"""The bytes of a flow as DOC-IDS sees them: distance to normal flows in the space of its class scores."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.neighbors import NearestNeighbors

from sklearn_docids._meta import seeded_clone
from sklearn_docids._views.arrays import ANY_NUMBER, ArrayRule, up_to
from sklearn_docids._views.base import MAX_NEIGHBORS, Observation, StoredView, spaced
from sklearn_docids._views.payload import first_messages, quoted
from sklearn_docids.capture.layouts import FORWARD
from sklearn_docids.capture.table import FlowTable

# Chosen on the validation part of the testbed (docs/benchmarks.md).
N_NEIGHBORS = 20
# Flows that the network is given, evenly spaced in time where there are more: with the parameters of the view it draws
# 16,000 of them.
MAX_TRAINING = 100_000
# Flows are compared in groups that take some megabytes.
N_AT_ONCE = 4096
# Fewer flows the network learns by heart, and new normal ones look abnormal: trained on 250, 500, 1000 and 4819 flows
# of the testbed, the view alone flags 19, 16, 5 and 1 % of those of the validation part, where 1 % was asked for.
MIN_FLOWS = 1000


class NetworkView(StoredView):
    """Distance to the 20th nearest normal flow in the space of h_c."""

    places: np.ndarray  # float64 (n, n_classes): of normal flows
    beginnings: np.ndarray  # uint8 (n, n_bytes): of their first requests
    rules: ClassVar[dict[str, ArrayRule]] = {
        "places": ArrayRule("float64", (up_to(MAX_NEIGHBORS), ANY_NUMBER)),
        "beginnings": ArrayRule("uint8", (up_to(MAX_NEIGHBORS), range(2**16))),
    }

    def __init__(self, name: str, detector: Any, reference: Any):
        super().__init__(name)
        self.detector = detector
        self.reference = reference

    def prepare(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Train the network."""
        some = flows.X[spaced(len(flows), MAX_TRAINING)] if len(flows) > MAX_TRAINING else flows.X
        self.detector = seeded_clone(self.detector, rng.randint(2**31 - 1)).fit(some, reference=self.reference)
        self.reference = None

    def fit(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Learn where normal flows are."""
        some = flows[spaced(len(flows), MAX_NEIGHBORS)]
        self.places = self._places_of(some)
        self.beginnings = first_messages(some, FORWARD).data if some.layout == "payload" else some.X[:, :0]

    def observe(self, flows: FlowTable, memory: Any) -> Observation:
        """Return the distance."""
        neighbors = NearestNeighbors(n_neighbors=min(N_NEIGHBORS, len(self.places)), algorithm="brute").fit(self.places)
        places = self._places_of(flows)
        found = [self._nearest(neighbors, places[i : i + N_AT_ONCE]) for i in range(0, len(places), N_AT_ONCE)]
        distances, nearest = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Observation(distances, lambda row: self._reason(flows[row], distances[row], nearest[row]))

    def _nearest(self, neighbors: NearestNeighbors, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distance to the last of the neighbours of each place, and the number of the first."""
        # Products tell which are near in a third of the time of a tree; distances by them depend on what else is asked.
        nearest = neighbors.kneighbors(places, return_distance=False)
        squares = ((places[:, None] - self.places[nearest]) ** 2).sum(axis=2)
        rows = np.arange(len(places))
        return np.sqrt(squares.max(axis=1)), nearest[rows, squares.argmin(axis=1)]

    def state(self) -> dict[str, np.ndarray]:
        """Return places and beginnings; the network is stored as that of any `DOCIDSDetector`."""
        return {name: getattr(self, name) for name in self.rules}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take them over, if they are of the network at hand."""
        self.places, self.beginnings = (arrays[name] for name in self.rules)
        n_classes = self.detector.network_.settings["n_classes"]
        if self.places.shape != (len(self.beginnings), n_classes):
            raise ValueError("places and beginnings are not of the same flows, or of another network")

    def _places_of(self, flows: FlowTable) -> np.ndarray:
        places = self.detector.class_scores(flows.X)
        if not np.isfinite(places).all():
            raise ValueError(
                f"the view {self.name!r}: class scores are not finite, its network's weights are of no use"
            )
        return np.asarray(places)

    def _reason(self, flow: FlowTable, distance: float, nearest: int) -> str:
        if flow.layout != "payload":
            return f"its bytes are at distance {distance:.3g} from those of normal flows"
        message, similar = first_messages(flow, FORWARD).data[0], self.beginnings[nearest]
        return (
            f"{_beginning(message)}; in the most similar normal flow, {_beginning(similar)} (distance {distance:.3g})"
        )


def _beginning(message: np.ndarray) -> str:
    return (
        f"the request begins {quoted(message.tobytes().rstrip(bytes(1)))}" if message.any() else "there is no request"
    )
