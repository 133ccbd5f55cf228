# SPDX-License-Identifier: BSD-3-Clause
"""The networks of the paper's two baselines: autoencoders on the bytes of a flow."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from sklearn_docids._network.table1 import PairOutput
from sklearn_docids._network.tensors import StoredNetwork

KERNEL = 6  # as in the paper's Table 1
CODE_CHANNELS = 4


class ReconstructingNetwork(StoredNetwork):
    """An autoencoder on scaled bytes, in the form that training takes: its features are its input."""

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, n_columns: int, scale: float):
        super().__init__()
        self.settings = {"n_columns": n_columns, "scale": scale}
        self.scale = scale

    def code(self, flows: Tensor) -> Tensor:
        """Return the code of flow bytes, (n, n_columns) of any number type -> (n, n_code)."""
        return self.encoder(self.scaled(flows)).flatten(1)

    def scaled(self, flows: Tensor) -> Tensor:
        """Return flow bytes as the encoder takes them."""
        return flows.to(torch.float32) / self.scale

    def reconstructed(self, rows: Tensor) -> Tensor:
        """Return what is left of scaled rows behind encoder and decoder."""
        return self.decoder(self.encoder(rows))

    def forward(
        self, target: Tensor, reference: None = None, losses: Collection[str] = ("reconstruction",)
    ) -> PairOutput:
        """Return scaled bytes and their reconstruction; there are no class scores."""
        rows = self.scaled(target)
        return PairOutput(rows, None, self.reconstructed(rows), None)

    def squared_errors(self, flows: Tensor) -> Tensor:
        """Return the squared difference between each scaled byte and its reconstruction, (n, n_columns)."""
        rows = self.scaled(flows)
        return (self.reconstructed(rows) - rows).square()

    def squared_error(self, flows: Tensor) -> Tensor:
        """Return the mean of these, per flow."""
        return self.squared_errors(flows).mean(dim=1)


class DenseAutoencoder(ReconstructingNetwork):
    """n_columns -> 128 -> 64 -> 128 -> n_columns: the paper's autoencoder, on bytes instead of features."""

    def __init__(self, n_columns: int, scale: float):
        super().__init__(n_columns, scale)
        self.encoder = nn.Sequential(nn.Linear(n_columns, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, n_columns))
        self.float()


class Cropped(nn.Module):
    """Cut rows, (n, 1, length), to the length that they had before the encoder: (n, length)."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        """Return the beginnings."""
        return x[:, 0, : self.length]


class ConvAutoencoder(ReconstructingNetwork):
    """Three convolutions that halve the length, to 4 channels, and their mirror image: a code of half the input."""

    def __init__(self, n_columns: int, scale: float):
        super().__init__(n_columns, scale)

        def halve(before: int, behind: int) -> nn.Conv1d:
            return nn.Conv1d(before, behind, KERNEL, stride=2, padding=3)

        def double(before: int, behind: int) -> nn.ConvTranspose1d:
            return nn.ConvTranspose1d(before, behind, KERNEL, stride=2, padding=2)

        self.encoder = nn.Sequential(
            nn.Unflatten(1, (1, n_columns)),
            halve(1, 32), nn.ReLU(),
            halve(32, 16), nn.ReLU(),
            halve(16, CODE_CHANNELS),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            double(CODE_CHANNELS, 16), nn.ReLU(),
            double(16, 32), nn.ReLU(),
            double(32, 1),
            Cropped(n_columns),
        )  # fmt: skip
        self.float()
