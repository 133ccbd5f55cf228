# SPDX-License-Identifier: BSD-3-Clause
"""A fit: rows and settings go in, a trained network comes out with all that is to be said of it.

The network is made first, then brought to where an earlier fit or a checkpoint left it, then trained by a skorch net.
Nothing is set on the net from outside: it is made with all it needs, and what accompanies it, such as early stopping,
is a callback that `_Run` holds by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from skorch.callbacks import Callback

from sklearn_docids._network.tensors import StoredNetwork, initialize, recording_gradients
from sklearn_docids._sealed import HISTORY
from sklearn_docids._training.callbacks import EarlyStopping, Epochs, OneCycle, OnEpoch, Progress, Snapshot
from sklearn_docids._training.checkpoint import CheckpointFile, CheckpointWriter, TrainingState, described
from sklearn_docids._training.moments import moments_of, restore_moments
from sklearn_docids._training.net import (
    NonFiniteLossError,
    PairedNet,
    StopTraining,
    TrainingSettings,
    WeightedLosses,
    make_net,
)
from sklearn_docids._training.pairs import PairedFlows, batch_bounds

AUTO_STEPS = 500  # chosen on the validation part of the testbed (docs/benchmarks.md)


def n_epochs(max_epochs: str | int, n_rows: int, batch_size: int) -> int:
    """Return the number of epochs that ``max_epochs`` means: "auto" is about 500 steps, at least one epoch.

    A detector gives no more rows than 500 steps take.
    """
    if max_epochs == "auto":
        return max(1, round(AUTO_STEPS / len(batch_bounds(n_rows, batch_size))))
    return int(max_epochs)


@dataclass(frozen=True)
class Trained:
    """What a fit leaves."""

    network: StoredNetwork  # on the CPU, in evaluation
    history: list[dict[str, Any]]  # per epoch: number, pairs seen, means of the losses; earlier fits' included
    n_epochs: int  # epochs run, earlier fits' included
    interrupted: bool = False  # by Ctrl-C
    moments: dict[str, np.ndarray] | None = None  # of the optimiser; None where training diverged
    callbacks: tuple[Callback, ...] = ()  # the user's, as they are now
    ended_early: str | None = None  # why training ended before its time
    checkpoint: CheckpointFile | None = None  # to be removed when all that follows the training is done


class End(NamedTuple):
    """How training ended."""

    why: str | None = None  # None: when it should
    interrupted: bool = False
    diverged: bool = False


def fit_network(
    build: Callable[[], StoredNetwork],
    losses: WeightedLosses,
    rows: PairedFlows,
    settings: TrainingSettings,
    *,
    start: Trained | None = None,
    frozen: int = 0,
    held_out: np.ndarray | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | None = None,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Train a network.

    Parameters
    ----------
    build : callable
        Returns the network, of whose weights only names, shapes and types are used.
    losses : WeightedLosses
        What to minimise.
    rows : PairedFlows
        Target rows, and reference rows if there are any.
    settings : TrainingSettings
        How.
    start : Trained or None
        Fit to go on from: with its weights, the number of its epochs, and its moments where it has any.
    frozen : int
        First layers of g whose weights stay as they are.
    held_out : ndarray or None
        Target rows for early stopping; None: there is none.
    callbacks : sequence of skorch callbacks
        Copies of these are called.
    checkpoint : str or None
        Folder for checkpoints.
    on_epoch : OnEpoch or None
        Is told of each epoch.

    Returns
    -------
    Trained
        What was learned.

    Raises
    ------
    OSError, ValueError
        The folder for checkpoints, or one in it, cannot be used.
    KeyboardInterrupt
        Ctrl-C was pressed before the first step.
    """
    with recording_gradients(torch.device(settings.device)):
        network = _initial_network(build, settings.seed, start, frozen)
        start = start or Trained(network, [], 0)
        file, state = None, TrainingState()
        if checkpoint is not None:
            depends_on = _depends_on(network, losses, rows, settings, start, frozen, held_out, callbacks)
            file = CheckpointFile(checkpoint, network, settings.optimizer, depends_on)
            state = file.read(settings.n_epochs)
        run = _Run(rows, settings, start, state, file, held_out, callbacks, on_epoch)
        if state.weights is not None:
            network.load_state_dict(state.weights)
        net = make_net(
            network,
            losses,
            settings,
            n_epochs_before=start.n_epochs + state.n_epochs,
            callbacks=run.callbacks(),
            watched=bool(run.of_user),
        )
        restore_moments(net.optimizer_, (start.moments if state.moments is None else state.moments) or {})
        return run.trained(net, run.train(net))


def _initial_network(
    build: Callable[[], StoredNetwork], seed: int, start: Trained | None, frozen: int
) -> StoredNetwork:
    with torch.device("meta"):
        network = build()
    initialize(network, seed)
    if start is not None:
        network.load_state_dict(start.network.state_dict())
    if frozen:
        network.freeze(frozen)
    return network


