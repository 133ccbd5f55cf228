# SPDX-License-Identifier: BSD-3-Clause
"""What a model file holds of a `TrainedDetector`: weights, the arrays of its scorer, and the rest as JSON."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from sklearn_docids import _sealed
from sklearn_docids._sealed import SealedFileError, is_count, is_strings
from sklearn_docids._stored import calibrations
from sklearn_docids._stored.parameters import KINDS, MAX_COLUMNS, MAX_INT, description_of, made, storable
from sklearn_docids.detectors._profile import RowProfile, is_profile
from sklearn_docids.detectors._trained import TrainedDetector

MAX_LABEL = 1024
# Epochs of the history that are stored, the last ones.
MAX_HISTORY = 5000
CONFIG_KEYS = {
    "parameters", "n_features_in", "feature_names_in", "classes", "offset", "n_iter", "n_rows_seen", "interrupted",
    "split_seed", "history", "arrays", "rows", "calibrations", "active_calibration",
}  # fmt: skip


def stored(detector: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config and the tensors of a fitted detector.

    Raises
    ------
    ValueError
        Parameters were changed after the fit.
    """
    _check_unchanged(detector)
    arrays = detector._scorer.arrays()
    tensors = {f"network.{name}": value for name, value in detector.network_.state_dict().items()}
    tensors.update({f"arrays.{name}": torch.from_numpy(value) for name, value in arrays.items()})
    of_calibrations, more = calibrations.stored(detector.calibrations_, ())
    tensors.update({f"calibrations.{name}": torch.from_numpy(np.array(array)) for name, array in more.items()})
    names = getattr(detector, "feature_names_in_", None)
    classes = getattr(detector, "reference_classes_", None)
    config = {
        "parameters": storable(detector.get_params(deep=False)),
        "n_features_in": detector.n_features_in_,
        "feature_names_in": None if names is None else list(names),
        "classes": None if classes is None else classes.tolist(),
        "offset": detector.offset_,
        "n_iter": detector.n_iter_,
        "n_rows_seen": detector._n_rows_seen,
        "interrupted": detector.interrupted_,
        "split_seed": detector._split_seed,
        "history": detector.history_[-MAX_HISTORY:],
        "arrays": description_of(arrays),
        "rows": detector._profile._asdict(),
        "calibrations": of_calibrations,
        "active_calibration": detector.active_calibration_,
    }
    return config, tensors


def _check_unchanged(detector: TrainedDetector) -> None:
    """Refuse what would load as another detector than the one at hand."""
    now = detector.get_params(deep=False)
    changed = [name for name, value in detector._scorer.settings.items() if now.get(name, value) != value]
    if changed:
        raise ValueError(f"{changed} were changed after fit; fit again before saving")


def row_format(detector: TrainedDetector) -> tuple[int, None]:
    """Return the number of columns that a detector takes, and None: it takes rows of any layout."""
    return detector.n_features_in_, None


