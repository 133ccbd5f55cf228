"""evaluate: measures by scikit-learn, intervals, seeds, levels; the report page and the command line."""

import os
import re
import time
import warnings

import numpy as np
import pytest
from captures import pcap, tcp
from office import burst, capture_of, office
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM

from sklearn_docids import DOCFeatures, DOCIDSDetector, FlowSampler, MultiViewDetector, ReferenceData, load_detector
from sklearn_docids.aggregation import FlowAggregator
from sklearn_docids.capture import FlowTable
from sklearn_docids.cli import main
from sklearn_docids.datasets import make_traffic
from sklearn_docids.detectors import SeedEnsemble
from sklearn_docids.evaluation import (
    ALL,
    AT_THRESHOLD,
    COLUMNS,
    MACRO,
    Evaluation,
    Scored,
    evaluate,
    fit_clone,
    score_flows,
    score_groups,
)
from sklearn_docids.metrics import (
    alarm_counts,
    attack_average_precision_score,
    attack_roc_auc_score,
    recall_at_fpr_score,
)

rng = np.random.default_rng(0)
NORMAL = np.round(rng.normal(size=(1500, 3)), 1)  # many ties
ATTACKS = {"far": np.round(rng.normal(3, 1, (40, 3)), 1), "near": np.round(rng.normal(0.5, 1, (200, 3)), 1)}
TRAIN, TEST = NORMAL[:500], NORMAL[500:]


class Sum:
    """Scores rows by their sum; everything above 2 is abnormal."""

    def score_samples(self, X):
        return -X.sum(axis=1)

    def predict(self, X):
        return np.where(X.sum(axis=1) > 2, -1, 1)


@pytest.fixture(scope="module")
def found():
    return evaluate({"sum": Sum()}, TEST, ATTACKS)


def line(found, attack, **chosen):
    chosen = {"attack": attack, **chosen}
    (row,) = [row for row in found.rows if {key: row[key] for key in chosen} == chosen]
    return row


FEW = pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")


@pytest.mark.parametrize("attack", ["far", "near", ALL])
def test_measures_are_those_of_scikit_learn(found, attack):
    rows = np.concatenate([ATTACKS[name] for name in (sorted(ATTACKS) if attack == ALL else [attack])])
    y = np.repeat([1, -1], [len(TEST), len(rows)])
    scores = Sum().score_samples(np.concatenate([TEST, rows]))
    row = line(found, attack)
    assert row["roc_auc"] == pytest.approx(roc_auc_score(y == -1, -scores))
    assert row["average_precision"] == pytest.approx(average_precision_score(y == -1, -scores))
    assert row["recall_at_fpr_0_01"] == recall_at_fpr_score(y, scores, max_fpr=0.01)
    assert row["recall_at_fpr_0_001"] == recall_at_fpr_score(y, scores, max_fpr=0.001)
    assert row["prevalence"] == np.mean(y == -1)
    counts = alarm_counts(y, Sum().predict(np.concatenate([TEST, rows])))
    assert (row["true_positives"], row["false_positives"]) == (counts.true_positives, counts.false_positives)
    assert (row["tpr"], row["fpr"], row["precision"]) == (counts.tpr, counts.fpr, counts.precision)


def test_the_mean_over_attacks_gives_each_the_same_weight(found):
    for measure in ("roc_auc", "average_precision", "recall_at_fpr_0_01", "tpr"):
        assert line(found, MACRO)[measure] == pytest.approx(
            np.mean([line(found, attack)[measure] for attack in ATTACKS])
        )
    assert np.isnan(line(found, MACRO)["n_attack"])


