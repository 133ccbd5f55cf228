# SPDX-License-Identifier: BSD-3-Clause
"""Scorers: what turns the rows of flows into scores, made once from a fitted network.

A scorer holds copies of what it computes with, on the CPU, so it can be pickled and read on any machine. Another device
gets a copy for the time of a call.
"""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_docids._network.autoencoders import ReconstructingNetwork
from sklearn_docids._network.folding import DENSE_ROWS, FoldedNetwork, padded
from sklearn_docids._network.table1 import DOCIDSNetwork
from sklearn_docids._network.tensors import only_scoring, recording_gradients, rows_to_tensor
from sklearn_docids.capture.lazy import pieces

# Points at which a gradient is taken on the way to a flow. On 100 flows of the testbed's
# validation part the sum over a flow was off by 3 % in the median, with 8 points by 15 %.
N_PATH_STEPS = 32
# The threads of torch do not survive a fork: a child would wait for them for ever (a pool of processes, a web server
# that forks after loading its model). One thread needs none of them.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))
# Rows that an autoencoder scores at a time: always as many of one width, since a score must not depend on the flows
# beside it; fewer of wide rows, whose activations take some 100 bytes per column and row.
CHUNK_ROWS, CHUNK_VALUES = 256, 2**18
# Of a network with ``h_c`` and ``autoencoder``, and features g, (n, 256).
FeatureFunction = Callable[[Any, Tensor], Tensor]


def features_of(network: Any, features: Tensor) -> Tensor:
    """Return g."""
    return features


def class_scores_of(network: Any, features: Tensor) -> Tensor:
    """Return h_c."""
    return network.h_c(features)


def reconstruction_error_of(network: Any, features: Tensor) -> Tensor:
    """Return the mean squared difference between g and its reconstruction, per flow."""
    return (network.autoencoder(features) - features).square().mean(dim=1)


class FrozenModules(NamedTuple):
    """The parts of a network that score."""

    g: FoldedNetwork
    h_c: nn.Module
    autoencoder: nn.Module


class FrozenNetwork:
    """A `DOCIDSNetwork` as it was when this was made: g folded, copies of h_c and the autoencoder."""

    def __init__(self, network: DOCIDSNetwork):
        self.network = network
        heads = (copy.deepcopy(head).eval().requires_grad_(False) for head in (network.h_c, network.autoencoder))
        self.modules = FrozenModules(FoldedNetwork(network), *heads)

    def evaluate(self, function: FeatureFunction, X: np.ndarray, device: str) -> np.ndarray:
        """Return a function of the features of all rows, as float64."""
        modules = FrozenModules(*(on_device(module, device) for module in self.modules))
        found = [self._evaluated(modules, function, X[piece], device) for piece in pieces(len(X))]
        return np.concatenate(found) if found else np.empty(0)

    def _evaluated(self, modules: FrozenModules, function: FeatureFunction, X: np.ndarray, device: str) -> np.ndarray:
        """Return it of rows in memory; those that end in equally many zeros are computed together."""
        parts = modules.g.parts_of(X)
        results = np.empty(0)
        with only_scoring(torch.device(device)):
            for part in np.unique(parts):
                rows = np.flatnonzero(parts == part)
                for first in range(0, len(rows), DENSE_ROWS):
                    place = rows[first : first + DENSE_ROWS]
                    features = modules.g.features(rows_to_tensor(X[place]).to(device), part)
                    values = function(modules, padded(features, DENSE_ROWS))[: len(place)].cpu().double().numpy()
                    if len(results) != len(X):
                        results = np.empty((len(X), *values.shape[1:]))
                    results[place] = values
        return results

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what is pickled: what the rest is made from."""
        return type(self), (self.network,)


def on_device(module: Any, device: str) -> Any:
    """Return a module that lies on the CPU, or a copy of it on another device."""
    return module if torch.device(device).type == "cpu" else copy.deepcopy(module).to(device)


class Scorer(FrozenNetwork, ABC):
    """Scores by a function of the features; a child has `abnormality`, whose opposite is the score."""

    @abstractmethod
    def abnormality(self, network: Any, features: Tensor) -> Tensor:
        """Return how abnormal flows are, (n, 256) -> (n,): the higher, the more abnormal."""

    def score(self, X: np.ndarray, device: str) -> np.ndarray:
        """Return the scores of rows."""
        return -self.evaluate(self.abnormality, X, device)

    def places_of(self, X: np.ndarray, device: str) -> np.ndarray:
        """Return what the network makes of rows: their class scores."""
        return self.evaluate(class_scores_of, X, device)


class ReconstructionScorer(Scorer):
    """The paper's score: opposite of the reconstruction error."""

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters of the detector that the score depends on."""
        return {**self.network.settings, "score_method": "reconstruction"}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a model file holds besides the network: nothing."""
        return {}

    def abnormality(self, network: Any, features: Tensor) -> Tensor:
        """Return the reconstruction error."""
        return reconstruction_error_of(network, features)

    def explain(self, X: np.ndarray, device: str) -> np.ndarray:
        """Return the gradient of the abnormality by each byte, (n, n_columns)."""
        return gradient(self.abnormality, self.network, X, device)


