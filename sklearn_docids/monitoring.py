# SPDX-License-Identifier: BSD-3-Clause
"""Does today's traffic still look like what the threshold was calibrated with? A test that may look after each flow."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import repeat
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params

from sklearn_docids._score_sketch import ScoreSketch
from sklearn_docids._thinning import Recent, Thinner

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

__all__ = ["DriftMonitor", "ScoreSketch"]

# Bets that a share b of the p-values is at most a. Each b is so far above its a that traffic has to change a good deal:
# at a = 0.05, a bet gains from 15 % on, where 5 % are normal.
BETS = tuple((a, b) for a in (0.01, 0.05, 0.2) for b in (0.3, 0.6, 0.9))
LEVELS = np.array([a for a, _ in BETS])
GAINS = np.array([math.log(b / a) for a, b in BETS])
LOSSES = np.array([math.log((1 - b) / (1 - a)) for a, b in BETS])
# What flows are called unusual by.
UNUSUAL = 0.05
# Beyond so many scores a p-value is exact enough, and memory and time are bounded.
MAX_SCORES = 100_000
MAX_SOURCES = 10_000
# With fewer scores to compare with, even very strange flows hardly show.
FEW_SCORES = 20


class DriftMonitor:
    """A test of whether normal flows still score as those of the calibration did.

    The threshold of a detector holds its rate of false alarms as long as normal flows are like those that set it. The
    monitor compares the scores of new flows with theirs, and says so when many more are unusual than were then: another
    site, a changed network, or another way of capturing. More normal flows are no drift. It may be asked after each
    flow: the probability that it ever says so without a change is at most ``rate`` [1]_.

    Guide: :doc:`/how-to/still-fits`.

    Parameters
    ----------
    calibration_scores : array-like of shape (n_scores,)
        Scores of normal flows, ``detector.thinned_scores_``. With ``detector.calibration_scores_`` give `update` scores
        alone, of flows that are independent of each other.
    rate : float, default=0.01
        Probability of ever saying drift where there is none, in (0, 1): with a monitor per week, at most one of 100
        quiet weeks is called drift.
    random_state : int, RandomState instance or None, default=None
        Source of the ranks of equal scores.

    Attributes
    ----------
    drifted_ : bool
        Whether there is drift. Once True, it stays so.
    log_martingale : float
        Natural logarithm of the evidence for drift; it reaches ``log(1 / rate)`` at drift.
    n_flows : int
        Flows that `update` was given.
    n_compared : int
        Those whose scores were compared.
    n_unusual : int
        Those of them that score as the lowest 5 % did until then. Without drift it is a twentieth or less.

    See Also
    --------
    sklearn_docids.MultiViewDetector.calibrate : Sets a threshold for changed traffic.

    Notes
    -----
    Each score has a p-value: its rank among those of the calibration and of all flows before, equal ones in random
    order. If all are exchangeable, these are independent and uniform, however few the calibration had. The evidence is
    the capital of a gambler who bets on low p-values, by nine step functions, beginning at an unknown flow: a mixture
    over all beginnings n of products of bets, of weight 1 / ((n + 1)(n + 2)). Ville's inequality bounds the probability
    that it ever reaches 1 / rate.

    Flows of one channel (source, destination, service) within a minute are alike, and not exchangeable with others: of
    them one is compared. The calibration has to be thinned in the same way, and ``thinned_scores_`` is. One source can
    raise the evidence once a minute and lower it any time, so that one host that attacks, or is attacked by, many is no
    drift. That leaves the bound as it is. An attack that lasts, in a network with fewer than about ten channels a
    minute, is drift to the monitor: `describe` names the source.

    To 100,000 scores no more are added, so that memory is bounded. From then on p-values are uniform up to the error of
    so many, about 0.03 % at 1 %, where no bet gains by fewer than 9 %.

    A model that was calibrated in another network than it was fitted in finds most of any network unusual, and hardly
    tells a third one from the second.

    References
    ----------
    .. [1] Vovk, V., A. Gammerman and G. Shafer, "Algorithmic Learning in a Random World", 2nd ed., 2022, chapters 8, 9.
    .. [2] Vovk, V., I. Petej, I. Nouretdinov, E. Ahlberg, L. Carlsson and A. Gammerman, "Retrain or not retrain:
       conformal test martingales for change-point detection", COPA 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.monitoring import DriftMonitor
    >>> rng = np.random.default_rng(0)
    >>> monitor = DriftMonitor(-rng.exponential(size=500), random_state=0)
    >>> monitor.update(-rng.exponential(size=1000))
    >>> monitor.drifted_
    False
    >>> monitor.update(-10 - rng.exponential(size=20))
    >>> monitor.drifted_
    True
    """

    @validate_params(
        {
            "calibration_scores": ["array-like"],
            "rate": [Interval(Real, 0, 1, closed="neither")],
            "random_state": ["random_state"],
        },
        prefer_skip_nested_validation=True,
    )
    def __init__(
        self,
        calibration_scores: np.ndarray,
        *,
        rate: float = 0.01,
        random_state: int | np.random.RandomState | None = None,
    ):
        scores = _checked(calibration_scores, "calibration_scores")
        if not len(scores):
            raise ValueError("calibration_scores is empty: there is nothing to compare with")
        self.rate = rate
        self.n_flows = self.n_compared = self.n_unusual = 0
        self.log_martingale = 0.0
        self.drifted_ = False
        self._n_calibration = len(scores)
        self._n_at_drift = 0
        self._rng = check_random_state(random_state)
        self._ranked = np.sort(scores).tolist()
        # Capital that is not bet yet, and that of each bet, as logarithms.
        self._waiting, self._capital = 0.0, np.full(len(BETS), -np.inf)
        self._thinner = Thinner()
        self._gained = Recent()
        self._unusual_of: dict[str, int] = {}

    def update(self, scores: np.ndarray, flows: FlowTable | None = None) -> None:
        """Take the scores of more flows, in order of time.

        Parameters
        ----------
        scores : array-like of shape (n_flows,)
            Their scores, by the detector of the calibration. Leave out what is known to be abnormal and has been dealt
            with, such as flows that an allow-list hides.
        flows : FlowTable of n_flows flows, or None, default=None
            The flows, in any order. None: each score counts.

        Raises
        ------
        ValueError
            The scores are not one finite number per flow.
        """
        scores = _checked(scores, "scores")
        if flows is not None and len(flows) != len(scores):
            raise ValueError(f"there are {len(scores)} scores of {len(flows)} flows")
        self.n_flows += len(scores)
        if flows is None:
            self._compare(zip(scores.tolist(), repeat(None), repeat(0), repeat("")))
            return
        order = np.argsort(flows.time_first, kind="stable")
        chosen = order[self._thinner.chosen(flows[order])]
        some = flows[chosen]
        self._compare(
            zip(
                scores[chosen].tolist(),
                self._thinner.sources(some),
                some.time_first.tolist(),
                some.src_ip.tolist(),
                strict=True,
            )
        )

    def _compare(self, compared: Iterable[tuple[float, int | None, int, str]]) -> None:
        for score, source, time, address in compared:
            p_value = self._p_value(score)
            if p_value <= UNUSUAL:
                self._count_unusual(address)
            may_gain = source is None or not self._gained.has(source, time)
            if source is not None and may_gain and p_value <= LEVELS[-1]:
                self._gained.add(source, time)
            self._bet(p_value, may_gain)

    def _p_value(self, score: float) -> float:
        """Return the smoothed rank of a score among those before it, which it joins."""
        lower, upper = bisect_left(self._ranked, score), bisect_right(self._ranked, score)
        p_value = (lower + self._rng.random_sample() * (upper - lower + 1)) / (len(self._ranked) + 1)
        if len(self._ranked) < MAX_SCORES:
            self._ranked.insert(upper, score)
        return p_value

    def _bet(self, p_value: float, may_gain: bool) -> None:
        """Stake some of what waits on each bet, and let all bets gain or lose."""
        self.n_compared += 1
        stake = 1 / (self.n_compared + 1)
        staked = self._waiting + math.log(stake / len(BETS))
        self._waiting += math.log1p(-stake)
        gains = np.where(p_value <= LEVELS, GAINS, LOSSES)
        # A bet that pays less than it might is a bet with money to lose: the bound holds all the more.
        self._capital = np.logaddexp(self._capital, staked) + (gains if may_gain else np.minimum(gains, 0.0))
        self.log_martingale = float(np.logaddexp.reduce(self._capital, initial=self._waiting))
        if not self.drifted_ and self.log_martingale >= -math.log(self.rate):
            self.drifted_ = True
            self._n_at_drift = self.n_compared

    def _count_unusual(self, address: str) -> None:
        self.n_unusual += 1
        if address and (address in self._unusual_of or len(self._unusual_of) < MAX_SOURCES):
            self._unusual_of[address] = self._unusual_of.get(address, 0) + 1

    def describe(self) -> str:
        """Return in one sentence or some what was found, and what to do about it.

        Returns
        -------
        str
            Text without line breaks.
        """
        if not self.n_compared:
            return "Drift: no flow was compared with the calibration yet."
        found = (
            f"{self.n_unusual} of {self.n_compared} compared flows ({self.n_unusual / self.n_compared:.0%}) score as "
            f"the lowest {UNUSUAL:.0%} of normal ones did"
        )
        if not self.drifted_:
            return f"No drift: {found}{self._doubt()}."
        return (
            f"Drift: this traffic is not like that of the calibration: {found}{self._most_of()}. {self._n_at_drift} "
            f"flows were enough to tell; without a change, this is said in {self.rate:.2g} of all runs at most. The "
            "threshold does not hold its rate of false alarms here. If the traffic is normal, calibrate with it "
            "(docids calibrate) where the network has changed a little; fit anew where it is another one or much has "
            "changed."
        )

    def _doubt(self) -> str:
        if self._n_calibration >= FEW_SCORES:
            return ""
        return f", but the calibration has only {self._n_calibration} flows to compare with: a change hardly shows"

    def _most_of(self) -> str:
        """Name the source of half of the unusual flows, if there is one: it may be all that has changed."""
        if not self._unusual_of:
            return ""
        address, n_flows = max(self._unusual_of.items(), key=lambda pair: pair[1])
        return f", {n_flows} of them from {address}: look at it first" if 2 * n_flows > self.n_unusual else ""


def _checked(scores: np.ndarray, name: str) -> np.ndarray:
    found = np.asarray(scores, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite numbers of shape (n,), got shape {found.shape}")
    return found
