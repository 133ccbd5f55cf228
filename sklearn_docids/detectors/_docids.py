# SPDX-License-Identifier: BSD-3-Clause
"""`DOCIDSDetector`: the two-input network as a scikit-learn outlier detector."""

from __future__ import annotations

import copy
import math
import os
import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import skorch.callbacks
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from sklearn_docids import _checkpoint, _scoring, _training
from sklearn_docids._callbacks import CallbackSupportMixin, EpochTasks, with_callbacks
from sklearn_docids._folding import FoldedNetwork, same_state, state_of
from sklearn_docids._network import DOCIDSNetwork
from sklearn_docids.detectors._base import check_range
from sklearn_docids.detectors._reference import ReferenceData, check_kind, check_labels, numbers_among
from sklearn_docids.detectors._trained import FlowDetector

# Without a reference, h_c still spans the space of the compactness loss: as many outputs as the paper's reference.
N_CLASSES_WITHOUT_REFERENCE = 20


class FitRows(NamedTuple):
    """Checked input of one fit."""

    training: np.ndarray
    stopping: np.ndarray | None  # held out for early stopping
    threshold: np.ndarray | None  # held out for the threshold
    target: np.ndarray  # all but those held out for the threshold
    reference: np.ndarray | None
    labels: np.ndarray | None  # class numbers of the reference
    classes: np.ndarray | None
    split_seed: int
    seed: int
    threshold_seed: int


def _takes_more(detector: DOCIDSDetector) -> bool:
    if detector.early_stopping:
        raise AttributeError("early_stopping=True compares epochs, and partial_fit has but one")
    return True


