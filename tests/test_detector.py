"""DOCIDSDetector: scikit-learn's contract, scores, thresholds, and inputs that must fail well."""

import itertools
import os
import pickle
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import Callback

from sklearn_docids import DOCIDSDetector, ReferenceData, paper
from sklearn_docids._network.folding import DENSE_ROWS
from sklearn_docids._network.scoring import NeighborScorer
from sklearn_docids._thresholds import conformal_threshold
from sklearn_docids._training.run import n_epochs
from sklearn_docids.detectors._reference import checked_reference

NO_REFERENCE = "ignore:fit without a reference:UserWarning"


def blobs(n=60, n_columns=24, seed=0):
    """Target rows around one centre, reference rows around three, and rows far from all."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(40, 200, (4, n_columns))
    noise = rng.integers(-10, 11, (5, n, n_columns))
    X = (centres[0] + noise[0]).astype(np.uint8)
    X_reference = np.concatenate([centres[i] + noise[i] for i in (1, 2, 3)]).astype(np.uint8)
    far = rng.integers(0, 256, (n, n_columns), dtype=np.uint8)
    return X, (X_reference, np.repeat(["dns", "http", "tls"], n)), far


@pytest.fixture(scope="module")
def fitted():
    X, reference, _ = blobs()
    return DOCIDSDetector(max_epochs=10, batch_size=16, random_state=0).fit(X, reference=reference)


@pytest.mark.filterwarnings(NO_REFERENCE)
@parametrize_with_checks(
    [
        DOCIDSDetector(max_epochs=2),
        DOCIDSDetector(max_epochs=2, score_method="knn"),
        DOCIDSDetector(max_epochs=2, early_stopping=True),
    ],
    xfail_strict=True,
)
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("seed", range(3))
def test_estimator_checks_pass_for_other_seeds_and_options(seed):
    detector = paper.detector(max_epochs=1, random_state=seed, dense_activation="relu", batch_norm="joint")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(detector, on_fail=None, on_skip=None)
    assert [r["check_name"] for r in results if r["status"] == "failed"] == []
    assert sum(r["status"] == "passed" for r in results) >= 46


def test_far_rows_score_lower_than_target_rows():
    X, reference, far = blobs()
    detector = DOCIDSDetector(max_epochs=40, batch_size=16, random_state=0).fit(X, reference=reference)
    assert np.median(detector.score_samples(far)) < detector.score_samples(X).min()


def test_knn_scores_are_distances_to_templates_and_find_far_rows():
    X, reference, far = blobs()
    detector = DOCIDSDetector(score_method="knn", n_templates=20, max_epochs=10, batch_size=16, random_state=0)
    scores = detector.fit(X, reference=reference).score_samples(far)
    class_scores = detector.network_.eval().h_c(detector.network_.features(torch.from_numpy(far)))
    distances = np.linalg.norm(class_scores.detach().numpy()[:, None] - detector.templates_[None], axis=2)
    assert detector.templates_.shape == (20, 3)
    assert scores == pytest.approx(-np.sort(distances, axis=1)[:, :5].mean(axis=1), rel=1e-4)
    for n_neighbors, among in ((1, 1), (50, 20)):
        other = NeighborScorer(detector.network_, detector.template_flows_, n_neighbors)
        expected = -np.sort(distances, axis=1)[:, :among].mean(axis=1)
        assert other.score(far, "cpu") == pytest.approx(expected, rel=1e-4)
    assert np.median(scores) < np.quantile(detector.score_samples(X), 0.01)


def test_templates_are_fewer_than_half_of_the_rows_and_set_no_threshold():
    X, reference, _ = blobs()
    detector = DOCIDSDetector(n_neighbors=1, max_epochs=1, random_state=0)
    scores = detector.fit(X, reference=reference).score_samples(X)
    assert len(detector.templates_) == len(detector.template_flows_) == 29
    assert (detector.score_samples(detector.template_flows_) == 0).all()
    assert np.sum(scores == 0) == 29
    assert detector.offset_ == pytest.approx(np.percentile(scores[scores < 0], 1))


def test_templates_score_by_the_nearest_of_the_others(fitted):
    distances = np.linalg.norm(fitted.templates_[:, None] - fitted.templates_[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    expected = -np.sort(distances, axis=1)[:, :5].mean(axis=1)
    assert fitted._scorer.score_templates() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("changed", [{"n_neighbors": 20}, {"score_method": "reconstruction"}, {"scale": 1.0}])
def test_parameters_changed_after_fit_move_neither_score_nor_verdict(fitted, changed):
    X, _, far = blobs()
    detector = pickle.loads(pickle.dumps(fitted)).set_params(**changed)
    assert (detector.score_samples(far) == fitted.score_samples(far)).all()
    assert (detector.predict(X) == fitted.predict(X)).all()


def test_explain_is_the_gradient_of_the_abnormality_by_the_bytes_where_there_are_no_templates():
    X, reference, far = blobs()
    detector = DOCIDSDetector(
        score_method="reconstruction", lambda_reconstruction=10, batch_norm="target", max_epochs=5, batch_size=16,
        random_state=0,
    ).fit(X, reference=reference)  # fmt: skip
    attribution = detector.explain(far[:3])
    assert attribution.shape == (3, 4, 6)
    for byte in range(24):
        step = np.zeros(24)
        step[byte] = 0.05
        rise = detector.score_samples(far[:3] - step) - detector.score_samples(far[:3] + step)
        assert attribution.reshape(3, 24)[:, byte] == pytest.approx(
            rise / 0.1, rel=0.1, abs=0.03 * np.abs(attribution).max()
        )
    with pytest.raises(ValueError, match="fitted with score_method='reconstruction', which keeps no templates"):
        detector.most_similar_templates(far)


def test_explain_attributes_the_score_to_bytes_that_no_template_has():
    X, reference, _ = blobs(n=300)
    X = (X // 4 * 4).astype(np.uint8)  # odd values are seen nowhere
    detector = DOCIDSDetector(max_epochs=10, batch_size=16, random_state=0).fit(X, reference=reference)
    flows, columns = X[:30].copy(), np.arange(30) % 20
    for flow, column in zip(flows, columns, strict=True):
        flow[column : column + 4] = 255 - flow[column : column + 4] // 2 * 2  # odd
    attribution = detector.explain(flows).reshape(30, 24)
    nearest = detector.template_flows_[detector.most_similar_templates(flows)]
    similar = [(detector.template_flows_ == flow).sum(axis=1) for flow in flows]
    assert [(row == flow).sum() for row, flow in zip(nearest, flows, strict=True)] == [row.max() for row in similar]
    unseen = np.array([[value not in detector.template_flows_[:, c] for c, value in enumerate(row)] for row in flows])
    for row, column in enumerate(columns):
        assert unseen[row, column : column + 4].all()
    assert (attribution[~unseen] == 0).all()
    begins = np.where(unseen, nearest, flows)
    rise = detector.score_samples(begins) - detector.score_samples(flows)
    np.testing.assert_allclose(attribution.sum(axis=1), rise, rtol=0.2, atol=0.05 * np.abs(rise).max())


def test_a_flow_of_seen_bytes_is_explained_from_its_nearest_template():
    X, reference, _ = blobs(n=300)
    detector = DOCIDSDetector(max_epochs=10, batch_size=16, random_state=0).fit(X, reference=reference)
    templates = detector.template_flows_
    mixed = np.array([[templates[(i * 7 + c) % len(templates), c] for c in range(24)] for i in range(10)])
    attribution = detector.explain(mixed).reshape(10, 24)
    nearest = templates[detector.most_similar_templates(mixed)]
    assert (attribution[mixed == nearest] == 0).all()
    assert (np.abs(attribution).sum(axis=1) > 0).all()


def test_explain_needs_columns_that_divide_into_packets(fitted):
    flows = blobs()[0][:2]
    assert fitted.explain(flows, n_packets=3).shape == (2, 3, 8)
    for n_packets in (5, 0):
        with pytest.raises(ValueError, match=f"24 columns, which do not divide into n_packets={n_packets}"):
            fitted.explain(flows, n_packets=n_packets)


class Interrupting(Callback):
    """Presses Ctrl-C when a step begins."""

    def __init__(self, step):
        self.step = step

    def on_batch_begin(self, net, **kwargs):
        self.step -= 1
        if self.step == 0:
            raise KeyboardInterrupt


def test_a_fit_that_is_interrupted_before_its_first_step_leaves_nothing():
    X, reference, _ = blobs()
    detector = DOCIDSDetector(max_epochs=1, callbacks=[Interrupting(1)])
    with pytest.raises(KeyboardInterrupt):
        detector.fit(X, reference=reference)
    assert not hasattr(detector, "offset_")


def test_an_interrupted_fit_is_usable_and_says_so():
    X, reference, _ = blobs()
    detector = DOCIDSDetector(max_epochs=50, batch_size=16, random_state=0, callbacks=[Interrupting(30)])
    with (
        pytest.warns(ConvergenceWarning, match="training was interrupted; the weights of step 29 are kept"),
        pytest.raises(KeyboardInterrupt, match="fitted as far as it came"),
    ):
        detector.fit(X, reference=reference)
    assert detector.interrupted_
    assert (detector.n_iter_, sum(epoch["pairs"] for epoch in detector.history_)) == (8, 7 * 60 + 16)
    assert (detector.predict(X) == -1).sum() == 1  # the threshold is that of these weights: 1 % of 60 rows
    assert not detector.set_params(callbacks=None).fit(X, reference=reference).interrupted_


def test_decision_is_score_minus_offset_and_predict_its_sign(fitted):
    X, _, far = blobs()
    rows = np.concatenate([X, far])
    decision = fitted.decision_function(rows)
    assert (decision == fitted.score_samples(rows) - fitted.offset_).all()
    assert (fitted.predict(rows) == np.where(decision < 0, -1, 1)).all()
    assert decision.dtype == np.float64


def test_the_paper_score_is_the_reconstruction_error_of_the_features(fitted):
    X, _, _ = blobs()
    features = fitted.embed(X)
    rebuilt = fitted.network_.autoencoder(torch.from_numpy(features).float()).detach().numpy()
    assert features.shape == (60, 256)
    assert fitted.reconstruction_error(X) == pytest.approx(((rebuilt - features) ** 2).mean(axis=1), rel=1e-4)
    detector = DOCIDSDetector(score_method="reconstruction", max_epochs=1, random_state=0).fit(X, reference=blobs()[1])
    assert (detector.score_samples(X) == -detector.reconstruction_error(X)).all()


def test_a_score_does_not_depend_on_its_neighbours(fitted):
    rows = np.concatenate([blobs(seed=s)[2] for s in range(5)])
    together = fitted.score_samples(rows)
    assert (fitted.score_samples(rows[::-1])[::-1] == together).all()
    assert [fitted.score_samples(rows[i : i + 1])[0] for i in (0, DENSE_ROWS, 299)] == together[
        [0, DENSE_ROWS, 299]
    ].tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_bytes_score_alike_in_every_number_type(fitted, dtype):
    X, _, _ = blobs()
    assert (fitted.score_samples(X.astype(dtype)) == fitted.score_samples(X)).all()


@pytest.mark.parametrize(
    ("parameters", "n_flagged"),
    [
        ({"score_method": "reconstruction"}, 6),
        ({}, 4),  # 1 % of the 301 rows that are no templates
        ({"contamination": 0.1, "score_method": "reconstruction"}, 60),
        ({"contamination": 0.25}, 150),
        ({"contamination": 0.1}, 60),
        ({"contamination": 0.1, "early_stopping": True}, 60),
    ],
)
def test_contamination_is_the_share_of_training_rows_flagged(parameters, n_flagged):
    X, reference, _ = blobs(n=600)
    detector = DOCIDSDetector(max_epochs=1, random_state=0, **parameters).fit(X, reference=reference)
    assert np.sum(detector.predict(X) == -1) == n_flagged


def test_false_alarm_rate_sets_the_threshold_with_rows_that_were_not_trained_on():
    X, reference, _ = blobs(n=600)
    detector = DOCIDSDetector(false_alarm_rate=0.05, max_epochs=2, random_state=0).fit(X, reference=reference)
    assert detector.history_[0]["pairs"] == 480
    scores = detector.score_samples(X)
    assert np.sum(scores == detector.offset_) == 1
    # 0.05 * 121 is 6: the threshold is the 6th lowest of 120 held-out scores.
    assert np.sum(scores < detector.offset_) >= 5


@pytest.mark.parametrize(
    ("n_rows", "rate", "k"), [(19, 0.05, 1), (99, 0.01, 1), (99, 0.29, 29), (120, 0.05, 6), (9, 0.5, 5)]
)
def test_conformal_threshold_is_the_kth_lowest_score(n_rows, rate, k):
    scores = np.random.default_rng(0).permutation(n_rows).astype(float)
    assert conformal_threshold(scores, rate) == k - 1


def test_the_realised_rate_of_false_alarms_is_that_of_the_beta_binomial_distribution():
    # The rate depends on ranks alone, so any continuous scores do; 2,000 draws put the mean within 0.002.
    draws = np.random.default_rng(0).normal(size=(2000, 199 + 100))
    rates = [np.mean(row[199:] < conformal_threshold(row[:199], 0.05)) for row in draws]
    assert np.mean(rates) == pytest.approx(10 / 200, abs=0.002)


def test_a_rate_whose_reciprocal_is_infinite_is_refused_like_others():
    X, reference, _ = blobs()
    with pytest.raises(ValueError, match="false_alarm_rate=5e-324 needs at least 999999999999999999 held-out rows"):
        fit(X, reference, false_alarm_rate=5e-324)


@pytest.mark.parametrize(("n_rows", "rate", "needed"), [(100, 0.01, 99), (20, 0.2, 4), (3, 0.5, 1)])
def test_too_few_rows_for_a_false_alarm_rate_are_named(n_rows, rate, needed):
    X, reference, _ = blobs(n=600)
    fits = n_rows * 0.2 >= needed
    if fits:
        fit(X[:n_rows], reference, false_alarm_rate=rate)
    with pytest.raises(ValueError, match=f"false_alarm_rate={rate} needs at least {needed} held-out rows"):
        fit(X[: n_rows - 1 if fits else n_rows], reference, false_alarm_rate=rate, validation_fraction=0.1)


def test_two_rules_for_one_threshold_are_refused():
    X, reference, _ = blobs()
    with pytest.raises(ValueError, match="contamination and false_alarm_rate both"):
        fit(X, reference, contamination=0.1, false_alarm_rate=0.5)


def test_equal_rows_are_not_flagged_beyond_contamination():
    X = np.repeat(np.arange(4, dtype=np.uint8)[:, None] * 50, 12, axis=1).repeat(100, axis=0)
    detector = DOCIDSDetector(lambda_descriptiveness=0, contamination=0.1, max_epochs=1, random_state=0)
    with pytest.warns(UserWarning, match="separates nothing: all 400 scores that set it are 0,"):
        detector.fit(X)
    assert np.mean(detector.predict(X) == -1) <= 0.1


def test_a_seed_gives_the_same_detector_again():
    X, reference, far = blobs()
    first, second, other = (
        DOCIDSDetector(max_epochs=2, random_state=seed).fit(X, reference=reference).score_samples(far)
        for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_history_has_the_three_losses_of_each_epoch(fitted):
    assert [epoch["epoch"] for epoch in fitted.history_] == list(range(1, 11))
    assert set(fitted.history_[0]) == {
        "epoch",
        "pairs",
        "descriptiveness_loss",
        "compactness_loss",
        "reconstruction_loss",
    }
    assert fitted.n_iter_ == 10
    assert fitted.history_[0]["pairs"] == 60


@pytest.mark.parametrize(("n_rows", "batch_size", "expected"), [(100, 50, 250), (1000, 2, 1), (300, 100, 167)])
def test_max_epochs_auto_gives_about_500_steps(n_rows, batch_size, expected):
    assert n_epochs("auto", n_rows, batch_size) == expected
    assert n_epochs(7, n_rows, batch_size) == 7


def test_verbose_prints_the_losses(capsys):
    X, reference, _ = blobs()
    DOCIDSDetector(max_epochs=2, verbose=1, random_state=0).fit(X, reference=reference)
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("epoch 2/2: descriptiveness ")
    DOCIDSDetector(max_epochs=2, random_state=0).fit(X, reference=reference)
    assert capsys.readouterr().out == ""


def test_reference_data_and_tuple_are_the_same():
    X, reference, far = blobs()
    scores = [
        DOCIDSDetector(max_epochs=1, random_state=0).fit(X, reference=given).score_samples(far)
        for given in (reference, ReferenceData(*reference))
    ]
    assert (scores[0] == scores[1]).all()


def test_reference_classes_are_sorted_labels(fitted):
    assert fitted.reference_classes_.tolist() == ["dns", "http", "tls"]
    assert fitted.network_.h_c.out_features == 3


def test_pickle_and_clone(fitted):
    _, _, far = blobs()
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.score_samples(far) == fitted.score_samples(far)).all()
    assert clone(fitted).get_params() == fitted.get_params()


def test_no_rows_but_templates_are_kept_in_a_fitted_detector():
    X, reference, _ = blobs(n=3000)
    sizes = []
    for settings in ({"score_method": "reconstruction"}, {"n_templates": 4}):
        for rows in (X[:10], X):
            detector = DOCIDSDetector(max_epochs=1, random_state=0, **settings).fit(rows, reference=reference)
            sizes.append(len(pickle.dumps(detector)))
    assert max(sizes) < min(sizes) + 5000


def test_feature_names_are_checked(fitted):
    pandas = pytest.importorskip("pandas")
    X, reference, _ = blobs()
    frame = pandas.DataFrame(X, columns=[f"p0_b{i:02d}" for i in range(24)])
    detector = DOCIDSDetector(max_epochs=1, random_state=0).fit(frame, reference=reference)
    assert detector.feature_names_in_.tolist() == list(frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        detector.predict(frame[frame.columns[::-1]])


# Inputs that must fail well


def fit(X, reference, **parameters):
    return DOCIDSDetector(**{"max_epochs": 1, "random_state": 0, **parameters}).fit(X, reference=reference)


def test_a_reference_with_other_columns_is_named():
    X, (X_reference, y), _ = blobs()
    with pytest.raises(ValueError, match="reference X has 23 columns, but the target X has 24"):
        fit(X, (X_reference[:, 1:], y))


def test_a_one_class_reference_is_refused():
    X, (X_reference, _), _ = blobs()
    with pytest.raises(ValueError, match=r"reference y needs at least 2 classes, got only \['dns'\]"):
        fit(X, (X_reference, ["dns"] * len(X_reference)))


@pytest.mark.parametrize("reference", ["dns", [1, 2], np.zeros((3, 24)), (1, 2, 3)])
def test_what_is_no_reference_is_named(reference):
    with pytest.raises(ValueError, match="reference must be ReferenceData or a tuple"):
        fit(blobs()[0], reference)


def test_reference_labels_must_fit_its_rows():
    X, (X_reference, y), _ = blobs()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fit(X, (X_reference, y[1:]))
    with pytest.raises(ValueError, match="one label per row"):
        fit(X, (X_reference, np.zeros((len(X_reference), 2))))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_in_target_reference_and_scoring(fitted, bad):
    X, (X_reference, y), _ = blobs()
    X_bad, reference_bad = X.astype(float), X_reference.astype(float)
    X_bad[3, 3] = reference_bad[3, 3] = bad
    with pytest.raises(ValueError, match="Input X contains"):
        fit(X_bad, (X_reference, y))
    with pytest.raises(ValueError, match="Input reference X contains"):
        fit(X, (reference_bad, y))
    with pytest.raises(ValueError, match="Input X contains"):
        fitted.score_samples(X_bad)


@pytest.mark.parametrize(
    "method", ["score_samples", "decision_function", "predict", "embed", "reconstruction_error", "explain"]
)
def test_wrong_width_and_unfitted_use_are_refused(fitted, method):
    X, _, _ = blobs()
    with pytest.raises(ValueError, match="X has 23 features, but DOCIDSDetector is expecting 24"):
        getattr(fitted, method)(X[:, 1:])
    with pytest.raises(NotFittedError):
        getattr(DOCIDSDetector(), method)(X)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X.astype(str).astype(object) + "a", "could not convert string to float"),
        (lambda X: scipy.sparse.csr_array(X), "Sparse data was passed"),
        (lambda X: X[0], "Expected 2D array, got 1D array instead"),
        (lambda X: X[None], "Found array with dim 3"),
        (lambda X: X + 1j, "Complex data not supported"),
        (lambda X: np.where(X > 0, np.inf, 0), "Input X contains infinity"),
        (lambda X: X[:, :0], "0 feature"),
    ],
    ids=["strings", "sparse", "1-D", "3-D", "complex", "infinite", "no columns"],
)
def test_input_that_is_no_table_of_numbers_gets_the_usual_message(fitted, change, message):
    X, reference, _ = blobs()
    for use in (lambda X: fit(X, reference), fitted.score_samples):
        with pytest.raises((ValueError, TypeError), match=message):
            use(change(X))


@pytest.mark.parametrize("n_rows", [0, 1])
def test_a_target_of_less_than_two_rows_is_refused(n_rows):
    X, reference, _ = blobs()
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        fit(X[:n_rows], reference)


@pytest.mark.parametrize("batch_size", range(1, 9))
@pytest.mark.parametrize("parameters", [{}, {"score_method": "knn", "batch_norm": "joint", "optimizer": "sgd"}])
def test_every_small_input_fits_or_names_the_argument(batch_size, parameters):
    X, (X_reference, _), _ = blobs(n_columns=4)
    for n_target, n_reference in itertools.product(range(2, 10), range(2, 10)):
        reference = ReferenceData(X_reference[:n_reference], np.arange(n_reference) % 2)
        if batch_size == 1:
            with pytest.raises(ValueError, match="The 'batch_size' parameter of DOCIDSDetector"):
                fit(X[:n_target], reference, batch_size=1, **parameters)
        else:
            detector = fit(X[:n_target], reference, batch_size=batch_size, **parameters)
            assert np.isfinite([detector.offset_, *detector.score_samples(X)]).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 1), ("max_epochs", 0), ("lr", 0), ("lambda_compactness", -1), ("contamination", 0.6),
        ("optimizer", "adam"), ("score_method", "error"), ("batch_norm", "shared"), ("dense_activation", "tanh"),
        ("schedule", "cosine"), ("n_templates", 0),
        ("n_iter_no_change", 0), ("tol", -1.0), ("callbacks", 5),
        ("checkpoint_folder", 5), ("warm_start", "yes"), ("early_stopping", "no"),
        ("false_alarm_rate", 0.6), ("validation_fraction", 1.0), ("scale", 0), ("momentum", 1.0), ("weight_decay", -1),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named(name, value):
    X, reference, _ = blobs()
    with pytest.raises(ValueError, match=f"The '{name}' parameter of DOCIDSDetector"):
        fit(X, reference, **{name: value})


def test_fit_without_a_reference_warns_unless_it_is_meant():
    X, _, _ = blobs()
    with pytest.warns(UserWarning, match="fit without a reference"):
        detector = fit(X, None)
    assert detector.reference_classes_ is None
    assert detector.history_[0]["descriptiveness_loss"] == 0
    fit(X, None, lambda_descriptiveness=0)


def test_a_loss_that_is_not_finite_stops_training_with_its_place_and_finite_weights():
    X, reference, far = blobs()
    with pytest.warns(
        ConvergenceWarning, match=r"not finite in epoch \d+, batch \d+ .*the weights of step \d+ are kept"
    ):
        detector = fit(X, reference, optimizer="sgd", schedule=None, lr=1e6, max_epochs=30)
    assert np.isfinite(detector.score_samples(far)).all()
    assert detector.n_iter_ < 30


def test_large_numbers_stay_finite(fitted):
    X, reference, _ = blobs()
    detector = fit(X.astype(float) * 1e15, (reference[0].astype(float), reference[1]))
    assert np.isfinite(detector.score_samples(X.astype(float) * 1e15)).all()


@pytest.mark.parametrize("lr", [3.0, 30.0])
def test_weights_that_blow_up_in_the_last_step_are_noticed(lr):
    X, reference, far = blobs()
    settings = {"optimizer": "sgd", "schedule": None, "lr": lr * 1e6, "batch_size": 60}
    with pytest.warns(
        ConvergenceWarning, match="not finite after the last step; training stops, the weights of step 0"
    ):
        detector = fit(X, reference, **settings)
    assert np.isfinite(detector.score_samples(far)).all()


@pytest.mark.parametrize("lr", [0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 100.0, 1e4])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_no_learning_rate_gives_a_threshold_that_is_no_number(lr):
    X, reference, _ = blobs()
    detector = DOCIDSDetector(max_epochs=1, optimizer="sgd", schedule=None, lr=lr, batch_size=16, random_state=0)
    message = ""
    try:
        detector.fit(X, reference=reference)
    except ValueError as error:
        message = str(error)
    assert "not finite" in message or np.isfinite([detector.offset_, *detector.score_samples(X)]).all()


def test_numbers_that_float32_cannot_hold_are_refused(fitted):
    X, reference, _ = blobs()
    X = X.astype(float)
    X[0, 0] = 1e39
    for refused in (lambda: fit(X, reference), lambda: fitted.score_samples(X)):
        with pytest.raises(ValueError, match="too large for float32"):
            refused()


def test_nan_is_never_a_normal_verdict(fitted):
    detector = pickle.loads(pickle.dumps(fitted))
    detector.offset_ = np.nan
    assert (detector.predict(blobs()[0]) == -1).all()


@pytest.mark.parametrize("score_method", ["knn", "reconstruction"])
def test_a_score_that_is_not_a_number_raises_instead_of_being_the_most_normal(score_method):
    X, reference, _ = blobs()
    detector = fit(X, reference, score_method=score_method)
    with torch.no_grad():
        detector._scorer.modules.h_c.bias[0] = torch.nan
        detector._scorer.modules.autoencoder[0].bias[0] = torch.inf
        detector._scorer.modules.autoencoder[2].bias[0] = torch.nan
    for method in ("score_samples", "decision_function", "predict"):
        with pytest.raises(ValueError, match="a score is not finite"):
            getattr(detector, method)(X)


class Killing(Callback):
    """Leaves a network whose class scores are 0 for all flows."""

    def on_train_end(self, net, **kwargs):
        with torch.no_grad():
            net.module_.h_c.weight.zero_()


def test_a_network_that_tells_nothing_apart_is_said():
    X, reference, _ = blobs()
    with pytest.warns(ConvergenceWarning, match="the same of 60 different training rows"):
        fit(X, reference, callbacks=[Killing()])


@pytest.mark.parametrize("parameters", [{}, {"score_method": "reconstruction"}, {"false_alarm_rate": 0.4}])
def test_a_threshold_of_rows_that_are_all_alike_is_said(parameters):
    """It is not the network that is to blame."""
    X, reference, _ = blobs()
    with pytest.warns(UserWarning, match="separates nothing: all [0-9]+ scores that set it are") as caught:
        fit(np.tile(X[:1], (20, 1)), reference, **parameters)
    assert len(caught) == 1


def work(args):
    detector, rows = args
    return detector.score_samples(rows)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_scoring_goes_on_in_a_forked_process():
    """torch's threads do not survive a fork: the child would wait for them for ever."""
    code = f"""
        import multiprocessing, sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        import numpy as np, torch
        from test_detector import blobs, fit, work
        torch.set_num_threads(2)
        X, reference, _ = blobs(n=2000, n_columns=320)
        detector = fit(X[:100], reference)
        expected = detector.score_samples(X)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            found = pool.map_async(work, [(detector, X[:1000]), (detector, X[1000:])]).get(100)
        np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5)
        assert torch.get_num_threads() == 2
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, timeout=150)


def test_explain_is_finite_at_templates():
    X, reference, _ = blobs()
    detector = fit(X, reference, score_method="knn")
    assert np.isfinite(detector.explain(X)).all()


def test_a_refused_refit_does_not_look_fitted():
    X, (X_reference, y), _ = blobs()
    detector = fit(X, (X_reference, y))
    with pytest.raises(ValueError, match="at least 2 classes"):
        detector.fit(X[:, :12], reference=(X_reference[:, :12], ["a"] * len(y)))
    with pytest.raises(NotFittedError):
        detector.predict(X[:, :12])
    with pytest.raises(NotFittedError):
        check_is_fitted(detector)


def test_large_integers_of_another_type_keep_their_class():
    X, (X_reference, _), _ = blobs()
    labels = np.array([2**60, 2**60 + 1, 2**60 + 2]).repeat(60)
    detector = fit(X, (X_reference, labels))
    given = checked_reference(detector, (X_reference, labels.astype(np.uint64)), 60, True, detector.reference_classes_)
    assert np.bincount(given["labels"]).tolist() == [60, 60, 60]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1.5, np.nan], "strings or whole numbers"),
        ([None, "a"], "mixes labels"),
        ([1.0, np.nan], "strings or whole numbers"),
        ([1.0, np.inf], "strings or whole numbers"),
        (["dns", np.nan], "mixes labels"),
        ([1, "1"], "mixes labels"),
        ([True, 1], "mixes labels"),
        ([b"dns", b"tls"], "strings or whole numbers"),
        ([("dns",), ("tls",)], "one label per row"),
    ],
)
def test_labels_that_name_no_class_are_refused(labels, message):
    X, (X_reference, _), _ = blobs()
    with pytest.raises(ValueError, match=message):
        fit(X, (X_reference, labels * (len(X_reference) // 2)))


def test_reference_columns_in_another_order_are_refused():
    pandas = pytest.importorskip("pandas")
    X, (X_reference, y), _ = blobs()
    names = [f"b{i}" for i in range(24)]
    reversed_reference = pandas.DataFrame(X_reference, columns=names)[names[::-1]]
    with pytest.raises(ValueError, match="other column names"):
        fit(pandas.DataFrame(X, columns=names), (reversed_reference, y))


def test_an_unknown_device_is_named():
    X, reference, _ = blobs()
    with pytest.raises(ValueError, match="device must be 'auto' or one of"):
        fit(X, reference, device="nonsense")


def test_paper_settings_are_those_stated():
    stated = {
        "lambda_descriptiveness": 1.0, "lambda_compactness": 0.1, "lambda_reconstruction": 10.0, "optimizer": "sgd",
        "lr": 5e-5, "weight_decay": 5e-4, "score_method": "reconstruction", "schedule": None,
    }  # fmt: skip
    assert stated.items() <= paper.detector().get_params().items()
    sampler = paper.sampler().get_params()
    assert {
        "n_packets": 4,
        "n_bytes": 80,
        "idle_timeout": None,
        "tcp_restart": False,
        "fields": "paper",
    }.items() <= sampler.items()
    assert paper.detector(lr=1e-3).lr == 1e-3


def eager_scores(detector, X):
    """Score with the network as it is, row by row of the definition."""
    network = detector.network_.eval()
    with torch.no_grad():
        features = network.features(torch.from_numpy(X))
        if detector.templates_ is None:
            return -(network.autoencoder(features) - features).square().mean(dim=1).double().numpy()
        places = network.h_c(features).double().numpy()
    distances = np.linalg.norm(places[:, None] - detector.templates_[None], axis=2)
    return -np.sort(distances, axis=1)[:, : detector.n_neighbors].mean(axis=1)


def shuffle_norms(network, seed=0):
    """Give batch normalisations statistics and factors of all kinds, negative ones and zero included."""
    rng = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            for name, spread in (("weight", 1.0), ("bias", 1.0), ("running_mean", 0.5)):
                value = getattr(layer, name)
                with torch.no_grad():
                    value.copy_(torch.randn(value.shape, generator=rng) * spread)
            with torch.no_grad():
                layer.weight[::7] = 0
            layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=rng) + 0.3)


@pytest.mark.parametrize("dense_activation", [None, "relu"])
@pytest.mark.parametrize("n_columns", [1, 3, 24, 321])
def test_the_folded_network_computes_the_same_scores(dense_activation, n_columns):
    X, (X_reference, y_reference), far = blobs(n_columns=n_columns)
    detector = DOCIDSDetector(
        score_method="reconstruction", max_epochs=1, batch_size=16, random_state=0, dense_activation=dense_activation
    )
    detector.fit(X, reference=(X_reference, y_reference))
    shuffle_norms(detector.network_)
    detector._scorer = detector._make_scorer(detector.network_, {})
    rows = np.concatenate([X, far])
    for end in range(0, n_columns + 1, max(1, n_columns // 9)):
        cut = rows.copy()
        cut[:, end:] = 0
        expected = eager_scores(detector, cut)
        deviation = np.abs(detector.score_samples(cut) - expected) / np.maximum(np.abs(expected), np.median(-expected))
        assert deviation.max() < 2e-6


def test_scores_are_those_of_the_end_of_fit_and_pickles_hold_no_tensors(monkeypatch):
    X, reference, _ = blobs()
    detector = DOCIDSDetector(max_epochs=1, batch_size=16, random_state=0).fit(X, reference=reference)
    before = detector.score_samples(X)

    def stored(*args):
        raise AssertionError("a tensor is pickled: where it was on a graphics card, it cannot be read without one")

    monkeypatch.setattr(torch.storage.UntypedStorage, "__reduce__", stored)
    monkeypatch.setattr(torch.Tensor, "__reduce_ex__", stored)
    pickled = pickle.dumps(detector)
    monkeypatch.undo()
    assert len(pickled) < 24e6
    with torch.no_grad():
        detector.network_.g[0].weight.mul_(2)
    assert (detector.score_samples(X) == before).all()
    again = pickle.loads(pickled)
    assert (again.score_samples(X) == before).all()
    assert again.network_.g[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.requires_grad for parameter in again.network_.parameters())


def test_rows_that_end_in_zeros_score_alike_alone_and_among_others(fitted):
    X, _, _ = blobs()
    rows = X.copy()
    for i in range(len(rows)):
        rows[i, i % 25 :] = 0
    together = fitted.score_samples(rows)
    assert [fitted.score_samples(rows[i : i + 1])[0] for i in range(len(rows))] == together.tolist()
