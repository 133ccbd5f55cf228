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
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM

from sklearn_docids import DOCIDSDetector, FlowSampler, ReferenceData, paper

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


def detectors(seed, extra):
    """Return the detectors compared; those that need no reference take rows scaled to 0..1."""
    return {
        "DOC-IDS": DOCIDSDetector(random_state=seed, **extra),
        "DOC-IDS knn": DOCIDSDetector(random_state=seed, score_method="knn", **extra),
        "DOC-IDS paper": paper.detector(random_state=seed),
        "IsolationForest": IsolationForest(n_estimators=300, random_state=seed),
        "OneClassSVM": OneClassSVM(gamma="scale"),
        "1-NN": NearestNeighbour(),
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
    parser.add_argument("--only", nargs="*", help="names of the detectors to run")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of DOC-IDS")
    args = parser.parse_args()
    extra = {}
    for setting in args.set:
        name, value = setting.split("=")
        extra[name] = {"True": True, "None": None}.get(value, float(value) if "." in value else value)
    for target in args.targets:
        results = {}
        for seed in range(args.seeds):
            X_train, reference, X_normal, attacks = load(args.data, target, args.fields, seed)
            for name, detector in detectors(seed, extra).items():
                if args.only and name not in args.only:
                    continue
                began = time.process_time()
                doc = isinstance(detector, DOCIDSDetector)
                scale = 1 if doc else np.float32(255)
                detector.fit(X_train if doc else X_train / scale, **({"reference": reference} if doc else {}))
                normal = detector.score_samples(X_normal / scale if not doc else X_normal)
                for attack, X in attacks.items():
                    X = thinned(X, seed)
                    scores = detector.score_samples(X if doc else X / scale)
                    is_attack = np.r_[np.zeros(len(normal)), np.ones(len(scores))]
                    auc = roc_auc_score(is_attack, -np.r_[normal, scores])
                    results.setdefault((attack, len(X)), {}).setdefault(name, []).append(auc)
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
