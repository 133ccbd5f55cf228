# SPDX-License-Identifier: BSD-3-Clause
"""Moments of an optimiser as named arrays: what a later fit or a resumed one needs of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

KINDS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """Return the moments, named by number of the parameter and kind."""
    (group,) = optimizer.param_groups
    return {
        f"{index}.{kind}": np.array(value.cpu().numpy(), order="C")
        for index, parameter in enumerate(group["params"])
        for kind, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def shapes_of(network: nn.Module, optimizer: str) -> dict[str, list[int]]:
    """Return names and shapes of all moments that an optimiser of a kind may have for a network."""
    return {
        f"{index}.{kind}": [] if kind == "step" else list(parameter.shape)
        for index, parameter in enumerate(network.parameters())
        for kind in KINDS[optimizer]
    }


def restore_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor | np.ndarray]) -> None:
    """Give an optimiser the moments of an earlier one; those of another kind of optimiser are of no use to it."""
    (group,) = optimizer.param_groups
    known = KINDS["sgd" if isinstance(optimizer, torch.optim.SGD) else "adamw"]
    for name, value in moments.items():
        index, _, kind = name.partition(".")
        if kind not in known:
            continue
        parameter = group["params"][int(index)]
        tensor = torch.as_tensor(value)
        # In the memory layout of the parameter: a fused step walks through both as they lie.
        like = parameter if tensor.shape == parameter.shape else tensor.to(parameter.device)
        optimizer.state[parameter][kind] = torch.empty_like(like, requires_grad=False).copy_(tensor)
