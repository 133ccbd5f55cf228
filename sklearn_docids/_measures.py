# SPDX-License-Identifier: BSD-3-Clause
"""Measures of detection over scores that are sorted once, however often the flows are weighted anew.

Attacks are the positive class, and the lower a score, the more abnormal. Weights serve the bootstrap: a resample counts
each flow as often as it was drawn, and needs no sort of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import column_or_1d

from sklearn_docids._thresholds import ROUNDING


def is_attack(y_true: ArrayLike, pos_label: Any = None) -> np.ndarray:
    """Return which labels are attacks.

    Parameters
    ----------
    y_true : array-like of shape (n_flows,)
        +1 for normal, -1 for attack; or any labels, if ``pos_label`` is given.
    pos_label : object, default=None
        The label of attacks.

    Returns
    -------
    ndarray of bool, shape (n_flows,)
        True for attacks.

    Raises
    ------
    ValueError
        The labels are not +1 and -1 and ``pos_label`` is None, or one of the two kinds is missing.

    Examples
    --------
    >>> is_attack([1, -1, 1])
    array([False,  True, False])
    """
    labels = column_or_1d(y_true)
    if pos_label is None:
        if not np.isin(labels, (-1, 1)).all():
            raise ValueError(
                f"y_true has the labels {np.unique(labels)[:5].tolist()}; attacks are -1 and normal flows +1, "
                "or pos_label must say which label is the attack"
            )
        pos_label = -1
    attack: np.ndarray = labels == pos_label
    if attack.all():
        raise ValueError("y_true needs attacks and normal flows, but has attacks only")
    if not attack.any():
        raise ValueError("y_true needs attacks and normal flows, but has no attack")
    return attack


class Curve(NamedTuple):
    """What is flagged at or below each score that occurs, from the lowest: weight of attacks, and of normal flows."""

    attacks: np.ndarray
    normal: np.ndarray


class Ranking:
    """Flows in the order of their scores."""

    def __init__(self, attack: np.ndarray, scores: np.ndarray):
        self._order = np.argsort(scores, kind="stable")
        self._attack = attack[self._order]
        # Flows of equal scores are flagged together: thresholds lie behind the last of each.
        ordered = scores[self._order]
        self._ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))

    def curve(self, weights: np.ndarray | None = None) -> Curve:
        """Return the curve, with every flow counted once or by its weight."""
        weights = np.ones(len(self._order)) if weights is None else weights[self._order]
        return Curve(np.cumsum(weights * self._attack)[self._ends], np.cumsum(weights * ~self._attack)[self._ends])


def roc_auc(curve: Curve) -> float:
    """Return the area under the ROC curve, by trapezoids."""
    attacks, normal = curve
    found = attacks - np.diff(attacks, prepend=0.0) / 2
    return float(np.sum(np.diff(normal, prepend=0.0) * found) / (attacks[-1] * normal[-1]))


def average_precision(curve: Curve) -> float:
    """Return the mean precision over the attacks, each at the threshold that just finds it."""
    attacks, flagged = curve.attacks, curve.attacks + curve.normal
    precision = np.divide(attacks, flagged, out=np.zeros(len(flagged)), where=flagged > 0)
    return float(np.sum(np.diff(attacks, prepend=0.0) * precision) / attacks[-1])


def recall_at_fpr(curve: Curve, max_fpr: float) -> float:
    """Return the share of attacks found with at most a share of the normal flows flagged.

    NaN where the normal flows are too few to resolve the rate.
    """
    attacks, normal = curve
    if not resolves(normal[-1], max_fpr):
        return float("nan")
    n_thresholds = np.searchsorted(normal, max_fpr * normal[-1] + ROUNDING, side="right")
    return float(attacks[n_thresholds - 1] / attacks[-1]) if n_thresholds else 0.0


def resolves(n_normal: float, max_fpr: float) -> bool:
    """Return whether a false-alarm rate means at least one of the normal flows; 0 means none of them and is exact."""
    return max_fpr == 0 or max_fpr * n_normal + ROUNDING >= 1


def too_few_normal(n_normal: int, max_fpr: float, what: str = "flows") -> str:
    """Return why a recall is NaN."""
    needed = int(np.ceil(1 / max_fpr - ROUNDING))
    return (
        f"recall at a false-alarm rate of {max_fpr:g} is NaN: it takes at least {needed} normal {what}, and there are "
        f"{n_normal}"
    )
