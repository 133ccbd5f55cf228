# SPDX-License-Identifier: BSD-3-Clause
"""Rows as tensors, devices, and networks that are stored as NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

DEVICES = ("cpu", "cuda", "mps", "xpu")


def resolved_device(device: str) -> str:
    """Return the torch device that a detector's parameter ``device`` means.

    Raises
    ------
    ValueError
        It is not a device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in DEVICES:
        raise ValueError(f"device must be 'auto' or one of {DEVICES}, perhaps with a number, got {device!r}")
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not a torch device: {error}") from None
    return device


def rows_to_tensor(rows: np.ndarray) -> Tensor:
    """Return a batch as a tensor: bytes stay bytes, all other numbers become float32. Copies only where it must."""
    if rows.dtype != np.uint8 or not rows.flags.carray:  # torch takes neither read-only memory nor negative strides
        rows = np.require(rows, np.uint8 if rows.dtype == np.uint8 else np.float32, ["C", "W"])
    return torch.from_numpy(rows)


def on_cpu_by_default() -> AbstractContextManager[Any]:
    """Create tensors on the CPU where no device is named, as optimisers do; the caller may have set another default."""
    # The context of a device slows every call of torch a little: only where it is needed.
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


@contextmanager
def recording_gradients(device: torch.device) -> Iterator[None]:
    """Compute gradients, in the types that the tensors have, whatever the caller has told torch."""
    exact = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), exact, on_cpu_by_default():
        yield


@contextmanager
def only_scoring(device: torch.device) -> Iterator[None]:
    """Compute without gradients, in the types that the tensors have, whatever the caller has told torch."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False), on_cpu_by_default():
        yield


class StoredNetwork(nn.Module):
    """Base of the networks: one that can be rebuilt from the arguments of its constructor and arrays of its weights.

    Pickles and model files hold these two and no tensors, so a network that was trained on a graphics card is read
    where there is none.
    """

    settings: dict[str, Any]  # arguments of the constructor

    def freeze(self, n_layers: int) -> None:
        """Let the first layers of g keep their weights in training, where the network has a g."""
        raise TypeError(f"a {type(self).__name__} has no layers to freeze")

    def arrays(self) -> dict[str, np.ndarray]:
        """Return weights and running statistics as contiguous arrays."""
        return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in self.state_dict().items()}

    @classmethod
    def without_memory(cls, settings: dict[str, Any]) -> Self:
        """Return a network that has names, shapes and types of its weights, but no weights."""
        with torch.device("meta"):
            return cls(**settings)

    @classmethod
    def restored(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """Return a network with weights of `arrays`, on the CPU, in evaluation."""
        network = cls.without_memory(settings).to_empty(device="cpu")
        with torch.inference_mode(False), on_cpu_by_default():  # copies below must be tensors that training can use
            network.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
        return network.eval()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what is pickled and copied."""
        return type(self).restored, (self.settings, self.arrays())


def initialize(network: nn.Module, seed: int) -> None:
    """Give a network without memory the initial weights of PyTorch, drawn with a seed, on the CPU.

    PyTorch's layers draw from a generator of the whole process, which threads would share; these draws are the same
    numbers from a generator of our own.
    """
    rng = torch.Generator().manual_seed(seed)
    network.to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            weight = torch.empty(layer.weight.shape, device="cpu", dtype=torch.float32)
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=rng)
            bound = 1 / math.sqrt(nn.init._calculate_fan_in_and_fan_out(weight)[0])
            with torch.no_grad():
                layer.weight.copy_(weight)
                layer.bias.uniform_(-bound, bound, generator=rng)  # type: ignore[union-attr] # all layers have one
        elif isinstance(layer, nn.modules.batchnorm._NormBase):
            layer.reset_parameters()
