# SPDX-License-Identifier: BSD-3-Clause
"""A view of the user's own: any outlier detector on columns of the table."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_docids._meta import seeded_clone
from sklearn_docids._views.base import Observation, View
from sklearn_docids.capture.context import CONTEXT_COLUMNS, FlowContext
from sklearn_docids.capture.table import COLUMNS, PACKET_COLUMNS, FlowTable


class ColumnsView(View):
    """The opposite of the score of a detector of scikit-learn's kind."""

    def __init__(self, name: str, detector: Any, columns: list[str]):
        super().__init__(name)
        self.detector = detector
        self.columns = columns

    def fit(self, flows: FlowTable, rng: np.random.RandomState) -> None:
        """Fit a clone of the detector."""
        values = self._values(flows, self.new_memory())
        self.detector = seeded_clone(self.detector, rng.randint(2**31 - 1))
        try:
            self.detector.fit(values)
        except Exception as error:
            error.add_note(f"in fit of the view {self.name!r}, {type(self.detector).__name__} on {self.columns}")
            raise

    def new_memory(self) -> FlowContext | None:
        """Return the context of a stream that begins, if a column is of it."""
        return FlowContext() if set(self.columns) & set(CONTEXT_COLUMNS) else None

    def observe(self, flows: FlowTable, memory: FlowContext | None) -> Observation:
        """Return how abnormal the detector finds flows."""
        values = self._values(flows, memory)
        scores = -np.asarray(self.detector.score_samples(values), dtype=np.float64)
        if scores.shape != (len(flows),) or not np.isfinite(scores).all():
            raise ValueError(f"the view {self.name!r}: its detector gave scores that are not one number per flow")
        name = type(self.detector).__name__
        return Observation(scores, lambda row: f"{name} on {_listed(self.columns, values[row])}")

    def _values(self, flows: FlowTable, memory: FlowContext | None) -> np.ndarray:
        context = None if memory is None else memory.update(flows.rows.records)
        found = []
        for name in self.columns:
            column = flows[name] if context is None or name not in CONTEXT_COLUMNS else context[name]
            if not (np.issubdtype(column.dtype, np.number) or column.dtype == bool):
                raise ValueError(f"the view {self.name!r}: the column {name!r} holds no numbers")
            if not np.isfinite(column).all():
                raise ValueError(f"the view {self.name!r}: the column {name!r} has NaN or infinity")
            found.append(column.reshape(len(flows), -1))
        return np.concatenate(found, axis=1).astype(np.float64)


def check_columns(name: str, columns: Any) -> list[str]:
    """Return the names of columns; refuse those that a table does not have."""
    known = {*COLUMNS, *PACKET_COLUMNS, *CONTEXT_COLUMNS}
    if isinstance(columns, str) or not columns or not all(isinstance(column, str) for column in columns):
        raise ValueError(f"the view {name!r} needs a list of names of columns, got {columns!r}")
    unknown = [column for column in columns if column not in known]
    if unknown:
        raise ValueError(f"the view {name!r} needs the columns {unknown}, which no FlowTable has")
    return list(columns)


def _listed(columns: list[str], values: np.ndarray) -> str:
    if len(values) > len(columns):
        return ", ".join(columns)
    return ", ".join(f"{name} {value:.4g}" for name, value in zip(columns, values, strict=True))
