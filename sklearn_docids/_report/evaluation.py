# SPDX-License-Identifier: BSD-3-Clause
"""The page of an evaluation: what was tested, how well attacks are found, and the most abnormal flow of each."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sklearn_docids._report.page import flows_of
from sklearn_docids._report.render import counted, moment, percent, write
from sklearn_docids._text import printable
from sklearn_docids.capture.counting import described, most_frequent, summed
from sklearn_docids.evaluation import ALL, MACRO, MAX_FPRS, Evaluation, Scored

if TYPE_CHECKING:
    from sklearn_docids._alarms.alarm import FlaggedFlow
    from sklearn_docids.capture.table import FlowTable

TITLES = {
    "roc_auc": ("ROC-AUC", "0.5 is guessing."),
    "average_precision": ("Average precision", "Guessing reaches the share of attacks."),
    "recall_at_fpr_0_01": ("Recall at 1 % false alarms", "Share of the attack that is found."),
    "recall_at_fpr_0_001": ("Recall at 0.1 % false alarms", "Share of the attack that is found."),
}
AT_THRESHOLD = (
    ("n_attack", "of the attack"), ("true_positives", "found"), ("false_negatives", "missed"), ("tpr", "recall"),
    ("n_normal", "normal"), ("false_positives", "false alarms"), ("true_negatives", "without alarm"),
    ("fpr", "false-alarm rate"), ("precision", "precision"),
)  # fmt: skip
# Of one picture, in inches: at phone width its letters can still be read.
PICTURE_SIZE = (5.6, 4.2)
MOST_NAMED = 3


class TestedSet(NamedTuple):
    """Flows that were tested with."""

    name: str
    captures: str
    period: str
    n_flows: int
    read: str


class Measure(NamedTuple):
    """A measure of all attacks by all detectors, or why there is none."""

    title: str
    explanation: str
    lines: list[tuple[str, list[str]]]  # by attack: a cell per detector


class Picture(NamedTuple):
    """A picture, and what it shows in words."""

    data: str  # PNG, base64
    text: str
    caption: str


class Level(NamedTuple):
    """All that was found at a level."""

    name: str  # "flow", "channel", "host"
    detectors: list[str]
    sentence: str
    measures: list[Measure]
    thresholds: list[tuple[str, list[tuple[str, list[str]]]]]  # by detector: lines by attack
    no_threshold: list[str]  # reasons
    pictures: list[Picture]


def write_report(
    path: str | os.PathLike[str],
    found: Mapping[str, Evaluation],
    detector: Any,
    *,
    model: str,
    sets: Mapping[str, FlowTable],
    note: str = "",
    explained: Mapping[str, FlaggedFlow],
    command: str = "",
) -> None:
    """Write the page.

    ``found`` has an evaluation per level, ``detector`` is the first of those evaluated, and ``model`` its file;
    ``sets`` are the flows of each set that was tested with, ``note`` says how they were scored, ``explained`` has a
    flow of each attack.
    """
    levels = [_level(name, evaluation) for name, evaluation in found.items()]
    sections = {
        "summary": "Summary",
        "tested": "What was tested",
        **{level.name: f"By {level.name}" for level in levels},
        "explained": "The most abnormal flow of each attack, and why",
    }
    attacks = _names(next(iter(found.values())), "attack")
    n_attacks = len([name for name in attacks if name not in (ALL, MACRO)])
    write(
        path,
        "evaluation.html",
        title=printable(f"Evaluation of {os.path.basename(model)}: {counted(n_attacks, 'attack')}, " + _captures(sets)),
        sections=sections,
        model=model,
        detector=detector,
        views=getattr(detector, "view_names_", []),
        note=note,
        tested=[_tested(name, flows) for name, flows in sets.items()],
        levels=levels,
        at_threshold=[title for _, title in AT_THRESHOLD],
        explained=list(zip(explained, flows_of(list(explained.values()), detector), strict=True)),
        command=command,
    )


def _captures(sets: Mapping[str, FlowTable]) -> str:
    """Return what captures there are and when they were made, in a line."""
    n_captures = sum(len(flows.captures) for flows in sets.values())
    return f"{counted(n_captures, 'capture')} of {_period(list(sets.values()))}"


def _period(tables: list[FlowTable]) -> str:
    first = moment(min(int(flows.time_first.min()) for flows in tables))
    last = moment(max(int(flows.time_last.max()) for flows in tables))
    day = first[: len("2026-11-24")]
    return f"{first} to {last.removeprefix(f'{day} ')} UTC"


def _tested(name: str, flows: FlowTable) -> TestedSet:
    more = f" and {len(flows.captures) - MOST_NAMED} more" if len(flows.captures) > MOST_NAMED else ""
    captures = ", ".join(flows.captures[:MOST_NAMED]) + more
    kinds = most_frequent(flows.ignored)
    read = described(summed(flows.counters)) + (f"; of the ignored: {kinds}" if kinds else "")
    return TestedSet(name, captures, _period([flows]), len(flows), read)


def _names(evaluation: Evaluation, key: str) -> list[str]:
    """Return the names of detectors or attacks, in their order."""
    return list(dict.fromkeys(row[key] for row in evaluation.rows))


def _level(name: str, evaluation: Evaluation) -> Level:
    detectors = _names(evaluation, "detector")
    return Level(
        name,
        detectors,
        _sentence(name, evaluation),
        [_measure(evaluation, measure, f"{name}s") for measure in TITLES],
        [(detector, _at_threshold(evaluation, detector)) for detector in detectors],
        evaluation.no_threshold_reasons(),
        list(_pictures(name, evaluation)),
    )


def _sentence(level: str, evaluation: Evaluation) -> str:
    """Return how good the first detector is, in words."""
    rows = _of_first_seed(evaluation, evaluation.rows[0]["detector"])
    (mean,) = [row for row in rows if row["attack"] == MACRO]
    single = [row for row in rows if row["attack"] not in (ALL, MACRO)]
    text = f"By {level}, the ROC-AUC is {mean['roc_auc']:.3f} in the mean over attacks"
    if np.isnan(mean["tpr"]):
        return f"{text}; there is no threshold"
    least = min(single, key=lambda row: row["tpr"])
    return (
        f"{text}. At the threshold, {percent(mean['tpr'])} of an attack's {level}s are found in the mean, least of "
        f"{least['attack']} ({percent(least['tpr'])}), with {percent(mean['fpr'])} false alarms among "
        f"{counted(int(mean['n_normal']), f'normal {level}')}"
    )


def _of_first_seed(evaluation: Evaluation, detector: str) -> list[dict[str, Any]]:
    rows = [row for row in evaluation.rows if row["detector"] == detector]
    return [row for row in rows if row["seed"] == rows[0]["seed"]]


def _measure(evaluation: Evaluation, measure: str, things: str) -> Measure:
    title, explanation = TITLES[measure]
    detectors, attacks = (_names(evaluation, key) for key in ("detector", "attack"))
    lines = [(attack, [_cell(evaluation, name, attack, measure) for name in detectors]) for attack in attacks]
    if all(cell == "-" for _, cells in lines for cell in cells):
        n_normal, needed = int(evaluation.rows[0]["n_normal"]), round(1 / MAX_FPRS[measure])
        return Measure(
            title, f"Not enough normal {things}: it takes {needed:,} of them, and there are {n_normal:,}.", []
        )
    return Measure(title, explanation, lines)


def _cell(evaluation: Evaluation, detector: str, attack: str, measure: str) -> str:
    """Return a value with its interval, if that is more than the value itself."""
    rows = [row for row in evaluation.rows if (row["detector"], row["attack"]) == (detector, attack)]
    values = np.array([row[measure] for row in rows], dtype=float)
    if np.isnan(values).any():
        return "-"
    low, high = values.min(), values.max()
    if len(rows) == 1:
        low, high = rows[0][f"{measure}_low"], rows[0][f"{measure}_high"]
    mean, low, high = (f"{value:.3f}" for value in (values.mean(), low, high))
    return mean if low == "nan" or low == high == mean else f"{mean} ({low}-{high})"


def _at_threshold(evaluation: Evaluation, detector: str) -> list[tuple[str, list[str]]]:
    """Return the confusion matrix of each attack, of the first seed; nothing where there is no threshold."""
    rows = [row for row in _of_first_seed(evaluation, detector) if row["attack"] != MACRO]
    if all(np.isnan(row["tpr"]) for row in rows):
        return []
    return [(row["attack"], [_number(row[key]) for key, _ in AT_THRESHOLD]) for row in rows]


def _number(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def _pictures(level: str, evaluation: Evaluation) -> Iterator[Picture]:
    """Draw curves of all detectors and scores by attack, of the first seed of each."""
    first: dict[str, Scored] = {}
    for (name, *_), scored in evaluation.scored.items():
        first.setdefault(name, scored)
    for measure, (kind, draw) in CURVES.items():
        areas = ", ".join(f"{name} {_cell(evaluation, name, ALL, measure)}" for name in first)
        caption = f"{kind}: all attacks among the normal {level}s, however many {level}s each has"
        yield _picture(partial(draw, first), caption, f"{TITLES[measure][0]}: {areas}.")
    for name, scored in first.items():
        line = _threshold_words(scored, level)
        medians = [f"{attack} {np.median(-scores):.3g}" for attack, scores in _by_class(scored).items()]
        of_medians = f"Medians of abnormality: {', '.join(medians)}."
        yield _picture(
            partial(_draw_scores, scored, level), f"{name}: scores of normal {level}s and attacks; {line}", of_medians
        )
        caption = f"{name}: abnormality by attack, as boxes from the first to the third quartile; {line}"
        yield _picture(partial(_draw_classes, scored), caption, of_medians)


def _picture(draw: Callable[[Any], None], caption: str, numbers: str) -> Picture:
    from matplotlib.figure import Figure

    figure = Figure(figsize=PICTURE_SIZE, layout="constrained")
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Picture(base64.b64encode(buffer.getvalue()).decode(), f"{caption}. {numbers}", caption)


def _by_class(scored: Scored) -> dict[str, np.ndarray]:
    return {"normal": scored.normal, **{attack: scored.attacks[attack] for attack in sorted(scored.attacks)}}


def _labelled(scored: Scored) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores, normal ones first."""
    scores = np.concatenate(list(_by_class(scored).values()))
    return np.repeat([1, -1], [len(scored.normal), len(scores) - len(scored.normal)]), scores


