# SPDX-License-Identifier: BSD-3-Clause
"""Scoring with a fitted network: what it computes, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sklearn_docids._network import DOCIDSNetwork
from sklearn_docids._training import rows_to_tensor

# Every chunk has this many rows, the last one padded: matrix kernels choose their order of summation by shape, so
# with one shape the score of a flow does not depend on the flows beside it. Larger chunks leave the cache.
CHUNK_ROWS = 64


def features_of(network: DOCIDSNetwork, flows: Tensor) -> Tensor:
    """Return g."""
    return network.features(flows)


def class_scores_of(network: DOCIDSNetwork, flows: Tensor) -> Tensor:
    """Return h_c."""
    return network.h_c(network.features(flows))


def reconstruction_error_of(network: DOCIDSNetwork, flows: Tensor) -> Tensor:
    """Return the mean squared difference between g and its reconstruction, per flow."""
    features = network.features(flows)
    return (network.autoencoder(features) - features).square().mean(dim=1)


def abnormality_of(templates: np.ndarray | None) -> Callable[[DOCIDSNetwork, Tensor], Tensor]:
    """Return the function whose opposite is the score: reconstruction error, or distance to the nearest template."""
    if templates is None:
        return reconstruction_error_of
    rows = torch.from_numpy(templates)

    def distance_of(network: DOCIDSNetwork, flows: Tensor) -> Tensor:
        # Differences, not the expanded square: the result of a row must not depend on the rows beside it.
        differences = class_scores_of(network, flows).double()[:, None, :] - rows.to(flows.device)[None, :, :]
        squares = differences.square().sum(dim=2).amin(dim=1)
        # The gradient of the root is infinite at 0; a template is 0 from itself, and no byte takes it further off.
        return torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)

    return distance_of


def gradient_of(
    function: Callable[[DOCIDSNetwork, Tensor], Tensor],
) -> Callable[[DOCIDSNetwork, Tensor], Tensor]:
    """Return the gradient of a function of each row by the bytes of the row."""

    def gradient(network: DOCIDSNetwork, flows: Tensor) -> Tensor:
        with torch.enable_grad():
            flows = flows.to(network.h_c.weight.dtype).requires_grad_()
            # Rows do not influence one another in evaluation, so the sum has the gradients of all of them.
            (by_byte,) = torch.autograd.grad(function(network, flows).sum(), flows)
        return by_byte

    return gradient


def evaluate(function: Callable[[DOCIDSNetwork, Tensor], Tensor], network: DOCIDSNetwork, X: np.ndarray) -> np.ndarray:
    """Return ``function`` of all rows, as float64."""
    device = network.h_c.weight.device
    network.eval()
    results = []
    with torch.no_grad():
        for first in range(0, len(X), CHUNK_ROWS):
            chunk = rows_to_tensor(X[first : first + CHUNK_ROWS])
            n_rows = len(chunk)
            if n_rows < CHUNK_ROWS:
                chunk = torch.cat([chunk, chunk.new_zeros(CHUNK_ROWS - n_rows, chunk.shape[1])])
            results.append(function(network, chunk.to(device))[:n_rows].cpu().double().numpy())
    return np.concatenate(results)


def conformal_threshold(scores: np.ndarray, rate: float) -> float:
    """Return the threshold below which a new score falls with a probability of at most ``rate``.

    Of n held-out scores and a new one, drawn alike, each is equally likely to be the k-th lowest: the new one is below
    the k-th lowest held-out score with probability k / (n + 1) at most.
    """
    # The product may fall just short of the whole number it stands for: 0.29 * 100 < 29.
    k = int(rate * (len(scores) + 1) + 1e-9)
    return float(np.sort(scores)[k - 1])
