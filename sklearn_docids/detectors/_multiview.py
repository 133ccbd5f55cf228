# SPDX-License-Identifier: BSD-3-Clause
"""`MultiViewDetector`: several views of a flow, each calibrated, as one outlier detector on a table of flows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sklearn_docids._bases import BaseEstimator, OutlierMixin
from sklearn_docids._meta import forget_fit
from sklearn_docids._provenance import described_traffic
from sklearn_docids._score_sketch import ScoreSketch
from sklearn_docids._thresholds import conformal_threshold, doubt_of, least_held_out
from sklearn_docids._views import network
from sklearn_docids._views.base import Observation, StoredView, View, check_layout
from sklearn_docids._views.columns import ColumnsView, check_columns
from sklearn_docids._views.content import ContentView
from sklearn_docids._views.network import NetworkView
from sklearn_docids._views.novelty import NoveltyView
from sklearn_docids._views.payload import services
from sklearn_docids._views.requests import RequestsView
from sklearn_docids._views.statistics import StatisticsView
from sklearn_docids._views.tails import Tails
from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.lazy import ROWS_AT_ONCE, on_demand, pieces, selected_flows
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.detectors._calibration import (
    CalibratedMixin,
    Calibration,
    check_enough,
    checked_rate,
    in_time_order,
    now,
    scores_to_keep,
    thinned,
)
from sklearn_docids.detectors._docids import DOCIDSDetector
from sklearn_docids.detectors._reference import Reference, ReferenceData, check_kind, unpacked

if TYPE_CHECKING:
    from sklearn_docids._sampler import FlowSampler

BYTES = "bytes"
SIMPLE_VIEWS: dict[str, type[StoredView]] = {
    "statistics": StatisticsView,
    "requests": RequestsView,
    "novelty": NoveltyView,
    "content": ContentView,
}
VIEWS = (BYTES, *SIMPLE_VIEWS)
# Chosen on the validation part of the testbed (docs/benchmarks.md).
BATCH_SIZE = 32
# `explain` lists a view that found a flow more unusual than so many normal ones.
EXPLAINED_P_VALUE = 0.05
# Parts of the flows of a later calibration, each of which is judged by the tails of the others. On random halves of the
# testbed's test part the rate is 1.05 % then, and 1.19 % by tails of all; blocks of time in place of every tenth flow
# flag a tenth or a quarter of what was asked for on the next part, where the detector is of another site.
N_FOLDS = 10
# Fewer flows than this in a block of time, and nothing can be said of how views judge what they have not seen.
MIN_BLOCK = 5


class ViewReason(NamedTuple):
    """What one view says of a flow.

    Guide: :doc:`/tutorials/from-alarm-to-reason`.

    Parameters
    ----------
    view : str
        Name of the view.
    p_value : float
        How often normal flows are as abnormal in this view.
    text : str
        What is abnormal, in words.

    Examples
    --------
    >>> from sklearn_docids.detectors import ViewReason
    >>> ViewReason("novelty", 0.0002, "tcp/8443 was never a destination here").view
    'novelty'
    """

    view: str
    p_value: float
    text: str


class MultiViewDetector(CalibratedMixin, OutlierMixin, BaseEstimator):
    r"""Anomaly detector for tables of flows, which looks at each flow in several ways.

    The bytes of a flow say what it is, but not that there are two hundred like it, or that nobody ever asked this
    server for this service. Each view gives a flow a score; its calibration turns that into a probability p that a
    normal flow scores as high, and the abnormality of the flow is Fisher's sum over the views,

    .. math:: \sum_v (-\log p_v)^a

    with a = ``power``. Views:

    ``"bytes"``
        `DOCIDSDetector` on payload rows: distance to the 20th nearest training flow in the space of its class scores.
    ``"statistics"``
        Distance to the nearest training flows by duration, packets, bytes and payload each way, and failure.
    ``"requests"``
        Share of pairs of neighbouring bytes in the first request that no request to its service ever had.
    ``"novelty"``
        How many of (source, destination, service), (destination, service) and (service) are new.
    ``"content"``
        Number of flows of like content that the same source began, or the same destination was sent, in the last 1, 10,
        60 and 240 s (flows count half after so long), to the most that was normal. The only view with a memory.

    Guide: :doc:`/explanation/views`.

    Parameters
    ----------
    views : sequence of str or tuple, default=("bytes", "statistics", "requests", "novelty", "content")
        Names of views, and views of one's own: a name, an outlier detector with `score_samples`, and the columns of the
        table that it is given, those of `FlowTable.context` included.
    detector : DOCIDSDetector or None, default=None
        What ``"bytes"`` trains a clone of, on at most 100,000 flows, evenly spaced in time; its score, templates and
        threshold are not used. None: ``DOCIDSDetector(batch_size=32)``.
    false_alarm_rate : float, default=0.01
        Share of new normal flows that may be flagged, in (0, 0.5].
    calibration : {"blocks", "later"}, default="blocks"
        Which flows tell what scores are normal. ``"later"``: the views learn from the earlier part of the training
        traffic and are calibrated on the rest, which they never learn. ``"blocks"``: each block of time is scored by
        views that have learned from the other blocks, and then all is learned; the network learns once, from all.
    calibration_share : float, default=0.25
        Size of the later part, or of each block, in (0, 0.5].
    power : float, default=1.0
        At least 1: the larger, the more one view alone decides.
    random_state : int, RandomState instance or None, default=None
        Source of all that is drawn.
    n_jobs : int or None, default=None
        Threads over views, as in joblib. The result does not depend on it.
    verbose : int, default=0
        1 lets the network print its losses.

    Attributes
    ----------
    view_names_ : list of str
        Names of the fitted views: those asked for, less what was left out with a warning.
    offset_ : float
        Threshold on `score_samples`.
    calibration_scores_ : ndarray of float64
        Scores of the flows that set the threshold, in order of time: training flows, until `calibrate` has others.
    thinned_scores_ : ndarray of float64
        Those of one flow per channel and minute: what `~sklearn_docids.monitoring.DriftMonitor` compares with.
    false_alarm_rate_ : float
        Share of new normal flows that the threshold may flag.
    calibrations_ : list of Calibration
        That of `fit`, and those of `calibrate`.
    active_calibration_ : int
        Which of them is in use.
    detector_ : DOCIDSDetector or None
        The fitted network of ``"bytes"``.
    sampler_ : FlowSampler or None
        After `~sklearn_docids.load_detector`: the sampler stored with the model.
    provenance_ : dict or None
        After `~sklearn_docids.load_detector`: what is stored of the traffic and the settings of the fit.

    See Also
    --------
    DOCIDSDetector : The paper's method, on rows of bytes alone.
    FlowSampler : Makes the table, with ``FlowSampler(layout="payload", output="flows")``.

    Notes
    -----
    What `fit` sees is taken for normal. Flows are sorted by their beginnings, and a view knows the past of a flow
    alone; `score_samples` begins with an empty memory, `stream` goes on from call to call. Where hosts come and go by
    the hour, train on a whole day: what never happened in training is new.

    References
    ----------
    .. [1] Fisher, R. A., "Statistical Methods for Research Workers", 4th ed., 1932, section 21.1.
    .. [2] Mirsky, Y., et al., "Kitsune: An Ensemble of Autoencoders for Online Network Intrusion Detection", NDSS 2018.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler, MultiViewDetector
    >>> from sklearn_docids.datasets import make_traffic
    >>> sampler = FlowSampler(layout="payload", output="flows")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     traffic = make_traffic(folder, n_flows=200, random_state=0)
    ...     flows = sampler.transform(traffic.train)
    >>> detector = MultiViewDetector(views=("statistics", "novelty"), random_state=0).fit(flows)
    >>> detector.predict(flows).shape, detector.view_names_
    ((200,), ['statistics', 'novelty'])
    """

    view_names_: list[str]
    sampler_: FlowSampler | None

    _fitted_names = (
        *CalibratedMixin._calibration_names, "view_names_", "sampler_", "_views", "_power", "_n_columns", "_layout",
    )  # fmt: skip
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "views": ["array-like"],
        "detector": [HasMethods(["fit", "class_scores"]), None],
        "false_alarm_rate": [Interval(Real, 0, 0.5, closed="right")],
        "calibration": [StrOptions({"blocks", "later"})],
        "calibration_share": [Interval(Real, 0, 0.5, closed="right")],
        "power": [Interval(Real, 1, None, closed="left")],
        "random_state": ["random_state"],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        views: Sequence[Any] = VIEWS,
        detector: DOCIDSDetector | None = None,
        false_alarm_rate: float = 0.01,
        calibration: str = "blocks",
        calibration_share: float = 0.25,
        power: float = 1.0,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        self.views = views
        self.detector = detector
        self.false_alarm_rate = false_alarm_rate
        self.calibration = calibration
        self.calibration_share = calibration_share
        self.power = power
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags

    def fit(self, X: FlowTable, y: Any = None, *, reference: Reference | None = None) -> MultiViewDetector:
        """Learn what is normal, and set the threshold.

        Parameters
        ----------
        X : FlowTable
            Normal flows, in any order. Of one that lies in files, as `FlowTable.load` opens folders, a piece is in
            memory at a time.
        y : object, default=None
            Ignored.
        reference : ReferenceData, tuple (X_reference, y_reference) or None, default=None
            Labelled reference for ``"bytes"``: a table or rows, sampled like X. None: that view is left out, as
            without a reference its features say little; so it is where X has fewer than 1,000 flows, with which its
            network would flag far more new normal flows than it was asked for.

        Returns
        -------
        MultiViewDetector
            The fitted detector.

        Raises
        ------
        TypeError
            X is no FlowTable.
        ValueError
            A parameter, too few flows for the rate of false alarms, or a table without what a view needs.

        Warns
        -----
        UserWarning
            A view is left out, or knows less than it could; or the threshold separates nothing.
        """
        forget_fit(self)
        self._validate_params()
        check_kind(reference)
        flows = in_time_order(_checked_table(X))
        rng = check_random_state(self.random_state)
        views = self._made_views(reference, len(flows))
        check_layout(flows, [view.name for view in views if view.needs_payload])
        blocks = self._blocks(len(flows))
        seeds = [int(seed) for seed in rng.randint(2**31 - 1, size=len(views))]
        arguments = [(view, flows, blocks, seed) for view, seed in zip(views, seeds, strict=True)]
        judged, power = _judged(flows, blocks), float(self.power)
        # What a view says of all flows is gone when the next one has learned.
        in_turn = Parallel(n_jobs=self.n_jobs, prefer="threads", return_as="generator")
        abnormality = in_turn(delayed(_learn)(*some) for some in arguments)
        scores, tails = _scored(views, abnormality, judged, power, _surprise)
        # Nothing is set while views learn: a fit that fails leaves no half of a detector.
        self._views, self._power = views, power
        self._n_columns, self._layout = flows.X.shape[1], flows.layout
        self.view_names_ = [view.name for view in views]
        self.sampler_ = None
        self._begin_calibrations(self._calibration(scores, tails, judged, float(self.false_alarm_rate)))
        return self

    def calibrate(self, X: FlowTable | ScoreSketch, *, false_alarm_rate: float | None = None) -> MultiViewDetector:
        """Set the threshold anew by other normal traffic, and how unusual a flow is in each view, without training.

        The views keep what they have learned, and say of the new traffic how abnormal it is to them; that is then what
        is normal. Where they have learned another site, they know little of this one: the rate of false alarms holds,
        but fewer attacks are found than by a detector fitted there, and drift hardly shows. The earlier calibration
        stays in ``calibrations_``, for `restore_calibration`.

        Parameters
        ----------
        X : FlowTable or ScoreSketch
            Normal flows that `fit` has not seen, sampled alike, in any order: they are judged in order of time, as one
            stream. Or a `~sklearn_docids.monitoring.ScoreSketch` of what `score_samples` says of such flows, perhaps at
            many sensors: it sets the threshold alone, and how unusual a flow is in each view stays.
        false_alarm_rate : float or None, default=None
            Share of new normal flows that may be flagged, in (0, 0.5]. None: the parameter of that name.

        Returns
        -------
        MultiViewDetector
            The detector, with a new ``offset_``. Its parameters stay as they are, and streams that were begun before
            go on with the new calibration.

        Raises
        ------
        TypeError
            X is no FlowTable.
        ValueError
            Too few flows for the rate, rows of another width or layout, or a rate out of range or below the error of a
            sketch.

        Warns
        -----
        UserWarning
            The threshold separates nothing; or an old calibration is dropped.
        """
        check_is_fitted(self)
        rate = checked_rate(self.false_alarm_rate if false_alarm_rate is None else false_alarm_rate)
        if isinstance(X, ScoreSketch):
            self._calibrate_by(X, rate)
            return self
        flows = in_time_order(self._checked_like_fit(X))
        check_enough(len(flows), rate)
        abnormality = (view.abnormality(flows) for view in self._views)
        scores, tails = _scored(self._views, abnormality, flows, self._power, _surprise_by_others)
        self._add_calibration(self._calibration(scores, tails, flows, rate))
        return self

    def _calibration(self, scores: np.ndarray, tails: tuple[Tails, ...], flows: FlowTable, rate: float) -> Calibration:
        """Return the calibration by scores of normal flows, in order of time."""
        doubt = doubt_of(scores)
        if doubt:
            warn_caller(doubt)
        offset, traffic = conformal_threshold(scores, rate), described_traffic(flows)
        stored = scores_to_keep(scores), scores_to_keep(thinned(flows, scores))
        return Calibration(now(), offset, rate, len(scores), *stored, tails, traffic)

    @property
    def _tails(self) -> tuple[Tails, ...]:
        return self._active().tails

    @property
    def detector_(self) -> DOCIDSDetector | None:
        """The fitted network of ``"bytes"``; None without that view."""
        return next((view.detector for view in self._views if isinstance(view, NetworkView)), None)

    def stream(self) -> ScoreStream:
        """Return a scorer with a memory, for flows that come in pieces.

        Returns
        -------
        ScoreStream
            Scores of pieces are those of the whole, if pieces follow each other in time.
        """
        check_is_fitted(self)
        return ScoreStream(self)

    def score_samples(self, X: FlowTable) -> np.ndarray:
        """Return how normal flows are.

        Parameters
        ----------
        X : FlowTable
            Flows, sampled like those of `fit`; what came before them is not known.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            At most 0; the lower, the more abnormal.
        """
        return self.stream().score_samples(X)

    def decision_function(self, X: FlowTable) -> np.ndarray:
        """Return the score relative to the threshold: negative is abnormal.

        Parameters
        ----------
        X : FlowTable
            Flows, as in `score_samples`.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            ``score_samples(X) - offset_``.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: FlowTable) -> np.ndarray:
        """Return a verdict per flow.

        Parameters
        ----------
        X : FlowTable
            Flows, as in `score_samples`.

        Returns
        -------
        ndarray of int64, shape (n_flows,)
            +1 for normal, -1 for abnormal.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_values(self, X: FlowTable) -> np.ndarray:
        """Return what each view says of flows.

        Parameters
        ----------
        X : FlowTable
            Flows, as in `score_samples`.

        Returns
        -------
        ndarray of float64, shape (n_flows, n_views)
            How often a normal flow is as abnormal in that view; views in the order of ``view_names_``.
        """
        return self.stream().p_values(X)

    def explain(self, X: FlowTable) -> list[list[ViewReason]]:
        """Return for each flow the views in which it is unusual, the most unusual first.

        Parameters
        ----------
        X : FlowTable
            Flows, as in `score_samples`. To explain some flows of a capture, explain the whole table, or a stream of
            it: what a view says may depend on the flows before.

        Returns
        -------
        list of list of ViewReason
            Those with a p-value of at most 0.05; for a flow that is normal in all views, an empty list.
        """
        return self.stream().explain(X)

    def _made_views(self, reference: Reference | None, n_flows: int) -> list[View]:
        """Return unfitted views; leave out what cannot be."""
        views: list[View] = []
        for view in self.views:
            if view == BYTES and reference is None:
                warn_caller(
                    f"fit without a reference: the view {BYTES!r} is left out; give reference=(X_reference, "
                    "y_reference), or views without it"
                )
            elif view == BYTES and n_flows < network.MIN_FLOWS:
                warn_caller(
                    f"the view {BYTES!r} is left out: its network would learn {n_flows} flows by heart, and flag new "
                    f"normal ones; give at least {network.MIN_FLOWS}, or views without it"
                )
            elif view == BYTES:
                views.append(NetworkView(BYTES, self._network(), _rows_of_reference(reference)))
            elif isinstance(view, str) and view in SIMPLE_VIEWS:
                views.append(SIMPLE_VIEWS[view](view))
            else:
                views.append(_own_view(view))
        names = [view.name for view in views]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"views must be one or more, of different names, got {names}")
        return views

    def _network(self) -> DOCIDSDetector:
        if self.detector is not None:
            return self.detector
        return DOCIDSDetector(batch_size=BATCH_SIZE, verbose=self.verbose)

    def _checked_like_fit(self, X: Any) -> FlowTable:
        """Return a table; refuse one of other rows than those of fit."""
        table = _checked_table(X)
        if (table.X.shape[1], table.layout) != (self._n_columns, self._layout):
            raise ValueError(
                f"X has rows of {table.X.shape[1]} bytes with layout={table.layout!r}, but the detector was fitted on "
                f"{self._n_columns} with layout={self._layout!r}: sample both alike"
            )
        return table

    def _blocks(self, n_flows: int) -> np.ndarray:
        """Return the number of the block of each flow, in order of time; -1 for those that are only learned from."""
        n_blocks = round(1 / self.calibration_share)
        blocks = (np.arange(n_flows) * n_blocks // max(1, n_flows)).astype(np.int32)
        if self.calibration == "later":
            n_judged = round(n_flows * self.calibration_share)
            blocks = np.where(np.arange(n_flows) < n_flows - n_judged, np.int32(-1), np.int32(0))
        else:
            n_judged = n_flows
        n_needed = max(least_held_out(self.false_alarm_rate), MIN_BLOCK * n_blocks)
        if n_judged < n_needed or n_flows < MIN_BLOCK * n_blocks:
            raise ValueError(
                f"false_alarm_rate={self.false_alarm_rate} and calibration={self.calibration!r} with calibration_share="
                f"{self.calibration_share} need {n_needed} normal flows to calibrate with, but X leaves {n_judged}"
            )
        return blocks

    def _surprises(self, abnormality: list[np.ndarray], groups: np.ndarray, tails: tuple[Tails, ...]) -> np.ndarray:
        """Return opposites of logarithms of p-values: (n_flows, n_views)."""
        columns = [
            of_view.surprise(scores, groups if view.groups_by_service else None)
            for view, of_view, scores in zip(self._views, tails, abnormality, strict=True)
        ]
        return np.stack(columns, axis=1)

    def _combined(self, surprises: np.ndarray) -> np.ndarray:
        # One view after the other, as in `_scored`, so that both come to the same to the last bit.
        return -np.asarray(sum(of_view**self._power for of_view in surprises.T))


class Judgement:
    """What a `MultiViewDetector` says of flows: `ScoreStream.judge` makes it.

    Guide: :doc:`/tutorials/from-alarm-to-reason`.

    Parameters
    ----------
    detector : MultiViewDetector
        The fitted detector.
    surprises : ndarray of float64, shape (n_flows, n_views)
        Opposites of logarithms of p-values.
    observations : list of Observation
        What each view saw.
    places : ndarray of int64, shape (n_flows,)
        Where each flow is in the observations.

    Attributes
    ----------
    scores : ndarray of float64, shape (n_flows,)
        As `MultiViewDetector.score_samples`.
    p_values : ndarray of float64, shape (n_flows, n_views)
        As `MultiViewDetector.p_values`.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler, MultiViewDetector
    >>> from sklearn_docids.datasets import make_traffic
    >>> sampler = FlowSampler(layout="payload", output="flows")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flows = sampler.transform(make_traffic(folder, n_flows=200, random_state=0).train)
    >>> detector = MultiViewDetector(views=("statistics", "novelty"), random_state=0).fit(flows)
    >>> judged = detector.stream().judge(flows)
    >>> reasons = judged.reasons(int(judged.scores.argmin()))  # of the most abnormal flow alone
    >>> reasons[0].p_value < 0.01
    True
    """

    def __init__(
        self,
        detector: MultiViewDetector,
        surprises: np.ndarray,
        observations: Sequence[Observation],
        places: np.ndarray,
    ):
        self.scores: np.ndarray = detector._combined(surprises)
        self.p_values: np.ndarray = np.exp(-surprises)
        self._names = detector.view_names_
        self._observations = observations
        self._places = places

    def reasons(self, row: int) -> list[ViewReason]:
        """Return the views in which a flow is unusual, the most unusual first.

        Parameters
        ----------
        row : int
            Row of the flow.

        Returns
        -------
        list of ViewReason
            As `MultiViewDetector.explain` has them of each flow.
        """
        place = int(self._places[row])
        return [
            ViewReason(self._names[view], float(p_value), self._observations[view].reason(place))
            for view, p_value in sorted(enumerate(self.p_values[row]), key=lambda pair: pair[1])
            if p_value <= EXPLAINED_P_VALUE
        ]


class ScoreStream:
    """A fitted `MultiViewDetector` that remembers the flows it has seen.

    Guide: :doc:`/explanation/views`.

    Parameters
    ----------
    detector : MultiViewDetector
        The fitted detector.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler, MultiViewDetector
    >>> from sklearn_docids.datasets import make_traffic
    >>> sampler = FlowSampler(layout="payload", output="flows")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flows = sampler.transform(make_traffic(folder, n_flows=200, random_state=0).train)
    >>> stream = MultiViewDetector(views=("content",), random_state=0).fit(flows).stream()
    >>> [len(stream.score_samples(flows[first : first + 100])) for first in (0, 100)]
    [100, 100]
    """

    def __init__(self, detector: MultiViewDetector):
        self.detector = detector
        self._memories = [view.new_memory() for view in detector._views]

    def score_samples(self, X: FlowTable) -> np.ndarray:
        """Return how normal the next flows are, as `MultiViewDetector.score_samples`.

        Parameters
        ----------
        X : FlowTable
            Flows that begin no earlier than those before, give or take; within X, any order.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            At most 0; the lower, the more abnormal.
        """
        return self._by_pieces(X, lambda judged: judged.scores)

    def p_values(self, X: FlowTable) -> np.ndarray:
        """Return what each view says of the next flows.

        Parameters
        ----------
        X : FlowTable
            Flows, as in `score_samples`.

        Returns
        -------
        ndarray of float64, shape (n_flows, n_views)
            As `MultiViewDetector.p_values`.
        """
        return self._by_pieces(X, lambda judged: judged.p_values)

    def explain(self, X: FlowTable) -> list[list[ViewReason]]:
        """Return for each of the next flows the views in which it is unusual.

        Parameters
        ----------
        X : FlowTable
            Flows, as in `score_samples`.

        Returns
        -------
        list of list of ViewReason
            As `MultiViewDetector.explain`.
        """
        judged = self.judge(X)
        return [judged.reasons(row) for row in range(len(X))]

    def judge(self, X: FlowTable) -> Judgement:
        """Return scores, p-values and, on demand, reasons of the next flows, which are remembered once.

        Parameters
        ----------
        X : FlowTable
            Flows, as in `score_samples`.

        Returns
        -------
        Judgement
            What the views say of each flow.
        """
        return Judgement(self.detector, *self._surprises(X))

    def _by_pieces(self, X: FlowTable, asked: Callable[[Judgement], np.ndarray]) -> np.ndarray:
        """Return what is asked of the judgements of flows, of which one piece after the other is in memory."""
        table = on_demand(self.detector._checked_like_fit(X))
        if len(table) <= ROWS_AT_ONCE:
            return asked(self.judge(table))
        order = np.argsort(table.time_first, kind="stable")
        in_order = np.concatenate([asked(self.judge(table[order[piece]])) for piece in pieces(len(table))])
        found = np.empty_like(in_order)
        found[order] = in_order
        return found

    def _surprises(self, X: FlowTable) -> tuple[np.ndarray, list[Observation], np.ndarray]:
        """Return surprises in the order of X, what views observed in order of time, and where each flow is there."""
        detector = self.detector
        check_is_fitted(detector)
        table = detector._checked_like_fit(X)
        if not len(table):
            return np.zeros((0, len(detector._views))), [], np.zeros(0, np.int64)
        order = np.argsort(table.time_first, kind="stable")
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        flows = table[order]
        pairs = zip(detector._views, self._memories, strict=True)
        observations = [view.observe(flows, memory) for view, memory in pairs]
        abnormality = [observed.abnormality for observed in observations]
        surprises = detector._surprises(abnormality, services(flows), detector._tails)
        return surprises[places], observations, places


def _learn(view: View, flows: FlowTable, blocks: np.ndarray, seed: int) -> np.ndarray:
    """Fit a view, and return how abnormal the flows of each block are to what has not learned from that block."""
    rng = np.random.RandomState(seed)
    if (blocks >= 0).all():
        view.prepare(flows, rng)
        return view.fit_in_blocks(flows, blocks, seed, rng)
    learned = selected_flows(flows, np.flatnonzero(blocks < 0))
    view.prepare(learned, rng)
    view.fit(learned, rng)
    return view.abnormality(flows)[blocks >= 0]


def _scored(
    views: Sequence[View],
    abnormality: Iterable[np.ndarray],
    flows: FlowTable,
    power: float,
    surprise: Callable[[Tails, np.ndarray, np.ndarray | None], np.ndarray],
) -> tuple[np.ndarray, tuple[Tails, ...]]:
    """Return scores of normal flows by what one view after the other says of them, and the tails of each."""
    scores, tails = np.zeros(len(flows)), []
    for view, of_view in zip(views, abnormality, strict=True):
        groups = services(flows) if view.groups_by_service else None
        tails.append(Tails.of(of_view, groups))
        scores -= surprise(tails[-1], of_view, groups) ** power
        del of_view, groups  # before the next view learns
    return scores, tuple(tails)


def _surprise(tails: Tails, abnormality: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return the surprise of flows by the tails that they are part of."""
    found = np.empty(len(abnormality))
    for piece in pieces(len(found)):
        found[piece] = tails.surprise(abnormality[piece], None if groups is None else groups[piece])
    return found