def _draw_roc(first: Mapping[str, Scored], figure: Any) -> None:
    from sklearn_docids.plotting import RocDisplay

    ax = figure.subplots()
    for name, scored in first.items():
        RocDisplay.from_predictions(*_labelled(scored), name=name, ax=ax)
    ax.legend(loc="lower right", fontsize="small")


def _draw_precision(first: Mapping[str, Scored], figure: Any) -> None:
    from sklearn_docids.plotting import PrecisionRecallDisplay

    ax = figure.subplots()
    for name, scored in first.items():
        guessing: Any = {
            "plot_chance_level": scored is next(iter(first.values())),
            "chance_level_kw": {"linestyle": ":"},
        }
        PrecisionRecallDisplay.from_predictions(*_labelled(scored), name=name, ax=ax, **guessing)
    ax.legend(loc="lower left", fontsize="small")


CURVES = {"roc_auc": ("ROC", _draw_roc), "average_precision": ("Precision and recall", _draw_precision)}


def _draw_scores(scored: Scored, level: str, figure: Any) -> None:
    from sklearn_docids.plotting import ScoreHistogramDisplay

    ax = figure.subplots()
    ScoreHistogramDisplay.from_predictions(*_labelled(scored), threshold=_threshold(scored), ax=ax)
    ax.set_ylabel(f"share of {level}s")


