# SPDX-License-Identifier: BSD-3-Clause
"""DOC-IDS: network anomaly detection from raw packets, as scikit-learn estimators.

The names below load on first use: a worker that only parses captures pays for neither torch nor scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sklearn_docids._version import __version__

if TYPE_CHECKING:
    from sklearn_docids._sampler import FlowSampler
    from sklearn_docids.detectors import (
        AutoencoderDetector,
        ConvAutoencoderDetector,
        DOCFeatures,
        DOCIDSDetector,
        MultiViewDetector,
        ReferenceData,
    )
    from sklearn_docids.exceptions import CaptureError, CaptureWarning
    from sklearn_docids.persistence import load_detector, save_detector

_HOME = {
    "AutoencoderDetector": "sklearn_docids.detectors",
    "CaptureError": "sklearn_docids.exceptions",
    "CaptureWarning": "sklearn_docids.exceptions",
    "ConvAutoencoderDetector": "sklearn_docids.detectors",
    "DOCFeatures": "sklearn_docids.detectors",
    "DOCIDSDetector": "sklearn_docids.detectors",
    "FlowSampler": "sklearn_docids._sampler",
    "MultiViewDetector": "sklearn_docids.detectors",
    "ReferenceData": "sklearn_docids.detectors",
    "load_detector": "sklearn_docids.persistence",
    "save_detector": "sklearn_docids.persistence",
}
_SUBMODULES = {
    "aggregation", "capture", "datasets", "detectors", "evaluation", "exceptions", "inspection", "metrics",
    "model_selection", "monitoring", "paper", "persistence", "plotting",
}  # fmt: skip

__all__ = [
    "AutoencoderDetector",
    "CaptureError",
    "CaptureWarning",
    "ConvAutoencoderDetector",
    "DOCFeatures",
    "DOCIDSDetector",
    "FlowSampler",
    "MultiViewDetector",
    "ReferenceData",
    "__version__",
    "load_detector",
    "save_detector",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_SUBMODULES})
