# SPDX-License-Identifier: BSD-3-Clause
"""How well detectors find attacks: one tidy table, with intervals, per attack and at three levels.

Attacks are never pooled silently: each has its line, and the mean over attacks gives each the same weight, however many
flows it has.
"""

from __future__ import annotations

import csv
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.pipeline import Pipeline
from sklearn.utils import assert_all_finite, check_scalar
from sklearn.utils.validation import has_fit_parameter

from sklearn_docids._incidents import LEVELS
from sklearn_docids._measures import Curve, Ranking, average_precision, recall_at_fpr, resolves, roc_auc, too_few_normal
from sklearn_docids._meta import seeded_clone, takes_tables
from sklearn_docids._shard_scores import score_shards
from sklearn_docids._text import csv_cell
from sklearn_docids._warn import missing, warn_caller
from sklearn_docids.aggregation import FlowAggregator
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.metrics import alarm_counts

if TYPE_CHECKING:
    from sklearn_docids.aggregation import FlowGroup

__all__ = ["Evaluation", "Scored", "evaluate", "fit_clone", "score_flows", "score_groups", "score_shards"]

ALL, MACRO = "all attacks", "mean over attacks"
MAX_FPRS = {"recall_at_fpr_0_01": 0.01, "recall_at_fpr_0_001": 0.001}
MEASURES: dict[str, Callable[[Curve], float]] = {
    "roc_auc": roc_auc,
    "average_precision": average_precision,
    **{name: partial(recall_at_fpr, max_fpr=max_fpr) for name, max_fpr in MAX_FPRS.items()},
}
TITLES = {
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision (share: that of guessing)",
    "recall_at_fpr_0_01": "recall at 1 % false alarms",
    "recall_at_fpr_0_001": "recall at 0.1 % false alarms",
    "tpr": "recall at the threshold of the detector",
    "fpr": "false-alarm rate at that threshold",
    "precision": "precision at that threshold",
}
COUNTS = ("true_positives", "false_positives", "true_negatives", "false_negatives")
AT_THRESHOLD = (*COUNTS, "tpr", "fpr", "precision")
COLUMNS = (
    "detector", "seed", "level", "attack", "n_attack", "n_normal", "prevalence",
    *(name + end for name in MEASURES for end in ("", "_low", "_high")),
    *AT_THRESHOLD, "no_threshold_reason", "fit_seconds",
)  # fmt: skip
CONFIDENCE = 0.95


class Scored(NamedTuple):
    """Scores of one fit, and its alarms.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    normal : ndarray of float64, shape (n_normal,)
        Scores of normal flows, channels or hosts: the lower, the more abnormal.
    attacks : dict of str to ndarray of float64
        Scores of each attack.
    flagged_normal : ndarray of bool, shape (n_normal,), or None, default=None
        Which of the normal ones are beyond the threshold; None: there is no threshold.
    flagged_attacks : dict of str to ndarray of bool, or None, default=None
        Which of each attack are.
    fit_seconds : float, default=0.0
        Processor time of the fit.
    no_threshold_reason : str, default=""
        Why there is no threshold.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.evaluation import Scored
    >>> Scored(np.array([-1.0, -2.0]), {"scan": np.array([-3.0])}).flagged_normal is None
    True
    """

    normal: np.ndarray
    attacks: dict[str, np.ndarray]
    flagged_normal: np.ndarray | None = None
    flagged_attacks: dict[str, np.ndarray] | None = None
    fit_seconds: float = 0.0
    no_threshold_reason: str = ""


