# SPDX-License-Identifier: BSD-3-Clause
"""How many flows of like content a host began, or was sent, in the recent past."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, NamedTuple

import numpy as np
from sklearn.cluster import KMeans

from sklearn_docids._views.arrays import ArrayRule, bytes_of, exactly, up_to, words_of
from sklearn_docids._views.base import Observation, StoredView, spaced
from sklearn_docids._views.payload import Messages, first_messages, hashed
from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.context import DampedCounts
from sklearn_docids.capture.layouts import BACKWARD, FORWARD
from sklearn_docids.capture.lazy import pieces, selected
from sklearn_docids.capture.table import FlowTable

# Chosen on the validation part of the testbed (docs/benchmarks.md).
N_CLUSTERS, N_CLUSTERINGS = 40, 4
# Normal flows that clusters are found among, evenly spaced in time where there are more: k-means takes 24 KB for each.
MAX_CLUSTERED = 10_000
# Seconds after which a flow counts half.
HALF_LIVES = (1.0, 10.0, 60.0, 240.0)
# Share of normal flows of a cluster that had at most so many like them: the very largest is a matter of chance.
QUANTILE = 0.99
# Normal flows whose counts tell it, evenly spaced in time where there are more.
MAX_COUNTED = 2**18
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
        some = described(flows[spaced(len(flows), MAX_CLUSTERED)])
        n_clusters = _n_distinct(some, N_CLUSTERS)
        seeds = rng.randint(2**31 - 1, size=N_CLUSTERINGS)
        self.centers = [
            KMeans(n_clusters, n_init=1, random_state=int(seed)).fit(some).cluster_centers_.astype(np.float64)
            for seed in seeds
        ]

    def fit(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Learn how many flows alike are normal in each cluster."""
        self._learn(flows.rows.records, clusters_of(flows, self.centers))

    def _learn(self, records: Any, of_flows: np.ndarray) -> None:
        """Learn from flows whose clusters are known: uint8 (n_clusterings, n_flows)."""
        counted, memory = spaced(len(records), MAX_COUNTED), self.new_memory()
        kept = np.empty((len(self.centers), len(SIDES), len(counted), len(self.half_lives)))
        for piece in pieces(len(records)):
            counts = self._counts(records[piece], of_flows[:, piece], memory)
            here = slice(*np.searchsorted(counted, [piece.start, piece.stop]))
            kept[:, :, here] = counts[:, :, counted[here] - piece.start]
        self.clusterings = [
            Clustering(centers, _most(counts, clusters[counted], len(centers)))
            for centers, counts, clusters in zip(self.centers, kept, of_flows, strict=True)
        ]

    def fit_in_blocks(self, flows: FlowTable, blocks: np.ndarray, seed: int, rng: np.random.RandomState) -> np.ndarray:
        """Do what any view does, but find the clusters of flows once."""
        records, of_flows, learned = flows.rows.records, clusters_of(flows, self.centers), {}
        for block in np.unique(blocks).tolist():
            others, learned[block] = np.flatnonzero(blocks != block), copy.copy(self)
            learned[block]._learn(selected(records, others), of_flows[:, others])
        self._learn(records, of_flows)  # before there is another memory, of 134 MB at most
        found, memory = np.empty(len(flows)), self.new_memory()
        for piece in pieces(len(flows)):
            clusters, some = of_flows[:, piece], found[piece]
            counts = self._counts(records[piece], clusters, memory)
            for block in np.unique(blocks[piece]).tolist():
                own = blocks[piece] == block
                some[own] = learned[block]._excesses(counts[:, :, own], clusters[:, own]).max(axis=(1, 3)).mean(axis=0)
        return found

    def new_memory(self) -> list[list[DampedCounts]]:
        """Return counters: of each clustering, by source and by destination."""
        return [[DampedCounts(self.half_lives) for _ in SIDES] for _ in self.centers]

    def observe(self, flows: FlowTable, memory: list[list[DampedCounts]]) -> Observation:
        """Return the largest excess over sides and half-lives, as a logarithm, on average over clusterings."""
        clusters = clusters_of(flows, [clustering.centers for clustering in self.clusterings])
        counts = self._counts(flows.rows.records, clusters, memory)
        excesses = self._excesses(counts, clusters)
        return Observation(
            excesses.max(axis=(1, 3)).mean(axis=0),
            lambda row: self._reason(flows, row, counts[:, :, row], excesses[:, :, row]),
        )

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

    def _counts(self, records: np.ndarray, of_flows: np.ndarray, memory: list[list[DampedCounts]]) -> np.ndarray:
        """Return logarithms of counts, this flow included: (n_clusterings, 2, n_flows, n_half_lives)."""
        hosts, times = [(records[f"{side}_high"], records[f"{side}_low"]) for side in SIDES], records["time_first"]
        counts = [
            [
                counter.update(hashed(self.salt, *host, clusters), times)
                for host, counter in zip(hosts, counters, strict=True)
            ]
            for clusters, counters in zip(of_flows, memory, strict=True)
        ]
        return np.log(counts)

    def _excesses(self, counts: np.ndarray, of_flows: np.ndarray) -> np.ndarray:
        """Return how far counts are beyond what is normal in their clusters."""
        pairs = zip(self.clusterings, of_flows, strict=True)
        return counts - np.stack([clustering.most[:, clusters] for clustering, clusters in pairs])

    def _reason(self, flows: FlowTable, row: int, counts: np.ndarray, excesses: np.ndarray) -> str:
        place = np.unravel_index(excesses.argmax(), excesses.shape)
        _, side, half_life = place
        host = f"from {flows.src_ip[row]}" if side == 0 else f"to {flows.dst_ip[row]}"
        return (
            f"{_count(float(counts[place]))} flows like this {host} in {self.half_lives[half_life]:g} s; "
            f"normal are at most {_count(float(counts[place] - excesses[place]))}"
        )


