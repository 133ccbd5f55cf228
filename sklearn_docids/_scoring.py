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

# Points at which a gradient is taken on the way to a flow. On 100 flows of the testbed's
# validation part the sum over a flow was off by 3 % in the median, with 8 points by 15 %.
N_PATH_STEPS = 32
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


def abnormality_of(templates: np.ndarray | None, n_neighbors: int) -> FeatureFunction:
    """Return the function whose opposite is the score: reconstruction error, or mean distance to the nearest templates.

    Fewer templates than ``n_neighbors`` are all of them.
    """
    if templates is None:
        return reconstruction_error_of
    rows = torch.tensor(templates)  # a copy: the array may be mapped read-only
    k = min(n_neighbors, len(rows))

    def distance_of(network: DOCIDSNetwork, features: Tensor) -> Tensor:
        places = class_scores_of(network, features).cpu().double()  # not every device has float64
        with torch.no_grad():  # by the expanded square, the quick way; its rounding cannot matter to who is nearest
            nearest = (rows.square().sum(dim=1) - 2 * places @ rows.T).topk(k, largest=False, sorted=False).indices
        squares = (places[:, None] - rows[nearest]).square().sum(dim=2)
        # The gradient of the root is infinite at 0; a template is 0 from itself, and no byte takes it further off.
        return (torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)).mean(dim=1)

    return distance_of


def replaced_by_templates(X: np.ndarray, templates: np.ndarray, similar: np.ndarray) -> np.ndarray:
    """Return rows with each value that no template has in its column replaced by that of the similar template.

    A row of which every value is in some template is replaced as a whole.
    """
    unseen = np.empty(X.shape, dtype=bool)
    for column in range(X.shape[1]):
        unseen[:, column] = ~np.isin(X[:, column], templates[:, column])
    unseen[~unseen.any(axis=1)] = True
    return np.where(unseen, similar, X)


def integrated_gradient(
    function: FeatureFunction, network: DOCIDSNetwork, begins: np.ndarray, X: np.ndarray
) -> np.ndarray:
    """Return the integral of the gradient along the straight line to each row, times the way: (n, n_columns)."""
    begins, way = begins.astype(np.float64), X.astype(np.float64) - begins
    middles = (np.arange(N_PATH_STEPS) + 0.5) / N_PATH_STEPS
    means = np.mean([gradient(function, network, (begins + way * m).astype(np.float32)) for m in middles], axis=0)
    return np.asarray(means * way)


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
