# SPDX-License-Identifier: BSD-3-Clause
"""An evaluation as one HTML page that needs nothing beside it: tables, pictures, explained flows."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sklearn_docids.cli._text import format_p_value
from sklearn_docids.evaluation import MACRO, Evaluation

if TYPE_CHECKING:
    from sklearn_docids.cli._explaining import Explained
    from sklearn_docids.inspection import ByteReason

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
.wide { overflow-x: auto; }
"""
TITLES = {
    "roc_auc": ("ROC-AUC", "0.5 is guessing. In brackets: 95 % interval, or lowest and highest of several seeds."),
    "average_precision": ("Average precision", "Guessing reaches the share of attacks."),
    "recall_at_fpr_0_01": ("Recall at 1 % false alarms", "Attacks found. A dash: fewer than 100 normal ones."),
    "recall_at_fpr_0_001": ("Recall at 0.1 % false alarms", "Attacks found. A dash: fewer than 1,000 normal ones."),
}
AT_THRESHOLD = (
    "n_attack", "n_normal", "true_positives", "false_positives", "true_negatives", "false_negatives", "tpr", "fpr",
    "precision",
)  # fmt: skip


def write_report(
    path: str | os.PathLike[str],
    found: dict[str, Evaluation],
    *,
    title: str,
    read: Mapping[str, str],
    note: str = "",
    explained: Sequence[Explained] = (),
) -> None:
    """Write the page.

    ``found`` has an evaluation per level, ``read`` a line on the packets of each set of captures, ``note`` how flows
    were scored.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f"<p>{html.escape(note)}</p>"] if note else []
    parts += [_table(["captures", "packets"], list(read.items()))]
    for level, evaluation in found.items():
        parts += [f"<h2>By {html.escape(level)}</h2>", *_tables(evaluation), _alarms(evaluation)]
        parts += [_picture(figure) for figure in _figures(evaluation)]
    if explained:
        parts += ["<h2>The most abnormal flows, and why</h2>", *(_reasons(flow) for flow in explained)]
    page = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    page += f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    with open(path, "w", encoding="utf-8") as file:
        file.write(page)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
    rows += ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines]
    return '<div class="wide"><table>' + "".join(f"<tr>{row}</tr>" for row in rows) + "</table></div>"


def _names(evaluation: Evaluation) -> tuple[list[str], list[str]]:
    """Return the names of detectors and of attacks, in their order."""
    detectors = dict.fromkeys(row["detector"] for row in evaluation.rows)
    return list(detectors), list(dict.fromkeys(row["attack"] for row in evaluation.rows))


def _tables(evaluation: Evaluation) -> list[str]:
    detectors, attacks = _names(evaluation)
    parts = []
    for measure, (title, explanation) in TITLES.items():
        lines = [[attack, *(_cell(evaluation, name, attack, measure) for name in detectors)] for attack in attacks]
        parts += [f"<h3>{title}</h3><p>{explanation}</p>", _table(["attack", *detectors], lines)]
    return parts


def _cell(evaluation: Evaluation, detector: str, attack: str, measure: str) -> str:
    rows = [row for row in evaluation.rows if (row["detector"], row["attack"]) == (detector, attack)]
    values = np.array([row[measure] for row in rows], dtype=float)
    if np.isnan(values).any():
        return "-"
    low, high = values.min(), values.max()
    if len(rows) == 1:
        low, high = rows[0][f"{measure}_low"], rows[0][f"{measure}_high"]
    return f"{values.mean():.3f}" if np.isnan(low) else f"{values.mean():.3f} ({low:.3f}-{high:.3f})"


def _alarms(evaluation: Evaluation) -> str:
    """Return the confusion matrix at each detector's threshold, of its first seed."""
    lines = []
    for name in _names(evaluation)[0]:
        rows = [row for row in evaluation.rows if row["detector"] == name and row["attack"] != MACRO]
        for row in [row for row in rows if row["seed"] == rows[0]["seed"]]:
            numbers = [f"{row[key]:.3f}" if isinstance(row[key], float) else str(row[key]) for key in AT_THRESHOLD]
            numbers = ["-" if number == "nan" else number for number in numbers]
            lines.append([f"{name}: {row['attack']}", *numbers])
    head = ["detector: attack", *(key.replace("_", " ") for key in AT_THRESHOLD)]
    reasons = "".join(f"<p>No threshold: {html.escape(why)}.</p>" for why in evaluation.no_threshold_reasons())
    return f"<h3>Alarms at the threshold</h3>{reasons}" + _table(head, lines)


def _figures(evaluation: Evaluation) -> list[Any]:
    """Return curves of all detectors and scores by attack, of the first seed of each."""
    from matplotlib.figure import Figure

    from sklearn_docids.plotting import (
        PrecisionRecallDisplay,
        RocDisplay,
        ScoreByClassDisplay,
        ScoreHistogramDisplay,
    )

    first: dict[str, Any] = {}
    for (name, *_), scored in evaluation.scored.items():
        first.setdefault(name, scored)
    curves = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = curves.subplots(1, 2)
    figures = [curves]
    for name, scored in first.items():
        attacks = [scored.attacks[attack] for attack in sorted(scored.attacks)]
        scores = np.concatenate([scored.normal, *attacks])
        y = np.repeat([1, -1], [len(scored.normal), len(scores) - len(scored.normal)])
        RocDisplay.from_predictions(y, scores, name=name, ax=left)
        guessing = {"plot_chance_level": scored is next(iter(first.values())), "chance_level_kw": {"linestyle": ":"}}
        PrecisionRecallDisplay.from_predictions(y, scores, name=name, ax=right, **guessing)
        classes = np.repeat(["", *sorted(scored.attacks)], [len(scored.normal), *map(len, attacks)])
        figure = Figure(figsize=(11, 0.3 * len(scored.attacks) + 3.2), layout="constrained")
        of_all, by_class = figure.subplots(1, 2)
        ScoreHistogramDisplay.from_predictions(y, scores, ax=of_all)
        ScoreByClassDisplay.from_predictions(classes, scores, ax=by_class)
        figure.suptitle(name, parse_math=False)
        figures.append(figure)
    left.set_title("ROC: all attacks among normal traffic")
    right.set_title("precision and recall; dotted: guessing")
    right.legend(loc="lower left", fontsize="small")
    return figures


def _picture(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"></p>'


def _reasons(explained: Explained) -> str:
    parts = [f"<h3>{html.escape(explained.flow)}</h3>"]
    if explained.views is not None:
        views = [[reason.view, format_p_value(reason.p_value), reason.text] for reason in explained.views]
        parts.append(_table(["view", "share of normal flows as unusual in it", "what is unusual"], views))
    if explained.bytes is not None:
        head = ["byte", "header field", "value", "in the most similar normal flow", "part in the score"]
        parts.append(_table(head, [_cells(reason) for reason in explained.bytes]))
    return "".join(parts)


def _cells(reason: ByteReason) -> list[str]:
    nearest = "-" if reason.nearest_value is None else str(reason.nearest_value)
    place = f"packet {reason.packet}, byte {reason.byte}"
    return [place, reason.field, str(reason.value), nearest, f"{reason.attribution:+.4g}"]
