# SPDX-License-Identifier: BSD-3-Clause
"""Displays in scikit-learn's manner: ``from_estimator``, ``from_predictions``, ``plot``, ``ax_``, ``figure_``.

Labels are +1 for normal and -1 for attack, scores are those of ``score_samples``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics
from sklearn.manifold import TSNE
from sklearn.metrics import RocCurveDisplay
from sklearn.utils import assert_all_finite, check_array, check_consistent_length, column_or_1d

from sklearn_docids._measures import is_attack
from sklearn_docids._warn import missing

__all__ = [
    "EmbeddingDisplay",
    "ExplanationDisplay",
    "PrecisionRecallDisplay",
    "RocDisplay",
    "ScoreByClassDisplay",
    "ScoreHistogramDisplay",
    "ViewsDisplay",
]

NO_CV_RESULTS = "draw each fold with from_predictions: from_cv_results would take normal flows for the positive class"
# Of the text below bars: how large it is where there is room, characters of that size to an inch, lines at most.
REASON_POINTS, REASON_CHARACTERS, REASON_LINES = 8.5, 16, 4
# In lines of text: how high a bar is, and what is left free before the next one.
BAR_LINES, FREE_LINES = 1.1, 0.9
NORMAL_COLOUR, ATTACK_COLOUR = "#3b6ea8", "#c8553d"
# Told apart by colour-blind readers, too (Okabe and Ito, 2008); as there are more classes than such colours, classes
# differ in their markers as well.
CLASS_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")
CLASS_MARKERS = ("o", "^", "s", "v", "D", "P", "X")


def _label_log_axis(axis: Any) -> None:
    """Label 1, 2 and 5 of each decade: where there is less than one, matplotlib's labels run into each other."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _verbatim(name: str) -> str:
    """Return a name, which may come from a file name, so that matplotlib takes no part of it for a formula."""
    return name.replace("$", r"\$")


