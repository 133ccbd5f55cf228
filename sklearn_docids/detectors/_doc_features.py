# SPDX-License-Identifier: BSD-3-Clause
"""`DOCFeatures`: deep features for one-class classification, the method that DOC-IDS came from, as a transformer."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_docids._network import N_FEATURES_G
from sklearn_docids.detectors._base import check_range
from sklearn_docids.detectors._docids import DOCIDSDetector
from sklearn_docids.detectors._reference import ReferenceData, check_kind


class _Trainer(DOCIDSDetector):
    """DOC-IDS whose first layers can be kept as they are."""

    n_frozen = 0  # modules of g

    def _make_net(self, *args: Any) -> Any:
        net = super()._make_net(*args)
        for layer in list(net.module_.g)[: self.n_frozen]:
            layer.requires_grad_(False)
        return net


class DOCFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Features g of the network of DOC: descriptiveness on a reference, compactness on the target, no autoencoder.

    Followed by a one-class classifier it is section 2 of the paper: ``make_pipeline(DOCFeatures(), OneClassSVM())``.
    With its default kernel that classifier is also support vector data description (SVDD): for a kernel that depends on
    differences alone, both have the same solution [2]_. `~sklearn_docids.detectors.NearestNeighborDetector` with
    ``n_templates=40`` is what [1]_ uses.

    Parameters
    ----------
    lambda_descriptiveness : float, default=1.0
        Weight of the descriptiveness loss.
    lambda_compactness : float, default=0.1
        Weight of the compactness loss (paper and [1]_).
    pretrain_epochs : int, default=0
        Passes over the reference alone, by the descriptiveness loss, before the target is seen (paper, section 2.3;
        [1]_ starts from a network trained on ImageNet).
    freeze : {"none", "all_but_last_4"}, default="none"
        Layers that keep their weights after pretraining. ``"all_but_last_4"``, as in [1]_: of the five layers with
        weights in g and h_c, the first convolution, and the normalisation behind it; running statistics still follow
        the target.
    max_epochs : "auto" or int, default="auto"
        Passes over the target. "auto": as many as give about 500 steps, at least 1. More harm: [1]_ stops after two.
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
    .. [1] P. Perera and V. M. Patel, "Learning Deep Features for One-Class Classification", IEEE Transactions on
       Image Processing 28(11), 2019.
    .. [2] D. M. J. Tax and R. P. W. Duin, "Support Vector Data Description", Machine Learning 54, 2004.

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

    # scikit-learn's metadata routing: fit takes the reference without being asked to.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"reference": True}

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
        random_state: Any = None,
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

    def fit(self, X: Any, y: Any = None, *, reference: Any = None) -> DOCFeatures:
        """Train on normal target traffic beside a labelled reference.

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
        X = check_range(validate_data(self, X, ensure_min_samples=2))
        if self.pretrain_epochs and reference is None:
            raise ValueError(f"pretrain_epochs={self.pretrain_epochs} needs a reference")
        check_kind(reference)
        trainer, n_pretrained = self._trainer(), 0
        if self.pretrain_epochs:
            _pretrain(trainer, reference, self.pretrain_epochs, X.shape[1])
            n_pretrained = trainer.n_iter_
        if self.freeze == "all_but_last_4":
            trainer.n_frozen = 4  # convolution, ReLU, normalisation, pooling
        trainer.fit(X, reference=reference)
        self.network_ = trainer.network_
        self.reference_classes_ = trainer.reference_classes_
        self.n_iter_ = trainer.n_iter_ - n_pretrained
        self.history_ = [
            {name: value for name, value in epoch.items() if name != "reconstruction_loss"}
            for epoch in trainer.history_[n_pretrained:]
        ]
        trainer.__dict__.pop("_moments", None)
        self._trained = trainer
        return self

    def transform(self, X: Any) -> np.ndarray:
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
        check_is_fitted(self)
        return self._trained.embed(np.asarray(validate_data(self, X, reset=False)))

    @property
    def _n_features_out(self) -> int:
        return N_FEATURES_G

    def _trainer(self) -> _Trainer:
        own = ("pretrain_epochs", "freeze")
        shared = {name: value for name, value in self.get_params(deep=False).items() if name not in own}
        # It goes on from the pretrained weights.
        return _Trainer(**shared, lambda_reconstruction=0, warm_start=self.pretrain_epochs > 0)


def _pretrain(trainer: _Trainer, reference: Any, n_epochs: int, n_columns: int) -> None:
    """Train by the descriptiveness loss alone: the reference is target and reference at once."""
    X_reference, y_reference = (reference.X, reference.y) if isinstance(reference, ReferenceData) else reference
    reference = ReferenceData(check_array(X_reference, input_name="reference X"), y_reference)
    if reference.X.shape[1] != n_columns:
        raise ValueError(f"reference X has {reference.X.shape[1]} columns, but the target X has {n_columns}")
    chosen = {name: getattr(trainer, name) for name in ("max_epochs", "lambda_compactness")}
    trainer.set_params(max_epochs=n_epochs, lambda_compactness=0).fit(reference.X, reference=reference)
    trainer.set_params(**chosen)
    trainer.__dict__.pop("_moments", None)  # of other losses; a loss that was not finite has left none