class Evaluation:
    """What `evaluate` found.

    Guide: :doc:`/how-to/compare`.

    Attributes
    ----------
    rows : list of dict
        One line per detector, seed, level and attack, with the keys ``detector``, ``seed``, ``level``, ``attack``,
        ``n_attack``, ``n_normal``, ``prevalence`` (share of attacks: the average precision of guessing), ``roc_auc``,
        ``average_precision``, ``recall_at_fpr_0_01`` and ``recall_at_fpr_0_001`` (recall at false-alarm rates of 1 %
        and 0.1 %; NaN where there are too few normal flows for the rate to mean one of them), each of these four with
        ``_low`` and ``_high`` for its 95 % bootstrap interval, the confusion matrix at the threshold
        (``true_positives`` and so on), ``tpr``, ``fpr`` and ``precision`` (paper, equations 4 to 6),
        ``no_threshold_reason`` (why these seven are NaN; "" where they are not), ``fit_seconds`` of processor time. The
        attacks ``"all attacks"`` (pooled) and ``"mean over attacks"`` stand beside the single ones.
    scored : dict
        By (detector, seed, level): the `Scored` that all this was computed from.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from sklearn_docids.evaluation import Evaluation, Scored
    >>> found = Evaluation()
    >>> normal, scan = np.array([-1.0, -2.0]), np.array([-3.0, -1.5])
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # two normal flows are too few for the recalls
    ...     found.add("mine", 0, Scored(normal, {"scan": scan}, normal < -2.5, {"scan": scan < -2.5}))
    >>> print(found.table("roc_auc"))
    | attack            | number | share | mine  |
    | ----------------- | ------ | ----- | ----- |
    | mean over attacks |        | 0.500 | 0.750 |
    | all attacks       | 2      | 0.500 | 0.750 |
    | scan              | 2      | 0.500 | 0.750 |
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.scored: dict[tuple[str, Any, str], Scored] = {}
        self._resampled: dict[tuple[str, Any, str, str], np.ndarray] = {}
        self._unresolved: set[str] = set()

    @classmethod
    def joined(cls, evaluations: Iterable[Evaluation]) -> Evaluation:
        """Return one evaluation of all that others have found, such as those of several levels.

        Parameters
        ----------
        evaluations : iterable of Evaluation
            No two of them with the same detector, seed and level.

        Returns
        -------
        Evaluation
            With the rows of all, in their order.

        Raises
        ------
        ValueError
            Two have the same detector, seed and level.
        """
        together = cls()
        for evaluation in evaluations:
            for key in evaluation.scored:
                together._refuse_second(*key)
            together.rows += [dict(row) for row in evaluation.rows]
            together.scored |= evaluation.scored
            together._resampled |= evaluation._resampled
        return together

    def _refuse_second(self, detector: str, seed: Any, level: str) -> None:
        if (detector, seed, level) in self.scored:
            raise ValueError(f"there are scores of {detector!r} with seed {seed!r} at level {level!r} already")

    def add(self, detector: str, seed: Any, scored: Scored, *, level: str = "flow", n_resamples: int = 200) -> None:
        """Measure the scores of one more fit.

        Parameters
        ----------
        detector : str
            Name of the detector.
        seed : object
            Seed of the fit.
        scored : Scored
            Its scores and alarms.
        level : str, default="flow"
            What was scored.
        n_resamples : int, default=200
            Bootstrap resamples; 0 leaves intervals out.

        Raises
        ------
        TypeError
            ``n_resamples`` is not a whole number.
        ValueError
            ``n_resamples`` is negative, a score is not finite, or there are scores of this detector, seed and level
            already.

        Warns
        -----
        UndefinedMetricWarning
            The normal flows are too few for a recall, which is NaN then.
        """
        self._refuse_second(detector, seed, level)
        check_scalar(n_resamples, "n_resamples", Integral, min_val=0)
        for name, scores in {"normal traffic": scored.normal, **scored.attacks}.items():
            assert_all_finite(scores, input_name=f"scores of {detector!r} for {name!r}")
        self._warn_of_unresolved(len(scored.normal), level)
        self.scored[detector, seed, level] = scored
        kinds = sorted(scored.attacks)
        for attack, values in _measured(scored, n_resamples).items():
            self._resampled[detector, seed, level, attack] = values[1:]
            line = {"detector": detector, "seed": seed, "level": level, "attack": attack}
            line |= self._counted(scored, attack, kinds) | _with_intervals(values)
            self.rows.append({column: line[column] for column in COLUMNS})

    def _warn_of_unresolved(self, n_normal: int, level: str) -> None:
        """Warn of recalls that are NaN, once for all fits that were tested on the same flows."""
        for max_fpr in MAX_FPRS.values():
            message = too_few_normal(n_normal, max_fpr, f"{level}s")
            if not resolves(n_normal, max_fpr) and message not in self._unresolved:
                self._unresolved.add(message)
                warn_caller(message, UndefinedMetricWarning)

    @staticmethod
    def _counted(scored: Scored, attack: str, kinds: list[str]) -> dict[str, Any]:
        """Return numbers of flows and what the threshold makes of them."""
        of_fit = {"no_threshold_reason": scored.no_threshold_reason, "fit_seconds": scored.fit_seconds}
        if attack == MACRO:
            of_kinds = [Evaluation._counted(scored, kind, kinds) for kind in kinds]
            averaged = ("n_normal", "prevalence", "tpr", "fpr", "precision")
            means = {name: float(np.mean([line[name] for line in of_kinds])) for name in averaged}
            return {"n_attack": np.nan, **dict.fromkeys(COUNTS, np.nan), **means, **of_fit}
        chosen = kinds if attack == ALL else [attack]
        n_normal, n_attack = len(scored.normal), sum(len(scored.attacks[kind]) for kind in chosen)
        numbers = {"n_attack": n_attack, "n_normal": n_normal, "prevalence": n_attack / (n_attack + n_normal)}
        return {**numbers, **_at_threshold(scored, chosen), **of_fit}

    def difference(
        self, first: str, second: str, *, measure: str = "roc_auc", attack: str = MACRO, level: str | None = None
    ) -> tuple[float, float, float]:
        """Return by how much one detector is better than another, with a 95 % interval.

        Seeds and flows are drawn anew at once: the same flows for both detectors, since both were tested on them.

        Parameters
        ----------
        first, second : str
            Names of the detectors.
        measure : str, default="roc_auc"
            One of ``roc_auc``, ``average_precision``, ``recall_at_fpr_0_01``, ``recall_at_fpr_0_001``.
        attack : str, default="mean over attacks"
            Which line to compare.
        level : str, default=None
            At which level; None: the only one.

        Returns
        -------
        mean, low, high : float
            Mean over the seeds, and bounds of the interval.

        Raises
        ------
        ValueError
            A detector, measure, attack or level is unknown, the detectors have other seeds, or there are no resamples.
        """
        level = self._one_level(level)
        names = {name for name, _, of_level in self.scored if of_level == level}
        known = {"detector": names, "measure": set(MEASURES), "attack": set(self._attacks())}
        for what, value in (("detector", first), ("detector", second), ("measure", measure), ("attack", attack)):
            if value not in known[what]:
                raise ValueError(f"unknown {what} {value!r}: there are {', '.join(map(repr, sorted(known[what])))}")
        column = list(MEASURES).index(measure)
        seeds, others = (
            [seed for name, seed, of_level in self.scored if (name, of_level) == (which, level)]
            for which in (first, second)
        )
        if sorted(map(str, seeds)) != sorted(map(str, others)):
            raise ValueError(f"{first!r} and {second!r} were not fitted with the same seeds")
        drawn = [
            self._resampled[first, seed, level, attack][:, column]
            - self._resampled[second, seed, level, attack][:, column]
            for seed in seeds
        ]
        if not len(drawn[0]):
            raise ValueError("there are no resamples: evaluate with n_resamples > 0")
        chosen = np.random.default_rng(0).integers(len(seeds), size=(len(drawn[0]), len(seeds)))
        means = np.take_along_axis(np.array(drawn).T, chosen, axis=1).mean(axis=1)
        measured = {name: np.mean(self.values(name, measure, attack, level)) for name in (first, second)}
        return float(measured[first] - measured[second]), *_interval(means)

    def _attacks(self) -> list[str]:
        return list(dict.fromkeys(row["attack"] for row in self.rows))

    def _levels(self) -> list[str]:
        return list(dict.fromkeys(row["level"] for row in self.rows))

    def _one_level(self, level: str | None) -> str:
        """Return the level asked for, or the only one; refuse to choose among several."""
        levels = self._levels()
        if level is None and len(levels) == 1:
            return levels[0]
        if level not in levels:
            raise ValueError(f"level must be one of {levels}, got {level!r}")
        return level

    def values(self, detector: str, measure: str, attack: str = MACRO, level: str | None = None) -> np.ndarray:
        """Return a measure of a detector, one number per seed.

        Parameters
        ----------
        detector : str
            Name of the detector.
        measure : str
            Name of a column.
        attack : str, default="mean over attacks"
            Which line.
        level : str, default=None
            At which level; None: the only one.

        Returns
        -------
        ndarray of float64, shape (n_seeds,)
            The numbers.

        Raises
        ------
        ValueError
            The level is unknown, or None where there are several.
        """
        chosen = detector, attack, self._one_level(level)
        lines = [row for row in self.rows if (row["detector"], row["attack"], row["level"]) == chosen]
        return np.array([row[measure] for row in lines], dtype=np.float64)

    def table(self, measure: str = "roc_auc", level: str | None = None) -> str:
        """Return a measure as a Markdown table: attacks in lines, detectors in columns.

        Parameters
        ----------
        measure : str, default="roc_auc"
            Name of a column.
        level : str, default=None
            At which level; None: the only one.

        Returns
        -------
        str
            Mean over seeds, and the lowest and highest of them where there are several; a dash for NaN.

        Raises
        ------
        ValueError
            The level is unknown, or None where there are several.
        """
        level = self._one_level(level)
        rows = [row for row in self.rows if row["level"] == level]
        names = list(dict.fromkeys(row["detector"] for row in rows))
        lines = [["attack", "number", "share", *map(_in_cell, names)]]
        for attack, row in {row["attack"]: row for row in rows}.items():
            number = "" if np.isnan(row["n_attack"]) else str(row["n_attack"])
            cells = [_spread(self.values(name, measure, attack, level)) for name in names]
            lines.append([_in_cell(attack), number, f"{row['prevalence']:.3f}", *cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join(
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        )

    def __str__(self) -> str:
        """Return the tables of all measures, and of what the threshold does or why there is none; by level."""
        levels = self._levels()
        parts = []
        for level in levels:
            parts += [f"By {level}"] if len(levels) > 1 else []
            parts += [f"{title}\n\n{self.table(measure, level)}" for measure, title in TITLES.items()]
            parts += [f"No threshold: {reason}." for reason in self.no_threshold_reasons(level)]
        return "\n\n".join(parts)

    def no_threshold_reasons(self, level: str | None = None) -> list[str]:
        """Return why detectors have no threshold, and so no alarms.

        Parameters
        ----------
        level : str, default=None
            At which level; None: the only one.

        Returns
        -------
        list of str
            Each reason once; empty where every detector has a threshold.

        Raises
        ------
        ValueError
            The level is unknown, or None where there are several.
        """
        level = self._one_level(level)
        reasons = [row["no_threshold_reason"] for row in self.rows if row["level"] == level]
        return [reason for reason in dict.fromkeys(reasons) if reason]

    def to_pandas(self) -> Any:
        """Return the rows as a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            One line per detector, seed, level and attack.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise missing("to_pandas", "pandas") from None
        return pandas.DataFrame(self.rows, columns=list(COLUMNS))

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as CSV; a name that a spreadsheet would take for a formula gets an apostrophe in front.

        Parameters
        ----------
        path : path
            File to write.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            for row in self.rows:
                table.writerow(
                    {name: csv_cell(value) if isinstance(value, str) else value for name, value in row.items()}
                )


