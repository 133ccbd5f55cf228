# SPDX-License-Identifier: BSD-3-Clause
"""The skorch net that training runs: a weighted loss of several terms, and an end when it is not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import skorch.callbacks
import torch
from skorch import NeuralNet
from torch import Tensor, nn

from sklearn_docids._network.losses import LOSSES, compactness_loss, descriptiveness_loss, reconstruction_loss
from sklearn_docids._network.table1 import PairOutput
from sklearn_docids._training.pairs import PairedBatches, PairedFlows, batch_bounds

# On a graphics card, losses are brought to the host once in so many steps.
STEPS_BETWEEN_LOOKS = 50
ROWS_CHECKED = 64
# Rows at a time where no gradient is needed.
HELD_OUT_BATCH = 512


class WeightedLosses(nn.Module):
    """Weighted sum of the three losses (paper, section 3.3.3, equation 3). One whose weight is 0 is not computed.

    Parameters
    ----------
    **weights
        Weights of ``descriptiveness``, ``compactness`` and ``reconstruction``. The history of training has the losses
        that are named here, 0 for one that is not computed.
    """

    def __init__(self, **weights: float):
        super().__init__()
        self.names = [name for name in LOSSES if name in weights]
        self.weights = {name: float(weights[name]) for name in self.names if weights[name]}

    def forward(self, output: PairOutput, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum, and the losses it is made of; there is no descriptiveness loss without a reference."""
        terms = {}
        if output.reference_class_scores is not None and labels is not None:
            terms["descriptiveness"] = descriptiveness_loss(output.reference_class_scores, labels)
        if output.target_class_scores is not None:
            terms["compactness"] = compactness_loss(output.target_class_scores)
        if output.reconstruction is not None:
            terms["reconstruction"] = reconstruction_loss(output.reconstruction, output.target_features)
        total = output.target_features.new_zeros(())
        for name, term in terms.items():
            total = total + self.weights[name] * term
        return total, terms


class NonFiniteLossError(ArithmeticError):
    """A loss is NaN or infinite; training cannot go on."""


class StopTraining(Exception):
    """Training ends here because a callback has seen enough."""


