"""Choose the weights of the losses without a single attack: classes of the reference stand in for attacks.

Some classes of the reference are taken out of it and used as anomalies to measure with; the others stay the reference
of every fit. GridSearchCV then has all that it needs: normal flows are cut into parts by `NormalTrainSplit`, no fit
sees a stand-in, and `NormalOnly` would keep them out of a refit. What is found this way need not hold for real attacks:
stand-ins are other services, and every weighting may tell them apart. So look at the spread before trusting the first
place.

    OMP_NUM_THREADS=1 python benchmarks/lambda_search.py            # about 20 minutes of processor time
    OMP_NUM_THREADS=1 python benchmarks/lambda_search.py --check    # and how each weighting finds the testbed's attacks
"""

import argparse
import warnings

import numpy as np
from sklearn.model_selection import GridSearchCV

from sklearn_docids import DOCIDSDetector, FlowSampler, ReferenceData
from sklearn_docids.datasets import load_testbed
from sklearn_docids.evaluation import evaluate
from sklearn_docids.metrics import attack_average_precision_score
from sklearn_docids.model_selection import NormalOnly, NormalTrainSplit, make_flow_scorer

# Every fourth class, in alphabetical order, is a stand-in.
EVERY = 4
GRID = {"lambda_compactness": [0.01, 0.1, 1.0], "lambda_reconstruction": [0.1, 1.0, 10.0]}


def search(X, X_reference, y_reference, detector, grid, n_stand_in=100, random_state=0):
    """Return a fitted search over target flows and stand-ins."""
    rng = np.random.default_rng(random_state)
    stand_in = np.isin(y_reference, np.unique(y_reference)[::EVERY])
    rows = [
        rng.permutation(np.flatnonzero(y_reference == name))[:n_stand_in] for name in np.unique(y_reference[stand_in])
    ]
    X_stand_in = X_reference[np.concatenate(rows)]
    found = GridSearchCV(
        NormalOnly(detector),
        {f"estimator__{name}": values for name, values in grid.items()},
        scoring=make_flow_scorer(attack_average_precision_score),
        cv=NormalTrainSplit(2, random_state=random_state),
        refit=False,
    )
    return found.fit(
        np.concatenate([X, X_stand_in]),
        np.repeat([1, -1], [len(X), len(X_stand_in)]),
        reference=ReferenceData(X_reference[~stand_in], y_reference[~stand_in]),
    )


def main(arguments=None):
    """Run the search on the testbed's training part; return it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--max-epochs", type=int, default=6, help="passes over half of the target")
    parser.add_argument("--n-flows", type=int, help="most target flows")
    parser.add_argument("--check", action="store_true", help="measure every weighting with the testbed's attacks")
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    testbed = load_testbed(sampler=FlowSampler())
    X = testbed.X_train[: args.n_flows]
    detector = DOCIDSDetector(max_epochs=args.max_epochs, random_state=0)
    found = search(X, testbed.X_reference, testbed.y_reference, detector, GRID)
    results = found.cv_results_
    for rank in np.argsort(results["rank_test_score"]):
        mean, spread = results["mean_test_score"][rank], results["std_test_score"][rank]
        weights = {name.removeprefix("estimator__"): value for name, value in results["params"][rank].items()}
        print(f"average precision {mean:.4f} +- {spread:.4f}: {weights}", flush=True)
    if args.check:
        attacks = {
            str(name): testbed.X_test[testbed.attack == name] for name in np.unique(testbed.attack) if name != ""
        }
        candidates = {
            str(weights): DOCIDSDetector(**{name.removeprefix("estimator__"): v for name, v in weights.items()})
            for weights in results["params"]
        }
        reference = ReferenceData(testbed.X_reference, testbed.y_reference)
        normal = testbed.X_test[testbed.y_test == 1]
        checked = evaluate(candidates, normal, attacks, train=testbed.X_train, reference=reference, n_resamples=0)
        for name in candidates:
            print(f"testbed: ROC-AUC {checked.values(name, 'roc_auc')[0]:.3f}: {name}", flush=True)
    return found


if __name__ == "__main__":
    main()