def evaluate(
    detectors: Mapping[str, Any],
    normal: Any,
    attacks: Mapping[str, Any],
    *,
    train: Any = None,
    reference: Any = None,
    seeds: Sequence[int] = (0,),
    level: str = "flow",
    calibration: FlowTable | None = None,
    aggregator: FlowAggregator | None = None,
    n_resamples: int = 200,
) -> Evaluation:
    """Score normal flows and attacks with detectors, which are fitted first if there is something to train on; measure.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    detectors : mapping of str to estimator
        Detectors by name: fitted ones, or, with ``train``, ones that are cloned and fitted for each seed.
    normal : array-like of shape (n_flows, n_columns), or FlowTable
        Normal flows to test on, which no detector was trained on. Detectors that take tables need a FlowTable, here
        and below; others are given its rows.
    attacks : mapping of str to array-like or FlowTable
        Flows of each attack. None of them is trained on.
    train : array-like of shape (n_flows, n_columns), or FlowTable, default=None
        Normal flows to train on. None: the detectors are fitted already.
    reference : ReferenceData or tuple, default=None
        Handed to those detectors whose ``fit`` takes a reference, also inside pipelines and detectors that wrap another
        one as ``estimator``; only with ``train``.
    seeds : sequence of int, default=(0,)
        With ``train``, one fit of each detector per seed, which is set as every ``random_state`` in it; no seed twice.
    level : {"flow", "channel", "host"}, default="flow"
        What is an alarm: a flow, or what `FlowAggregator` makes of its flows. Above flows, a negative is a channel or
        host of the normal flows, a positive one that has flows of the attack, together with whatever normal flows it
        has.
    calibration : FlowTable, default=None
        Normal flows that are neither trained on nor tested with; levels above flows need them.
    aggregator : FlowAggregator, default=None
        Settings of the aggregation, which is fitted for each detector; None: the defaults, at ``level``.
    n_resamples : int, default=200
        Bootstrap resamples behind the intervals, drawn from the normal flows and from those of each attack; 0 leaves
        intervals out.

    Returns
    -------
    Evaluation
        ``rows``, one per detector, seed and attack, which ``print`` shows as tables; ``table()``, ``difference()``,
        ``write_csv()``, ``to_pandas()``.

    Raises
    ------
    TypeError
        ``n_resamples`` is not a whole number.
    ValueError
        There is no detector, no seed or one twice, no attack or an attack without flows, seeds or a reference without
        ``train``; ``detectors`` or ``attacks`` is not a mapping, ``n_resamples`` is negative, the level is unknown or
        lacks flow tables, or a score is not finite.

    Warns
    -----
    UndefinedMetricWarning
        There are too few normal flows for a recall, which is NaN then.
    UserWarning
        There are too few normal channels or hosts for a threshold; what depends on it is NaN then.

    Notes
    -----
    A detector that takes tables, as `MultiViewDetector` does, scores the flows of each attack among all normal flows,
    in order of time, as what came before a flow may be part of its score. The normal flows are scored without any
    attack: what an attack does to the scores of normal flows beside it is not measured.

    Flows of one capture depend on one another, which a bootstrap over flows does not know: intervals are rather too
    narrow.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn_docids.evaluation import evaluate
    >>> rng = np.random.default_rng(0)
    >>> normal, scan = rng.normal(size=(1200, 4)), rng.normal(loc=3, size=(20, 4))
    >>> found = evaluate({"forest": IsolationForest()}, normal[200:], {"scan": scan}, train=normal[:200], seeds=[0, 1])
    >>> bool(found.values("forest", "roc_auc").min() > 0.9)
    True
    """
    _check_fits(detectors, seeds, is_fitted=train is None, has_reference=reference is not None)
    _check_flows(normal, attacks, level, calibration)
    check_scalar(n_resamples, "n_resamples", Integral, min_val=0)
    found, reasons = Evaluation(), set()
    for seed in seeds:
        for name, detector in detectors.items():
            began = time.process_time()
            fitted = detector if train is None else fit_clone(detector, train, reference=reference, seed=seed)
            seconds = 0.0 if train is None else time.process_time() - began
            if level == "flow":
                scored = score_flows(fitted, normal, attacks)
            else:
                calibrated = _calibrated(
                    FlowAggregator() if aggregator is None else aggregator, level, calibration, fitted
                )
                scored = score_groups(fitted, calibrated, normal, attacks)
                reasons.add(scored.no_threshold_reason if calibrated.false_alarm_rate is not None else "")
            found.add(name, seed, scored._replace(fit_seconds=seconds), level=level, n_resamples=n_resamples)
    for reason in reasons - {""}:
        warn_caller(f"no threshold: {reason}")
    return found


