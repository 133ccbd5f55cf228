"""Training and scoring of the full Table 1 network beside plain torch code for the same maths.

    OMP_NUM_THREADS=1 python benchmarks/network.py [--rows 2560] [--runs 5] [--folder ../shared/data]

The plain network is Table 1 as a tutorial would write it: Conv1d, run once per input, an optimiser and batches by
indexing. Cases take turns in one process, CPU seconds of one thread, medians. "fit" is all of ``DOCIDSDetector.fit``,
its checks and threshold included; "training alone" is its loop. Scoring rows are the flows of targets A and B where the
folder is there, random bytes otherwise; "full rows" are those with bytes in the last packet.
"""

import argparse
import itertools
import pickle
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from sklearn_docids import DOCIDSDetector, FlowSampler, load_detector

N_CLASSES = 20


def plain_network(activation):
    def dense(n_in, n_out):
        return [nn.Linear(n_in, n_out), *([nn.ReLU()] if activation else []), nn.BatchNorm1d(n_out)]

    def convolution(n_in, n_out):
        return [nn.Conv1d(n_in, n_out, 6, padding=5), nn.ReLU(), nn.BatchNorm1d(n_out), nn.MaxPool1d(2)]

    g = nn.Sequential(*convolution(1, 32), *convolution(32, 64), nn.Flatten(), *dense(5312, 1024), *dense(1024, 256))
    sizes = (256, 128, 64, 128, 256)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.ModuleDict({"g": g, "h_c": nn.Linear(256, N_CLASSES), "autoencoder": nn.Sequential(*layers[:-1])})


def plain_training(X, X_reference, y_reference, batch_size, n_steps):
    network = plain_network(None).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=5e-4)
    X, X_reference, y_reference = map(torch.from_numpy, (X, X_reference, y_reference))
    for _ in range(n_steps):
        target = X[torch.randint(len(X), (batch_size,))].float()[:, None] / 255
        drawn = torch.randint(len(X_reference), (batch_size,))
        reference = X_reference[drawn].float()[:, None] / 255
        optimizer.zero_grad()
        features = network["g"](target)
        h = network["h_c"](features)
        compactness = (len(h) / (len(h) - 1)) ** 2 * h.var(dim=0, unbiased=False).mean()
        descriptiveness = cross_entropy(network["h_c"](network["g"](reference)), y_reference[drawn])
        reconstruction = mse_loss(network["autoencoder"](features), features)
        (descriptiveness + 0.1 * compactness + 10 * reconstruction).backward()
        optimizer.step()


def plain_scores(network, X):
    results = []
    with torch.no_grad():
        for first in range(0, len(X), 128):
            features = network["g"](torch.from_numpy(X[first : first + 128]).float()[:, None] / 255)
            results.append((network["autoencoder"](features) - features).square().mean(1))
    return torch.cat(results)


def seconds(cases, n_runs):
    """Return the median CPU seconds of each case; they take turns."""
    measured = {name: [] for name in cases}
    for run in range(n_runs + 1):
        for name, case in cases.items():
            began = time.process_time()
            case()
            if run:  # the first round warms up
                measured[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in measured.items()}


def train(X, X_reference, y_reference, n_runs):
    from sklearn_docids import _training

    for batch_size in (128, 512):
        n_steps = len(X) // batch_size
        detector = DOCIDSDetector(max_epochs=1, batch_size=batch_size, random_state=0)
        detector.fit(X[:256], reference=(X_reference, y_reference))

        def loop(detector=detector):
            net = detector._train(X, X_reference, y_reference, seed=0)
            assert isinstance(net, _training.PairedNet)

        median = seconds(
            {
                "plain loop": lambda b=batch_size, n=n_steps: plain_training(X, X_reference, y_reference, b, n),
                "training alone": loop,
                "fit": lambda d=detector: d.fit(X, reference=(X_reference, y_reference)),
            },
            n_runs,
        )
        for name, value in median.items():
            pairs = n_steps * batch_size / value
            print(f"| {name}, batch {batch_size} | {pairs:.0f} pairs/s | {median['plain loop'] / value:.2f} |")


def target_rows(folder):
    paths = sorted(Path(folder).glob("target*/*.pcap"))
    if paths:
        return FlowSampler(fields="raw").transform([p for p in paths if "unlabelled" not in p.name])
    return np.random.default_rng(0).integers(0, 256, (2000, 320), dtype=np.uint8)


def score(X, n_runs):
    full = X[(X[:, 240:] != 0).any(axis=1)]
    for activation in (None, "relu"):
        plain = plain_network(activation).eval()
        for method in ("reconstruction", "knn"):
            detector = DOCIDSDetector(
                max_epochs=1, lambda_descriptiveness=0, random_state=0, dense_activation=activation, score_method=method
            ).fit(X)
            for name, rows in (("flows of A and B", X), ("full rows", full)):
                median = seconds(
                    {"plain": lambda p=plain, r=rows: plain_scores(p, r),
                     "ours": lambda d=detector, r=rows: d.score_samples(r)},
                    n_runs,
                )  # fmt: skip
                case = f"{method}, dense_activation={activation}, {name}"
                speed, ratio = len(rows) / median["ours"], median["plain"] / median["ours"]
                print(f"| {case} | {speed:.0f} flows/s | {ratio:.2f} |")
            if method == "reconstruction":
                print(f"| largest relative deviation by folding | {deviation(detector, X):.1e} | |")


def deviation(detector, X):
    """Return the largest relative deviation of the folded network from the one that was trained."""
    network, scores = detector.network_.eval(), detector.score_samples(X)
    with torch.no_grad():
        features = network.features(torch.from_numpy(X))
        expected = -(network.autoencoder(features) - features).square().mean(dim=1).double().numpy()
    return np.max(np.abs(scores - expected) / np.maximum(np.abs(expected), np.median(-expected)))


def sizes(X):
    detector = DOCIDSDetector(max_epochs=1, lambda_descriptiveness=0, random_state=0).fit(X[:512])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        detector.save(path)
        median = seconds({"load": lambda: load_detector(path)}, 9)["load"]
    print(f"| pickled detector | {len(pickle.dumps(detector)) / 1e6:.1f} MB | |")
    print(f"| load_detector | {1000 * median:.0f} ms | |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=2560)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", default=Path(__file__).parents[2] / "shared" / "data")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    X, X_reference = rng.integers(0, 256, (2, args.rows, 320), dtype=np.uint8)
    print("| case | measured | x plain torch |\n|---|---|---|")
    train(X, X_reference, rng.integers(0, N_CLASSES, args.rows), args.runs)
    score(target_rows(args.folder), args.runs)
    sizes(X)


if __name__ == "__main__":
    main()