def test_intervals_are_those_of_flows_drawn_anew():
    # Normal flows are the same draws beside every attack; each attack has draws of its own, all pooled the first ones.
    found = evaluate({"sum": Sum()}, TEST, ATTACKS, n_resamples=7)
    scores = {name: -rows.sum(axis=1) for name, rows in ATTACKS.items()}
    scores = {ALL: np.concatenate([scores["far"], scores["near"]]), **scores}
    measures = {
        "roc_auc": attack_roc_auc_score,
        "average_precision": attack_average_precision_score,
        "recall_at_fpr_0_01": recall_at_fpr_score,
    }
    for place, (attack, of_attack) in enumerate(scores.items()):
        rng_normal, rng_attack = np.random.default_rng([0, 0]), np.random.default_rng([1, place])
        resampled = {name: [] for name in measures}
        for _ in range(7):
            n = -TEST.sum(axis=1)[rng_normal.integers(len(TEST), size=len(TEST))]
            a = of_attack[rng_attack.integers(len(of_attack), size=len(of_attack))]
            for name, measure in measures.items():
                resampled[name].append(measure(np.repeat([1, -1], [len(n), len(a)]), np.r_[n, a]))
        for name, values in resampled.items():
            low, high = np.quantile(values, [0.025, 0.975])
            row = line(found, attack)
            assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high))


def test_a_rate_that_means_less_than_one_flow_is_not_reported():
    with pytest.warns(UndefinedMetricWarning) as warned:
        few = evaluate({"sum": Sum(), "again": Sum()}, TEST[:999], ATTACKS, n_resamples=2)
    assert [str(warning.message) for warning in warned] == [
        "recall at a false-alarm rate of 0.001 is NaN: it takes at least 1000 normal flows, and there are 999"
    ]
    assert np.isnan(line(few, "far", detector="sum")["recall_at_fpr_0_001"])
    assert np.isfinite(line(few, "far", detector="sum")["recall_at_fpr_0_01"])
    assert f"| {'-':5} |" in few.table("recall_at_fpr_0_001")


@FEW
def test_intervals_hold_the_measure_and_narrow_with_more_flows(found):
    few = evaluate({"sum": Sum()}, TEST[:100], {"near": ATTACKS["near"][:20]})
    widths = []
    for row in (line(found, "near"), line(few, "near")):
        assert row["roc_auc_low"] < row["roc_auc"] < row["roc_auc_high"]
        widths.append(row["roc_auc_high"] - row["roc_auc_low"])
    assert widths[0] < widths[1] / 2
    assert np.isnan(line(evaluate({"s": Sum()}, NORMAL, ATTACKS, n_resamples=0), "far")["roc_auc_low"])


def test_every_seed_is_a_fit_of_its_own():
    found = evaluate(
        {"forest": IsolationForest(n_estimators=5)}, TEST, ATTACKS, train=TRAIN, seeds=[0, 1], n_resamples=0
    )
    first, second = found.values("forest", "roc_auc", "near")
    assert first != second
    alone = IsolationForest(n_estimators=5, random_state=1).fit(TRAIN)
    np.testing.assert_array_equal(found.scored["forest", 1, "flow"].normal, alone.score_samples(TEST))


class Recording(BaseEstimator):
    """Notes what its fit was given."""

    def __init__(self, random_state=None):
        self.random_state = random_state

    def fit(self, X, y=None, *, reference=None):
        self.given_ = X, reference
        return self

    def transform(self, X):
        return X


class Wrapper(BaseEstimator):
    """Hands on what its fit is given."""

    def __init__(self, estimator):
        self.estimator = estimator

    def fit(self, X, y=None, **fit_params):
        self.estimator_ = clone(self.estimator).fit(X, **fit_params)
        return self


def test_a_clone_is_fitted_with_seed_and_reference():
    detector, reference = Recording(), (NORMAL, NORMAL)
    fitted = fit_clone(detector, TRAIN, reference=reference, seed=7)
    assert fitted.given_ == (TRAIN, reference)
    assert fitted.random_state == 7
    assert vars(detector) == {"random_state": None}
    assert fit_clone(detector, TRAIN).given_ == (TRAIN, None)
    assert fit_clone(detector, TRAIN).random_state == 0


def test_a_reference_finds_its_way_into_pipelines_and_wrappers():
    nested = make_pipeline("passthrough", Recording(), Wrapper(make_pipeline(None, Recording())))
    fitted = fit_clone(nested, TRAIN, reference="here")
    assert fitted[1].given_[1] == fitted[2].estimator_[-1].given_[1] == "here"
    without = fit_clone(Wrapper(IsolationForest(n_estimators=2)), TRAIN, reference="here")
    assert without.estimator_.n_features_in_ == 3


