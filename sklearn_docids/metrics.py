# SPDX-License-Identifier: BSD-3-Clause
"""Metrics of attack detection that cannot be inverted by accident.

scikit-learn's metrics take the greater label for the positive one: with +1 for normal flows they measure how well
*normal* flows are found, and with 0/1 labels and the scores of an outlier detector they return 1 minus the ROC-AUC.
Here the attack is always the positive class, scores are always those of ``score_samples`` (the lower, the more
abnormal), and labels that leave a doubt raise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d

from sklearn_docids._measures import (
    Curve,
    Ranking,
    average_precision,
    is_attack,
    recall_at_fpr,
    resolves,
    roc_auc,
    too_few_normal,
)
from sklearn_docids._warn import warn_caller

__all__ = [
    "AlarmCounts",
    "alarm_counts",
    "attack_average_precision_score",
    "attack_roc_auc_score",
    "recall_at_fpr_score",
]


def attack_roc_auc_score(y_true: ArrayLike, y_score: ArrayLike, *, pos_label: Any = None) -> float:
    """Return the area under the ROC curve with attacks as the positive class.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    y_true : array-like of shape (n_flows,)
        +1 for normal, -1 for attack; or any labels, if ``pos_label`` is given.
    y_score : array-like of shape (n_flows,)
        Scores as from ``score_samples``: the lower, the more abnormal.
    pos_label : object, default=None
        The label of attacks, where labels are not +1 and -1.

    Returns
    -------
    float
        0.5 for scores without information, 1.0 if every attack scores below every normal flow.

    Raises
    ------
    ValueError
        Labels are not +1 and -1 and ``pos_label`` is None, one of the two kinds is missing, or a score is not finite.

    Examples
    --------
    >>> attack_roc_auc_score([1, 1, -1], [-0.1, -0.2, -0.9])
    1.0
    """
    return roc_auc(_curve(y_true, y_score, pos_label))


def attack_average_precision_score(y_true: ArrayLike, y_score: ArrayLike, *, pos_label: Any = None) -> float:
    """Return the average precision (area under the PR curve) with attacks as the positive class.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    y_true : array-like of shape (n_flows,)
        +1 for normal, -1 for attack; or any labels, if ``pos_label`` is given.
    y_score : array-like of shape (n_flows,)
        Scores as from ``score_samples``: the lower, the more abnormal.
    pos_label : object, default=None
        The label of attacks, where labels are not +1 and -1.

    Returns
    -------
    float
        The share of attacks for scores without information, 1.0 if every attack scores below every normal flow.

    Raises
    ------
    ValueError
        Labels are not +1 and -1 and ``pos_label`` is None, one of the two kinds is missing, or a score is not finite.

    Examples
    --------
    >>> attack_average_precision_score([1, 1, -1], [-0.1, -0.9, -0.2])
    0.5
    """
    return average_precision(_curve(y_true, y_score, pos_label))


def recall_at_fpr_score(
    y_true: ArrayLike, y_score: ArrayLike, *, max_fpr: float = 0.01, pos_label: Any = None
) -> float:
    """Return the share of attacks found when at most ``max_fpr`` of the normal flows raise an alarm.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    y_true : array-like of shape (n_flows,)
        +1 for normal, -1 for attack; or any labels, if ``pos_label`` is given.
    y_score : array-like of shape (n_flows,)
        Scores as from ``score_samples``: the lower, the more abnormal.
    max_fpr : float, default=0.01
        False-alarm rate allowed, in [0, 1); 0 allows no false alarm at all.
    pos_label : object, default=None
        The label of attacks, where labels are not +1 and -1.

    Returns
    -------
    float
        Recall in [0, 1]; a flow is an alarm if it scores strictly below the threshold. NaN where ``max_fpr`` is less
        than one of the normal flows: no threshold on them holds such a rate.

    Raises
    ------
    ValueError
        ``max_fpr`` is outside [0, 1), labels are not +1 and -1 and ``pos_label`` is None, one of the two kinds is
        missing, or a score is not finite.

    Warns
    -----
    UndefinedMetricWarning
        There are fewer normal flows than ``1 / max_fpr``.

    Examples
    --------
    >>> recall_at_fpr_score([1, 1, -1, -1], [-0.1, -0.2, -0.9, -0.15], max_fpr=0.0)
    0.5
    """
    if not 0 <= max_fpr < 1:
        raise ValueError(f"max_fpr must be in [0, 1), got {max_fpr!r}")
    curve = _curve(y_true, y_score, pos_label)
    n_normal = int(curve.normal[-1])
    if not resolves(n_normal, max_fpr):
        warn_caller(too_few_normal(n_normal, max_fpr), UndefinedMetricWarning)
    return recall_at_fpr(curve, max_fpr)


def _curve(y_true: ArrayLike, y_score: ArrayLike, pos_label: Any) -> Curve:
    """Return what is flagged at each threshold; refuse labels and scores that leave a doubt."""
    check_consistent_length(y_true, y_score)
    scores = column_or_1d(y_score, dtype=np.float64)
    assert_all_finite(scores, input_name="y_score")
    return Ranking(is_attack(y_true, pos_label), scores).curve()


class AlarmCounts(NamedTuple):
    """Confusion matrix of alarms: an attack that was flagged is a true positive.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    true_positives, false_positives : int
        Flagged flows: attacks, and normal ones.
    true_negatives, false_negatives : int
        Flows that were not flagged: normal ones, and attacks.

    Examples
    --------
    >>> from sklearn_docids.metrics import AlarmCounts
    >>> counts = AlarmCounts(true_positives=8, false_positives=2, true_negatives=998, false_negatives=2)
    >>> counts.tpr, counts.fpr, counts.precision
    (0.8, 0.002, 0.8)
    """

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def tpr(self) -> float:
        """Share of attacks flagged, also called recall (paper, equation 4)."""
        return self.true_positives / (self.true_positives + self.false_negatives)

    @property
    def fpr(self) -> float:
        """Share of normal flows flagged, the false-alarm rate (paper, equation 5)."""
        return self.false_positives / (self.false_positives + self.true_negatives)

    @property
    def precision(self) -> float:
        """Share of attacks among the alarms (paper, equation 6); NaN where there is no alarm."""
        n_alarms = self.true_positives + self.false_positives
        return self.true_positives / n_alarms if n_alarms else float("nan")


def alarm_counts(y_true: ArrayLike, y_pred: Any, *, pos_label: Any = None) -> AlarmCounts:
    """Return the confusion matrix of verdicts, with attacks as the positive class (paper, Table 5).

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    y_true : array-like of shape (n_flows,)
        +1 for normal, -1 for attack; or any labels, if ``pos_label`` is given.
    y_pred : array-like of shape (n_flows,)
        Verdicts as from ``predict``: +1 for normal, -1 for abnormal.
    pos_label : object, default=None
        The label of attacks in ``y_true``, where labels are not +1 and -1.

    Returns
    -------
    AlarmCounts
        ``true_positives``, ``false_positives``, ``true_negatives``, ``false_negatives``, and, made of them, ``tpr``,
        ``fpr`` and ``precision`` (paper, equations 4 to 6).

    Raises
    ------
    ValueError
        Verdicts are not +1 and -1, labels are not and ``pos_label`` is None, or one of the two kinds is missing.

    Examples
    --------
    >>> counts = alarm_counts([1, 1, 1, -1, -1], [1, 1, -1, -1, 1])
    >>> counts.true_positives, counts.fpr, counts.precision
    (1, 0.3333333333333333, 0.5)
    """
    check_consistent_length(y_true, y_pred)
    attack, verdicts = is_attack(y_true, pos_label), column_or_1d(y_pred)
    # True equals 1, but may well mean an alarm.
    if verdicts.dtype == bool or not np.isin(verdicts, (-1, 1)).all():
        raise ValueError(f"y_pred must be +1 (normal) and -1 (abnormal), got {np.unique(verdicts)[:5].tolist()}")
    flagged = verdicts == -1
    return AlarmCounts(
        int(np.sum(flagged & attack)),
        int(np.sum(flagged & ~attack)),
        int(np.sum(~flagged & ~attack)),
        int(np.sum(~flagged & attack)),
    )
