# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints: the state of training on disk, from which it goes on as if it had never stopped.

A checkpoint is a sealed file, named by a fingerprint of everything the result depends on: settings, rows, labels,
versions. So a run finds its own checkpoint and no other, and runs side by side do not disturb one another. Fingerprint
and checksum are no signature: whoever can write to the folder can make a checkpoint that is believed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import Tensor, nn

from sklearn_docids import _sealed
from sklearn_docids._training.callbacks import EarlyStopping, Snapshot
from sklearn_docids._training.moments import moments_of, shapes_of
from sklearn_docids._training.net import PairedNet
from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.lazy import is_lazy

FORMAT = 1
# At most one file in this time: it holds three times the weights.
SECONDS_BETWEEN_CHECKPOINTS = 30.0
CONFIG_KEYS = {
    "format", "fingerprint", "history", "n_epochs", "moments", "snapshot_step", "best_loss", "n_without"
}  # fmt: skip

Weights = dict[str, Tensor]


class TrainingState(NamedTuple):
    """Where training has got to; as made without arguments, its beginning."""

    n_epochs: int = 0  # of this fit
    history: list[dict[str, Any]] | None = None  # of all fits
    weights: Weights | None = None
    moments: Weights | None = None
    snapshot: Weights | None = None
    snapshot_step: int = 0
    best_loss: float = math.inf
    n_without: int = 0
    best_weights: Weights | None = None


class CheckpointFile:
    """The file of one run.

    Parameters
    ----------
    folder : str
        Existing folder.
    network : StoredNetwork
        The network before its first step.
    optimizer : str
        Kind of optimiser.
    depends_on : list
        Everything else that the result of training depends on: plain values, arrays, and lists of them.

    Raises
    ------
    OSError
        The folder cannot be written to.
    """

    def __init__(self, folder: str, network: nn.Module, optimizer: str, depends_on: list[Any]):
        if not os.path.isdir(folder):
            raise NotADirectoryError(f"checkpoint_folder {folder!r} is not an existing folder")
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"checkpoint_folder {folder!r} cannot be written to")
        first = [value.numpy() for value in network.state_dict().values()]
        self.fingerprint = fingerprint([optimizer, *depends_on, *first])
        self.path = os.path.join(folder, f"docids-{self.fingerprint[:32]}.checkpoint")
        self._network = _sealed.described(network.state_dict())
        self._moments = {name: ("F32", shape) for name, shape in shapes_of(network, optimizer).items()}

    def read(self, most_epochs: int) -> TrainingState:
        """Return the state that the file holds, of so many epochs at most; without a file, the beginning.

        Raises
        ------
        ValueError
            The file is damaged.
        """
        try:
            with _sealed.opened(self.path) as file:
                self._check(file.config, most_epochs)
                tensors = file.tensors(self._expected(file.config))
        except FileNotFoundError:
            return TrainingState()
        except _sealed.SealedFileError as error:
            raise ValueError(f"{self.path}: not a usable checkpoint: {error}; remove the file to begin anew") from None
        config = file.config
        has_best = config["best_loss"] is not None
        return TrainingState(
            config["n_epochs"],
            config["history"],
            _sealed.part(tensors, "network."),
            _sealed.part(tensors, "optimizer."),
            _sealed.part(tensors, "snapshot."),
            config["snapshot_step"],
            config["best_loss"] if has_best else math.inf,
            config["n_without"],
            _sealed.part(tensors, "best.") if has_best else None,
        )

    def write(self, state: TrainingState) -> None:
        """Write a state."""
        parts = {
            "network": state.weights,
            "optimizer": state.moments,
            "snapshot": state.snapshot,
            "best": state.best_weights,
        }
        tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in (values or {}).items()}
        config = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "history": state.history,
            "n_epochs": state.n_epochs,
            "moments": list(state.moments or {}),
            "snapshot_step": state.snapshot_step,
            "best_loss": state.best_loss if state.best_weights else None,
            "n_without": state.n_without,
        }
        _sealed.write(self.path, tensors, config)

    def remove(self) -> None:
        """Remove the file."""
        with suppress(FileNotFoundError):
            os.remove(self.path)

    def _check(self, config: dict[str, Any], most_epochs: int) -> None:
        if config.get("format") != FORMAT or config.get("fingerprint") != self.fingerprint:
            raise _sealed.SealedFileError("it belongs to another run")
        _sealed.check_fields(
            config,
            CONFIG_KEYS,
            {
                "history": _sealed.is_history,
                "n_epochs": lambda value: _sealed.is_count(value) and value <= min(most_epochs, len(config["history"])),
                "moments": lambda value: _sealed.is_strings(value) and set(value) <= set(self._moments),
                "snapshot_step": lambda value: value == 0 or _sealed.is_count(value),
                "best_loss": lambda value: value is None or _sealed.is_number(value),
                "n_without": lambda value: value == 0 or _sealed.is_count(value),
            },
        )

    def _expected(self, config: dict[str, Any]) -> _sealed.Expected:
        """Return the tensors that a checkpoint of this run has."""
        best = {} if config["best_loss"] is None else self._network
        return {
            **{f"{part}.{name}": entry for part in ("network", "snapshot") for name, entry in self._network.items()},
            **{f"optimizer.{name}": self._moments[name] for name in config["moments"]},
            **{f"best.{name}": entry for name, entry in best.items()},
        }


