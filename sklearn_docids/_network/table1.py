# SPDX-License-Identifier: BSD-3-Clause
"""The network of the paper's Table 1: features g, class scores h_c, autoencoder on g."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from sklearn_docids._network.losses import LOSSES
from sklearn_docids._network.tensors import StoredNetwork

N_FEATURES_G = 256
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class PairOutput(NamedTuple):
    """What one pair of mini-batches yields; None for what no loss looks at."""

    target_features: Tensor  # (n, 256)
    target_class_scores: Tensor | None  # (n, n_classes)
    reconstruction: Tensor | None  # (n, 256)
    reference_class_scores: Tensor | None  # (n, n_classes)


def pooled_length(n_columns: int) -> int:
    """Return the length behind the two convolutions: 320 -> 325 -> 162 -> 167 -> 83. At least 4 for any input."""
    return ((n_columns + 5) // 2 + 5) // 2


class FlattenPositions(nn.Module):
    """(n, channels, 1, length) -> (n, length * channels): all channels of a position, then those of the next.

    The other order means the same network; this one is how the numbers lie in memory, so nothing is copied.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return one row per flow."""
        return x.permute(0, 2, 3, 1).flatten(1)


class FeatureExtractor(nn.Sequential):
    """g: two convolutions over the bytes of a flow and two dense layers, (n, 1, 1, n_columns) -> (n, 256).

    The convolutions have one dimension of length 1 more than they need, and channels last in memory: that is the form
    for which torch has its quick kernels.
    """

    def __init__(self, n_columns: int, dense_activation: str | None):
        activation = {None: nn.Identity, "relu": nn.ReLU}[dense_activation]
        super().__init__(
            nn.Conv2d(1, 32, kernel_size=(1, 6), padding=(0, 5)),
            nn.ReLU(),
            nn.BatchNorm2d(32),
            nn.MaxPool2d((1, 2)),
            nn.Conv2d(32, 64, kernel_size=(1, 6), padding=(0, 5)),
            nn.ReLU(),
            nn.BatchNorm2d(64),
            nn.MaxPool2d((1, 2)),
            FlattenPositions(),
            nn.Linear(64 * pooled_length(n_columns), 1024),
            activation(),
            nn.BatchNorm1d(1024),
            nn.Linear(1024, N_FEATURES_G),
            activation(),
            nn.BatchNorm1d(N_FEATURES_G),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Autoencoder(nn.Sequential):
    """256 -> 128 -> 64 -> 128 -> 256; linear at the end, because features have both signs."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(N_FEATURES_G, 128),
            nn.ReLU(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Linear(128, N_FEATURES_G),
        )


class DOCIDSNetwork(StoredNetwork):
    """The two-input network: reference and target share g and h_c, the autoencoder sees the target alone."""

    def __init__(
        self,
        n_columns: int,
        n_classes: int,
        batch_norm: str = "separate",
        dense_activation: str | None = None,
        scale: float = 255.0,
    ):
        super().__init__()
        self.settings = {
            "n_columns": n_columns,
            "n_classes": n_classes,
            "batch_norm": batch_norm,
            "dense_activation": dense_activation,
            "scale": scale,
        }
        self.batch_norm = batch_norm
        self.scale = scale
        self.g = FeatureExtractor(n_columns, dense_activation)
        self.h_c = nn.Linear(N_FEATURES_G, n_classes)
        self.autoencoder = Autoencoder()
        self.float()  # whatever torch's default type is

    def freeze(self, n_layers: int) -> None:
        """Let the first layers of g keep their weights in training; running statistics still follow."""
        for layer in list(self.g)[:n_layers]:
            layer.requires_grad_(False)

    def scaled(self, flows: Tensor) -> Tensor:
        """Return flow bytes, (n, n_columns) of any number type, as g takes them."""
        # Scaled here, so that bytes travel as bytes, and by a constant: a scale taken from a capture would leak it.
        return (flows.to(self.h_c.weight.dtype) / self.scale)[:, None, None, :]

    def features(self, flows: Tensor) -> Tensor:
        """Return g of flow bytes, (n, n_columns) of any number type -> (n, 256)."""
        return self.g(self.scaled(flows))

    def forward(self, target: Tensor, reference: Tensor | None = None, losses: Collection[str] = LOSSES) -> PairOutput:
        """Return features of the target, and of the rest what the named losses look at."""
        reference_scores = class_scores = reconstruction = None
        if reference is None:
            features = self.features(target)
        else:
            features, reference_features = self._paired_features(target, reference)
            if "descriptiveness" in losses:
                reference_scores = self.h_c(reference_features)
        if "compactness" in losses:
            class_scores = self.h_c(features)
        if "reconstruction" in losses:
            reconstruction = self.autoencoder(features)
        return PairOutput(features, class_scores, reconstruction, reference_scores)

    def _paired_features(self, target: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return g of both inputs, normalised as ``batch_norm`` says."""
        n_target = len(target)
        if self.batch_norm == "joint":
            features = self.features(torch.cat([target, reference]))
            return features[:n_target], features[n_target:]
        target, reference = self.scaled(target), self.scaled(reference)
        for layer in self.g:
            if isinstance(layer, nn.Linear):
                # One product for both inputs: the gradients of the largest matrices are summed once, inside it.
                both = layer(torch.cat([target, reference]))
                target, reference = both[:n_target], both[n_target:]
            elif isinstance(layer, BATCH_NORMS) and self.batch_norm == "target" and self.training:
                # By the statistics of the batch, which stay out of the running ones.
                reference = batch_norm(reference, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
                target = layer(target)
            else:
                reference, target = layer(reference), layer(target)
        return target, reference
