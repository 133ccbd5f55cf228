# SPDX-License-Identifier: BSD-3-Clause
"""Who was never seen to ask whom for what."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from sklearn_docids._views.arrays import ANY_NUMBER, ArrayRule, bytes_of, exactly, words_of
from sklearn_docids._views.base import Observation, StoredView
from sklearn_docids._views.payload import hashed, service_name, services
from sklearn_docids.capture.lazy import pieces
from sklearn_docids.capture.table import FlowTable

N_SALT = 11
KEYS = ("channels", "destinations", "services")


class NoveltyView(StoredView):
    """How many of (source, destination, service), (destination, service) and (service) are new."""

    seen: list[np.ndarray]  # of each of the three: sorted hashes
    rules: ClassVar[dict[str, ArrayRule]] = {
        "salt": ArrayRule("uint8", (exactly(N_SALT), exactly(8))),
        **{name: ArrayRule("uint8", (ANY_NUMBER, exactly(8))) for name in KEYS},
    }

    def prepare(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Draw the words of the hash, which whoever sends packets must not know."""
        self.salt = np.frombuffer(rng.bytes(8 * N_SALT), np.uint64)

    def fit(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Learn who asks whom for what."""
        self.seen = [np.zeros(0, np.uint64) for _ in KEYS]
        for piece in pieces(len(flows)):
            both = zip(self.seen, self._keys(flows[piece]), strict=True)
            self.seen = [np.union1d(seen, keys) for seen, keys in both]

    def observe(self, flows: FlowTable, memory: Any) -> Observation:
        """Return how many of the three are new; 3 where nobody ever asked for the service."""
        new = np.stack([_are_new(keys, seen) for keys, seen in zip(self._keys(flows), self.seen, strict=True)])
        return Observation(new.sum(axis=0).astype(float), lambda row: _reason(flows, row, int(new[:, row].sum())))

    def state(self) -> dict[str, np.ndarray]:
        """Return the words of the hash, and the hashes."""
        return {"salt": bytes_of(self.salt), **dict(zip(KEYS, map(bytes_of, self.seen), strict=True))}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take them over."""
        self.salt, self.seen = words_of(arrays["salt"]), [words_of(arrays[name]) for name in KEYS]
        for name, hashes in zip(KEYS, self.seen, strict=True):
            if not (hashes[1:] > hashes[:-1]).all():
                raise ValueError(f"{name} holds hashes that are not ascending and different")

    def _keys(self, flows: FlowTable) -> list[np.ndarray]:
        records, service = flows.rows.records, services(flows)
        destination = records["dst_high"], records["dst_low"]
        source = records["src_high"], records["src_low"]
        columns = ([*source, *destination, service], [*destination, service], [service])
        return [hashed(self.salt, *of_key) for of_key in columns]


def _are_new(keys: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return which keys are not among those seen, which are sorted, and at least one."""
    return np.asarray(seen[np.minimum(np.searchsorted(seen, keys), len(seen) - 1)] != keys)


def _reason(flows: FlowTable, row: int, n_new: int) -> str:
    service = service_name(services(flows[row])[0])
    source, destination = flows.src_ip[row], flows.dst_ip[row]
    return (
        "",
        f"{source} never asked {destination} for {service} before",
        f"{destination} was never asked for {service} before",
        f"{service} was never a destination here",
    )[n_new]
