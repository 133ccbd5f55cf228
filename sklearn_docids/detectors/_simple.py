# SPDX-License-Identifier: BSD-3-Clause
"""Simple detectors to compare with: whoever does not beat these has found nothing.

The paper's own baselines are `sklearn_docids.AutoencoderDetector` and `sklearn_docids.ConvAutoencoderDetector`;
`sklearn_docids.DOCFeatures` in front of a detector is the method that DOC-IDS came from.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from sklearn_docids._meta import forget_fit
from sklearn_docids._thresholds import contamination_threshold, doubt_of
from sklearn_docids._warn import warn_caller
from sklearn_docids.detectors._base import ScoringDetector, rows_of_fit, rows_to_score
from sklearn_docids.detectors._reference import Reference

# Where the time to live of the first packet stands: IPv4 behind an Ethernet header without tags.
TTL_COLUMN = 22
CONTAMINATION = [Interval(Real, 0, 0.5, closed="right")]


class StatisticDetector(ScoringDetector):
    """Detector that looks at one number of a flow, and scores how common it was in training.

    Few numbers make few different scores: where the rarest is that of more rows than ``contamination``, none of the
    rows of `fit` is flagged, but every row with a number that is rarer still, or new.

    Guide: :doc:`/explanation/not-fooling-yourself`.

    Parameters
    ----------
    statistic : {"packets", "bytes", "ttl"}, default="packets"
        ``"packets"``: number of packets of a row that are not all zero. ``"bytes"``: number of bytes of a row up to
        the last one of each packet that is not zero. ``"ttl"``: time to live of the first packet (Ethernet without
        tags, IPv4).
    n_packets : int, default=4
        Packets per row: a row is ``n_packets`` groups of equally many bytes.
    contamination : float, default=0.01
        Share of the rows of `fit` beyond the threshold, in (0, 0.5].

    Attributes
    ----------
    values_ : ndarray of int64, shape (n_values,)
        Numbers seen in training, sorted.
    frequencies_ : ndarray of float64, shape (n_values,)
        Their shares of the training rows.
    offset_ : float
        Threshold on `score_samples`: a flow that scores below it is abnormal.
    n_features_in_ : int
        Number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.detectors import StatisticDetector
    >>> X = np.array([[1, 0], [2, 0], [1, 1]])
    >>> StatisticDetector(n_packets=2).fit(X).score_samples([[7, 0], [0, 0]])
    array([0.66666667, 0.        ])
    """

    values_: np.ndarray
    frequencies_: np.ndarray
    offset_: float

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "statistic": [StrOptions({"packets", "bytes", "ttl"})],
        "n_packets": [Interval(Integral, 1, None, closed="left")],
        "contamination": CONTAMINATION,
    }

    _fitted_names = ("values_", "frequencies_", "offset_", "_profile")

    def __init__(self, statistic: str = "packets", *, n_packets: int = 4, contamination: float = 0.01):
        self.statistic = statistic
        self.n_packets = n_packets
        self.contamination = contamination

    def fit(self, X: ArrayLike, y: object = None, *, reference: Reference | None = None) -> StatisticDetector:
        """Count how common each number is.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Target flows, normal.
        y : object, default=None
            Ignored.
        reference : object, default=None
            Ignored: it lets the detector stand in one loop with those that learn from a reference.

        Returns
        -------
        StatisticDetector
            The fitted detector.

        Raises
        ------
        ValueError
            A parameter or X is unusable; X has too few columns for a time to live.
        """
        forget_fit(self)
        self._validate_params()
        rows, profile = rows_of_fit(self, X)
        if self.statistic == "ttl" and rows.shape[1] <= TTL_COLUMN:
            raise ValueError(f"X has {rows.shape[1]} columns: the time to live stands in column {TTL_COLUMN}")
        self.values_, counts = np.unique(self._statistic(rows), return_counts=True)
        self.frequencies_ = counts / len(rows)
        self.offset_ = contamination_threshold(self._score(rows), self.contamination)
        self._profile = profile
        return self

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """Return how common the number of each flow was in training: the lower, the more abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            Share of the training rows, in [0, 1].
        """
        return self._score(rows_to_score(self, X))

    def _score(self, X: np.ndarray) -> np.ndarray:
        numbers = self._statistic(X)
        place = np.minimum(np.searchsorted(self.values_, numbers), len(self.values_) - 1)
        return np.where(self.values_[place] == numbers, self.frequencies_[place], 0.0)

    def _statistic(self, X: np.ndarray) -> np.ndarray:
        if self.statistic == "ttl":
            return X[:, TTL_COLUMN].astype(np.int64)
        packets = [packet != 0 for packet in np.array_split(X, self.n_packets, axis=1) if packet.shape[1]]
        if self.statistic == "packets":
            return np.sum([packet.any(axis=1) for packet in packets], axis=0)
        # The last byte that is not zero is the first one from behind.
        lengths = [packet.shape[1] - packet[:, ::-1].argmax(axis=1) for packet in packets]
        return np.sum([np.where(p.any(axis=1), n, 0) for p, n in zip(packets, lengths, strict=True)], axis=0)


class NearestNeighborDetector(ScoringDetector):
    """Detector by the mean distance to the nearest flows of training.

    On bytes, it is the plainest detector that sees all that a network sees. Behind `sklearn_docids.DOCFeatures` with 40
    templates it is how Perera and Patel score [1]_.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    n_neighbors : int, default=1
        Number of nearest templates over which the distance is averaged.
    n_templates : int or None, default=None
        Most rows of `fit` kept as templates, drawn at random, at least ``n_neighbors``; None keeps all. [1]_ uses 40.
    contamination : float, default=0.01
        Share of the rows of `fit` beyond the threshold, in (0, 0.5]. A row is not its own neighbour in this.
    random_state : int, RandomState instance or None, default=None
        Source of the templates.

    Attributes
    ----------
    offset_ : float
        Threshold on `score_samples`: a flow that scores below it is abnormal.
    n_features_in_ : int
        Number of columns.

    References
    ----------
    .. [1] Perera, P., and V. M. Patel, "Learning Deep Features for One-Class Classification", IEEE Transactions on
       Image Processing 28(11), 2019.

    Examples
    --------
    >>> from sklearn_docids.detectors import NearestNeighborDetector
    >>> NearestNeighborDetector().fit([[0.0], [1.0], [9.0]]).score_samples([[3.0]])
    array([-2.])
    """

    offset_: float

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "n_templates": [Interval(Integral, 1, None, closed="left"), None],
        "contamination": CONTAMINATION,
        "random_state": ["random_state"],
    }

    _fitted_names = ("offset_", "_index", "_profile")

    def __init__(
        self,
        n_neighbors: int = 1,
        *,
        n_templates: int | None = None,
        contamination: float = 0.01,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_neighbors = n_neighbors
        self.n_templates = n_templates
        self.contamination = contamination
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None, *, reference: Reference | None = None) -> NearestNeighborDetector:
        """Keep templates and set the threshold.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Target flows or their features, normal; more than ``n_neighbors``.
        y : object, default=None
            Ignored.
        reference : object, default=None
            Ignored: it lets the detector stand in one loop with those that learn from a reference.

        Returns
        -------
        NearestNeighborDetector
            The fitted detector.

        Raises
        ------
        ValueError
            A parameter or X is unusable.

        Warns
        -----
        UserWarning
            The threshold flags none of the rows, as where most of them are there twice.
        """
        forget_fit(self)
        self._validate_params()
        if self.n_templates is not None and self.n_templates < self.n_neighbors:
            raise ValueError(f"n_templates={self.n_templates} are fewer than n_neighbors={self.n_neighbors}")
        rows, profile = rows_of_fit(self, X, min_samples=self.n_neighbors + 1)
        n_templates = len(rows) if self.n_templates is None else min(len(rows), self.n_templates)
        order = check_random_state(self.random_state).permutation(len(rows))
        templates, others = rows[np.sort(order[:n_templates])], rows[np.sort(order[n_templates:])]
        self._index = NearestNeighbors(n_neighbors=self.n_neighbors).fit(templates)
        distances = [self._distances(others)] if len(others) else []
        if n_templates > self.n_neighbors:
            distances.append(self._index.kneighbors()[0].mean(axis=1))  # each template among the others
        scores = -np.concatenate(distances)
        self.offset_ = contamination_threshold(scores, self.contamination)
        self._profile = profile
        if doubt := doubt_of(scores, self.contamination):
            warn_caller(doubt)
        return self

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """Return how near flows are to those of training: the lower, the more abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Rows with the columns of `fit`.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            Opposite of the mean Euclidean distance to the ``n_neighbors`` nearest templates; at most 0.
        """
        return -self._distances(rows_to_score(self, X))

    def _distances(self, X: np.ndarray) -> np.ndarray:
        return self._index.kneighbors(X)[0].mean(axis=1)