def _attacks_first(y_true: ArrayLike, y_score: ArrayLike, pos_label: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores as scikit-learn takes them: attacks are True, and score high."""
    check_consistent_length(y_true, y_score)
    return is_attack(y_true, pos_label), -_finite(y_score)


def _finite(y_score: ArrayLike) -> np.ndarray:
    scores: np.ndarray = column_or_1d(y_score, dtype=np.float64)
    assert_all_finite(scores, input_name="y_score")
    return scores


def _shown_name(display: Any, name: str | None) -> str | None:
    """Return the name for the legend, which scikit-learn before 1.7 keeps elsewhere."""
    kept = getattr(display, "estimator_name", None) or getattr(display, "name", None)
    shown = kept if name is None else name
    return None if shown is None else _verbatim(shown)


def _axes(ax: Any) -> Any:
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError:
            raise missing("a picture", "matplotlib") from None
        _, ax = pyplot.subplots(layout="constrained")
    return ax


def _class_looks() -> list[tuple[str, str]]:
    """Return a colour and a marker for as many classes as there are pairs: neighbours differ in both."""
    n_colours = len(CLASS_COLOURS)
    return [
        (CLASS_COLOURS[number % n_colours], CLASS_MARKERS[(number + number // n_colours) % n_colours])
        for number in range(n_colours**2)
    ]


class ScoreHistogramDisplay:
    """Histogram of the scores of normal flows and attacks (paper, figure 2).

    Guide: :doc:`/how-to/false-alarm-rate`.

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

    ax_: Any
    figure_: Any

    def __init__(self, scores: np.ndarray, attack: np.ndarray, threshold: float | None = None):
        self.scores = scores
        self.attack = attack
        self.threshold = threshold

    @classmethod
    def from_estimator(cls, estimator: Any, X: ArrayLike, y: Any, *, ax: Any = None) -> ScoreHistogramDisplay:
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
        cls, y_true: ArrayLike, y_score: ArrayLike, *, threshold: float | None = None, ax: Any = None
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

        Raises
        ------
        ValueError
            A score is not finite, labels are not +1 and -1, or one of the two kinds is missing.
        """
        check_consistent_length(y_true, y_score)
        return cls(_finite(y_score), is_attack(y_true), threshold).plot(ax=ax)

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
        if self.threshold is not None and np.isfinite(self.threshold):
            ax.axvline(-self.threshold, color="black", linestyle="--", linewidth=1, label="threshold")
        if logarithmic:
            ax.set_xscale("log")
            _label_log_axis(ax.xaxis)
        ax.set_xlabel("abnormality (minus score)")
        ax.set_ylabel("share of flows")
        ax.legend(loc="upper left")  # "best" looks at each bar, and warns where it takes long
        self.ax_, self.figure_ = ax, ax.figure
        return self


class RocDisplay(RocCurveDisplay):
    """scikit-learn's `~sklearn.metrics.RocCurveDisplay`, with attacks as the positive class.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    fpr, tpr : ndarray of float, shape (n_thresholds,)
        False-alarm rate and recall of attacks.
    roc_auc : float
        Area under the curve.
    name : str, default=None
        Name for the legend.
    pos_label : object, default=None
        Not shown: the axes say what is found.

    Examples
    --------
    >>> from sklearn_docids.plotting import RocDisplay
    >>> RocDisplay.from_predictions([1, 1, -1], [-0.1, -0.2, -0.9]).roc_auc
    1.0
    """

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: Any, *, name: str | None = None, **kwargs: Any
    ) -> RocDisplay:
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
        **kwargs
            As `from_predictions` takes them.

        Returns
        -------
        RocDisplay
            The drawn display.
        """
        return cls.from_predictions(y, estimator.score_samples(X), name=name or type(estimator).__name__, **kwargs)

    @classmethod
    def from_predictions(
        cls, y_true: ArrayLike, y_score: ArrayLike, *, name: str = "detector", pos_label: Any = None, **kwargs: Any
    ) -> RocDisplay:
        """Draw the curve of given scores.

        Parameters
        ----------
        y_true : array-like of shape (n_flows,)
            +1 for normal, -1 for attack; or any labels, if ``pos_label`` is given.
        y_score : array-like of shape (n_flows,)
            Scores: the lower, the more abnormal.
        name : str, default="detector"
            Name for the legend.
        pos_label : object, default=None
            The label of attacks, where labels are not +1 and -1.
        **kwargs
            As scikit-learn's display takes them: ``ax``, ``plot_chance_level``, ``curve_kwargs`` and others.

        Returns
        -------
        RocDisplay
            The drawn display.
        """
        attack, abnormality = _attacks_first(y_true, y_score, pos_label)
        return super().from_predictions(attack, abnormality, name=name, pos_label=True, **kwargs)

    @classmethod
    def from_cv_results(cls, *args: Any, **kwargs: Any) -> RocDisplay:
        """Refuse: scikit-learn would take normal flows for the positive class.

        Parameters
        ----------
        *args, **kwargs
            Ignored.

        Returns
        -------
        RocDisplay
            Never.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(NO_CV_RESULTS)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> RocDisplay:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.
        name : str, default=None
            Name for the legend; None: that of the display.
        **kwargs
            As scikit-learn's display takes them.

        Returns
        -------
        RocDisplay
            The display itself.
        """
        super().plot(ax, name=_shown_name(self, name), **kwargs)
        self.ax_.set(xlabel="false-alarm rate", ylabel="recall of attacks")
        return self


class PrecisionRecallDisplay(metrics.PrecisionRecallDisplay):
    """scikit-learn's `~sklearn.metrics.PrecisionRecallDisplay`, with attacks as the positive class.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    precision, recall : ndarray of float, shape (n_thresholds,)
        Share of attacks among alarms, and of attacks found.
    average_precision : float
        Area under the curve.
    name : str, default=None
        Name for the legend.
    pos_label : object, default=None
        Not shown: the axes say what is found.
    prevalence_pos_label : float, default=None
        Share of attacks: the precision of guessing.
    estimator_name : str
        Deprecated by scikit-learn, for ``name``.

    Examples
    --------
    >>> from sklearn_docids.plotting import PrecisionRecallDisplay
    >>> PrecisionRecallDisplay.from_predictions([1, 1, -1], [-0.1, -0.2, -0.9]).average_precision
    1.0
    """

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, y: Any, *, name: str | None = None, **kwargs: Any
    ) -> PrecisionRecallDisplay:
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
        **kwargs
            As `from_predictions` takes them.

        Returns
        -------
        PrecisionRecallDisplay
            The drawn display.
        """
        return cls.from_predictions(y, estimator.score_samples(X), name=name or type(estimator).__name__, **kwargs)

    @classmethod
    def from_predictions(
        cls, y_true: ArrayLike, y_score: ArrayLike, *, name: str = "detector", pos_label: Any = None, **kwargs: Any
    ) -> PrecisionRecallDisplay:
        """Draw the curve of given scores.

        Parameters
        ----------
        y_true : array-like of shape (n_flows,)
            +1 for normal, -1 for attack; or any labels, if ``pos_label`` is given.
        y_score : array-like of shape (n_flows,)
            Scores: the lower, the more abnormal.
        name : str, default="detector"
            Name for the legend.
        pos_label : object, default=None
            The label of attacks, where labels are not +1 and -1.
        **kwargs
            As scikit-learn's display takes them: ``ax``, ``plot_chance_level`` (the share of attacks is the precision
            of guessing), ``curve_kwargs`` and others.

        Returns
        -------
        PrecisionRecallDisplay
            The drawn display.
        """
        attack, abnormality = _attacks_first(y_true, y_score, pos_label)
        return super().from_predictions(attack, abnormality, name=name, pos_label=True, **kwargs)

    @classmethod
    def from_cv_results(cls, *args: Any, **kwargs: Any) -> PrecisionRecallDisplay:
        """Refuse: scikit-learn would take normal flows for the positive class.

        Parameters
        ----------
        *args, **kwargs
            Ignored.

        Returns
        -------
        PrecisionRecallDisplay
            Never.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(NO_CV_RESULTS)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> PrecisionRecallDisplay:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.
        name : str, default=None
            Name for the legend; None: that of the display.
        **kwargs
            As scikit-learn's display takes them.

        Returns
        -------
        PrecisionRecallDisplay
            The display itself.
        """
        super().plot(ax, name=_shown_name(self, name), **kwargs)
        self.ax_.set(xlabel="recall of attacks", ylabel="precision")
        return self


class ScoreByClassDisplay:
    """Boxes of the abnormality of each class, normal flows first (paper, figure 6).

    Guide: :doc:`/gallery/plot_06_scores_by_kind`.

    Parameters
    ----------
    scores : ndarray of float, shape (n_flows,)
        Scores: the lower, the more abnormal.
    classes : ndarray of str, shape (n_flows,)
        Name of the attack of each flow, "" for normal ones.
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
    >>> from sklearn_docids.plotting import ScoreByClassDisplay
    >>> display = ScoreByClassDisplay.from_predictions(["", "", "scan"], [-0.1, -0.2, -0.9])
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['normal', 'scan']
    """

    ax_: Any
    figure_: Any

    def __init__(self, scores: np.ndarray, classes: np.ndarray, threshold: float | None = None):
        self.scores = scores
        self.classes = classes
        self.threshold = threshold

    @classmethod
    def from_estimator(cls, estimator: Any, X: ArrayLike, classes: Any, *, ax: Any = None) -> ScoreByClassDisplay:
        """Draw the scores of a fitted detector.

        Parameters
        ----------
        estimator : estimator
            Fitted detector with ``score_samples``; its ``offset_`` is drawn as threshold.
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.
        classes : array-like of str, shape (n_flows,)
            Name of the attack of each flow, "" for normal ones.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ScoreByClassDisplay
            The drawn display.
        """
        threshold = getattr(estimator, "offset_", None)
        return cls.from_predictions(classes, estimator.score_samples(X), threshold=threshold, ax=ax)

    @classmethod
    def from_predictions(
        cls, classes: Any, y_score: ArrayLike, *, threshold: float | None = None, ax: Any = None
    ) -> ScoreByClassDisplay:
        """Draw given scores.

        Parameters
        ----------
        classes : array-like of str, shape (n_flows,)
            Name of the attack of each flow, "" for normal ones.
        y_score : array-like of shape (n_flows,)
            Scores: the lower, the more abnormal.
        threshold : float, default=None
            Score below which a flow is flagged.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ScoreByClassDisplay
            The drawn display.

        Raises
        ------
        ValueError
            A score is not finite, or there is not one for each class.
        """
        check_consistent_length(classes, y_score)
        return cls(_finite(y_score), np.asarray(classes, dtype=str), threshold).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> ScoreByClassDisplay:
        """Draw a box per class, on a logarithmic axis where all abnormalities are positive.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ScoreByClassDisplay
            The display itself.
        """
        ax = _axes(ax)
        names = sorted(set(self.classes.tolist()))
        abnormality = [-self.scores[self.classes == name] for name in names]
        labels = [_verbatim(name or "normal") for name in names]
        places = np.arange(len(names))
        # Where panels share an axis, ticks that boxplot sets are drawn over those of the other panel.
        ax.boxplot(
            abnormality, positions=places, widths=0.5, orientation="horizontal", flierprops={"markersize": 2},
            manage_ticks=False,
        )  # fmt: skip
        ax.set_yticks(places, labels)
        ax.set_ylim(len(names) - 0.5, -0.5)
        if self.threshold is not None and np.isfinite(self.threshold):
            ax.axvline(-self.threshold, color="black", linestyle="--", linewidth=1, label="threshold")
            ax.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
        if (self.scores < 0).all():
            ax.set_xscale("log")
            _label_log_axis(ax.xaxis)
        ax.set_xlabel("abnormality (minus score)")
        self.ax_, self.figure_ = ax, ax.figure
        return self


class EmbeddingDisplay:
    """Map of features in two dimensions by t-SNE, a colour per class (paper, figures 3 and 4).

    Guide: :doc:`/gallery/plot_05_feature_space`.

    Parameters
    ----------
    places : ndarray of float, shape (n_flows, 2)
        Where each flow lies.
    classes : ndarray of str, shape (n_flows,)
        Name of the attack of each flow, "" for normal ones.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of ``ax_``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.plotting import EmbeddingDisplay
    >>> features = np.random.default_rng(0).normal(size=(20, 5))
    >>> EmbeddingDisplay.from_predictions([""] * 15 + ["scan"] * 5, features).places.shape
    (20, 2)
    """

    ax_: Any
    figure_: Any

    def __init__(self, places: np.ndarray, classes: np.ndarray):
        self.places = places
        self.classes = classes

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: ArrayLike, classes: Any, *, random_state: Any = 0, ax: Any = None
    ) -> EmbeddingDisplay:
        """Draw the features of a fitted detector.

        Parameters
        ----------
        estimator : estimator
            Fitted detector with ``embed``, or transformer.
        X : array-like of shape (n_flows, n_columns)
            Flow bytes; t-SNE takes about a minute for 5,000.
        classes : array-like of str, shape (n_flows,)
            Name of the attack of each flow, "" for normal ones.
        random_state : int, RandomState instance or None, default=0
            Source of the beginning of t-SNE.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        EmbeddingDisplay
            The drawn display.
        """
        features = estimator.embed(X) if hasattr(estimator, "embed") else estimator.transform(X)
        return cls.from_predictions(classes, features, random_state=random_state, ax=ax)

    @classmethod
    def from_predictions(
        cls, classes: Any, features: ArrayLike, *, random_state: Any = 0, ax: Any = None
    ) -> EmbeddingDisplay:
        """Draw given features.

        Parameters
        ----------
        classes : array-like of str, shape (n_flows,)
            Name of the attack of each flow, "" for normal ones.
        features : array-like of shape (n_flows, n_features)
            What to map.
        random_state : int, RandomState instance or None, default=0
            Source of the beginning of t-SNE.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        EmbeddingDisplay
            The drawn display.
        """
        check_consistent_length(classes, features)
        features = np.asarray(features, dtype=np.float32)
        tsne = TSNE(perplexity=min(30, (len(features) - 1) / 3), random_state=random_state)
        return cls(tsne.fit_transform(features), np.asarray(classes, dtype=str)).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> EmbeddingDisplay:
        """Draw the map.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        EmbeddingDisplay
            The display itself.
        """
        ax = _axes(ax)
        names = sorted(set(self.classes.tolist()) - {""})
        looks = dict(zip(names, cycle(_class_looks()), strict=False))
        if "" in self.classes:
            ax.scatter(*self.places[self.classes == ""].T, s=8, color="lightgrey", label="normal", linewidths=0)
        for name, (colour, marker) in looks.items():
            places = self.places[self.classes == name].T
            ax.scatter(*places, s=12, color=colour, marker=marker, label=_verbatim(name), linewidths=0)
        ax.set(xticks=[], yticks=[])
        ax.legend(markerscale=2.5, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        self.ax_, self.figure_ = ax, ax.figure
        return self


class ExplanationDisplay:
    """Attribution of the score of one flow to its packets and bytes.

    Guide: :doc:`/gallery/plot_07_explain_an_alarm`.

    Parameters
    ----------
    attribution : ndarray of float, shape (n_packets, n_bytes)
        Part of each byte in the score, as from ``explain``.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of ``ax_``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.plotting import ExplanationDisplay
    >>> ExplanationDisplay.from_predictions(np.eye(4, 80)).ax_.get_xlabel()
    'byte of the packet'
    """

    ax_: Any
    figure_: Any

    def __init__(self, attribution: np.ndarray):
        self.attribution = attribution

    @classmethod
    def from_estimator(cls, estimator: Any, X: ArrayLike, *, ax: Any = None) -> ExplanationDisplay:
        """Draw the attribution of one flow by a fitted detector.

        Parameters
        ----------
        estimator : estimator
            Fitted detector with ``explain``.
        X : array-like of shape (1, n_columns)
            The flow.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ExplanationDisplay
            The drawn display.

        Raises
        ------
        ValueError
            X has another number of rows than one.
        """
        if np.shape(X)[0] != 1:
            raise ValueError(f"an explanation is of one flow, X has {np.shape(X)[0]}")
        return cls.from_predictions(estimator.explain(X)[0], ax=ax)

    @classmethod
    def from_predictions(cls, attribution: Any, *, ax: Any = None) -> ExplanationDisplay:
        """Draw a given attribution.

        Parameters
        ----------
        attribution : array-like of shape (n_packets, n_bytes)
            Part of each byte in the score.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ExplanationDisplay
            The drawn display.

        Raises
        ------
        ValueError
            The attribution is not a finite array of two dimensions.
        """
        return cls(check_array(attribution, dtype=np.float64, input_name="attribution")).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> ExplanationDisplay:
        """Draw a line per packet: red bytes make the flow more abnormal, blue ones less.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ExplanationDisplay
            The display itself.
        """
        ax = _axes(ax)
        largest = float(np.abs(self.attribution).max()) or 1.0
        image = ax.imshow(self.attribution, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        ax.set_yticks(range(len(self.attribution)), [str(n) for n in range(len(self.attribution))])
        ax.set_xlabel("byte of the packet")
        ax.set_ylabel("packet")
        ax.figure.colorbar(image, ax=ax, label="part in the score")
        self.ax_, self.figure_ = ax, ax.figure
        return self


class ViewsDisplay:
    """How unusual one flow is in each view of a `MultiViewDetector`, and why.

    Guide: :doc:`/gallery/plot_07_explain_an_alarm`.

    Parameters
    ----------
    p_values : ndarray of float, shape (n_views,)
        How often normal flows are as abnormal, by view.
    view_names : sequence of str
        Names of the views.
    reasons : mapping of str to str, default=None
        What is abnormal, in words, by view; views without an entry have no text.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure of ``ax_``.

    Examples
    --------
    >>> from sklearn_docids.plotting import ViewsDisplay
    >>> display = ViewsDisplay.from_predictions([0.2, 0.001], ["statistics", "novelty"], {"novelty": "a new port"})
    >>> display.ax_.get_xlabel()
    'normal flows that are as abnormal: one in'
    """

    ax_: Any
    figure_: Any

    def __init__(self, p_values: np.ndarray, view_names: Sequence[str], reasons: Mapping[str, str] | None = None):
        self.p_values = p_values
        self.view_names = view_names
        self.reasons = reasons

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, row: int, *, ax: Any = None) -> ViewsDisplay:
        """Draw the views of one flow of a table by a fitted detector.

        Parameters
        ----------
        estimator : MultiViewDetector
            Fitted detector.
        X : FlowTable
            The flow, with the flows that came before it.
        row : int
            Number of the flow in X.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ViewsDisplay
            The drawn display.
        """
        reasons = {reason.view: reason.text for reason in estimator.explain(X)[row]}
        return cls.from_predictions(estimator.p_values(X)[row], estimator.view_names_, reasons, ax=ax)

    @classmethod
    def from_predictions(
        cls, p_values: ArrayLike, view_names: Sequence[str], reasons: Mapping[str, str] | None = None, *, ax: Any = None
    ) -> ViewsDisplay:
        """Draw given p-values.

        Parameters
        ----------
        p_values : array-like of shape (n_views,)
            How often normal flows are as abnormal, by view; above 0, at most 1.
        view_names : sequence of str
            Names of the views.
        reasons : mapping of str to str, default=None
            What is abnormal, in words, by view.
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ViewsDisplay
            The drawn display.

        Raises
        ------
        ValueError
            A p-value is not above 0 and at most 1, or their number is not that of the names.
        """
        p_values = np.asarray(p_values, dtype=np.float64)
        if p_values.shape != (len(view_names),) or not ((p_values > 0) & (p_values <= 1)).all():
            raise ValueError(f"p_values must be {len(view_names)} numbers above 0 and at most 1, got {p_values}")
        return cls(p_values, list(view_names), reasons).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> ViewsDisplay:
        """Draw a bar per view, the first on top, with its reason below it.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None: a new figure.

        Returns
        -------
        ViewsDisplay
            The display itself.
        """
        ax = _axes(ax)
        reasons = self._wrapped(ax.figure.get_figwidth() * ax.get_position().width)
        heights = np.array([BAR_LINES + len(lines) + FREE_LINES for lines in reasons])
        bottoms = np.cumsum(heights)
        places = bottoms - heights + (FREE_LINES + BAR_LINES) / 2
        line_points = 72 * ax.figure.get_figheight() * ax.get_position().height / (bottoms[-1] + FREE_LINES)
        ax.barh(places, 1 / self.p_values, height=BAR_LINES, color=ATTACK_COLOUR)
        ax.set(xscale="log", xlim=(1, max(1e3, 3 / self.p_values.min())), ylim=(bottoms[-1] + FREE_LINES / 2, 0))
        ax.set_yticks(places, [_verbatim(name) for name in self.view_names])
        ax.set_xlabel("normal flows that are as abnormal: one in")
        for place, lines in zip(places, reasons, strict=True):
            ax.annotate(
                "\n".join(lines), (0, place + 0.6 * BAR_LINES), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", fontsize=min(REASON_POINTS, 0.8 * line_points), va="top",
            )  # fmt: skip
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _wrapped(self, inches: float) -> list[list[str]]:
        """Return the lines of the reason of each view."""
        width = max(20, int(REASON_CHARACTERS * inches))  # a tiny figure shows what it can
        reasons = [_verbatim((self.reasons or {}).get(name, "")) for name in self.view_names]
        return [textwrap.wrap(each, width, max_lines=REASON_LINES, placeholder=" ...") for each in reasons]
