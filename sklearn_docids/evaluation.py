# SPDX-License-Identifier: BSD-3-Clause
"""How well detectors find attacks: one tidy table, with intervals, per attack and at three levels.

Attacks are never pooled silently: each has its line, and the mean over attacks gives each the same weight, however many
flows it has.
"""

from __future__ import annotations

import csv
import inspect
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import assert_all_finite

from sklearn_docids._meta import seeded_clone
from sklearn_docids.aggregation import LEVELS, FlowAggregator
from sklearn_docids.capture.table import FlowTable, join
from sklearn_docids.metrics import alarm_counts

if TYPE_CHECKING:
    from sklearn_docids.aggregation import FlowGroup

ALL, MACRO = "all attacks", "mean over attacks"
MEASURES = ("roc_auc", "average_precision", "recall_at_1e-2", "recall_at_1e-3")
MAX_FPRS = (1e-2, 1e-3)
COUNTS = ("true_positives", "false_positives", "true_negatives", "false_negatives")
COLUMNS = (
    "detector", "seed", "level", "attack", "n_attack", "n_normal", "prevalence",
    *(name + end for name in MEASURES for end in ("", "_low", "_high")),
    *COUNTS, "tpr", "fpr", "precision", "fit_seconds",
)  # fmt: skip
CONFIDENCE = 0.95


class Scored(NamedTuple):
    """Scores of one fit: of normal flows (channels, hosts), of those of each attack, and the threshold."""

    normal: np.ndarray
    attacks: dict[str, np.ndarray]
    flagged_normal: np.ndarray  # of bool
    flagged_attacks: dict[str, np.ndarray]
    fit_seconds: float


