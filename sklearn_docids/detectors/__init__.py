# SPDX-License-Identifier: BSD-3-Clause
"""All detectors: DOC-IDS, the paper's baselines, the method it came from, and simple ones to compare with.

The names load on first use: a detector that looks at one number of a flow pays for no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sklearn_docids.detectors._autoencoders import AutoencoderDetector, ConvAutoencoderDetector
    from sklearn_docids.detectors._calibration import Calibration
    from sklearn_docids.detectors._doc_features import DOCFeatures
    from sklearn_docids.detectors._docids import DOCIDSDetector
    from sklearn_docids.detectors._ensemble import SeedEnsemble
    from sklearn_docids.detectors._multiview import Judgement, MultiViewDetector, ScoreStream, ViewReason
    from sklearn_docids.detectors._reference import ReferenceData
    from sklearn_docids.detectors._simple import NearestNeighborDetector, StatisticDetector

_HOME = {
    "AutoencoderDetector": "_autoencoders",
    "Calibration": "_calibration",
    "ConvAutoencoderDetector": "_autoencoders",
    "DOCFeatures": "_doc_features",
    "DOCIDSDetector": "_docids",
    "Judgement": "_multiview",
    "MultiViewDetector": "_multiview",
    "NearestNeighborDetector": "_simple",
    "ReferenceData": "_reference",
    "ScoreStream": "_multiview",
    "SeedEnsemble": "_ensemble",
    "StatisticDetector": "_simple",
    "ViewReason": "_multiview",
}

__all__ = [
    "AutoencoderDetector",
    "Calibration",
    "ConvAutoencoderDetector",
    "DOCFeatures",
    "DOCIDSDetector",
    "Judgement",
    "MultiViewDetector",
    "NearestNeighborDetector",
    "ReferenceData",
    "ScoreStream",
    "SeedEnsemble",
    "StatisticDetector",
    "ViewReason",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