def test_seconds_are_those_of_the_fit():
    fitted = evaluate({"sum": Sum()}, TEST, ATTACKS, n_resamples=0)
    began = time.process_time()
    trained = evaluate(
        {"forest": IsolationForest()}, TEST, ATTACKS, train=TRAIN, reference=(TRAIN, TRAIN), n_resamples=0
    )
    assert {row["fit_seconds"] for row in fitted.rows} == {0.0}
    (seconds,) = {row["fit_seconds"] for row in trained.rows}
    assert 0 < seconds <= time.process_time() - began


def test_scores_of_flow_tables_are_those_of_their_bytes(hosts):
    normal, attack = hosts

    class Single:
        def score_samples(self, X):
            return X[:, 29].astype(np.float32)

        def predict(self, X):
            return np.where(X[:, 29] > 20, -1, 1)

    scored, of_rows = score_flows(Single(), normal, {"x": attack}), score_flows(Single(), normal.X, {"x": attack.X})
    assert scored.normal.dtype == scored.attacks["x"].dtype == np.float64
    np.testing.assert_array_equal(scored.normal, of_rows.normal)
    np.testing.assert_array_equal(scored.attacks["x"], attack.X[:, 29])
    np.testing.assert_array_equal(scored.flagged_attacks["x"], attack.X[:, 29] > 20)
    np.testing.assert_array_equal(scored.flagged_normal, normal.X[:, 29] > 20)


def test_a_table_has_a_line_per_attack_and_the_spread_over_seeds():
    found, scores = Evaluation(), np.arange(1000.0)
    for seed, shift in enumerate((0, 500)):
        attacks = {"a|b": scores[:10] + shift, "two\nlines": scores[:40] + 100}
        found.add("x|y", seed, Scored(scores, attacks), n_resamples=0)
    found.add("one", 0, Scored(scores, {"a|b": scores[:10], "two\nlines": scores[:40]}), n_resamples=0)
    assert found.table().splitlines() == [
        r"| attack            | number | share | x\|y                | one   |",
        r"| ----------------- | ------ | ----- | ------------------- | ----- |",
        r"| mean over attacks |        | 0.024 | 0.812 (0.688-0.938) | 0.988 |",
        r"| all attacks       | 50     | 0.048 | 0.853 (0.803-0.903) | 0.983 |",
        r"| a\|b              | 10     | 0.010 | 0.745 (0.495-0.995) | 0.995 |",
        r"| two lines         | 40     | 0.038 | 0.880 (0.880-0.880) | 0.980 |",
    ]


def test_a_comparison_needs_resamples_and_comes_out_the_same_again():
    found = found_at("flow", 200)
    assert found.difference("ours", "ours too") == found.difference("ours", "ours too")
    with pytest.raises(ValueError, match=r"^unknown detector 'x': there are 'ours', 'ours too'$"):
        found.difference("x", "ours")
    single = Evaluation()
    for name in ("a", "b"):
        single.add(name, 0, Scored(np.arange(1000.0), {"x": np.arange(9.0)}), n_resamples=1)
    assert single.difference("a", "b") == (0, 0, 0)
    alone = Evaluation()
    for name in ("a", "b"):
        alone.add(name, 0, Scored(np.arange(1000.0), {"x": np.zeros(3)}), n_resamples=0)
    with pytest.raises(ValueError, match=r"^there are no resamples"):
        alone.difference("a", "b")


def test_the_csv_is_the_same_on_every_system(tmp_path):
    found = Evaluation()
    found.add("d", 0, Scored(np.arange(1000.0), {"é": np.zeros(3)}), n_resamples=0)
    found.write_csv(tmp_path / "rows.csv")
    written = (tmp_path / "rows.csv").read_bytes()
    assert b"\r" not in written
    assert "é" in written.decode("utf-8")


def test_verdicts_on_one_side_alone_are_no_threshold():
    found = Evaluation()
    found.add("d", 0, Scored(np.arange(1000.0), {"a": np.zeros(3)}, np.zeros(1000, bool)), n_resamples=0)
    assert np.isnan(line(found, "a")["fpr"])


