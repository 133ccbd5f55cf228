# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints: the state of a training run on disk, from which it goes on as if it had never stopped.

A checkpoint is a sealed file, named by a fingerprint of everything the result depends on: settings, rows, labels,
versions. So a run finds its own checkpoint and no other, and runs side by side do not disturb one another.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import numpy as np
from skorch.callbacks import Callback
from torch import Tensor

from sklearn_docids import _sealed, _training
from sklearn_docids._training import EarlyStopping, PairedNet

FORMAT = 1
# At most one file in this time: it holds three times the weights.
SECONDS_BETWEEN_CHECKPOINTS = 30.0


def fingerprint(settings: dict[str, Any], arrays: list[np.ndarray | None], tensors: list[Tensor]) -> str:
    """Return a digest of what a training run depends on: settings, rows, labels, first weights and moments."""
    digest = hashlib.sha256()
    versions = [version(package) for package in ("torch", "numpy", "sklearn-docids")]
    shapes = [None if array is None else [array.dtype.str, array.shape] for array in arrays]
    digest.update(json.dumps([FORMAT, versions, settings, shapes], sort_keys=True, default=str).encode())
    for array in arrays:
        rows = np.empty(0) if array is None else array
        for first in range(0, len(rows), 65536):  # never a second copy of all rows
            digest.update(np.ascontiguousarray(rows[first : first + 65536]).data)
    for value in tensors:
        digest.update(value.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def described(callback: Callback) -> list[Any]:
    """Return what a callback is, as far as plain values tell."""
    plain = {name: value for name, value in vars(callback).items() if isinstance(value, str | int | float | None)}
    return [type(callback).__module__, type(callback).__qualname__, plain]


class Checkpoint(Callback):
    """Write the state of training after an epoch; bring it back; remove it when the fit is done."""

    def __init__(self, folder: str, fingerprint: str, early_stopping: EarlyStopping | None, steps_per_epoch: int):
        self.path = os.path.join(folder, f"docids-{fingerprint[:32]}.checkpoint")
        self.fingerprint = fingerprint
        self.early_stopping = early_stopping
        self.steps_per_epoch = steps_per_epoch

    def on_train_begin(self, net: PairedNet, **kwargs: Any) -> None:
        """Start the clock."""
        self._written = time.monotonic()

    def on_epoch_end(self, net: PairedNet, **kwargs: Any) -> None:
        """Write the file if it is time."""
        is_time = time.monotonic() - self._written >= SECONDS_BETWEEN_CHECKPOINTS
        if not is_time or net.stopping or not _training.weights_are_finite(net):
            return
        try:
            self._write(net)
        except (OSError, _sealed.SealedFileError) as error:  # a full disk is no reason to lose what was trained so far
            warnings.warn(f"no checkpoint could be written, training goes on: {error}", stacklevel=2)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file."""
        with suppress(FileNotFoundError):
            os.remove(self.path)

    def _write(self, net: PairedNet) -> None:
        moments = _training.optimizer_tensors(net)
        stopping = self.early_stopping
        best = {} if stopping is None or stopping.best_weights is None else stopping.best_weights
        snapshot = dict(net.callbacks_)["snapshot"]
        tensors = {
            **{f"snapshot.{name}": value for name, value in snapshot.weights.items()},
            **{f"network.{name}": value for name, value in net.module_.state_dict().items()},
            **{f"optimizer.{name}": value for name, value in moments.items()},
            **{f"best.{name}": value for name, value in best.items()},
        }
        history = _training.epoch_history(net)
        config = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "history": _sealed.plain_history(history),
            "n_epochs_done": net.n_epochs_resumed + len(net.history),
            "optimizer": list(moments),
            "snapshot_step": snapshot.step,
            "best_loss": stopping.best_loss if stopping and best else None,
            "n_without": stopping.n_without if stopping else 0,
        }
        _sealed.write(self.path, tensors, config)

    def resume(self, net: PairedNet) -> None:
        """Bring a net that is ready to train to where the file left it; without a file, do nothing."""
        try:
            config, tensors = _sealed.read(self.path, lambda config: self._expected(config, net))
        except FileNotFoundError:
            return
        except _sealed.SealedFileError as error:
            raise ValueError(f"{self.path}: not a usable checkpoint: {error}; remove the file to begin anew") from None
        net.module_.load_state_dict(_part(tensors, "network."))
        _training.restore_optimizer(net, _part(tensors, "optimizer."))
        if self.early_stopping is not None and config["best_loss"] is not None:
            self.early_stopping.best_loss = config["best_loss"]
            self.early_stopping.best_weights = _part(tensors, "best.")
        if self.early_stopping is not None:
            self.early_stopping.n_without = config["n_without"]
        snapshot = dict(net.callbacks_)["snapshot"]
        snapshot.weights, snapshot.step = _part(tensors, "snapshot."), config["snapshot_step"]
        _training.skip_epochs(net, config["n_epochs_done"], self.steps_per_epoch, config["history"])

    def _expected(self, config: dict[str, Any], net: PairedNet) -> _sealed.Expected:
        """Return the tensors that a checkpoint of this net has."""
        if config.get("format") != FORMAT or config.get("fingerprint") != self.fingerprint:
            raise _sealed.SealedFileError("it belongs to another run")
        network = _sealed.described(net.module_.state_dict())
        (group,) = net.optimizer_.param_groups
        moments = {}
        for index, parameter in enumerate(group["params"]):
            for kind in _training.OPTIMIZER_STATE[net.settings.optimizer]:
                moments[f"{index}.{kind}"] = ("F32", [] if kind == "step" else list(parameter.shape))
        if not isinstance(config["optimizer"], list) or not set(config["optimizer"]) <= set(moments):
            raise _sealed.SealedFileError("its optimiser is another one")
        return {
            **{f"{part}.{name}": entry for part in ("network", "snapshot") for name, entry in network.items()},
            **{f"optimizer.{name}": moments[name] for name in config["optimizer"]},
            **{f"best.{name}": entry for name, entry in network.items() if config["best_loss"] is not None},
        }


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
