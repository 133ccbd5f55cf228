# SPDX-License-Identifier: BSD-3-Clause
"""The paper's two baselines: autoencoders on the bytes themselves, trained on normal traffic alone."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from sklearn_docids._network.autoencoders import ConvAutoencoder, DenseAutoencoder
from sklearn_docids._network.scoring import AutoencoderScorer
from sklearn_docids._network.tensors import resolved_device
from sklearn_docids._training.net import WeightedLosses
from sklearn_docids.detectors._trained import TrainedDetector


class AutoencoderDetector(TrainedDetector):
    """Anomaly detector for flows: a dense autoencoder on their bytes, the first baseline of the paper.

    The paper does not print its architecture; this one has the layers of the paper's own autoencoder, 128, 64 and 128
    units with ReLU, between the bytes of a flow and their reconstruction. It sees normal traffic alone: a reference is
    accepted, so that it can stand where `DOCIDSDetector` stands, and ignored.

    Guide: :doc:`/paper`.

    Parameters
    ----------
    contamination : "auto" or float, default="auto"
        Share of the rows of `fit` beyond the threshold, in (0, 0.5]; "auto" is 0.01.
    false_alarm_rate, validation_fraction, max_epochs : object
        As in `DOCIDSDetector`, and with its defaults.
    batch_size : int, default=128
        Rows per mini-batch; at least 2.
    optimizer : {"adamw", "sgd"}, default="adamw"
        Optimiser. The paper does not say how its baselines were trained.
    lr, momentum, weight_decay, schedule, scale : object
        As in `DOCIDSDetector`, and with its defaults.
    early_stopping, n_iter_no_change, tol, warm_start, checkpoint_folder, callbacks : object
        As in `DOCIDSDetector`, and with its defaults.
    device, random_state, verbose : object
        As in `DOCIDSDetector`, and with its defaults.

    Attributes
    ----------
    offset_ : float
        Threshold on `score_samples`: a flow that scores below it is abnormal.
    calibration_scores_ : ndarray of float64
        Scores of the rows that set the threshold, if they were held out from training: with ``false_alarm_rate``, and
        after `calibrate`; otherwise none.
    thinned_scores_ : ndarray of float64
        After `calibrate` with a table: those of one flow per channel and minute, for
        `~sklearn_docids.monitoring.DriftMonitor`.
    false_alarm_rate_ : float or None
        Share of new normal flows that the threshold may flag; None where it flags a share of the rows of `fit`.
    calibrations_ : list of Calibration
        That of `fit`, and those of `calibrate`.
    active_calibration_ : int
        Which of them is in use.
    history_ : list of dict
        Per epoch: ``epoch``, ``pairs`` (rows seen) and the mean ``reconstruction_loss``; ``validation_loss`` with early
        stopping.
    n_iter_ : int
        Epochs run, those of earlier fits included where this one went on from them.
    interrupted_ : bool
        Whether Ctrl-C ended training.
    network_ : torch.nn.Module
        The trained autoencoder, on the CPU.
    callbacks_ : list of skorch callbacks
        The copies that were called.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of str
        Names of the columns, where X has names that are all strings.
    sampler_ : FlowSampler or None
        After `~sklearn_docids.load_detector`: the sampler stored with the model.
    provenance_ : dict or None
        After `~sklearn_docids.load_detector`: what is stored of the traffic and the settings of the fit.

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

    _network_class: ClassVar[type[DenseAutoencoder | ConvAutoencoder]] = DenseAutoencoder

    def __init__(
        self,
        *,
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
        early_stopping: bool = False,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        checkpoint_folder: str | os.PathLike[str] | None = None,
        callbacks: list[Any] | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ):
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
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.checkpoint_folder = checkpoint_folder
        self.callbacks = callbacks
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def reconstruction_error(self, X: ArrayLike) -> np.ndarray:
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
        return self._evaluate("squared_error", X)

    def embed(self, X: ArrayLike) -> np.ndarray:
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
        return self._evaluate("code", X)

    def explain(self, X: ArrayLike, *, n_packets: int | None = None) -> np.ndarray:
        """Return how well each byte is reconstructed: the parts of the score.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.
        n_packets : int or None, default=None
            Packets of a row: groups of equally many bytes. None: as many as the sampler of a loaded model takes, or 4
            where there is none.

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
        errors = self._evaluate("squared_errors", X)
        return errors.reshape(-1, *self._packet_shape(n_packets)) / self.n_features_in_

    def _evaluate(self, method: str, X: ArrayLike) -> np.ndarray:
        X = self._checked_for_scoring(X)
        return np.asarray(self._scorer.evaluate(method, X, resolved_device(self.device)))

    def _network_settings(self, n_columns: int, classes: np.ndarray | None) -> dict[str, Any]:
        return {"n_columns": n_columns, "scale": self.scale}

    def _losses(self) -> WeightedLosses:
        return WeightedLosses(reconstruction=1.0)

    def _make_scorer(self, network: Any, arrays: dict[str, np.ndarray]) -> AutoencoderScorer:
        return AutoencoderScorer(network)


class ConvAutoencoderDetector(AutoencoderDetector):
    """Anomaly detector for flows: a one-dimensional convolutional autoencoder, the second baseline of the paper.

    The paper does not print its architecture; this one has three convolutions of the paper's kernel of 6, with stride
    2 and 32, 16 and 4 channels, and their mirror image: the code is half as long as the flow.

    Guide: :doc:`/paper`.

    Parameters
    ----------
    contamination, false_alarm_rate, validation_fraction, max_epochs, batch_size, optimizer, lr, momentum : object
        As in `AutoencoderDetector`, and with its defaults.
    weight_decay, schedule, scale, early_stopping, n_iter_no_change, tol, warm_start, checkpoint_folder : object
        As in `AutoencoderDetector`, and with its defaults.
    callbacks, device, random_state, verbose : object
        As in `AutoencoderDetector`, and with its defaults.

    Attributes
    ----------
    network_ : torch.nn.Module
        The trained autoencoder, on the CPU. The other attributes are those of `AutoencoderDetector`.

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
