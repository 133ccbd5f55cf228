# SPDX-License-Identifier: BSD-3-Clause
"""What a model file says of itself, read without building the detector: no torch, no scikit-learn."""

from __future__ import annotations

import math
import os
from typing import Any

from sklearn_docids import _sealed
from sklearn_docids._provenance import is_provenance, is_text
from sklearn_docids._sealed import SealedFileError, is_count
from sklearn_docids._stored.calibrations import CalibrationsReader
from sklearn_docids._thresholds import least_held_out, realised_band
from sklearn_docids.exceptions import ModelFileError

MAX_VERSIONS, MAX_VIEWS, MAX_DIMENSIONS = 20, 20, 8
HOUR_NS = 3600 * 10**9
OF_NETWORK = ("network.", "bytes.network.")


def summary_of(path: str) -> dict[str, Any]:
    """Return what a model learned from and what it is worth, as JSON can hold it.

    Fields are checked as far as they are told; `load_detector` checks the others.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    ModelFileError
        It is not a model, or it is damaged.
    """
    try:
        with _sealed.opened(path) as file:
            config = file.config
            _check(config)
            return {
                "model": path,
                "bytes": os.fstat(file.file.fileno()).st_size,
                "sha256": file.checksum(),
                "detector": config["estimator"],
                "in_pipeline": config["steps"] is not None,
                "versions": config["versions"],
                "views": config["parameters"].get("views"),
                "network": _network(config, file.header),
                "learned_from": (config["provenance"] or {}).get("traffic"),
                "settings": (config["provenance"] or {}).get("settings"),
                "parameters": config["parameters"],
                "sampler": config["sampler"],
                "threshold": _threshold(config),
                "calibrations": [
                    {"number": number, **{name: value for name, value in calibration.items() if name != "arrays"}}
                    for number, calibration in enumerate(config["calibrations"])
                ],
            }
    except SealedFileError as error:
        raise ModelFileError(f"{path}: not a usable DOC-IDS model: {error}") from None


def _check(config: dict[str, Any]) -> None:
    checks: _sealed.Checks = {
        "estimator": is_text,
        "steps": lambda value: value is None or _sealed.is_strings(value),
        "versions": lambda value: _is_object(value, MAX_VERSIONS) and all(map(is_text, value.values())),
        "parameters": lambda value: _is_object(value) and _are_views(value.get("views")),
        "sampler": lambda value: value is None or _is_object(value),
        "provenance": lambda value: value is None or is_provenance(value),
        "offset": _sealed.is_number,
    }
    _sealed.check_fields({name: config.get(name) for name in checks}, set(checks), checks)
    views = config["parameters"].get("views")
    names = [] if views is None else [view for view in views if view != "bytes" or config.get("network") is not None]
    CalibrationsReader(config.get("calibrations"), config.get("active_calibration"), names)


def _is_object(value: Any, most: int = 1000) -> bool:
    return isinstance(value, dict) and len(value) <= most


def _are_views(value: Any) -> bool:
    return value is None or (_sealed.is_strings(value) and len(value) <= MAX_VIEWS and all(map(is_text, value)))


def _network(config: dict[str, Any], header: dict[str, Any]) -> dict[str, Any] | None:
    """Return the size of the network and how it was trained; None where there is none."""
    network = config.get("network", config)
    if network is None:
        return None
    if not isinstance(network, dict) or not (network.get("n_iter") == 0 or is_count(network.get("n_iter"))):
        raise SealedFileError("its metadata has an unusable value for 'n_iter'")
    classes = network.get("classes")
    return {
        "weights": sum(_size(entry) for name, entry in header.items() if name.startswith(OF_NETWORK)),
        "epochs": network["n_iter"],
        "interrupted": network.get("interrupted") is True,
        "reference_classes": len(classes) if isinstance(classes, list) else None,
    }


def _size(entry: Any) -> int:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(is_count, shape)):
        raise SealedFileError("a tensor of its network has an unusable shape")
    return math.prod(shape)


def _threshold(config: dict[str, Any]) -> dict[str, Any]:
    """Return the threshold and what it is worth."""
    number = config["active_calibration"]
    calibration = config["calibrations"][number]
    rate, n_flows = calibration["false_alarm_rate"], calibration["n_flows"]
    found = {
        "offset": config["offset"],
        "calibration": number,
        "set_by_hand": config["offset"] != calibration["offset"],
        "false_alarm_rate": rate,
        "n_flows": n_flows,
        "n_thinned": calibration["arrays"].get("thinned", [None, 0])[1],
    }
    if rate is None or least_held_out(rate) > n_flows:
        return found
    finer = _finer(rate, n_flows)
    traffic = calibration["traffic"] or (config["provenance"] or {}).get("traffic")
    missing = least_held_out(finer) - n_flows
    return {
        **found,
        "realised": realised_band(n_flows, rate),
        "finer_rate": finer,
        "missing_flows": missing,
        "missing_hours": _hours(missing, n_flows, traffic),
    }


def _finer(rate: float, n_flows: int) -> float:
    """Return the next rate, a tenth or a hundredth and so on, for which there are too few flows."""
    finer = rate / 10
    while least_held_out(finer) <= n_flows:
        finer /= 10
    return finer


def _hours(missing: int, n_flows: int, traffic: dict[str, Any] | None) -> float | None:
    """Return the hours of such traffic that bring the missing flows; None where nobody knows."""
    if traffic is None or traffic["time_first"] is None or traffic["time_last"] == traffic["time_first"]:
        return None
    return missing / n_flows * (traffic["time_last"] - traffic["time_first"]) / HOUR_NS
