# SPDX-License-Identifier: BSD-3-Clause
"""Training of the two-input network: paired mini-batches and the skorch net that runs them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import skorch.callbacks
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset

from sklearn_docids._losses import compactness_loss, descriptiveness_loss, reconstruction_loss
from sklearn_docids._network import PairOutput

LOSS_TERMS = ("descriptiveness_loss", "compactness_loss", "reconstruction_loss")
# Copies of the weights to fall back on when a loss turns non-finite; on a graphics card, losses are looked at as often.
STEPS_BETWEEN_SNAPSHOTS = 50
SECONDS_BETWEEN_LINES = 2.0
ROWS_CHECKED = 64
# Rows at a time where no gradient is needed.
HELD_OUT_BATCH = 512
# torch's OneCycleLR: how far below its peak the rate begins and ends, and when it peaks.
ONE_CYCLE_START, ONE_CYCLE_END, ONE_CYCLE_PEAK_AT = 1 / 25, 1 / 25e4, 0.3
OPTIMIZER_STATE = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def rows_to_tensor(rows: np.ndarray) -> Tensor:
    """Return a batch as a tensor: bytes stay bytes, all other numbers become float32. Copies only where it must."""
    if rows.dtype != np.uint8 or not rows.flags.carray:  # torch takes neither read-only memory nor negative strides
        rows = np.require(rows, np.uint8 if rows.dtype == np.uint8 else np.float32, ["C", "W"])
    return torch.from_numpy(rows)


@contextmanager
def recording_gradients(device: torch.device) -> Iterator[None]:
    """Compute gradients, in the types that the tensors have, whatever the caller has told torch."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


def resident(rows: np.ndarray, device: torch.device) -> np.ndarray | Tensor:
    """Return rows on the graphics card where they take less than half of its free memory, otherwise as they are."""
    if device.type == "cuda" and rows.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return rows_to_tensor(rows).to(device)
    return rows


class PairedFlows(Dataset):
    """Target rows, and reference rows with class numbers.

    On the CPU nothing is copied or converted before a batch is drawn; on a graphics card that has room for them, all
    rows lie there, and drawing a batch moves nothing.
    """

    def __init__(
        self,
        target: np.ndarray,
        reference: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        device: str = "cpu",
    ):
        self.device = torch.device(device)
        self.target = resident(target, self.device)
        self.reference = None if reference is None else resident(reference, self.device)
        if labels is not None:
            self._labels = labels
            self._by_class = np.argsort(labels, kind="stable")
            self._counts = np.unique(labels, return_counts=True)[1]  # of classes that are there
            self._starts = np.cumsum(self._counts) - self._counts

    def __len__(self) -> int:
        return len(self.target)

    def draw(self, rng: np.random.Generator) -> tuple[Any, Any, Tensor]:
        """Return an order of the target rows, as many reference rows, each class equally likely, and their classes."""
        order = rng.permutation(len(self))
        if self.reference is None:
            return self._index(self.target, order), None, torch.zeros(len(self), dtype=torch.int64, device=self.device)
        classes = rng.integers(len(self._counts), size=len(self))
        drawn = self._by_class[self._starts[classes] + rng.integers(self._counts[classes])]
        places = self._index(self.target, order), self._index(self.reference, drawn)
        return *places, torch.from_numpy(self._labels[drawn]).to(self.device)

    def pair(self, target_rows: Any, reference_rows: Any, labels: Any) -> tuple[dict[str, Tensor], Any]:
        """Return rows of both inputs, and class numbers, as the net takes them."""
        inputs = {"target": self._rows(self.target, target_rows)}
        if reference_rows is not None and self.reference is not None:
            inputs["reference"] = self._rows(self.reference, reference_rows)
        return inputs, labels

    def _index(self, rows: np.ndarray | Tensor, places: np.ndarray) -> np.ndarray | Tensor:
        return places if isinstance(rows, np.ndarray) else torch.from_numpy(places).to(self.device)

    def _rows(self, rows: Any, places: Any) -> Tensor:
        if isinstance(rows, np.ndarray):
            drawn = rows_to_tensor(rows[places])
            return drawn if self.device.type == "cpu" else drawn.to(self.device, non_blocking=True)
        return rows[places] if isinstance(places, slice) else rows.index_select(0, places)


def batch_bounds(n_rows: int, batch_size: int) -> list[tuple[int, int]]:
    """Return first and last row of each batch; a remainder of 1 joins the batch before it.

    Batch normalisation and the compactness loss need two rows.
    """
    starts = list(range(0, n_rows, batch_size))
    if len(starts) > 1 and n_rows - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n_rows], strict=True))