class DOCIDSDetector(CallbackSupportMixin, FlowDetector):
    r"""Anomaly detector for flows, trained on unlabelled normal traffic beside a labelled reference.

    A one-dimensional convolutional network g maps the bytes of a flow to 256 features, a linear layer h_c maps these
    to class scores, an autoencoder reconstructs them. Training minimises

    .. math:: \lambda_D l_D + \lambda_C l_C + \lambda_R l_R

    over pairs of mini-batches: cross-entropy of h_c on reference flows (descriptiveness), leave-one-out variance of
    h_c on target flows (compactness), squared error of the autoencoder on target flows (reconstruction). The
    reference is not needed after training. The score of a flow is its reconstruction error (paper).

    Parameters
    ----------
    lambda_descriptiveness : float, default=1.0
        Weight of the descriptiveness loss (paper, training settings). 0 switches a loss off.
    lambda_compactness : float, default=0.1
        Weight of the compactness loss (paper, training settings).
    lambda_reconstruction : float, default=1.0
        Weight of the reconstruction loss. The paper's is 10; measured, less is better (docs/benchmarks.md).
    n_packets : int, default=4
        Packets per row, for `explain`: a row is ``n_packets`` groups of equally many bytes.
    score_method : {"knn", "reconstruction"}, default="knn"
        ``"knn"``: mean Euclidean distance in class-score space to the ``n_neighbors`` nearest of at most
        ``n_templates`` target flows (Perera and Patel [2]_ score by distance to 40 templates).
        ``"reconstruction"``: the paper's score.
    n_templates : int, default=1000
        Most target flows kept as templates for ``"knn"``; always fewer than half of the rows.
    n_neighbors : int, default=5
        Nearest templates whose mean distance is the score of ``"knn"``.
    trim : float, default=0.0
        Share of the templates, those farthest from the other rows, that is left out of ``"knn"``, in [0, 1): against
        attacks among the rows of `fit`. It costs recall where there are none (docs/benchmarks.md).
    contamination : "auto" or float, default="auto"
        Share of the rows of `fit` beyond the threshold, in (0, 0.5]. The rows are normal, so this is a rate of false
        alarms, but one measured on rows that were trained on: new rows are flagged more often. "auto" is 0.01 of the
        rows that are no templates (templates, which only ``"knn"`` has, are at distance 0 from themselves).
    false_alarm_rate : float or None, default=None
        Rate of false alarms to hold on new normal flows, in (0, 0.5]. The threshold then comes from
        ``validation_fraction`` of the rows, which are kept out of training (split conformal prediction): at most this
        share of new rows is flagged on average, if they are drawn like the held-out ones: from the same days and hosts,
        and sampled alike (`FlowSampler` makes addresses random for training, not for scoring). Excludes
        ``contamination``.
    validation_fraction : float, default=0.2
        Share of the rows kept out of training, in (0, 1): once for ``false_alarm_rate`` (at least ceil(1/rate) - 1
        rows), and once more, of the others, for ``early_stopping``.
    max_epochs : "auto" or int, default="auto"
        Passes over the target. "auto": as many as give about 500 steps, at least 1.
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
        Weight decay (paper, training settings).
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
    detach_target : bool, default=False
        Whether the reconstruction loss moves the autoencoder alone, not its goal, the features.
    early_stopping : bool, default=False
        Whether to end training when the weighted target losses (compactness, reconstruction) of held-out rows have not
        improved for ``n_iter_no_change`` epochs, and to keep the weights of the best epoch.
    n_iter_no_change : int, default=10
        Epochs without improvement before early stopping.
    tol : float, default=1e-4
        Least improvement that counts for early stopping.
    warm_start : bool, default=False
        Whether `fit` goes on from the weights and moments of the fit before, with a learning-rate schedule of its own;
        of the same X it holds out the same rows. Only then are the moments kept in the detector (about 46 MB with
        ``"adamw"``).
    checkpoint_folder : path or None, default=None
        Existing folder for the state of training, written after an epoch, at most every 30 s. A `fit` of the same
        settings and rows that finds its own checkpoint goes on from there and gives bit for bit what it would have
        given without the break; a `fit` that is done removes it. Needs an int as ``random_state``. With
        ``warm_start`` a `fit` that was ended by Ctrl-C is done, too: the next one goes on from its weights.
    callbacks : list of skorch callbacks or None, default=None
        Copies of these are called during training. The net's history has ``train_loss``, ``train_loss_best``, the
        three losses, and ``validation_loss`` with early stopping. One that sets ``net.stopping = True`` ends training.
        Their own state is in no checkpoint, and those that replace the history or pickle the net are not supported.
        `LRScheduler` needs ``schedule=None``. scikit-learn's callbacks are set with ``set_callbacks`` (scikit-learn
        1.9).
    device : str, default="auto"
        torch device; "auto" is "cuda" where there is one, otherwise "cpu".
    precision : {"float32", "bfloat16"}, default="float32"
        Numbers of the training steps; ``"bfloat16"`` trades digits for time on processors that have it. Weights and
        scores are float32 all the same.
    execution : {"eager", "compiled", "cuda_graph"}, default="eager"
        How training steps are run: ``"compiled"`` by torch.compile, which takes a C++ compiler and about a minute at
        first; ``"cuda_graph"`` recorded once and replayed, on CUDA devices alone.
    random_state : int, RandomState instance or None, default=None
        Source of initial weights, batches, templates and held-out rows. Global generators are left alone, but None
        draws a seed from NumPy's, as everywhere in scikit-learn.
    verbose : int, default=0
        1 prints the losses every two seconds of training.

    Attributes
    ----------
    offset_ : float
        Threshold on `score_samples`: a flow that scores below it is abnormal.
    history_ : list of dict
        Per epoch: ``epoch``, ``pairs`` seen, and the means of ``descriptiveness_loss``, ``compactness_loss`` and
        ``reconstruction_loss``, unweighted; ``validation_loss`` with early stopping.
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
        Their rows, which `explain` and `nearest_templates` compare with; stored in model files.
    reference_classes_ : ndarray or None
        Labels of the reference, sorted; None without a reference.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of str
        Names of the columns, where X has names that are all strings.
    sampler_ : FlowSampler or None
        After `~sklearn_docids.load_detector`: the sampler stored with the model.

    See Also
    --------
    FlowSampler : Makes the rows from captures.
    sklearn_docids.paper.detector : This detector with the paper's settings.

    References
    ----------
    .. [1] "DOC-IDS: A Deep Learning-Based Method for Feature Extraction and Anomaly Detection in Network Traffic",
       Sensors 22(12), 4405, 2022.
    .. [2] P. Perera and V. M. Patel, "Learning Deep Features for One-Class Classification", IEEE Transactions on
       Image Processing 28(11), 2019.
    .. [3] R. Laxhammar and G. Falkman, "Inductive conformal anomaly detection for sequential detection of anomalous
       sub-trajectories", Annals of Mathematics and Artificial Intelligence 74, 2015.
    .. [4] M. Sundararajan, A. Taly and Q. Yan, "Axiomatic Attribution for Deep Networks", ICML 2017.

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

    # scikit-learn's metadata routing: fit takes the reference without being asked to.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"reference": True}
    __metadata_request__partial_fit: ClassVar[dict[str, bool]] = {"reference": True}

    _network_class = DOCIDSNetwork

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **FlowDetector._parameter_constraints,
        "lambda_descriptiveness": [Interval(Real, 0, None, closed="left")],
        "lambda_compactness": [Interval(Real, 0, None, closed="left")],
        "lambda_reconstruction": [Interval(Real, 0, None, closed="left")],
        "score_method": [StrOptions({"reconstruction", "knn"})],
        "n_templates": [Interval(Integral, 1, None, closed="left")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "trim": [Interval(Real, 0, 1, closed="left")],
        "batch_norm": [StrOptions({"separate", "target", "joint"})],
        "dense_activation": [Options(str, {"relu"}), None],
        "detach_target": ["boolean"],
        "early_stopping": ["boolean"],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "checkpoint_folder": [str, os.PathLike, None],
        "callbacks": [list, None],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "execution": [StrOptions({"eager", "compiled", "cuda_graph"})],
    }

    def __init__(
        self,
        *,
        lambda_descriptiveness: float = 1.0,
        lambda_compactness: float = 0.1,
        lambda_reconstruction: float = 1.0,
        n_packets: int = 4,
        score_method: str = "knn",
        n_templates: int = 1000,
        n_neighbors: int = 5,
        trim: float = 0.0,
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
        detach_target: bool = False,
        early_stopping: bool = False,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        checkpoint_folder: str | os.PathLike[str] | None = None,
        callbacks: list[Any] | None = None,
        device: str = "auto",
        precision: str = "float32",
        execution: str = "eager",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.lambda_descriptiveness = lambda_descriptiveness
        self.lambda_compactness = lambda_compactness
        self.lambda_reconstruction = lambda_reconstruction
        self.n_packets = n_packets
        self.score_method = score_method
        self.n_templates = n_templates
        self.n_neighbors = n_neighbors
        self.trim = trim
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
        self.detach_target = detach_target
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.checkpoint_folder = checkpoint_folder
        self.callbacks = callbacks
        self.device = device
        self.precision = precision
        self.execution = execution
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    def fit(self, X: Any, y: Any = None, *, reference: Any = None) -> DOCIDSDetector:
        """Train on normal target traffic beside a labelled reference.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Target flows, unlabelled and normal; at least 2. uint8 stays uint8, other numbers become float32 batch by
            batch. Values outside 0..255 are accepted.
        y : object, default=None
            Not used for training; handed to scikit-learn's callbacks.
        reference : ReferenceData or tuple (X_reference, y_reference), default=None
            Labelled reference flows with the columns of X and at least two classes. None trains without the
            descriptiveness loss.

        Returns
        -------
        DOCIDSDetector
            The fitted detector.

        Raises
        ------
        ValueError
            A parameter, X or the reference is unusable; the message names it. With ``warm_start=True`` the detector
            stays as it was.
        OSError
            ``checkpoint_folder`` is no folder that can be written to.
        KeyboardInterrupt
            Ctrl-C was pressed during training; the detector is usable and says ``interrupted_``.

        Warns
        -----
        UserWarning
            There is no reference, although the descriptiveness loss has a weight.
        ConvergenceWarning
            A loss was not finite, or Ctrl-C was pressed; training stopped and recent finite weights are kept.
        """
        self._validate_params()
        goes_on = self.warm_start and hasattr(self, "network_")
        rows = self._checked_rows(X, reference, goes_on)
        steps_per_epoch = len(_training.batch_bounds(len(rows.training), self.batch_size))
        settings = self._training_settings(rows.seed, self._n_epochs(steps_per_epoch), self.schedule, goes_on)
        callbacks = self._net_callbacks(rows, settings, steps_per_epoch)
        if hasattr(self, "_init_callback_context"):
            tasks = EpochTasks(self, X, y, lambda net: self._fitted_so_far(net, rows), settings.n_epochs)
            callbacks.append(("tasks", tasks))
        if self.checkpoint_folder is not None:  # behind all who may want to stop
            checkpoint = self._make_checkpoint(rows, settings, dict(callbacks), steps_per_epoch, goes_on)
            callbacks.append(("checkpoint", checkpoint))
        return self._train(rows, settings, callbacks, goes_on)

    @available_if(_takes_more)
    @with_callbacks
    def partial_fit(self, X: Any, y: Any = None, *, reference: Any = None) -> DOCIDSDetector:
        """Train for one pass over more target traffic, from the weights there are.

        The learning rate is ``lr`` throughout, since the number of steps to come is not known; the optimiser's moments
        are carried over with ``warm_start=True`` alone. Templates and threshold are made anew from the rows of this
        call, because earlier rows are not kept.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Target flows, unlabelled and normal; at least 2.
        y : object, default=None
            Ignored.
        reference : ReferenceData or tuple (X_reference, y_reference), default=None
            Labelled reference flows; the first call sets the classes, later ones may lack some of them.

        Returns
        -------
        DOCIDSDetector
            The fitted detector.

        Raises
        ------
        ValueError
            A parameter, X or the reference is unusable; the detector stays as it was.
        AttributeError
            ``early_stopping`` is on: one pass has no epochs to compare.
        KeyboardInterrupt
            As in `fit`.

        Warns
        -----
        UserWarning, ConvergenceWarning
            As in `fit`.
        """
        self._validate_params()
        goes_on = hasattr(self, "network_")
        rows = self._checked_rows(X, reference, goes_on)
        settings = self._training_settings(rows.seed, 1, None, goes_on)
        return self._train(rows, settings, self._net_callbacks(rows, settings, steps_per_epoch=0), goes_on)

    def score_samples(self, X: Any) -> np.ndarray:
        """Return how normal flows are: the lower, the more abnormal.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

        Returns
        -------
        ndarray of float64, shape (n_flows,)
            Opposite of the mean distance to the nearest templates, or of the reconstruction error
            (`reconstruction_error`) with ``score_method="reconstruction"``; at most 0.
        """
        return self._score(self._check_rows(X))

    def reconstruction_error(self, X: Any) -> np.ndarray:
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
        X = self._check_rows(X)
        return self._evaluate(_scoring.reconstruction_error_of, X)

    def embed(self, X: Any) -> np.ndarray:
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
        X = self._check_rows(X)
        return self._evaluate(_scoring.features_of, X)

    def explain(self, X: Any) -> np.ndarray:
        """Return which bytes make flows abnormal.

        With templates: integrated gradients of the abnormality (opposite of the score) [4]_, on the straight way to the
        flow from itself with every byte that no template has at its place replaced by the byte of the most similar
        template. Other bytes get 0: each of them alone is normal. A flow of which every byte is in some template is
        explained on the way from the most similar template instead. Without templates: the gradient.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Flow bytes.

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
        X = self._check_rows(X)
        self._check_packets(X)
        abnormality = _scoring.abnormality_of(self.templates_, self.n_neighbors)
        if self.template_flows_ is None:
            return self._packets_of(_scoring.gradient(abnormality, self.network_, X))
        begins = _scoring.replaced_by_templates(X, self.template_flows_, self.template_flows_[self._most_similar(X)])
        return self._packets_of(_scoring.integrated_gradient(abnormality, self.network_, begins, X))

    def nearest_templates(self, X: Any) -> np.ndarray:
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
            There are no templates: ``score_method`` is not ``"knn"``.
        """
        X = self._check_rows(X)
        if self.template_flows_ is None:
            raise ValueError(f"score_method={self.score_method!r} keeps no templates")
        return self._most_similar(X)

    def _most_similar(self, X: np.ndarray) -> np.ndarray:
        # One flow at a time: all pairs at once would take 320 KB a flow.
        return np.array([(self.template_flows_ == flow).sum(axis=1).argmax() for flow in X], dtype=np.int64)

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write `score_samples` as an ONNX graph, for engines such as ONNX Runtime and OpenVINO.

        The graph takes ``flows``, uint8 (n, n_columns), and gives ``score``, float32 (n,): a flow whose score is below
        ``offset``, which stands in the metadata of the graph beside ``n_packets``, is abnormal. It is the folded
        network, and its scores differ from those of `score_samples` by the rounding of float32.

        Parameters
        ----------
        path : path
            File to write; needs the extra ``onnx``.

        Raises
        ------
        ImportError
            The extra is not installed.
        """
        from sklearn_docids import _export

        check_is_fitted(self)
        network = copy.deepcopy(self.network_).cpu().eval()
        scores = _export.Scores(
            network,
            FoldedNetwork(network, self.n_features_in_),
            _scoring.abnormality_of(self.templates_, self.n_neighbors),
        )
        _export.export(scores, os.fspath(path), {"offset": repr(self.offset_), "n_packets": self.n_packets})

    def _checked_rows(self, X: Any, reference: Any, goes_on: bool) -> FitRows:
        """Return the input of a fit, checked and split; forget an earlier fit unless this one goes on from it."""
        if not goes_on:  # an earlier fit must not show through if this one fails
            for name in [*vars(self)]:
                if name.endswith("_") or name in ("_moments", "_split_seed"):
                    delattr(self, name)
        check_kind(reference)
        X = check_range(validate_data(self, X, reset=not goes_on, ensure_min_samples=2))
        if isinstance(reference, tuple) and len(X) == len(reference):
            raise ValueError(
                "reference is a tuple and X has 2 rows: in cross-validation, scikit-learn would take the two for rows "
                "of one table; give ReferenceData(X_reference, y_reference)"
            )
        X_reference, labels, classes = self._check_reference(reference, goes_on)
        self._check_losses(X_reference)
        rng = check_random_state(self.random_state)
        split_seed, seed, threshold_seed = (int(number) for number in rng.randint(2**31 - 1, size=3))
        # A fit that goes on must not train on rows that were held out before.
        split_seed = getattr(self, "_split_seed", split_seed) if goes_on else split_seed
        rng = np.random.RandomState(split_seed)
        threshold = stopping = None
        target = X
        if self.false_alarm_rate is not None:
            target, threshold = self._hold_out_for_threshold(X, rng)
        training = target
        if self.early_stopping:
            training, stopping = self._hold_out(target, rng)
            if min(len(training), len(stopping)) < 2:
                raise ValueError(
                    f"early_stopping needs 2 rows to train on and 2 held-out rows, but validation_fraction="
                    f"{self.validation_fraction} of {len(target)} rows holds out {len(stopping)}"
                )
        seeds = split_seed, seed, threshold_seed
        return FitRows(training, stopping, threshold, target, X_reference, labels, classes, *seeds)

    def _check_losses(self, X_reference: np.ndarray | None) -> None:
        """Refuse weights that leave nothing to do."""
        watched = self.lambda_compactness or self.lambda_reconstruction
        if not watched and (X_reference is None or not self.lambda_descriptiveness):
            raise ValueError(
                "lambda_compactness and lambda_reconstruction are 0, and there is no descriptiveness loss: "
                "nothing is left to train"
            )
        if not watched and self.early_stopping:
            raise ValueError(
                "early_stopping watches the target losses, but lambda_compactness and lambda_reconstruction are 0"
            )

    def _training_settings(
        self, seed: int, n_epochs: int, schedule: str | None, goes_on: bool
    ) -> _training.TrainingSettings:
        device = self._device()
        if self.execution == "cuda_graph" and torch.device(device).type != "cuda":
            raise ValueError(f"execution='cuda_graph' needs a CUDA device, the device is {device!r}")
        names = ("batch_size", "optimizer", "lr", "momentum", "weight_decay", "precision", "execution")
        return _training.TrainingSettings(
            **{name: getattr(self, name) for name in names},
            n_epochs=n_epochs,
            schedule=schedule,
            device=device,
            seed=seed,
            first_epoch=self.n_iter_ if goes_on else 0,
        )

    def _net_callbacks(
        self, rows: FitRows, settings: _training.TrainingSettings, steps_per_epoch: int
    ) -> list[tuple[str, Any]]:
        """Return the callbacks of a fit, in the order in which they are called."""
        callbacks: list[tuple[str, Any]] = []
        if settings.schedule == "one_cycle":
            callbacks.append(("schedule", _training.OneCycle(settings.n_epochs * steps_per_epoch)))
        if self.verbose:
            callbacks.append(("progress", _training.Progress()))
        if rows.stopping is not None:
            held_out = _training.PairedFlows(rows.stopping, device=settings.device)
            callbacks.append(("early_stopping", _training.EarlyStopping(held_out, self.n_iter_no_change, self.tol)))
        for i, callback in enumerate(self.callbacks or ()):
            self._check_callback(callback)
            callbacks.append((f"callbacks_{i}", clone(callback, safe=False)))
        return callbacks

    def _check_callback(self, callback: Any) -> None:
        if not isinstance(callback, skorch.callbacks.Callback):
            raise ValueError(f"callbacks must be a list of skorch callbacks, got a {type(callback).__name__} in it")
        if isinstance(callback, skorch.callbacks.LRScheduler) and self.schedule is not None:
            raise ValueError(f"callbacks has an LRScheduler, and schedule={self.schedule!r}: give one of them")
        if self.execution == "cuda_graph":
            raise ValueError("callbacks cannot be called inside a CUDA graph: give callbacks or execution='cuda_graph'")

    def _make_checkpoint(
        self,
        rows: FitRows,
        settings: _training.TrainingSettings,
        callbacks: dict[str, Any],
        steps_per_epoch: int,
        goes_on: bool,
    ) -> _checkpoint.Checkpoint:
        folder = os.fspath(self.checkpoint_folder)  # type: ignore[arg-type] # not None here
        if not os.path.isdir(folder):
            raise NotADirectoryError(f"checkpoint_folder {folder!r} is no existing folder")
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"checkpoint_folder {folder!r} cannot be written to")
        if not isinstance(self.random_state, Integral):
            raise ValueError("checkpoint_folder needs an int as random_state: else no fit draws what another one drew")
        changes_nothing = (
            "verbose", "callbacks", "checkpoint_folder", "contamination", "score_method", "n_templates", "n_neighbors",
            "trim",
        )  # fmt: skip
        parameters = {name: value for name, value in self.get_params().items() if name not in changes_nothing}
        parameters["callbacks"] = [_checkpoint.described(callback) for callback in self.callbacks or ()]
        described = {**parameters, **vars(settings), "threads": torch.get_num_threads()}
        arrays = [rows.training, rows.stopping, rows.reference, rows.labels]
        begins_with = [*self.network_.state_dict().values(), *self._usable_moments().values()] if goes_on else []
        digest = _checkpoint.fingerprint(described, arrays, begins_with)
        return _checkpoint.Checkpoint(folder, digest, callbacks.get("early_stopping"), steps_per_epoch)

    def _usable_moments(self) -> dict[str, torch.Tensor]:
        """Return the moments of the fit before, if they are those of this optimiser."""
        optimizer, moments = getattr(self, "_moments", (None, {}))
        return moments if optimizer == self.optimizer else {}

    def _train(
        self,
        rows: FitRows,
        settings: _training.TrainingSettings,
        callbacks: list[tuple[str, Any]],
        goes_on: bool,
    ) -> DOCIDSDetector:
        """Train a net and take over what it has learned."""
        with torch.inference_mode(False):
            net = self._make_net(rows, settings, callbacks, goes_on)
            flows = _training.PairedFlows(rows.training, rows.reference, rows.labels, net.device)
            stopped = _training.train(net, flows)
            fitted = self._fitted_by(net, rows)
        if not math.isfinite(fitted["offset_"]):
            raise ValueError("scores of the training rows are not finite; lower lr, or look for extreme values in X")
        for name, value in fitted.items():
            setattr(self, name, value)
        self.__dict__.pop("_moments", None)
        if self.warm_start and not net.diverged:
            self._moments = settings.optimizer, _training.optimizer_tensors(net)
        if "checkpoint" in dict(callbacks) and (self.warm_start or not net.interrupted):
            dict(callbacks)["checkpoint"].remove()
        try:
            if stopped:
                warnings.warn(stopped, ConvergenceWarning, stacklevel=4)
        finally:  # even where the warning is an error
            if net.interrupted:
                # Usable from here on, and the search or script around it ends as its user wants.
                raise KeyboardInterrupt("training was interrupted; the detector is fitted as far as it came")
        return self

    def _make_net(
        self,
        rows: FitRows,
        settings: _training.TrainingSettings,
        callbacks: list[tuple[str, Any]],
        goes_on: bool,
    ) -> _training.PairedNet:
        """Return a net that is ready to train, with the weights of an earlier fit or of a checkpoint."""
        losses = {
            "descriptiveness": self.lambda_descriptiveness,
            "compactness": self.lambda_compactness,
            "reconstruction": self.lambda_reconstruction,
            "detach_target": self.detach_target,
        }
        network = self._network_settings(rows.training.shape[1], rows.classes)
        net = _training.make_net(self._network_class, network, losses, settings, callbacks)
        net.watched = bool(self.callbacks)
        net.verbose = int(net.watched)  # or skorch's callbacks print nothing
        if goes_on:
            net.module_.load_state_dict(self.network_.state_dict())
            net.earlier_epochs = list(self.history_)
            net.n_epochs_cut = self.n_iter_ - len(self.history_)
            _training.restore_optimizer(net, self._usable_moments())
        if "checkpoint" in dict(callbacks):
            dict(callbacks)["checkpoint"].resume(net)
        return net

    def _fitted_by(self, net: _training.PairedNet, rows: FitRows) -> dict[str, Any]:
        """Return the fitted attributes that a net makes."""
        fitted = copy.copy(self)
        fitted.network_ = net.module_.eval()
        fitted.reference_classes_ = rows.classes
        fitted._calibrate(rows)
        history = _training.epoch_history(net)
        return {
            "network_": fitted.network_,
            "reference_classes_": rows.classes,
            "templates_": fitted.templates_,
            "template_flows_": fitted.template_flows_,
            "offset_": fitted.offset_,
            "history_": history,
            "n_iter_": net.n_epochs_cut + len(history),
            "interrupted_": net.interrupted,
            "sampler_": getattr(self, "sampler_", None),
            "_folded": fitted._folded,
            "_split_seed": rows.split_seed,
        }

    def _fitted_so_far(self, net: _training.PairedNet, rows: FitRows) -> dict[str, Any]:
        """Return the fitted attributes as of now, with a network that training does not change any more."""
        network = copy.deepcopy(net.module_)
        now = {**self._fitted_by(net, rows), "network_": network}
        net.module_.train()
        return now

    def _calibrate(self, rows: FitRows) -> None:
        """Set ``templates_`` and ``offset_``."""
        others = self._set_templates(rows.target, np.random.RandomState(rows.threshold_seed))
        self.offset_ = self._threshold(self._score, rows.threshold, others, rows.target)

    def _network_settings(self, n_columns: int, classes: np.ndarray | None) -> dict[str, Any]:
        """Return the arguments of `DOCIDSNetwork`."""
        return {
            "n_columns": n_columns,
            "n_classes": N_CLASSES_WITHOUT_REFERENCE if classes is None else len(classes),
            "batch_norm": self.batch_norm,
            "dense_activation": self.dense_activation,
            "scale": self.scale,
        }

    def _check_reference(
        self, reference: Any, goes_on: bool
    ) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Return reference rows, class numbers, and classes: those of the fit before where this one goes on."""
        classes = self.reference_classes_ if goes_on else None
        if reference is None:
            if self.lambda_descriptiveness > 0:
                warnings.warn(
                    "fit without a reference: there is no descriptiveness loss, and features may collapse to a "
                    "constant; give reference=(X_reference, y_reference), or lambda_descriptiveness=0 if this is meant",
                    UserWarning,
                    stacklevel=5,
                )
            return None, None, classes
        X, y = (reference.X, reference.y) if isinstance(reference, ReferenceData) else reference
        names = getattr(self, "feature_names_in_", None)
        if names is not None and hasattr(X, "columns") and list(X.columns) != list(names):
            raise ValueError("reference X has other column names than the target X, or another order of them")
        X = check_range(check_array(X, input_name="reference X", estimator=self))
        y = check_labels(y)
        check_consistent_length(X, y)
        if X.shape[1] != self.n_features_in_:
            raise ValueError(f"reference X has {X.shape[1]} columns, but the target X has {self.n_features_in_}")
        found, numbers = np.unique(y, return_inverse=True)
        if not goes_on:
            if len(found) < 2:
                raise ValueError(f"reference y needs at least 2 classes, got only {found.tolist()}")
            return X, numbers, found
        return X, numbers_among(found, classes)[numbers], classes

    def _set_templates(self, X: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        """Set ``templates_``; return the rows that are none, whose scores are not 0 by construction."""
        self.templates_ = self.template_flows_ = None
        if self.score_method != "knn":
            return X
        order = rng.permutation(len(X))
        n_templates = min(self.n_templates, max(1, (len(X) - 1) // 2))
        templates, others = X[np.sort(order[:n_templates])], X[np.sort(order[n_templates:])]
        places = self._evaluate(_scoring.class_scores_of, templates)
        if self.trim:
            self.templates_ = self._evaluate(_scoring.class_scores_of, others)
            central = np.argsort(self._score(templates), kind="stable")[int(self.trim * len(templates)) :]
            templates, places = templates[np.sort(central)], places[np.sort(central)]
        self.templates_, self.template_flows_ = places, templates
        return others

    def _score(self, X: np.ndarray) -> np.ndarray:
        return -self._evaluate(_scoring.abnormality_of(self.templates_, self.n_neighbors), X)

    def _evaluate(self, function: _scoring.FeatureFunction, X: np.ndarray) -> np.ndarray:
        """Return a function of the features of all rows; the folded network is made when first needed."""
        folded = getattr(self, "_folded", None)
        if folded is None or not same_state(folded.state, state_of(self.network_)):
            self._folded = folded = FoldedNetwork(self.network_, self.n_features_in_)
        return _scoring.evaluate(function, self.network_, folded, X)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: not the folded network, which is made again from the trained one."""
        state = dict(super().__getstate__())
        state.pop("_folded", None)
        return state
