# SPDX-License-Identifier: BSD-3-Clause
"""Thresholds on scores. A lower score is more abnormal, and a flow is flagged if it scores below the threshold."""

from __future__ import annotations

import math

import numpy as np

# ``contamination="auto"``: share of the training rows that may be flagged.
AUTO_CONTAMINATION = 0.01
# So few scores may well be equal.
FEW = 2
# Products and quotients of rates may fall just short of the whole number they stand for: 0.29 * 100 < 29.
ROUNDING = 1e-9


def contamination_threshold(scores: np.ndarray, share: float) -> float:
    """Return the threshold that flags a share of these scores, interpolated between neighbouring scores."""
    with np.errstate(invalid="ignore"):  # infinite scores give NaN, which callers refuse
        return float(np.percentile(scores, 100 * share))


def pooled_threshold(earlier: np.ndarray, n_earlier: int, scores: np.ndarray, n_rows: int, share: float) -> float:
    """Return the threshold that flags a share of ``n_earlier`` and ``n_rows`` rows, of which samples are scored.

    Each score counts for as many rows as it stands for.
    """
    together = np.concatenate([earlier, scores])
    weights = np.repeat([n_earlier / max(1, len(earlier)), n_rows / len(scores)], [len(earlier), len(scores)])
    return float(np.quantile(together, share, weights=weights, method="inverted_cdf"))


def least_held_out(rate: float) -> int:
    """Return the number of held-out scores below which no threshold holds a false-alarm rate."""
    return math.ceil(min(1 / rate, 1e18) - ROUNDING) - 1  # the reciprocal of the smallest numbers is infinite


def conformal_threshold(scores: np.ndarray, rate: float) -> float:
    """Return the threshold below which a new score falls with a probability of at most ``rate``.

    Of n held-out scores and a new one, drawn alike, each is equally likely to be the k-th lowest: the new one is below
    the k-th lowest held-out score with probability k / (n + 1) at most.

    Raises
    ------
    ValueError
        There are fewer than `least_held_out` scores.
    """
    k = int(rate * (len(scores) + 1) + ROUNDING)
    if k < 1:
        raise ValueError(
            f"a false-alarm rate of {rate} needs at least {least_held_out(rate)} scores, not {len(scores)}"
        )
    return float(np.sort(scores)[k - 1])


def realised_band(n_scores: int, rate: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return between which shares of new normal scores `conformal_threshold` of so many scores flags.

    The share differs from calibration to calibration as Beta(k, n + 1 - k) does, with k = floor(rate * (n + 1)), if
    normal scores are drawn alike (Vovk, "Conditional validity of inductive conformal predictors", 2012).
    """
    from scipy.special import betaincinv  # takes longer to import than all else here

    k, rest = int(rate * (n_scores + 1) + ROUNDING), (1 - confidence) / 2
    low, high = (float(betaincinv(k, n_scores + 1 - k, share)) for share in (rest, 1 - rest))
    return low, high


def doubt_of(scores: np.ndarray, share: float = 0.0) -> str:
    """Return why a threshold set by these scores, to flag a share of them, separates nothing; empty where it does."""
    lowest = float(np.min(scores)) + 0.0  # 0 and not -0
    if len(scores) <= FEW or not math.isfinite(lowest):  # what is not a number is refused elsewhere
        return ""
    n_lowest = int(np.sum(scores == lowest))
    if n_lowest == len(scores):
        return (
            f"the threshold separates nothing: all {n_lowest} scores that set it are {lowest:g}, and whatever scores "
            "lower, however little, is flagged; look at whether the rows differ, and whether the detector tells them "
            "apart"
        )
    if share * len(scores) >= 1 and contamination_threshold(scores, share) <= lowest:
        return (
            f"the threshold flags none of the rows it was set by: {n_lowest} of {len(scores)} share the lowest score, "
            f"{lowest:g}; a larger contamination, or a score that tells them apart, would flag some"
        )
    return ""
