"""DOCFeatures and the simple baselines: scikit-learn's checks, what is trained and what is frozen, scores by hand."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.svm import OneClassSVM
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_docids import DOCFeatures, ReferenceData
from sklearn_docids.detectors import NearestNeighborDetector, StatisticDetector

rng = np.random.default_rng(0)
X = rng.integers(0, 256, (60, 24), dtype=np.uint8)
X_REFERENCE, Y_REFERENCE = rng.integers(0, 256, (50, 24), dtype=np.uint8), np.arange(50) % 3
REFERENCE = ReferenceData(X_REFERENCE, Y_REFERENCE)


def expected_to_fail(estimator):
    """Return checks that want training rows flagged: none is, by a number they share or a distance of 0."""
    if isinstance(estimator, DOCFeatures):
        return {}
    reason = "no training row scores below the others"
    return dict.fromkeys(("check_outliers_fit_predict", "check_outliers_train"), reason)


@pytest.mark.filterwarnings("ignore:fit without a reference:UserWarning")
@parametrize_with_checks(
    [
        DOCFeatures(max_epochs=2),
        StatisticDetector(),
        StatisticDetector("bytes"),
        NearestNeighborDetector(),
        NearestNeighborDetector(n_neighbors=2, n_templates=20, random_state=0),
    ],
    expected_failed_checks=expected_to_fail,
)
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)  # raises where the estimator does not do as scikit-learn asks


def weights(features):
    return {name: value.clone() for name, value in features.network_.state_dict().items()}


def test_pretraining_starts_from_the_reference_alone():
    settings = {"max_epochs": 1, "random_state": 0}
    pretrained = DOCFeatures(pretrain_epochs=30, **settings).fit(X, reference=REFERENCE)
    fresh = DOCFeatures(**settings).fit(X, reference=REFERENCE)
    assert pretrained.history_[0]["descriptiveness_loss"] < 0.5 * fresh.history_[0]["descriptiveness_loss"]
    assert [epoch["epoch"] for epoch in fresh.history_] == [1]
    assert pretrained.n_iter_ == fresh.n_iter_ == len(pretrained.history_) == 1
    assert set(fresh.history_[0]) == {"epoch", "pairs", "descriptiveness_loss", "compactness_loss"}


def test_frozen_layers_keep_the_pretrained_weights():
    settings = {"pretrain_epochs": 2, "freeze": "all_but_last_4", "random_state": 0}
    short = weights(DOCFeatures(max_epochs=1, **settings).fit(X, reference=REFERENCE))
    long = weights(DOCFeatures(max_epochs=5, **settings).fit(X, reference=REFERENCE))
    learned = [name for name in short if name.endswith(("weight", "bias")) and not name.startswith("autoencoder")]
    unchanged = [name for name in learned if torch.equal(short[name], long[name])]
    assert unchanged == ["g.0.weight", "g.0.bias", "g.2.weight", "g.2.bias"]
    free = weights(DOCFeatures(**{**settings, "freeze": "none"}, max_epochs=5).fit(X, reference=REFERENCE))
    assert not torch.equal(free["g.0.weight"], long["g.0.weight"])


def test_features_are_those_of_g():
    features = DOCFeatures(max_epochs=1, random_state=0).fit(X, reference=REFERENCE)
    with torch.no_grad():
        expected = features.network_.features(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(features.transform(X), expected, rtol=1e-4, atol=1e-4)
    assert features.get_feature_names_out()[:2].tolist() == ["docfeatures0", "docfeatures1"]


@pytest.mark.parametrize("classifier", [OneClassSVM(), NearestNeighborDetector(n_templates=40, random_state=0)])
def test_one_class_classifiers_stand_behind_it(classifier):
    pipeline = make_pipeline(DOCFeatures(max_epochs=1, random_state=0), classifier)
    pipeline.fit(X, docfeatures__reference=REFERENCE)
    assert set(pipeline.predict(X)) <= {1, -1}
    assert np.isfinite(pipeline.score_samples(X)).all()


def test_no_training_flow_stays_in_it():
    pickled = pickle.dumps(DOCFeatures(max_epochs=1, random_state=0, pretrain_epochs=1).fit(X, reference=REFERENCE))
    assert not any(flow.tobytes() in pickled for flow in (*X, *X_REFERENCE))


def test_pretraining_without_a_reference_raises():
    with pytest.raises(ValueError, match="pretrain_epochs=1 needs a reference"):
        DOCFeatures(pretrain_epochs=1).fit(X)


def test_pretraining_that_diverges_warns_and_leaves_features():
    settings = {"lr": 1e20, "schedule": None, "optimizer": "sgd", "max_epochs": 2, "batch_size": 16}
    with pytest.warns(ConvergenceWarning):
        features = DOCFeatures(pretrain_epochs=2, **settings).fit(X, reference=REFERENCE)
    assert np.isfinite(features.transform(X)).all()
    assert features.n_iter_ == len(features.history_)


@pytest.mark.parametrize("pretrain_epochs", [0, 1])
@pytest.mark.parametrize(
    ("reference", "message"),
    [(5, "reference must be ReferenceData"), ((X_REFERENCE[:, :10], Y_REFERENCE), "reference X has 10 columns")],
)
def test_an_unusable_reference_is_refused_by_name(pretrain_epochs, reference, message):
    with pytest.raises(ValueError, match=message):
        DOCFeatures(pretrain_epochs=pretrain_epochs, max_epochs=1).fit(X, reference=reference)


def test_statistics_by_hand():
    rows = np.zeros((4, 24), np.uint8)
    rows[:2, :5] = 1, 1, 0, 0, 9  # one packet of 5 bytes
    rows[2, :10] = 1  # two packets, 6 and 4 bytes
    rows[3, 22] = 64  # the fourth packet, 5 bytes
    counted = {"packets": {1: 3, 2: 1}, "bytes": {5: 3, 10: 1}, "ttl": {0: 3, 64: 1}}
    of_rows = {"packets": [1, 1, 2, 1], "bytes": [5, 5, 10, 5], "ttl": [0, 0, 0, 64]}
    for statistic, counts in counted.items():
        detector = StatisticDetector(statistic).fit(rows)
        assert detector.values_.tolist() == list(counts)
        assert detector.score_samples(rows).tolist() == [counts[value] / 4 for value in of_rows[statistic]]
        assert detector.score_samples(np.full((1, 24), 7)).tolist() == [0.0]  # a number never seen


def test_a_ttl_needs_its_column():
    with pytest.raises(ValueError, match="the time to live stands in column 22"):
        StatisticDetector("ttl").fit(X[:, :20])


def test_the_score_is_the_mean_distance_to_the_nearest():
    training, new = X[:40].astype(float), X[40:].astype(float)
    distances = np.sort(np.sqrt(((new[:, None] - training[None]) ** 2).sum(axis=2)), axis=1)
    for k in (1, 3):
        detector = NearestNeighborDetector(k).fit(training)
        np.testing.assert_allclose(detector.score_samples(new), -distances[:, :k].mean(axis=1), rtol=1e-6)


def test_templates_are_as_many_as_asked_for_and_drawn_with_the_seed():
    few = [NearestNeighborDetector(n_templates=5, random_state=seed).fit(X).score_samples(X) for seed in (0, 0, 1)]
    assert (few[0] == 0).sum() == 5
    np.testing.assert_array_equal(few[0], few[1])
    assert not np.array_equal(few[0], few[2])
    assert (NearestNeighborDetector().fit(X).offset_) < 0  # no row is its own neighbour in the threshold


def test_fewer_templates_than_neighbours_are_refused():
    with pytest.raises(ValueError, match="n_templates=2 are fewer than n_neighbors=5"):
        NearestNeighborDetector(n_neighbors=5, n_templates=2).fit(X)


SIMPLE = [StatisticDetector(), NearestNeighborDetector()]


@pytest.mark.parametrize("detector", SIMPLE)
def test_a_reference_is_taken_and_ignored(detector):
    with_reference = clone(detector).fit(X, reference=REFERENCE)
    assert with_reference.score_samples(X).tolist() == clone(detector).fit(X).score_samples(X).tolist()


@pytest.mark.parametrize("detector", SIMPLE)
def test_a_refused_fit_leaves_nothing_of_the_one_before(detector):
    fitted = clone(detector).fit(X)
    fitted.note_ = "mine"
    fitted.set_params(contamination=2)
    with pytest.raises(ValueError, match="'contamination' parameter"):
        fitted.fit(X)
    assert vars(fitted) == {**fitted.get_params(), "note_": "mine"}
    with pytest.raises(NotFittedError):
        fitted.score_samples(X)


def test_a_threshold_that_flags_none_of_its_rows_is_said():
    twice = np.repeat(X, 2, axis=0)
    with pytest.warns(
        UserWarning, match="separates nothing: all 120 scores that set it are 0, and whatever scores lower"
    ):
        NearestNeighborDetector().fit(twice)
    far = np.concatenate([X[:50], np.full((10, 24), 5000)])
    with pytest.warns(UserWarning, match="flags none of the rows it was set by: 10 of 60 share the lowest score, -"):
        NearestNeighborDetector(10, contamination=0.1).fit(far)
    NearestNeighborDetector(10, contamination=0.2).fit(far)  # more than those ten
    NearestNeighborDetector(10, contamination=0.01).fit(far)  # less than a row
