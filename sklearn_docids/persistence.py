# SPDX-License-Identifier: BSD-3-Clause
"""Models as files that cannot execute anything: safetensors with JSON metadata, never pickle.

A model is one safetensors file. Its metadata holds ``docids``, a JSON object with everything but the weights, and
``sha256``, the checksum of the whole file with zeros in its place. Reading has two steps: the JSON object is read and
checked, then the tensors, once their names, types and shapes are known to be those of the network that it describes.
The checksum shows damage; it is not a signature, and whoever can write the file can make one that fits.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_docids import _sealed, detectors
from sklearn_docids._provenance import described_traffic, is_provenance
from sklearn_docids._sealed import SealedFileError, is_strings
from sklearn_docids._stored import multiview, trained
from sklearn_docids._stored.parameters import made, storable
from sklearn_docids._version import __version__
from sklearn_docids._warn import warn_caller
from sklearn_docids.detectors._multiview import MultiViewDetector
from sklearn_docids.detectors._trained import TrainedDetector
from sklearn_docids.exceptions import ModelFileError

if TYPE_CHECKING:
    from sklearn_docids._sampler import FlowSampler

__all__ = ["described_traffic", "load_detector", "save_detector"]

FORMAT = 1
# What a config holds besides what the kind of detector says.
FRAME_KEYS = {"format", "estimator", "steps", "versions", "sampler", "provenance"}


def save_detector(
    detector: TrainedDetector | MultiViewDetector | Pipeline,
    path: str | os.PathLike[str],
    sampler: FlowSampler | None = None,
    *,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write a fitted detector as one safetensors file with JSON metadata; no code is stored.

    The file holds bytes of the training traffic: rows of templates (`DOCIDSDetector`), and the first request of up to
    20,000 flows (`MultiViewDetector` with ``"bytes"``).

    Guide: :doc:`/reference/model-file`.

    Parameters
    ----------
    detector : DOCIDSDetector, MultiViewDetector, AutoencoderDetector, ConvAutoencoderDetector or Pipeline
        The fitted detector, or a fitted pipeline of a `FlowSampler` and such a detector.
    path : path
        File to write; an existing one is replaced as a whole.
    sampler : FlowSampler or None, default=None
        Sampler whose settings belong to the model; `load_detector` returns it as ``sampler_``. None: the sampler that
        the detector came with, if it was loaded from a file, and that of the pipeline.
    provenance : dict or None, default=None
        What the detector learned from, for whoever finds the file later: ``{"traffic": described_traffic(flows),
        "settings": {...}}`` with text, numbers and lists of them as settings; `load_detector` returns it as
        ``provenance_``. None: what the detector came with.

    Raises
    ------
    OSError
        The file cannot be written, or something else than a file has its name.
    TypeError
        There is no model file of such an object, or of a `MultiViewDetector` with a view of one's own.
    ValueError
        Parameters were changed after the fit, the sampler makes rows of another width or layout, or provenance is
        something else than the above.
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
    config, tensors = _home_of(type(detector)).stored(detector)
    if sampler is not None:
        _check_sampler(sampler, detector, steps)
    provenance = detector.provenance_ if provenance is None else provenance
    config = {**_frame(detector, steps, sampler, provenance), **config}
    try:
        _check(config).fitted({name: tensor.cpu() for name, tensor in tensors.items()})
        _sealed.write(os.fsdecode(path), tensors, config)
    except SealedFileError as error:  # better now than when the model is needed
        raise ModelFileError(f"this detector cannot be saved: {error}") from None


def _savable() -> dict[str, type[Any]]:
    """Return the classes of which there are model files, by name: all public detectors that hold a network."""
    public = {name: getattr(detectors, name) for name in detectors.__all__}
    return {name: found for name, found in public.items() if issubclass(found, TrainedDetector | MultiViewDetector)}


def _home_of(estimator: type[Any]) -> ModuleType:
    """Return the module that knows what a file holds of a kind of detector."""
    return multiview if issubclass(estimator, MultiViewDetector) else trained


def _steps_of(pipeline: Pipeline) -> tuple[Any, Any]:
    from sklearn_docids._sampler import FlowSampler

    steps = [step for _, step in pipeline.steps]
    if len(steps) != 2 or not isinstance(steps[0], FlowSampler):
        raise TypeError("a model file holds a pipeline of two steps, a FlowSampler and a detector")
    return steps[0], steps[1]


def _check_sampler(sampler: FlowSampler, detector: Any, steps: list[str] | None) -> None:
    """Refuse a sampler that makes other rows than the detector takes."""
    n_columns, layout = _home_of(type(detector)).row_format(detector)
    width = sampler.n_packets * sampler.n_bytes
    if width != n_columns:
        raise ValueError(f"the sampler makes rows of {width} columns, the detector takes {n_columns}")
    if layout not in (None, sampler.layout):
        raise ValueError(f"the sampler makes rows of layout={sampler.layout!r}, the detector takes {layout!r}")
    if steps is not None and layout is not None and sampler.output != "flows":
        raise ValueError("in a pipeline, a MultiViewDetector needs a sampler with output='flows'")


def _frame(
    detector: Any, steps: list[str] | None, sampler: FlowSampler | None, provenance: dict[str, Any] | None
) -> dict[str, Any]:
    """Return what a config holds besides what the kind of detector says."""
    return {
        "format": FORMAT,
        "estimator": type(detector).__name__,
        "steps": steps,
        "versions": {"sklearn_docids": __version__, "torch": str(torch.__version__), "numpy": np.__version__},
        "sampler": None if sampler is None else storable(sampler.get_params(deep=False)),
        "provenance": provenance,
    }


def load_detector(path: str | os.PathLike[str]) -> TrainedDetector | MultiViewDetector | Pipeline:
    """Return a detector or pipeline written by `save_detector`; nothing in the file is executed.

    Load models of people you trust alone: the checksum shows damage, and is no signature. A file that was made to harm
    executes nothing, names no path and no device, and asks for no more memory than its own size and rows of at most
    65,536 bytes account for. What it can do is mislead: call attacks normal or everything abnormal, explain scores by
    the wrong bytes, keep quiet about captures of another link layer, and bring a sampler that skips protocols, ends
    flows early or keeps so little of each that nothing is left to see. Look at ``sampler_`` and at ``get_params()``.

    Guide: :doc:`/reference/model-file`.

    Parameters
    ----------
    path : path
        Model file.

    Returns
    -------
    DOCIDSDetector, MultiViewDetector, AutoencoderDetector, ConvAutoencoderDetector or Pipeline
        The fitted detector; its scores are those of the saved one, bit for bit, on the same machine and versions.
        ``sampler_`` is the stored `FlowSampler`, or None, and ``provenance_`` what the detector learned from, or None.
        What was saved as a pipeline comes back as one. Parameters of one machine or session (``device``, ``callbacks``,
        ``checkpoint_folder``, ``n_jobs``) have their defaults.

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
            reader = _check(config)
            detector = reader.fitted(file.tensors(reader.expected()))
            detector.sampler_ = _load_sampler(config, detector)
            detector.provenance_ = config["provenance"]
            loaded = _in_pipeline(detector, config["steps"])
    except SealedFileError as error:
        raise ModelFileError(f"{os.fsdecode(path)}: not a usable DOC-IDS model: {error}") from None
    _warn_of_versions(os.fsdecode(path), config["versions"])
    return loaded