def _surprise_by_others(_: Tails, abnormality: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return the surprise of flows in order of time, every tenth of them by the tails of the others.

    By tails that a flow is part of, it is never beyond the largest: a threshold set by such scores would flag more new
    flows than it was asked for.
    """
    found = np.empty(len(abnormality))
    for first in range(min(N_FOLDS, len(found))):
        own, others = slice(first, None, N_FOLDS), np.arange(len(found)) % N_FOLDS != first
        tails = Tails.of(abnormality[others], None if groups is None else groups[others])
        found[own] = tails.surprise(abnormality[own], None if groups is None else groups[own])
    return found


def _judged(flows: FlowTable, blocks: np.ndarray) -> FlowTable:
    """Return the flows of a block, which a calibration is made of."""
    is_judged = blocks >= 0
    return flows if is_judged.all() else selected_flows(flows, np.flatnonzero(is_judged))


def _checked_table(X: Any) -> FlowTable:
    if not isinstance(X, FlowTable):
        raise TypeError(
            f"X must be a FlowTable, got {type(X).__name__}: FlowSampler(layout='payload', output='flows') makes one "
            "of captures; for rows of bytes there is DOCIDSDetector"
        )
    return X


def _rows_of_reference(reference: Reference | None) -> ReferenceData:
    X, y = unpacked(reference)  # type: ignore[arg-type] # the caller has one
    return ReferenceData(X.X if isinstance(X, FlowTable) else X, y)


def _own_view(view: Any) -> View:
    """Return a view of the user's own."""
    if isinstance(view, str) or not isinstance(view, tuple | list) or len(view) != 3 or not isinstance(view[0], str):
        raise ValueError(f"a view is one of {', '.join(VIEWS)} or (name, detector, columns), got {view!r}")
    name, detector, columns = view
    if name in VIEWS or not hasattr(detector, "fit") or not hasattr(detector, "score_samples"):
        raise ValueError(
            f"the view {name!r} needs a name of its own and an outlier detector with fit and score_samples, got "
            f"{detector!r}"
        )
    return ColumnsView(name, detector, check_columns(name, columns))