class Reader:
    """A config that was checked: names its tensors, and makes the fitted detector of them.

    Parameters
    ----------
    estimator : type
        Class of the detector.
    config : dict
        What `stored` returned, or a stranger wrote.

    Raises
    ------
    SealedFileError
        A field is unusable.
    """

    def __init__(self, estimator: type[TrainedDetector], config: dict[str, Any]):
        _sealed.check_fields(
            config,
            CONFIG_KEYS,
            {
                "parameters": lambda value: isinstance(value, dict),
                "n_features_in": lambda value: is_count(value) and value <= MAX_COLUMNS,
                "feature_names_in": lambda value: value is None or _are_names(value, config["n_features_in"]),
                "classes": lambda value: value is None or _are_classes(value),
                "offset": _sealed.is_number,
                "n_iter": lambda value: value == 0 or is_count(value),
                "n_rows_seen": lambda value: type(value) is int and 0 <= value < MAX_INT,
                "interrupted": lambda value: type(value) is bool,
                "split_seed": lambda value: type(value) is int and 0 <= value < 2**32,
                "history": _sealed.is_history,
                "arrays": lambda value: isinstance(value, dict) and all(map(_is_array, value.values())),
                "rows": is_profile,
            },
        )
        self.config = config
        self.detector: Any = made(estimator, config["parameters"])
        if config["classes"] is not None and "reference_classes_" not in self.detector._fitted_names:
            raise SealedFileError(f"a {estimator.__name__} has no reference")
        self.calibrations = calibrations.CalibrationsReader(config["calibrations"], config["active_calibration"])
        self.settings = dict(self.detector._network_settings(config["n_features_in"], config["classes"]))

    def expected(self) -> _sealed.Expected:
        """Return what tensors the file must hold."""
        network = self.detector._network_class.without_memory(self.settings)
        expected = {f"network.{name}": entry for name, entry in _sealed.described(network.state_dict()).items()}
        for name, (kind, *shape) in self.config["arrays"].items():
            expected[f"arrays.{name}"] = (kind, shape)
        expected.update({f"calibrations.{name}": entry for name, entry in self.calibrations.expected().items()})
        return expected

    def fitted(self, tensors: dict[str, torch.Tensor]) -> Any:
        """Return the detector with what a fit would have given it."""
        detector, config = self.detector, self.config
        weights = {name: value.numpy() for name, value in _sealed.part(tensors, "network.").items()}
        if any(bool((value < 0).any()) for name, value in weights.items() if name.endswith("running_var")):
            raise SealedFileError("a running variance is negative")
        detector.n_features_in_ = config["n_features_in"]
        if config["feature_names_in"] is not None:
            detector.feature_names_in_ = np.array(config["feature_names_in"], dtype=object)
        detector.network_ = detector._network_class.restored(self.settings, weights)
        of_calibrations = {name: value.numpy() for name, value in _sealed.part(tensors, "calibrations.").items()}
        detector.calibrations_ = self.calibrations.calibrations(of_calibrations)
        detector.active_calibration_ = config["active_calibration"]
        detector.offset_ = float(config["offset"])
        detector.provenance_ = None
        detector.n_iter_ = config["n_iter"]
        detector.interrupted_ = config["interrupted"]
        detector.history_ = config["history"]
        detector.callbacks_ = []
        detector.sampler_ = None
        detector._split_seed, detector._n_rows_seen, detector._moments = (
            config["split_seed"], config["n_rows_seen"], None
        )  # fmt: skip
        detector._profile = RowProfile(**config["rows"])
        if "reference_classes_" in detector._fitted_names:
            detector.reference_classes_ = None if config["classes"] is None else np.array(config["classes"])
        detector._scorer = self._scorer(
            {name: value.numpy() for name, value in _sealed.part(tensors, "arrays.").items()}
        )
        return detector

    def _scorer(self, arrays: dict[str, np.ndarray]) -> Any:
        try:
            scorer = self.detector._make_scorer(self.detector.network_, arrays)
        except (KeyError, ValueError) as error:
            raise SealedFileError(f"its arrays {sorted(arrays)} do not fit its parameters: {error}") from None
        if set(scorer.arrays()) != set(arrays):
            raise SealedFileError(f"its arrays {sorted(arrays)} do not fit its parameters")
        return scorer


def _is_array(value: Any) -> bool:
    """Return whether a value is kind, rows and columns of an array."""
    return isinstance(value, list) and len(value) == 3 and value[0] in KINDS.values() and all(map(is_count, value[1:]))


def _are_names(value: Any, n_columns: int) -> bool:
    return is_strings(value) and len(value) == n_columns


def _are_classes(value: Any) -> bool:
    """Return whether labels are of one kind, sorted, different, and fit into an array."""
    if not isinstance(value, list) or len(value) < 2 or len({type(label) for label in value}) > 1:
        return False
    if type(value[0]) is str:
        fit = max(map(len, value)) <= MAX_LABEL
    elif type(value[0]) in (int, bool):
        fit = -MAX_INT <= value[0] <= value[-1] < (MAX_INT if value[0] < 0 else 2**64)
    else:
        return False
    return fit and all(a < b for a, b in itertools.pairwise(value))
