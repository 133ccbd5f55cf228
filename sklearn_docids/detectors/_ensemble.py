# SPDX-License-Identifier: BSD-3-Clause
"""Several fits of one detector with different seeds, scored together."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval
from sklearn.utils.validation import check_is_fitted

from sklearn_docids._bases import MetaEstimatorMixin
from sklearn_docids._meta import FitParamsToEstimator, forget_fit, seeded_clone
from sklearn_docids._thresholds import contamination_threshold, doubt_of
from sklearn_docids._warn import warn_caller
from sklearn_docids.detectors._base import ScoringDetector


class SeedEnsemble(FitParamsToEstimator, MetaEstimatorMixin, ScoringDetector):
    """Detector that averages the scores of fits with different seeds.

    It takes ``n_estimators`` times the time to train and to score; :doc:`/benchmarks` tells what that gains. There is
    no model file of an ensemble; save its members.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    estimator : estimator
        Detector with ``random_state``, such as `DOCIDSDetector`, or a pipeline with such a step. Its own threshold and
        verdicts are not used.
    n_estimators : int, default=5
        Number of fits.
    contamination : float, default=0.01
        Share of the rows of `fit` beyond the threshold, in (0, 0.5].
    random_state : int, RandomState instance or None, default=None
        Source of the seeds.

    Attributes
    ----------
    estimators_ : list of estimator
        The fitted detectors.
    scales_ : ndarray of float64, shape (n_estimators,)
        Mean absolute score of each on the rows of `fit`, by which its scores are divided.
    offset_ : float
        Threshold on `score_samples`: a flow that scores below it is abnormal.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids import AutoencoderDetector
    >>> from sklearn_docids.detectors import SeedEnsemble
    >>> X = np.random.default_rng(0).integers(0, 256, size=(20, 12), dtype=np.uint8)
    >>> ensemble = SeedEnsemble(AutoencoderDetector(max_epochs=1), n_estimators=2, random_state=0).fit(X)
    >>> ensemble.score_samples(X).shape
    (20,)
    """

    estimators_: list[Any]
    scales_: np.ndarray
    offset_: float

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods(["fit", "score_samples"])],
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "random_state": ["random_state"],
    }

    _fitted_names = ("estimators_", "scales_", "offset_")

    def __init__(
        self,
        estimator: Any,
        *,
        n_estimators: int = 5,
        contamination: float = 0.01,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.contamination = contamination
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None, **fit_params: Any) -> SeedEnsemble:
        """Fit all detectors.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Target flows, normal.
        y : object, default=None
            Ignored.
        **fit_params
            Parameters of the detector's ``fit``, such as ``reference``.

        Returns
        -------
        SeedEnsemble
            The fitted ensemble.

        Raises
        ------
        ValueError
            A parameter is unusable, the detector has no ``random_state`` or a ``false_alarm_rate``, or refuses X.

        Warns
        -----
        UserWarning
            The threshold flags none of the rows, as where all of them are alike; and whatever the detectors warn of.
        """
        forget_fit(self)
        self._validate_params()
        parameters = self.estimator.get_params()
        if not any(name.split("__")[-1] == "random_state" for name in parameters):
            raise ValueError(f"{self.estimator!r} has no random_state, so all fits would be the same")
        if any(name.split("__")[-1] == "false_alarm_rate" and value is not None for name, value in parameters.items()):
            raise ValueError("false_alarm_rate of the estimator would be ignored: the ensemble has contamination")
        fit_params = self._routed(fit_params)
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=self.n_estimators).tolist()
        estimators = [seeded_clone(self.estimator, seed).fit(X, **fit_params) for seed in seeds]
        scores = np.array([estimator.score_samples(X) for estimator in estimators])
        scales = np.maximum(np.abs(scores).mean(axis=1), np.finfo(np.float64).tiny)
        together = (scores / scales[:, None]).mean(axis=0)
        self.offset_ = contamination_threshold(together, self.contamination)
        self.estimators_, self.scales_ = estimators, scales
        if doubt := doubt_of(together, self.contamination):
            warn_caller(doubt)
        return self

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """Return how normal flows are: the lower, the more abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            Mean of the scores of all fits, each divided by its ``scales_``.
        """
        check_is_fitted(self)
        pairs = zip(self.estimators_, self.scales_, strict=True)
        return np.asarray(np.mean([estimator.score_samples(X) / scale for estimator, scale in pairs], axis=0))

    @property
    def n_features_in_(self) -> int:
        """Number of columns."""
        check_is_fitted(self)
        return int(self.estimators_[0].n_features_in_)

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the columns, where the detectors have seen any."""
        check_is_fitted(self)
        return np.asarray(self.estimators_[0].feature_names_in_)
