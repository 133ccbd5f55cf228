# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn's base classes, with types where a type checker looks.

scikit-learn ships no types, so of a class that inherits from its own a user's type checker would know next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

__all__ = [
    "SITE",
    "BaseEstimator",
    "ClassNamePrefixFeaturesOutMixin",
    "MetaEstimatorMixin",
    "OutlierMixin",
    "TransformerMixin",
]

# Where docs/ is published, with a slash at the end.
SITE = "https://sklearn-docids.example/"

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    class BaseEstimator:
        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...
        def _validate_params(self) -> None: ...
        def __sklearn_tags__(self) -> Any: ...

    class OutlierMixin:
        def fit_predict(self, X: ArrayLike, y: object = None, **kwargs: Any) -> np.ndarray: ...

    class TransformerMixin:
        def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any: ...
        def set_output(self, *, transform: str | None = None) -> Self: ...

    class ClassNamePrefixFeaturesOutMixin:
        def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray: ...

    class MetaEstimatorMixin: ...

else:
    from sklearn import base
    from sklearn.base import (
        ClassNamePrefixFeaturesOutMixin,
        MetaEstimatorMixin,
        OutlierMixin,
        TransformerMixin,
    )

    class BaseEstimator(base.BaseEstimator):
        """scikit-learn's, with a link from the picture of an estimator in a notebook to its page on the site."""

        _doc_link_module = "sklearn_docids"
        _doc_link_template = f"{SITE}reference/generated/{{estimator_module}}.{{estimator_name}}.html"
