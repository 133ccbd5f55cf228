"""How the defaults were chosen: one setting changed at a time, measured on the validation part of the testbed.

    OMP_NUM_THREADS=1 python benchmarks/defaults.py [--seeds 1] [--variants NAME ...]

Trains on the training period, scores the validation period; the test period is not touched. Each line has the mean over
kinds of attack of ROC-AUC, average precision and recall at 1 % false alarms, for several scores of the same fit:
distances to templates in class-score and in feature space, the reconstruction error, Mahalanobis distance in feature
space, and sums of two of them, each divided by its mean on training rows that are no templates. Lines of "ensemble" add
the scores of all seeds of the default. Lines of "uneven reference" keep fewer and fewer flows of the classes, down to a
fifteenth, and draw either classes or flows with equal chances.
"""

import argparse
import time
import warnings
from unittest.mock import patch

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from sklearn_docids import DOCIDSDetector, FlowSampler, ReferenceData
from sklearn_docids._network import scoring
from sklearn_docids._training.pairs import PairedFlows
from sklearn_docids.datasets import load_testbed
from sklearn_docids.evaluation import MACRO, Evaluation, Scored

UNEVEN = "uneven reference, classes drawn with equal chances"
UNEVEN_FLOWS = "uneven reference, flows drawn with equal chances"
NO_TIME = {"mac": "zero", "ip": "zero", "checksums": "zero", "ip_id": "zero", "tcp_seq": "zero"}
VARIANTS = {
    "default": ({}, "no_addresses"),
    "fields=paper": ({}, "paper"),
    "fields=raw": ({}, "raw"),
    "fields=portable": ({}, "portable"),
    "no addresses, checksums, IP ID, sequence numbers": ({}, NO_TIME),
    "batch_norm=target": ({"batch_norm": "target"}, "no_addresses"),
    "batch_norm=separate": ({"batch_norm": "separate"}, "no_addresses"),
    "lambda_reconstruction=10 (paper)": ({"lambda_reconstruction": 10.0}, "no_addresses"),
    "lambda_reconstruction=0.1": ({"lambda_reconstruction": 0.1}, "no_addresses"),
    "lambda_reconstruction=0": ({"lambda_reconstruction": 0.0}, "no_addresses"),
    "lambda_compactness=0": ({"lambda_compactness": 0.0}, "no_addresses"),
    "lambda_compactness=1": ({"lambda_compactness": 1.0}, "no_addresses"),
    "lambda_descriptiveness=0": ({"lambda_descriptiveness": 0.0}, "no_addresses"),
    "dense_activation=relu": ({"dense_activation": "relu"}, "no_addresses"),
    "batch_size=32": ({"batch_size": 32}, "no_addresses"),
    "batch_size=128": ({"batch_size": 128}, "no_addresses"),
    "about 250 steps": ({"max_epochs": 3}, "no_addresses"),
    "about 1000 steps": ({"max_epochs": 13}, "no_addresses"),
    "lr=3e-4": ({"lr": 3e-4}, "no_addresses"),
    "lr=3e-3": ({"lr": 3e-3}, "no_addresses"),
    "schedule=None": ({"schedule": None}, "no_addresses"),
    "schedule=None, lr=3e-4": ({"schedule": None, "lr": 3e-4}, "no_addresses"),
    "optimizer=sgd, lr=1e-2": ({"optimizer": "sgd", "lr": 1e-2}, "no_addresses"),
    UNEVEN: ({}, "no_addresses"),
    UNEVEN_FLOWS: ({}, "no_addresses"),
}


def thinned(X, y, seed):
    """Return a reference with 240 flows of its first class, fewer of each next one, and 16 of the last."""
    classes = np.unique(y)
    counts = np.geomspace(240, 16, len(classes)).round().astype(int)
    rng = np.random.default_rng(seed)
    kept = [rng.choice(np.flatnonzero(y == name), n, replace=False) for name, n in zip(classes, counts, strict=True)]
    return X[np.concatenate(kept)], np.asarray(y)[np.concatenate(kept)]


def draw_flows(self, rng):
    """Draw reference flows, not their classes, with equal chances: what `PairedFlows.draw` would be without balance."""
    drawn = rng.integers(len(self.reference), size=len(self))
    return rng.permutation(len(self)), drawn, torch.from_numpy(self._labels[drawn])


