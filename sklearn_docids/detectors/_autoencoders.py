# SPDX-License-Identifier: BSD-3-Clause
"""The paper's two baselines: autoencoders on the bytes themselves, trained on normal traffic alone."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from sklearn_docids import _training
from sklearn_docids._network import PairOutput
from sklearn_docids.detectors._base import check_range
from sklearn_docids.detectors._trained import FlowDetector

# Rows scored at a time, always as many: the score of a flow must not depend on the flows beside it.
CHUNK_ROWS = 256
KERNEL = 6  # as in the paper's Table 1
CODE_CHANNELS = 4


class ReconstructingNetwork(nn.Module):
    """An autoencoder on scaled bytes, as the training of pairs takes it: its features are its input."""

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, n_columns: int, scale: float):
        super().__init__()
        self.n_columns = n_columns
        self.scale = scale

    def code(self, flows: Tensor) -> Tensor:
        """Return the code of flow bytes, (n, n_columns) of any number type -> (n, n_code)."""
        return self.encoder(self.scaled(flows)).flatten(1)

    def scaled(self, flows: Tensor) -> Tensor:
        """Return flow bytes as the encoder takes them."""
        return flows.to(torch.float32) / self.scale

    def reconstructed(self, rows: Tensor) -> Tensor:
        """Return what is left of scaled rows behind encoder and decoder."""
        return self.decoder(self.encoder(rows))

    def forward(self, target: Tensor) -> PairOutput:
        """Return scaled bytes and their reconstruction; class scores there are none."""
        rows = self.scaled(target)
        return PairOutput(rows, rows.new_zeros((len(rows), 1)), self.reconstructed(rows), None)

    def squared_error(self, flows: Tensor) -> Tensor:
        """Return the mean squared difference between scaled bytes and reconstruction, per flow."""
        rows = self.scaled(flows)
        return (self.reconstructed(rows) - rows).square().mean(dim=1)


class DenseAutoencoder(ReconstructingNetwork):
    """n_columns -> 128 -> 64 -> 128 -> n_columns: the paper's autoencoder, on bytes instead of features."""

    def __init__(self, n_columns: int, scale: float):
        super().__init__(n_columns, scale)
        self.encoder = nn.Sequential(nn.Linear(n_columns, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, n_columns))
        self.float()


