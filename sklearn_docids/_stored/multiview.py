# SPDX-License-Identifier: BSD-3-Clause
"""What a model file holds of a `MultiViewDetector`: what its views have learned, and the network of ``"bytes"``.

The network is stored as that of any `DOCIDSDetector`, with ``bytes.`` in front of the names of its tensors. All else is
arrays, each of which follows an `ArrayRule`: type and shape are compared with it before the array is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sklearn_docids import _sealed
from sklearn_docids._sealed import SealedFileError, is_count
from sklearn_docids._stored import calibrations, trained
from sklearn_docids._stored.parameters import KINDS, MAX_COLUMNS, description_of, is_array, made, storable
from sklearn_docids._views.arrays import ArrayRule
from sklearn_docids._views.base import StoredView
from sklearn_docids._views.network import NetworkView
from sklearn_docids.capture.layouts import LAYOUTS
from sklearn_docids.detectors._docids import DOCIDSDetector
from sklearn_docids.detectors._multiview import BYTES, SIMPLE_VIEWS, VIEWS, MultiViewDetector

CONFIG_KEYS = {
    "parameters", "n_columns", "layout", "offset", "network", "arrays", "calibrations", "active_calibration",
}  # fmt: skip


def stored(detector: MultiViewDetector) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the config and the tensors of a fitted detector.

    Raises
    ------
    TypeError
        A view is of the user's own, or the network is no `DOCIDSDetector`.
    ValueError
        Parameters were changed after the fit.
    """
    _check_savable(detector)
    network = detector.detector_
    config, tensors = (None, {}) if network is None else trained.stored(network)
    views: list[Any] = detector._views
    arrays = {f"{view.name}.{name}": array for view in views for name, array in view.state().items()}
    of_calibrations, more = calibrations.stored(detector.calibrations_, detector.view_names_)
    parameters = detector.get_params(deep=False)
    if detector.detector is not None:
        parameters["detector"] = storable(detector.detector.get_params(deep=False))
    return {
        "parameters": {**storable(parameters), "views": list(detector.views)},
        "n_columns": detector._n_columns,
        "layout": detector._layout,
        "offset": detector.offset_,
        "network": config,
        "arrays": description_of(arrays),
        "calibrations": of_calibrations,
        "active_calibration": detector.active_calibration_,
    }, {
        **{f"{BYTES}.{name}": tensor for name, tensor in tensors.items()},
        **{f"arrays.{name}": torch.from_numpy(np.array(array)) for name, array in arrays.items()},
        **{f"calibrations.{name}": torch.from_numpy(np.array(array)) for name, array in more.items()},
    }


def _check_savable(detector: MultiViewDetector) -> None:
    """Refuse what no file holds, and what would load as another detector than the one at hand."""
    own = [view.name for view in detector._views if not isinstance(view, StoredView)]
    if own:
        raise TypeError(
            f"the views {', '.join(own)} are detectors of your own, and a model file holds none of them: to save the "
            f"rest, fit with views of {', '.join(VIEWS)} alone"
        )
    for network in (detector.detector, detector.detector_):
        if network is not None and type(network) is not DOCIDSDetector:
            raise TypeError(
                f"the network of {BYTES!r} is a {type(network).__name__}, and a model file holds a DOCIDSDetector: fit "
                "with one as detector"
            )
    left_out = {BYTES} - set(detector.view_names_)
    fitted = {"views": [view for view in detector.views if view not in left_out] == detector.view_names_}
    fitted["power"] = float(detector.power) == detector._power
    changed = [name for name, is_same in fitted.items() if not is_same]
    if changed:
        raise ValueError(f"{changed} were changed after fit; fit again before saving")


def row_format(detector: MultiViewDetector) -> tuple[int, str]:
    """Return the number of columns that a detector takes, and their layout."""
    return detector._n_columns, detector._layout


