# SPDX-License-Identifier: BSD-3-Clause
"""What all detectors share: verdicts from scores and a threshold, and rows that a network can compute with."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_docids._bases import BaseEstimator, OutlierMixin
from sklearn_docids.detectors._profile import RowProfile, check_more_rows, check_rows


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

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether there is a fit; a refused one leaves the number of columns behind."""
        return hasattr(self, "offset_")


def rows_of_fit(
    estimator: Any, X: ArrayLike, *, goes_on: bool = False, min_samples: int = 1
) -> tuple[np.ndarray, RowProfile]:
    """Return checked rows of a fit, and what all rows of fits look like, to be kept as ``_profile``."""
    rows: np.ndarray = validate_data(estimator, X, reset=not goes_on, ensure_min_samples=min_samples)
    profile = RowProfile.of(rows)
    if goes_on:
        check_more_rows(estimator._profile, profile)
        profile = estimator._profile.plus(profile)
    return rows, profile


def rows_to_score(estimator: Any, X: ArrayLike) -> np.ndarray:
    """Return checked rows for a fitted estimator; warn of rows of another kind than those of fit, or refuse them."""
    check_is_fitted(estimator)
    rows: np.ndarray = validate_data(estimator, X, reset=False)
    check_rows(estimator._profile, rows)
    return rows


def check_range(X: np.ndarray) -> np.ndarray:
    """Return X; refuse numbers that would be infinite in float32, in which networks compute."""
    wide = X.dtype.kind == "f" and X.dtype.itemsize > 4
    if wide and X.size and max(abs(X.max()), abs(X.min())) > np.finfo(np.float32).max:
        raise ValueError("Input X contains values too large for float32")
    return X