def _draw_classes(scored: Scored, figure: Any) -> None:
    from sklearn_docids.plotting import ScoreByClassDisplay

    groups = _by_class(scored)
    figure.set_size_inches(PICTURE_SIZE[0], max(PICTURE_SIZE[1], 0.3 * len(groups) + 1.2))
    classes = np.repeat(["", *list(groups)[1:]], [len(scores) for scores in groups.values()])
    ScoreByClassDisplay.from_predictions(
        classes, np.concatenate(list(groups.values())), threshold=_threshold(scored), ax=figure.subplots()
    )


def _threshold_words(scored: Scored, level: str) -> str:
    if scored.flagged_normal is None:
        return "there is no threshold"
    if _threshold(scored) is None:
        return f"the threshold is beyond all of them, as either no {level} is flagged or every one"
    return "the line is the threshold"


def _threshold(scored: Scored) -> float | None:
    """Return a score between those flagged and the others: where in between, makes no difference to any of them."""
    if scored.flagged_normal is None or scored.flagged_attacks is None:
        return None
    attacks = sorted(scored.attacks)
    flagged = np.concatenate([scored.flagged_normal, *(scored.flagged_attacks[attack] for attack in attacks)])
    scores = np.concatenate([scored.normal, *(scored.attacks[attack] for attack in attacks)])
    return None if flagged.all() or not flagged.any() else float(scores[flagged].max() + scores[~flagged].min()) / 2
