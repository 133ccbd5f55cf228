"""Metrics of attack detection: attacks are positive, low scores are abnormal, doubtful labels raise."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, roc_auc_score

from sklearn_docids._measures import Ranking, average_precision, roc_auc
from sklearn_docids._thresholds import conformal_threshold, least_held_out
from sklearn_docids.metrics import (
    alarm_counts,
    attack_average_precision_score,
    attack_roc_auc_score,
    recall_at_fpr_score,
)
from sklearn_docids.plotting import (
    ExplanationDisplay,
    PrecisionRecallDisplay,
    RocDisplay,
    ScoreByClassDisplay,
    ScoreHistogramDisplay,
)

METRICS = [attack_roc_auc_score, attack_average_precision_score, recall_at_fpr_score]
rng = np.random.default_rng(0)
Y = np.where(rng.random(500) < 0.2, -1, 1)
SCORES = rng.normal(size=500) + Y


@pytest.mark.parametrize("n_digits", [0, 1, 15])  # from many ties to none
def test_roc_auc_and_average_precision_are_those_of_attacks(n_digits):
    scores = np.round(SCORES, n_digits)
    assert attack_roc_auc_score(Y, scores) == pytest.approx(roc_auc_score(Y == -1, -scores), rel=1e-12)
    assert attack_average_precision_score(Y, scores) == pytest.approx(
        average_precision_score(Y == -1, -scores), rel=1e-12
    )


@pytest.mark.parametrize("n_digits", [0, 1, 15])
def test_measures_with_weights_are_those_of_scikit_learn(n_digits):
    scores, weights = np.round(SCORES, n_digits), rng.integers(0, 4, 500) / 8
    curve = Ranking(Y == -1, scores).curve(weights)
    assert roc_auc(curve) == pytest.approx(roc_auc_score(Y == -1, -scores, sample_weight=weights))
    assert average_precision(curve) == pytest.approx(average_precision_score(Y == -1, -scores, sample_weight=weights))


def test_recall_at_fpr_counts_alarms_by_hand():
    for max_fpr in (0.0, 0.01, 0.1, 0.5):
        normal, attack = np.sort(SCORES[Y == 1]), SCORES[Y == -1]
        allowed = int(max_fpr * len(normal) + 1e-9)
        best = max(np.mean(attack < t) for t in np.append(SCORES, np.inf) if np.sum(normal < t) <= allowed)
        assert recall_at_fpr_score(Y, SCORES, max_fpr=max_fpr) == best


@pytest.mark.parametrize("max_fpr", [0.01, 0.07, 1 / 49])
def test_a_rate_below_one_normal_flow_is_not_a_number(max_fpr):
    needed = math.ceil(1 / max_fpr - 1e-9)
    y, scores = np.repeat([1, -1], [needed, 10]), np.arange(needed + 10.0)[::-1]
    assert recall_at_fpr_score(y, scores, max_fpr=max_fpr) == 1
    message = f"takes at least {needed} normal flows, and there are {needed - 1}"
    with pytest.warns(UndefinedMetricWarning, match=message) as warned:
        assert np.isnan(recall_at_fpr_score(y[1:], scores[1:], max_fpr=max_fpr))
    assert warned[0].filename == __file__


def test_no_false_alarm_at_all_is_a_rate_that_few_flows_can_hold():
    assert recall_at_fpr_score([1, 1, -1, -1], [-0.1, -0.2, -0.9, -0.15], max_fpr=0) == 0.5


def test_attacks_tied_with_a_normal_flow_are_half_found():
    assert attack_roc_auc_score([1, -1, -1, 1], [0.0, 0.0, 0.0, 1.0]) == 0.75
    assert attack_roc_auc_score([1, -1, -1, 1], [0.0, 0.0, 0.0, 0.0]) == 0.5


def test_an_attack_that_scores_above_all_others_counts_among_the_missed():
    assert recall_at_fpr_score(np.repeat([1, -1], [100, 2]), np.r_[np.arange(100.0), -1, 200]) == 0.5


def test_ties_with_normal_flows_are_no_alarms():
    assert recall_at_fpr_score([1, 1, -1], [0.0, 0.0, 0.0], max_fpr=0.5) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_labels_of_zero_and_one_raise_unless_the_attack_is_named(metric):
    zero_one = (Y == -1).astype(int)
    with pytest.raises(ValueError, match=r"the labels \[0, 1\]; attacks are -1 .*, or pos_label must say"):
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
    assert roc.ax_.get_legend().get_texts()[0].get_text() == f"Detector (AUC = {roc.roc_auc:.2f})"
    assert (roc.ax_.get_xlabel(), roc.ax_.get_ylabel()) == ("false-alarm rate", "recall of attacks")
    curve = PrecisionRecallDisplay.from_estimator(Detector(), SCORES[:, None], Y, name="mine")
    assert curve.average_precision == pytest.approx(attack_average_precision_score(Y, SCORES))
    assert curve.ax_.get_legend().get_texts()[0].get_text() == f"mine (AP = {curve.average_precision:.2f})"
    assert (curve.ax_.get_xlabel(), curve.ax_.get_ylabel()) == ("recall of attacks", "precision")
    histogram = ScoreHistogramDisplay.from_estimator(Detector(), SCORES[:, None], Y)
    heights = [sum(bar.get_height() for bar in bars) for bars in histogram.ax_.containers]
    assert heights == pytest.approx([1, 1])
    assert histogram.figure_ is histogram.ax_.figure
    assert histogram.ax_.get_lines()[0].get_xdata()[0] == 2.0
    __import__("matplotlib.pyplot").pyplot.close("all")


@pytest.mark.parametrize("display", [RocDisplay, PrecisionRecallDisplay])
def test_curves_take_what_those_of_scikit_learn_take(display):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    _, ax = pyplot.subplots()
    drawn = display.from_predictions((Y == -1).astype(int), SCORES, pos_label=1, ax=ax, plot_chance_level=True)
    assert drawn.ax_ is ax
    assert [line.get_label() for line in ax.get_lines()][1].startswith("Chance level")
    again = drawn.plot(name="other", plot_chance_level=False)
    assert again is drawn
    assert drawn.ax_.get_legend().get_texts()[0].get_text().startswith("other (A")
    with pytest.raises(NotImplementedError, match="normal flows for the positive class"):
        display.from_cv_results({}, SCORES, Y)
    pyplot.close("all")


def test_a_missing_threshold_is_not_drawn():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    for threshold in (None, -np.inf):
        assert not ScoreHistogramDisplay.from_predictions(Y, SCORES, threshold=threshold).ax_.get_lines()
    pyplot.close("all")


def test_displays_refuse_doubtful_labels():
    for display in (RocDisplay, PrecisionRecallDisplay, ScoreHistogramDisplay):
        with pytest.raises(ValueError, match="pos_label"):
            display.from_predictions((Y == -1).astype(int), SCORES)


@pytest.mark.parametrize("metric", METRICS)
def test_nan_scores_raise(metric):
    scores = SCORES.copy()
    scores[3] = np.nan
    with pytest.raises(ValueError, match="Input y_score contains NaN"):
        metric(Y, scores)


def test_a_histogram_of_equal_scores_is_drawn():
    pytest.importorskip("matplotlib").use("Agg")
    for scores in ([-0.3, -0.3, -0.3], [-0.3, -0.30000000000000004, -0.3]):
        assert ScoreHistogramDisplay.from_predictions([1, 1, -1], scores).ax_.containers
    __import__("matplotlib.pyplot").pyplot.close("all")


def test_a_column_of_scores_counts_as_they_do_alone():
    y = np.repeat([1, -1], [100, 10])
    scores = np.random.default_rng(0).normal(size=110) + (y == 1)
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


@pytest.mark.parametrize("rate", [0.5, 1 / 3, 0.29, 0.1, 0.01])
def test_a_threshold_with_fewer_scores_than_it_takes_raises(rate):
    needed = least_held_out(rate)
    scores = np.arange(needed, dtype=float)[::-1]
    assert conformal_threshold(scores, rate) == 0
    with pytest.raises(ValueError, match=f"needs at least {needed} scores, not {needed - 1}"):
        conformal_threshold(scores[1:], rate)


def test_a_new_score_is_below_the_conformal_threshold_as_often_as_asked():
    # Of n + 1 scores in any order, each is the last one equally often.
    scores = np.arange(20.0)
    below = [scores[last] < conformal_threshold(np.delete(scores, last), 0.2) for last in range(20)]
    assert np.mean(below) == 0.2


def test_alarms_are_counted_by_hand():
    y, verdicts = [1, 1, 1, 1, 1, 1, 1, -1, -1, -1], [1, 1, 1, 1, -1, -1, -1, -1, -1, 1]
    counts = alarm_counts(y, verdicts)
    assert counts == (2, 3, 4, 1)
    assert (counts.tpr, counts.fpr, counts.precision) == (2 / 3, 3 / 7, 2 / 5)
    assert alarm_counts(["n" if label == 1 else "bad" for label in y], verdicts, pos_label="bad") == counts
    assert np.isnan(alarm_counts([1, -1], [1, 1]).precision)


def test_verdicts_that_do_not_fit_the_labels_are_refused():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        alarm_counts([1, 1, -1], [1, 1])
    with pytest.raises(ValueError, match=r"y_pred must be \+1 \(normal\) and -1 \(abnormal\), got \[0, 1, 2, 3, 4\]$"):
        alarm_counts([1, 1, 1, 1, 1, -1], [5, 4, 3, 2, 1, 0])


@pytest.mark.parametrize("display", [ScoreHistogramDisplay, ScoreByClassDisplay, RocDisplay, PrecisionRecallDisplay])
@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_not_drawn(display, score):
    labels = ["scan", ""] if display is ScoreByClassDisplay else [-1, 1]
    with pytest.raises(ValueError, match="Input y_score contains"):
        display.from_predictions(labels, [-1.0, score])


@pytest.mark.parametrize(
    ("attribution", "message"), [([[1.0, np.nan]], "attribution contains NaN"), ([1.0, 2.0], "Expected 2D array")]
)
def test_an_attribution_that_is_no_picture_is_not_drawn(attribution, message):
    with pytest.raises(ValueError, match=message):
        ExplanationDisplay.from_predictions(attribution)


def test_scores_at_the_ends_of_what_float64_holds_are_ranked():
    largest = np.finfo(np.float64).max
    assert attack_roc_auc_score([1, -1], [largest, -largest]) == 1


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("matplotlib", "plotting.ScoreHistogramDisplay.from_predictions([1, -1], [0.0, -1.0])"),
        ("pandas", "evaluation.Evaluation().to_pandas()"),
        ("pyarrow", "capture.FlowTable.load('x.parquet')"),
    ],
)
def test_a_missing_package_is_named_with_the_way_to_get_it(package, use):
    code = (
        f"import sys; sys.modules[{package!r}] = None\nimport sklearn_docids\n"
        f"try: sklearn_docids.{use}\nexcept ImportError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{package}: pip install {package}\n" in ran.stdout
