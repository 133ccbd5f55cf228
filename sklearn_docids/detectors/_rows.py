# SPDX-License-Identifier: BSD-3-Clause
"""What a fit of a detector is given, checked and split before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import skorch.callbacks
from sklearn.utils import check_random_state

from sklearn_docids._thresholds import (
    AUTO_CONTAMINATION,
    conformal_threshold,
    contamination_threshold,
    doubt_of,
    least_held_out,
    pooled_threshold,
)
from sklearn_docids._training.net import WeightedLosses
from sklearn_docids.capture.lazy import selected
from sklearn_docids.detectors._profile import RowProfile

Score = Callable[[np.ndarray], np.ndarray]


class FitRows(NamedTuple):
    """Checked input of one fit."""

    training: np.ndarray
    stopping: np.ndarray | None  # held out for early stopping
    threshold: np.ndarray | None  # held out for the threshold
    target: np.ndarray  # all but those held out for the threshold
    split_seed: int
    seed: int
    template_seed: int
    profile: RowProfile | None = None  # of target and threshold rows, and those of earlier fits
    reference: np.ndarray | None = None
    labels: np.ndarray | None = None  # class numbers of the reference
    classes: np.ndarray | None = None

    def with_at_most(self, n_rows: int) -> FitRows:
        """Return this with at most so many rows to train on, drawn at random."""
        if len(self.training) <= n_rows:
            return self
        places = np.random.default_rng(self.seed).choice(len(self.training), n_rows, replace=False)
        return self._replace(training=self.training[np.sort(places)])


def split(detector: Any, X: np.ndarray, split_seed: int | None) -> FitRows:
    """Return rows to train on and held-out rows.

    A fit that goes on gives the seed of the split before: it must not train on rows that were held out then.
    """
    draws = check_random_state(detector.random_state).randint(2**31 - 1, size=3)
    split_seed, seed, template_seed = int(draws[0]) if split_seed is None else split_seed, int(draws[1]), int(draws[2])
    rng = np.random.RandomState(split_seed)
    threshold = stopping = None
    target = X
    if detector.false_alarm_rate is not None:
        target, threshold = hold_out(X, detector.validation_fraction, rng)
        _check_held_out(detector, len(X), len(target), len(threshold))
    training = target
    if detector.early_stopping:
        training, stopping = hold_out(target, detector.validation_fraction, rng)
        if min(len(training), len(stopping)) < 2:
            raise ValueError(
                f"early_stopping needs 2 rows to train on and 2 held-out rows, but validation_fraction="
                f"{detector.validation_fraction} of {len(target)} rows holds out {len(stopping)}"
            )
    return FitRows(training, stopping, threshold, target, split_seed, seed, template_seed)


def hold_out(X: np.ndarray, share: float, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Return other rows and held-out rows, a share of all, both in their order."""
    n_held_out = round(share * len(X))
    order = rng.permutation(len(X))
    return selected(X, np.sort(order[n_held_out:])), selected(X, np.sort(order[:n_held_out]))


def _check_held_out(detector: Any, n_rows: int, n_others: int, n_held_out: int) -> None:
    if detector.contamination != "auto":
        raise ValueError("contamination and false_alarm_rate both set the threshold: give one of them")
    n_needed = least_held_out(detector.false_alarm_rate)
    if n_held_out < n_needed or n_others < 2:
        raise ValueError(
            f"false_alarm_rate={detector.false_alarm_rate} needs at least {n_needed} held-out rows and 2 rows to train "
            f"on, but validation_fraction={detector.validation_fraction} of {n_rows} rows holds out {n_held_out}"
        )


class Threshold(NamedTuple):
    """A threshold on scores, and how it came about."""

    offset: float
    doubt: str  # why it separates nothing, if so
    n_rows: int  # that have set it
    held_out: np.ndarray  # scores of these, if they were held out


def threshold(
    detector: Any, score: Score, rows: FitRows, others: np.ndarray, kept: tuple[np.ndarray, int] | None = None
) -> Threshold:
    """Return the threshold by held-out rows, or by a share of training rows: of ``others`` with "auto".

    ``kept``: scores that are left of rows of earlier fits, and the number of those rows.
    """
    if rows.threshold is not None:
        scores = score(rows.threshold)
        offset = conformal_threshold(scores, detector.false_alarm_rate)
        return Threshold(offset, doubt_of(scores), len(scores), scores)
    is_auto = detector.contamination == "auto"
    share = AUTO_CONTAMINATION if is_auto else float(detector.contamination)
    scores = score(others if is_auto else rows.target)
    if kept is None:
        return Threshold(contamination_threshold(scores, share), doubt_of(scores, share), len(scores), scores[:0])
    offset, together = pooled_threshold(*kept, scores, len(rows.target), share), np.concatenate([kept[0], scores])
    return Threshold(offset, doubt_of(together), len(together), scores[:0])


def check_losses(losses: WeightedLosses, has_reference: bool, early_stopping: bool = False) -> None:
    """Refuse weights that leave nothing to do."""
    of_target = {"compactness", "reconstruction"} & set(losses.weights)
    if not of_target and not (has_reference and "descriptiveness" in losses.weights):
        raise ValueError(
            "all losses have weight 0 (without a reference, there is no descriptiveness loss): nothing is left to train"
        )
    if not of_target and early_stopping:
        raise ValueError(
            "early_stopping watches the target losses, but lambda_compactness and lambda_reconstruction are 0"
        )


def checked_callbacks(callbacks: list[Any] | None, schedule: str | None) -> list[Any]:
    """Return skorch callbacks; refuse what cannot be called, or would set the learning rate against a schedule."""
    for callback in callbacks or ():
        if not isinstance(callback, skorch.callbacks.Callback):
            raise ValueError(f"callbacks must be a list of skorch callbacks, got a {type(callback).__name__} in it")
        if isinstance(callback, skorch.callbacks.LRScheduler) and schedule is not None:
            raise ValueError(f"callbacks has an LRScheduler, and schedule={schedule!r}: give one of them")
    return callbacks or []