@FEW
def test_a_reference_reaches_those_who_take_it_also_in_a_pipeline():
    X = rng.integers(0, 200, (80, 12), dtype=np.uint8)
    reference = ReferenceData(X[:40], np.arange(40) % 2)
    settings = {"max_epochs": 1, "batch_size": 16}
    detectors = {
        "ours": DOCIDSDetector(**settings),
        "doc": make_pipeline(FunctionTransformer(), DOCFeatures(**settings), OneClassSVM()),
        "forest": IsolationForest(n_estimators=5),
        "nested": make_pipeline("passthrough", make_pipeline(None, DOCIDSDetector(**settings))),
        "ensemble": SeedEnsemble(DOCIDSDetector(**settings), n_estimators=2),
    }
    # A detector that gets no reference warns, and warnings are errors here.
    found = evaluate(detectors, X[50:], {"strange": 255 - X[:10]}, train=X[:50], reference=reference, n_resamples=0)
    assert [row["detector"] for row in found.rows if row["attack"] == MACRO] == list(detectors)


@FEW
def test_differences_are_of_the_same_flows():
    found = Evaluation()
    normal = rng.normal(size=400)
    attack = rng.normal(-1, 1, 60)
    for seed in range(3):
        for name, shift in (("better", -0.5), ("worse", 0.0), ("alike", 0.0)):
            scores = {"a": attack + shift}
            found.add(name, seed, Scored(normal, scores, normal < -2, {"a": scores["a"] < -2}, 0.0))
    mean, low, high = found.difference("better", "worse")
    assert 0 < low < mean < high
    assert mean == pytest.approx(found.values("better", "roc_auc")[0] - found.values("worse", "roc_auc")[0])
    assert found.difference("alike", "worse") == (0, 0, 0)
    assert found.difference("better", "worse") == (mean, low, high)  # the draw of seeds is the same every time
    found.add("other", 7, Scored(normal, {"a": attack}, normal < -2, {"a": attack < -2}, 0.0))
    assert found.difference("better", "worse") == (mean, low, high)
    with pytest.raises(ValueError, match="not fitted with the same seeds"):
        found.difference("better", "other")
    for unknown in ({"second": "none"}, {"measure": "tpr"}, {"attack": "b"}):
        with pytest.raises(ValueError, match=f"unknown .* {next(iter(unknown.values()))!r}: there are"):
            found.difference(**{"first": "better", "second": "worse", **unknown})


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Return normal flows of 200 hosts, and an attack of 40."""

    def flows_of(first, n):
        path = tmp_path_factory.mktemp("hosts") / "c.pcap"
        path.write_bytes(pcap([tcp(src=f"10.0.{first}.{number}") for number in range(1, n + 1)]))
        return FlowSampler(fields="raw").flows(path)

    return flows_of(0, 200), flows_of(1, 40)


class First:
    """Scores rows by the last byte of the source address."""

    def score_samples(self, X):
        return -X[:, 29].astype(float)


@FEW
@pytest.mark.parametrize("rate", ["auto", None])
def test_without_a_threshold_alarms_are_absent_and_the_reason_is_there(hosts, tmp_path, rate):
    normal, attack = hosts
    arguments = {"level": "host", "calibration": normal[:50], "aggregator": FlowAggregator(false_alarm_rate=rate)}
    detectors = {"one": First(), "other": First()}
    reason = "false_alarm_rate=None" if rate is None else "a false-alarm rate of 0.01 needs at least 99 normal hosts"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = evaluate(detectors, normal, {"x": attack}, n_resamples=0, **arguments)
    of_threshold = [warning for warning in warned if str(warning.message).startswith("no threshold: " + reason)]
    assert [warning.filename for warning in of_threshold] == ([] if rate is None else [__file__])
    for row in found.rows:
        assert all(np.isnan(row[name]) for name in AT_THRESHOLD)
        assert row["no_threshold_reason"].startswith(reason)
        assert np.isfinite(row["roc_auc"])
    (shown,) = found.no_threshold_reasons()
    assert str(found).endswith(f"No threshold: {shown}.")
    assert found.table("tpr").count(" - ") == found.table("fpr").count(" - ") == 2 * 3
    found.write_csv(tmp_path / "rows.csv")
    assert reason in (tmp_path / "rows.csv").read_text()


@FEW
def test_with_a_threshold_hosts_below_it_are_alarms(hosts):
    normal, attack = hosts
    found = evaluate({"d": First()}, normal, {"x": attack}, level="host", calibration=normal, n_resamples=0)
    (scored,) = found.scored.values()
    aggregator = FlowAggregator("host").fit(normal, First().score_samples(normal.X))
    row = line(found, "x")
    assert row["true_positives"] == np.sum(scored.attacks["x"] < aggregator.offset_)
    assert row["false_positives"] == np.sum(scored.normal < aggregator.offset_)
    assert (row["n_attack"], row["n_normal"]) == (40, 200)
    assert row["no_threshold_reason"] == ""
    assert found.no_threshold_reasons() == []
    assert "No threshold" not in str(found)


def found_at(level, shift=0.0, name="ours", seed=0):
    found, scores = Evaluation(), np.arange(1000.0)
    found.add(name, seed, Scored(scores, {"a": scores[:50] - shift}), level=level, n_resamples=20)
    found.add(name + " too", seed, Scored(scores, {"a": scores[:50]}), level=level, n_resamples=20)
    return found


def test_evaluations_are_joined_and_told_apart_by_level():
    levels = {"flow": found_at("flow", 20), "host": found_at("host", 200)}
    joined = Evaluation.joined(levels.values())
    assert joined.rows == levels["flow"].rows + levels["host"].rows
    for level, alone in levels.items():
        arguments = {"first": "ours", "second": "ours too"}
        assert joined.difference(**arguments, level=level) == alone.difference(**arguments)
        assert joined.values("ours", "roc_auc", level=level) == alone.values("ours", "roc_auc")
        assert joined.table(level=level) == alone.table()
    assert str(joined) == f"By flow\n\n{levels['flow']}\n\nBy host\n\n{levels['host']}"
    for use in (joined.table, joined.no_threshold_reasons, lambda: joined.values("ours", "roc_auc")):
        with pytest.raises(ValueError, match=r"level must be one of \['flow', 'host'\], got None"):
            use()
    with pytest.raises(ValueError, match=r"level must be one of \['flow', 'host'\], got 'channel'"):
        joined.difference("ours", "ours too", level="channel")


def test_recalls_that_cannot_be_told_are_warned_of_where_they_were_added():
    with pytest.warns(UndefinedMetricWarning, match="normal hosts, and there are 99") as warned:
        Evaluation().add("d", 0, Scored(np.arange(99.0), {"x": np.zeros(3)}), level="host", n_resamples=0)
    assert {warning.filename for warning in warned} == {__file__}
    assert len(warned) == 2


def test_joining_leaves_the_parts_alone():
    part = found_at("flow")
    joined = Evaluation.joined([part])
    joined.rows[0]["roc_auc"] = 2.0
    joined.add("third", 0, Scored(np.arange(1000.0), {"a": np.zeros(3)}))
    assert part.rows[0]["roc_auc"] <= 1
    assert len(part.rows) == 6


def test_a_fit_counts_once():
    for join_or_add in (
        lambda: Evaluation.joined([found_at("flow"), found_at("flow")]),
        lambda: found_at("flow").add("ours", 0, Scored(np.arange(1000.0), {"a": np.zeros(3)})),
    ):
        with pytest.raises(ValueError, match="scores of 'ours' with seed 0 at level 'flow' already"):
            join_or_add()
    assert len(Evaluation.joined([found_at("flow"), found_at("flow", seed=1)]).rows) == 12


@FEW
def test_intervals_of_the_mean_do_not_depend_on_the_sizes_of_attacks():
    # The normal flows are the same for all attacks, and drawn once for all.
    normal = rng.normal(size=300)

    def width(sizes):
        attacks = {f"a{n}": rng.normal(-1, 1, size) for n, size in enumerate(sizes)}
        found = Evaluation()
        never = {name: np.zeros(len(scores), bool) for name, scores in attacks.items()}
        found.add("d", 0, Scored(normal, attacks, np.zeros(300, bool), never, 0.0))
        return line(found, MACRO)["roc_auc_high"] - line(found, MACRO)["roc_auc_low"]

    assert width(range(2000, 2010)) == pytest.approx(width([2000] * 10), rel=0.1)


@FEW
def test_hosts_are_paired_by_name_not_by_rank(hosts):
    class Shuffled:
        def __init__(self, seed):
            self.seed = seed

        def score_samples(self, X):
            return np.random.default_rng([self.seed, len(X)]).normal(size=len(X))

    normal, attack = hosts
    # Detectors that have nothing in common: the interval of their difference must be as wide as that of flows.
    found = evaluate(
        {"a": Shuffled(1), "b": Shuffled(2)}, normal, {"x": attack}, level="host", calibration=normal,
        aggregator=FlowAggregator(false_alarm_rate=None),
    )  # fmt: skip
    _, low, high = found.difference("a", "b")
    assert high - low > 0.1
    assert len({len(scored.normal) for scored in found.scored.values()}) == 1


def test_scores_that_are_not_finite_are_refused():
    for value in (np.nan, -np.inf):
        scored = Scored(np.zeros(3), {"x": np.array([0.0, value])}, np.zeros(3, bool), {"x": np.zeros(2, bool)}, 0.0)
        with pytest.raises(ValueError, match="scores of 'mine' for 'x' contains"):
            Evaluation().add("mine", 0, scored)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attacks": {}}, "attacks is empty"),
        ({"detectors": {}}, "there must be detectors, and different seeds; got 0"),
        ({"train": NORMAL, "seeds": [1, 1]}, r"different seeds; got 1 and \[1, 1\]"),
        ({"seeds": []}, r"different seeds; got 1 and \[\]"),
        ({"seeds": 3}, "seeds must be a list of them, one for each fit; got 3"),
        ({"detectors": [Sum()]}, "detectors must be a mapping of names to detectors, such as a dict; got list"),
        ({"attacks": NORMAL}, "attacks must be a mapping of names to flows, such as a dict; got ndarray"),
        ({"n_resamples": -1}, "n_resamples == -1, must be >= 0"),
        ({"attacks": {"none": NORMAL[:0]}}, r"no flows of \['none'\]"),
        ({"attacks": {MACRO: NORMAL}}, "cannot be called"),
        ({"level": "network"}, "level must be one of"),
        ({"level": "host"}, "needs flow tables"),
        ({"seeds": [1]}, "leave seeds and reference alone"),
        ({"reference": (NORMAL, NORMAL)}, "leave seeds and reference alone"),
        ({"normal": NORMAL[:0]}, "no flows of normal traffic"),
    ],
)
def test_unusable_arguments_raise(changed, message):
    arguments = {"detectors": {"sum": Sum()}, "normal": NORMAL, "attacks": ATTACKS, **changed}
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)


def test_half_a_resample_is_refused():
    with pytest.raises(TypeError, match="n_resamples must be an instance of"):
        evaluate({"sum": Sum()}, NORMAL, ATTACKS, n_resamples=2.5)
    with pytest.raises(TypeError, match="n_resamples must be an instance of"):
        Evaluation().add("mine", 0, Scored(np.zeros(3), {"x": np.zeros(2)}), n_resamples=2.5)


def test_rows_go_to_csv_and_pandas(found, tmp_path):
    pandas = pytest.importorskip("pandas")
    found.write_csv(tmp_path / "rows.csv")
    read = pandas.read_csv(tmp_path / "rows.csv", keep_default_na=False, na_values=["nan"])
    pandas.testing.assert_frame_equal(read, found.to_pandas(), check_dtype=False)
    assert list(Evaluation().to_pandas().columns) == list(COLUMNS)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Return flows to train on, normal ones, and a burst of guesses among them."""
    folder = tmp_path_factory.mktemp("tables")
    dialogues = {"train": office(150, 0), "normal": office(80, 1, 400), "burst": burst(40, 1200.0)}
    for name, some in dialogues.items():
        (folder / name).write_bytes(capture_of(some))
    return [FlowSampler(layout="payload").flows(folder / name) for name in dialogues]


