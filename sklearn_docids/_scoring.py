# SPDX-License-Identifier: BSD-3-Clause
"""Scoring with a fitted network: what is made of its features, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sklearn_docids._folding import DENSE_ROWS, FoldedNetwork, padded
from sklearn_docids._network import DOCIDSNetwork
from sklearn_docids._training import recording_gradients, rows_to_tensor

# Of a network and features g, (n, 256).
FeatureFunction = Callable[[DOCIDSNetwork, Tensor], Tensor]


def features_of(network: DOCIDSNetwork, features: Tensor) -> Tensor:
    """Return g."""
    return features


def class_scores_of(network: DOCIDSNetwork, features: Tensor) -> Tensor:
    """Return h_c."""
    return network.h_c(features)


def reconstruction_error_of(network: DOCIDSNetwork, features: Tensor) -> Tensor:
    """Return the mean squared difference between g and its reconstruction, per flow."""
    return (network.autoencoder(features) - features).square().mean(dim=1)


def abnormality_of(templates: np.ndarray | None) -> FeatureFunction:
    """Return the function whose opposite is the score: reconstruction error, or distance to the nearest template."""
    if templates is None:
        return reconstruction_error_of
    rows = torch.from_numpy(templates)

    def distance_of(network: DOCIDSNetwork, features: Tensor) -> Tensor:
        places = class_scores_of(network, features).cpu().double()  # not every device has float64
        with torch.no_grad():  # by the expanded square, the quick way; its rounding cannot matter to who is nearest
            nearest = (rows.square().sum(dim=1) - 2 * places @ rows.T).argmin(dim=1)
        squares = (places - rows[nearest]).square().sum(dim=1)
        # The gradient of the root is infinite at 0; a template is 0 from itself, and no byte takes it further off.
        return torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)

    return distance_of


def evaluate(function: FeatureFunction, network: DOCIDSNetwork, folded: FoldedNetwork, X: np.ndarray) -> np.ndarray:
    """Return ``function`` of the features of all rows, as float64.

    Rows that end in equally many zeros are computed together, whatever their order.
    """
    device = network.h_c.weight.device
    network.eval()
    parts = folded.parts_of(X)
    results = np.empty(0)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for part in np.unique(parts):
            rows = np.flatnonzero(parts == part)
            for first in range(0, len(rows), DENSE_ROWS):
                place = rows[first : first + DENSE_ROWS]
                features = folded.features(rows_to_tensor(X[place]).to(device), part)
                values = function(network, padded(features, DENSE_ROWS))[: len(place)].cpu().double().numpy()
                if len(results) != len(X):
                    results = np.empty((len(X), *values.shape[1:]))
                results[place] = values
    return results


def gradient(function: FeatureFunction, network: DOCIDSNetwork, X: np.ndarray) -> np.ndarray:
    """Return the gradient of a function of each row by the bytes of the row, as float64."""
    network.eval()
    results = []
    with recording_gradients(network.h_c.weight.device):
        for first in range(0, len(X), DENSE_ROWS):
            chunk = rows_to_tensor(X[first : first + DENSE_ROWS]).to(network.h_c.weight)
            flows = padded(chunk, DENSE_ROWS).requires_grad_()
            # Rows do not influence one another in evaluation, so the sum has the gradients of all of them.
            (by_byte,) = torch.autograd.grad(function(network, network.features(flows)).sum(), flows)
            results.append(by_byte[: len(chunk)].cpu().double().numpy())
    return np.concatenate(results)
