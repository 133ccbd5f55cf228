# SPDX-License-Identifier: BSD-3-Clause
"""The labelled reference: a holder that cross-validation hands on whole, and checks of its labels."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array
from sklearn.utils.validation import check_consistent_length

from sklearn_docids._warn import warn_caller
from sklearn_docids.detectors._base import check_range

# Types of labels that do not mix; a bool is an Integral, too, and an Integral a Real.
LABEL_KINDS = (str, (bool, np.bool_), Integral, Real)


class ReferenceData:
    """Labelled reference flows for `DOCIDSDetector.fit`, which cross-validation hands on whole.

    scikit-learn slices every array-like fit parameter whose length is the number of rows of X. This holder has no
    length, so the whole reference reaches each fit.

    Guide: :doc:`/how-to/reference`.

    Parameters
    ----------
    X : array-like of shape (n_reference, n_columns)
        Flow bytes, with the columns of the target.
    y : array-like of shape (n_reference,)
        Class labels, at least two different ones.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids import ReferenceData
    >>> ReferenceData(np.zeros((4, 320), np.uint8), ["dns", "dns", "tls", "tls"])
    ReferenceData(4 flows)
    """

    def __init__(self, X: ArrayLike, y: Any):
        self.X = X
        self.y = y

    def __repr__(self) -> str:
        return f"ReferenceData({np.shape(self.X)[0]} flows)"


# What `fit` takes as ``reference``.
Reference: TypeAlias = ReferenceData | tuple[ArrayLike, ArrayLike]


def check_kind(reference: Reference | None) -> None:
    """Refuse what is not a reference, before anything else can go wrong with it."""
    is_pair = isinstance(reference, tuple) and len(reference) == 2
    if reference is not None and not is_pair and not isinstance(reference, ReferenceData):
        raise ValueError(
            f"reference must be ReferenceData or a tuple (X_reference, y_reference), got {type(reference).__name__}; "
            "if cross-validation has cut a tuple, give ReferenceData"
        )


def checked_reference(
    detector: Any, reference: Reference | None, n_target: int, goes_on: bool, classes: np.ndarray | None
) -> dict[str, np.ndarray | None]:
    """Return rows, class numbers and classes of a reference: the given classes where a fit goes on from another."""
    check_kind(reference)
    if reference is None:
        if detector.lambda_descriptiveness > 0:
            warn_caller(
                "fit without a reference: there is no descriptiveness loss, and features may collapse to a constant; "
                "give reference=(X_reference, y_reference), or lambda_descriptiveness=0 if this is meant"
            )
        return {"reference": None, "labels": None, "classes": classes}
    if isinstance(reference, tuple) and n_target == len(reference):
        raise ValueError(
            "reference is a tuple and X has 2 rows: in cross-validation, scikit-learn would take the two for rows of "
            "one table; give ReferenceData(X_reference, y_reference)"
        )
    X, y = _checked_pair(detector, *unpacked(reference))
    found, numbers = np.unique(y, return_inverse=True)
    if goes_on:
        return {"reference": X, "labels": numbers_among(found, classes)[numbers], "classes": classes}
    if len(found) < 2:
        raise ValueError(f"reference y needs at least 2 classes, got only {found.tolist()}")
    return {"reference": X, "labels": numbers, "classes": found}


def unpacked(reference: Reference) -> tuple[Any, Any]:
    """Return rows and labels of a reference."""
    return (reference.X, reference.y) if isinstance(reference, ReferenceData) else reference


def _checked_pair(detector: Any, X: ArrayLike, y: Any) -> tuple[np.ndarray, np.ndarray]:
    names = getattr(detector, "feature_names_in_", None)
    if names is not None and hasattr(X, "columns") and list(X.columns) != list(names):
        raise ValueError("reference X has other column names than the target X, or another order of them")
    X = check_range(check_array(X, input_name="reference X", estimator=detector))
    y = check_labels(y)
    check_consistent_length(X, y)
    if X.shape[1] != detector.n_features_in_:
        raise ValueError(f"reference X has {X.shape[1]} columns, but the target X has {detector.n_features_in_}")
    return X, y


def numbers_among(found: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Return the class numbers of labels; refuse labels that the network has no output for."""
    if classes is None:
        raise ValueError("reference was not given to the first fit, so the network knows no classes: fit anew")
    # Python's numbers: NumPy would compare integers of two types as floats.
    numbers = {label: number for number, label in enumerate(classes.tolist())}
    new = [label for label in found.tolist() if label not in numbers]
    if new:
        raise ValueError(f"reference y has classes {new} that the first fit did not know: fit anew")
    return np.array([numbers[label] for label in found.tolist()])


def check_labels(y: Any) -> np.ndarray:
    """Return reference labels as an array of strings, integers or booleans."""
    if np.ma.isMaskedArray(y) and np.ma.getmaskarray(y).any():
        raise ValueError("reference y has masked labels")
    y = np.asarray(y) if hasattr(y, "dtype") else np.asarray(y, dtype=object)
    if y.ndim != 1:
        raise ValueError(f"reference y must have one label per row, got shape {y.shape}")
    if y.dtype.kind in "OT":  # lists, and pandas' and NumPy's strings
        kinds = {next((kind for kind in LABEL_KINDS if isinstance(label, kind)), None) for label in y}
        if len(kinds) > 1:
            raise ValueError("reference y mixes labels of different types")
        if kinds != {None}:
            y = np.array(y.tolist())
    if y.dtype.kind == "f" and np.all(np.abs(y) < 2**53) and np.all(y == np.floor(y)):
        y = y.astype(np.int64)
    if y.dtype.kind not in "iubU":
        raise ValueError("reference y must hold strings or whole numbers")
    return y