@FEW
def test_a_detector_of_tables_scores_each_attack_among_the_normal_flows(tables):
    train, normal, attack = tables
    settings = {"views": ("statistics", "content"), "false_alarm_rate": 0.1}
    found = evaluate(
        {"views": MultiViewDetector(**settings), "forest": IsolationForest(n_estimators=5)},
        normal, {"burst": attack, "first": attack[:1]}, train=train, seeds=[3], n_resamples=0,
    )  # fmt: skip
    detector = MultiViewDetector(**settings, random_state=3).fit(train)
    together = FlowTable.concatenate([normal, attack])
    scored = found.scored["views", 3, "flow"]
    np.testing.assert_array_equal(scored.normal, detector.score_samples(normal))
    np.testing.assert_array_equal(scored.attacks["burst"], detector.score_samples(together)[len(normal) :])
    np.testing.assert_array_equal(scored.flagged_attacks["burst"], detector.predict(together)[len(normal) :] == -1)
    assert (scored.attacks["burst"] != detector.score_samples(attack)).any()  # the office asks the same server
    assert scored.attacks["first"].shape == (1,)
    rows = IsolationForest(n_estimators=5, random_state=3).fit(train.X).score_samples(normal.X)
    np.testing.assert_array_equal(found.scored["forest", 3, "flow"].normal, rows)


