"""Count scikit-learn's estimator checks for every public estimator, over seeds.

    python benchmarks/estimator_checks.py [--seeds 5]

Runs with SCIPY_ARRAY_API=1, which adds the checks on array API input.
"""

import argparse
import os
import warnings
from collections import Counter

os.environ["SCIPY_ARRAY_API"] = "1"

import numpy as np
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import _num_samples

from sklearn_docids import (
    AutoencoderDetector,
    ConvAutoencoderDetector,
    DOCFeatures,
    DOCIDSDetector,
    FlowSampler,
    paper,
)
from sklearn_docids.detectors import NearestNeighborDetector, SeedEnsemble, StatisticDetector
from sklearn_docids.model_selection import NormalOnly


class AllNormal(NormalOnly):
    """The checks label rows 0, 1, 2 and so on, which `NormalOnly` refuses on purpose."""

    def fit(self, X, y=None, **fit_params):
        return super().fit(X, np.ones(_num_samples(X)), **fit_params)


def estimators(seed):
    # Two epochs instead of some 500 steps: the checks fit hundreds of times.
    short = {"max_epochs": 2, "random_state": seed}
    yield "DOCIDSDetector", DOCIDSDetector(**short)
    yield "DOCIDSDetector, reconstruction", DOCIDSDetector(score_method="reconstruction", **short)
    yield "DOCIDSDetector, early stopping", DOCIDSDetector(early_stopping=True, **short)
    yield "paper.detector", paper.detector(**short)
    yield "NormalOnly(DOCIDSDetector), labels of the checks made +1", AllNormal(DOCIDSDetector(**short))
    yield "AutoencoderDetector", AutoencoderDetector(**short)
    yield "ConvAutoencoderDetector", ConvAutoencoderDetector(**short)
    yield "DOCFeatures", DOCFeatures(**short)
    yield "SeedEnsemble", SeedEnsemble(AutoencoderDetector(max_epochs=2), n_estimators=2, random_state=seed)
    yield "NearestNeighborDetector", NearestNeighborDetector(random_state=seed)
    yield "StatisticDetector", StatisticDetector()
    yield "FlowSampler", FlowSampler(random_state=seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    counts, failed = {}, {}
    for seed in range(args.seeds):
        for name, estimator in estimators(seed):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = check_estimator(estimator, on_fail=None, on_skip=None)
            counts.setdefault(name, Counter()).update(result["status"] for result in results)
            failed.setdefault(name, Counter()).update(r["check_name"] for r in results if r["status"] == "failed")
    print("| estimator | passed | failed | skipped | which failed |\n|---|---|---|---|---|")
    for name, count in counts.items():
        which = ", ".join(sorted(failed[name])) or "-"
        print(f"| {name} | {count['passed']} | {count['failed']} | {count['skipped']} | {which} |")


if __name__ == "__main__":
    main()