def _check_mapping(name: str, given: Any, values: str) -> None:
    if not isinstance(given, Mapping):
        raise ValueError(f"{name} must be a mapping of names to {values}, such as a dict; got {type(given).__name__}")


def _check_fits(detectors: Mapping[str, Any], seeds: Sequence[int], *, is_fitted: bool, has_reference: bool) -> None:
    _check_mapping("detectors", detectors, "detectors")
    if isinstance(seeds, Integral):
        raise ValueError(f"seeds must be a list of them, one for each fit; got {seeds}")
    if not len(detectors) or not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"there must be detectors, and different seeds; got {len(detectors)} and {list(seeds)}")
    if is_fitted and (tuple(seeds) != (0,) or has_reference):
        raise ValueError("without train, the detectors are fitted already: leave seeds and reference alone")


def _check_flows(normal: Any, attacks: Mapping[str, Any], level: str, calibration: Any) -> None:
    if level not in ("flow", *LEVELS):
        raise ValueError(f"level must be one of {('flow', *LEVELS)}, got {level!r}")
    _check_mapping("attacks", attacks, "flows")
    if not attacks:
        raise ValueError("attacks is empty: there is nothing to find")
    reserved = {ALL, MACRO} & set(attacks)
    if reserved:
        raise ValueError(f"attacks cannot be called {sorted(reserved)}: so are lines of the table")
    empty = [name for name, flows in attacks.items() if not len(flows)]
    if empty or not len(normal):
        raise ValueError(f"there are no flows of {empty or 'normal traffic'} to test with")
    tables = (normal, calibration, *attacks.values())
    if level != "flow" and not all(isinstance(flows, FlowTable) for flows in tables):
        raise ValueError(f"level={level!r} needs flow tables (FlowSampler.flows) of normal flows, attacks, calibration")


