"""Metrics of attack detection: attacks are positive, low scores are abnormal, doubtful labels raise."""

import re

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from sklearn_docids.metrics import (
    alarm_counts,
    attack_average_precision_score,
    attack_roc_auc_score,
    recall_at_fpr_score,
)
from sklearn_docids.plotting import PrecisionRecallDisplay, RocDisplay, ScoreByClassDisplay, ScoreHistogramDisplay

METRICS = [attack_roc_auc_score, attack_average_precision_score, recall_at_fpr_score]
rng = np.random.default_rng(0)
Y = np.where(rng.random(500) < 0.2, -1, 1)
SCORES = rng.normal(size=500) + Y


def test_roc_auc_and_average_precision_are_those_of_attacks():
    assert attack_roc_auc_score(Y, SCORES) == roc_auc_score(Y == -1, -SCORES)
    assert attack_average_precision_score(Y, SCORES) == average_precision_score(Y == -1, -SCORES)


def test_recall_at_fpr_counts_alarms_by_hand():
    for max_fpr in (0.0, 0.01, 0.1, 0.5):
        normal, attack = np.sort(SCORES[Y == 1]), SCORES[Y == -1]
        allowed = int(max_fpr * len(normal) + 1e-9)
        best = max(np.mean(attack < t) for t in np.append(SCORES, np.inf) if np.sum(normal < t) <= allowed)
        assert recall_at_fpr_score(Y, SCORES, max_fpr=max_fpr) == best


def test_ties_with_normal_flows_are_no_alarms():
    assert recall_at_fpr_score([1, 1, -1], [0.0, 0.0, 0.0], max_fpr=0.5) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_labels_of_zero_and_one_raise_unless_the_attack_is_named(metric):
    zero_one = (Y == -1).astype(int)
    with pytest.raises(ValueError, match="pos_label must say"):
        metric(zero_one, SCORES)
    assert metric(zero_one, SCORES, pos_label=1) == metric(Y, SCORES)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("label", [1, -1])
def test_one_kind_alone_raises(metric, label):
    with pytest.raises(ValueError, match="needs attacks and normal flows"):
        metric([label] * 5, np.zeros(5))


@pytest.mark.parametrize("metric", METRICS)
def test_lengths_must_agree(metric):
    with pytest.raises(ValueError, match="inconsistent"):
        metric(Y, SCORES[1:])


@pytest.mark.parametrize("max_fpr", [-0.1, 1.0, 2])
def test_a_rate_out_of_range_raises(max_fpr):
    with pytest.raises(ValueError, match="max_fpr must be in"):
        recall_at_fpr_score(Y, SCORES, max_fpr=max_fpr)


class Detector:
    offset_ = -2.0

    def score_samples(self, X):
        return X[:, 0]


def test_displays_draw_what_the_metrics_compute():
    pytest.importorskip("matplotlib").use("Agg")
    roc = RocDisplay.from_estimator(Detector(), SCORES[:, None], Y)
    assert roc.roc_auc == pytest.approx(attack_roc_auc_score(Y, SCORES))
    assert roc.ax_.get_legend().get_texts()[0].get_text() == f"Detector (AUC {roc.roc_auc:.3f})"
    histogram = ScoreHistogramDisplay.from_estimator(Detector(), SCORES[:, None], Y)
    heights = [sum(bar.get_height() for bar in bars) for bars in histogram.ax_.containers]
    assert heights == pytest.approx([1, 1])
    assert histogram.figure_ is histogram.ax_.figure
    assert histogram.ax_.get_lines()[0].get_xdata()[0] == 2.0
    __import__("matplotlib.pyplot").pyplot.close("all")


def test_displays_refuse_doubtful_labels():
    for display in (RocDisplay, ScoreHistogramDisplay):
        with pytest.raises(ValueError, match="pos_label"):
            display.from_predictions((Y == -1).astype(int), SCORES)


@pytest.mark.parametrize("metric", METRICS)
def test_nan_scores_raise(metric):
    scores = SCORES.copy()
    scores[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        metric(Y, scores)


def test_a_histogram_of_equal_scores_is_drawn():
    pytest.importorskip("matplotlib").use("Agg")
    for scores in ([-0.3, -0.3, -0.3], [-0.3, -0.30000000000000004, -0.3]):
        assert ScoreHistogramDisplay.from_predictions([1, 1, -1], scores).ax_.containers
    __import__("matplotlib.pyplot").pyplot.close("all")


def test_a_column_of_scores_counts_as_they_do_alone():
    y = np.repeat([1, -1], [90, 10])
    scores = np.random.default_rng(0).normal(size=100) + (y == 1)
    for metric in (attack_roc_auc_score, attack_average_precision_score, recall_at_fpr_score):
        assert metric(y, scores[:, None]) == metric(y, scores)


def test_verdicts_that_are_true_or_false_leave_a_doubt():
    with pytest.raises(ValueError, match="y_pred must be"):
        alarm_counts([1, 1, -1], [True, True, True])


def test_a_dollar_in_a_name_is_no_formula():
    pytest.importorskip("matplotlib")
    y, scores = [1, 1, -1, -1], [-0.1, -0.2, -0.9, -0.8]
    displays = [
        ScoreByClassDisplay.from_predictions(["", "", "cost$^$", "a$x_1$"], scores),
        RocDisplay.from_predictions(y, scores, name="cost$^$"),
        PrecisionRecallDisplay.from_predictions(y, scores, name="cost$^$"),
    ]
    for display in displays:
        display.figure_.canvas.draw()  # raises where matplotlib reads a formula that is none
        legend = display.ax_.get_legend()
        texts = [*display.ax_.get_yticklabels(), *(legend.get_texts() if legend else [])]
        shown = " ".join(text.get_text() for text in texts)
        assert "cost" in shown
        assert not re.search(r"(?<!\\)\$", shown)
