"""SeedEnsemble: scikit-learn's checks, different seeds, the mean of scaled scores, the reference in every fit."""

import numpy as np
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_docids import AutoencoderDetector, DOCIDSDetector, ReferenceData
from sklearn_docids.ensemble import SeedEnsemble

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
