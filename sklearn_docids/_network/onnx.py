# SPDX-License-Identifier: BSD-3-Clause
"""Scoring as an ONNX graph, for engines such as ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_docids._network.scoring import Scorer
from sklearn_docids._warn import missing

# Rows to trace with; the graph takes any number.
N_TRACED = 3


class Scores(nn.Module):
    """Scores of flow bytes by the folded network, (n, n_columns) uint8 -> (n,) float32."""

    def __init__(self, scorer: Scorer):
        super().__init__()
        self.g, self.h_c, self.autoencoder = scorer.modules
        self.abnormality = scorer.abnormality

    def forward(self, flows: Tensor) -> Tensor:
        """Return one score per flow."""
        return -self.abnormality(self, self.g.features_of_whole_rows(flows)).float()


def export(scorer: Scorer, path: str, metadata: dict[str, Any]) -> None:
    """Write the graph of a scorer with metadata of its own.

    Raises
    ------
    ImportError
        onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise missing("to_onnx", package)
    flows = torch.from_numpy(np.zeros((N_TRACED, scorer.modules.g.n_columns), np.uint8))
    with warnings.catch_warnings():
        # torch warns of what its own exporter does.
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            Scores(scorer).eval(),
            (flows,),
            input_names=["flows"],
            output_names=["score"],
            dynamic_shapes=({0: torch.export.Dim("n_flows")},),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.model.metadata_props.update({name: str(value) for name, value in metadata.items()})
    program.save(path)
