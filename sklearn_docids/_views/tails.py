# SPDX-License-Identifier: BSD-3-Clause
"""From the scores of a view to probabilities: how often a normal flow is as abnormal as this one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sklearn_docids._views.arrays import ANY_NUMBER, ArrayRule, check_whole_and_ascending, exactly, up_to
from sklearn_docids._views.payload import MAX_SERVICE

# Normal scores that are kept, evenly spaced among the sorted ones, the largest always.
MAX_SCORES = 100_000
# Share of the scores, and the least number of them, that tell how the tail falls off beyond the largest one.
TAIL_SHARE, MIN_TAIL = 0.02, 5
# A group of fewer normal flows than this is judged with all the others.
MIN_GROUP = 50
# In an array of tails: the name of the one of all flows.
EVERYTHING = -1
MAX_GROUPS = 2**17
# Largest whole number up to which float64 has all of them; least scale with which no surprise is infinite.
MOST_SCORES, LEAST_SCALE = 2**53, 1e-150
TAIL_RULES = {
    # Of each tail: group, number of scores kept, number of which they are a sample, scale.
    "tails": ArrayRule("float64", (up_to(1 + MAX_GROUPS), exactly(4)), EVERYTHING),
    "tail_scores": ArrayRule("float64", (ANY_NUMBER,)),
}


class Tail(NamedTuple):
    """The upper tail of normal scores: counted where there are scores, an exponential beyond the largest.

    Without the exponential, all flows beyond the largest normal score would be alike.
    """

    scores: np.ndarray  # sorted
    n_scores: int  # of which `scores` are a sample
    scale: float  # mean excess of the largest ones

    @classmethod
    def of(cls, scores: np.ndarray) -> Tail:
        """Return the tail of normal scores, at least one."""
        ordered = np.sort(scores)
        n_tail = min(len(ordered), max(MIN_TAIL, int(TAIL_SHARE * len(ordered))))
        # Differences first: the mean of equal scores may be rounded to less than one of them.
        scale = float(np.mean(ordered[-n_tail:] - ordered[-n_tail]))
        # Where the largest ones are all equal, whatever the scores differ by at all has to do as the unit.
        scale = scale or float(np.std(ordered)) or 1.0
        kept = np.linspace(0, len(ordered) - 1, min(len(ordered), MAX_SCORES)).round().astype(np.int64)
        return cls(ordered[kept], len(ordered), scale)

    def surprise(self, scores: np.ndarray) -> np.ndarray:
        """Return the opposite of the logarithm of the probability of a normal score at least as high."""
        n_kept = len(self.scores)
        n_as_high = n_kept - np.searchsorted(self.scores, scores, side="left")
        share = n_as_high / n_kept
        counted = -np.log((share * self.n_scores + 1) / (self.n_scores + 1))
        beyond = np.maximum(0.0, scores - self.scores[-1]) / self.scale
        return np.asarray(counted + beyond)


class Tails(NamedTuple):
    """Tails of all normal flows, and of those of each group that has enough of them."""

    everything: Tail
    of_group: dict[int, Tail]

    @classmethod
    def of(cls, scores: np.ndarray, groups: np.ndarray | None) -> Tails:
        """Return the tails of normal scores; ``groups`` has a number per flow, or is None."""
        names, sizes = np.unique([] if groups is None else groups, return_counts=True)
        large = names[sizes >= MIN_GROUP].tolist()
        return cls(Tail.of(scores), {int(name): Tail.of(scores[groups == name]) for name in large})

    def surprise(self, scores: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Return the surprise of scores, each by the tail of its group."""
        found = self.everything.surprise(scores)
        if groups is not None:
            for name in set(groups.tolist()) & set(self.of_group):
                found[groups == name] = self.of_group[name].surprise(scores[groups == name])
        return found

    def state(self) -> dict[str, np.ndarray]:
        """Return all tails as arrays that follow `TAIL_RULES`."""
        tails = {EVERYTHING: self.everything, **self.of_group}
        rows = [(name, len(tail.scores), tail.n_scores, tail.scale) for name, tail in tails.items()]
        return {
            "tails": np.array(rows, np.float64),
            "tail_scores": np.concatenate([tail.scores for tail in tails.values()]),
        }

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray]) -> Tails:
        """Return the tails of `state`.

        Raises
        ------
        ValueError
            These are no tails.
        """
        (names, n_kept, n_scores, scales), scores = arrays["tails"].T, arrays["tail_scores"]
        check_whole_and_ascending("groups of tails", names)
        _check_tails(names, n_kept, n_scores, scales, len(scores))
        ends = np.cumsum(n_kept.astype(np.int64))
        falls = np.flatnonzero(scores[1:] < scores[:-1]) + 1
        if not np.isin(falls, ends).all():
            raise ValueError("scores of a tail are not sorted")
        parts = zip(np.split(scores, ends[:-1]), n_scores, scales, strict=True)
        everything, *of_group = [Tail(kept, int(n), float(scale)) for kept, n, scale in parts]
        return cls(everything, dict(zip(names[1:].astype(np.int64).tolist(), of_group, strict=True)))


def _check_tails(
    names: np.ndarray, n_kept: np.ndarray, n_scores: np.ndarray, scales: np.ndarray, n_in_all: int
) -> None:
    if names[0] != EVERYTHING or names[-1] > MAX_SERVICE:
        raise ValueError("its tails are of unknown groups")
    if (n_kept < 1).any() or (n_kept % 1).any() or n_kept.sum() != n_in_all:
        raise ValueError("its tails keep another number of scores than there are")
    if (n_scores < n_kept).any() or (n_scores % 1).any() or (n_scores > MOST_SCORES).any():
        raise ValueError("its tails are of impossible numbers of scores")
    if (scales < LEAST_SCALE).any():
        raise ValueError("the scale of a tail is too small")
