# SPDX-License-Identifier: BSD-3-Clause
"""Search and validation for detectors that train on normal flows and are measured with attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.model_selection import BaseCrossValidator, GroupKFold, KFold
from sklearn.utils import _safe_indexing, column_or_1d, get_tags, indexable
from sklearn.utils.validation import check_is_fitted

from sklearn_docids._bases import BaseEstimator, MetaEstimatorMixin
from sklearn_docids._meta import FitParamsToEstimator, forget_fit

__all__ = ["NormalOnly", "NormalTrainSplit", "make_flow_scorer"]


class NormalOnly(FitParamsToEstimator, MetaEstimatorMixin, BaseEstimator):
    """Fit a detector on the normal rows only, whatever it is given.

    ``GridSearchCV`` needs attacks to measure with, and hands them to ``fit`` as well: in every fold, and once more
    when it refits on all rows. Wrapped in this class, a detector never trains on a row whose label is not +1.

    Guide: :doc:`/gallery/plot_03_lambda_grid_search`.

    Parameters
    ----------
    estimator : estimator
        Outlier detector. Its parameters are ``estimator__...`` in a grid.

    Attributes
    ----------
    estimator_ : estimator
        The detector, fitted on normal rows.
    n_normal_ : int
        Number of these rows.

    See Also
    --------
    make_flow_scorer : Scorers for the search.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn_docids.model_selection import NormalOnly
    >>> X, y = np.array([[0.0], [0.1], [9.0]]), np.array([1, 1, -1])
    >>> NormalOnly(IsolationForest(random_state=0)).fit(X, y).n_normal_
    2
    """

    estimator_: Any
    n_normal_: int

    _fitted_names = ("estimator_", "n_normal_")

    def __init__(self, estimator: Any):
        self.estimator = estimator

    def fit(self, X: ArrayLike, y: Any, **fit_params: Any) -> NormalOnly:
        """Fit the detector on the rows whose label is +1.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.
        y : array-like of shape (n_flows,)
            +1 for normal, -1 for attack.
        **fit_params
            Parameters of the detector's ``fit``, such as ``reference``; they are handed on as they are.

        Returns
        -------
        NormalOnly
            The fitted meta-estimator.

        Raises
        ------
        ValueError
            Labels are not +1 and -1, or no row is normal.
        """
        forget_fit(self)
        X, labels = indexable(X, column_or_1d(y))
        normal = _normal_rows(labels)
        if len(normal) == 0:
            raise ValueError("y has no normal row (+1) to fit on")
        fit_params = self._routed(fit_params)
        self.estimator_ = clone(self.estimator).fit(_safe_indexing(X, normal), **fit_params)
        self.n_normal_ = len(normal)
        return self

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """Return the detector's scores: the lower, the more abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float, shape (n_flows,)
            Scores.
        """
        check_is_fitted(self)
        return self.estimator_.score_samples(X)

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Return the detector's scores relative to its threshold: negative is abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float, shape (n_flows,)
            Scores minus threshold.
        """
        check_is_fitted(self)
        return self.estimator_.decision_function(X)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Return the detector's verdicts.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of int, shape (n_flows,)
            +1 for normal, -1 for abnormal.
        """
        check_is_fitted(self)
        return self.estimator_.predict(X)

    @property
    def n_features_in_(self) -> int:
        """Number of columns of the detector."""
        return self._of_fitted("n_features_in_")

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the columns, where the detector has seen any."""
        return self._of_fitted("feature_names_in_")

    @property
    def offset_(self) -> float:
        """Threshold of the detector on its scores."""
        return self._of_fitted("offset_")

    def _of_fitted(self, name: str) -> Any:
        # hasattr asks: an AttributeError, which NotFittedError is too, means that there is none.
        check_is_fitted(self)
        return getattr(self.estimator_, name)

    def __sklearn_tags__(self) -> Any:
        """Return the tags of a detector that takes what the wrapped one takes, and needs labels."""
        tags, wrapped = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.estimator_type = wrapped.estimator_type
        tags.input_tags = wrapped.input_tags
        tags.array_api_support = wrapped.array_api_support
        tags.target_tags.required = True
        return tags


def _normal_rows(labels: Any) -> np.ndarray:
    """Return where labels say normal; refuse labels that leave a doubt."""
    # True equals 1, but may well mean an attack.
    if np.asarray(labels).dtype == bool or not np.isin(labels, (-1, 1)).all():
        raise ValueError(f"y must be +1 (normal) and -1 (attack), got {np.unique(labels)[:5].tolist()}")
    return np.flatnonzero(labels == 1)