class Reader:
    """A config that was checked: names its tensors, and makes the fitted detector of them.

    Parameters
    ----------
    estimator : type
        `MultiViewDetector`.
    config : dict
        What `stored` returned, or a stranger wrote.

    Raises
    ------
    SealedFileError
        A field is unusable.
    """

    def __init__(self, estimator: type[MultiViewDetector], config: dict[str, Any]):
        _sealed.check_fields(
            config,
            CONFIG_KEYS,
            {
                "parameters": lambda value: isinstance(value, dict) and _are_views(value.get("views")),
                "n_columns": lambda value: is_count(value) and value <= MAX_COLUMNS,
                "layout": lambda value: isinstance(value, str) and value in LAYOUTS,
                "offset": _sealed.is_number,
                "network": lambda value: value is None or isinstance(value, dict),
                "arrays": lambda value: isinstance(value, dict),
            },
        )
        self.config = config
        self.detector: Any = _made(estimator, config["parameters"])
        self.network = None if config["network"] is None else trained.Reader(DOCIDSDetector, config["network"])
        self.names = [name for name in self.detector.views if name != BYTES or self.network is not None]
        self._check_network()
        self._check_layout()
        self.rules = self._rules()
        self._check_arrays()
        self.calibrations = calibrations.CalibrationsReader(
            config["calibrations"], config["active_calibration"], self.names
        )

    def _check_network(self) -> None:
        if not self.names or (self.network is not None and BYTES not in self.names):
            raise SealedFileError("its network does not fit its views")
        if self.network is not None and self.network.config["n_features_in"] != self.config["n_columns"]:
            raise SealedFileError("its network takes rows of another width")

    def _check_layout(self) -> None:
        if self.config["layout"] != "payload" and any(_class_of(name).needs_payload for name in self.names):
            raise SealedFileError("its metadata has an unusable value for 'layout': a view needs payload rows")

    def _rules(self) -> dict[str, ArrayRule]:
        """Return by name what the arrays may be."""
        return {f"{view}.{name}": rule for view in self.names for name, rule in _class_of(view).rules.items()}

    def _check_arrays(self) -> None:
        """Check names, types and shapes of the arrays."""
        arrays, kinds = self.config["arrays"], {kind: dtype for dtype, kind in KINDS.items()}
        if set(arrays) != set(self.rules):
            raise SealedFileError(f"its arrays are not those of its views: {sorted(set(arrays) ^ set(self.rules))[:4]}")
        for name, value in arrays.items():
            if not is_array(value) or not self.rules[name].allows(kinds[value[0]], value[1:]):
                raise SealedFileError(f"its metadata has an unusable value for 'arrays.{name}'")

    def expected(self) -> _sealed.Expected:
        """Return what tensors the file must hold."""
        expected = {} if self.network is None else self.network.expected()
        return {
            **{f"{BYTES}.{name}": entry for name, entry in expected.items()},
            **{f"arrays.{name}": (kind, shape) for name, (kind, *shape) in self.config["arrays"].items()},
            **{f"calibrations.{name}": entry for name, entry in self.calibrations.expected().items()},
        }

    def fitted(self, tensors: dict[str, torch.Tensor]) -> MultiViewDetector:
        """Return the detector with what a fit would have given it."""
        arrays = {name: value.numpy() for name, value in _sealed.part(tensors, "arrays.").items()}
        detector: MultiViewDetector = self.detector
        try:
            for name, array in arrays.items():
                self.rules[name].check(name, array)
            network = None if self.network is None else self.network.fitted(_sealed.part(tensors, f"{BYTES}."))
            detector._views = [_view(name, _sealed.part(arrays, f"{name}."), network) for name in self.names]
        except ValueError as error:
            raise SealedFileError(f"what its views have learned is unusable: {error}") from None
        detector._power = float(detector.power)
        detector._n_columns, detector._layout = self.config["n_columns"], self.config["layout"]
        detector.view_names_ = self.names
        of_calibrations = {name: value.numpy() for name, value in _sealed.part(tensors, "calibrations.").items()}
        detector.calibrations_ = self.calibrations.calibrations(of_calibrations)
        detector.active_calibration_ = self.config["active_calibration"]
        detector.offset_ = float(self.config["offset"])
        detector.sampler_ = detector.provenance_ = None
        return detector


def _are_views(value: Any) -> bool:
    return _sealed.is_strings(value) and set(value) <= set(VIEWS) and 0 < len(set(value)) == len(value)


def _made(estimator: type[MultiViewDetector], parameters: dict[str, Any]) -> Any:
    """Return an unfitted detector with checked parameters."""
    network = parameters.get("detector")
    return made(
        estimator,
        {
            **parameters,
            "views": tuple(parameters["views"]),  # JSON has no tuples
            "detector": None if network is None else made(DOCIDSDetector, network),
        },
    )


def _class_of(name: str) -> type[StoredView]:
    return NetworkView if name == BYTES else SIMPLE_VIEWS[name]


def _view(name: str, arrays: dict[str, np.ndarray], network: DOCIDSDetector | None) -> StoredView:
    """Return a view with what it has learned."""
    view = NetworkView(name, network, None) if name == BYTES else SIMPLE_VIEWS[name](name)
    try:
        view.restore(arrays)
    except ValueError as error:
        raise ValueError(f"of {name!r}, {error}") from None
    return view
