# SPDX-License-Identifier: BSD-3-Clause
"""What all detectors share: verdicts from scores and a threshold, and rows that a network can compute with."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import assert_all_finite, check_is_fitted, validate_data

from sklearn_docids._bases import BaseEstimator, OutlierMixin
from sklearn_docids.capture.lazy import is_lazy, lazily, pieces
from sklearn_docids.detectors._profile import RowProfile, check_more_rows, check_rows


class ScoringDetector(OutlierMixin, BaseEstimator, metaclass=ABCMeta):
    """Base of all detectors: a child has `score_samples` and, once fitted, ``offset_``."""

    # Whether rows may stay on disk, to be read in pieces.
    reads_pieces: ClassVar[bool] = False

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
    rows = _checked_rows(estimator, X, reset=not goes_on, min_samples=min_samples)
    profile = RowProfile.of(rows)
    if goes_on:
        check_more_rows(estimator._profile, profile)
        profile = estimator._profile.plus(profile)
    return rows, profile


def rows_to_score(estimator: Any, X: ArrayLike) -> np.ndarray:
    """Return checked rows for a fitted estimator; warn of rows of another kind than those of fit, or refuse them."""
    check_is_fitted(estimator)
    rows = _checked_rows(estimator, X, reset=False)
    check_rows(estimator._profile, rows)
    return rows


def _checked_rows(estimator: Any, X: ArrayLike, *, reset: bool, min_samples: int = 1) -> np.ndarray:
    """Return rows as scikit-learn checks them; those on disk stay there, if the estimator reads them in pieces."""
    rows: Any = lazily(X) if getattr(estimator, "reads_pieces", False) else X
    if not is_lazy(rows):
        return np.asarray(validate_data(estimator, X, reset=reset, ensure_min_samples=min_samples))
    # The first row tells what is wrong with all of them, but for their number and values that are no numbers.
    validate_data(estimator, rows[:1] if len(rows) else rows, reset=reset)
    if len(rows) < min_samples:
        raise ValueError(f"Found array with {len(rows)} sample(s) while a minimum of {min_samples} is required")
    if rows.dtype.kind == "f":
        for piece in pieces(len(rows)):
            assert_all_finite(rows[piece], input_name="X")
    return rows


def check_range(X: np.ndarray) -> np.ndarray:
    """Return X; refuse numbers that would be infinite in float32, in which networks compute."""
    if X.dtype.kind == "f" and X.dtype.itemsize > 4:
        largest = max((np.abs(X[piece]).max() for piece in pieces(len(X))), default=0.0)
        if largest > np.finfo(np.float32).max:
            raise ValueError("Input X contains values too large for float32")
    return X
