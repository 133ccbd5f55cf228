"""Search the weights of the three losses with GridSearchCV, on flows that are sampled once.

Attacks are needed to measure, never to train: `NormalOnly` drops them from every fit, the refit included. The flows
searched on are a validation set; the test capture of a real study stays out of it.
"""

import tempfile

import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklearn_docids import DOCIDSDetector, FlowSampler, ReferenceData
from sklearn_docids.datasets import make_traffic
from sklearn_docids.metrics import attack_roc_auc_score
from sklearn_docids.model_selection import NormalOnly, make_flow_scorer


def main(n_flows=120, max_epochs=8):
    """Run a grid of eight weightings; return the fitted search."""
    with tempfile.TemporaryDirectory() as folder:
        traffic = make_traffic(folder, n_flows=n_flows, n_reference=20, n_attacks=10, random_state=0)
        sampler = FlowSampler(fields="portable", random_state=0)
        reference = ReferenceData(*sampler.sample(traffic.reference, traffic.reference_classes)[:2])
        X, attack, _ = sampler.sample(traffic.test, traffic.attack_of)
    y = np.where(attack == "", 1, -1)
    search = GridSearchCV(
        NormalOnly(DOCIDSDetector(max_epochs=max_epochs, batch_size=32, random_state=0)),
        {
            "estimator__lambda_descriptiveness": [0.1, 1.0],
            "estimator__lambda_compactness": [0.01, 0.1],
            "estimator__lambda_reconstruction": [1.0, 10.0],
        },
        scoring=make_flow_scorer(attack_roc_auc_score),
        cv=StratifiedKFold(3, shuffle=True, random_state=0),
    )
    search.fit(X, y, reference=reference)
    for parameters, mean, spread in zip(
        search.cv_results_["params"],
        search.cv_results_["mean_test_score"],
        search.cv_results_["std_test_score"],
        strict=True,
    ):
        weights = ", ".join(f"{name.removeprefix('estimator__lambda_')} {value}" for name, value in parameters.items())
        print(f"ROC-AUC {mean:.3f} +- {spread:.3f}: {weights}")
    return search


if __name__ == "__main__":
    main()
