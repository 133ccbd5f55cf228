"""The detector among scikit-learn's own tools: cross-validation, searches, routing, memmaps, pandas, joblib."""

import pickle

import joblib
import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklearn_docids import DOCIDSDetector, FlowSampler, ReferenceData
from sklearn_docids.model_selection import NormalOnly

rng = np.random.default_rng(0)
X = rng.integers(0, 256, (24, 12), dtype=np.uint8)
X_REFERENCE, Y_REFERENCE = rng.integers(0, 256, (30, 12), dtype=np.uint8), np.arange(30) % 3


def detector(**parameters):
    return DOCIDSDetector(**{"max_epochs": 1, "random_state": 0, **parameters})


class Recording(DOCIDSDetector):
    """Scores by how many reference rows reached the fit."""

    def fit(self, X, y=None, *, reference=None):
        super().fit(X, y, reference=reference)
        pair = (reference.X, reference.y) if isinstance(reference, ReferenceData) else reference
        self.n_reference_ = len(pair[0]), len(pair[1])
        return self


def n_reference(estimator, X, y=None):
    assert estimator.n_reference_[0] == estimator.n_reference_[1]
    return estimator.n_reference_[0]


recording = Recording(max_epochs=1, random_state=0)


@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize("n_target", [24, 30])  # 30: as many rows as the reference has
@pytest.mark.parametrize("as_tuple", [False, True])
def test_every_fold_gets_the_whole_reference(routing, n_target, as_tuple):
    target = np.resize(X, (n_target, 12))
    reference = (X_REFERENCE, Y_REFERENCE) if as_tuple else ReferenceData(X_REFERENCE, Y_REFERENCE)
    with config_context(enable_metadata_routing=routing):
        scores = cross_val_score(recording, target, cv=3, scoring=n_reference, params={"reference": reference})
    assert scores.tolist() == [30, 30, 30]


@pytest.mark.parametrize("routing", [False, True])
def test_a_reference_is_not_cut_beside_two_rows(routing):
    splits = [(np.array([0, 1]), np.array([0]))]
    fit = {"cv": splits, "scoring": n_reference, "error_score": "raise"}
    with config_context(enable_metadata_routing=routing):
        whole = ReferenceData(X_REFERENCE, Y_REFERENCE)
        assert cross_val_score(recording, X[:2], params={"reference": whole}, **fit).tolist() == [30]
        with pytest.raises(ValueError, match="ReferenceData"):
            cross_val_score(recording, X[:2], params={"reference": (X_REFERENCE, Y_REFERENCE)}, **fit)


def test_a_tuple_beside_two_rows_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"2 rows: .*give ReferenceData"):
        detector().fit(X[:2], reference=(X_REFERENCE, Y_REFERENCE))
    detector().fit(X[:2], reference=ReferenceData(X_REFERENCE, Y_REFERENCE))


def identity(X):
    return X


@pytest.mark.parametrize("routing", [False, True])
def test_pipelines_and_searches_hand_the_reference_on(routing):
    reference = ReferenceData(X_REFERENCE, Y_REFERENCE)
    pipeline = make_pipeline(FunctionTransformer(identity), recording)
    search = GridSearchCV(
        pipeline,
        {"recording__lambda_compactness": [0.0, 0.1]},
        cv=2,
        scoring=lambda e, X, y=None: n_reference(e[-1], X),
    )
    with config_context(enable_metadata_routing=routing):
        name = "reference" if routing else "recording__reference"
        search.fit(X, **{name: reference})
    assert search.cv_results_["mean_test_score"].tolist() == [30, 30]
    assert search.best_estimator_[-1].n_reference_ == (30, 30)


@pytest.mark.parametrize("routing", [False, True])
def test_normal_only_hands_the_reference_on(routing):
    y = np.where(np.arange(24) < 18, 1, -1)
    with config_context(enable_metadata_routing=routing):
        fitted = NormalOnly(recording).fit(X, y, reference=ReferenceData(X_REFERENCE, Y_REFERENCE))
    assert fitted.estimator_.n_reference_ == (30, 30)
    assert fitted.estimator_.history_[0]["pairs"] == 18


def mean_score(estimator, X, y=None):
    return estimator.score_samples(X).mean()


def test_a_search_in_processes_gives_what_one_process_gives():
    results = []
    for n_jobs in (1, 2):
        search = GridSearchCV(
            detector(), {"lambda_reconstruction": [1.0, 10.0]}, cv=2, scoring=mean_score, n_jobs=n_jobs
        )
        search.fit(X, reference=ReferenceData(X_REFERENCE, Y_REFERENCE))
        results.append([*search.cv_results_["mean_test_score"], search.best_estimator_.offset_])
    assert results[0] == results[1]


def test_verdicts_by_cross_validation():
    verdicts = cross_val_predict(detector(), X, cv=3, params={"reference": ReferenceData(X_REFERENCE, Y_REFERENCE)})
    assert set(verdicts) <= {-1, 1}
    assert len(verdicts) == 24


def test_read_only_memmaps_are_taken_and_left_alone(tmp_path):
    for name, rows in {"target": X, "reference": X_REFERENCE}.items():
        np.save(tmp_path / f"{name}.npy", rows)
    target, reference = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("target", "reference"))
    fitted = detector().fit(target, reference=(reference, Y_REFERENCE))
    in_memory = detector().fit(X, reference=(X_REFERENCE, Y_REFERENCE))
    assert (fitted.score_samples(target) == in_memory.score_samples(X)).all()
    assert (fitted.explain(target) == in_memory.explain(X)).all()
    assert (target == X).all()


def test_joblib_and_clone(tmp_path):
    fitted = detector().fit(X, reference=(X_REFERENCE, Y_REFERENCE))
    joblib.dump(fitted, tmp_path / "detector.joblib")
    for mmap_mode in (None, "r"):
        loaded = joblib.load(tmp_path / "detector.joblib", mmap_mode=mmap_mode)
        assert (loaded.score_samples(X) == fitted.score_samples(X)).all()
    again = clone(fitted).fit(X, reference=(X_REFERENCE, Y_REFERENCE))
    assert (again.score_samples(X) == fitted.score_samples(X)).all()


def test_pandas_goes_in_as_target_and_reference():
    pandas = pytest.importorskip("pandas")
    names = FlowSampler(2, 6).get_feature_names_out()
    target, reference = (pandas.DataFrame(rows, columns=names) for rows in (X, X_REFERENCE))
    fitted = detector().fit(target, reference=(reference, pandas.Series(Y_REFERENCE)))
    plain = detector().fit(X, reference=(X_REFERENCE, Y_REFERENCE))
    assert fitted.feature_names_in_.tolist() == names.tolist()
    assert (fitted.score_samples(target) == plain.score_samples(X)).all()


def test_nothing_of_the_rows_but_templates_stays_in_a_fitted_detector():
    marked = X.copy()
    marked[5] = np.arange(100, 112)
    kept = []
    for parameters in ({}, {"score_method": "reconstruction"}, {"warm_start": True}, {"early_stopping": True}):
        fitted = detector(**parameters).fit(marked, reference=(X_REFERENCE, Y_REFERENCE))
        pickled = pickle.dumps(fitted)
        is_template = fitted.template_flows_ is not None and bool((fitted.template_flows_ == marked[5]).all(1).any())
        kept.append(is_template)
        assert (marked[5].tobytes() in pickled) == is_template
        assert X_REFERENCE[3].tobytes() not in pickled
    assert not all(kept)
