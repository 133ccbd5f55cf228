# SPDX-License-Identifier: BSD-3-Clause
"""Whether a request is spelled as requests to its service are."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from sklearn_docids._views.arrays import ArrayRule, check_whole_and_ascending, exactly, up_to
from sklearn_docids._views.base import Observation, StoredView
from sklearn_docids._views.payload import MAX_SERVICE, first_messages, quoted, service_name, services
from sklearn_docids.capture.layouts import FORWARD
from sklearn_docids.capture.lazy import pieces
from sklearn_docids.capture.table import FlowTable

# Bytes of a request that are looked at: what it asks for comes first.
N_BYTES = 24
N_PAIRS = 65_536
# Services that are told apart; the rarer ones are one. Each takes 8 KiB.
MAX_SERVICES = 256
OTHER = -1


class RequestsView(StoredView):
    """Share of the pairs of neighbouring bytes of a request that no request to its service ever had."""

    needs_payload = True
    groups_by_service = True
    seen: dict[int, np.ndarray]  # by service: a bit per pair
    rules: ClassVar[dict[str, ArrayRule]] = {
        "services": ArrayRule("float64", (up_to(MAX_SERVICES + 1),), OTHER, MAX_SERVICE),
        "seen": ArrayRule("uint8", (up_to(MAX_SERVICES + 1), exactly(N_PAIRS // 8))),
    }

    def fit(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Learn the pairs of bytes in requests to each service."""
        names, sizes = np.unique(services(flows), return_counts=True)
        known = names[np.argsort(-sizes, kind="stable")[:MAX_SERVICES]]
        seen = {int(name): np.zeros(N_PAIRS, bool) for name in [*known, *([OTHER] if len(known) < len(names) else [])]}
        for piece in pieces(len(flows)):
            some = flows[piece]
            service, pairs, is_pair = services(some), *_pairs(some)
            service = np.where(np.isin(service, known), service, OTHER)
            for name in np.unique(service).tolist():
                of_service = service == name
                seen[name][pairs[of_service][is_pair[of_service]]] = True
        self.seen = {name: np.packbits(seen[name]) for name in sorted(seen)}

    def observe(self, flows: FlowTable, memory: Any) -> Observation:
        """Return the share; 1 for a service that was never seen, 0 where there is no request."""
        service, pairs, is_pair = services(flows), *_pairs(flows)
        is_new = is_pair.copy()
        for name in np.unique(service).tolist():
            rows = service == name
            seen = self.seen.get(name, self.seen.get(OTHER))
            if seen is not None:
                bits = (seen[pairs[rows] >> 3] >> (7 - (pairs[rows] & 7)).astype(np.uint8)) & 1
                is_new[rows] &= bits == 0
        shares = is_new.sum(axis=1) / np.maximum(1, is_pair.sum(axis=1))
        return Observation(shares, lambda row: _reason(flows, row, is_new[row], is_pair[row]))

    def state(self) -> dict[str, np.ndarray]:
        """Return services, and the pairs of each."""
        return {"services": np.array(list(self.seen), np.float64), "seen": np.stack(list(self.seen.values()))}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take them over."""
        services = arrays["services"]
        check_whole_and_ascending("services", services)
        if len(services) != len(arrays["seen"]):
            raise ValueError("services and seen are of different services")
        self.seen = dict(zip(services.astype(np.int64).tolist(), arrays["seen"], strict=True))


def _pairs(flows: FlowTable) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of neighbouring bytes as numbers, and which of them are there: both (n_flows, N_BYTES - 1)."""
    requests = first_messages(flows, FORWARD)
    data = requests.data[:, :N_BYTES].astype(np.int64)
    pairs = data[:, :-1] * 256 + data[:, 1:]
    return pairs, np.arange(pairs.shape[1]) < requests.lengths[:, None] - 1


def _reason(flows: FlowTable, row: int, is_new: np.ndarray, is_pair: np.ndarray) -> str:
    requests, service = first_messages(flows[row], FORWARD), service_name(services(flows[row])[0])
    message = quoted(requests.data[0, : requests.lengths[0]].tobytes())
    return (
        f"the request begins {message}: {is_new.sum()} of its first {is_pair.sum()} pairs of bytes were never in a "
        f"request to {service}"
    )