def test_groups_of_a_detector_of_tables_have_its_scores_among_the_normal_flows(tables):
    train, normal, attack = tables
    detector = MultiViewDetector(views=("content",), false_alarm_rate=0.1, random_state=0).fit(train)
    aggregator = FlowAggregator("host", combine="most_abnormal", false_alarm_rate=None)
    aggregator.fit(train, detector.score_samples(train))
    together = FlowTable.concatenate([normal, attack])
    scores = np.concatenate([detector.score_samples(normal), detector.score_samples(together)[len(normal) :]])
    groups = aggregator.aggregate(together, scores)
    expected = [group.score for group in groups if group.src_ip == "10.0.0.1"]
    assert score_groups(detector, aggregator, normal, {"burst": attack}).attacks["burst"].tolist() == expected


def test_a_search_over_a_detector_of_tables_takes_tables(tables):
    search = GridSearchCV(
        MultiViewDetector(views=("statistics",), false_alarm_rate=0.1), {"power": [1.0]}, cv=2, n_jobs=1
    )
    fitted = fit_clone(search.set_params(scoring=lambda detector, flows: 0.0), tables[0])
    assert score_flows(fitted.best_estimator_, tables[1], {"burst": tables[2]}).attacks["burst"].shape == (40,)


@pytest.fixture(scope="module")
def traffic(tmp_path_factory):
    return make_traffic(tmp_path_factory.mktemp("t"), n_flows=60, n_reference=6, n_attacks=6, random_state=0)


