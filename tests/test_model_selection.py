"""Pipelines and searches: the reference arrives whole, and no attack row is ever trained on."""

import pickle

import numpy as np
import pytest
import sklearn
from captures import pcap, tcp, udp
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import _num_samples

from sklearn_docids import DOCIDSDetector, FlowSampler, ReferenceData
from sklearn_docids.metrics import attack_roc_auc_score, recall_at_fpr_score
from sklearn_docids.model_selection import NormalOnly, NormalTrainSplit, make_flow_scorer

rng = np.random.default_rng(0)
ATTACK_MARK = 255
X = rng.integers(0, 200, (40, 12), dtype=np.uint8)
Y = np.repeat([1, -1], [30, 10])
X[Y == -1, 0] = ATTACK_MARK
X_REFERENCE, Y_REFERENCE = rng.integers(0, 200, (40, 12), dtype=np.uint8), np.arange(40) % 2
GRID = {
    "estimator__lambda_descriptiveness": [1.0],
    "estimator__lambda_compactness": [0.0, 0.1],
    "estimator__lambda_reconstruction": [1.0, 10.0],
}
SEEN = []
SCORER = make_flow_scorer(attack_roc_auc_score)


class SpyDetector(DOCIDSDetector):
    """Notes what reaches ``fit``."""

    def fit(self, X, y=None, *, reference=None):
        SEEN.append((X, reference))
        return super().fit(X, y, reference=reference)


@pytest.fixture
def spy():
    SEEN.clear()
    return SpyDetector(max_epochs=1, random_state=0)


@pytest.fixture(params=[False, True], ids=["routing off", "routing on"])
def routing(request):
    with sklearn.config_context(enable_metadata_routing=request.param):
        yield request.param


def searched(detector):
    search = GridSearchCV(
        NormalOnly(detector), GRID, scoring=make_flow_scorer(attack_roc_auc_score), cv=StratifiedKFold(3)
    )
    return search.fit(X, Y, reference=ReferenceData(X_REFERENCE, Y_REFERENCE))


def test_no_attack_row_reaches_any_fit_of_a_search_refit_included(spy, routing):
    search = searched(spy)
    assert len(SEEN) == 4 * 3 + 1
    assert all((rows[:, 0] != ATTACK_MARK).all() for rows, _ in SEEN)
    assert [len(rows) for rows, _ in SEEN] == [20] * 12 + [30]
    assert search.best_estimator_.n_normal_ == 30
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_the_whole_reference_reaches_every_fit(spy, routing):
    searched(spy)
    assert all(reference.X is X_REFERENCE for _, reference in SEEN)


def test_without_the_wrapper_attacks_would_be_trained_on(spy):
    grid = {"lambda_compactness": [0.1]}
    GridSearchCV(spy, grid, scoring=make_flow_scorer(attack_roc_auc_score), cv=StratifiedKFold(3)).fit(
        X, Y, reference=ReferenceData(X_REFERENCE, Y_REFERENCE)
    )
    assert any((rows[:, 0] == ATTACK_MARK).any() for rows, _ in SEEN)


def test_a_search_by_a_scorer_picks_by_its_metric(spy):
    search = searched(spy)
    best = search.best_index_
    assert search.cv_results_["mean_test_score"][best] == max(search.cv_results_["mean_test_score"])
    assert (search.predict(X) == search.best_estimator_.estimator_.predict(X)).all()


def test_cross_val_score_with_params(spy, routing):
    scores = cross_val_score(
        NormalOnly(spy), X, Y, scoring=make_flow_scorer(recall_at_fpr_score, max_fpr=0.5), cv=StratifiedKFold(2),
        params={"reference": ReferenceData(X_REFERENCE, Y_REFERENCE)},
    )  # fmt: skip
    assert ((scores >= 0) & (scores <= 1)).all()


def test_a_search_may_run_in_processes():
    detector = DOCIDSDetector(max_epochs=1, random_state=0)
    grid = {"estimator__lambda_compactness": [0.0, 0.1]}
    results = [
        GridSearchCV(NormalOnly(detector), grid, scoring=SCORER, cv=StratifiedKFold(2), n_jobs=n_jobs)
        .fit(X, Y, reference=ReferenceData(X_REFERENCE, Y_REFERENCE))
        .cv_results_["mean_test_score"]
        for n_jobs in (1, 2)
    ]
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize(
    ("y", "message"), [(np.zeros(40), r"must be \+1 \(normal\) and -1"), (-np.ones(40), "no normal row")]
)
def test_labels_that_leave_nothing_to_fit_on_raise(y, message):
    with pytest.raises(ValueError, match=message):
        NormalOnly(IsolationForest()).fit(X, y)


def test_the_wrapper_hands_scores_and_decisions_on():
    wrapped = NormalOnly(IsolationForest(random_state=0)).fit(X, Y)
    alone = IsolationForest(random_state=0).fit(X[Y == 1])
    for method in ("score_samples", "decision_function", "predict"):
        assert (getattr(wrapped, method)(X) == getattr(alone, method)(X)).all()


def test_a_fitted_search_can_be_pickled(spy):
    search = searched(DOCIDSDetector(max_epochs=1, random_state=0))
    assert (pickle.loads(pickle.dumps(search)).predict(X) == search.predict(X)).all()


def test_the_wrapper_hands_fit_parameters_to_a_pipeline():
    pipeline = Pipeline([("detector", DOCIDSDetector(max_epochs=1, random_state=0))])
    wrapped = NormalOnly(pipeline).fit(X, Y, detector__reference=(X_REFERENCE, Y_REFERENCE))
    assert wrapped.estimator_["detector"].reference_classes_.tolist() == [0, 1]


