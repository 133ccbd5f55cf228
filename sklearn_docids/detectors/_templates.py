# SPDX-License-Identifier: BSD-3-Clause
"""Templates: a random sample of normal flows to measure distances to, drawn at once or kept up as a reservoir."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sklearn_docids.capture.lazy import selected


class Drawn(NamedTuple):
    """Templates, and the rows of a fit that are none of them."""

    templates: np.ndarray | None  # those kept from earlier fits first; None where none are wanted
    n_kept: int
    others: np.ndarray


def draw_templates(
    X: np.ndarray, n_templates: int, rng: np.random.RandomState, earlier: np.ndarray | None = None, n_seen: int = 0
) -> Drawn:
    """Return a random sample of at most ``n_templates`` rows, always fewer than half of all.

    With ``earlier``, the templates that are left of ``n_seen`` rows of earlier fits, it is a sample of those rows and X
    together, each row as likely to be in it, as far as there are enough of both.
    """
    n_wanted = min(n_templates, _most(n_seen + len(X)))
    kept = X[:0]
    if earlier is not None:
        n_kept = min(rng.hypergeometric(n_seen, len(X), n_wanted), len(earlier))
        kept = earlier[np.sort(rng.permutation(len(earlier))[:n_kept])]
    n_drawn = min(n_wanted - len(kept), _most(len(X)))
    order = rng.permutation(len(X))
    drawn, others = X[np.sort(order[:n_drawn])], selected(X, np.sort(order[n_drawn:]))
    return Drawn(np.concatenate([kept, drawn]) if len(kept) else drawn, len(kept), others)


def _most(n_rows: int) -> int:
    return max(1, (n_rows - 1) // 2)
