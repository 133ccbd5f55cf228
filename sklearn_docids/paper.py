# SPDX-License-Identifier: BSD-3-Clause
"""The paper's settings as ready estimators. What the paper leaves silent is listed in docs/paper.md.

References
----------
"DOC-IDS: A Deep Learning-Based Method for Feature Extraction and Anomaly Detection in Network Traffic",
Sensors 22(12), 4405, 2022. Numbers of sections, equations, tables and figures, here and in all docstrings, are those of
the conference paper, "Network Anomaly Detection Using Two-Input Deep Learning Model" (in Japanese).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["detector", "sampler"]

if TYPE_CHECKING:
    from sklearn_docids._sampler import FlowSampler
    from sklearn_docids.detectors import DOCIDSDetector


def sampler(**parameters: Any) -> FlowSampler:
    """Return the sampler of the paper: 4 packets of 80 bytes, five-tuples never split, addresses random in training.

    Guide: :doc:`/paper`.

    Parameters
    ----------
    **parameters
        Parameters of `~sklearn_docids.FlowSampler` to set otherwise or in addition.

    Returns
    -------
    FlowSampler
        An unfitted sampler.

    Examples
    --------
    >>> from sklearn_docids import paper
    >>> paper.sampler(random_state=0)
    FlowSampler(fields='paper', idle_timeout=None, random_state=0,
                tcp_restart=False)
    """
    from sklearn_docids._sampler import FlowSampler

    stated = {"n_packets": 4, "n_bytes": 80, "fields": "paper"}
    silent = {"bidirectional": True, "idle_timeout": None, "tcp_restart": False}
    return FlowSampler(**{**stated, **silent, **parameters})


def detector(**parameters: Any) -> DOCIDSDetector:
    """Return the detector of the paper: SGD, learning rate 5e-5, weight decay 5e-4, loss weights 1, 0.1 and 10.

    Guide: :doc:`/paper`.

    Parameters
    ----------
    **parameters
        Parameters of `~sklearn_docids.DOCIDSDetector` to set otherwise or in addition.

    Returns
    -------
    DOCIDSDetector
        An unfitted detector.

    Examples
    --------
    >>> from sklearn_docids import paper
    >>> paper.detector(random_state=0)
    DOCIDSDetector(batch_norm='separate', batch_size=128,
                   lambda_reconstruction=10.0, lr=5e-05, optimizer='sgd',
                   random_state=0, schedule=None, score_method='reconstruction')
    """
    from sklearn_docids.detectors import DOCIDSDetector

    stated = {
        "lambda_descriptiveness": 1.0,
        "lambda_compactness": 0.1,
        "lambda_reconstruction": 10.0,
        "score_method": "reconstruction",
        "optimizer": "sgd",
        "lr": 5e-5,
        "weight_decay": 5e-4,
        "schedule": None,
    }
    silent = {
        "momentum": 0.9,
        "batch_size": 128,
        "max_epochs": "auto",
        "scale": 255.0,
        "batch_norm": "separate",
        "dense_activation": None,
    }
    return DOCIDSDetector(**{**stated, **silent, **parameters})
