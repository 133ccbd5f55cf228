# SPDX-License-Identifier: BSD-3-Clause
"""Training of the two-input network: paired mini-batches and the skorch net that runs them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, LRScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset

from sklearn_docids._losses import compactness_loss, descriptiveness_loss, reconstruction_loss
from sklearn_docids._network import DOCIDSNetwork, PairOutput

LOSS_TERMS = ("descriptiveness_loss", "compactness_loss", "reconstruction_loss")
# Copies of the weights to fall back on when a loss turns non-finite.
STEPS_BETWEEN_SNAPSHOTS = 50
SECONDS_BETWEEN_LINES = 2.0
ROWS_CHECKED = 64


def rows_to_tensor(rows: np.ndarray) -> Tensor:
    """Return a copy of a batch as a tensor: bytes stay bytes, all other numbers become float32."""
    # A copy, because torch takes neither read-only memory nor negative strides.
    return torch.from_numpy(np.array(rows, np.uint8 if rows.dtype == np.uint8 else np.float32, order="C"))


class PairedFlows(Dataset):
    """Target rows, and reference rows sorted by class. Nothing is copied or converted before a batch is drawn."""

    def __init__(self, target: np.ndarray, reference: np.ndarray | None, labels: np.ndarray | None):
        self.target = target
        self.reference = reference
        if labels is not None:
            self._by_class = np.argsort(labels, kind="stable")
            self._counts = np.bincount(labels)
            self._starts = np.cumsum(self._counts) - self._counts

    def __len__(self) -> int:
        return len(self.target)

    def pair(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
        """Return target rows with as many reference rows, each class equally likely, and the class numbers."""
        target = rows_to_tensor(self.target[rows])
        if self.reference is None:
            return {"target": target}, torch.zeros(len(rows), dtype=torch.int64)
        labels = rng.integers(len(self._counts), size=len(rows))
        drawn = self._by_class[self._starts[labels] + rng.integers(self._counts[labels])]
        return {"target": target, "reference": rows_to_tensor(self.reference[drawn])}, torch.from_numpy(labels)


def batch_bounds(n_rows: int, batch_size: int) -> list[tuple[int, int]]:
    """Return first and last row of each batch; a remainder of 1 joins the batch before it.

    Batch normalisation and the compactness loss need two rows.
    """
    starts = list(range(0, n_rows, batch_size))
    if len(starts) > 1 and n_rows - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n_rows], strict=True))


class PairedBatches:
    """One epoch: the target once, in random order, each batch paired with newly drawn reference rows."""

    def __init__(self, dataset: PairedFlows, batch_size: int, rng: np.random.Generator):
        self.dataset = dataset
        self.batch_size = batch_size
        self.rng = rng

    def __len__(self) -> int:
        return len(batch_bounds(len(self.dataset), self.batch_size))

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        order = self.rng.permutation(len(self.dataset))
        for first, last in batch_bounds(len(order), self.batch_size):
            yield self.dataset.pair(order[first:last], self.rng)


class CompositeLoss(nn.Module):
    """Weighted sum of the three losses (paper, section 3.3.3)."""

    def __init__(self, descriptiveness: float, compactness: float, reconstruction: float, detach_target: bool):
        super().__init__()
        self.weights = descriptiveness, compactness, reconstruction
        self.detach_target = detach_target

    def forward(self, output: PairOutput, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the sum and its three terms, unweighted."""
        features = output.target_features
        terms = (
            features.new_zeros(())
            if output.reference_class_scores is None
            else descriptiveness_loss(output.reference_class_scores, labels),
            compactness_loss(output.target_class_scores),
            reconstruction_loss(output.reconstruction, features.detach() if self.detach_target else features),
        )
        total = features.new_zeros(())
        for weight, term in zip(self.weights, terms, strict=True):
            if weight:  # a loss that is switched off takes no part, not even with a NaN
                total = total + weight * term
        return total, terms


class NonFiniteLossError(ArithmeticError):
    """A loss is NaN or infinite; training cannot go on."""


class PairedNet(NeuralNet):
    """The skorch net inside the detector: the loss in three terms, stopped when it is not finite."""

    interrupted = False

    def get_loss(self, y_pred: PairOutput, y_true: Tensor, X: Any = None, training: bool = False) -> Tensor:
        """Return the composite loss and note its terms in the history."""
        total, terms = self.criterion_(y_pred, y_true)
        values = [term.item() for term in terms]
        for name, value in zip(LOSS_TERMS, values, strict=True):
            self.history.record_batch(name, value)
        if not math.isfinite(total.item()):
            described = ", ".join(f"{name} {value:g}" for name, value in zip(LOSS_TERMS, values, strict=True))
            n_epoch, n_batch = len(self.history), len(self.history[-1]["batches"])
            raise NonFiniteLossError(f"the loss is not finite in epoch {n_epoch}, batch {n_batch} ({described})")
        return total


def weights_are_finite(net: PairedNet) -> bool:
    """Return whether no weight and no running statistic is NaN or infinite."""
    return all(bool(torch.isfinite(value).all()) for value in net.module_.state_dict().values())


def outputs_are_finite(net: PairedNet, flows: PairedFlows) -> bool:
    """Return whether some target rows are reconstructed to finite numbers, as they will be scored."""
    net.module_.eval()
    with torch.no_grad():
        output = net.module_(rows_to_tensor(flows.target[:ROWS_CHECKED]).to(net.device))
        return bool(torch.isfinite(reconstruction_loss(output.reconstruction, output.target_features)))


