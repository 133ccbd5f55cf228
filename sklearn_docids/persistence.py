# SPDX-License-Identifier: BSD-3-Clause
"""Models as files that cannot execute anything: safetensors with JSON metadata, never pickle.

A model is one safetensors file. Its metadata holds ``docids``, a JSON object with everything but the weights, and
``sha256``, the checksum of the whole file with zeros in its place. Nothing in the file is used before names, types,
shapes and size fit the network that the JSON describes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from sklearn_docids import __version__
from sklearn_docids._detector import DOCIDSDetector
from sklearn_docids._network import DOCIDSNetwork

if TYPE_CHECKING:
    from sklearn_docids._sampler import FlowSampler

FORMAT = 1
# A longer header is no model of ours: the longest part of it, the history, has 150 bytes per epoch.
MAX_HEADER = 16 * 2**20
MAX_LABEL = 1024
UNSEALED = "0" * 64
CONFIG_KEYS = {
    "format", "estimator", "versions", "parameters", "sampler", "n_features_in", "feature_names_in",
    "reference_classes", "n_templates", "offset", "n_iter", "history",
}  # fmt: skip
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


def save_detector(detector: DOCIDSDetector, path: str, sampler: FlowSampler | None) -> None:
    """Write a fitted detector; see `DOCIDSDetector.save`."""
    _check_savable(detector, sampler)
    tensors = {f"network.{name}": value.cpu().contiguous() for name, value in detector.network_.state_dict().items()}
    if detector.templates_ is not None:
        tensors["templates"] = torch.from_numpy(detector.templates_)
    config = json.dumps(_config(detector, sampler), allow_nan=False, default=_plain)
    data = safetensors.torch.save(tensors, {"docids": config, "sha256": UNSEALED})
    data = data.replace(_seal(UNSEALED), _seal(hashlib.sha256(data).hexdigest()), 1)
    with open(f"{path}.part", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.part", path)


def _check_savable(detector: DOCIDSDetector, sampler: FlowSampler | None) -> None:
    """Refuse what would load as another detector than the one at hand."""
    if type(detector) is not DOCIDSDetector:
        raise TypeError(f"a model file holds a DOCIDSDetector, not its subclass {type(detector).__name__}")
    network = detector.network_
    fitted = {
        "scale": network.scale,
        "batch_norm": network.batch_norm,
        "dense_activation": network.dense_activation,
        "score_method": "reconstruction" if detector.templates_ is None else "knn",
    }
    changed = [name for name, value in fitted.items() if getattr(detector, name) != value]
    if changed:
        raise ValueError(f"{changed} were changed after fit; fit again before saving")
    if sampler is not None and sampler.n_packets * sampler.n_bytes != detector.n_features_in_:
        raise ValueError(_other_width(sampler, detector))


def _other_width(sampler: FlowSampler, detector: DOCIDSDetector) -> str:
    width = sampler.n_packets * sampler.n_bytes
    return f"the sampler makes rows of {width} columns, the detector takes {detector.n_features_in_}"


def _seal(digest: str) -> bytes:
    """Return the checksum as it stands in the header; inside a JSON string, its quotes would be escaped."""
    return f'"sha256":"{digest}"'.encode()


def _config(detector: DOCIDSDetector, sampler: FlowSampler | None) -> dict[str, Any]:
    """Return everything but the weights."""
    names = getattr(detector, "feature_names_in_", None)
    classes = detector.reference_classes_
    if classes is not None and classes.dtype.kind not in "iub" and not all(isinstance(c, str) for c in classes):
        raise TypeError("a model file holds reference labels that are strings or integers only")
    return {
        "format": FORMAT,
        "estimator": type(detector).__name__,
        "versions": {"sklearn_docids": __version__, "torch": version("torch"), "numpy": version("numpy")},
        "parameters": _storable(detector.get_params(deep=False)),
        "sampler": None if sampler is None else _storable(sampler.get_params(deep=False)),
        "n_features_in": detector.n_features_in_,
        "feature_names_in": None if names is None else list(names),
        "reference_classes": None if classes is None else classes.tolist(),
        "n_templates": None if detector.templates_ is None else len(detector.templates_),
        "offset": detector.offset_,
        "n_iter": detector.n_iter_,
        "history": detector.history_,
    }


def _storable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters without a generator in ``random_state``: its state is that of one process."""
    seed = parameters["random_state"]
    return {**parameters, "random_state": seed if isinstance(seed, int | np.integer) else None}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a model file cannot hold a {type(value).__name__}")


