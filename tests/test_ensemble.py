"""SeedEnsemble: scikit-learn's checks, different seeds, the mean of scaled scores, the reference in every fit."""

import numpy as np
import pytest
import sklearn
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_docids import AutoencoderDetector, DOCIDSDetector, ReferenceData
from sklearn_docids.detectors import SeedEnsemble
from sklearn_docids.model_selection import NormalOnly

rng = np.random.default_rng(0)
X = rng.integers(0, 256, (60, 12), dtype=np.uint8)


@parametrize_with_checks([SeedEnsemble(AutoencoderDetector(max_epochs=1), n_estimators=2)], xfail_strict=True)
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)  # raises where the estimator does not do as scikit-learn asks


def test_scores_are_the_mean_of_the_scaled_scores_of_fits_with_different_seeds():
    reference = ReferenceData(X[:30], np.arange(30) % 2)
    ensemble = SeedEnsemble(DOCIDSDetector(max_epochs=1), n_estimators=3, contamination=0.1, random_state=0)
    scores = ensemble.fit(X, reference=reference).score_samples(X)
    seeds = [estimator.random_state for estimator in ensemble.estimators_]
    assert len(set(seeds)) == 3
    alone = [
        DOCIDSDetector(max_epochs=1, random_state=seed).fit(X, reference=reference).score_samples(X) for seed in seeds
    ]
    np.testing.assert_allclose(scores, np.mean([s / np.abs(s).mean() for s in alone], axis=0))
    assert np.sum(ensemble.predict(X) == -1) == 6


def test_a_pipeline_gets_the_seeds_in_its_steps_and_names_of_columns_are_kept():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=[f"byte {number}" for number in range(12)])
    ensemble = SeedEnsemble(make_pipeline(StandardScaler(), AutoencoderDetector(max_epochs=1)), n_estimators=2).fit(
        frame
    )
    assert len({estimator[-1].random_state for estimator in ensemble.estimators_}) == 2
    assert ensemble.feature_names_in_.tolist() == frame.columns.tolist()
    assert not hasattr(SeedEnsemble(AutoencoderDetector(max_epochs=1), n_estimators=1).fit(X), "feature_names_in_")


def test_a_reference_is_routed_through_wrappers():
    reference = ReferenceData(X[:30], np.arange(30) % 2)
    with sklearn.config_context(enable_metadata_routing=True):
        detector = DOCIDSDetector(max_epochs=1).set_fit_request(reference=True)
        wrapped = NormalOnly(SeedEnsemble(detector, n_estimators=2)).fit(X, np.ones(60), reference=reference)
    assert wrapped.estimator_.estimators_[0].reference_classes_ is not None


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (DOCIDSDetector(false_alarm_rate=0.1), "false_alarm_rate of the estimator would be ignored"),
        (OneClassSVM(), "has no random_state"),
    ],
)
def test_an_estimator_that_makes_no_sense_in_an_ensemble_is_refused(estimator, message):
    with pytest.raises(ValueError, match=message):
        SeedEnsemble(estimator).fit(X)


def test_a_refused_fit_leaves_nothing_of_the_one_before():
    ensemble = SeedEnsemble(AutoencoderDetector(max_epochs=1), n_estimators=2).fit(X)
    ensemble.note_ = "mine"
    with pytest.raises(ValueError, match="contains NaN"):
        ensemble.fit(np.full((5, 12), np.nan))
    assert vars(ensemble) == {**ensemble.get_params(deep=False), "note_": "mine"}
    with pytest.raises(NotFittedError):
        ensemble.score_samples(X)


def test_a_threshold_of_rows_that_are_all_alike_is_said():
    with pytest.warns(UserWarning, match="separates nothing: all 20 scores that set it are") as caught:
        SeedEnsemble(AutoencoderDetector(max_epochs=1), n_estimators=1).fit(np.tile(X[:1], (20, 1)))
    assert ["are -1, and" in str(warning.message) for warning in caught] == [False, True]  # of its member, too
