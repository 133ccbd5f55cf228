# SPDX-License-Identifier: BSD-3-Clause
"""Displays in scikit-learn's manner: ``from_estimator``, ``from_predictions``, ``plot``, ``ax_``, ``figure_``.

Labels are +1 for normal and -1 for attack, scores are those of ``score_samples``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import auc, roc_curve
from sklearn.utils import check_consistent_length

from sklearn_docids.metrics import is_attack

NORMAL_COLOUR, ATTACK_COLOUR = "#3b6ea8", "#c8553d"


def label_log_axis(axis: Any) -> None:
    """Label 1, 2 and 5 of each decade: where there is less than one, matplotlib's labels run into each other."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _axes(ax: Any) -> Any:
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots()
    return ax


class ScoreHistogramDisplay:
    """Histogram of the scores of normal flows and attacks (paper, figure 2).

    Parameters
    ----------
    scores : ndarray of float, shape (n_flows,)
        Scores: the lower, the more abnormal.
    attack : ndarray of bool, shape (n_flows,)
        Which flows are attacks.
    threshold : float or None, default=None
        Score below which a flow is flagged.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of ``ax_``.

    Examples
    --------
    >>> from sklearn_docids.plotting import ScoreHistogramDisplay
    >>> display = ScoreHistogramDisplay.from_predictions([1, 1, -1], [-0.1, -0.2, -0.9])
    >>> display.ax_.get_ylabel()
    'share of flows'
    """

    def __init__(self, scores: np.ndarray, attack: np.ndarray, threshold: float | None = None):
        self.scores = scores
        self.attack = attack
        self.threshold = threshold

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any, *, ax: Any = None) -> ScoreHistogramDisplay:
        """Draw the scores of a fitted detector.

        Parameters
        ----------
        estimator : estimator
            Fitted detector with ``score_samples``; its ``offset_`` is drawn as threshold.
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.
        y : array-like of shape (n_flows,)
            +1 for normal, -1 for attack.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ScoreHistogramDisplay
            The drawn display.
        """
        threshold = getattr(estimator, "offset_", None)
        return cls.from_predictions(y, estimator.score_samples(X), threshold=threshold, ax=ax)

    @classmethod
    def from_predictions(
        cls, y_true: Any, y_score: Any, *, threshold: float | None = None, ax: Any = None
    ) -> ScoreHistogramDisplay:
        """Draw given scores.

        Parameters
        ----------
        y_true : array-like of shape (n_flows,)
            +1 for normal, -1 for attack.
        y_score : array-like of shape (n_flows,)
            Scores: the lower, the more abnormal.
        threshold : float, default=None
            Score below which a flow is flagged.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ScoreHistogramDisplay
            The drawn display.
        """
        check_consistent_length(y_true, y_score)
        return cls(np.asarray(y_score, dtype=float), is_attack(y_true), threshold).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> ScoreHistogramDisplay:
        """Draw the histogram; the abnormality (opposite of the score) runs on a logarithmic axis where it can.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ScoreHistogramDisplay
            The display itself.
        """
        ax = _axes(ax)
        abnormality = -self.scores
        logarithmic = bool(abnormality.min() > 0)
        edges = (np.geomspace if logarithmic else np.linspace)(abnormality.min(), abnormality.max(), 51)
        # Rounding must not push the extremes out of the outermost bins.
        edges[0], edges[-1] = abnormality.min(), abnormality.max()
        if np.any(np.diff(edges) <= 0):  # all scores alike, but for rounding
            edges = np.array([abnormality.min() - 0.5, abnormality.max() + 0.5])
            logarithmic = False
        for attack, label, colour in ((False, "normal", NORMAL_COLOUR), (True, "attack", ATTACK_COLOUR)):
            values = abnormality[self.attack == attack]
            weights = np.full(len(values), 1 / len(values))
            ax.hist(values, edges, weights=weights, alpha=0.6, color=colour, label=f"{label} ({len(values)})")
        if self.threshold is not None:
            ax.axvline(-self.threshold, color="black", linestyle="--", linewidth=1, label="threshold")
        if logarithmic:
            ax.set_xscale("log")
            label_log_axis(ax.xaxis)
        ax.set_xlabel("abnormality (minus score)")
        ax.set_ylabel("share of flows")
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self


class RocDisplay:
    """ROC curve with attacks as the positive class.

    Parameters
    ----------
    fpr, tpr : ndarray of float, shape (n_thresholds,)
        False-alarm rate and recall of attacks.
    roc_auc : float
        Area under the curve.
    name : str or None, default=None
        Name of the detector, for the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of ``ax_``.

    Examples
    --------
    >>> from sklearn_docids.plotting import RocDisplay
    >>> RocDisplay.from_predictions([1, 1, -1], [-0.1, -0.2, -0.9]).roc_auc
    1.0
    """

    def __init__(self, fpr: np.ndarray, tpr: np.ndarray, roc_auc: float, name: str | None = None):
        self.fpr = fpr
        self.tpr = tpr
        self.roc_auc = roc_auc
        self.name = name

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any, *, name: str | None = None, ax: Any = None) -> RocDisplay:
        """Draw the curve of a fitted detector.

        Parameters
        ----------
        estimator : estimator
            Fitted detector with ``score_samples``.
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.
        y : array-like of shape (n_flows,)
            +1 for normal, -1 for attack.
        name : str, default=None
            Name for the legend; None: that of the class.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        RocDisplay
            The drawn display.
        """
        return cls.from_predictions(y, estimator.score_samples(X), name=name or type(estimator).__name__, ax=ax)

    @classmethod
    def from_predictions(cls, y_true: Any, y_score: Any, *, name: str | None = None, ax: Any = None) -> RocDisplay:
        """Draw the curve of given scores.

        Parameters
        ----------
        y_true : array-like of shape (n_flows,)
            +1 for normal, -1 for attack.
        y_score : array-like of shape (n_flows,)
            Scores: the lower, the more abnormal.
        name : str, default=None
            Name for the legend.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        RocDisplay
            The drawn display.
        """
        check_consistent_length(y_true, y_score)
        fpr, tpr, _ = roc_curve(is_attack(y_true), -np.asarray(y_score, dtype=float))
        return cls(fpr, tpr, float(auc(fpr, tpr)), name).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> RocDisplay:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        RocDisplay
            The display itself.
        """
        ax = _axes(ax)
        label = f"AUC {self.roc_auc:.3f}" if self.name is None else f"{self.name} (AUC {self.roc_auc:.3f})"
        ax.plot(self.fpr, self.tpr, label=label)
        ax.set_xlabel("false-alarm rate")
        ax.set_ylabel("recall of attacks")
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.01)
        ax.legend(loc="lower right")
        self.ax_, self.figure_ = ax, ax.figure
        return self
