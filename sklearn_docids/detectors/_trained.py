# SPDX-License-Identifier: BSD-3-Clause
"""The base of the detectors with a network: one way of fitting them, whatever the network and its score are.

A fit checks and splits its rows, has `fit_network` train, makes a scorer of the network, and sets a threshold. A child
says what its network, its losses and its scorer are.
"""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sklearn_docids._meta import forget_fit
from sklearn_docids._network.tensors import StoredNetwork, resolved_device
from sklearn_docids._provenance import described_traffic
from sklearn_docids._score_sketch import ScoreSketch
from sklearn_docids._thresholds import AUTO_CONTAMINATION, conformal_threshold, doubt_of
from sklearn_docids._training.net import TrainingSettings, WeightedLosses
from sklearn_docids._training.pairs import PairedFlows
from sklearn_docids._training.run import AUTO_STEPS, Trained, fit_network, n_epochs
from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.detectors._base import ScoringDetector, check_range, rows_of_fit, rows_to_score
from sklearn_docids.detectors._calibration import (
    NO_SCORES,
    CalibratedMixin,
    Calibration,
    check_enough,
    checked_rate,
    in_time_order,
    now,
    scores_to_keep,
    thinned,
)
from sklearn_docids.detectors._callbacks import CallbackSupportMixin, FitTasks, available_if, with_callbacks
from sklearn_docids.detectors._profile import RowProfile, check_reference_rows
from sklearn_docids.detectors._reference import Reference
from sklearn_docids.detectors._rows import FitRows, checked_callbacks, split, threshold
from sklearn_docids.detectors._templates import Drawn

if TYPE_CHECKING:
    from sklearn_docids._sampler import FlowSampler

# Packets of a row where nothing says otherwise (paper, section 3.2).
N_PACKETS = 4
# Training rows that are looked at to see whether a network tells anything apart.
N_ROWS_COMPARED = 256


def _takes_more(detector: TrainedDetector) -> bool:
    if detector.early_stopping:
        raise AttributeError("early_stopping=True compares epochs, and partial_fit has but one")
    return True


