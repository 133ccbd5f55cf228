# SPDX-License-Identifier: BSD-3-Clause
"""Calibrations in model files: that in use, and those that can be gone back to, each with its arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sklearn_docids import _sealed
from sklearn_docids._provenance import MAX_CALIBRATIONS, is_traffic
from sklearn_docids._sealed import SealedFileError, is_count
from sklearn_docids._stored.parameters import KINDS, description_of, is_array
from sklearn_docids._views.arrays import ANY_NUMBER, LARGEST, ArrayRule
from sklearn_docids._views.tails import TAIL_RULES, Tails

if TYPE_CHECKING:
    from sklearn_docids.detectors._calibration import Calibration

KEYS = {"date", "offset", "false_alarm_rate", "n_flows", "traffic", "arrays"}
SCORES = ArrayRule("float64", (ANY_NUMBER,), -LARGEST, 0)
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", flags=re.ASCII)

Arrays = dict[str, np.ndarray]


def stored(calibrations: Sequence[Calibration], views: Sequence[str]) -> tuple[list[dict[str, Any]], Arrays]:
    """Return what stands in the config, and the arrays by number and name."""
    configs, arrays = [], {}
    for number, calibration in enumerate(calibrations):
        own = _arrays_of(calibration, views)
        fields = {name: getattr(calibration, name) for name in KEYS - {"arrays"}}
        configs.append({**fields, "arrays": description_of(own)})
        arrays.update({f"{number}.{name}": array for name, array in own.items()})
    return configs, arrays


def _arrays_of(calibration: Calibration, views: Sequence[str]) -> Arrays:
    scores = {"scores": calibration.scores, "thinned": calibration.thinned}
    arrays = {name: array for name, array in scores.items() if len(array)}
    for view, tails in zip(views, calibration.tails, strict=True):
        arrays.update({f"{view}.{name}": array for name, array in tails.state().items()})
    return arrays


class CalibrationsReader:
    """Calibrations of a config that were checked: names their tensors, and makes calibrations of them.

    Parameters
    ----------
    configs : object
        What `stored` returned, or a stranger wrote.
    active : object
        Number of the one in use.
    views : sequence of str
        Names of the views; none where a detector has one score.

    Raises
    ------
    SealedFileError
        A field is unusable.
    """

    def __init__(self, configs: Any, active: Any, views: Sequence[str] = ()):
        if not isinstance(configs, list) or not 1 <= len(configs) <= MAX_CALIBRATIONS:
            raise SealedFileError("its metadata has an unusable value for 'calibrations'")
        if type(active) is not int or not 0 <= active < len(configs):
            raise SealedFileError("its metadata has an unusable value for 'active_calibration'")
        self._configs, self._views = configs, views
        rules = {f"{view}.{name}": rule for view in views for name, rule in TAIL_RULES.items()}
        # Several views are never calibrated by what they have learned.
        self._needed = set(rules) | ({"scores", "thinned"} if views else set())
        self._rules = {"scores": SCORES, "thinned": SCORES, **rules}
        for config in configs:
            self._check(config)

    def _check(self, config: Any) -> None:
        if not isinstance(config, dict):
            raise SealedFileError("its metadata has an unusable value for 'calibrations'")
        _sealed.check_fields(
            config,
            KEYS,
            {
                "date": lambda value: isinstance(value, str) and DATE.fullmatch(value) is not None,
                "offset": _sealed.is_number,
                "false_alarm_rate": lambda value: value is None or (_sealed.is_number(value) and 0 < value <= 0.5),
                "n_flows": is_count,
                "traffic": lambda value: value is None or is_traffic(value),
                "arrays": lambda value: isinstance(value, dict),
            },
        )
        arrays, kinds = config["arrays"], {kind: dtype for dtype, kind in KINDS.items()}
        if not self._needed <= set(arrays) <= set(self._rules):
            raise SealedFileError("the arrays of a calibration are not those of its views")
        for name, value in arrays.items():
            if not is_array(value) or not self._rules[name].allows(kinds[value[0]], value[1:]):
                raise SealedFileError(f"a calibration has an unusable value for 'arrays.{name}'")
        if "scores" in arrays and arrays["scores"][1] > config["n_flows"]:
            raise SealedFileError("a calibration has more scores than flows")

    def expected(self) -> _sealed.Expected:
        """Return what tensors the file must hold, by number and name."""
        return {
            f"{number}.{name}": (kind, shape)
            for number, config in enumerate(self._configs)
            for name, (kind, *shape) in config["arrays"].items()
        }

    def calibrations(self, arrays: Arrays) -> list[Calibration]:
        """Return the calibrations.

        Raises
        ------
        SealedFileError
            An array is unusable.
        """
        try:
            return [
                self._made(config, _sealed.part(arrays, f"{number}.")) for number, config in enumerate(self._configs)
            ]
        except ValueError as error:
            raise SealedFileError(f"a calibration is unusable: {error}") from None

    def _made(self, config: dict[str, Any], arrays: Arrays) -> Calibration:
        from sklearn_docids.detectors._calibration import NO_SCORES, Calibration  # imports scikit-learn

        for name, array in arrays.items():
            self._rules[name].check(name, array)
        tails = tuple(Tails.restored(_sealed.part(arrays, f"{view}.")) for view in self._views)
        fields = {name: config[name] for name in KEYS - {"arrays"}}
        scores, thinned = (arrays.get(name, NO_SCORES) for name in ("scores", "thinned"))
        return Calibration(**fields, scores=scores, thinned=thinned, tails=tails)