class Cropped(nn.Module):
    """Cut rows, (n, 1, length), to the length that they had before the encoder: (n, length)."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        """Return the beginnings."""
        return x[:, 0, : self.length]


class ConvAutoencoder(ReconstructingNetwork):
    """Three convolutions that halve the length, to 4 channels, and their mirror image: a code of half the input."""

    def __init__(self, n_columns: int, scale: float):
        super().__init__(n_columns, scale)

        def halve(before: int, behind: int) -> nn.Conv1d:
            return nn.Conv1d(before, behind, KERNEL, stride=2, padding=3)

        def double(before: int, behind: int) -> nn.ConvTranspose1d:
            return nn.ConvTranspose1d(before, behind, KERNEL, stride=2, padding=2)

        self.encoder = nn.Sequential(
            nn.Unflatten(1, (1, n_columns)),
            halve(1, 32), nn.ReLU(),
            halve(32, 16), nn.ReLU(),
            halve(16, CODE_CHANNELS),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            double(CODE_CHANNELS, 16), nn.ReLU(),
            double(16, 32), nn.ReLU(),
            double(32, 1),
            Cropped(n_columns),
        )  # fmt: skip
        self.float()


class ReconstructingDetector(FlowDetector):
    """Base of the two baselines; a child names its network."""

    _network_class: ClassVar[type[ReconstructingNetwork]]

    def __init__(
        self,
        *,
        n_packets: int = 4,
        contamination: str | float = "auto",
        false_alarm_rate: float | None = None,
        validation_fraction: float = 0.2,
        max_epochs: str | int = "auto",
        batch_size: int = 128,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: str | None = "one_cycle",
        scale: float = 255.0,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_packets = n_packets
        self.contamination = contamination
        self.false_alarm_rate = false_alarm_rate
        self.validation_fraction = validation_fraction
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.scale = scale
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Any:
        """Train on normal traffic.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Target flows, unlabelled and normal; at least 2.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : object
            The fitted detector.

        Raises
        ------
        ValueError
            A parameter or X is unusable; the message names it.
        KeyboardInterrupt
            Ctrl-C was pressed during training; the detector is usable and says ``interrupted_``.

        Warns
        -----
        ConvergenceWarning
            A loss was not finite, or Ctrl-C was pressed; training stopped and recent finite weights are kept.
        """
        self._validate_params()
        for name in [*vars(self)]:  # an earlier fit must not show through if this one fails
            if name.endswith("_"):
                delattr(self, name)
        X = check_range(validate_data(self, X, ensure_min_samples=2))
        split_seed, seed = (int(n) for n in check_random_state(self.random_state).randint(2**31 - 1, size=2))
        target, held_out = X, None
        if self.false_alarm_rate is not None:
            target, held_out = self._hold_out_for_threshold(X, np.random.RandomState(split_seed))
        steps_per_epoch = len(_training.batch_bounds(len(target), self.batch_size))
        with torch.inference_mode(False):
            net = self._make_net(steps_per_epoch, seed)
            stopped = _training.train(net, _training.PairedFlows(target, device=net.device))
        return self._take_over(net, stopped, target, held_out)

    def score_samples(self, X: Any) -> np.ndarray:
        """Return how normal flows are: the lower, the more abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            Opposite of the reconstruction error; at most 0.
        """
        return -self.reconstruction_error(X)

    def reconstruction_error(self, X: Any) -> np.ndarray:
        """Return the anomaly score of the paper's baselines: the higher, the more abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            Mean squared difference between the bytes, divided by ``scale``, and their reconstruction.
        """
        X = self._check_rows(X)
        return self._evaluate(self.network_.squared_error, X)

    def embed(self, X: Any) -> np.ndarray:
        """Return the codes in the middle of the autoencoder.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows, n_code)
            Codes.
        """
        X = self._check_rows(X)
        return self._evaluate(self.network_.code, X)

    def explain(self, X: Any) -> np.ndarray:
        """Return how well each byte is reconstructed: the parts of the score.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows, n_packets, n_columns // n_packets)
            Squared difference of each byte and its reconstruction, divided by the number of columns; the sum over a
            flow is its reconstruction error.

        Raises
        ------
        ValueError
            The columns do not divide into ``n_packets`` packets.
        """
        X = self._check_rows(X)
        self._check_packets(X)

        def errors(flows: Tensor) -> Tensor:
            rows = self.network_.scaled(flows)
            return (self.network_.reconstructed(rows) - rows).square() / rows.shape[1]

        return self._packets_of(self._evaluate(errors, X))

    def _make_net(self, steps_per_epoch: int, seed: int) -> _training.PairedNet:
        names = ("batch_size", "optimizer", "lr", "momentum", "weight_decay", "schedule")
        settings = _training.TrainingSettings(
            **{name: getattr(self, name) for name in names},
            n_epochs=self._n_epochs(steps_per_epoch),
            precision="float32",
            execution="eager",
            device=self._device(),
            seed=seed,
            first_epoch=0,
        )
        callbacks: list[tuple[str, Any]] = []
        if self.schedule == "one_cycle":
            callbacks.append(("schedule", _training.OneCycle(settings.n_epochs * steps_per_epoch)))
        if self.verbose:
            callbacks.append(("progress", _training.Progress()))
        losses = {"descriptiveness": 0.0, "compactness": 0.0, "reconstruction": 1.0, "detach_target": False}
        network = self._network_settings(self.n_features_in_, None)
        return _training.make_net(self._network_class, network, losses, settings, callbacks)

    def _network_settings(self, n_columns: int, classes: None) -> dict[str, Any]:
        """Return the arguments of the network."""
        return {"n_columns": n_columns, "scale": self.scale}

    def _take_over(
        self, net: _training.PairedNet, stopped: str | None, target: np.ndarray, held_out: np.ndarray | None
    ) -> ReconstructingDetector:
        """Keep what a net has learned, and say how its training ended."""
        self.network_ = net.module_.eval()

        def score(rows: np.ndarray) -> np.ndarray:
            return -self._evaluate(self.network_.squared_error, rows)

        offset = self._threshold(score, held_out, target, target)
        if not math.isfinite(offset):
            raise ValueError("scores of the training rows are not finite; lower lr, or look for extreme values in X")
        unused = ("descriptiveness_loss", "compactness_loss")
        self.history_ = [
            {name: value for name, value in epoch.items() if name not in unused}
            for epoch in _training.epoch_history(net)
        ]
        self.n_iter_ = len(self.history_)
        self.interrupted_ = net.interrupted
        self.sampler_ = None
        self.offset_ = offset
        try:
            if stopped:
                warnings.warn(stopped, ConvergenceWarning, stacklevel=3)
        finally:  # even where the warning is an error
            if net.interrupted:
                raise KeyboardInterrupt("training was interrupted; the detector is fitted as far as it came")
        return self

    def _evaluate(self, function: Any, X: np.ndarray) -> np.ndarray:
        """Return a function of flow bytes for all rows, as float64."""
        device = next(self.network_.parameters()).device
        self.network_.eval()
        results = []
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for first in range(0, len(X), CHUNK_ROWS):
                rows = _training.rows_to_tensor(X[first : first + CHUNK_ROWS]).to(device)
                padding = rows.new_zeros((CHUNK_ROWS - len(rows), rows.shape[1]))
                results.append(function(torch.cat([rows, padding]))[: len(rows)].cpu().double().numpy())
        return np.concatenate(results)


class AutoencoderDetector(ReconstructingDetector):
    """Anomaly detector for flows: a dense autoencoder on their bytes, the first baseline of the paper.

    The paper does not print its architecture; this one has the layers of the paper's own autoencoder, 128, 64 and 128
    units with ReLU, between the bytes of a flow and their reconstruction. There is no reference: normal traffic is all
    that it sees.

    Parameters
    ----------
    n_packets : int, default=4
        Packets per row, for `explain`: a row is ``n_packets`` groups of equally many bytes.
    contamination : "auto" or float, default="auto"
        Share of the rows of `fit` beyond the threshold, in (0, 0.5]; "auto" is 0.01.
    false_alarm_rate : float or None, default=None
        Rate of false alarms to hold on new normal flows, in (0, 0.5], by a threshold from ``validation_fraction`` of
        the rows, which are kept out of training; see `DOCIDSDetector`. Excludes ``contamination``.
    validation_fraction : float, default=0.2
        Share of the rows kept out of training for ``false_alarm_rate``, in (0, 1).
    max_epochs : "auto" or int, default="auto"
        Passes over the rows. "auto": as many as give about 500 steps, at least 1.
    batch_size : int, default=128
        Rows per mini-batch; at least 2.
    optimizer : {"adamw", "sgd"}, default="adamw"
        Optimiser. The paper does not say how its baselines were trained.
    lr : float, default=1e-3
        Learning rate; the highest one with ``schedule="one_cycle"``.
    momentum : float, default=0.9
        Momentum of ``"sgd"``; ``"adamw"`` does not use it.
    weight_decay : float, default=5e-4
        Weight decay (paper, training settings).
    schedule : {"one_cycle", None}, default="one_cycle"
        How the learning rate changes over the steps. None: constant.
    scale : float, default=255.0
        What rows are divided by before the first layer.
    device : str, default="auto"
        torch device; "auto" is "cuda" where there is one, otherwise "cpu".
    random_state : int, RandomState instance or None, default=None
        Source of initial weights, batches and held-out rows.
    verbose : int, default=0
        1 prints the loss every two seconds of training.

    Attributes
    ----------
    offset_ : float
        Threshold on `score_samples`: a flow that scores below it is abnormal.
    history_ : list of dict
        Per epoch: ``epoch``, ``pairs`` (rows seen) and the mean ``reconstruction_loss``.
    n_iter_ : int
        Epochs run.
    interrupted_ : bool
        Whether Ctrl-C ended training.
    network_ : torch.nn.Module
        The trained autoencoder.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of str
        Names of the columns, where X has names that are all strings.
    sampler_ : FlowSampler or None
        After `~sklearn_docids.load_detector`: the sampler stored with the model.

    See Also
    --------
    ConvAutoencoderDetector : The paper's other baseline.
    DOCIDSDetector : What the two are compared with.

    References
    ----------
    .. [1] "DOC-IDS: A Deep Learning-Based Method for Feature Extraction and Anomaly Detection in Network Traffic",
       Sensors 22(12), 4405, 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids import AutoencoderDetector
    >>> X = np.random.default_rng(0).integers(0, 50, size=(64, 20), dtype=np.uint8)
    >>> detector = AutoencoderDetector(max_epochs=2, random_state=0).fit(X)
    >>> detector.predict(X).shape, detector.embed(X).shape
    ((64,), (64, 64))
    """

    _network_class = DenseAutoencoder


class ConvAutoencoderDetector(ReconstructingDetector):
    """Anomaly detector for flows: a one-dimensional convolutional autoencoder, the second baseline of the paper.

    The paper does not print its architecture; this one has three convolutions of the paper's kernel of 6, with stride
    2 and 32, 16 and 4 channels, and their mirror image: the code is half as long as the flow.

    Parameters
    ----------
    n_packets : int, default=4
        Packets per row, for `explain`: a row is ``n_packets`` groups of equally many bytes.
    contamination : "auto" or float, default="auto"
        Share of the rows of `fit` beyond the threshold, in (0, 0.5]; "auto" is 0.01.
    false_alarm_rate : float or None, default=None
        Rate of false alarms to hold on new normal flows, in (0, 0.5], by a threshold from ``validation_fraction`` of
        the rows, which are kept out of training; see `DOCIDSDetector`. Excludes ``contamination``.
    validation_fraction : float, default=0.2
        Share of the rows kept out of training for ``false_alarm_rate``, in (0, 1).
    max_epochs : "auto" or int, default="auto"
        Passes over the rows. "auto": as many as give about 500 steps, at least 1.
    batch_size : int, default=128
        Rows per mini-batch; at least 2.
    optimizer : {"adamw", "sgd"}, default="adamw"
        Optimiser. The paper does not say how its baselines were trained.
    lr : float, default=1e-3
        Learning rate; the highest one with ``schedule="one_cycle"``.
    momentum : float, default=0.9
        Momentum of ``"sgd"``; ``"adamw"`` does not use it.
    weight_decay : float, default=5e-4
        Weight decay (paper, training settings).
    schedule : {"one_cycle", None}, default="one_cycle"
        How the learning rate changes over the steps. None: constant.
    scale : float, default=255.0
        What rows are divided by before the first layer.
    device : str, default="auto"
        torch device; "auto" is "cuda" where there is one, otherwise "cpu".
    random_state : int, RandomState instance or None, default=None
        Source of initial weights, batches and held-out rows.
    verbose : int, default=0
        1 prints the loss every two seconds of training.

    Attributes
    ----------
    offset_ : float
        Threshold on `score_samples`: a flow that scores below it is abnormal.
    history_ : list of dict
        Per epoch: ``epoch``, ``pairs`` (rows seen) and the mean ``reconstruction_loss``.
    n_iter_ : int
        Epochs run.
    interrupted_ : bool
        Whether Ctrl-C ended training.
    network_ : torch.nn.Module
        The trained autoencoder.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of str
        Names of the columns, where X has names that are all strings.
    sampler_ : FlowSampler or None
        After `~sklearn_docids.load_detector`: the sampler stored with the model.

    See Also
    --------
    AutoencoderDetector : The paper's other baseline.
    DOCIDSDetector : What the two are compared with.

    References
    ----------
    .. [1] "DOC-IDS: A Deep Learning-Based Method for Feature Extraction and Anomaly Detection in Network Traffic",
       Sensors 22(12), 4405, 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids import ConvAutoencoderDetector
    >>> X = np.random.default_rng(0).integers(0, 50, size=(64, 20), dtype=np.uint8)
    >>> detector = ConvAutoencoderDetector(max_epochs=2, random_state=0).fit(X)
    >>> detector.predict(X).shape, detector.explain(X).shape
    ((64,), (64, 4, 5))
    """

    _network_class = ConvAutoencoder