class PairedBatches:
    """Epochs: the target once, in random order, each batch paired with newly drawn reference rows.

    What an epoch draws depends on seed and number of the epoch alone, so training that goes on after a break draws what
    it would have drawn without one.
    """

    def __init__(self, dataset: PairedFlows, batch_size: int, seed: int, n_epoch: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.n_epoch = n_epoch

    def __len__(self) -> int:
        return len(batch_bounds(len(self.dataset), self.batch_size))

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        target_rows, reference_rows, labels = self.dataset.draw(np.random.default_rng([self.seed, self.n_epoch]))
        self.n_epoch += 1
        for first, last in batch_bounds(len(self.dataset), self.batch_size):
            batch = slice(first, last)
            drawn = None if reference_rows is None else reference_rows[batch]
            yield self.dataset.pair(target_rows[batch], drawn, labels[batch])


class CompositeLoss(nn.Module):
    """Weighted sum of the three losses (paper, section 3.3.3)."""

    def __init__(self, descriptiveness: float, compactness: float, reconstruction: float, detach_target: bool):
        super().__init__()
        self.weights = descriptiveness, compactness, reconstruction
        self.detach_target = detach_target

    def forward(self, output: PairOutput, labels: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the sum and its three terms, unweighted."""
        features = output.target_features
        terms = (
            features.new_zeros(())
            if output.reference_class_scores is None or labels is None
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


class StopTraining(Exception):
    """Training ends here because a callback has seen enough."""


class EpochLosses:
    """Losses of the batches of one epoch, left on the device until they are asked for."""

    def __init__(self, n_epoch: int):
        self.n_epoch = n_epoch
        self.sizes: list[int] = []
        self.rows: list[list[float]] = []  # (total, *LOSS_TERMS)
        self.pending: list[Tensor] = []

    def add(self, losses: Tensor, n_pairs: int) -> None:
        """Note the losses of a batch."""
        self.pending.append(losses)
        self.sizes.append(n_pairs)

    def fetch(self) -> None:
        """Bring losses to the host; raise at the first whose total is not finite."""
        pending, self.pending = self.pending, []
        for row in torch.stack(pending).tolist() if pending else ():
            if not math.isfinite(row[0]):
                described = ", ".join(f"{name} {value:g}" for name, value in zip(LOSS_TERMS, row[1:], strict=True))
                n_batch = len(self.rows) + 1
                raise NonFiniteLossError(
                    f"the loss is not finite in epoch {self.n_epoch}, batch {n_batch} ({described})"
                )
            self.rows.append(row)

    def summary(self) -> dict[str, Any]:
        """Return the pairs seen and the means of the losses over them."""
        sizes = self.sizes[: len(self.rows)]
        means = np.average(self.rows, axis=0, weights=sizes)
        return {
            "pairs": sum(sizes),
            "train_loss": means[0],
            **dict(zip(LOSS_TERMS, map(float, means[1:]), strict=True)),
        }


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; most fields are parameters of the detector."""

    n_epochs: int  # of this fit
    batch_size: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    schedule: str | None
    precision: str
    execution: str
    device: str
    seed: int
    first_epoch: int  # epochs before this fit


class PairedNet(NeuralNet):
    """The skorch net inside the detector: the loss in three terms, stopped when it is not finite.

    skorch brings each loss to the host; here they stay on the device for as long as nobody looks.
    """

    interrupted = False
    watched = False  # whether callbacks of the user look at the history
    stopping = False  # whether a callback has seen enough
    best_loss = math.inf  # of the epochs so far
    diverged = False  # whether a loss was not finite, so that the moments of the optimiser are of no use
    losses: EpochLosses
    run_network: Any

    def __init__(self, *args: Any, settings: TrainingSettings, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.settings = settings
        self.n_epochs_resumed = 0  # epochs of this fit that were run before a break
        self.earlier_epochs: list[dict[str, Any]] = []
        self.n_epochs_cut = 0  # earlier ones that a model file did not keep

    def infer(self, x: dict[str, Tensor], **fit_params: Any) -> PairOutput:
        """Return the output of the network for a batch."""
        if self.settings.precision == "float32":
            return self.run_network(**x)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            output = self.run_network(**x)
        single: Any = [None if value is None else value.float() for value in output]
        return PairOutput(*single)

    def get_loss(self, y_pred: PairOutput, y_true: Tensor, X: Any = None, training: bool = False) -> Tensor:
        """Return the composite loss; keep it and its terms as ``last_losses``."""
        total, terms = self.criterion_(y_pred, y_true)
        self.last_losses = torch.stack([total, *terms]).detach()
        return total

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Run one step, as a CUDA graph where that was asked for and the batch is a whole one."""
        if self.settings.execution != "cuda_graph" or len(batch[1]) != self.batch_size:
            return self.eager_step(batch)
        if not hasattr(self, "graph"):
            self.graph = GraphedStep(self, batch)
        return self.graph.run(batch)

    def eager_step(self, batch: Any) -> dict[str, Any]:
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
        self.losses = losses = EpochLosses(n_epochs_run(self))
        steps_between_looks = 1 if self.watched or self.device == "cpu" else STEPS_BETWEEN_SNAPSHOTS
        try:
            for batch in iterator:
                self.notify("on_batch_begin", batch=batch, training=training)
                step = step_fn(batch)
                losses.add(self.last_losses, len(batch[1]))
                if len(losses.pending) >= steps_between_looks:
                    losses.fetch()
                if self.watched:
                    self.history.record_batch("train_loss", losses.rows[-1][0])
                    self.history.record_batch("train_batch_size", losses.sizes[-1])
                self.notify("on_batch_end", batch=batch, training=training, **step)
            losses.fetch()
        finally:
            if losses.rows:
                for name, value in losses.summary().items():
                    self.history.record(name, value)
                loss = self.history[-1]["train_loss"]
                self.history.record("train_loss_best", loss < self.best_loss)
                self.best_loss = min(loss, self.best_loss)

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the callbacks; stop where one of them wants to."""
        getattr(self, method_name)(self, **cb_kwargs)
        for _, callback in self.callbacks_:
            try:
                getattr(callback, method_name)(self, **cb_kwargs)
            except KeyboardInterrupt:
                if not isinstance(callback, skorch.callbacks.EarlyStopping):
                    raise
                self.stopping = True  # its way to ask for it
        if self.stopping and method_name in ("on_batch_end", "on_epoch_end"):
            raise StopTraining


class GraphedStep:
    """One training step, recorded as a CUDA graph and replayed: hundreds of launches become one."""

    N_WARM_UP = 3

    def __init__(self, net: PairedNet, batch: tuple[dict[str, Tensor], Tensor]):
        self.net = net
        self.inputs = {name: rows.clone() for name, rows in batch[0].items()}
        self.labels = batch[1].clone()
        kept = {name: value.clone() for name, value in net.module_.state_dict().items()}
        moments = {name: value.clone() for name, value in optimizer_tensors(net).items()}
        with torch.cuda.device(net.device):  # streams belong to the current one
            stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(self.N_WARM_UP):  # lets libraries allocate; its steps are undone below
                    net.eager_step((self.inputs, self.labels))
            torch.cuda.current_stream().wait_stream(stream)
            net.module_.load_state_dict(kept)
            for name, value in optimizer_tensors(net).items():
                value.copy_(moments[name]) if name in moments else value.zero_()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                net.eager_step((self.inputs, self.labels))
        self.losses = net.last_losses

    def run(self, batch: tuple[dict[str, Tensor], Tensor]) -> dict[str, Any]:
        """Run the step on another batch."""
        for name, rows in batch[0].items():
            self.inputs[name].copy_(rows)
        self.labels.copy_(batch[1])
        with torch.cuda.device(self.net.device):
            self.graph.replay()
        self.net.last_losses = self.losses.clone()
        return {"loss": self.net.last_losses[0]}


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

    def __init__(self, n_steps: int):
        self.n_steps = n_steps
        self.step = 0

    def on_batch_begin(self, net: PairedNet, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Set the rate."""
        lr = one_cycle(self.step, self.n_steps, net.settings.lr)
        for group in net.optimizer_.param_groups:
            if isinstance(group["lr"], Tensor):  # a CUDA graph reads it anew in each step
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self.step += 1


def weights_are_finite(net: PairedNet) -> bool:
    """Return whether no weight and no running statistic is NaN or infinite."""
    return bool(torch.stack([torch.isfinite(value).all() for value in net.module_.state_dict().values()]).all())


def outputs_are_finite(net: PairedNet, flows: PairedFlows) -> bool:
    """Return whether some target rows are reconstructed to finite numbers, as they will be scored."""
    output = evaluated(net, flows, 0, min(ROWS_CHECKED, len(flows)))
    return bool(torch.isfinite(reconstruction_loss(output.reconstruction, output.target_features)))


def evaluated(net: PairedNet, flows: PairedFlows, first: int, last: int) -> PairOutput:
    """Return the output for target rows, in evaluation and without gradients."""
    net.module_.eval()
    with torch.no_grad():
        return net.module_(flows.pair(slice(first, last), None, None)[0]["target"])


def held_out_loss(net: PairedNet, flows: PairedFlows) -> float:
    """Return the weighted loss of all target rows, in evaluation; there is no descriptiveness loss in it."""
    bounds = batch_bounds(len(flows), HELD_OUT_BATCH)
    losses = [float(net.criterion_(evaluated(net, flows, *rows), None)[0]) for rows in bounds]
    return float(np.average(losses, weights=[last - first for first, last in bounds]))


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of weights and running statistics."""
    return {name: value.clone() for name, value in network.state_dict().items()}


class Snapshot(Callback):
    """Keep a recent copy of the weights, all of them finite."""

    weights: dict[str, Tensor]

    def __init__(self) -> None:
        self.n_steps = 0  # of this fit, those before a break included
        self.step = -1  # what the copy has seen

    def on_train_begin(self, net: PairedNet, **kwargs: Any) -> None:
        """Copy the weights training starts from, unless there is a copy from before a break."""
        if self.step < 0:
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
            self.weights = copy_of(net.module_)
            self.step = self.n_steps

    def restore(self, net: PairedNet) -> int:
        """Put the copy back; return the number of steps it had seen."""
        net.module_.load_state_dict(self.weights)
        return self.step


class EarlyStopping(Callback):
    """Stop when the loss of held-out target rows has not improved for some epochs; keep the best weights."""

    def __init__(self, flows: PairedFlows, n_iter_no_change: int, tol: float):
        self.flows = flows
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.best_loss = math.inf
        self.n_without = 0
        self.best_weights: dict[str, Tensor] | None = None

    def on_epoch_end(self, net: PairedNet, **kwargs: Any) -> None:
        """Compare with the best epoch so far."""
        loss = held_out_loss(net, self.flows)
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"the loss of held-out rows is not finite in epoch {n_epochs_run(net)}")
        net.history.record("validation_loss", loss)
        if loss < self.best_loss - self.tol:
            self.best_loss, self.n_without, self.best_weights = loss, 0, copy_of(net.module_)
        else:
            self.n_without += 1
        if self.n_without >= self.n_iter_no_change:
            net.stopping = True

    def restore(self, net: PairedNet) -> None:
        """Put the best weights back."""
        if self.best_weights is not None:
            net.module_.load_state_dict(self.best_weights)


class Progress(Callback):
    """Print a line every two seconds, and one at the end: epochs, mean losses since the last line."""

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
        losses = ", ".join(
            f"{name.removesuffix('_loss')} {mean:.4f}" for name, mean in zip(LOSS_TERMS, means, strict=True)
        )
        print(f"epoch {n_epochs_run(net)}/{net.settings.first_epoch + net.settings.n_epochs}: {losses}", flush=True)
        self._printed, self._seen = time.monotonic(), []


def make_net(
    network_class: type[nn.Module],
    network: dict[str, Any],
    losses: dict[str, Any],
    settings: TrainingSettings,
    callbacks: list[tuple[str, Any]],
) -> PairedNet:
    """Return a net that is ready to fit a `PairedFlows`. All its randomness comes from the seed of the settings."""
    net = PairedNet(
        network_class,
        **{f"module__{name}": value for name, value in network.items()},
        criterion=CompositeLoss,
        **{f"criterion__{name}": value for name, value in losses.items()},
        optimizer=torch.optim.SGD if settings.optimizer == "sgd" else torch.optim.AdamW,
        **{f"optimizer__{name}": value for name, value in _optimizer_settings(settings).items()},
        lr=settings.lr,
        max_epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        iterator_train=PairedBatches,
        iterator_train__seed=settings.seed,
        iterator_train__n_epoch=settings.first_epoch,
        train_split=None,
        callbacks=[("snapshot", Snapshot()), *callbacks],
        callbacks__print_log=None,
        callbacks__train_loss=None,
        callbacks__valid_loss=None,
        device=settings.device,
        verbose=0,
        settings=settings,
    )
    # torch draws the initial weights from its global generator: borrowed, and given back as it was. They are drawn on
    # the CPU whatever the device; torch.manual_seed would reseed the graphics cards too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        net.initialize()
    if settings.optimizer == "sgd" and settings.momentum:
        # What the first step would make of nothing. A fused step cannot mix parameters that have a momentum with others
        # that have none, whose loss was switched off so far.
        for parameter in net.module_.parameters():
            net.optimizer_.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    # Beside the module, not around it: weights keep their names, and nothing compiled is ever stored.
    net.run_network = torch.compile(net.module_.forward) if settings.execution == "compiled" else net.module_.forward
    return net


def _optimizer_settings(settings: TrainingSettings) -> dict[str, Any]:
    chosen: dict[str, Any] = {"weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "sgd":
        chosen["momentum"] = settings.momentum
    if settings.execution == "cuda_graph":
        chosen["lr"] = torch.tensor(settings.lr, device=settings.device)
        if settings.optimizer == "adamw":
            chosen["capturable"] = True
    return chosen


def optimizer_tensors(net: PairedNet) -> dict[str, Tensor]:
    """Return the moments of the optimiser, named by parameter and kind."""
    (group,) = net.optimizer_.param_groups
    return {
        f"{index}.{kind}": value
        for index, parameter in enumerate(group["params"])
        for kind, value in net.optimizer_.state.get(parameter, {}).items()
        if value is not None
    }


def restore_optimizer(net: PairedNet, tensors: dict[str, Tensor]) -> None:
    """Give the optimiser the moments of `optimizer_tensors`."""
    (group,) = net.optimizer_.param_groups
    for name, value in tensors.items():
        index, _, kind = name.partition(".")
        parameter = group["params"][int(index)]
        # In the memory layout of the parameter: a fused step walks through both as they lie.
        like = parameter if value.shape == parameter.shape else value.to(parameter.device)
        net.optimizer_.state[parameter][kind] = torch.empty_like(like, requires_grad=False).copy_(value)


def train(net: PairedNet, flows: PairedFlows) -> str | None:
    """Fit the net; return why it ended before its time, if it did.

    Ctrl-C sets ``net.interrupted`` and stops it likewise, once there has been a step.
    """
    with recording_gradients(torch.device(net.device)):
        ended = _train(net, flows)
    net.optimizer_.zero_grad()  # gradients take as much memory as the weights
    return ended


def _train(net: PairedNet, flows: PairedFlows) -> str | None:
    callbacks = dict(net.callbacks_)
    # Not partial_fit: it swallows Ctrl-C, and an interrupted fit would look finished.
    net.notify("on_train_begin", X=flows, y=None)
    ended = None
    try:
        with suppress(StopTraining):
            net.fit_loop(flows, epochs=net.settings.n_epochs - net.n_epochs_resumed)
        if "early_stopping" in callbacks:
            callbacks["early_stopping"].restore(net)
        # The last step of all is followed by no loss that would show it.
        if not outputs_are_finite(net, flows) or not weights_are_finite(net):
            raise NonFiniteLossError("the reconstruction loss or a weight is not finite after the last step")
    except NonFiniteLossError as error:
        net.diverged = True
        ended = f"{error}; training stops, the weights of step {callbacks['snapshot'].restore(net)} are kept"
    except KeyboardInterrupt:
        step = callbacks["snapshot"].n_steps
        if not step:
            raise
        net.interrupted = True
        if not outputs_are_finite(net, flows) or not weights_are_finite(net):
            net.diverged = True
            step = callbacks["snapshot"].restore(net)
        return f"training was interrupted; the weights of step {step} are kept"
    net.notify("on_train_end", X=flows, y=None)
    return ended


def n_epochs_run(net: PairedNet) -> int:
    """Return the number of the present epoch, counted from the first of the first fit."""
    return net.settings.first_epoch + net.n_epochs_resumed + len(net.history)


def skip_epochs(net: PairedNet, n_epochs: int, steps_per_epoch: int, history: list[dict[str, Any]]) -> None:
    """Let a net that is ready to train go on behind epochs that were run before a break."""
    net.n_epochs_resumed = n_epochs
    net.earlier_epochs = history
    net.iterator_train__n_epoch = net.settings.first_epoch + n_epochs
    callbacks = dict(net.callbacks_)
    callbacks["snapshot"].n_steps = n_epochs * steps_per_epoch
    if "schedule" in callbacks:
        callbacks["schedule"].step = n_epochs * steps_per_epoch


def epoch_history(net: PairedNet) -> list[dict[str, Any]]:
    """Return one dict per epoch: its number, pairs seen, means of the losses over these pairs."""
    kept = ("pairs", *LOSS_TERMS, "validation_loss")
    first = n_epochs_run(net) - len(net.history)
    return net.earlier_epochs + [
        {"epoch": first + epoch["epoch"], **{name: epoch[name] for name in kept if name in epoch}}
        for epoch in net.history
        if "pairs" in epoch
    ]