class Evaluation:
    """What `evaluate` found.

    Attributes
    ----------
    rows : list of dict
        One line per detector, seed and attack, with the keys ``detector``, ``seed``, ``level``, ``attack``,
        ``n_attack``, ``n_normal``, ``prevalence`` (share of attacks: the average precision of guessing), ``roc_auc``,
        ``average_precision``, ``recall_at_1e-2`` and ``recall_at_1e-3`` (recall at these false-alarm rates; NaN where
        there are too few normal flows for the rate to mean one of them), each of these four with ``_low`` and ``_high``
        for its 95 % bootstrap interval, the confusion matrix at the threshold (``true_positives`` and so on), ``tpr``,
        ``fpr`` and ``precision`` (paper, equations 4 to 6), ``fit_seconds`` of processor time. The attacks
        ``"all attacks"`` (pooled) and ``"mean over attacks"`` stand beside the single ones.
    scored : dict
        By (detector, seed): the scores all this was computed from.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids.evaluation import Evaluation, Scored
    >>> found = Evaluation()
    >>> normal, scan = np.array([-1.0, -2.0]), np.array([-3.0, -1.5])
    >>> found.add("mine", 0, Scored(normal, {"scan": scan}, normal < -2.5, {"scan": scan < -2.5}, 0.0))
    >>> print(found.table("roc_auc"))
    | attack            | number | share | mine  |
    | ----------------- | ------ | ----- | ----- |
    | mean over attacks |        | 0.500 | 0.750 |
    | all attacks       | 2      | 0.500 | 0.750 |
    | scan              | 2      | 0.500 | 0.750 |
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.scored: dict[tuple[str, Any], Scored] = {}
        self._resampled: dict[tuple[str, Any, str], np.ndarray] = {}

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
        ValueError
            A score is not finite.
        """
        kinds = sorted(scored.attacks)
        for name, scores in {"normal traffic": scored.normal, **scored.attacks}.items():
            assert_all_finite(scores, input_name=f"scores of {detector!r} for {name!r}")
        self.scored[detector, seed] = scored
        pooled = np.concatenate([scored.attacks[kind] for kind in kinds])
        of_attacks = {ALL: pooled, **{kind: scored.attacks[kind] for kind in kinds}}
        values = {
            attack: _measured(scored.normal, scores, n_resamples, place)
            for place, (attack, scores) in enumerate(of_attacks.items())
        }
        values[MACRO] = np.mean([values[kind] for kind in kinds], axis=0)
        for attack in (MACRO, ALL, *kinds):
            self._resampled[detector, seed, attack] = values[attack][1:]
            line = {"detector": detector, "seed": seed, "level": level, "attack": attack}
            line.update(self._counted(scored, attack, kinds))
            for number, name in enumerate(MEASURES):
                line[name] = float(values[attack][0, number])
                low, high = _interval(values[attack][1:, number])
                line[f"{name}_low"], line[f"{name}_high"] = low, high
            self.rows.append({column: line[column] for column in COLUMNS})

    @staticmethod
    def _counted(scored: Scored, attack: str, kinds: list[str]) -> dict[str, Any]:
        """Return numbers of flows and what the threshold makes of them."""
        if attack == MACRO:
            of_kinds = [Evaluation._counted(scored, kind, kinds) for kind in kinds]
            means = {name: float(np.mean([line[name] for line in of_kinds])) for name in of_kinds[0]}
            return {**means, "n_attack": np.nan, **dict.fromkeys(COUNTS, np.nan)}
        chosen = kinds if attack == ALL else [attack]
        flagged = np.concatenate([scored.flagged_attacks[kind] for kind in chosen])
        n_normal, n_attack = len(scored.normal), len(flagged)
        counts = alarm_counts(
            np.repeat([1, -1], [n_normal, n_attack]), np.where(np.r_[scored.flagged_normal, flagged], -1, 1)
        )
        return {
            "n_attack": n_attack, "n_normal": n_normal, "prevalence": n_attack / (n_attack + n_normal),
            **counts._asdict(), "tpr": counts.tpr, "fpr": counts.fpr, "precision": counts.precision,
            "fit_seconds": scored.fit_seconds,
        }  # fmt: skip

    def difference(
        self, first: str, second: str, *, measure: str = "roc_auc", attack: str = MACRO
    ) -> tuple[float, float, float]:
        """Return by how much one detector is better than another, with a 95 % interval.

        Seeds and flows are drawn anew at once: the same flows for both detectors, since both were tested on them.

        Parameters
        ----------
        first, second : str
            Names of the detectors.
        measure : str, default="roc_auc"
            One of ``roc_auc``, ``average_precision``, ``recall_at_1e-2``, ``recall_at_1e-3``.
        attack : str, default="mean over attacks"
            Which line to compare.

        Returns
        -------
        mean, low, high : float
            Mean over the seeds, and bounds of the interval.

        Raises
        ------
        ValueError
            A detector, measure or attack is unknown, the detectors have other seeds, or there are no resamples.
        """
        known = {"detector": {name for name, _ in self.scored}, "measure": MEASURES, "attack": self._attacks()}
        for what, value in (("detector", first), ("detector", second), ("measure", measure), ("attack", attack)):
            if value not in known[what]:
                raise ValueError(f"unknown {what} {value!r}: there are {', '.join(map(repr, sorted(known[what])))}")
        column = MEASURES.index(measure)
        seeds = [seed for name, seed in self.scored if name == first]
        if sorted(map(str, seeds)) != sorted(str(seed) for name, seed in self.scored if name == second):
            raise ValueError(f"{first!r} and {second!r} were not fitted with the same seeds")
        drawn = [
            self._resampled[first, seed, attack][:, column] - self._resampled[second, seed, attack][:, column]
            for seed in seeds
        ]
        if not len(drawn[0]):
            raise ValueError("there are no resamples: evaluate with n_resamples > 0")
        chosen = np.random.default_rng(0).integers(len(seeds), size=(len(drawn[0]), len(seeds)))
        means = np.take_along_axis(np.array(drawn).T, chosen, axis=1).mean(axis=1)
        measured = {name: np.mean(self.values(name, measure, attack)) for name in (first, second)}
        return float(measured[first] - measured[second]), *_interval(means)

    def _attacks(self) -> list[str]:
        return list(dict.fromkeys(row["attack"] for row in self.rows))

    def values(self, detector: str, measure: str, attack: str = MACRO) -> np.ndarray:
        """Return a measure of a detector, one number per seed.

        Parameters
        ----------
        detector : str
            Name of the detector.
        measure : str
            Name of a column.
        attack : str, default="mean over attacks"
            Which line.

        Returns
        -------
        ndarray of float64, shape (n_seeds,)
            The numbers.
        """
        lines = [row for row in self.rows if row["detector"] == detector and row["attack"] == attack]
        return np.array([row[measure] for row in lines], dtype=np.float64)

    def table(self, measure: str = "roc_auc") -> str:
        """Return a measure as a Markdown table: attacks in lines, detectors in columns.

        Parameters
        ----------
        measure : str, default="roc_auc"
            Name of a column.

        Returns
        -------
        str
            Mean over seeds, and the lowest and highest of them where there are several.
        """
        names = list(dict.fromkeys(row["detector"] for row in self.rows))
        attacks = self._attacks()
        shares = {row["attack"]: row["prevalence"] for row in self.rows}
        counts = {row["attack"]: row["n_attack"] for row in self.rows}
        lines = [["attack", "number", "share", *map(_in_cell, names)]]
        for attack in attacks:
            number = "" if np.isnan(counts[attack]) else str(counts[attack])
            cells = [_spread(self.values(name, measure, attack)) for name in names]
            lines.append([_in_cell(attack), number, f"{shares[attack]:.3f}", *cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join(
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        )

    def __str__(self) -> str:
        """Return the tables of all measures, and of what the threshold does."""
        titles = {
            "roc_auc": "ROC-AUC",
            "average_precision": "average precision (share: that of guessing)",
            "recall_at_1e-2": "recall at 1 % false alarms",
            "recall_at_1e-3": "recall at 0.1 % false alarms",
            "tpr": "recall at the threshold of the detector",
            "fpr": "false-alarm rate at that threshold",
            "precision": "precision at that threshold",
        }
        return "\n\n".join(f"{title}\n\n{self.table(measure)}" for measure, title in titles.items())

    def to_pandas(self) -> Any:
        """Return the rows as a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            One line per detector, seed and attack.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        import pandas

        return pandas.DataFrame(self.rows, columns=list(COLUMNS))

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the rows as CSV.

        Parameters
        ----------
        path : path
            File to write.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(self.rows)


def evaluate(
    detectors: Mapping[str, Any],
    target: tuple[Any, Any],
    attacks: Mapping[str, Any],
    seeds: Sequence[int] = (0,),
    *,
    reference: Any = None,
    level: str = "flow",
    calibration: FlowTable | None = None,
    aggregator: FlowAggregator | None = None,
    n_resamples: int = 200,
) -> Evaluation:
    """Fit detectors on normal flows, score other normal flows and attacks, and measure.

    Parameters
    ----------
    detectors : mapping of str to estimator
        Detectors by name; each is cloned for each seed, which is set as every ``random_state`` in it.
    target : tuple (training, normal)
        Normal flows of the target to train on, and others to test on: arrays of flow bytes of shape (n_flows,
        n_columns), or `FlowTable`. With None to train on, the detectors are taken as they are, fitted; ``seeds`` must
        be left alone then.
    attacks : mapping of str to array-like or FlowTable
        Flows of each attack. None of them is trained on.
    seeds : sequence of int, default=(0,)
        One fit of each detector per seed; no seed twice.
    reference : ReferenceData or tuple, default=None
        Handed to those detectors whose ``fit`` takes a reference, also inside pipelines and detectors that wrap another
        one as ``estimator``.
    level : {"flow", "channel", "host"}, default="flow"
        What is an alarm: a flow, or what `FlowAggregator` makes of its flows. Above flows, a negative is a channel or
        host of the normal flows, a positive one that has flows of the attack, together with whatever normal flows it
        has.
    calibration : FlowTable, default=None
        Normal flows that are neither trained on nor tested with; levels above flows need them.
    aggregator : FlowAggregator, default=None
        Settings of the aggregation; None: the defaults, at ``level``.
    n_resamples : int, default=200
        Bootstrap resamples behind the intervals, drawn from the normal flows and from those of each attack; 0 leaves
        intervals out.

    Returns
    -------
    Evaluation
        ``rows``, one per detector, seed and attack; ``table()``, ``difference()``, ``write_csv()``, ``to_pandas()``.

    Raises
    ------
    ValueError
        There is no detector, no seed or one twice, no attack or an attack without flows, the level is unknown or lacks
        flow tables, or a score is not finite.

    Notes
    -----
    Flows of one capture depend on one another, which a bootstrap over flows does not know: intervals are rather too
    narrow.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn_docids.evaluation import evaluate
    >>> rng = np.random.default_rng(0)
    >>> normal, scan = rng.normal(size=(300, 4)), rng.normal(loc=3, size=(20, 4))
    >>> found = evaluate({"forest": IsolationForest()}, (normal[:200], normal[200:]), {"scan": scan}, seeds=[0, 1])
    >>> bool(found.values("forest", "roc_auc").min() > 0.9)
    True
    """
    _check(detectors, target, attacks, seeds, level, calibration)
    found = Evaluation()
    for seed in seeds:
        for name, detector in detectors.items():
            began = time.process_time()
            fitted = detector if target[0] is None else _fitted(detector, target[0], reference, seed)
            seconds = 0.0 if target[0] is None else time.process_time() - began
            if level == "flow":
                scored = _score_flows(fitted, target[1], attacks, seconds)
            else:
                settings = FlowAggregator() if aggregator is None else aggregator
                calibrated = clone(settings).set_params(level=level)
                calibrated.fit(calibration, fitted.score_samples(_rows(calibration)))
                scored = _score_groups(fitted, calibrated, target[1], attacks, seconds)
            found.add(name, seed, scored, level=level, n_resamples=n_resamples)
    return found


def _check(detectors: Any, target: Any, attacks: Any, seeds: Any, level: str, calibration: Any) -> None:
    if level not in ("flow", *LEVELS):
        raise ValueError(f"level must be one of {('flow', *LEVELS)}, got {level!r}")
    if not len(detectors) or not len(seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"there must be detectors, and different seeds; got {len(detectors)} and {list(seeds)}")
    if not attacks:
        raise ValueError("attacks is empty: there is nothing to find")
    reserved = {ALL, MACRO} & set(attacks)
    if reserved:
        raise ValueError(f"attacks cannot be called {sorted(reserved)}: so are lines of the table")
    empty = [name for name, flows in attacks.items() if not len(flows)]
    if empty or not len(target[1]):
        raise ValueError(f"there are no flows of {empty or 'normal traffic'} to test with")
    if target[0] is None and tuple(seeds) != (0,):
        raise ValueError("fitted detectors have the seeds they were fitted with: leave seeds alone")
    tables = (target[1], calibration, *attacks.values())
    if level != "flow" and not all(isinstance(flows, FlowTable) for flows in tables):
        raise ValueError(f"level={level!r} needs flow tables (FlowSampler.flows) of normal flows, attacks, calibration")


def _rows(flows: Any) -> Any:
    return flows.X if isinstance(flows, FlowTable) else flows


def _fitted(detector: Any, training: Any, reference: Any, seed: int) -> Any:
    """Return a clone that has seen the training flows."""
    fitted = seeded_clone(detector, seed)
    return fitted.fit(_rows(training), **_fit_params(fitted, reference))


def _fit_params(detector: Any, reference: Any) -> dict[str, Any]:
    """Return the reference under the names by which a detector, or what it is made of, takes it."""
    if reference is None or detector in (None, "passthrough"):
        return {}
    if isinstance(detector, Pipeline):
        of_steps = {name: _fit_params(step, reference) for name, step in detector.steps}
        return {f"{name}__{key}": value for name, params in of_steps.items() for key, value in params.items()}
    parameters = inspect.signature(detector.fit).parameters
    if "reference" in parameters:
        return {"reference": reference}
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return _fit_params(detector.estimator, reference) if hands_on and hasattr(detector, "estimator") else {}


def _score_flows(detector: Any, normal: Any, attacks: Mapping[str, Any], seconds: float) -> Scored:
    def of(flows: Any) -> tuple[np.ndarray, np.ndarray]:
        X = _rows(flows)
        return np.asarray(detector.score_samples(X), dtype=np.float64), np.asarray(detector.predict(X)) == -1

    of_normal, of_attacks = of(normal), {name: of(flows) for name, flows in attacks.items()}
    return Scored(
        of_normal[0],
        {name: scores for name, (scores, _) in of_attacks.items()},
        of_normal[1],
        {name: flagged for name, (_, flagged) in of_attacks.items()},
        seconds,
    )


def _score_groups(
    detector: Any, aggregator: FlowAggregator, normal: FlowTable, attacks: Mapping[str, FlowTable], seconds: float
) -> Scored:
    """Score the groups of normal flows, and for each attack those that have flows of it."""
    normal_scores = detector.score_samples(normal.X)
    negatives = _group_scores(aggregator.aggregate(normal, normal_scores))
    positives = {}
    for name, flows in attacks.items():
        scores = detector.score_samples(flows.X)
        attacked = {_key(group) for group in aggregator.aggregate(flows, scores)}
        groups = aggregator.aggregate(join(normal, flows), np.concatenate([normal_scores, scores]))
        positives[name] = _group_scores([group for group in groups if _key(group) in attacked])
    flagged = {name: scores < aggregator.offset_ for name, scores in positives.items()}
    return Scored(negatives, positives, negatives < aggregator.offset_, flagged, seconds)


def _key(group: FlowGroup) -> tuple[Any, ...]:
    return group.window, group.src_ip, group.dst_ip, group.dst_port, group.protocol


def _group_scores(groups: list[FlowGroup]) -> np.ndarray:
    """Return the scores in an order that is the same for all detectors, so that resamples are, too."""
    return np.array([group.score for group in sorted(groups, key=lambda group: list(map(str, _key(group))))])


def _measured(normal: np.ndarray, attack: np.ndarray, n_resamples: int, place: int) -> np.ndarray:
    """Return the measures of scores, and below them those of resamples: (1 + n_resamples, len(MEASURES)).

    Resamples are weights, so one sort serves them all. Flows are drawn with seeds of their own: detectors that are
    tested on the same flows are tested on the same resamples, and so are the normal flows beside each attack. An attack
    has a ``place`` among the others, and is drawn without regard to them.
    """
    scores = np.concatenate([normal, attack])
    order = np.argsort(scores, kind="stable")
    # Flows of equal scores are flagged together: thresholds lie behind the last of each.
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    of_attack = order >= len(normal)
    results = [_weighted_measures(of_attack.astype(float), (~of_attack).astype(float), ends)]
    of_normal, of_kind = np.random.default_rng([0, 0]), np.random.default_rng([1, place])
    for _ in range(n_resamples):
        weights = np.concatenate([_drawn(len(normal), of_normal), _drawn(len(attack), of_kind)])[order]
        results.append(_weighted_measures(weights * of_attack, weights * ~of_attack, ends))
    return np.array(results)


def _drawn(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each of n is drawn when n are drawn with replacement."""
    return np.bincount(rng.integers(n, size=n), minlength=n)


def _weighted_measures(attack: np.ndarray, normal: np.ndarray, ends: np.ndarray) -> list[float]:
    """Return ROC-AUC, average precision and recalls of flows in the order of their scores, by their weights."""
    tp, fp = np.cumsum(attack)[ends], np.cumsum(normal)[ends]
    n_attack, n_normal = tp[-1], fp[-1]
    tp_steps, fp_steps = np.diff(tp, prepend=0.0), np.diff(fp, prepend=0.0)
    roc_auc = np.sum(fp_steps * (tp - tp_steps / 2)) / (n_attack * n_normal)
    average_precision = np.sum(tp_steps * tp / np.maximum(tp + fp, 1)) / n_attack
    recalls = []
    for rate in MAX_FPRS:
        allowed = np.searchsorted(fp, rate * n_normal + 1e-9, side="right")
        recall = tp[allowed - 1] / n_attack if allowed else 0.0
        recalls.append(recall if rate * n_normal >= 1 else np.nan)
    return [float(roc_auc), float(average_precision), *map(float, recalls)]


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
