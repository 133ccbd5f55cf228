# SPDX-License-Identifier: BSD-3-Clause
"""What all detectors of this package share: verdicts, thresholds, held-out rows, devices."""

from __future__ import annotations

import math
import os
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

if TYPE_CHECKING:
    from sklearn_docids._sampler import FlowSampler

# "auto" trains for about as many steps as the prototypes needed, whatever the size of the target.
AUTO_STEPS = 500
# ``contamination="auto"``: share of the training rows that may be flagged.
AUTO_CONTAMINATION = 0.01
DEVICES = ("cpu", "cuda", "mps", "xpu")


class ScoringDetector(OutlierMixin, BaseEstimator, metaclass=ABCMeta):
    """Base of all detectors: a child has `score_samples` and, once fitted, ``offset_``."""

    offset_: float

    @abstractmethod
    def score_samples(self, X: Any) -> np.ndarray:
        """Return how normal flows are: the lower, the more abnormal."""

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the score relative to the threshold: negative is abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            ``score_samples(X) - offset_``.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return a verdict per flow.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of int64, shape (n_flows,)
            +1 for normal, -1 for abnormal.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)


class FlowDetector(ScoringDetector):
    """Base of the detectors with a network, which `fit` trains."""

    contamination: str | float
    false_alarm_rate: float | None
    validation_fraction: float
    max_epochs: str | int
    device: str
    n_packets: int
    network_: Any
    n_features_in_: int

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_packets": [Interval(Integral, 1, None, closed="left")],
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
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def save(self, path: str | os.PathLike[str], *, sampler: FlowSampler | None = None) -> None:
        """Write the fitted detector as one safetensors file with JSON metadata; no code is stored.

        Parameters
        ----------
        path : path
            File to write; an existing one is replaced as a whole.
        sampler : FlowSampler, default=None
            Sampler whose settings belong to the model; `load_detector` returns it as ``sampler_``.

        See Also
        --------
        sklearn_docids.load_detector : Reads the file.
        """
        from sklearn_docids.persistence import save_detector

        check_is_fitted(self)
        save_detector(self, os.fsdecode(path), sampler)

    def _threshold(
        self,
        score: Callable[[np.ndarray], np.ndarray],
        held_out: np.ndarray | None,
        others: np.ndarray,
        target: np.ndarray,
    ) -> float:
        """Return the threshold by held-out rows, or by a share of training rows: of ``others`` with "auto"."""
        if held_out is not None and self.false_alarm_rate is not None:
            return conformal_threshold(score(held_out), self.false_alarm_rate)
        with np.errstate(invalid="ignore"):  # infinite scores give NaN, which `fit` refuses
            if self.contamination == "auto":
                return float(np.percentile(score(others), 100 * AUTO_CONTAMINATION))
            return float(np.percentile(score(target), 100 * float(self.contamination)))

    def _n_epochs(self, steps_per_epoch: int) -> int:
        if self.max_epochs == "auto":
            return max(1, round(AUTO_STEPS / steps_per_epoch))
        return int(self.max_epochs)

    def _device(self) -> str:
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if self.device.partition(":")[0] not in DEVICES:
            raise ValueError(f"device must be 'auto' or one of {DEVICES}, perhaps with a number, got {self.device!r}")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device={self.device!r} is none: {error}") from None
        return self.device

    def _hold_out_for_threshold(self, X: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Return other rows, and rows to set the threshold with, as many as ``false_alarm_rate`` needs."""
        if self.contamination != "auto":
            raise ValueError("contamination and false_alarm_rate both set the threshold: give one of them")
        # 1 / (1 / 49) is more than 49, and the reciprocal of the smallest numbers infinite.
        n_needed = math.ceil(min(1 / float(self.false_alarm_rate or 1), 1e18) - 1e-9) - 1
        others, held_out = self._hold_out(X, rng)
        if len(held_out) < n_needed or len(others) < 2:
            raise ValueError(
                f"false_alarm_rate={self.false_alarm_rate} needs at least {n_needed} held-out rows and 2 rows to train "
                f"on, but validation_fraction={self.validation_fraction} of {len(X)} rows holds out {len(held_out)}"
            )
        return others, held_out

    def _hold_out(self, X: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Return other rows and held-out rows, ``validation_fraction`` of all, both in their order."""
        n_held_out = round(self.validation_fraction * len(X))
        order = rng.permutation(len(X))
        return X[np.sort(order[n_held_out:])], X[np.sort(order[:n_held_out])]

    def _packets_of(self, by_byte: np.ndarray) -> np.ndarray:
        """Return values per column as (n_flows, n_packets, bytes of a packet)."""
        return by_byte.reshape(len(by_byte), self.n_packets, -1)

    def _check_packets(self, X: np.ndarray) -> None:
        if X.shape[1] % self.n_packets:
            raise ValueError(f"X has {X.shape[1]} columns, which do not divide into n_packets={self.n_packets} packets")

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether there is a fit; a refused one leaves the number of columns behind."""
        return hasattr(self, "offset_")

    def _check_rows(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return check_range(validate_data(self, X, reset=False))


def check_range(X: np.ndarray) -> np.ndarray:
    """Return X; refuse numbers that would be infinite in float32, in which networks compute."""
    wide = X.dtype.kind == "f" and X.dtype.itemsize > 4
    if wide and X.size and max(abs(X.max()), abs(X.min())) > np.finfo(np.float32).max:
        raise ValueError("Input X contains values too large for float32")
    return X


def seeded_clone(estimator: Any, seed: int) -> Any:
    """Return a clone with the seed as every ``random_state`` in it."""
    cloned = clone(estimator)
    names = [name for name in cloned.get_params() if name.split("__")[-1] == "random_state"]
    return cloned.set_params(**dict.fromkeys(names, seed))


def conformal_threshold(scores: np.ndarray, rate: float) -> float:
    """Return the threshold below which a new score falls with a probability of at most ``rate``.

    Of n held-out scores and a new one, drawn alike, each is equally likely to be the k-th lowest: the new one is below
    the k-th lowest held-out score with probability k / (n + 1) at most.
    """
    # The product may fall just short of the whole number it stands for: 0.29 * 100 < 29.
    k = int(rate * (len(scores) + 1) + 1e-9)
    return float(np.sort(scores)[k - 1])
