# SPDX-License-Identifier: BSD-3-Clause
"""What all detectors of this package share: verdicts, thresholds, held-out rows, devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_docids._thresholds import (
    AUTO_CONTAMINATION,
    conformal_threshold,
    contamination_threshold,
    least_held_out,
)
from sklearn_docids.detectors._base import ScoringDetector, check_range

if TYPE_CHECKING:
    from sklearn_docids._sampler import FlowSampler

# "auto" trains for about as many steps as the prototypes needed, whatever the size of the target.
AUTO_STEPS = 500
DEVICES = ("cpu", "cuda", "mps", "xpu")


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
        if self.contamination == "auto":
            return contamination_threshold(score(others), AUTO_CONTAMINATION)
        return contamination_threshold(score(target), float(self.contamination))

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
        n_needed = least_held_out(float(self.false_alarm_rate or 1))
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