class CheckpointWriter(Callback):
    """Write the state of training after an epoch."""

    def __init__(
        self,
        file: CheckpointFile,
        snapshot: Snapshot,
        early_stopping: EarlyStopping | None,
        history: Callable[[PairedNet], list[dict[str, Any]]],
        n_epochs_before: int,
    ):
        self.file = file
        self.snapshot = snapshot
        self.early_stopping = early_stopping
        self.history = history
        self.n_epochs_before = n_epochs_before

    def on_train_begin(self, net: PairedNet, **kwargs: Any) -> None:
        """Start the clock."""
        self._written = time.monotonic()

    def on_epoch_end(self, net: PairedNet, **kwargs: Any) -> None:
        """Write the file if it is time."""
        is_time = time.monotonic() - self._written >= SECONDS_BETWEEN_CHECKPOINTS
        if not is_time or net.stops or not net.weights_are_finite():
            return
        try:
            self.file.write(self._state(net))
        except (OSError, _sealed.SealedFileError) as error:  # a full disk is no reason to lose what was trained so far
            warn_caller(f"no checkpoint could be written, training goes on: {error}")
        self._written = time.monotonic()

    def _state(self, net: PairedNet) -> TrainingState:
        stopping = self.early_stopping
        moments = {name: torch.from_numpy(value) for name, value in moments_of(net.optimizer_).items()}
        return TrainingState(
            self.n_epochs_before + len(net.history),
            self.history(net),
            net.module_.state_dict(),
            moments,
            self.snapshot.weights,
            self.snapshot.step,
            *((stopping.best_loss, stopping.n_without, stopping.best_weights) if stopping else ()),
        )


def fingerprint(parts: list[Any]) -> str:
    """Return a digest of what a run depends on: plain values, arrays, and lists of them."""
    digest = hashlib.sha256()
    versions = [version(package) for package in ("torch", "numpy", "sklearn-docids")]
    for part in [FORMAT, *versions, torch.get_num_threads(), *parts]:
        if isinstance(part, np.ndarray) or is_lazy(part):
            digest.update(json.dumps([part.dtype.str, part.shape]).encode())
            rows = part if part.ndim else part[None]
            for first in range(0, len(rows), 65536):  # never a second copy of all rows
                digest.update(np.ascontiguousarray(rows[first : first + 65536]).data)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def described(callback: Callback) -> list[Any]:
    """Return what a callback is, as far as plain values tell."""
    plain = {name: value for name, value in vars(callback).items() if isinstance(value, str | int | float | None)}
    return [type(callback).__module__, type(callback).__qualname__, plain]