# Pipelines from captures


@pytest.fixture
def traffic(write):
    """Two captures of normal flows and one with a longer payload."""
    normal = [write(pcap([udp(sport=s, payload=bytes([s] * 20)) for s in range(1, n)]), f"{n}.pcap") for n in (30, 20)]
    odd = write(pcap([tcp(sport=s, payload=b"\xff" * 60) for s in range(1, 10)]), "odd.pcap")
    return normal, odd


def make_pipeline():
    detector = DOCIDSDetector(max_epochs=20, batch_size=16, random_state=0)
    return Pipeline([("sampler", FlowSampler(random_state=0)), ("detector", detector)])


def test_a_pipeline_goes_from_captures_to_scores(traffic, write, routing):
    normal, odd = traffic
    references = [write(pcap([udp(sport=s, payload=p * 9) for s in range(1, 20)]), f"{p}.pcap") for p in (b"a", b"b")]
    X_reference, y_reference, _ = FlowSampler(random_state=0).sample(references, ["a", "b"])
    pipeline = make_pipeline()
    if routing:
        pipeline.fit(normal, reference=(X_reference, y_reference))
    else:
        pipeline.fit(normal, detector__reference=(X_reference, y_reference))
    scores = pipeline.score_samples(odd)
    assert scores.shape == (9,)
    assert pipeline.predict(normal).shape == (48,)
    # Trained on random addresses, scored on the real ones.
    detector = DOCIDSDetector(max_epochs=20, batch_size=16, random_state=0)
    detector.fit(FlowSampler(random_state=0).fit_transform(normal), reference=(X_reference, y_reference))
    assert (scores == detector.score_samples(FlowSampler().transform(odd))).all()


def test_a_flow_scorer_takes_labels_per_capture(traffic):
    normal, odd = traffic
    pipeline = make_pipeline().set_params(detector__lambda_descriptiveness=0).fit(normal)
    scorer = make_flow_scorer(attack_roc_auc_score)
    labels = [np.ones(29), np.ones(19), -np.ones(9)]
    flat = attack_roc_auc_score(np.concatenate(labels), pipeline.score_samples([*normal, odd]))
    assert scorer(pipeline, [*normal, odd], labels) == flat
    with pytest.raises(ValueError, match="y has 48 labels, but X has 57 flows"):
        scorer(pipeline, [*normal, odd], labels[:2])


class AllNormal(NormalOnly):
    """scikit-learn's checks label rows 0, 1, 2 and so on, which `NormalOnly` refuses on purpose."""

    def fit(self, X, y=None, **fit_params):
        return super().fit(X, np.ones(_num_samples(X)), **fit_params)


@parametrize_with_checks(
    [
        AllNormal(IsolationForest(n_estimators=5, random_state=0)),
        AllNormal(DOCIDSDetector(max_epochs=2, random_state=0, lambda_descriptiveness=0)),
    ],
    xfail_strict=True,
)
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)


def test_boolean_labels_are_refused_and_a_refused_refit_does_not_look_fitted():
    detector = NormalOnly(IsolationForest(random_state=0)).fit(X, Y)
    with pytest.raises(ValueError, match=r"\+1 \(normal\) and -1 \(attack\)"):
        detector.fit(X, np.ones(len(X), bool))
    with pytest.raises(NotFittedError):
        detector.predict(X)


def test_attributes_of_the_detector_are_there_when_it_has_them():
    detector = NormalOnly(IsolationForest(random_state=0))
    assert not hasattr(detector, "n_features_in_")
    X = np.arange(10.0)[:, None]
    detector.fit(X, np.ones(10))
    assert (detector.n_features_in_, detector.offset_) == (1, detector.estimator_.offset_)
    assert not hasattr(detector, "feature_names_in_")


@pytest.mark.parametrize("shuffle", [True, False])
def test_folds_train_on_normal_rows_and_test_all_attacks(shuffle):
    splitter = NormalTrainSplit(3, shuffle=shuffle, random_state=0 if shuffle else None)
    folds = list(splitter.split(X, Y))
    assert len(folds) == splitter.get_n_splits() == 3
    for train, test in folds:
        assert np.all(Y[train] == 1)
        assert set(np.flatnonzero(Y == -1)) <= set(test)
        assert not set(train) & set(test)
        assert len(train) + len(test) == len(X)
    tested = np.sort(np.concatenate([test[Y[test] == 1] for _, test in folds]))
    np.testing.assert_array_equal(tested, np.flatnonzero(Y == 1))
    in_order = all(np.all(np.diff(test[Y[test] == 1]) == 1) for _, test in folds)
    assert in_order != shuffle


def test_normal_rows_of_a_group_stay_together():
    groups = np.arange(len(X)) % 5
    for train, test in NormalTrainSplit(5).split(X, Y, groups):
        assert not set(groups[train]) & set(groups[test[Y[test] == 1]])


def test_groups_reach_the_folds_by_metadata_routing():
    groups = np.arange(len(X)) % 4
    detector = NormalOnly(IsolationForest(n_estimators=2, random_state=0))
    scorer = make_flow_scorer(attack_roc_auc_score)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = cross_val_score(detector, X, Y, cv=NormalTrainSplit(4), scoring=scorer, params={"groups": groups})
    by_hand = []
    for train, test in NormalTrainSplit(4).split(X, Y, groups):
        fitted = IsolationForest(n_estimators=2, random_state=0).fit(X[train])
        by_hand.append(attack_roc_auc_score(Y[test], fitted.score_samples(X[test])))
    np.testing.assert_allclose(routed, by_hand)