def _depends_on(
    network: StoredNetwork,
    losses: WeightedLosses,
    rows: PairedFlows,
    settings: TrainingSettings,
    start: Trained,
    frozen: int,
    held_out: np.ndarray | None,
    callbacks: Sequence[Callback],
) -> list[Any]:
    """Return what the result of a run depends on, but for the weights that it begins with."""
    how = {name: value for name, value in vars(settings).items() if name != "verbose"}
    moments = start.moments or {}
    return [
        type(network).__name__,
        network.settings,
        losses.names,
        losses.weights,
        how,
        start.n_epochs,
        frozen,
        [described(callback) for callback in callbacks],
        *rows.arrays,
        held_out,
        list(moments),
        *moments.values(),
    ]


class _Run:
    """What accompanies a net through one fit: its callbacks, each by a name of its own."""

    def __init__(
        self,
        rows: PairedFlows,
        settings: TrainingSettings,
        start: Trained,
        state: TrainingState,
        file: CheckpointFile | None,
        held_out: np.ndarray | None,
        callbacks: Sequence[Callback],
        on_epoch: OnEpoch | None,
    ):
        self.rows = rows
        self.start = start
        self.state = state
        self.file = file
        self.n_epochs = settings.n_epochs - state.n_epochs
        steps_per_epoch = len(batch_bounds(len(rows), settings.batch_size))
        n_steps = state.n_epochs * steps_per_epoch
        self.snapshot = Snapshot(state.snapshot, state.snapshot_step, n_steps)
        self.schedule = self.progress = self.early_stopping = self.epochs = self.writer = None
        if settings.schedule == "one_cycle":
            self.schedule = OneCycle(settings.n_epochs * steps_per_epoch, settings.lr, n_steps)
        if settings.verbose:
            self.progress = Progress(start.n_epochs + settings.n_epochs)
        if held_out is not None:
            flows = PairedFlows(held_out, device=settings.device)
            best = state.best_loss, state.n_without, state.best_weights
            self.early_stopping = EarlyStopping(flows, settings.n_iter_no_change, settings.tol, *best)
        self.of_user = tuple(copy.deepcopy(callback) for callback in callbacks)
        if on_epoch is not None:
            self.epochs = Epochs(on_epoch, self.so_far)
        if file is not None:
            self.writer = CheckpointWriter(file, self.snapshot, self.early_stopping, self.history, state.n_epochs)

    def callbacks(self) -> list[tuple[str, Callback]]:
        """Return the callbacks in the order of their calls: the file last, behind all that may want to stop."""
        named = {
            "snapshot": self.snapshot,
            "schedule": self.schedule,
            "progress": self.progress,
            "early_stopping": self.early_stopping,
            **{f"callbacks_{i}": callback for i, callback in enumerate(self.of_user)},
            "epochs": self.epochs,
            "checkpoint": self.writer,
        }
        return [(name, callback) for name, callback in named.items() if callback is not None]

    def history(self, net: PairedNet) -> list[dict[str, Any]]:
        """Return one entry per epoch, those of earlier fits first; an epoch without a single step has none."""
        earlier = self.start.history if self.state.history is None else self.state.history
        return earlier + [
            {
                "epoch": net.n_epochs_before + epoch["epoch"],
                **{name: epoch[name] for name in HISTORY[1:] if name in epoch},
            }
            for epoch in net.history
            if "pairs" in epoch
        ]

    def train(self, net: PairedNet) -> End:
        """Train the net; callbacks are told of the end however it comes.

        Ctrl-C ends training, once there has been a step; so does a loss that is not finite.
        """
        net.notify("on_train_begin", X=self.rows, y=None)
        try:
            return self._train(net)
        finally:
            net.notify("on_train_end", X=self.rows, y=None)

    def _train(self, net: PairedNet) -> End:
        try:
            with suppress(StopTraining):
                # Not partial_fit: it swallows Ctrl-C, and an interrupted fit would look finished.
                net.fit_loop(self.rows, epochs=self.n_epochs)
            if self.early_stopping is not None:
                self.early_stopping.restore(net)
            # The last step of all is followed by no loss that would show it.
            if not net.is_finite(self.rows):
                raise NonFiniteLossError("a loss or a weight is not finite after the last step")
        except NonFiniteLossError as error:
            step = self.snapshot.restore(net)
            return End(f"{error}; training stops, the weights of step {step} are kept", diverged=True)
        except KeyboardInterrupt:
            step = self.snapshot.n_steps
            if not step:
                raise
            diverged = not net.is_finite(self.rows)
            if diverged:
                step = self.snapshot.restore(net)
            return End(f"training was interrupted; the weights of step {step} are kept", True, diverged)
        return End()

    def so_far(self, net: PairedNet) -> Trained:
        """Return what is learned by now, with a network that training does not change any more."""
        return self._result(net, copy.deepcopy(net.module_), End())

    def trained(self, net: PairedNet, end: End) -> Trained:
        """Return what the run leaves."""
        net.optimizer_.zero_grad()  # gradients take as much memory as the weights
        return self._result(net, net.module_.cpu().eval().requires_grad_(True), end)

    def _result(self, net: PairedNet, network: StoredNetwork, end: End) -> Trained:
        n_epochs = net.n_epochs_before + sum("pairs" in epoch for epoch in net.history)
        moments = None if end.diverged else moments_of(net.optimizer_)
        history = self.history(net)
        return Trained(network, history, n_epochs, end.interrupted, moments, self.of_user, end.why, self.file)
