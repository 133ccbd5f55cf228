# SPDX-License-Identifier: BSD-3-Clause
"""What all views share: they learn from flows of one time, and are asked about those of another."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sklearn_docids._views.arrays import ArrayRule
from sklearn_docids.capture.lazy import pieces, selected_flows
from sklearn_docids.capture.table import FlowTable

# Normal flows that distances are measured to, evenly spaced in time where there are more.
MAX_NEIGHBORS = 20_000


class Observation(NamedTuple):
    """What a view says of flows."""

    abnormality: np.ndarray  # float64 (n_flows,): the higher, the more abnormal
    reason: Callable[[int], str]  # takes a row; says in words why it is abnormal, if it is


class View(ABC):
    """A view of flows, in order of time.

    It is fitted on any number of flows, of a table that may be on disk, and looks at one piece of them after the other.
    ``observe`` is given one piece, which is in memory, and a memory, which ``new_memory`` makes: what it
    has seen before of the same stream. Only a view that looks at the past of a flow has one.
    """

    needs_payload: ClassVar[bool] = False
    groups_by_service: ClassVar[bool] = False

    def __init__(self, name: str):
        self.name = name

    @abstractmethod
    def fit(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Learn from normal flows."""

    @abstractmethod
    def observe(self, flows: FlowTable, memory: Any) -> Observation:
        """Return how abnormal flows are."""

    def new_memory(self) -> Any:
        """Return the memory of a stream that begins."""
        return None

    def prepare(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Learn what need not be learned anew without the flows of each block of time: nothing."""
        return

    def abnormality(self, flows: FlowTable) -> np.ndarray:
        """Return how abnormal any number of flows are, as one stream."""
        found, memory = np.empty(len(flows)), self.new_memory()
        for piece in pieces(len(flows)):
            found[piece] = self.observe(flows[piece], memory).abnormality
        return found

    def fit_in_blocks(self, flows: FlowTable, blocks: np.ndarray, seed: int, rng: np.random.RandomState) -> np.ndarray:
        """Learn from all flows; return how abnormal those of each block are to what is learned from the other blocks.

        What the view remembers is the whole past, its own block's included.
        """
        found = np.empty(len(flows))
        for block in np.unique(blocks):
            own, view = np.flatnonzero(blocks == block), copy.copy(self)
            view.fit(selected_flows(flows, np.flatnonzero(blocks != block)), np.random.RandomState(seed))
            if view.new_memory() is None:
                found[own] = view.abnormality(selected_flows(flows, own))
            else:
                found[own] = view.abnormality(flows)[own]
        self.fit(flows, rng)
        return found


class StoredView(View):
    """A view that a model file can hold."""

    # By name, what the arrays of `state` may be.
    rules: ClassVar[dict[str, ArrayRule]]

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Return what the view has learned."""

    @abstractmethod
    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over the state of another view, of which each array follows its rule.

        Raises
        ------
        ValueError
            The arrays do not fit each other.
        """


def spaced(n_rows: int, most: int) -> np.ndarray:
    """Return at most so many places, evenly spaced."""
    return np.linspace(0, n_rows - 1, min(n_rows, most)).round().astype(np.int64)


def check_layout(flows: FlowTable, names: list[str]) -> None:
    """Refuse a table without the payload rows that the named views need."""
    if names and flows.layout != "payload":
        raise ValueError(
            f"the views {', '.join(names)} need payload rows, but X has layout={flows.layout!r}: sample with "
            "FlowSampler(layout='payload', output='flows'), or leave these views out"
        )