class NeighborScorer(Scorer):
    """Opposite of the mean distance to the nearest templates, in the space of class scores.

    Fewer templates than ``n_neighbors`` are all of them.
    """

    def __init__(
        self,
        network: DOCIDSNetwork,
        template_flows: np.ndarray,
        n_neighbors: int,
        device: str = "cpu",
        templates: np.ndarray | None = None,
    ):
        super().__init__(network)
        self.template_flows = template_flows
        self.n_neighbors = n_neighbors
        self.templates = self.evaluate(class_scores_of, template_flows, device) if templates is None else templates
        expected = (len(template_flows), network.settings["n_classes"])
        if template_flows.shape[1:] != (network.settings["n_columns"],) or self.templates.shape != expected:
            raise ValueError("the templates do not fit the network")
        self.places = torch.tensor(self.templates, device="cpu")  # a copy: the array may be mapped read-only

    def abnormality(self, network: Any, features: Tensor) -> Tensor:
        """Return the mean distance to the nearest templates."""
        places = class_scores_of(network, features).cpu().double()  # not every device has float64
        return self._mean_distance(places, self._expanded_squares(places))

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters of the detector that the score depends on."""
        return {**self.network.settings, "score_method": "knn", "n_neighbors": self.n_neighbors}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a model file holds besides the network: bytes as they are, other numbers as float64."""
        flows = self.template_flows
        stored = flows if flows.dtype == np.uint8 else flows.astype(np.float64)
        return {"template_flows": stored, "templates": self.templates}

    def score_templates(self) -> np.ndarray:
        """Return the score of each template by the nearest of the others; of a single one, 0."""
        squares = self._expanded_squares(self.places)
        squares.fill_diagonal_(torch.inf)
        return -self._mean_distance(self.places, squares, len(self.places) - 1).numpy()

    def _expanded_squares(self, places: Tensor) -> Tensor:
        """Return squared distances less the square of each place: enough to tell which templates are nearest."""
        with torch.no_grad():  # rounding cannot change which are nearest
            return self.places.square().sum(dim=1) - 2 * places @ self.places.T

    def _mean_distance(self, places: Tensor, squares: Tensor, n_others: int | None = None) -> Tensor:
        k = min(self.n_neighbors, len(self.places) if n_others is None else n_others)
        if k == 0:
            return torch.zeros(len(places), dtype=torch.float64)
        nearest = squares.topk(k, largest=False, sorted=False).indices
        exact = (places[:, None] - self.places[nearest]).square().sum(dim=2)
        # The gradient of the root is infinite at 0; a template is 0 from itself, and no byte takes it further off. What
        # is not a number stays so: as a distance of 0 it would be the most normal flow of all.
        return (torch.where(exact == 0, 1.0, exact).sqrt() * (exact != 0)).mean(dim=1)

    def most_similar(self, X: np.ndarray) -> np.ndarray:
        """Return, per row, the number of the template with the most equal bytes."""
        # One flow at a time: all pairs at once would take 320 KB a flow.
        return np.array([(self.template_flows == flow).sum(axis=1).argmax() for flow in X], dtype=np.int64)

    def explain(self, X: np.ndarray, device: str) -> np.ndarray:
        """Return integrated gradients of the abnormality, from the flow without its unseen bytes: (n, n_columns)."""
        similar = self.template_flows[self.most_similar(X)]
        begins = replaced_by_templates(X, self.template_flows, similar)
        return integrated_gradient(self.abnormality, self.network, begins, X, device)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.network, self.template_flows, self.n_neighbors, "cpu", self.templates)


class AutoencoderScorer:
    """Scores of the paper's baselines: opposite of the mean squared error of the bytes."""

    def __init__(self, network: ReconstructingNetwork):
        self.network = network

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters of the detector that the score depends on."""
        return self.network.settings

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a model file holds besides the network: nothing."""
        return {}

    def score(self, X: np.ndarray, device: str) -> np.ndarray:
        """Return the scores of rows."""
        return -self.evaluate("squared_error", X, device)

    def places_of(self, X: np.ndarray, device: str) -> np.ndarray:
        """Return what the network makes of rows: their codes."""
        return self.evaluate("code", X, device)

    def evaluate(self, method: str, X: np.ndarray, device: str) -> np.ndarray:
        """Return what a method of the network makes of all rows, as float64."""
        function = getattr(on_device(self.network, device), method)
        n_rows = min(CHUNK_ROWS, max(1, CHUNK_VALUES // X.shape[1]))
        results = []
        with only_scoring(torch.device(device)):
            for first in range(0, len(X), n_rows):
                rows = rows_to_tensor(X[first : first + n_rows]).to(device)
                results.append(function(padded(rows, n_rows))[: len(rows)].cpu().double().numpy())
        return np.concatenate(results)


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
    function: FeatureFunction, network: DOCIDSNetwork, begins: np.ndarray, X: np.ndarray, device: str
) -> np.ndarray:
    """Return the integral of the gradient along the straight line to each row, times the way: (n, n_columns)."""
    begins, way = begins.astype(np.float64), X.astype(np.float64) - begins
    middles = (np.arange(N_PATH_STEPS) + 0.5) / N_PATH_STEPS

    def gradient_at(middle: float) -> np.ndarray:
        return gradient(function, network, (begins + way * middle).astype(np.float32), device)

    return np.asarray(np.mean([gradient_at(middle) for middle in middles], axis=0) * way)


def gradient(function: FeatureFunction, network: DOCIDSNetwork, X: np.ndarray, device: str) -> np.ndarray:
    """Return the gradient of a function of each row by the bytes of the row, as float64."""
    network = on_device(network, device).eval()
    results = []
    with recording_gradients(torch.device(device)):
        for first in range(0, len(X), DENSE_ROWS):
            chunk = rows_to_tensor(X[first : first + DENSE_ROWS]).to(network.h_c.weight)
            flows = padded(chunk, DENSE_ROWS).requires_grad_()
            # Rows do not influence one another in evaluation, so the sum has the gradients of all of them.
            (by_byte,) = torch.autograd.grad(function(network, network.features(flows)).sum(), flows)
            results.append(by_byte[: len(chunk)].cpu().double().numpy())
    return np.concatenate(results)
