# SPDX-License-Identifier: BSD-3-Clause
"""What detectors that wrap another one share: clones with a seed, and ``fit`` parameters handed to the other."""

from __future__ import annotations

from typing import Any

from sklearn import get_config
from sklearn.base import clone
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing


def seeded_clone(estimator: Any, seed: int) -> Any:
    """Return a clone with the seed as every ``random_state`` in it."""
    cloned = clone(estimator)
    names = [name for name in cloned.get_params() if name.split("__")[-1] == "random_state"]
    return cloned.set_params(**dict.fromkeys(names, seed))


def forget_fit(estimator: Any) -> None:
    """Remove what an earlier fit has set, so that it does not show through where the next one is refused.

    The class names its attributes in ``_fitted_names``; whatever else a user has set stays.
    """
    for name in ("n_features_in_", "feature_names_in_", *estimator._fitted_names):
        vars(estimator).pop(name, None)


class FitParamsToEstimator:
    """Mixin for a detector with an ``estimator``."""

    estimator: Any

    def get_metadata_routing(self) -> MetadataRouter:
        """Return the routing: all that ``fit`` is given goes to the detector's ``fit``.

        Returns
        -------
        MetadataRouter
            The routing.
        """
        mapping = MethodMapping().add(caller="fit", callee="fit")
        return MetadataRouter(owner=self).add(estimator=self.estimator, method_mapping=mapping)

    def _routed(self, fit_params: dict[str, Any]) -> dict[str, Any]:
        """Return what the detector's ``fit`` gets of the parameters."""
        if get_config()["enable_metadata_routing"]:
            return dict(process_routing(self, "fit", **fit_params).estimator.fit)
        return fit_params


def takes_tables(detector: Any) -> bool:
    """Return whether a detector takes flow tables, and not rows: by its tags, or those of what it wraps."""
    if hasattr(detector, "estimator"):
        return takes_tables(detector.estimator)
    return hasattr(detector, "__sklearn_tags__") and not get_tags(detector).input_tags.two_d_array
