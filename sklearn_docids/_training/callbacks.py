# SPDX-License-Identifier: BSD-3-Clause
"""skorch callbacks of our own: learning rate, recent weights to fall back on, early stopping, progress, epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from skorch.callbacks import Callback
from torch import Tensor, nn

from sklearn_docids._training.net import NonFiniteLossError, PairedNet
from sklearn_docids._training.pairs import PairedFlows

# Copies of the weights to fall back on when a loss turns non-finite.
STEPS_BETWEEN_SNAPSHOTS = 50
SECONDS_BETWEEN_LINES = 2.0
# torch's OneCycleLR: how far below its peak the rate begins and ends, and when it peaks.
ONE_CYCLE_START, ONE_CYCLE_END, ONE_CYCLE_PEAK_AT = 1 / 25, 1 / 25e4, 0.3


def one_cycle(step: int, n_steps: int, peak: float) -> float:
    """Return the learning rate of a step: up to its peak and down again, along cosines (torch's OneCycleLR)."""
    position = (step + 0.5) / n_steps
    if position < ONE_CYCLE_PEAK_AT:
        first, last, share = ONE_CYCLE_START, 1.0, position / ONE_CYCLE_PEAK_AT
    else:
        first, last, share = 1.0, ONE_CYCLE_END, (position - ONE_CYCLE_PEAK_AT) / (1 - ONE_CYCLE_PEAK_AT)
    return peak * (last + (first - last) * (1 + math.cos(math.pi * share)) / 2)


class OneCycle(Callback):
    """Set the learning rate of each step."""

    def __init__(self, n_steps: int, peak: float, step: int = 0):
        self.n_steps = n_steps
        self.peak = peak
        self.step = step

    def on_batch_begin(self, net: PairedNet, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Set the rate."""
        for group in net.optimizer_.param_groups:
            group["lr"] = one_cycle(self.step, self.n_steps, self.peak)
        self.step += 1


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of weights and running statistics."""
    return {name: value.clone() for name, value in network.state_dict().items()}


class Snapshot(Callback):
    """Keep a recent copy of the weights, all of them finite.

    Parameters
    ----------
    weights : dict of str to Tensor or None
        A copy from before a break; None: the weights that training starts from.
    step : int
        Steps that the copy has seen.
    n_steps : int
        Steps of this fit, those before a break included.
    """

    def __init__(self, weights: dict[str, Tensor] | None = None, step: int = 0, n_steps: int = 0):
        self.weights = weights
        self.step = step
        self.n_steps = n_steps

    def on_train_begin(self, net: PairedNet, **kwargs: Any) -> None:
        """Copy the weights training starts from, unless there is a copy from before a break."""
        if self.weights is None:
            self._take(net)

    def on_batch_begin(self, net: PairedNet, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Copy the weights every few steps."""
        if self.n_steps % STEPS_BETWEEN_SNAPSHOTS == 0 and self.n_steps:
            self._take(net)

    def on_batch_end(self, net: PairedNet, training: bool = False, **kwargs: Any) -> None:
        """Count the step."""
        self.n_steps += 1

    def _take(self, net: PairedNet) -> None:
        if net.weights_are_finite():
            self.weights = copy_of(net.module_)
            self.step = self.n_steps

    def restore(self, net: PairedNet) -> int:
        """Put the copy back; return the number of steps it had seen."""
        net.module_.load_state_dict(self.weights)
        return self.step


class EarlyStopping(Callback):
    """Stop when the loss of held-out target rows has not improved for some epochs; keep the best weights.

    Parameters
    ----------
    flows : PairedFlows
        The held-out rows.
    n_iter_no_change : int
        Epochs without improvement.
    tol : float
        Least improvement.
    best_loss, n_without, best_weights : float, int, dict of str to Tensor or None
        Where a run before a break had got to.
    """

    def __init__(
        self,
        flows: PairedFlows,
        n_iter_no_change: int,
        tol: float,
        best_loss: float = math.inf,
        n_without: int = 0,
        best_weights: dict[str, Tensor] | None = None,
    ):
        self.flows = flows
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.best_loss = best_loss
        self.n_without = n_without
        self.best_weights = best_weights

    def on_epoch_end(self, net: PairedNet, **kwargs: Any) -> None:
        """Compare with the best epoch so far."""
        loss = net.held_out_loss(self.flows)
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"the loss of held-out rows is not finite in epoch {net.n_epochs_run}")
        net.history.record("validation_loss", loss)
        if loss < self.best_loss - self.tol:
            self.best_loss, self.n_without, self.best_weights = loss, 0, copy_of(net.module_)
        else:
            self.n_without += 1
        if self.n_without >= self.n_iter_no_change:
            net.stop_training()

    def restore(self, net: PairedNet) -> None:
        """Put the best weights back."""
        if self.best_weights is not None:
            net.module_.load_state_dict(self.best_weights)


class Progress(Callback):
    """Print a line every two seconds, and one at the end: epochs, mean losses since the last line."""

    def __init__(self, last_epoch: int):
        self.last_epoch = last_epoch

    def on_train_begin(self, net: PairedNet, **kwargs: Any) -> None:
        """Start the clock."""
        self._printed = time.monotonic()
        self._seen: list[Tensor] = []

    def on_batch_end(self, net: PairedNet, training: bool = False, **kwargs: Any) -> None:
        """Print if it is time."""
        self._seen.append(net.last_losses)
        if time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._print(net)

    def on_train_end(self, net: PairedNet, **kwargs: Any) -> None:
        """Print what came since the last line."""
        if self._seen:
            self._print(net)

    def _print(self, net: PairedNet) -> None:
        means = torch.stack(self._seen).mean(dim=0)[1:].tolist()
        losses = ", ".join(f"{name} {mean:.4f}" for name, mean in zip(net.losses.names, means, strict=True))
        print(f"epoch {net.n_epochs_run}/{self.last_epoch}: {losses}", flush=True)
        self._printed, self._seen = time.monotonic(), []


class OnEpoch(Protocol):
    """What `fit_network` tells of each epoch."""

    def begin(self) -> None:
        """Take note that an epoch begins."""

    def end(self, so_far: Callable[[], Any]) -> bool:
        """Take note that it has ended; return whether training shall end, too.

        ``so_far()`` makes a `Trained` of what is learned by now.
        """


class Epochs(Callback):
    """Tell an `OnEpoch` of each epoch, and of the end of one that is cut short."""

    def __init__(self, on_epoch: OnEpoch, so_far: Callable[[PairedNet], Any]):
        self.on_epoch = on_epoch
        self.so_far = so_far
        self.is_open = False

    def on_epoch_begin(self, net: PairedNet, **kwargs: Any) -> None:
        """Tell that an epoch begins."""
        self.on_epoch.begin()
        self.is_open = True

    def on_epoch_end(self, net: PairedNet, **kwargs: Any) -> None:
        """Tell that it has ended; what is learned so far is made only if it is asked for."""
        self.is_open = False
        if self.on_epoch.end(lambda: self.so_far(net)):
            net.stop_training()

    def on_train_end(self, net: PairedNet, **kwargs: Any) -> None:
        """Tell of an epoch that was cut short."""
        if self.is_open:
            self.on_epoch_end(net)
