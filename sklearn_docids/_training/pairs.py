# SPDX-License-Identifier: BSD-3-Clause
"""Paired mini-batches: target rows, each batch with as many reference rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sklearn_docids._network.tensors import rows_to_tensor


def resident(rows: np.ndarray, device: torch.device) -> np.ndarray | Tensor:
    """Return rows on the graphics card where they take less than half of its free memory, otherwise as they are."""
    if device.type == "cuda" and isinstance(rows, np.ndarray) and rows.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return rows_to_tensor(rows).to(device)
    return rows


class PairedFlows(Dataset):
    """Target rows, and reference rows with class numbers.

    On the CPU nothing is copied or converted before a batch is drawn; on a graphics card that has room for them, all
    rows lie there, and drawing a batch moves nothing.
    """

    def __init__(
        self,
        target: np.ndarray,
        reference: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        device: str = "cpu",
    ):
        self.arrays = target, reference, labels
        self.device = torch.device(device)
        self.target = resident(target, self.device)
        self.reference = None if reference is None else resident(reference, self.device)
        if labels is not None:
            self._labels = labels
            self._by_class = np.argsort(labels, kind="stable")
            self._counts = np.unique(labels, return_counts=True)[1]  # of classes that are there
            self._starts = np.cumsum(self._counts) - self._counts

    def __len__(self) -> int:
        return len(self.target)

    def draw(self, rng: np.random.Generator) -> tuple[Any, Any, Tensor]:
        """Return an order of the target rows, as many reference rows, each class equally likely, and their classes."""
        order = rng.permutation(len(self))
        if self.reference is None:
            return self._index(self.target, order), None, torch.zeros(len(self), dtype=torch.int64, device=self.device)
        classes = rng.integers(len(self._counts), size=len(self))
        drawn = self._by_class[self._starts[classes] + rng.integers(self._counts[classes])]
        places = self._index(self.target, order), self._index(self.reference, drawn)
        return *places, torch.from_numpy(self._labels[drawn]).to(self.device)

    def pair(self, target_rows: Any, reference_rows: Any, labels: Any) -> tuple[dict[str, Tensor], Any]:
        """Return rows of both inputs, and class numbers, as the net takes them."""
        inputs = {"target": self._rows(self.target, target_rows)}
        if reference_rows is not None and self.reference is not None:
            inputs["reference"] = self._rows(self.reference, reference_rows)
        return inputs, labels

    def _index(self, rows: np.ndarray | Tensor, places: np.ndarray) -> np.ndarray | Tensor:
        return torch.from_numpy(places).to(self.device) if isinstance(rows, Tensor) else places

    def _rows(self, rows: Any, places: Any) -> Tensor:
        if not isinstance(rows, Tensor):
            drawn = rows_to_tensor(rows[places])
            return drawn if self.device.type == "cpu" else drawn.to(self.device, non_blocking=True)
        return rows[places] if isinstance(places, slice) else rows.index_select(0, places)


def batch_bounds(n_rows: int, batch_size: int) -> list[tuple[int, int]]:
    """Return first and last row of each batch; a remainder of 1 joins the batch before it.

    Batch normalisation and the compactness loss need two rows.
    """
    starts = list(range(0, n_rows, batch_size))
    if len(starts) > 1 and n_rows - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n_rows], strict=True))


class PairedBatches:
    """Epochs: the target once, in random order, each batch paired with newly drawn reference rows.

    What an epoch draws depends on seed and number of the epoch alone, so training that goes on after a break draws what
    it would have drawn without one.
    """

    def __init__(self, dataset: PairedFlows, batch_size: int, seed: int, n_epoch: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.n_epoch = n_epoch

    def __len__(self) -> int:
        return len(batch_bounds(len(self.dataset), self.batch_size))

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        target_rows, reference_rows, labels = self.dataset.draw(np.random.default_rng([self.seed, self.n_epoch]))
        self.n_epoch += 1
        for first, last in batch_bounds(len(self.dataset), self.batch_size):
            batch = slice(first, last)
            drawn = None if reference_rows is None else reference_rows[batch]
            yield self.dataset.pair(target_rows[batch], drawn, labels[batch])