def _check(config: dict[str, Any]) -> Any:
    """Return the reader of a config; refuse one of which a field is unusable."""
    if config.get("format") != FORMAT:
        raise SealedFileError(f"its format is {config.get('format')!r}, this version reads format {FORMAT}")
    frame = {name: value for name, value in config.items() if name in FRAME_KEYS}
    savable = _savable()
    _sealed.check_fields(
        frame,
        FRAME_KEYS,
        {
            "estimator": lambda value: isinstance(value, str) and value in savable,
            "steps": _are_steps,
            "versions": lambda value: isinstance(value, dict),
            "provenance": lambda value: value is None or is_provenance(value),
        },
    )
    estimator = savable[config["estimator"]]
    rest = {name: value for name, value in config.items() if name not in FRAME_KEYS}
    return _home_of(estimator).Reader(estimator, rest)


def _are_steps(value: Any) -> bool:
    if value is None:
        return True
    return is_strings(value) and len(set(value)) == len(value) == 2 and all(name and "__" not in name for name in value)


def _load_sampler(config: dict[str, Any], detector: Any) -> FlowSampler | None:
    from sklearn_docids._sampler import FlowSampler

    parameters = config["sampler"]
    if parameters is None:
        return None
    if isinstance(parameters, dict):  # JSON has no tuples
        parameters = {name: tuple(v) if isinstance(v, list) else v for name, v in parameters.items()}
    try:
        sampler: FlowSampler = made(FlowSampler, parameters).fit([])
        _check_sampler(sampler, detector, config["steps"])
    except (TypeError, ValueError) as error:
        raise SealedFileError(f"FlowSampler refuses its parameters: {error}") from None
    return sampler


def _in_pipeline(detector: Any, steps: list[str] | None) -> Any:
    if steps is None:
        return detector
    if detector.sampler_ is None:
        raise SealedFileError("it is a pipeline without a sampler")
    return Pipeline(list(zip(steps, (detector.sampler_, detector), strict=True)))


def _warn_of_versions(path: str, saved: dict[str, Any]) -> None:
    for package, now in (("sklearn_docids", __version__), ("torch", str(torch.__version__))):
        if saved.get(package) != now:
            warn_caller(f"{path} was saved with {package} {saved.get(package)}, this is {now}: scores may differ")
