# SPDX-License-Identifier: BSD-3-Clause
"""Models as files that cannot execute anything: safetensors with JSON metadata, never pickle.

A model is one safetensors file. Its metadata holds ``docids``, a JSON object with everything but the weights, and
``sha256``, the checksum of the whole file with zeros in its place. Reading has two steps: the JSON object is read and
checked, then the tensors, once their names, types and shapes are known to be those of the network that it describes.
The checksum shows damage; it is not a signature, and whoever can write the file can make one that fits.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_docids import _sealed, detectors
from sklearn_docids._sealed import SealedFileError, is_count, is_strings
from sklearn_docids._version import __version__
from sklearn_docids._warn import warn_caller
from sklearn_docids.detectors._profile import RowProfile, is_profile
from sklearn_docids.detectors._trained import TrainedDetector
from sklearn_docids.exceptions import ModelFileError

if TYPE_CHECKING:
    from sklearn_docids._sampler import FlowSampler

__all__ = ["load_detector", "save_detector"]

FORMAT = 1
# Types of arrays besides the network, as a header calls them.
KINDS = {"uint8": "U8", "float64": "F64"}
MAX_LABEL = 1024
# Epochs of the history that are stored, the last ones.
MAX_HISTORY = 5000
MAX_INT = 2**63
# Columns of a row: weights that do not depend on the width would let a small file ask for any amount of memory, for
# each flow of a capture. Of the default rows, 200 would fit into one of these.
MAX_COLUMNS = 2**16
# Parameters that belong to one machine or session, and are not part of a model.
NOT_STORED = ("callbacks", "checkpoint_folder", "device", "n_jobs")
CONFIG_KEYS = {
    "format", "estimator", "steps", "versions", "parameters", "sampler", "n_features_in", "feature_names_in",
    "classes", "offset", "n_iter", "n_rows_seen", "interrupted", "split_seed", "history", "arrays", "rows",
}  # fmt: skip


def save_detector(
    detector: TrainedDetector | Pipeline, path: str | os.PathLike[str], sampler: FlowSampler | None = None
) -> None:
    """Write a fitted detector as one safetensors file with JSON metadata; no code is stored.

    Parameters
    ----------
    detector : DOCIDSDetector, AutoencoderDetector, ConvAutoencoderDetector or Pipeline
        The fitted detector, or a fitted pipeline of a `FlowSampler` and such a detector.
    path : path
        File to write; an existing one is replaced as a whole.
    sampler : FlowSampler or None, default=None
        Sampler whose settings belong to the model; `load_detector` returns it as ``sampler_``. None: the sampler that
        the detector came with, if it was loaded from a file, and that of the pipeline.

    Raises
    ------
    OSError
        The file cannot be written, or something else than a file has its name.
    TypeError
        There is no model file of such an object.
    ValueError
        Parameters were changed after the fit, or the sampler makes rows of another width.
    ModelFileError
        `load_detector` would refuse the file, as one for rows of more than 65,536 columns; a ValueError.
    sklearn.exceptions.NotFittedError
        The detector is not fitted.

    See Also
    --------
    load_detector : Reads the file.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from sklearn_docids import AutoencoderDetector, load_detector, save_detector
    >>> X = np.random.default_rng(0).integers(0, 256, size=(20, 12), dtype=np.uint8)
    >>> detector = AutoencoderDetector(max_epochs=1, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_detector(detector, os.path.join(folder, "model"))
    ...     load_detector(os.path.join(folder, "model"))
    AutoencoderDetector(max_epochs=1, random_state=0)
    """
    steps = None
    if isinstance(detector, Pipeline):
        steps = [name for name, _ in detector.steps]
        if sampler is not None:
            raise ValueError("the pipeline has a sampler of its own: leave sampler alone")
        sampler, detector = _steps_of(detector)
    check_is_fitted(detector)
    if type(detector) not in _savable().values():
        kinds = ", ".join(_savable())
        raise TypeError(f"a model file holds one of {kinds}, not a subclass of them, {type(detector).__name__}")
    sampler = detector.sampler_ if sampler is None else sampler
    _check_unchanged(detector)
    if sampler is not None:
        _check_width(sampler, detector)
    arrays = detector._scorer.arrays()
    config = _config(detector, steps, sampler, arrays)
    tensors = {f"network.{name}": value for name, value in detector.network_.state_dict().items()}
    tensors.update({f"arrays.{name}": torch.from_numpy(value) for name, value in arrays.items()})
    try:
        _check(config)
        _sealed.write(os.fsdecode(path), tensors, config)
    except SealedFileError as error:  # better now than when the model is needed
        raise ModelFileError(f"this detector cannot be saved: {error}") from None


def _savable() -> dict[str, type[TrainedDetector]]:
    """Return the classes of which there are model files, by name: all public detectors with a network."""
    public = {name: getattr(detectors, name) for name in detectors.__all__}
    return {name: found for name, found in public.items() if issubclass(found, TrainedDetector)}


def _steps_of(pipeline: Pipeline) -> tuple[Any, Any]:
    from sklearn_docids._sampler import FlowSampler

    steps = [step for _, step in pipeline.steps]
    if len(steps) != 2 or not isinstance(steps[0], FlowSampler):
        raise TypeError("a model file holds a pipeline of two steps, a FlowSampler and a detector")
    return steps[0], steps[1]


def _check_unchanged(detector: TrainedDetector) -> None:
    """Refuse what would load as another detector than the one at hand."""
    now = detector.get_params(deep=False)
    changed = [name for name, value in detector._scorer.settings.items() if now.get(name, value) != value]
    if changed:
        raise ValueError(f"{changed} were changed after fit; fit again before saving")


def _check_width(sampler: FlowSampler, detector: TrainedDetector) -> None:
    width = sampler.n_packets * sampler.n_bytes
    if width != detector.n_features_in_:
        raise ValueError(f"the sampler makes rows of {width} columns, the detector takes {detector.n_features_in_}")


def _config(
    detector: Any, steps: list[str] | None, sampler: FlowSampler | None, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Return everything but the weights."""
    names = getattr(detector, "feature_names_in_", None)
    classes = getattr(detector, "reference_classes_", None)
    return {
        "format": FORMAT,
        "estimator": type(detector).__name__,
        "steps": steps,
        "versions": {"sklearn_docids": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
        "parameters": _storable(detector.get_params(deep=False)),
        "sampler": None if sampler is None else _storable(sampler.get_params(deep=False)),
        "n_features_in": detector.n_features_in_,
        "feature_names_in": None if names is None else list(names),
        "classes": None if classes is None else classes.tolist(),
        "offset": detector.offset_,
        "n_iter": detector.n_iter_,
        "n_rows_seen": detector._n_rows_seen,
        "interrupted": detector.interrupted_,
        "split_seed": detector._split_seed,
        "history": detector.history_[-MAX_HISTORY:],
        "arrays": {name: [KINDS[value.dtype.name], *value.shape] for name, value in arrays.items()},
        "rows": detector._profile._asdict(),
    }


def _storable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as they are stored: without a generator, whose state is that of one process."""
    seed = parameters["random_state"]
    kept = {name: value for name, value in parameters.items() if name not in NOT_STORED}
    return {**kept, "random_state": seed if isinstance(seed, int | np.integer) else None}


def load_detector(path: str | os.PathLike[str]) -> TrainedDetector | Pipeline:
    """Return a detector or pipeline written by `save_detector`; nothing in the file is executed.

    Load models of people you trust alone: the checksum shows damage, and is no signature. A file that was made to harm
    executes nothing, names no path and no device, and asks for no more memory than its own size and rows of at most
    65,536 bytes account for. What it can do is mislead: call attacks normal or everything abnormal, explain scores by
    the wrong bytes, keep quiet about captures of another link layer, and bring a sampler that skips protocols, ends
    flows early or keeps so little of each that nothing is left to see. Look at ``sampler_`` and at ``get_params()``.

    Parameters
    ----------
    path : path
        Model file.

    Returns
    -------
    DOCIDSDetector, AutoencoderDetector, ConvAutoencoderDetector or Pipeline
        The fitted detector; its scores are those of the saved one, bit for bit, on the same machine and versions.
        ``sampler_`` is the stored `FlowSampler`, or None. What was saved as a pipeline comes back as one. Parameters of
        one machine or session (``device``, ``callbacks``, ``checkpoint_folder``, ``n_jobs``) have their defaults.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    ModelFileError
        The file is not a model, or it is damaged; a ValueError.

    Warns
    -----
    UserWarning
        The model was saved by another version of this package or of torch.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from sklearn_docids import DOCIDSDetector, load_detector, save_detector
    >>> X = np.random.default_rng(0).integers(0, 256, size=(20, 12), dtype=np.uint8)
    >>> detector = DOCIDSDetector(lambda_descriptiveness=0, max_epochs=1, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_detector(detector, os.path.join(folder, "model"))
    ...     loaded = load_detector(os.path.join(folder, "model"))
    >>> bool((loaded.score_samples(X) == detector.score_samples(X)).all())
    True
    """
    path = os.fspath(path)
    try:
        with torch.inference_mode(False), _sealed.opened(path) as file:
            config = file.config
            detector = _check(config)
            tensors = file.tensors(_expected_tensors(detector, config))
            _fill(detector, config, tensors)
            loaded = _in_pipeline(detector, config["steps"])
    except SealedFileError as error:
        raise ModelFileError(f"{os.fsdecode(path)}: not a usable DOC-IDS model: {error}") from None
    _warn_of_versions(os.fsdecode(path), config["versions"])
    return loaded


def _check(config: dict[str, Any]) -> TrainedDetector:
    """Return the unfitted detector of a config; refuse one of which a field is unusable."""
    if config.get("format") != FORMAT:
        raise SealedFileError(f"its format is {config.get('format')!r}, this version reads format {FORMAT}")
    savable = _savable()
    _sealed.check_fields(
        config,
        CONFIG_KEYS,
        {
            "estimator": lambda value: isinstance(value, str) and value in savable,
            "steps": _are_steps,
            "versions": lambda value: isinstance(value, dict),
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
    detector: TrainedDetector = _make(savable[config["estimator"]], config["parameters"])
    if config["classes"] is not None and "reference_classes_" not in detector._fitted_names:
        raise SealedFileError(f"a {config['estimator']} has no reference")
    return detector


def _is_array(value: Any) -> bool:
    """Return whether a value is kind, rows and columns of an array."""
    return isinstance(value, list) and len(value) == 3 and value[0] in KINDS.values() and all(map(is_count, value[1:]))


def _are_steps(value: Any) -> bool:
    if value is None:
        return True
    return is_strings(value) and len(set(value)) == len(value) == 2 and all(name and "__" not in name for name in value)


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


def _make(estimator: Any, parameters: Any) -> Any:
    """Return an estimator with checked parameters."""
    if not isinstance(parameters, dict):
        raise SealedFileError(f"the parameters of {estimator.__name__} are not a JSON object")
    if set(NOT_STORED) & set(parameters):
        raise SealedFileError(f"it sets {sorted(set(NOT_STORED) & set(parameters))}, which belong to one machine")
    if any(isinstance(value, int) and abs(value) >= MAX_INT for value in parameters.values()):
        raise SealedFileError(f"a parameter of {estimator.__name__} is too large a number")
    try:
        made = estimator(**parameters)
        made._validate_params()
    except (TypeError, ValueError) as error:
        raise SealedFileError(f"{estimator.__name__} refuses its parameters: {error}") from None
    return made


def _settings(detector: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the network."""
    return dict(detector._network_settings(config["n_features_in"], config["classes"]))


def _expected_tensors(detector: TrainedDetector, config: dict[str, Any]) -> _sealed.Expected:
    settings = _settings(detector, config)
    network = detector._network_class.without_memory(settings)
    expected = {f"network.{name}": entry for name, entry in _sealed.described(network.state_dict()).items()}
    for name, (kind, *shape) in config["arrays"].items():
        expected[f"arrays.{name}"] = (kind, shape)
    return expected


def _fill(detector: Any, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Give a detector what a fit would have given it."""
    weights = {name.removeprefix("network."): t.numpy() for name, t in tensors.items() if name.startswith("network.")}
    if any(bool((value < 0).any()) for name, value in weights.items() if name.endswith("running_var")):
        raise SealedFileError("a running variance is negative")
    arrays = {name.removeprefix("arrays."): t.numpy() for name, t in tensors.items() if name.startswith("arrays.")}
    detector.n_features_in_ = config["n_features_in"]
    if config["feature_names_in"] is not None:
        detector.feature_names_in_ = np.array(config["feature_names_in"], dtype=object)
    detector.network_ = detector._network_class.restored(_settings(detector, config), weights)
    detector.offset_ = float(config["offset"])
    detector.n_iter_ = config["n_iter"]
    detector.interrupted_ = config["interrupted"]
    detector.history_ = config["history"]
    detector.callbacks_ = []
    detector._split_seed, detector._n_rows_seen, detector._moments = config["split_seed"], config["n_rows_seen"], None
    detector._profile = RowProfile(**config["rows"])
    detector.sampler_ = _load_sampler(config["sampler"], detector)
    if "reference_classes_" in detector._fitted_names:
        detector.reference_classes_ = None if config["classes"] is None else np.array(config["classes"])
    try:
        detector._scorer = detector._make_scorer(detector.network_, arrays)
    except (KeyError, ValueError) as error:
        raise SealedFileError(f"its arrays {sorted(arrays)} do not fit its parameters: {error}") from None
    if set(detector._scorer.arrays()) != set(arrays):
        raise SealedFileError(f"its arrays {sorted(arrays)} do not fit its parameters")


def _load_sampler(parameters: Any, detector: TrainedDetector) -> FlowSampler | None:
    from sklearn_docids._sampler import FlowSampler

    if parameters is None:
        return None
    if isinstance(parameters, dict):  # JSON has no tuples
        parameters = {name: tuple(v) if isinstance(v, list) else v for name, v in parameters.items()}
    try:
        sampler: FlowSampler = _make(FlowSampler, parameters).fit([])
        _check_width(sampler, detector)
    except (TypeError, ValueError) as error:
        raise SealedFileError(f"FlowSampler refuses its parameters: {error}") from None
    return sampler


def _in_pipeline(detector: TrainedDetector, steps: list[str] | None) -> TrainedDetector | Pipeline:
    if steps is None:
        return detector
    if detector.sampler_ is None:
        raise SealedFileError("it is a pipeline without a sampler")
    return Pipeline(list(zip(steps, (detector.sampler_, detector), strict=True)))


def _warn_of_versions(path: str, saved: dict[str, Any]) -> None:
    for package, now in (("sklearn_docids", __version__), ("torch", str(torch.__version__))):
        if saved.get(package) != now:
            warn_caller(f"{path} was saved with {package} {saved.get(package)}, this is {now}: scores may differ")