class TrainedDetector(CallbackSupportMixin, CalibratedMixin, ScoringDetector):
    """Base of the detectors with a network, which `fit` trains."""

    # scikit-learn's metadata routing: fit takes the reference without being asked to.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"reference": True}
    __metadata_request__partial_fit: ClassVar[dict[str, bool]] = {"reference": True}

    reads_pieces = True
    _network_class: ClassVar[type[StoredNetwork]]
    _fitted_names: ClassVar[tuple[str, ...]] = (
        *CalibratedMixin._calibration_names, "network_", "history_", "n_iter_", "interrupted_", "callbacks_",
        "sampler_", "_scorer", "_moments", "_split_seed", "_n_rows_seen", "_profile",
    )  # fmt: skip

    contamination: str | float
    false_alarm_rate: float | None
    validation_fraction: float
    max_epochs: str | int
    batch_size: int
    schedule: str | None
    early_stopping: bool
    warm_start: bool
    checkpoint_folder: str | os.PathLike[str] | None
    callbacks: list[Any] | None
    device: str
    random_state: int | np.random.RandomState | None
    verbose: int

    network_: Any
    n_features_in_: int
    n_iter_: int
    history_: list[dict[str, Any]]
    interrupted_: bool
    callbacks_: list[Any]
    sampler_: FlowSampler | None
    _scorer: Any
    _moments: dict[str, np.ndarray] | None
    _split_seed: int
    _n_rows_seen: int
    _profile: RowProfile

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "false_alarm_rate": [Interval(Real, 0, 0.5, closed="right"), None],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "max_epochs": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "optimizer": [StrOptions({"adamw", "sgd"})],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "schedule": [StrOptions({"one_cycle"}), None],
        "scale": [Interval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "checkpoint_folder": [str, os.PathLike, None],
        "callbacks": [list, None],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    @with_callbacks
    def fit(self, X: ArrayLike, y: object = None, *, reference: Reference | None = None) -> Self:
        """Train on normal target traffic, `DOCIDSDetector` with a labelled reference next to it.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Target flows, unlabelled and normal; at least 2. uint8 stays uint8, other numbers become float32 batch by
            batch. Values outside 0..255 are accepted. Of a memory map, or of the ``X`` of a table that lies in files, a
            piece is in memory at a time.
        y : object, default=None
            Not used for training; handed to scikit-learn's callbacks.
        reference : ReferenceData or tuple (X_reference, y_reference), default=None
            Labelled reference flows with the columns of X and at least two classes. None trains without the
            descriptiveness loss. The paper's two baselines accept and ignore it.

        Returns
        -------
        self : object
            The fitted detector.

        Raises
        ------
        ValueError
            A parameter, X or the reference is unusable; the message names it. With ``warm_start=True`` the detector
            stays as it was.
        OSError
            ``checkpoint_folder`` is not a folder that can be written to.
        KeyboardInterrupt
            Ctrl-C was pressed during training; the detector is usable and says ``interrupted_``.

        Warns
        -----
        UserWarning
            There is no reference, although the descriptiveness loss has a weight; the reference is of another kind than
            X (scale, link header or VLAN tag, header-field policy); or the threshold separates nothing, as where all
            rows are alike.
        ConvergenceWarning
            A loss was not finite, or Ctrl-C was pressed; training stopped and recent finite weights are kept. Or the
            network makes the same of all rows.
        """
        self._validate_params()
        return self._fit(X, y, reference, goes_on=self.warm_start and hasattr(self, "network_"))

    @available_if(_takes_more)
    @with_callbacks
    def partial_fit(self, X: ArrayLike, y: object = None, *, reference: Reference | None = None) -> Self:
        """Train for one pass over more target traffic, from the weights and the optimiser's moments there are.

        The learning rate is ``lr`` throughout, since the number of steps to come is not known. Templates
        (`DOCIDSDetector` with ``score_method="knn"``) remain a random sample of all rows seen so far, and with
        ``contamination`` the threshold counts them for the rows they stand for. Without templates, or with
        ``false_alarm_rate``, it is set by the rows of this call, because earlier rows are not kept.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Target flows, unlabelled and normal; at least 2.
        y : object, default=None
            Not used for training; handed to scikit-learn's callbacks.
        reference : ReferenceData or tuple (X_reference, y_reference), default=None
            Labelled reference flows; the first call sets the classes, later ones may lack some of them.

        Returns
        -------
        self : object
            The fitted detector.

        Raises
        ------
        ValueError
            A parameter, X or the reference is unusable; the detector stays as it was.
        AttributeError
            ``early_stopping`` is on: one pass has no epochs to compare.
        KeyboardInterrupt
            As in `fit`.

        Warns
        -----
        UserWarning, ConvergenceWarning
            As in `fit`.
        """
        self._validate_params()
        return self._fit(X, y, reference, goes_on=hasattr(self, "network_"), is_partial=True)

    def _fit(
        self, X: ArrayLike, y: Any, reference: Reference | None, *, goes_on: bool, is_partial: bool = False
    ) -> Self:
        """Check, train, make the scorer, set the threshold; from an earlier fit if this one goes on from it."""
        if not goes_on:
            forget_fit(self)
        rows = self._checked_rows(X, reference, goes_on)
        if self.max_epochs == "auto" and not is_partial:
            rows = rows.with_at_most(AUTO_STEPS * self.batch_size)
        settings = self._training_settings(rows, is_partial)
        learned = partial(self._learned, rows=rows, adds_up=is_partial and goes_on)
        with self._tasks(X, y, settings.n_epochs, lambda trained: learned(trained)[0]) as on_epoch:
            trained = fit_network(
                partial(self._network_class, **self._network_settings(rows.training.shape[1], rows.classes)),
                self._losses(),
                PairedFlows(rows.training, rows.reference, rows.labels, settings.device),
                settings,
                start=self._as_trained() if goes_on else None,
                held_out=rows.stopping,
                callbacks=checked_callbacks(self.callbacks, settings.schedule),
                checkpoint=self._checked_folder(),
                on_epoch=on_epoch,
            )
            fitted, doubt = learned(trained)
        if not math.isfinite(fitted["offset_"]):
            raise ValueError("scores of the training rows are not finite; lower lr, or look for extreme values in X")
        self._say_what_tells_nothing_apart(fitted["_scorer"], rows, doubt)
        for name, value in fitted.items():
            setattr(self, name, value)
        self._moments = trained.moments if self.warm_start or is_partial else None
        if trained.checkpoint is not None and (self.warm_start or not trained.interrupted):
            trained.checkpoint.remove()
        self._say_how_it_ended(trained)
        return self

    def _checked_rows(self, X: ArrayLike, reference: Reference | None, goes_on: bool) -> FitRows:
        """Return the input of a fit, checked and split."""
        rows, profile = rows_of_fit(self, X, goes_on=goes_on, min_samples=2)
        given = self._checked_reference(reference, len(check_range(rows)), goes_on)
        check_reference_rows(profile, given.get("reference"))
        return split(self, rows, self._split_seed if goes_on else None)._replace(profile=profile, **given)

    def _checked_reference(self, reference: Reference | None, n_rows: int, goes_on: bool) -> dict[str, Any]:
        """Return ``reference``, ``labels`` and ``classes`` of `FitRows`; nothing where no reference is used."""
        return {}

    def _training_settings(self, rows: FitRows, is_partial: bool) -> TrainingSettings:
        names = (
            "batch_size", "optimizer", "lr", "momentum", "weight_decay", "n_iter_no_change", "tol", "verbose"
        )  # fmt: skip
        return TrainingSettings(
            **{name: getattr(self, name) for name in names},
            n_epochs=1 if is_partial else n_epochs(self.max_epochs, len(rows.training), self.batch_size),
            schedule=None if is_partial else self.schedule,
            device=resolved_device(self.device),
            seed=rows.seed,
        )

    def _tasks(
        self, X: ArrayLike, y: Any, n_epochs: int, learned: Callable[[Trained], dict[str, Any]]
    ) -> AbstractContextManager[FitTasks | None]:
        """Return what tells scikit-learn's callbacks of the fit, where it has callbacks."""
        if not hasattr(self, "_init_callback_context"):
            return nullcontext()
        return FitTasks(self, X, y, n_epochs, learned)

    def _checked_folder(self) -> str | None:
        if self.checkpoint_folder is None:
            return None
        if not isinstance(self.random_state, Integral):
            raise ValueError("checkpoint_folder needs an int as random_state: else no fit draws what another one drew")
        return os.fsdecode(self.checkpoint_folder)

    def _as_trained(self) -> Trained:
        """Return the fit before, to go on from."""
        return Trained(self.network_, self.history_, self.n_iter_, moments=self._moments)

    @abstractmethod
    def _network_settings(self, n_columns: int, classes: np.ndarray | None) -> dict[str, Any]:
        """Return the arguments of the network."""

    @abstractmethod
    def _losses(self) -> WeightedLosses:
        """Return what training minimises."""

    def _draw_templates(self, rows: FitRows, adds_up: bool) -> Drawn:
        """Return the templates of a scorer that has any; ``adds_up``: those of earlier rows count, too."""
        return Drawn(None, 0, rows.target)

    @abstractmethod
    def _make_scorer(self, network: Any, arrays: dict[str, np.ndarray]) -> Any:
        """Return what scores with a network, and with arrays that it holds besides: those of its ``arrays()``."""

    def _learned(self, trained: Trained, rows: FitRows, adds_up: bool) -> tuple[dict[str, Any], str]:
        """Return the fitted attributes, and what is to be doubted of the threshold."""
        drawn = self._draw_templates(rows, adds_up)
        n_seen = self._n_rows_seen if adds_up else 0
        scorer = self._make_scorer(
            trained.network, {} if drawn.templates is None else {"template_flows": drawn.templates}
        )
        kept = (scorer.score_templates()[: drawn.n_kept], n_seen) if drawn.n_kept else None
        score = partial(scorer.score, device=resolved_device(self.device))
        found = threshold(self, score, rows, drawn.others, kept)
        calibration = Calibration(
            now(), found.offset, self.false_alarm_rate, found.n_rows, scores_to_keep(found.held_out)
        )
        fitted = {
            "network_": trained.network,
            "offset_": found.offset,
            "calibrations_": [calibration],
            "active_calibration_": 0,
            "provenance_": None,
            "history_": trained.history,
            "n_iter_": trained.n_epochs,
            "interrupted_": trained.interrupted,
            "callbacks_": list(trained.callbacks),
            "sampler_": getattr(self, "sampler_", None),
            "_scorer": scorer,
            "_split_seed": rows.split_seed,
            "_n_rows_seen": n_seen + len(rows.target),
            "_profile": rows.profile,
            **({"reference_classes_": rows.classes} if "reference_classes_" in self._fitted_names else {}),
        }
        return fitted, found.doubt

    def _say_what_tells_nothing_apart(self, scorer: Any, rows: FitRows, doubt: str) -> None:
        """Warn of a network that makes the same of all rows, and otherwise of a threshold to be doubted."""
        some = rows.target[:N_ROWS_COMPARED]
        places = scorer.places_of(some, resolved_device(self.device))
        if len(some) > 2 and (some != some[0]).any() and (places == places[0]).all():
            warn_caller(
                f"the network makes the same of {len(some)} different training rows: it tells nothing apart; "
                "lower lr, or train longer",
                ConvergenceWarning,
            )
        elif doubt:
            warn_caller(doubt)

    def _say_how_it_ended(self, trained: Trained) -> None:
        try:
            if trained.ended_early:
                warn_caller(trained.ended_early, ConvergenceWarning)
        finally:  # even where the warning is an error
            if trained.interrupted:
                # Usable from here on, and the search or script around it ends as its user wants.
                raise KeyboardInterrupt("training was interrupted; the detector is fitted as far as it came")

    def calibrate(self, X: ArrayLike | FlowTable | ScoreSketch, *, false_alarm_rate: float | None = None) -> Self:
        """Set the threshold anew by other normal traffic, without training.

        The earlier threshold stays in ``calibrations_``, for `restore_calibration`. Where a tenth or more of the rows
        are of another kind than those of `fit`, as from another link layer, train anew: no threshold helps.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns), FlowTable or ScoreSketch
            Normal flows that `fit` has not seen, sampled alike; of a table, the rows are scored, and its times and
            channels let `~sklearn_docids.monitoring.DriftMonitor` compare later traffic with it. Or a
            `~sklearn_docids.monitoring.ScoreSketch` of what `score_samples` says of such flows, perhaps of many.
        false_alarm_rate : float or None, default=None
            Share of new normal flows that may be flagged, in (0, 0.5]. None: the parameter of that name, or, where that
            is None, the share of ``contamination``.

        Returns
        -------
        self : object
            The detector, with a new ``offset_``. Its parameters stay as they are.

        Raises
        ------
        ValueError
            Too few flows for the rate, rows of another width or scale, or a rate out of range or below the error of a
            sketch.

        Warns
        -----
        UserWarning
            The threshold separates nothing; rows are of another kind than those of `fit`; or an old calibration is
            dropped.
        """
        check_is_fitted(self)
        rate = checked_rate(self._default_rate() if false_alarm_rate is None else false_alarm_rate)
        if isinstance(X, ScoreSketch):
            self._calibrate_by(X, rate)
            return self
        flows = in_time_order(X) if isinstance(X, FlowTable) else None
        scores = self.score_samples(X if flows is None else flows.X)
        check_enough(len(scores), rate)
        self._add_calibration(
            Calibration(
                now(),
                conformal_threshold(scores, rate),
                rate,
                len(scores),
                scores_to_keep(scores),
                NO_SCORES if flows is None else scores_to_keep(thinned(flows, scores)),
                traffic=None if flows is None else described_traffic(flows),
            )
        )
        doubt = doubt_of(scores)
        if doubt:
            warn_caller(doubt)
        return self

    def _default_rate(self) -> float:
        if self.false_alarm_rate is not None:
            return self.false_alarm_rate
        return AUTO_CONTAMINATION if self.contamination == "auto" else float(self.contamination)

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """Return how normal flows are: the lower, the more abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            Opposite of the reconstruction error (`reconstruction_error`), or, from `DOCIDSDetector` with
            ``score_method="knn"``, of the mean distance to the nearest templates; at most 0.

        Raises
        ------
        ValueError
            X is at another scale than the rows of `fit`; or a score is not finite: X has extreme values, or the weights
            of the network are of no use.

        Warns
        -----
        UserWarning
            A tenth of the rows or more, and at least 20, begin with a link header, tag or IP version that hardly any
            row of `fit` has, or header fields are zero in the rows of one of the two alone: they were captured or
            sampled otherwise, and their scores mean little.
        """
        X = self._checked_for_scoring(X)
        scores = np.asarray(self._scorer.score(X, resolved_device(self.device)))
        if not np.isfinite(scores).all():
            raise ValueError("a score is not finite: X has extreme values, or the network's weights are of no use")
        return scores

    def _checked_for_scoring(self, X: ArrayLike) -> np.ndarray:
        return check_range(rows_to_score(self, X))

    def _packet_shape(self, n_packets: int | None) -> tuple[int, int]:
        """Return the number of packets of a row, and of bytes of each."""
        if n_packets is None:
            n_packets = N_PACKETS if self.sampler_ is None else self.sampler_.n_packets
        if n_packets < 1 or self.n_features_in_ % n_packets:
            raise ValueError(
                f"X has {self.n_features_in_} columns, which do not divide into n_packets={n_packets} packets"
            )
        return n_packets, self.n_features_in_ // n_packets