@pytest.fixture(scope="module")
def model(traffic, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    reference = str(traffic.reference[0].parent)
    fit = ["fit", str(traffic.train), "--reference", reference, "--model", str(path), "--views", "bytes"]
    assert main([*fit, "--max-epochs", "2"]) == 0
    return path


@FEW
@pytest.mark.parametrize("level", ["channel", "host"])
def test_levels_compare_groups_with_and_without_the_attack(traffic, model, level):
    detector = load_detector(model)
    flows, calibration = detector.sampler_.flows(traffic.test), detector.sampler_.flows(traffic.train)
    kinds = np.asarray(traffic.attack_of(flows))
    normal = flows[kinds == ""]
    attacks = {str(kind): flows[kinds == kind] for kind in np.unique(kinds[kinds != ""])}
    aggregator = FlowAggregator(window=600, false_alarm_rate=None)
    found = evaluate({"model": detector}, normal, attacks, level=level, calibration=calibration, aggregator=aggregator)

    def keys(table):
        ends = [table.time_first // (600 * 10**9), table.src_ip]
        if level == "channel":
            ends += [table.dst_ip, table.dst_port, table.protocol]
        return set(zip(*(end.tolist() for end in ends), strict=True))

    for kind, table in attacks.items():
        row = line(found, kind)
        assert (row["n_attack"], row["n_normal"]) == (len(keys(table)), len(keys(normal)))
    assert {row["level"] for row in found.rows} == {level}


@pytest.fixture(scope="module")
def attack_folder(traffic, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacks")
    for name in ("scan<b>", "worm"):
        (folder / f"{name}.pcap").write_bytes(traffic.test.read_bytes())
    return folder


def test_the_command_line_evaluates_and_writes_one_page(traffic, model, attack_folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    page, table = tmp_path / "report.html", tmp_path / "rows.csv"
    arguments = ["evaluate", "--model", model, "--normal", traffic.train, "--attacks", attack_folder]
    arguments += ["--train", traffic.train, "--calibration", traffic.train, "--window", "600"]
    assert main([*map(str, arguments), "--output", str(page), "--csv", str(table)]) == 0
    output = capsys.readouterr()
    assert "mean over attacks" in output.out
    assert "By host" in output.out
    assert output.err.count("no threshold: a false-alarm rate of 0.01 needs at least 99 normal hosts") == 1
    assert "No threshold: a false-alarm rate of 0.01 needs at least 99 normal hosts" in output.out
    text = page.read_text()
    assert "scan&lt;b&gt;" in text
    assert "scan<b>" not in text
    without_pictures, n_pictures = re.subn(r'src="data:image/png;base64,[A-Za-z0-9+/=]+"', "", text)
    assert n_pictures == 3 * (2 + 2 * 4)  # two curves, and two pictures of each detector, at three levels
    for outside in ("src=", 'href="(?!#)', r"url\(", "://"):
        assert not re.search(outside, without_pictures)
    assert "No threshold: a false-alarm rate of 0.01 needs at least 99 normal hosts" in text
    assert "the most similar normal flow" in text
    assert len(table.read_text().splitlines()) == 1 + 3 * 4 * 4


def test_the_command_line_explains_flows(traffic, model, capsys):
    assert main(["explain", str(traffic.test), "--model", str(model), "--flows", "2", "--bytes", "5"]) == 0
    output = capsys.readouterr().out
    assert output.count("header field") == 2
    assert len(output.splitlines()) <= 2 * 8 + 1
    assert output.split("\n\n")[0].splitlines()[2].split()[0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--window", "5"], "--window is for channels and hosts"),
        (["evaluate", "--false-alarm-rate", "0.1"], "--false-alarm-rate is for channels and hosts"),
        (["score", "--output", "/nowhere/scores.csv"], "the folder of --output /nowhere/scores.csv does not exist"),
        (["evaluate", "--calibration", "{empty}"], "--calibration .*there is no flow in it"),
        (["evaluate", "--output", "/nowhere/r.html"], "the folder of --output /nowhere/r.html does not exist"),
        (["evaluate", "--csv", "{tmp}"], "--csv .* is not a file name"),
        (["evaluate", "--train", "{empty}"], "--train .*there is no flow in it"),
    ],
)
def test_the_command_line_refuses_before_the_work(traffic, model, write, tmp_path, capsys, arguments, message):
    places = {"train": traffic.train, "empty": write(pcap([])), "tmp": tmp_path}
    command, *rest = [argument.format(**places) for argument in arguments]
    attacks = tmp_path / "attacks"
    attacks.mkdir()
    (attacks / "scan.pcap").write_bytes(pcap([tcp()]))
    given = [str(traffic.test)] if command == "score" else ["--normal", str(traffic.train), "--attacks", str(attacks)]
    assert main([command, *given, "--model", str(model), *rest]) == 1
    printed = capsys.readouterr()
    assert re.search(message, printed.err)
    assert printed.out == ""
    assert not (tmp_path / "s.csv").exists()


def test_names_of_attacks_cannot_spoil_terminal_table_or_page(traffic, model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "attacks"
    folder.mkdir()
    names = [b"cost$^$.pcap", b"bad\xff.pcap", b"x\x1b[2J.pcap", b"a|b.pcap", b"<script>.pcap"]
    for number, name in enumerate(names):
        packets = [tcp(sport=1000 + n, dport=7000 + number) for n in range(3)]
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(pcap(packets))
    page = tmp_path / "report.html"
    arguments = ["evaluate", "--model", str(model), "--normal", str(traffic.train), "--attacks", str(folder)]
    assert main([*arguments, "--output", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    for shown in ("cost$^$", r"bad\udcff", r"x\x1b[2J", r"a\|b"):
        assert f"| {shown} " in printed
    text = page.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