def _calibrated(settings: FlowAggregator, level: str, calibration: Any, detector: Any) -> FlowAggregator:
    """Return a fitted aggregator; what there may be to warn of is the same for every detector and seed."""
    aggregator = clone(settings).set_params(level=level)
    scores = detector.score_samples(given(detector, calibration))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no threshold", UserWarning)
        return aggregator.fit(calibration, scores)


def given(detector: Any, flows: Any) -> Any:
    """Return flows as a detector takes them: a table, or its rows."""
    return flows.X if isinstance(flows, FlowTable) and not takes_tables(detector) else flows


def _scores(detector: Any, normal: Any, flows: Any) -> np.ndarray:
    """Return scores of flows; a detector that takes tables is given the normal ones with them."""
    if not takes_tables(detector):
        return np.asarray(detector.score_samples(given(detector, flows)), dtype=np.float64)
    return np.asarray(detector.score_samples(FlowTable.concatenate([normal, flows])))[len(normal) :]


def _flagged(detector: Any, flows: Any, scores: np.ndarray) -> np.ndarray:
    if takes_tables(detector):  # what a flow is judged by is in its score, and is not there any more
        return scores < detector.offset_
    return np.asarray(detector.predict(given(detector, flows))) == -1


def fit_clone(detector: Any, train: Any, *, reference: Any = None, seed: int = 0) -> Any:
    """Return a clone of a detector, fitted as `evaluate` does.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    detector : estimator
        The detector, which stays as it is.
    train : array-like of shape (n_flows, n_columns), or FlowTable
        Normal flows.
    reference : ReferenceData or tuple, default=None
        Handed to the detector if its ``fit`` takes a reference, or to those steps of a pipeline that do.
    seed : int, default=0
        Set as every ``random_state`` in the clone.

    Returns
    -------
    estimator
        The fitted clone.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn_docids.evaluation import fit_clone
    >>> fit_clone(IsolationForest(), np.zeros((5, 3)), seed=7).random_state
    7
    """
    fitted = seeded_clone(detector, seed)
    return fitted.fit(given(fitted, train), **({} if reference is None else _fit_params(fitted, reference)))