def _n_distinct(rows: np.ndarray, most: int) -> int:
    """Return the number of different rows; ``most``, where there are more."""
    seen: set[bytes] = set()
    for row in rows:
        seen.add(row.tobytes())
        if len(seen) == most:
            break
    return len(seen)


def _most(counts: np.ndarray, clusters: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return what counts of flows, (2, n_flows, n_half_lives), are normal in each cluster."""
    most = np.zeros((len(counts), n_clusters, counts.shape[2]))
    for cluster in np.unique(clusters):
        most[:, cluster] = np.quantile(counts[:, clusters == cluster], QUANTILE, axis=1)
    return most


def _count(logarithm: float) -> str:
    """Return a damped count as text; below ten, a fraction of a flow still tells."""
    count = float(np.exp(logarithm))
    return f"{count:.0f}" if count >= 10 else f"{count:.1f}"


def described(flows: FlowTable) -> np.ndarray:
    """Return hashed trigrams of the first request and of the first response, float64 (n_flows, 2 * N_PLACES)."""
    found = np.empty((len(flows), 2 * N_PLACES))
    for first in range(0, len(flows), N_AT_ONCE):
        some = flows[first : first + N_AT_ONCE]
        for direction, half in ((FORWARD, slice(N_PLACES)), (BACKWARD, slice(N_PLACES, None))):
            found[first : first + N_AT_ONCE, half] = _trigrams(first_messages(some, direction))
    return found


def _trigrams(messages: Messages) -> np.ndarray:
    """Return square roots of the numbers of trigrams by place, of length 1: which there are says more than how many."""
    data = messages.data.astype(np.int64)
    places = (np.stack([data[:, :-2], data[:, 1:-1], data[:, 2:]], axis=2) @ FACTORS) % N_PLACES
    is_trigram = np.arange(places.shape[1]) < messages.lengths[:, None] - 2
    rows, columns = np.nonzero(is_trigram)
    numbers = np.bincount(rows * N_PLACES + places[rows, columns], minlength=len(data) * N_PLACES)
    found = np.sqrt(numbers.reshape(len(data), N_PLACES))
    return np.asarray(found / np.maximum(1e-9, np.linalg.norm(found, axis=1, keepdims=True)))


def clusters_of(flows: FlowTable, all_centers: list[np.ndarray]) -> np.ndarray:
    """Return the number of the nearest center of each flow: uint8 (n_clusterings, n_flows)."""
    halves = [(centers.T, 0.5 * (centers**2).sum(axis=1)) for centers in all_centers]
    found = np.empty((len(all_centers), len(flows)), np.uint8)
    for first in range(0, len(flows), N_AT_ONCE):
        places = described(flows[first : first + N_AT_ONCE])
        for of_clustering, (centers, half_squares) in zip(found, halves, strict=True):
            of_clustering[first : first + N_AT_ONCE] = (places @ centers - half_squares).argmax(axis=1)
    return found
