# SPDX-License-Identifier: BSD-3-Clause
"""Models as files that cannot execute anything: safetensors with JSON metadata, never pickle.

A model is one safetensors file. Its metadata holds ``docids``, a JSON object with everything but the weights, and
``sha256``, the checksum of the whole file with zeros in its place. Nothing in the file is used before names, types,
shapes and size fit the network that the JSON describes.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sklearn_docids import __version__, _sealed
from sklearn_docids._sealed import SealedFileError
from sklearn_docids._training import LOSS_TERMS
from sklearn_docids.detectors._autoencoders import AutoencoderDetector, ConvAutoencoderDetector
from sklearn_docids.detectors._docids import DOCIDSDetector
from sklearn_docids.detectors._trained import FlowDetector

if TYPE_CHECKING:
    from sklearn_docids._sampler import FlowSampler

FORMAT = 2
ESTIMATORS: dict[str, Any] = {
    estimator.__name__: estimator for estimator in (DOCIDSDetector, AutoencoderDetector, ConvAutoencoderDetector)
}
MAX_LABEL = 1024
# Epochs of the history that are stored, the last ones.
MAX_HISTORY = 5000
MAX_INT = 2**63
# Parameters that belong to one machine or session, and are not part of a model.
NOT_STORED = ("callbacks", "checkpoint_folder")
HISTORY_KEYS = {"epoch", "pairs", *LOSS_TERMS, "validation_loss"}
CONFIG_KEYS = {
    "format", "estimator", "versions", "parameters", "sampler", "n_features_in", "feature_names_in",
    "reference_classes", "n_templates", "templates_are_bytes", "offset", "n_iter", "interrupted", "split_seed",
    "history",
}  # fmt: skip


def save_detector(detector: Any, path: str, sampler: FlowSampler | None) -> None:
    """Write a fitted detector; see `FlowDetector.save`."""
    _check_savable(detector, sampler)
    tensors = {f"network.{name}": value for name, value in detector.network_.state_dict().items()}
    templates = getattr(detector, "templates_", None)
    if templates is not None:
        tensors["templates"] = torch.from_numpy(templates)
        tensors["template_flows"] = torch.from_numpy(_storable_flows(detector.template_flows_))
    config = _config(detector, sampler)
    try:
        _skeleton(config)
        _sealed.write(path, tensors, config)
    except SealedFileError as error:  # better now than when the model is needed
        raise ValueError(f"this detector cannot be saved: {error}") from None


def _check_savable(detector: Any, sampler: FlowSampler | None) -> None:
    """Refuse what would load as another detector than the one at hand."""
    if type(detector) not in ESTIMATORS.values():
        raise TypeError(f"a model file holds one of {', '.join(ESTIMATORS)}, not a subclass {type(detector).__name__}")
    network = detector.network_
    settings = detector._network_settings(detector.n_features_in_, getattr(detector, "reference_classes_", None))
    fitted = {name: getattr(network, name) for name in settings if name in detector.get_params()}
    if isinstance(detector, DOCIDSDetector):
        fitted["score_method"] = "reconstruction" if detector.templates_ is None else "knn"
    changed = [name for name, value in fitted.items() if getattr(detector, name) != value]
    if changed:
        raise ValueError(f"{changed} were changed after fit; fit again before saving")
    if sampler is not None and sampler.n_packets * sampler.n_bytes != detector.n_features_in_:
        raise ValueError(_other_width(sampler, detector))


def _other_width(sampler: FlowSampler, detector: FlowDetector) -> str:
    width = sampler.n_packets * sampler.n_bytes
    return f"the sampler makes rows of {width} columns, the detector takes {detector.n_features_in_}"


def _config(detector: Any, sampler: FlowSampler | None) -> dict[str, Any]:
    """Return everything but the weights."""
    names = getattr(detector, "feature_names_in_", None)
    classes = getattr(detector, "reference_classes_", None)
    templates = getattr(detector, "templates_", None)
    return {
        "format": FORMAT,
        "estimator": type(detector).__name__,
        "versions": {"sklearn_docids": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
        "parameters": _storable(detector.get_params(deep=False)),
        "sampler": None if sampler is None else _storable(sampler.get_params(deep=False)),
        "n_features_in": detector.n_features_in_,
        "feature_names_in": None if names is None else list(names),
        "reference_classes": None if classes is None else classes.tolist(),
        "n_templates": None if templates is None else len(templates),
        "templates_are_bytes": templates is not None and detector.template_flows_.dtype == np.uint8,
        "offset": detector.offset_,
        "n_iter": detector.n_iter_,
        "interrupted": detector.interrupted_,
        "split_seed": getattr(detector, "_split_seed", 0),
        "history": _sealed.plain_history(detector.history_[-MAX_HISTORY:]),
    }


def _storable_flows(flows: np.ndarray) -> np.ndarray:
    """Return rows of a type that is stored: bytes as they are, other numbers as float64."""
    return np.ascontiguousarray(flows if flows.dtype == np.uint8 else flows.astype(np.float64))


def _storable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as they are stored: without a generator, whose state is that of one process."""
    seed = parameters["random_state"]
    kept = {name: value for name, value in parameters.items() if name not in NOT_STORED}
    return {**kept, "random_state": seed if isinstance(seed, int | np.integer) else None}


