# SPDX-License-Identifier: BSD-3-Clause
"""How many flows of like content a host began, or was sent, in the recent past."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
from sklearn.cluster import KMeans

from sklearn_docids._views.arrays import ArrayRule, bytes_of, exactly, up_to, words_of
from sklearn_docids._views.base import MAX_NEIGHBORS, Observation, StoredView, spaced
from sklearn_docids._views.payload import Messages, first_messages, hashed
from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.context import DampedCounts
from sklearn_docids.capture.layouts import BACKWARD, FORWARD
from sklearn_docids.capture.table import FlowTable

# Chosen on the validation part of the testbed (docs/benchmarks.md).
N_CLUSTERS, N_CLUSTERINGS = 40, 4
# Seconds after which a flow counts half.
HALF_LIVES = (1.0, 10.0, 60.0, 240.0)
# Share of normal flows of a cluster that had at most so many like them: the very largest is a matter of chance.
QUANTILE = 0.99
# Trigrams of a message are hashed to so many places.
N_PLACES = 512
FACTORS = np.array([7919, 104_729, 1_299_709])
# Flows are described in groups that take some megabytes.
N_AT_ONCE = 4096
N_SALT = 7
SIDES = ("src", "dst")
# No logarithm of a number of flows is larger.
MOST_FLOWS = 50.0


class Clustering(NamedTuple):
    """One way to tell contents apart, and how many flows alike were normal."""

    centers: np.ndarray  # float64 (n_clusters, 2 * N_PLACES)
    most: np.ndarray  # float64 (2, n_clusters, n_half_lives): logarithms, of the source and of the destination


class ContentView(StoredView):
    """Number of flows of the same host in the same cluster of content, to the most that was normal there.

    Clusters are of hashed trigrams of the first request and response. Flows count half after each of the half-lives, so
    that a burst and a slow repetition show both.
    """

    needs_payload = True
    centers: list[np.ndarray]
    clusterings: list[Clustering]
    rules: ClassVar[dict[str, ArrayRule]] = {
        "salt": ArrayRule("uint8", (exactly(N_SALT), exactly(8))),
        "half_lives": ArrayRule("float64", (up_to(len(HALF_LIVES)),), 1e-3, 1e9),
        "centers": ArrayRule("float64", (up_to(N_CLUSTERINGS), up_to(N_CLUSTERS), exactly(2 * N_PLACES)), -2, 2),
        "most": ArrayRule(
            "float64",
            (up_to(N_CLUSTERINGS), exactly(len(SIDES)), up_to(N_CLUSTERS), up_to(len(HALF_LIVES))),
            0,
            MOST_FLOWS,
        ),
    }

    def prepare(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Draw the words of the hash, and find the clusters."""
        self.salt = np.frombuffer(rng.bytes(8 * N_SALT), np.uint64)
        span = (flows.time_first[-1] - flows.time_first[0]) / 1e9
        self.half_lives = [half_life for half_life in HALF_LIVES if half_life <= span] or [HALF_LIVES[0]]
        if len(self.half_lives) < len(HALF_LIVES):
            warn_caller(
                f"the training traffic spans {span:.3g} s, so nothing is known of what is normal in longer times: the "
                f"view {self.name!r} counts flows over {', '.join(f'{s:g}' for s in self.half_lives)} s alone"
            )
        some = described(flows[spaced(len(flows), MAX_NEIGHBORS)])
        n_clusters = min(N_CLUSTERS, len(np.unique(some, axis=0)))
        seeds = rng.randint(2**31 - 1, size=N_CLUSTERINGS)
        self.centers = [
            KMeans(n_clusters, n_init=1, random_state=int(seed)).fit(some).cluster_centers_.astype(np.float64)
            for seed in seeds
        ]

    def fit(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Learn how many flows alike are normal in each cluster."""
        self.clusterings = []
        of_flows = clusters_of(flows, self.centers)
        for centers, clusters, memory in zip(self.centers, of_flows, self.new_memory(), strict=True):
            counts = self._counts(flows, clusters, memory)
            most = np.zeros((len(SIDES), len(centers), len(self.half_lives)))
            for cluster in np.unique(clusters):
                most[:, cluster] = np.quantile(counts[:, clusters == cluster], QUANTILE, axis=1)
            self.clusterings.append(Clustering(centers, most))

    def new_memory(self) -> list[list[DampedCounts]]:
        """Return counters: of each clustering, by source and by destination."""
        return [[DampedCounts(self.half_lives) for _ in SIDES] for _ in self.centers]

    def observe(self, flows: FlowTable, memory: list[list[DampedCounts]]) -> Observation:
        """Return the largest excess over sides and half-lives, as a logarithm, on average over clusterings."""
        excesses, everything = [], []
        of_flows = clusters_of(flows, [clustering.centers for clustering in self.clusterings])
        for clustering, clusters, counters in zip(self.clusterings, of_flows, memory, strict=True):
            counts, most = self._counts(flows, clusters, counters), clustering.most[:, clusters]
            excesses.append((counts - most).max(axis=(0, 2)))
            everything.append((counts, most))
        return Observation(np.mean(excesses, axis=0), lambda row: self._reason(flows, row, everything))

    def state(self) -> dict[str, np.ndarray]:
        """Return the words of the hash, half-lives, and of all clusterings centers and counts."""
        centers, most = zip(*self.clusterings, strict=True)
        return {
            "salt": bytes_of(self.salt),
            "half_lives": np.array(self.half_lives),
            "centers": np.stack(centers),
            "most": np.stack(most),
        }

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take them over."""
        centers, most, half_lives = arrays["centers"], arrays["most"], arrays["half_lives"]
        if most.shape != (len(centers), len(SIDES), centers.shape[1], len(half_lives)):
            raise ValueError("centers, most and half_lives are of different clusterings")
        self.salt, self.half_lives = words_of(arrays["salt"]), half_lives.tolist()
        self.centers = list(centers)
        self.clusterings = [Clustering(*parts) for parts in zip(centers, most, strict=True)]

    def _counts(self, flows: FlowTable, clusters: np.ndarray, counters: list[DampedCounts]) -> np.ndarray:
        """Return logarithms of counts, this flow included: (2, n_flows, n_half_lives)."""
        records = flows.rows.records
        counts = [
            counter.update(
                hashed(self.salt, records[f"{side}_high"], records[f"{side}_low"], clusters), records["time_first"]
            )
            for side, counter in zip(SIDES, counters, strict=True)
        ]
        return np.log(counts)

    def _reason(self, flows: FlowTable, row: int, everything: list[tuple[np.ndarray, np.ndarray]]) -> str:
        excess = [(counts[:, row] - most[:, row]).max() for counts, most in everything]
        counts, most = (values[:, row] for values in everything[int(np.argmax(excess))])
        side, half_life = np.unravel_index((counts - most).argmax(), counts.shape)
        host = f"from {flows.src_ip[row]}" if side == 0 else f"to {flows.dst_ip[row]}"
        return (
            f"{_count(float(counts[side, half_life]))} flows like this {host} in {self.half_lives[half_life]:g} s; "
            f"normal are at most {_count(float(most[side, half_life]))}"
        )


def _count(logarithm: float) -> str:
    """Return a damped count as text; below ten, a fraction of a flow still tells."""
    count = float(np.exp(logarithm))
    return f"{count:.0f}" if count >= 10 else f"{count:.1f}"


def described(flows: FlowTable) -> np.ndarray:
    """Return hashed trigrams of the first request and of the first response, float64 (n_flows, 2 * N_PLACES)."""
    both = [_trigrams(first_messages(flows, direction)) for direction in (FORWARD, BACKWARD)]
    return np.concatenate(both, axis=1)


def _trigrams(messages: Messages) -> np.ndarray:
    """Return square roots of the numbers of trigrams by place, of length 1: which there are says more than how many."""
    data = messages.data.astype(np.int64)
    places = (np.stack([data[:, :-2], data[:, 1:-1], data[:, 2:]], axis=2) @ FACTORS) % N_PLACES
    is_trigram = np.arange(places.shape[1]) < messages.lengths[:, None] - 2
    rows, columns = np.nonzero(is_trigram)
    numbers = np.bincount(rows * N_PLACES + places[rows, columns], minlength=len(data) * N_PLACES)
    found = np.sqrt(numbers.reshape(len(data), N_PLACES))
    return np.asarray(found / np.maximum(1e-9, np.linalg.norm(found, axis=1, keepdims=True)))


def clusters_of(flows: FlowTable, all_centers: list[np.ndarray]) -> list[np.ndarray]:
    """Return for each clustering the number of the nearest center of each flow."""
    halves = [(centers.T, 0.5 * (centers**2).sum(axis=1)) for centers in all_centers]
    found: list[list[np.ndarray]] = [[] for _ in all_centers]
    for first in range(0, len(flows), N_AT_ONCE):
        places = described(flows[first : first + N_AT_ONCE])
        for of_clustering, (centers, half_squares) in zip(found, halves, strict=True):
            of_clustering.append((places @ centers - half_squares).argmax(axis=1))
    return [np.concatenate([*of_clustering, np.zeros(0, np.int64)]).astype(np.int64) for of_clustering in found]
