"""ROC-AUC per attack capture on two real networks: DOC-IDS beside three baselines, several seeds.

Reads the folder of captures beside the checkout (``../shared/data``, see its README) or the one given. Trains on the
normal training capture of each target alone; attacks are only scored. One line per fit is printed as it ends.

    OMP_NUM_THREADS=1 python benchmarks/real_traffic.py --seeds 3
"""

import argparse
import time
from pathlib import Path

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM

from sklearn_docids import DOCIDSDetector, FlowSampler, ReferenceData, paper
from sklearn_docids.metrics import attack_roc_auc_score

TARGETS = {
    "A": ("targetA_windows_domain", ("targetA_windows_domain/attack_*.pcap", "attacks_crosslab/*.pcap")),
    "B": ("targetB_smart_speaker", ("attacks_crosslab/*.pcap",)),
}
MAX_ROWS = 3000  # per capture, as in the figures of the folder's README


class NearestNeighbour:
    """Distance to the nearest training row."""

    def fit(self, X):
        self.index_ = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(X)
        return self

    def score_samples(self, X):
        return -self.index_.kneighbors(X)[0][:, 0]


class Scaled:
    """A baseline on bytes scaled to 0..1."""

    def __init__(self, detector):
        self.detector = detector

    def fit(self, X, reference):
        self.detector.fit(X / np.float32(255))
        return self

    def scores(self, X):
        return {"": self.detector.score_samples(X / np.float32(255))}


class Both:
    """DOC-IDS with both scores of one fit: the reconstruction error does not depend on the templates."""

    def __init__(self, detector):
        self.detector = detector.set_params(score_method="knn")

    def fit(self, X, reference):
        self.detector.fit(X, reference=reference)
        return self

    def scores(self, X):
        return {"": -self.detector.reconstruction_error(X), " knn": self.detector.score_samples(X)}


def detectors(seed):
    """Return the detectors compared."""
    baselines = {
        "IsolationForest": IsolationForest(n_estimators=300, random_state=seed),
        "OneClassSVM": OneClassSVM(gamma="scale"),
        "1-NN": NearestNeighbour(),
    }
    return {
        "DOC-IDS": Both(DOCIDSDetector(random_state=seed)),
        "DOC-IDS paper": Both(paper.detector(random_state=seed)),
        **{name: Scaled(baseline) for name, baseline in baselines.items()},
    }


def load(folder, target, fields, seed):
    """Return (training rows, reference, normal test rows, {attack: rows})."""
    sampler = FlowSampler(fields=fields, random_state=seed)
    place, patterns = TARGETS[target]
    classes = sorted((folder / "reference_exact").glob("*.pcap"))
    X_reference, y_reference, _ = sampler.sample(classes, [path.stem for path in classes])
    attacks = {path.stem: sampler.transform(path) for pattern in patterns for path in sorted(folder.glob(pattern))}
    return (
        sampler.fit_transform(folder / place / "normal_train.pcap"),
        ReferenceData(X_reference, y_reference),
        sampler.transform(folder / place / "normal_test.pcap"),
        attacks,
    )


def thinned(X, seed):
    rows = np.random.default_rng(seed).permutation(len(X))[:MAX_ROWS]
    return X[np.sort(rows)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--targets", default="AB")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fields", default="paper")
    args = parser.parse_args()
    for target in args.targets:
        results = {}
        for seed in range(args.seeds):
            X_train, reference, X_normal, attacks = load(args.data, target, args.fields, seed)
            for name, detector in detectors(seed).items():
                began = time.process_time()
                detector.fit(X_train, reference)
                normal = detector.scores(X_normal)
                for attack, X in attacks.items():
                    X = thinned(X, seed)
                    labels = np.r_[np.ones(len(X_normal)), -np.ones(len(X))]
                    for kind, scores in detector.scores(X).items():
                        auc = attack_roc_auc_score(labels, np.r_[normal[kind], scores])
                        results.setdefault((attack, len(X)), {}).setdefault(name + kind, []).append(auc)
                print(f"target {target} seed {seed} {name}: {time.process_time() - began:.0f} CPU-s", flush=True)
        names = list(next(iter(results.values())))
        print(f"\n| target {target}, fields={args.fields} | flows | {' | '.join(names)} |")
        print("|---|---|" + "---|" * len(names))
        for (attack, n_flows), by_name in results.items():
            cells = [f"{np.mean(v):.3f} ({min(v):.3f}-{max(v):.3f})" for v in by_name.values()]
            print(f"| {attack} | {n_flows} | {' | '.join(cells)} |")
        print(flush=True)


if __name__ == "__main__":
    main()
