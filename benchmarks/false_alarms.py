"""False alarms on new normal flows, at the rate that was asked for and at the default threshold.

    OMP_NUM_THREADS=1 python benchmarks/false_alarms.py [--splits 20] [--folder ../shared/data]

Target B (a smart speaker): normal flows of one period, split at random into training, held-out and new ones; the
number of new flows flagged should lie in the 95 % band of the beta-binomial distribution that held-out and new flows
give. Then by time: trained and calibrated on the earlier half of the days, tried on the later one.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import betabinom

from sklearn_docids import DOCIDSDetector, FlowSampler
from sklearn_docids._thresholds import conformal_threshold

RATES = (0.05, 0.01, 0.001)
HELD_OUT = 0.4
N_NEW = 1000


def flows(folder, pattern):
    paths = sorted(Path(folder).glob(pattern))
    X, y, _ = FlowSampler(random_state=0).sample(paths, [path.stem for path in paths])
    return X, y


def fit(X, reference, seed, method):
    """Return a fitted detector and the scores of rows that were kept out of the fit."""
    is_held_out = np.random.RandomState(seed).permutation(len(X)) < round(HELD_OUT * len(X))
    detector = DOCIDSDetector(max_epochs=4, random_state=seed, score_method=method)
    detector.fit(X[~is_held_out], reference=reference)
    return detector, detector.score_samples(X[is_held_out])


def band(n_held_out, n_new, rate):
    """Return the 95 % band of the number of new flows flagged."""
    k = int(rate * (n_held_out + 1) + 1e-9)
    distribution = betabinom(n_new, k, n_held_out + 1 - k)
    return distribution.ppf(0.025), distribution.ppf(0.975)


def one_period(X, reference, n_splits):
    print("| score | rate asked for | splits inside the band | band | rates of the splits, mean (lowest to highest) |")
    print("|---|---|---|---|---|")
    for method in ("reconstruction", "knn"):
        flagged = {rate: [] for rate in RATES}
        for seed in range(n_splits):
            order = np.random.RandomState(1000 + seed).permutation(len(X))
            detector, held_out = fit(X[order[N_NEW:]], reference, seed, method)
            new = detector.score_samples(X[order[:N_NEW]])
            for rate in RATES:
                flagged[rate].append(int(np.sum(new < conformal_threshold(held_out, rate))))
        for rate, counts in flagged.items():
            low, high = band(len(held_out), N_NEW, rate)
            inside = sum(low <= count <= high for count in counts)
            shares = np.array(counts) / N_NEW
            limits = f"{low / N_NEW:.3f} to {high / N_NEW:.3f}"
            print(f"| {method} | {rate} | {inside} of {n_splits} | {limits} | {spread(shares)} |", flush=True)


def spread(shares):
    return f"{np.mean(shares):.4f} ({min(shares):.3f} to {max(shares):.3f})"


def by_time(X, later, reference, n_seeds):
    print("\n| score | rate asked for | on later days, mean (lowest to highest) |\n|---|---|---|")
    for method in ("reconstruction", "knn"):
        rates = {rate: [] for rate in RATES[:2]}
        for seed in range(n_seeds):
            for rate in rates:
                detector = DOCIDSDetector(
                    max_epochs=4, random_state=seed, score_method=method, false_alarm_rate=rate,
                    validation_fraction=HELD_OUT,
                ).fit(X, reference=reference)  # fmt: skip
                rates[rate].append(np.mean(detector.predict(later) == -1))
        for rate, shares in rates.items():
            print(f"| {method} | {rate} | {spread(shares)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    reference = flows(args.folder, "reference_exact/*.pcap")
    paths = [next(args.folder.glob(f"targetB*/normal_{name}.pcap")) for name in ("train", "test")]
    X, _, capture = FlowSampler(random_state=0).sample(paths)
    print(f"{len(X)} normal flows, {N_NEW} of them new, {HELD_OUT} of the others held out")
    one_period(X, reference, args.splits)
    by_time(X[capture == 0], X[capture == 1], reference, 3)


if __name__ == "__main__":
    main()