class NormalTrainSplit(BaseCrossValidator):
    """Folds that train on normal rows alone and test on the other normal rows and all attacks.

    Normal rows are cut into ``n_splits`` parts, each of which is tested once. Attacks are in every test part, since no
    fit sees any of them. A search that refits at its end does so on all rows: wrap its detector in `NormalOnly`.

    Guide: :doc:`/gallery/plot_03_lambda_grid_search`.

    Parameters
    ----------
    n_splits : int, default=5
        Parts of the normal rows, at least 2.
    shuffle : bool, default=True
        Whether normal rows are drawn into parts at random. False cuts them as they come, which with flows in the order
        of time tests on another hour. Has no meaning with ``groups``.
    random_state : int, RandomState instance or None, default=None
        Source of the draw.

    See Also
    --------
    NormalOnly : Keeps attacks out of ``fit``, also out of the refit of a search.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.model_selection import NormalTrainSplit
    >>> y = np.array([1, 1, 1, 1, -1])
    >>> for train, test in NormalTrainSplit(2, shuffle=False).split(y, y):
    ...     print(train, test)
    [2 3] [0 1 4]
    [0 1] [2 3 4]
    """

    __metadata_request__split: ClassVar[dict[str, bool]] = {"groups": True}

    def __init__(
        self, n_splits: int = 5, *, shuffle: bool = True, random_state: int | np.random.RandomState | None = None
    ):
        self.n_splits = n_splits
        self.shuffle = shuffle
        self.random_state = random_state

    def split(self, X: ArrayLike, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows to train on and rows to test on.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes; their number alone counts.
        y : array-like of shape (n_flows,)
            +1 for normal, -1 for attack.
        groups : array-like of shape (n_flows,), default=None
            Group of each row, such as its host or day; normal rows of a group stay together.

        Yields
        ------
        train : ndarray of int
            Normal rows, in ascending order.
        test : ndarray of int
            The other normal rows and all attacks, in ascending order.

        Raises
        ------
        ValueError
            Labels are not +1 and -1, or there are fewer normal rows or groups of them than parts.
        """
        if y is None:
            raise ValueError("NormalTrainSplit needs y: +1 for normal, -1 for attack")
        X, labels, groups = indexable(X, column_or_1d(y), groups)
        normal = _normal_rows(labels)
        attacks = np.setdiff1d(np.arange(len(labels)), normal)
        for train, test in self._parts(normal, groups):
            yield normal[train], np.sort(np.concatenate([normal[test], attacks]))

    def _parts(self, normal: np.ndarray, groups: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if groups is not None:
            return GroupKFold(self.n_splits).split(normal, groups=np.asarray(groups)[normal])
        random_state = self.random_state if self.shuffle else None
        return KFold(self.n_splits, shuffle=self.shuffle, random_state=random_state).split(normal)

    def get_n_splits(self, X: ArrayLike | None = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds.

        Parameters
        ----------
        X, y, groups : object, default=None
            Ignored.

        Returns
        -------
        int
            ``n_splits``.
        """
        return self.n_splits


def make_flow_scorer(metric: Callable[..., float], **metric_params: Any) -> Callable[[Any, Any, Any], float]:
    """Return a scorer for searches and cross-validation over detectors of flows.

    Guide: :doc:`/gallery/plot_03_lambda_grid_search`.

    Parameters
    ----------
    metric : callable
        One of `sklearn_docids.metrics`: takes labels and scores (the lower, the more abnormal), returns a float.
    **metric_params
        Further parameters of the metric.

    Returns
    -------
    callable
        ``scorer(estimator, X, y)``. ``y`` has a label per row of ``estimator.score_samples(X)``; for a pipeline that
        starts with captures, it is a list with one array of labels per capture. Other numbers raise.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.svm import OneClassSVM
    >>> from sklearn_docids.metrics import attack_roc_auc_score
    >>> from sklearn_docids.model_selection import make_flow_scorer
    >>> X, y = np.array([[0.0], [0.1], [9.0]]), np.array([1, 1, -1])
    >>> scorer = make_flow_scorer(attack_roc_auc_score)
    >>> scorer(OneClassSVM().fit(X[:2]), X, y)
    1.0
    """
    return _FlowScorer(metric, metric_params)


@dataclass(frozen=True)
class _FlowScorer:
    """A scorer that can be pickled, as a fitted search that holds it must be."""

    metric: Callable[..., float]
    metric_params: dict[str, Any]

    def __call__(self, estimator: Any, X: ArrayLike, y: Any) -> float:
        scores = estimator.score_samples(X)
        labels = _joined_labels(y)
        if len(labels) != len(scores):
            raise ValueError(f"y has {len(labels)} labels, but X has {len(scores)} flows")
        return self.metric(labels, scores, **self.metric_params)


def _joined_labels(y: Any) -> np.ndarray:
    """Return one label per flow, whether they come in one array or in one per capture."""
    if len(y) and np.ndim(y[0] if isinstance(y, list | tuple) else np.asarray(y, dtype=object)[0]) == 1:
        return np.concatenate([np.asarray(labels) for labels in y])
    return np.asarray(y)
