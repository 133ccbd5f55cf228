# SPDX-License-Identifier: BSD-3-Clause
"""Scores of many flows in little memory, from which a threshold can be read, and which can be put together."""

from __future__ import annotations

import base64
import json
import os
import struct
from typing import Any

import numpy as np

from sklearn_docids._scratch import scratch_folder, sync
from sklearn_docids._thresholds import ROUNDING, least_held_out
from sklearn_docids._warn import missing

FORMAT = 1
# The most that the library takes: 4.8e-5 of all scores is then the error of a rank, in 1.5 MB.
K, M = 65_535, 8
# Flags of the library's own format.
EMPTY, LEVEL_ZERO_SORTED, SINGLE = 1, 2, 4
HEAD, BODY = struct.Struct("<4BHBB"), struct.Struct("<QHBB")
MAX_LEVELS = 40
MAX_FILE_BYTES = 2**23
KEYS = {"format", "model", "n_scores", "kll"}


class ScoreSketch:
    """Scores of normal flows in 1.5 MB, however many they are, so that calibrations of many sensors become one.

    A KLL sketch [1]_ of Apache DataSketches. Up to 65,000 scores it holds all of them, and gives the threshold that
    they give. Beyond that, it knows how many of n scores are below another one with an error of at most ``rank_error``
    n, 4.8e-5 n, in 99 of 100 sketches, merged ones too; `threshold` is so much lower, so that it flags no more than it
    was asked for. What is dropped is drawn at random, without a seed: two sketches of the same scores differ within the
    error.

    Guide: :doc:`/how-to/still-fits`.

    Parameters
    ----------
    model : str, default=""
        What tells the detector that gave the scores from others, as the checksum of its file: sketches of different
        ones cannot be merged.

    Attributes
    ----------
    n_scores : int
        Number of scores.
    rank_error : float
        Error of a rank as a share of all scores; 0 while all of them are held.

    Raises
    ------
    ImportError
        datasketches is not installed.

    See Also
    --------
    MultiViewDetector.calibrate : Takes a sketch in place of flows, and sets the threshold by it.

    References
    ----------
    .. [1] Karnin, Z., K. Lang, E. Liberty, "Optimal Quantile Approximation in Streams", FOCS 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.monitoring import ScoreSketch
    >>> scores = -np.random.default_rng(0).exponential(size=(2, 10_000))
    >>> monday, tuesday = (ScoreSketch().update(of_day) for of_day in scores)
    >>> both = monday.merge(tuesday)
    >>> both.n_scores, both.rank_error, bool(both.threshold(0.01) == np.sort(scores.ravel())[199])
    (20000, 0.0, True)
    """

    def __init__(self, model: str = ""):
        self.model = model
        self._sketch: Any = _kll().kll_doubles_sketch(K)

    @property
    def n_scores(self) -> int:
        """Number of scores."""
        return int(self._sketch.n)

    @property
    def rank_error(self) -> float:
        """Error of a rank as a share of all scores; 0 while all of them are held."""
        return float(self._sketch.normalized_rank_error(False)) if self._sketch.is_estimation_mode() else 0.0

    def update(self, scores: np.ndarray) -> ScoreSketch:
        """Add scores.

        Parameters
        ----------
        scores : array-like of shape (n_scores,)
            What `score_samples` of a detector returned; finite.

        Returns
        -------
        ScoreSketch
            The sketch.

        Raises
        ------
        ValueError
            A score is no finite number.
        """
        found = np.asarray(scores, np.float64)
        if found.ndim != 1 or not np.isfinite(found).all():
            raise ValueError("scores must be finite numbers in one dimension: what score_samples returns")
        self._sketch.update(found)
        return self

    def merge(self, other: ScoreSketch) -> ScoreSketch:
        """Add the scores of another sketch.

        Parameters
        ----------
        other : ScoreSketch
            Scores of the same detector; it stays as it is.

        Returns
        -------
        ScoreSketch
            The sketch.

        Raises
        ------
        ValueError
            The scores are of another detector.
        """
        if other.model != self.model:
            raise ValueError(
                f"scores of different models cannot be put together: {self.model or 'none'} here, "
                f"{other.model or 'none'} there"
            )
        self._sketch.merge(other._sketch)
        return self

    def threshold(self, rate: float) -> float:
        """Return the threshold below which a new normal score falls with a probability of at most ``rate``.

        Parameters
        ----------
        rate : float
            Rate of false alarms, in (0, 0.5].

        Returns
        -------
        float
            The k-th lowest of n scores, k = floor(rate (n + 1)), or one that is by up to 2 ``rank_error`` n places
            lower.

        Raises
        ------
        ValueError
            There are too few scores for the rate, or the rate is below the error of the sketch.
        """
        rank = int(rate * (self.n_scores + 1) + ROUNDING)
        if rank < 1:
            raise ValueError(
                f"a false-alarm rate of {rate:g} needs at least {least_held_out(rate)} scores, not {self.n_scores}"
            )
        share = rank / self.n_scores - self.rank_error
        if share <= 0:
            raise ValueError(
                f"a false-alarm rate of {rate:g} is below the error of the sketch, {self.rank_error:.2g}: calibrate "
                "with flows"
            )
        # Halfway between two ranks, so that rounding of the share decides nothing.
        return float(self._sketch.get_quantile(share - self._half_a_rank(), True))

    def quantiles(self, n: int = K) -> np.ndarray:
        """Return scores at equal distances of rank.

        Parameters
        ----------
        n : int, default=65_535
            How many, at most.

        Returns
        -------
        ndarray of float64, shape (min(n, n_scores),)
            Ascending.
        """
        n = min(n, self.n_scores)
        return np.array(self._sketch.get_quantiles(((np.arange(n) + 0.5) / n).tolist(), True) if n else [])

    def _half_a_rank(self) -> float:
        return 0.5 / self.n_scores if self.rank_error == 0 else 0.0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sketch as JSON; an existing file is replaced as a whole.

        Parameters
        ----------
        path : path
            File to write.

        Raises
        ------
        OSError
            It cannot be written.
        """
        kll = base64.b64encode(self._sketch.serialize()).decode()
        config = {"format": FORMAT, "model": self.model, "n_scores": self.n_scores, "kll": kll}
        path = os.fsdecode(path)
        with scratch_folder(os.path.dirname(path) or ".") as scratch:
            part = os.path.join(scratch, "sketch")
            with open(part, "w", encoding="utf-8") as file:
                json.dump(config, file)
            sync(part)
            os.replace(part, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScoreSketch:
        """Read a sketch; nothing in the file is executed.

        Parameters
        ----------
        path : path
            File of `save`.

        Returns
        -------
        ScoreSketch
            The sketch.

        Raises
        ------
        ValueError
            The file holds no sketch, or one of another version.
        """
        path = os.fsdecode(path)
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        try:
            return cls._from(text)
        except (ValueError, TypeError, KeyError, struct.error, RecursionError) as error:
            raise ValueError(f"{path}: no sketch of scores: {error}") from None

    @classmethod
    def _from(cls, text: bytes) -> ScoreSketch:
        config = json.loads(text) if len(text) <= MAX_FILE_BYTES else None
        if not isinstance(config, dict) or set(config) != KEYS or not isinstance(config["model"], str):
            raise ValueError("it holds something else")
        if config["format"] != FORMAT:
            raise ValueError(f"it is of format {config['format']!r}, this version reads {FORMAT}")
        kll = base64.b64decode(config["kll"], validate=True)
        check_kll(kll)
        found = cls(config["model"])
        found._sketch = _kll().kll_doubles_sketch.deserialize(kll)
        if type(config["n_scores"]) is not int or config["n_scores"] != found.n_scores:
            raise ValueError("it has another number of scores than it says")
        return found


def _kll() -> Any:
    try:
        import datasketches
    except ImportError:
        raise missing("a sketch of scores", "datasketches") from None
    return datasketches


def check_kll(data: bytes) -> None:
    """Refuse bytes that are no sketch of ours: the library believes what they say, and reads beyond their end.

    Parameters
    ----------
    data : bytes
        A KLL sketch of float64, as Apache DataSketches writes it.

    Raises
    ------
    ValueError or struct.error
        So it is.
    """
    n_ints, version, family, flags, k, m, unused = HEAD.unpack_from(data)
    if (family, k, m, unused) != (15, K, M, 0) or flags & ~(EMPTY | LEVEL_ZERO_SORTED | SINGLE):
        raise ValueError("it is a sketch of another kind")
    if flags & EMPTY or flags & SINGLE:
        n_items = 0 if flags & EMPTY else 1
        is_known = (n_ints, version) == (2, 1 + n_items) and flags & (EMPTY | SINGLE) in (EMPTY, SINGLE)
        if not is_known or not np.isfinite(_items(data, HEAD.size, n_items)).all():
            raise ValueError("its head and its scores do not fit together")
        return
    n, min_k, n_levels, unused = BODY.unpack_from(data, HEAD.size)
    if (n_ints, version, min_k, unused) != (5, 1, K, 0) or not 1 <= n_levels <= MAX_LEVELS:
        raise ValueError("its head is damaged")
    _check_levels(data, n, n_levels, bool(flags & LEVEL_ZERO_SORTED))


def _check_levels(data: bytes, n: int, n_levels: int, is_sorted: bool) -> None:
    """Refuse levels that are not those of n scores: a score of level l stands for 2**l."""
    at = HEAD.size + BODY.size
    starts = [*struct.unpack_from(f"<{n_levels}I", data, at), _capacity(n_levels)]
    items = _items(data, at + 4 * n_levels, 2 + max(0, starts[-1] - starts[0]))
    lowest, highest, kept = items[0], items[1], items[2:]
    sizes = np.diff(starts)
    if (sizes < 0).any() or sum(int(size) << level for level, size in enumerate(sizes)) != n or n < 2:
        raise ValueError("its levels do not hold as many scores as it says")
    levels = np.split(kept, np.cumsum(sizes)[:-1])
    if not np.isfinite(items).all() or kept.min() < lowest or kept.max() > highest:
        raise ValueError("its scores are out of range")
    if any((np.diff(level) < 0).any() for level in levels[not is_sorted :]):
        raise ValueError("its scores are out of order")


def _items(data: bytes, at: int, n_items: int) -> np.ndarray:
    """Return the scores from a place on to the end."""
    if len(data) != at + 8 * n_items:
        raise ValueError("it is cut, or longer than its scores")
    return np.frombuffer(data, "<f8", offset=at)


def _capacity(n_levels: int) -> int:
    """Return how many scores the library makes room for: two thirds as many in each lower level."""
    return sum(max(M, ((2 * K << depth) // 3**depth + 1) >> 1) for depth in range(n_levels))
