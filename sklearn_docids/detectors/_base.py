# SPDX-License-Identifier: BSD-3-Clause
"""What all detectors share: verdicts from scores and a threshold, and rows that a network can compute with."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod

import numpy as np
from numpy.typing import ArrayLike

from sklearn_docids._bases import BaseEstimator, OutlierMixin


class ScoringDetector(OutlierMixin, BaseEstimator, metaclass=ABCMeta):
    """Base of all detectors: a child has `score_samples` and, once fitted, ``offset_``."""

    offset_: float

    @abstractmethod
    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """Return how normal flows are: the lower, the more abnormal."""

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Return the score relative to the threshold: negative is abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            ``score_samples(X) - offset_``.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return a verdict per flow.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of int64, shape (n_flows,)
            +1 for normal, -1 for abnormal.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)


def check_range(X: np.ndarray) -> np.ndarray:
    """Return X; refuse numbers that would be infinite in float32, in which networks compute."""
    wide = X.dtype.kind == "f" and X.dtype.itemsize > 4
    if wide and X.size and max(abs(X.max()), abs(X.min())) > np.finfo(np.float32).max:
        raise ValueError("Input X contains values too large for float32")
    return X