def distances(templates, rows, n_neighbors):
    index = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(templates)
    return index.kneighbors(rows)[0].mean(axis=1)


def abnormalities(detector, X_train, X):
    """Return several scores of rows, the higher the more abnormal, by one fit."""
    known = {row.tobytes() for row in detector.template_flows_}
    is_template = np.array([row.tobytes() in known for row in X_train])
    others = X_train[~is_template]
    spaces = {"h_c": scoring.class_scores_of, "g": scoring.features_of}
    found = {}
    for space, function in spaces.items():
        templates, new, old = (
            detector._scorer.evaluate(function, rows, "cpu") for rows in (detector.template_flows_, X, others)
        )
        for k in (1, 5, 20):
            found[f"{space}, {k} nearest"] = distances(templates, new, k), distances(templates, old, k)
        if space == "h_c":
            found["h_c, 5 nearest of 40"] = distances(templates[:40], new, 5), distances(templates[:40], old, 5)
        else:
            covariance = LedoitWolf().fit(old)
            found["g, Mahalanobis"] = covariance.mahalanobis(new), covariance.mahalanobis(old)
    found["reconstruction"] = detector.reconstruction_error(X), detector.reconstruction_error(others)
    for first, second in (("h_c, 5 nearest", "reconstruction"), ("h_c, 5 nearest", "g, 5 nearest")):
        sums = [found[first][i] / found[first][1].mean() + found[second][i] / found[second][1].mean() for i in (0, 1)]
        found[f"{first} + {second}"] = tuple(sums)
    return {name: pair[0] / pair[1].mean() for name, pair in found.items()}


def measured(abnormality, attack):
    """Return the means over attacks of three measures."""
    found = Evaluation()
    never = {name: np.zeros(np.sum(attack == name), bool) for name in np.unique(attack[attack != ""])}
    attacks = {name: -abnormality[attack == name] for name in never}
    normal = -abnormality[attack == ""]
    found.add("", 0, Scored(normal, attacks, np.zeros(len(normal), bool), never, 0.0), n_resamples=0)
    return [found.values("", name, MACRO)[0] for name in ("roc_auc", "average_precision", "recall_at_fpr_0_01")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        "| variant | score | ROC-AUC | average precision | recall at 1 % | CPU-s |\n|---|---|---|---|---|---|",
        flush=True,
    )
    of_seeds = []
    for variant in args.variants:
        settings, fields = VARIANTS[variant]
        results, seconds = {}, []
        for seed in range(args.seeds):
            data = load_testbed(sampler=FlowSampler(fields=fields, random_state=seed))
            X, y = data.X_reference, data.y_reference
            reference = ReferenceData(*(thinned(X, y, seed) if variant in (UNEVEN, UNEVEN_FLOWS) else (X, y)))
            draw = draw_flows if variant == UNEVEN_FLOWS else PairedFlows.draw
            began = time.process_time()
            with patch.object(PairedFlows, "draw", draw):
                detector = DOCIDSDetector(random_state=seed, **settings).fit(data.X_train, reference=reference)
            seconds.append(time.process_time() - began)
            scores = abnormalities(detector, data.X_train, data.X_validation)
            if variant == "default":
                of_seeds.append(scores)
            shown = scores if variant == "default" else ("h_c, 5 nearest", "reconstruction")
            for name in shown:
                results.setdefault(name, []).append(measured(scores[name], data.attack_validation))
        for name, values in results.items():
            cells = [f"{v.mean():.3f} ({v.min():.3f}-{v.max():.3f})" for v in np.array(values).T]
            print(f"| {variant} | {name} | {' | '.join(cells)} | {np.mean(seconds):.0f} |", flush=True)
    if len(of_seeds) > 1:
        for name in ("h_c, 5 nearest", "reconstruction"):
            together = measured(np.mean([scores[name] for scores in of_seeds], axis=0), data.attack_validation)
            cells = [f"{value:.3f}" for value in together]
            print(f"| ensemble of {len(of_seeds)} seeds | {name} | {' | '.join(cells)} | |", flush=True)


if __name__ == "__main__":
    main()