def load_detector(path: str | os.PathLike[str]) -> DOCIDSDetector | AutoencoderDetector | ConvAutoencoderDetector:
    """Return a detector written by its method ``save``; nothing in the file is executed.

    Parameters
    ----------
    path : path
        Model file.

    Returns
    -------
    DOCIDSDetector, AutoencoderDetector or ConvAutoencoderDetector
        The fitted detector; its scores are those of the saved one, bit for bit, on the same machine and versions.
        ``sampler_`` is the stored `FlowSampler`, or None.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    ValueError
        The file is no model, or it is damaged.

    Warns
    -----
    UserWarning
        The model was saved by another version of this package or of torch.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from sklearn_docids import DOCIDSDetector, load_detector
    >>> X = np.random.default_rng(0).integers(0, 256, size=(20, 12), dtype=np.uint8)
    >>> detector = DOCIDSDetector(lambda_descriptiveness=0, max_epochs=1, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     detector.save(os.path.join(folder, "model"))
    ...     loaded = load_detector(os.path.join(folder, "model"))
    >>> bool((loaded.score_samples(X) == detector.score_samples(X)).all())
    True
    """
    path = os.fspath(path)
    try:
        with torch.inference_mode(False):
            return _read(path)
    except SealedFileError as error:
        raise ValueError(f"{path}: not a usable DOC-IDS model: {error}") from None


def _read(path: str) -> Any:
    made: list[Any] = []

    def expected(config: dict[str, Any]) -> _sealed.Expected:
        made.extend(_skeleton(config))
        return _expected_tensors(config, made[1])

    config, tensors = _sealed.read(path, expected)
    detector, network = made
    _fill(detector, network, config, tensors)
    _warn_of_versions(path, config["versions"])
    return detector


def _skeleton(config: dict[str, Any]) -> tuple[Any, Any]:
    """Return an unfitted detector and a network without memory, made from a checked config."""
    if config.get("format") != FORMAT:
        raise SealedFileError(f"its format is {config.get('format')!r}, this version reads format {FORMAT}")
    if set(config) != CONFIG_KEYS:
        raise SealedFileError(f"its metadata has other keys than expected: {sorted(set(config) ^ CONFIG_KEYS)}")
    if not isinstance(config["estimator"], str) or config["estimator"] not in ESTIMATORS:
        raise SealedFileError(f"it holds a {config['estimator']!r}")
    _check_fields(config)
    detector = _make(ESTIMATORS[config["estimator"]], config["parameters"])
    detector.n_features_in_ = config["n_features_in"]
    # As objects: an array of strings has the width of its longest one everywhere.
    labels = config["reference_classes"]
    classes = None if labels is None else np.array(labels, dtype=object)
    if isinstance(detector, DOCIDSDetector):
        detector.reference_classes_ = classes
    elif classes is not None or config["n_templates"] is not None:
        raise SealedFileError(f"{config['estimator']} has neither a reference nor templates")
    with torch.device("meta"):
        network = detector._network_class(**detector._network_settings(detector.n_features_in_, classes))
    return detector, network


def _check_fields(config: dict[str, Any]) -> None:
    """Check types and ranges of the fields that are not parameters."""

    def is_count(value: Any) -> bool:
        return type(value) is int and 1 <= value < 2**31

    def is_strings(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)

    names, classes = config["feature_names_in"], config["reference_classes"]
    labels_alike = isinstance(classes, list) and len({type(c) for c in classes}) == 1
    same_kind = labels_alike and type(classes[0]) in (str, int, bool)
    if same_kind and isinstance(classes[0], str):
        same_kind = max(map(len, classes)) <= MAX_LABEL
    checks = {
        "n_features_in": is_count(config["n_features_in"]),
        "n_iter": type(config["n_iter"]) is int and config["n_iter"] >= 0,
        "interrupted": type(config["interrupted"]) is bool,
        "split_seed": type(config["split_seed"]) is int and 0 <= config["split_seed"] < 2**32,
        "n_templates": config["n_templates"] is None or is_count(config["n_templates"]),
        "templates_are_bytes": type(config["templates_are_bytes"]) is bool,
        "offset": type(config["offset"]) in (int, float) and math.isfinite(config["offset"]),
        "history": isinstance(config["history"], list) and all(map(_is_epoch, config["history"])),
        "versions": isinstance(config["versions"], dict),
        "parameters": isinstance(config["parameters"], dict) and not set(NOT_STORED) & set(config["parameters"]),
        "feature_names_in": names is None or (is_strings(names) and len(names) == config["n_features_in"]),
        "reference_classes": classes is None or (same_kind and len(classes) >= 2 and _ascend(classes)),
    }
    wrong = [name for name, good in checks.items() if not good]
    if wrong:
        raise SealedFileError(f"its metadata has unusable values for {wrong}")