def _fit_params(detector: Any, reference: Any) -> dict[str, Any]:
    """Return the reference under the names by which a detector, or what it is made of, takes it."""
    if isinstance(detector, Pipeline):
        of_steps = {name: _fit_params(step, reference) for name, step in detector.steps}
        return {f"{name}__{key}": value for name, params in of_steps.items() for key, value in params.items()}
    if hasattr(detector, "fit") and has_fit_parameter(detector, "reference"):
        return {"reference": reference}
    return _fit_params(detector.estimator, reference) if hasattr(detector, "estimator") else {}


def score_flows(detector: Any, normal: Any, attacks: Mapping[str, Any]) -> Scored:
    """Return the scores and alarms of a fitted detector.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    detector : estimator
        Fitted detector with ``score_samples`` and ``predict``, or, if it takes tables, ``offset_``.
    normal : array-like of shape (n_flows, n_columns), or FlowTable
        Normal flows.
    attacks : mapping of str to array-like or FlowTable
        Flows of each attack. A detector that takes tables is given the normal flows with them (see `evaluate`).

    Returns
    -------
    Scored
        Without ``fit_seconds``.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.detectors import NearestNeighborDetector
    >>> from sklearn_docids.evaluation import score_flows
    >>> detector = NearestNeighborDetector().fit([[0.0], [1.0], [3.0]])
    >>> score_flows(detector, np.array([[1.5]]), {"scan": np.array([[9.0]])}).attacks
    {'scan': array([-6.])}
    """
    of_normal = np.asarray(detector.score_samples(given(detector, normal)), dtype=np.float64)
    of_attacks = {name: _scores(detector, normal, flows) for name, flows in attacks.items()}
    return Scored(
        of_normal,
        of_attacks,
        _flagged(detector, normal, of_normal),
        {name: _flagged(detector, flows, of_attacks[name]) for name, flows in attacks.items()},
    )


