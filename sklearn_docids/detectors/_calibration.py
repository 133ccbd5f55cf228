# SPDX-License-Identifier: BSD-3-Clause
"""Thresholds set anew, by other normal traffic, without training; and the earlier ones, to go back to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sklearn_docids._provenance import MAX_CALIBRATIONS
from sklearn_docids._score_sketch import ScoreSketch
from sklearn_docids._thinning import Thinner
from sklearn_docids._thresholds import doubt_of, least_held_out
from sklearn_docids._views.base import spaced
from sklearn_docids._views.tails import Tails
from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.lazy import on_demand, pieces, selected_flows
from sklearn_docids.capture.table import FlowTable

NO_SCORES = np.zeros(0)
# Scores that a calibration keeps, evenly spaced in time where there are more.
MAX_SCORES = 2**20


class Calibration(NamedTuple):
    """What tells normal scores from abnormal ones, and what it was made of.

    Guide: :doc:`/explanation/thresholds`.

    Parameters
    ----------
    date : str
        When it was made, ISO 8601, UTC.
    offset : float
        Threshold on scores.
    false_alarm_rate : float or None
        Share of new normal flows that may be flagged; None where the threshold flags a share of the training rows.
    n_flows : int
        Flows that have set the threshold.
    scores : ndarray of float64
        Their scores, in order of time, evenly spaced where there are more than 2**20; none where they were learned from
        as well, and say nothing of new flows.
    thinned : ndarray of float64
        Those of one flow per channel and minute; none where nothing is known of channels.
    tails : tuple of Tails
        Of each view of a `MultiViewDetector`.
    traffic : dict or None
        What `~sklearn_docids.persistence.described_traffic` says of the flows; None where they came without a table.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids import AutoencoderDetector
    >>> X = np.random.default_rng(0).integers(0, 50, size=(64, 20), dtype=np.uint8)
    >>> detector = AutoencoderDetector(max_epochs=2, random_state=0).fit(X)
    >>> [calibration.n_flows for calibration in detector.calibrate(X[:50], false_alarm_rate=0.1).calibrations_]
    [64, 50]
    """

    date: str
    offset: float
    false_alarm_rate: float | None
    n_flows: int
    scores: np.ndarray = NO_SCORES
    thinned: np.ndarray = NO_SCORES
    tails: tuple[Tails, ...] = ()
    traffic: dict[str, Any] | None = None


class CalibratedMixin:
    """Mixin of detectors whose threshold can be set anew."""

    _calibration_names: ClassVar[tuple[str, ...]] = (
        "offset_", "calibrations_", "active_calibration_", "provenance_",
    )  # fmt: skip

    offset_: float
    calibrations_: list[Calibration]
    active_calibration_: int
    provenance_: dict[str, Any] | None

    @property
    def calibration_scores_(self) -> np.ndarray:
        """Scores of the flows that set the threshold, in order of time; none where the network has learned them.

        After a calibration by a `~sklearn_docids.monitoring.ScoreSketch`, scores at equal distances of rank, ascending.
        """
        return self._active().scores

    @property
    def thinned_scores_(self) -> np.ndarray:
        """Those of one flow per channel and minute, for `DriftMonitor`; none where nothing is known of channels."""
        return self._active().thinned

    @property
    def false_alarm_rate_(self) -> float | None:
        """Share of new normal flows that the threshold may flag; None where it flags a share of the training rows."""
        return self._active().false_alarm_rate

    def restore_calibration(self, number: int) -> Any:
        """Go back to an earlier calibration: its threshold, and its probabilities of several views.

        Parameters
        ----------
        number : int
            Its place in ``calibrations_``; 0 is that of `fit`.

        Returns
        -------
        self : object
            The detector.

        Raises
        ------
        ValueError
            There is no such calibration.
        """
        check_is_fitted(self)
        if not 0 <= number < len(self.calibrations_):
            raise ValueError(f"there is no calibration {number}: there are 0 to {len(self.calibrations_) - 1}")
        self._activate(number)
        return self

    def _calibrate_by(self, sketch: ScoreSketch, rate: float) -> None:
        """Take the threshold of a sketch; what else is known of normal flows stays, as the scores go by it."""
        check_enough(sketch.n_scores, rate)
        active, offset, scores = self._active(), sketch.threshold(rate), sketch.quantiles()
        doubt = doubt_of(scores)
        if doubt:
            warn_caller(doubt)
        self._add_calibration(Calibration(now(), offset, rate, sketch.n_scores, scores, active.thinned, active.tails))

    def _activate(self, number: int) -> None:
        self.active_calibration_ = number
        self.offset_ = self._active().offset

    def _active(self) -> Calibration:
        return self.calibrations_[self.active_calibration_]

    def _begin_calibrations(self, calibration: Calibration) -> None:
        """Take over the calibration of a fit."""
        self.calibrations_, self.provenance_ = [calibration], None
        self._activate(0)

    def _add_calibration(self, calibration: Calibration) -> None:
        first, *latest = self.calibrations_
        if 1 + len(latest) == MAX_CALIBRATIONS:
            warn_caller(f"calibration 1, of {latest[0].date}, is dropped: {MAX_CALIBRATIONS} are kept, that of fit too")
            latest = latest[1:]
        self.calibrations_ = [first, *latest, calibration]
        self._activate(len(self.calibrations_) - 1)


def now() -> str:
    """Return the time, ISO 8601, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def in_time_order(flows: FlowTable) -> FlowTable:
    """Return flows in the order of their beginnings; those on disk stay there until they are looked at."""
    flows = on_demand(flows)
    times = flows.time_first
    if (times[1:] >= times[:-1]).all():
        return flows
    return selected_flows(flows, np.argsort(times, kind="stable"))


def thinned(flows: FlowTable, scores: np.ndarray) -> np.ndarray:
    """Return the scores of one flow per channel and minute; flows are in order of time."""
    thinner = Thinner()
    chosen = [thinner.chosen(flows[piece]) for piece in pieces(len(flows))]
    return scores[np.concatenate([np.zeros(0, bool), *chosen])]


def scores_to_keep(scores: np.ndarray) -> np.ndarray:
    """Return the scores that a calibration keeps."""
    return scores[spaced(len(scores), MAX_SCORES)] if len(scores) > MAX_SCORES else scores


def check_enough(n_flows: int, rate: float) -> None:
    """Refuse too few flows before they are scored."""
    n_needed = max(2, least_held_out(rate))
    if n_flows < n_needed:
        raise ValueError(
            f"false_alarm_rate={rate:g} needs at least {n_needed} normal flows to calibrate with, got {n_flows}: give "
            "more traffic, or a higher rate"
        )


def checked_rate(rate: Any) -> float:
    """Return a rate of false alarms; refuse one out of range."""
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not 0 < rate <= 0.5:
        raise ValueError(f"false_alarm_rate must be a number in (0, 0.5], got {rate!r}")
    return float(rate)