def _is_epoch(entry: Any) -> bool:
    """Return whether an entry of the history is one: numbers, and None for a loss that was infinite."""
    numbers = (int, float, type(None))
    return isinstance(entry, dict) and set(entry) <= HISTORY_KEYS and all(type(v) in numbers for v in entry.values())


def _ascend(classes: list[Any]) -> bool:
    """Return whether labels are sorted, different, and fit into an array."""
    fit = isinstance(classes[0], str) or -MAX_INT <= classes[0] <= classes[-1] < (MAX_INT if classes[0] < 0 else 2**64)
    return fit and all(a < b for a, b in itertools.pairwise(classes))


def _make(estimator: Any, parameters: Any) -> Any:
    """Return an estimator with checked parameters."""
    if not isinstance(parameters, dict):
        raise SealedFileError(f"the parameters of {estimator.__name__} are no JSON object")
    if any(isinstance(value, int) and abs(value) >= MAX_INT for value in parameters.values()):
        raise SealedFileError(f"a parameter of {estimator.__name__} is too large a number")
    try:
        made = estimator(**parameters)
        made._validate_params()
    except (TypeError, ValueError) as error:
        raise SealedFileError(f"{estimator.__name__} refuses its parameters: {error}") from None
    return made


def _expected_tensors(config: dict[str, Any], network: Any) -> _sealed.Expected:
    expected = {f"network.{name}": entry for name, entry in _sealed.described(network.state_dict()).items()}
    if config["n_templates"] is not None:
        expected["templates"] = ("F64", [config["n_templates"], network.h_c.out_features])
        kind = "U8" if config["templates_are_bytes"] else "F64"
        expected["template_flows"] = (kind, [config["n_templates"], config["n_features_in"]])
    return expected


def _fill(detector: Any, network: Any, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    templates, flows = tensors.pop("templates", None), tensors.pop("template_flows", None)
    if any(bool((t < 0).any()) for name, t in tensors.items() if name.endswith("running_var")):
        raise SealedFileError("a running variance is negative")
    network.load_state_dict({name.removeprefix("network."): t for name, t in tensors.items()}, assign=True)
    if isinstance(detector, DOCIDSDetector):
        _fill_paired(detector, network, config, templates, flows)
    detector.network_ = network.to(_available_device(detector)).eval()
    detector.offset_ = float(config["offset"])
    detector.n_iter_ = config["n_iter"]
    detector.interrupted_ = config["interrupted"]
    detector.history_ = config["history"]
    if config["feature_names_in"] is not None:
        detector.feature_names_in_ = np.array(config["feature_names_in"], dtype=object)
    detector.sampler_ = _load_sampler(config["sampler"])
    if detector.sampler_ and detector.sampler_.n_packets * detector.sampler_.n_bytes != detector.n_features_in_:
        raise SealedFileError(_other_width(detector.sampler_, detector))


def _fill_paired(
    detector: DOCIDSDetector,
    network: Any,
    config: dict[str, Any],
    templates: torch.Tensor | None,
    flows: torch.Tensor | None,
) -> None:
    """Set what only the detector with two inputs has."""
    if (templates is None) != (detector.score_method != "knn"):
        raise SealedFileError(f"score_method={detector.score_method!r} does not fit its templates")
    network.g.to(memory_format=torch.channels_last)
    if detector.reference_classes_ is not None:
        detector.reference_classes_ = np.array(detector.reference_classes_.tolist())
    detector.templates_ = None if templates is None else templates.numpy()
    detector.template_flows_ = None if flows is None else flows.numpy()
    detector._split_seed = config["split_seed"]


def _available_device(detector: FlowDetector) -> str:
    """Return the device of the detector, or the CPU where that device is missing."""
    try:
        device = detector._device()
    except ValueError as error:
        raise SealedFileError(str(error)) from None
    try:
        torch.zeros(1, device=device)
    except (AssertionError, RuntimeError, NotImplementedError):
        warnings.warn(f"device {device!r} of the model is not available here, the CPU is used", stacklevel=5)
        return "cpu"
    return device


def _load_sampler(parameters: Any) -> FlowSampler | None:
    from sklearn_docids._sampler import FlowSampler

    if parameters is None:
        return None
    if isinstance(parameters, dict) and isinstance(parameters.get("protocols"), list):
        parameters = {**parameters, "protocols": tuple(parameters["protocols"])}
    try:
        return _make(FlowSampler, parameters).fit([])
    except (TypeError, ValueError) as error:
        raise SealedFileError(f"FlowSampler refuses its parameters: {error}") from None


def _warn_of_versions(path: str, saved: dict[str, Any]) -> None:
    for package, now in (("sklearn_docids", __version__), ("torch", str(torch.__version__))):
        if saved.get(package) != now:
            warnings.warn(
                f"{path} was saved with {package} {saved.get(package)}, this is {now}: scores may differ",
                UserWarning,
                stacklevel=4,
            )