def score_groups(
    detector: Any, aggregator: FlowAggregator, normal: FlowTable, attacks: Mapping[str, FlowTable]
) -> Scored:
    """Return the scores and alarms of channels or hosts: of normal flows, and of those that have flows of an attack.

    Guide: :doc:`/how-to/compare`.

    Parameters
    ----------
    detector : estimator
        Fitted detector with ``score_samples``.
    aggregator : FlowAggregator
        Aggregator fitted with the detector's scores of other normal flows.
    normal : FlowTable
        Normal flows.
    attacks : mapping of str to FlowTable
        Flows of each attack; each is looked at among all the normal flows.

    Returns
    -------
    Scored
        Without ``fit_seconds``. A positive is a channel or host that has flows of the attack, together with whatever
        normal flows it has.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler
    >>> from sklearn_docids.aggregation import FlowAggregator
    >>> from sklearn_docids.datasets import make_traffic
    >>> from sklearn_docids.detectors import StatisticDetector
    >>> from sklearn_docids.evaluation import score_groups
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flows = FlowSampler().flows(make_traffic(folder, n_flows=40, random_state=0).train)
    >>> detector = StatisticDetector("bytes").fit(flows.X)
    >>> aggregator = FlowAggregator("host", false_alarm_rate=None).fit(flows, detector.score_samples(flows.X))
    >>> score_groups(detector, aggregator, flows, {"none": flows[:5]}).no_threshold_reason
    'false_alarm_rate=None'
    """
    normal_scores = detector.score_samples(given(detector, normal))
    negatives = _group_scores(aggregator.aggregate(normal, normal_scores))
    positives = {}
    for name, flows in attacks.items():
        scores = _scores(detector, normal, flows)
        attacked = {_key(group) for group in aggregator.aggregate(flows, scores)}
        groups = aggregator.aggregate(FlowTable.concatenate([normal, flows]), np.concatenate([normal_scores, scores]))
        positives[name] = _group_scores([group for group in groups if _key(group) in attacked])
    if aggregator.false_alarm_rate_ is None:
        return Scored(negatives, positives, no_threshold_reason=aggregator.no_threshold_reason_)
    flagged = {name: scores < aggregator.offset_ for name, scores in positives.items()}
    return Scored(negatives, positives, negatives < aggregator.offset_, flagged)


