# SPDX-License-Identifier: BSD-3-Clause
"""`DOCIDSDetector`: the two-input network as a scikit-learn outlier detector.

`TrainedDetector.fit` checks and splits rows, trains the network, makes a scorer of it, and sets a threshold. Here is
what is particular to DOC-IDS: its reference, its losses, and its two scores.
"""

from __future__ import annotations

import os
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import check_is_fitted

from sklearn_docids._network.scoring import (
    NeighborScorer,
    ReconstructionScorer,
    class_scores_of,
    features_of,
    reconstruction_error_of,
)
from sklearn_docids._network.table1 import DOCIDSNetwork
from sklearn_docids._network.tensors import resolved_device
from sklearn_docids._training.net import WeightedLosses
from sklearn_docids.detectors._reference import Reference, checked_reference
from sklearn_docids.detectors._rows import FitRows, check_losses
from sklearn_docids.detectors._templates import Drawn, draw_templates
from sklearn_docids.detectors._trained import TrainedDetector

# Without a reference, h_c still spans the space of the compactness loss: as many outputs as the paper's reference.
N_CLASSES_WITHOUT_REFERENCE = 20


class DOCIDSDetector(TrainedDetector):
    r"""Anomaly detector for flows, trained on unlabelled normal traffic and a labelled reference.

    A one-dimensional convolutional network g maps the bytes of a flow to 256 features, a linear layer h_c maps these
    to class scores, an autoencoder reconstructs them. Training minimises

    .. math:: \lambda_D l_D + \lambda_C l_C + \lambda_R l_R

    over pairs of mini-batches: cross-entropy of h_c on reference flows (descriptiveness), leave-one-out variance of h_c
    on target flows (compactness), squared error of the autoencoder on target flows (reconstruction). The reference is
    not needed after training. The score of a flow is the opposite of its distance to normal flows in the space of h_c,
    or, with ``score_method="reconstruction"`` as in the paper (section 3.3.4), of its reconstruction error.

    Parameters come in four groups: losses and score (to ``n_neighbors``), threshold (to ``validation_fraction``),
    training (to ``tol``), practice.

    Guide: :doc:`/explanation/how-it-works`.

    Parameters
    ----------
    lambda_descriptiveness : float, default=1.0
        Weight of the descriptiveness loss (paper, section 3.3.3). 0 switches a loss off.
    lambda_compactness : float, default=0.1
        Weight of the compactness loss (paper, section 3.3.3).
    lambda_reconstruction : float, default=1.0
        Weight of the reconstruction loss. The paper's is 10; measured, less is better (:doc:`/benchmarks`).
    score_method : {"knn", "reconstruction"}, default="knn"
        ``"knn"``: mean Euclidean distance in class-score space to the ``n_neighbors`` nearest of at most
        ``n_templates`` target flows (Perera and Patel [2]_ score by distance to 40 templates).
        ``"reconstruction"``: the paper's score.
    n_templates : int, default=1000
        Most target flows kept as templates for ``"knn"``; always fewer than half of the rows.
    n_neighbors : int, default=5
        Nearest templates whose mean distance is the score of ``"knn"``.
    contamination : "auto" or float, default="auto"
        Share of the rows of `fit` beyond the threshold, in (0, 0.5]. The rows are normal, so this is a rate of false
        alarms, but one measured on rows that were trained on: new rows are flagged more often. "auto" is 0.01 of the
        rows that are not templates (templates, which only ``"knn"`` has, are at distance 0 from themselves).
    false_alarm_rate : float or None, default=None
        Rate of false alarms to hold on new normal flows, in (0, 0.5]. The threshold then comes from
        ``validation_fraction`` of the rows, which are kept out of training (split conformal prediction): at most this
        share of new rows is flagged on average, if they are drawn like the held-out ones: from the same days and hosts,
        and sampled alike (``FlowSampler(fields="paper")`` makes addresses random for training alone). Excludes
        ``contamination``.
    validation_fraction : float, default=0.2
        Share of the rows kept out of training, in (0, 1): once for ``false_alarm_rate`` (at least ceil(1/rate) - 1
        rows), and once more, of the others, for ``early_stopping``.
    max_epochs : "auto" or int, default="auto"
        Passes over the target. "auto": as many as give about 500 steps; where one pass takes more, 500 steps over rows
        that are drawn at random.
    batch_size : int, default=64
        Target rows per mini-batch, with as many reference rows. At least 2. The paper does not state it; 64 detects as
        well as 128 and takes half the time.
    optimizer : {"adamw", "sgd"}, default="adamw"
        The paper uses SGD; see `sklearn_docids.paper`.
    lr : float, default=1e-3
        Learning rate; the highest one with ``schedule="one_cycle"``. The paper's is 5e-5.
    momentum : float, default=0.9
        Momentum of ``"sgd"``; ``"adamw"`` does not use it. The paper does not state it, DOC uses 0.9.
    weight_decay : float, default=5e-4
        Weight decay (paper, section 3.3.3).
    schedule : {"one_cycle", None}, default="one_cycle"
        How the learning rate changes over the steps. None: constant, as in the paper.
    scale : float, default=255.0
        What rows are divided by before the first layer.
    batch_norm : {"joint", "target", "separate"}, default="joint"
        How batch normalisation treats the two inputs. ``"joint"``: one batch of both; ``"target"``: statistics per
        input, and only those of the target enter the running ones, which scoring uses; ``"separate"``: both enter. The
        paper does not state it; docs/design.md tells how the default was chosen.
    dense_activation : {None, "relu"}, default=None
        Activation behind the two dense layers of g. None is Table 1 as printed.
    early_stopping : bool, default=False
        Whether to end training when the weighted target losses (compactness, reconstruction) of held-out rows have not
        improved for ``n_iter_no_change`` epochs, and to keep the weights of the best epoch.
    n_iter_no_change : int, default=10
        Epochs without improvement before early stopping.
    tol : float, default=1e-4
        Least improvement that counts for early stopping.
    warm_start : bool, default=False
        Whether `fit` goes on from the weights and moments of the fit before, with a learning-rate schedule of its own;
        of the same X it holds out the same rows. Only then, and by `partial_fit`, are the moments kept in the detector
        (about 46 MB with ``"adamw"``).
    checkpoint_folder : path or None, default=None
        Existing folder for the state of training, written after an epoch, at most every 30 s. A `fit` of the same
        settings and rows that finds its own checkpoint goes on from there and gives bit for bit what it would have
        given without the break; a `fit` that is done removes it. Needs an int as ``random_state``. With
        ``warm_start`` a `fit` that was ended by Ctrl-C is done, too: the next one goes on from its weights. A
        checkpoint's checksum shows damage and is no signature: its weights are believed, so nobody else should be
        able to write to the folder.
    callbacks : list of skorch callbacks or None, default=None
        Copies of these are called during training. The net's history has ``train_loss``, ``train_loss_best``, the
        three losses, and ``validation_loss`` with early stopping. One that calls ``net.stop_training()`` ends training.
        The copies are kept as ``callbacks_``; their state is in no checkpoint, and those that replace the history or
        pickle the net are not supported.
        `LRScheduler` needs ``schedule=None``. scikit-learn's callbacks are set with ``set_callbacks`` (scikit-learn
        1.9).
    device : str, default="auto"
        torch device; "auto" is "cuda" where there is one, otherwise "cpu".
    random_state : int, RandomState instance or None, default=None
        Source of initial weights, batches, templates and held-out rows. Global generators are left alone, but None
        draws a seed from NumPy's, as everywhere in scikit-learn.
    verbose : int, default=0
        1 prints the losses every two seconds of training.

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
        Per epoch: ``epoch``, ``pairs`` seen, and the means of ``descriptiveness_loss``, ``compactness_loss`` and
        ``reconstruction_loss``, unweighted, 0 for a loss of weight 0, which is not computed; ``validation_loss`` with
        early stopping.
    n_iter_ : int
        Epochs run, those of earlier fits included where this one went on from them.
    interrupted_ : bool
        Whether Ctrl-C ended training. `fit` then raises KeyboardInterrupt once the detector can be used: with the
        weights of a recent step and a threshold of its own.
    network_ : torch.nn.Module
        The trained network, with ``g``, ``h_c`` and ``autoencoder``. Scoring follows changes of its weights, but not
        those made through ``.data`` or a NumPy view.
    templates_ : ndarray of float64, shape (n_templates, n_classes), or None
        Class scores of the templates; None unless ``score_method="knn"``.
    template_flows_ : ndarray of shape (n_templates, n_columns), or None
        Their rows, which `explain` and `most_similar_templates` compare with; stored in model files.
    reference_classes_ : ndarray or None
        Labels of the reference, sorted; None without a reference.
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
    FlowSampler : Makes the rows from captures.
    sklearn_docids.paper.detector : This detector with the paper's settings.

    References
    ----------
    .. [1] "DOC-IDS: A Deep Learning-Based Method for Feature Extraction and Anomaly Detection in Network Traffic",
       Sensors 22(12), 4405, 2022.
    .. [2] Perera, P., and V. M. Patel, "Learning Deep Features for One-Class Classification", IEEE Transactions on
       Image Processing 28(11), 2019.
    .. [3] Laxhammar, R., and G. Falkman, "Inductive conformal anomaly detection for sequential detection of anomalous
       sub-trajectories", Annals of Mathematics and Artificial Intelligence 74, 2015.
    .. [4] Sundararajan, M., A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids import DOCIDSDetector
    >>> rng = np.random.default_rng(0)
    >>> X = rng.integers(0, 50, size=(64, 20), dtype=np.uint8)
    >>> X_reference = rng.integers(0, 256, size=(64, 20), dtype=np.uint8)
    >>> y_reference = np.repeat(["dns", "tls"], 32)
    >>> detector = DOCIDSDetector(max_epochs=2, random_state=0)
    >>> detector.fit(X, reference=(X_reference, y_reference)).predict(X).shape
    (64,)
    """

    reference_classes_: np.ndarray | None

    _network_class = DOCIDSNetwork
    _fitted_names = (*TrainedDetector._fitted_names, "reference_classes_")

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TrainedDetector._parameter_constraints,
        "lambda_descriptiveness": [Interval(Real, 0, None, closed="left")],
        "lambda_compactness": [Interval(Real, 0, None, closed="left")],
        "lambda_reconstruction": [Interval(Real, 0, None, closed="left")],
        "score_method": [StrOptions({"reconstruction", "knn"})],
        "n_templates": [Interval(Integral, 1, None, closed="left")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "batch_norm": [StrOptions({"separate", "target", "joint"})],
        "dense_activation": [Options(str, {"relu"}), None],
    }

    def __init__(
        self,
        *,
        lambda_descriptiveness: float = 1.0,
        lambda_compactness: float = 0.1,
        lambda_reconstruction: float = 1.0,
        score_method: str = "knn",
        n_templates: int = 1000,
        n_neighbors: int = 5,
        contamination: str | float = "auto",
        false_alarm_rate: float | None = None,
        validation_fraction: float = 0.2,
        max_epochs: str | int = "auto",
        batch_size: int = 64,
        optimizer: str = "adamw",
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        schedule: str | None = "one_cycle",
        scale: float = 255.0,
        batch_norm: str = "joint",
        dense_activation: str | None = None,
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
        self.lambda_descriptiveness = lambda_descriptiveness
        self.lambda_compactness = lambda_compactness
        self.lambda_reconstruction = lambda_reconstruction
        self.score_method = score_method
        self.n_templates = n_templates
        self.n_neighbors = n_neighbors
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
        self.batch_norm = batch_norm
        self.dense_activation = dense_activation
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.checkpoint_folder = checkpoint_folder
        self.callbacks = callbacks
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @property
    def templates_(self) -> np.ndarray | None:
        """Class scores of the templates; None unless ``score_method="knn"``."""
        return getattr(self._scorer, "templates", None)

    @property
    def template_flows_(self) -> np.ndarray | None:
        """Rows of the templates; None unless ``score_method="knn"``."""
        return getattr(self._scorer, "template_flows", None)

    def reconstruction_error(self, X: ArrayLike) -> np.ndarray:
        """Return the paper's anomaly score: the higher, the more abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            Mean squared difference between the 256 features and their reconstruction.
        """
        X = self._checked_for_scoring(X)
        return np.asarray(self._scorer.evaluate(reconstruction_error_of, X, resolved_device(self.device)))

    def class_scores(self, X: ArrayLike) -> np.ndarray:
        """Return the outputs of h_c, before any softmax: the space in which ``"knn"`` measures distances.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows, n_classes)
            One score per class of the reference.
        """
        X = self._checked_for_scoring(X)
        return np.asarray(self._scorer.evaluate(class_scores_of, X, resolved_device(self.device)))

    def embed(self, X: ArrayLike) -> np.ndarray:
        """Return the features g.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows, 256)
            Features.
        """
        X = self._checked_for_scoring(X)
        return np.asarray(self._scorer.evaluate(features_of, X, resolved_device(self.device)))

    def explain(self, X: ArrayLike, *, n_packets: int | None = None) -> np.ndarray:
        """Return which bytes make flows abnormal.

        With templates: integrated gradients of the abnormality, the opposite of the score (Sundararajan et al., ICML
        2017), on the straight way to the flow from itself with every byte that no template has at its place replaced by
        the byte of the most similar template. Other bytes get 0: each of them alone is normal. A flow of which every
        byte is in some template is explained on the way from the most similar template instead. Without templates: the
        gradient.

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
            Positive where a byte makes the flow more abnormal; with templates in units of the score, and the sum over a
            flow is about the difference to where the way begins; without, in score units per unit of the byte.

        Raises
        ------
        ValueError
            The columns do not divide into ``n_packets`` packets.
        """
        X = np.asarray(self._checked_for_scoring(X))
        shape = self._packet_shape(n_packets)
        return self._scorer.explain(X, resolved_device(self.device)).reshape(-1, *shape)

    def most_similar_templates(self, X: ArrayLike) -> np.ndarray:
        """Return the most similar normal flow of each flow: the template with the most equal bytes.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of int64, shape (n_flows,)
            Rows of ``template_flows_``.

        Raises
        ------
        ValueError
            There are no templates: ``score_method`` was not ``"knn"``.
        """
        X = self._checked_for_scoring(X)
        if not isinstance(self._scorer, NeighborScorer):
            raise ValueError("this detector was fitted with score_method='reconstruction', which keeps no templates")
        return self._scorer.most_similar(X)

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write `score_samples` as an ONNX graph, for engines such as ONNX Runtime and OpenVINO.

        The graph takes ``flows``, uint8 (n, n_columns), and gives ``score``, float32 (n,): a flow whose score is below
        ``offset``, which stands in the metadata of the graph, is abnormal. It is the folded network, and its scores
        differ from those of `score_samples` by the rounding of float32.

        Parameters
        ----------
        path : path
            File to write; needs the extra ``onnx``.

        Raises
        ------
        ImportError
            The extra is not installed.
        """
        from sklearn_docids._network import onnx

        check_is_fitted(self)
        onnx.export(self._scorer, os.fspath(path), {"offset": repr(self.offset_)})

    def _checked_reference(self, reference: Reference | None, n_rows: int, goes_on: bool) -> dict[str, Any]:
        classes = self.reference_classes_ if goes_on else None
        given = checked_reference(self, reference, n_rows, goes_on, classes)
        check_losses(self._losses(), given["reference"] is not None, self.early_stopping)
        return given

    def _network_settings(self, n_columns: int, classes: np.ndarray | None) -> dict[str, Any]:
        return network_settings(self, n_columns, classes)

    def _losses(self) -> WeightedLosses:
        return WeightedLosses(
            descriptiveness=self.lambda_descriptiveness,
            compactness=self.lambda_compactness,
            reconstruction=self.lambda_reconstruction,
        )

    def _draw_templates(self, rows: FitRows, adds_up: bool) -> Drawn:
        if self.score_method == "reconstruction":
            return super()._draw_templates(rows, adds_up)
        rng = np.random.RandomState(rows.template_seed)
        earlier = self.template_flows_ if adds_up else None
        return draw_templates(rows.target, self.n_templates, rng, earlier, self._n_rows_seen if adds_up else 0)

    def _make_scorer(self, network: Any, arrays: dict[str, np.ndarray]) -> ReconstructionScorer | NeighborScorer:
        if self.score_method == "reconstruction":
            return ReconstructionScorer(network)
        device = resolved_device(self.device)
        return NeighborScorer(network, arrays["template_flows"], self.n_neighbors, device, arrays.get("templates"))


def network_settings(estimator: Any, n_columns: int, classes: np.ndarray | None) -> dict[str, Any]:
    """Return the arguments of the network by the parameters of an estimator."""
    return {
        "n_columns": n_columns,
        "n_classes": N_CLASSES_WITHOUT_REFERENCE if classes is None else len(classes),
        **{name: getattr(estimator, name) for name in ("batch_norm", "dense_activation", "scale")},
    }