class Snapshot(Callback):
    """Keep a recent copy of the weights, all of them finite."""

    def on_train_begin(self, net: PairedNet, **kwargs: Any) -> None:
        """Copy the weights training starts from."""
        self.n_steps = 0
        self._take(net)

    def on_batch_begin(self, net: PairedNet, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Copy the weights every few steps."""
        if self.n_steps % STEPS_BETWEEN_SNAPSHOTS == 0 and self.n_steps:
            self._take(net)

    def on_batch_end(self, net: PairedNet, training: bool = False, **kwargs: Any) -> None:
        """Count the step."""
        self.n_steps += 1

    def _take(self, net: PairedNet) -> None:
        if weights_are_finite(net):
            self.weights = {name: value.clone() for name, value in net.module_.state_dict().items()}
            self.step = self.n_steps

    def restore(self, net: PairedNet) -> int:
        """Put the copy back; return the number of steps it had seen."""
        net.module_.load_state_dict(self.weights)
        return self.step


class Progress(Callback):
    """Print a line every two seconds, and one at the end: steps, epochs, mean losses since the last line."""

    def on_train_begin(self, net: PairedNet, **kwargs: Any) -> None:
        """Start the clock."""
        self._printed = time.monotonic()
        self._seen: list[list[float]] = []

    def on_batch_end(self, net: PairedNet, training: bool = False, **kwargs: Any) -> None:
        """Print if it is time."""
        batch = net.history[-1]["batches"][-1]
        self._seen.append([batch[name] for name in LOSS_TERMS])
        if time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._print(net)

    def on_train_end(self, net: PairedNet, **kwargs: Any) -> None:
        """Print what came since the last line."""
        if self._seen:
            self._print(net)

    def _print(self, net: PairedNet) -> None:
        means = np.mean(self._seen, axis=0)
        losses = ", ".join(
            f"{name.removesuffix('_loss')} {mean:.4f}" for name, mean in zip(LOSS_TERMS, means, strict=True)
        )
        print(f"epoch {len(net.history)}/{net.max_epochs}: {losses}", flush=True)
        self._printed, self._seen = time.monotonic(), []


def make_net(
    network: dict[str, Any],
    losses: dict[str, Any],
    *,
    max_epochs: int,
    batch_size: int,
    steps_per_epoch: int,
    optimizer: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    schedule: str | None,
    device: str,
    seed: int,
    verbose: int,
) -> PairedNet:
    """Return a net that is ready to fit a `PairedFlows`. All its randomness comes from ``seed``."""
    sgd = optimizer == "sgd"
    callbacks: list[tuple[str, Any]] = [("snapshot", Snapshot())]
    if verbose:
        callbacks.append(("progress", Progress()))
    if schedule == "one_cycle":
        steps = max_epochs * steps_per_epoch
        one_cycle = LRScheduler(
            torch.optim.lr_scheduler.OneCycleLR, step_every="batch", max_lr=lr, total_steps=steps, cycle_momentum=False
        )
        callbacks.append(("schedule", one_cycle))
    net = PairedNet(
        DOCIDSNetwork,
        **{f"module__{name}": value for name, value in network.items()},
        criterion=CompositeLoss,
        **{f"criterion__{name}": value for name, value in losses.items()},
        optimizer=torch.optim.SGD if sgd else torch.optim.AdamW,
        **({"optimizer__momentum": momentum} if sgd else {}),
        optimizer__weight_decay=weight_decay,
        optimizer__fused=True,
        lr=lr,
        max_epochs=max_epochs,
        batch_size=batch_size,
        iterator_train=PairedBatches,
        iterator_train__rng=np.random.default_rng(seed),
        train_split=None,
        callbacks=callbacks,
        callbacks__print_log=None,
        device=device,
        verbose=0,
    )
    # torch draws the initial weights from its global generator: borrowed, and given back as it was. They are drawn on
    # the CPU whatever the device; torch.manual_seed would reseed the graphics cards too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net.initialize()
    return net


def train(net: PairedNet, flows: PairedFlows) -> str | None:
    """Fit the net; return why it stopped early, if it did.

    Ctrl-C sets ``net.interrupted`` and stops it likewise, once there has been a step.
    """
    net.interrupted = False
    # Not partial_fit: it swallows Ctrl-C, and an interrupted fit would look finished.
    net.notify("on_train_begin", X=flows, y=None)
    try:
        net.fit_loop(flows)
        if not outputs_are_finite(net, flows):  # the last step of all is followed by no loss that would show it
            raise NonFiniteLossError("the reconstruction loss is not finite after the last step")
    except NonFiniteLossError as error:
        return f"{error}; training stops, the weights of step {_go_back(net)} are kept"
    except KeyboardInterrupt:
        step = dict(net.callbacks_)["snapshot"].n_steps
        if not step:
            raise
        net.interrupted = True
        if not outputs_are_finite(net, flows):
            step = _go_back(net)
        return f"training was interrupted; the weights of step {step} are kept"
    net.notify("on_train_end", X=flows, y=None)
    return None


def _go_back(net: PairedNet) -> int:
    """Put the last copy of the weights back; return the number of steps it had seen."""
    step: int = dict(net.callbacks_)["snapshot"].restore(net)
    return step


def epoch_history(net: PairedNet) -> list[dict[str, float]]:
    """Return one dict per epoch: pairs seen, and means of the losses over these pairs."""
    rows: list[dict[str, float]] = []
    for epoch in net.history:
        batches = [batch for batch in epoch["batches"] if "train_batch_size" in batch]
        pairs = [batch["train_batch_size"] for batch in batches]
        if pairs:
            means = {name: float(np.average([b[name] for b in batches], weights=pairs)) for name in LOSS_TERMS}
            rows.append({"epoch": epoch["epoch"], "pairs": sum(pairs), **means})
    return rows