def _key(group: FlowGroup) -> tuple[Any, ...]:
    return group.window, group.src_ip, group.dst_ip, group.dst_port, group.protocol


def _group_scores(groups: list[FlowGroup]) -> np.ndarray:
    """Return the scores in an order that is the same for all detectors, so that resamples are, too."""
    return np.array([group.score for group in sorted(groups, key=lambda group: list(map(str, _key(group))))])


def _at_threshold(scored: Scored, kinds: list[str]) -> dict[str, Any]:
    """Return the confusion matrix of some attacks and the rates made of it; NaN where there is no threshold."""
    if scored.flagged_normal is None or scored.flagged_attacks is None:
        return dict.fromkeys(AT_THRESHOLD, np.nan)
    flagged = np.concatenate([scored.flagged_normal, *(scored.flagged_attacks[kind] for kind in kinds)])
    n_normal = len(scored.normal)
    labels = np.repeat([1, -1], [n_normal, len(flagged) - n_normal])
    counts = alarm_counts(labels, np.where(flagged, -1, 1))
    return {**counts._asdict(), "tpr": counts.tpr, "fpr": counts.fpr, "precision": counts.precision}


def _measured(scored: Scored, n_resamples: int) -> dict[str, np.ndarray]:
    """Return for each attack, all and their mean the measures, and those of resamples below them.

    Each array has the shape (1 + n_resamples, len(MEASURES)).
    """
    kinds = sorted(scored.attacks)
    pooled = np.concatenate([scored.attacks[kind] for kind in kinds])
    of_all = _measured_once(scored.normal, pooled, n_resamples, 0)
    of_kinds = {
        kind: _measured_once(scored.normal, scored.attacks[kind], n_resamples, place)
        for place, kind in enumerate(kinds, start=1)
    }
    return {MACRO: np.mean(list(of_kinds.values()), axis=0), ALL: of_all, **of_kinds}


def _measured_once(normal: np.ndarray, attack: np.ndarray, n_resamples: int, place: int) -> np.ndarray:
    """Return the measures of one attack, and below them those of resamples.

    Flows are drawn with seeds of their own: detectors that are tested on the same flows are tested on the same
    resamples, and so are the normal flows beside each attack. An attack has a ``place`` among the others, and is drawn
    without regard to them.
    """
    is_attack = np.repeat([False, True], [len(normal), len(attack)])
    ranking = Ranking(is_attack, np.concatenate([normal, attack]))
    rng_normal, rng_attack = np.random.default_rng([0, 0]), np.random.default_rng([1, place])
    curves = [ranking.curve()]
    for _ in range(n_resamples):
        weights = np.concatenate([_drawn(len(normal), rng_normal), _drawn(len(attack), rng_attack)])
        curves.append(ranking.curve(weights))
    return np.array([[measure(curve) for measure in MEASURES.values()] for curve in curves])


def _drawn(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each of n is drawn when n are drawn with replacement."""
    return np.bincount(rng.integers(n, size=n), minlength=n)


def _with_intervals(values: np.ndarray) -> dict[str, float]:
    """Return measures by name, each with the interval of its resamples."""
    line = {}
    for number, name in enumerate(MEASURES):
        line[name] = float(values[0, number])
        line[f"{name}_low"], line[f"{name}_high"] = _interval(values[1:, number])
    return line


def _interval(values: np.ndarray) -> tuple[float, float]:
    if not len(values) or np.isnan(values).any():
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _in_cell(name: str) -> str:
    """Return a name that does not end a cell or line of a Markdown table."""
    return " ".join(name.replace("|", r"\|").splitlines())


def _spread(values: np.ndarray) -> str:
    if np.isnan(values).any():
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ({values.min():.3f}-{values.max():.3f})"