class EpochLosses:
    """Losses of the batches of one epoch, left on the device until they are asked for."""

    def __init__(self, n_epoch: int, reported: list[str]):
        self.n_epoch = n_epoch
        self.reported = reported
        self.names: list[str] = []  # of those that are computed
        self.sizes: list[int] = []
        self.rows: list[list[float]] = []  # (total, *names)
        self.pending: list[Tensor] = []

    def add(self, total: Tensor, terms: dict[str, Tensor], n_pairs: int) -> Tensor:
        """Note the losses of a batch; return them as one tensor."""
        self.names = list(terms)
        losses = torch.stack([total, *terms.values()]).detach()
        self.pending.append(losses)
        self.sizes.append(n_pairs)
        return losses

    def fetch(self) -> None:
        """Bring losses to the host; raise at the first whose total is not finite."""
        pending, self.pending = self.pending, []
        for row in torch.stack(pending).tolist() if pending else ():
            if not math.isfinite(row[0]):
                described = ", ".join(f"{name}_loss {v:g}" for name, v in zip(self.names, row[1:], strict=True))
                n_batch = len(self.rows) + 1
                raise NonFiniteLossError(
                    f"the loss is not finite in epoch {self.n_epoch}, batch {n_batch} ({described})"
                )
            self.rows.append(row)

    def summary(self) -> dict[str, Any]:
        """Return the pairs seen and the means of the losses over them."""
        sizes = self.sizes[: len(self.rows)]
        means = np.average(self.rows, axis=0, weights=sizes)
        computed = dict(zip(self.names, map(float, means[1:]), strict=True))
        losses = {f"{name}_loss": computed.get(name, 0.0) for name in self.reported}
        return {"pairs": sum(sizes), "train_loss": means[0], **losses}


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; most fields are parameters of the detectors."""

    n_epochs: int  # of this fit
    batch_size: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str | None
    device: str
    seed: int
    n_iter_no_change: int = 10
    tol: float = 1e-4
    verbose: int = field(default=0, compare=False)


class PairedNet(NeuralNet):
    """The skorch net behind the detectors: several losses, in one look at the host, and an end where one is not finite.

    skorch brings each loss to the host; here they stay on the device for as long as nobody looks.

    Parameters
    ----------
    n_epochs_before : int
        Epochs run before this net was made, by earlier fits and before a break.
    watched : bool
        Whether callbacks of the user look at the history after each batch.
    """

    last_losses: Tensor  # of the last batch: the total, then the losses

    def __init__(self, *args: Any, n_epochs_before: int, watched: bool, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.n_epochs_before = n_epochs_before
        self.watched = watched
        self.losses = EpochLosses(n_epochs_before, [])
        self._stops = False
        self._best_loss = math.inf

    @property
    def n_epochs_run(self) -> int:
        """Number of the present epoch, counted from the first of the first fit."""
        return self.n_epochs_before + len(self.history)

    @property
    def stops(self) -> bool:
        """Whether a callback has seen enough."""
        return self._stops

    def stop_training(self) -> None:
        """End training behind the present batch or epoch: the way for a callback to say that it has seen enough."""
        self._stops = True

    def infer(self, x: dict[str, Tensor], **fit_params: Any) -> PairOutput:
        """Return the output of the network for a batch, as far as losses look at it."""
        return self.module_(**x, losses=self.criterion_.weights)

    def get_loss(self, y_pred: PairOutput, y_true: Tensor, X: Any = None, training: bool = False) -> Tensor:
        """Return the weighted loss, and note it with the losses it is made of."""
        total, terms = self.criterion_(y_pred, y_true)
        self.last_losses = self.losses.add(total, terms, len(y_true))
        return total

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Run one step without skorch's closure for optimisers that look at a batch more than once."""
        inputs, labels = batch
        if not self.module_.training:
            self.module_.train()
        self.optimizer_.zero_grad()
        output = self.infer(inputs)
        loss = self.get_loss(output, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.watched:
            parameters = self.get_all_learnable_params()
            self.notify("on_grad_computed", named_parameters=parameters, batch=batch, training=True)
        self.optimizer_.step()
        return {"loss": loss, "y_pred": output}

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        """Train for an epoch; its mean losses go to the history, those of an epoch that is cut short too."""
        if iterator is None:
            return
        self.losses = EpochLosses(self.n_epochs_run, self.criterion_.names)
        steps_between_looks = 1 if self.watched or self.device == "cpu" else STEPS_BETWEEN_LOOKS
        try:
            for batch in iterator:
                self.notify("on_batch_begin", batch=batch, training=training)
                step = step_fn(batch)
                if len(self.losses.pending) >= steps_between_looks:
                    self.losses.fetch()
                if self.watched:
                    self.history.record_batch("train_loss", self.losses.rows[-1][0])
                    self.history.record_batch("train_batch_size", self.losses.sizes[-1])
                self.notify("on_batch_end", batch=batch, training=training, **step)
            self.losses.fetch()
        finally:
            self._record_losses()

    def _record_losses(self) -> None:
        if self.losses.rows:
            for name, value in self.losses.summary().items():
                self.history.record(name, value)
            loss = self.history[-1]["train_loss"]
            self.history.record("train_loss_best", loss < self._best_loss)
            self._best_loss = min(loss, self._best_loss)

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the callbacks; stop where one of them wants to."""
        getattr(self, method_name)(self, **cb_kwargs)
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except KeyboardInterrupt:
                if not isinstance(callback, skorch.callbacks.EarlyStopping):
                    raise
                self.stop_training()  # its way to ask for it
        if self._stops and method_name in ("on_batch_end", "on_epoch_end"):
            raise StopTraining

    def evaluated(self, flows: PairedFlows, first: int, last: int) -> PairOutput:
        """Return the output for target rows, in evaluation and without gradients."""
        self.module_.eval()
        with torch.no_grad():
            return self.infer(flows.pair(slice(first, last), None, None)[0])

    def held_out_loss(self, flows: PairedFlows) -> float:
        """Return the weighted loss of all target rows, in evaluation; there is no descriptiveness loss in it."""
        bounds = batch_bounds(len(flows), HELD_OUT_BATCH)
        losses = [float(self.criterion_(self.evaluated(flows, *rows), None)[0]) for rows in bounds]
        return float(np.average(losses, weights=[last - first for first, last in bounds]))

    def is_finite(self, flows: PairedFlows) -> bool:
        """Return whether all weights are finite, and so are losses and squared features of some target rows."""
        output = self.evaluated(flows, 0, min(ROWS_CHECKED, len(flows)))
        numbers = self.criterion_(output, None)[0] + output.target_features.square().mean()
        return self.weights_are_finite() and bool(numbers.isfinite())

    def weights_are_finite(self) -> bool:
        """Return whether no weight and no running statistic is NaN or infinite."""
        return bool(torch.stack([value.isfinite().all() for value in self.module_.state_dict().values()]).all())


def make_net(
    network: nn.Module,
    losses: WeightedLosses,
    settings: TrainingSettings,
    *,
    n_epochs_before: int = 0,
    callbacks: list[tuple[str, Any]] | None = None,
    watched: bool = False,
) -> PairedNet:
    """Return a net that is ready to fit a `PairedFlows`. What its batches draw comes from the seed of the settings."""
    net = PairedNet(
        network,
        criterion=losses,
        optimizer=torch.optim.SGD if settings.optimizer == "sgd" else torch.optim.AdamW,
        **{f"optimizer__{name}": value for name, value in optimizer_settings(settings).items()},
        lr=settings.lr,
        max_epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        iterator_train=PairedBatches,
        iterator_train__seed=settings.seed,
        iterator_train__n_epoch=n_epochs_before,
        train_split=None,
        callbacks=callbacks or [],
        callbacks__print_log=None,
        callbacks__train_loss=None,
        callbacks__valid_loss=None,
        device=settings.device,
        verbose=int(watched),  # or skorch's callbacks print nothing
        n_epochs_before=n_epochs_before,
        watched=watched,
    )
    net.initialize()
    if settings.optimizer == "sgd" and settings.momentum:
        # What the first step would make of nothing. A fused step cannot mix parameters that have a momentum with others
        # that have none, whose loss was switched off so far.
        for parameter in net.module_.parameters():
            net.optimizer_.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return net


def optimizer_settings(settings: TrainingSettings) -> dict[str, Any]:
    """Return the arguments of the optimiser."""
    chosen: dict[str, Any] = {"weight_decay": settings.weight_decay, "fused": True}
    return {**chosen, "momentum": settings.momentum} if settings.optimizer == "sgd" else chosen
