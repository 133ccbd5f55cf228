# SPDX-License-Identifier: BSD-3-Clause
"""Parameters of estimators in model files, and what describes arrays there."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_docids._sealed import SealedFileError, is_count

# Types of arrays besides the network, as a header calls them.
KINDS = {"uint8": "U8", "float64": "F64"}
MAX_INT = 2**63
# Columns of a row: weights that do not depend on the width would let a small file ask for any amount of memory, for
# each flow of a capture. Of the default rows, 200 would fit into one of these.
MAX_COLUMNS = 2**16
# Parameters that belong to one machine or session, and are not part of a model.
NOT_STORED = ("callbacks", "checkpoint_folder", "device", "n_jobs")


def storable(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return parameters as they are stored: without a generator, whose state is that of one process."""
    seed = parameters["random_state"]
    kept = {name: value for name, value in parameters.items() if name not in NOT_STORED}
    return {**kept, "random_state": seed if isinstance(seed, int | np.integer) else None}


def made(estimator: Any, parameters: Any) -> Any:
    """Return an estimator with checked parameters."""
    if not isinstance(parameters, dict):
        raise SealedFileError(f"the parameters of {estimator.__name__} are not a JSON object")
    if set(NOT_STORED) & set(parameters):
        raise SealedFileError(f"it sets {sorted(set(NOT_STORED) & set(parameters))}, which belong to one machine")
    if any(isinstance(value, int) and abs(value) >= MAX_INT for value in parameters.values()):
        raise SealedFileError(f"a parameter of {estimator.__name__} is too large a number")
    try:
        found = estimator(**parameters)
        found._validate_params()
    except (TypeError, ValueError) as error:
        raise SealedFileError(f"{estimator.__name__} refuses its parameters: {error}") from None
    return found


def is_array(value: Any) -> bool:
    """Return whether a value is kind and sizes of an array."""
    return (
        isinstance(value, list) and value[:1] in [[kind] for kind in KINDS.values()] and all(map(_is_size, value[1:]))
    )


def _is_size(value: Any) -> bool:
    return value == 0 or is_count(value)


def description_of(arrays: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    """Return kind and shape of arrays, as they stand in a config."""
    return {name: [KINDS[value.dtype.name], *value.shape] for name, value in arrays.items()}