def load_detector(path: str | os.PathLike[str]) -> DOCIDSDetector:
    """Return a detector written by `DOCIDSDetector.save`; nothing in the file is executed.

    Parameters
    ----------
    path : path
        Model file.

    Returns
    -------
    DOCIDSDetector
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
        return _read(path)
    except (_ModelError, SafetensorError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path}: not a usable DOC-IDS model: {error}") from None


class _ModelError(Exception):
    """What is wrong with a model file."""


def _read(path: str) -> DOCIDSDetector:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _read_header(file, size)
        metadata = header.pop("__metadata__", None)
        if not isinstance(metadata, dict) or not isinstance(metadata.get("docids"), str):
            raise _ModelError("it has no DOC-IDS metadata")
        config = _parse_json(metadata["docids"])
        detector, network = _skeleton(config)
        _check_tensors(header, _expected_tensors(config, network), size - file.tell())
        file.seek(0)
        data = file.read()
    digest = str(metadata.get("sha256"))
    if hashlib.sha256(data.replace(_seal(digest), _seal(UNSEALED), 1)).hexdigest() != digest:
        raise _ModelError("its checksum is wrong")
    _fill(detector, network, config, safetensors.torch.load(data))
    _warn_of_versions(path, config["versions"])
    return detector


def _read_header(file: Any, size: int) -> dict[str, Any]:
    """Return the header of a safetensors file; the file then stands at the first tensor."""
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > min(size - 8, MAX_HEADER):
        raise _ModelError("it does not begin like a safetensors file")
    header = _parse_json(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise _ModelError("its header is no JSON object")
    return header


def _parse_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise _ModelError("a key of its JSON stands there twice")
        return result

    def refuse(constant: str) -> None:
        raise _ModelError(f"its JSON holds {constant}")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except ValueError as error:  # a number of thousands of digits is one without being a JSONDecodeError
        raise _ModelError(f"its JSON is damaged: {error}") from None


def _skeleton(config: Any) -> tuple[DOCIDSDetector, DOCIDSNetwork]:
    """Return an unfitted detector and a network without memory, made from a checked config."""
    if not isinstance(config, dict):
        raise _ModelError("its metadata is no JSON object")
    if config.get("format") != FORMAT:
        raise _ModelError(f"its format is {config.get('format')!r}, this version reads format {FORMAT}")
    if set(config) != CONFIG_KEYS:
        raise _ModelError(f"its metadata has other keys than expected: {sorted(set(config) ^ CONFIG_KEYS)}")
    if config["estimator"] != DOCIDSDetector.__name__:
        raise _ModelError(f"it holds a {config['estimator']!r}")
    _check_fields(config)
    detector = _make(DOCIDSDetector, config["parameters"])
    detector.n_features_in_ = config["n_features_in"]
    # As objects: an array of strings has the width of its longest one everywhere.
    classes = config["reference_classes"]
    detector.reference_classes_ = None if classes is None else np.array(classes, dtype=object)
    with torch.device("meta"):
        network = DOCIDSNetwork(**detector._network_settings(detector.n_features_in_))
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
        "n_templates": config["n_templates"] is None or is_count(config["n_templates"]),
        "offset": type(config["offset"]) in (int, float) and math.isfinite(config["offset"]),
        "history": isinstance(config["history"], list) and all(isinstance(e, dict) for e in config["history"]),
        "versions": isinstance(config["versions"], dict),
        "parameters": isinstance(config["parameters"], dict),
        "feature_names_in": names is None or (is_strings(names) and len(names) == config["n_features_in"]),
        "reference_classes": classes is None or (same_kind and len(classes) >= 2),
    }
    wrong = [name for name, good in checks.items() if not good]
    if wrong:
        raise _ModelError(f"its metadata has unusable values for {wrong}")


def _make(estimator: Any, parameters: Any) -> Any:
    """Return an estimator with checked parameters."""
    if not isinstance(parameters, dict):
        raise _ModelError(f"the parameters of {estimator.__name__} are no JSON object")
    try:
        made = estimator(**parameters)
        made._validate_params()
    except (TypeError, ValueError) as error:
        raise _ModelError(f"{estimator.__name__} refuses its parameters: {error}") from None
    return made


def _expected_tensors(config: dict[str, Any], network: DOCIDSNetwork) -> dict[str, tuple[str, list[int]]]:
    expected = {
        f"network.{name}": (DTYPES[value.dtype], list(value.shape)) for name, value in network.state_dict().items()
    }
    if config["n_templates"] is not None:
        expected["templates"] = ("F64", [config["n_templates"], network.h_c.out_features])
    return expected


def _check_tensors(header: dict[str, Any], expected: dict[str, tuple[str, list[int]]], n_bytes: int) -> None:
    """Check names, types and shapes of the tensors, and that they fill the rest of the file."""
    if set(header) != set(expected):
        raise _ModelError(f"its tensors are not those of its network: {sorted(set(header) ^ set(expected))[:4]}")
    for name, described in header.items():
        if not isinstance(described, dict) or (described.get("dtype"), described.get("shape")) != expected[name]:
            raise _ModelError(f"tensor {name} is not the {expected[name]} of its network")
    needed = sum(math.prod(shape) * (4 if dtype == "F32" else 8) for dtype, shape in expected.values())
    if needed != n_bytes:
        raise _ModelError(f"its tensors take {n_bytes} bytes, its network needs {needed}")


def _fill(
    detector: DOCIDSDetector, network: DOCIDSNetwork, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise _ModelError(f"tensor {name} holds NaN or infinity")
    templates = tensors.pop("templates", None)
    network.load_state_dict({name.removeprefix("network."): t for name, t in tensors.items()}, assign=True)
    if (templates is None) != (detector.score_method != "knn"):
        raise _ModelError(f"score_method={detector.score_method!r} does not fit its templates")
    network.g.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    detector.network_ = network.to(_available_device(detector)).eval()
    if detector.reference_classes_ is not None:
        detector.reference_classes_ = np.array(detector.reference_classes_.tolist())
    detector.templates_ = None if templates is None else templates.numpy()
    detector.offset_ = float(config["offset"])
    detector.n_iter_ = config["n_iter"]
    detector.history_ = config["history"]
    if config["feature_names_in"] is not None:
        detector.feature_names_in_ = np.array(config["feature_names_in"], dtype=object)
    detector.sampler_ = _load_sampler(config["sampler"])
    if detector.sampler_ and detector.sampler_.n_packets * detector.sampler_.n_bytes != detector.n_features_in_:
        raise _ModelError(_other_width(detector.sampler_, detector))


def _available_device(detector: DOCIDSDetector) -> str:
    """Return the device of the detector, or the CPU where that device is missing."""
    try:
        device = detector._device()
    except ValueError as error:
        raise _ModelError(str(error)) from None
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
        raise _ModelError(f"FlowSampler refuses its parameters: {error}") from None


def _warn_of_versions(path: str, saved: dict[str, Any]) -> None:
    for package, now in (("sklearn_docids", __version__), ("torch", version("torch"))):
        if saved.get(package) != now:
            warnings.warn(
                f"{path} was saved with {package} {saved.get(package)}, this is {now}: scores may differ",
                UserWarning,
                stacklevel=4,
            )
