# SPDX-License-Identifier: BSD-3-Clause
"""`DOCFeatures`: deep features for one-class classification, the method that DOC-IDS came from, as a transformer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from sklearn_docids._bases import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn_docids._meta import forget_fit
from sklearn_docids._network.scoring import FrozenNetwork, features_of
from sklearn_docids._network.table1 import N_FEATURES_G, DOCIDSNetwork
from sklearn_docids._network.tensors import resolved_device
from sklearn_docids._training.net import TrainingSettings, WeightedLosses
from sklearn_docids._training.pairs import PairedFlows
from sklearn_docids._training.run import Trained, fit_network, n_epochs
from sklearn_docids._warn import warn_caller
from sklearn_docids.detectors._base import check_range, rows_of_fit, rows_to_score
from sklearn_docids.detectors._docids import DOCIDSDetector, network_settings
from sklearn_docids.detectors._profile import RowProfile, check_reference_rows
from sklearn_docids.detectors._reference import Reference, checked_reference
from sklearn_docids.detectors._rows import check_losses

# The first layers of g that ``freeze="all_but_last_4"`` keeps: convolution, ReLU, normalisation, pooling.
N_FROZEN = 4


class DOCFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Features g of the network of DOC: descriptiveness on a reference, compactness on the target, no autoencoder.

    Followed by a one-class classifier it is section 2 of the paper: ``make_pipeline(DOCFeatures(), OneClassSVM())``.
    With its default kernel that classifier is also support vector data description (SVDD): for a kernel that depends on
    differences alone, both have the same solution [2]_. `~sklearn_docids.detectors.NearestNeighborDetector` with
    ``n_templates=40`` is what [1]_ uses.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    lambda_descriptiveness : float, default=1.0
        Weight of the descriptiveness loss.
    lambda_compactness : float, default=0.1
        Weight of the compactness loss (paper, section 2.3, equation 2; [1]_).
    pretrain_epochs : int, default=0
        Passes over the reference alone, by the descriptiveness loss, before the target is seen. The paper (section 2.3)
        starts from a trained CNN and does not say on what; [1]_ starts from a network trained on ImageNet).
    freeze : {"none", "all_but_last_4"}, default="none"
        Layers that keep their weights after pretraining. ``"all_but_last_4"``, as in [1]_: of the five layers with
        weights in g and h_c, the first convolution, and the normalisation behind it; running statistics still follow
        the target.
    max_epochs : "auto" or int, default="auto"
        Passes over the target. "auto": as many as give about 500 steps, at least 1. More passes hurt: [1]_ stops after
        two.
    batch_size, optimizer, lr, momentum, weight_decay, schedule, scale, batch_norm, dense_activation, device : object
        As in `DOCIDSDetector`, and with its defaults.
    random_state : int, RandomState instance or None, default=None
        Source of initial weights and batches.
    verbose : int, default=0
        1 prints the losses every two seconds of training.

    Attributes
    ----------
    network_ : torch.nn.Module
        The trained network, with ``g`` and ``h_c``; its autoencoder is untrained.
    history_ : list of dict
        Per epoch of the training on both inputs: ``epoch``, ``pairs`` seen, means of ``descriptiveness_loss`` and
        ``compactness_loss``, unweighted.
    n_iter_ : int
        Epochs of the training on both inputs.
    reference_classes_ : ndarray or None
        Labels of the reference, sorted; None without a reference.
    n_features_in_ : int
        Number of columns.

    See Also
    --------
    DOCIDSDetector : Adds an autoencoder on these features, trained with them.

    References
    ----------
    .. [1] Perera, P., and V. M. Patel, "Learning Deep Features for One-Class Classification", IEEE Transactions on
       Image Processing 28(11), 2019.
    .. [2] Tax, D. M. J., and R. P. W. Duin, "Support Vector Data Description", Machine Learning 54, 2004.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.svm import OneClassSVM
    >>> from sklearn_docids import DOCFeatures
    >>> rng = np.random.default_rng(0)
    >>> X = rng.integers(0, 50, size=(32, 20), dtype=np.uint8)
    >>> X_reference, y_reference = rng.integers(0, 256, size=(32, 20), dtype=np.uint8), np.arange(32) % 2
    >>> detector = make_pipeline(DOCFeatures(max_epochs=1, random_state=0), OneClassSVM())
    >>> detector.fit(X, docfeatures__reference=(X_reference, y_reference)).predict(X).shape
    (32,)
    """

    history_: list[dict[str, Any]]
    n_iter_: int
    reference_classes_: np.ndarray | None
    network_: Any
    _profile: RowProfile

    # scikit-learn's metadata routing: fit takes the reference without being asked to.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"reference": True}

    _fitted_names: ClassVar[tuple[str, ...]] = (
        "network_", "history_", "n_iter_", "reference_classes_", "_frozen", "_profile",
    )  # fmt: skip

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{
            name: DOCIDSDetector._parameter_constraints[name]
            for name in (
                "lambda_descriptiveness", "lambda_compactness", "max_epochs", "batch_size", "optimizer", "lr",
                "momentum", "weight_decay", "schedule", "scale", "batch_norm", "dense_activation", "device",
                "random_state", "verbose",
            )
        },
        "pretrain_epochs": [Interval(Integral, 0, None, closed="left")],
        "freeze": [StrOptions({"none", "all_but_last_4"})],
    }  # fmt: skip

    def __init__(
        self,
        *,
        lambda_descriptiveness: float = 1.0,
        lambda_compactness: float = 0.1,
        pretrain_epochs: int = 0,
        freeze: str = "none",
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
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ):
        self.lambda_descriptiveness = lambda_descriptiveness
        self.lambda_compactness = lambda_compactness
        self.pretrain_epochs = pretrain_epochs
        self.freeze = freeze
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
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: object = None, *, reference: Reference | None = None) -> DOCFeatures:
        """Train on normal target traffic and a labelled reference.

        Parameters
        ----------
        X : array-like of shape (n_flows, n_columns)
            Target flows, unlabelled and normal; at least 2.
        y : object, default=None
            Ignored.
        reference : ReferenceData or tuple (X_reference, y_reference), default=None
            Labelled reference flows with the columns of X and at least two classes. None trains without the
            descriptiveness loss.

        Returns
        -------
        DOCFeatures
            The fitted transformer.

        Raises
        ------
        ValueError
            A parameter, X or the reference is unusable, or pretraining has no reference; the message names it.
        KeyboardInterrupt
            Ctrl-C was pressed during training.

        Warns
        -----
        UserWarning
            There is no reference, although the descriptiveness loss has a weight.
        ConvergenceWarning
            A loss was not finite; training stopped and recent finite weights are kept.
        """
        self._validate_params()
        forget_fit(self)
        rows, profile = rows_of_fit(self, X, min_samples=2)
        check_range(rows)
        if self.pretrain_epochs and reference is None:
            raise ValueError(f"pretrain_epochs={self.pretrain_epochs} needs a reference")
        given = checked_reference(self, reference, len(rows), False, None)
        check_reference_rows(profile, given["reference"])
        trained, n_pretrained = self._trained(rows, **given)
        if trained.ended_early:
            warn_caller(trained.ended_early, ConvergenceWarning)
        if trained.interrupted:
            raise KeyboardInterrupt("training was interrupted")
        self.network_ = trained.network
        self.reference_classes_ = given["classes"]
        self.n_iter_ = trained.n_epochs - n_pretrained
        self.history_ = trained.history[len(trained.history) - self.n_iter_ :]
        self._frozen = FrozenNetwork(self.network_)
        self._profile = profile
        return self

    def _trained(
        self, X: np.ndarray, reference: np.ndarray | None, labels: np.ndarray | None, classes: np.ndarray | None
    ) -> tuple[Trained, int]:
        """Return what training leaves, and the number of epochs that were pretraining."""
        build = partial(DOCIDSNetwork, **network_settings(self, X.shape[1], classes))
        losses = WeightedLosses(descriptiveness=self.lambda_descriptiveness, compactness=self.lambda_compactness)
        check_losses(losses, reference is not None)
        settings = self._training_settings(len(X))
        start = None
        if self.pretrain_epochs and reference is not None:
            # By the descriptiveness loss alone: the reference is target and reference at once.
            alone = WeightedLosses(descriptiveness=self.lambda_descriptiveness)
            check_losses(alone, True)
            pairs = PairedFlows(reference, reference, labels, settings.device)
            start = fit_network(build, alone, pairs, replace(settings, n_epochs=self.pretrain_epochs))
            if start.interrupted:
                return start, start.n_epochs
            if start.ended_early:
                warn_caller(start.ended_early, ConvergenceWarning)
            start = replace(start, moments=None)  # they are of another loss
        frozen = N_FROZEN if self.freeze == "all_but_last_4" else 0
        pairs = PairedFlows(X, reference, labels, settings.device)
        return fit_network(build, losses, pairs, settings, start=start, frozen=frozen), start.n_epochs if start else 0

    def _training_settings(self, n_rows: int) -> TrainingSettings:
        names = ("batch_size", "optimizer", "lr", "momentum", "weight_decay", "schedule", "verbose")
        return TrainingSettings(
            **{name: getattr(self, name) for name in names},
            n_epochs=n_epochs(self.max_epochs, n_rows, self.batch_size),
            device=resolved_device(self.device),
            seed=int(check_random_state(self.random_state).randint(2**31 - 1, size=2)[1]),
        )

    def transform(self, X: ArrayLike) -> np.ndarray:
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
        X = check_range(rows_to_score(self, X))
        return self._frozen.evaluate(features_of, X, resolved_device(self.device))

    @property
    def _n_features_out(self) -> int:
        return N_FEATURES_G
