"""Training and scoring of the full Table 1 network beside plain torch code for the same maths, and beside others.

    OMP_NUM_THREADS=1 python benchmarks/network.py [train] [host] [score] [others] [model] [threads] [steps] [--runs 5]

The plain network (tests/naive_network.py) is Table 1 as a tutorial would write it: Conv1d, run once per input, an
optimiser and batches by indexing. Cases take turns in one process, CPU seconds, medians, ratios against the plain case.
"fit" is all of ``DOCIDSDetector.fit``, its checks and threshold included; "loop" is training alone. Scoring rows are
the flows of targets A and B where the folder is there, random bytes otherwise; "full rows" are those with bytes in the
fourth packet. Engines and detectors that are not installed are left out.
"""

import argparse
import copy
import importlib.util
import itertools
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from naive_network import plain_network, plain_scores, plain_step

from sklearn_docids import DOCIDSDetector, FlowSampler, load_detector, save_detector
from sklearn_docids._network import folding, scoring
from sklearn_docids._network.table1 import DOCIDSNetwork, PairOutput
from sklearn_docids._training.net import TrainingSettings, WeightedLosses, make_net
from sklearn_docids._training.pairs import PairedBatches, PairedFlows
from sklearn_docids._training.run import fit_network

N_CLASSES = 20
MFLOP_PER_PAIR = 94.1  # forward and backward, both inputs
# glibc then keeps freed memory instead of giving it back to the system after each step.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


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


def table(title, unit, n, median, base):
    print(f"\n| {title} | {unit} | x {base} |\n|---|---|---|")
    for name, value in median.items():
        print(f"| {name} | {n / value:.0f} | {median[base] / value:.2f} |")


def training_rows(n_rows):
    rng = np.random.default_rng(0)
    X, X_reference = rng.integers(0, 256, (2, n_rows, 320), dtype=np.uint8)
    return X, (X_reference, rng.integers(0, N_CLASSES, n_rows))


def plain_training(X, reference, batch_size, n_steps):
    network = plain_network(n_classes=N_CLASSES)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=5e-4)
    X, X_reference, y_reference = map(torch.from_numpy, (X, *reference))
    for _ in range(n_steps):
        drawn = torch.randint(len(X_reference), (batch_size,))
        target = X[torch.randint(len(X), (batch_size,))]
        plain_step(network, optimizer, target, X_reference[drawn], y_reference[drawn])


LOSSES = {"descriptiveness": 1.0, "compactness": 0.1, "reconstruction": 1.0}


def settings(**changes):
    return TrainingSettings(
        **{
            "n_epochs": 1, "batch_size": 128, "optimizer": "adamw", "lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4,
            "schedule": "one_cycle", "device": "cpu", "seed": 0, **changes,
        }
    )  # fmt: skip


def train_loop(X, reference, batch_size, n_epochs):
    """Train through skorch as ``fit`` does, without checks and threshold."""
    build = partial(DOCIDSNetwork, n_columns=320, n_classes=N_CLASSES, batch_norm="joint")
    how = settings(n_epochs=n_epochs, batch_size=batch_size)
    fit_network(build, WeightedLosses(**LOSSES), PairedFlows(X, *reference), how)


def train(args):
    for batch_size, n_steps in ((128, 40), (512, 16)):
        X, reference = training_rows(batch_size * n_steps // 4)
        cases = {
            "plain loop": lambda b=batch_size, n=n_steps, d=(X, reference): plain_training(*d, b, n),
            "loop": lambda b=batch_size, d=(X, reference): train_loop(*d, b, 4),
            "fit": lambda b=batch_size, d=(X, reference): DOCIDSDetector(
                batch_size=b, max_epochs=4, random_state=0
            ).fit(d[0], reference=d[1]),
        }
        median = seconds(cases, args.runs)
        table(f"training, batch {batch_size}", "pairs/s", batch_size * n_steps, median, "plain loop")


def roofline(args):
    """Compare training at batch 256 with the multiplication of large matrices."""
    n = 1536
    matrices = torch.randn(2, n, n)
    X, reference = training_rows(1024)
    median = seconds(
        {"product": lambda: matrices[0] @ matrices[1], "loop": lambda: train_loop(X, reference, 256, 3)}, args.runs
    )
    product = 2 * n**3 / median["product"] / 1e9
    loop = 3 * 1024 * MFLOP_PER_PAIR / median["loop"] / 1e3
    print(
        f"\nproduct of {n} x {n} matrices {product:.0f} GFLOP/s, training at batch 256 {loop:.0f}: {loop / product:.0%}"
    )


class NoNetwork(torch.nn.Module):
    """Takes batches and has one weight, so that all that is left is the work of the host."""

    def __init__(self, **kwargs):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, target, reference=None, losses=()):
        return self.weight


class NoLoss(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()

    names, weights = ["none"], {}

    def forward(self, output, labels):
        return output.sum(), {"none": output.sum()}


def host(args):
    """Measure the cost of drawing batches above that of indexing arrays."""
    X, (X_reference, y_reference) = training_rows(128 * 400)
    order, labels = np.arange(len(X)), np.sort(y_reference)
    flows = PairedFlows(X, X_reference, y_reference)

    def bare():
        for first in range(0, len(X), 128):
            rows = order[first : first + 128]
            yield torch.from_numpy(X[rows]), torch.from_numpy(X_reference[rows]), torch.from_numpy(labels[rows])

    def plain():
        network, loss = NoNetwork(), NoLoss()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0, fused=True)
        for target, reference, y in bare():
            optimizer.zero_grad()
            loss(network(target, reference), y)[0].backward()
            optimizer.step()

    def batches():
        for _ in PairedBatches(flows, 128, seed=0, n_epoch=0):
            pass

    def epoch():
        how = settings(optimizer="sgd", lr=0.0, momentum=0.0, weight_decay=0.0, schedule=None)
        net = make_net(NoNetwork(), NoLoss(), how)
        net.notify("on_train_begin", X=flows, y=None)
        net.fit_loop(flows, epochs=1)

    cases = {"bare indexing": lambda: list(bare()), "our batches": batches, "plain loop": plain, "our loop": epoch}
    median = {name: 1e6 * value / len(X) for name, value in seconds(cases, args.runs).items()}
    print("\n| host, no network, batch 128 | microseconds per pair |\n|---|---|")
    for name, value in median.items():
        print(f"| {name} | {value:.2f} |")
    print(f"\nabove bare indexing: {median['our batches'] - median['bare indexing']:.2f}")


def allocator(args):
    """Train in processes of their own, with glibc's allocator as it is and told to keep memory; they take turns."""
    code = (
        "import sys, time; sys.path.insert(0, {folder!r}); import network as n; d = n.training_rows({n} // 4)\n"
        "case = (lambda: n.plain_training(*d, {batch}, {n} // {batch})) if {plain} else"
        " (lambda: n.train_loop(*d, {batch}, 4))\n"
        "case(); began = time.process_time(); case(); print(time.process_time() - began)"
    )
    for batch_size, n_rows in ((128, 5120), (512, 8192)):
        measured = {}
        for _ in range(args.runs):
            for name, plain, environment in (
                ("plain loop", True, {}), ("loop", False, {}), ("loop, memory kept", False, ALLOCATOR),
            ):  # fmt: skip
                text = code.format(folder=str(Path(__file__).parent), n=n_rows, batch=batch_size, plain=plain)
                command = [sys.executable, "-c", text]
                out = subprocess.run(
                    command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
                ).stdout
                measured.setdefault(name, []).append(float(out))
        median = {name: statistics.median(values) for name, values in measured.items()}
        table(f"processes of their own, batch {batch_size}", "pairs/s", n_rows, median, "plain loop")


def target_rows(folder):
    paths = sorted(Path(folder).glob("target*/*.pcap"))
    if paths:
        return FlowSampler(fields="raw").transform([p for p in paths if "unlabelled" not in p.name])
    return np.random.default_rng(0).integers(0, 256, (2000, 320), dtype=np.uint8)


def fitted_on(X, **parameters):
    return DOCIDSDetector(max_epochs=1, lambda_descriptiveness=0, random_state=0, **parameters).fit(X)


def score(args):
    X = target_rows(args.folder)
    full = X[(X[:, 240:] != 0).any(axis=1)]
    for activation in (None, "relu"):
        plain = plain_network(n_classes=N_CLASSES, activation=activation).eval()
        methods = ("reconstruction", "knn")
        detectors = {m: fitted_on(X, dense_activation=activation, score_method=m) for m in methods}
        engines = exported(detectors["reconstruction"]) if activation is None else {}
        for name, rows in (("flows of A and B", X), ("full rows", full)):
            cases = {
                "plain": lambda p=plain, r=rows: plain_scores(p, r),
                **{m: lambda d=d, r=rows: d.score_samples(r) for m, d in detectors.items()},
                **{e: lambda run=run, r=rows: in_chunks(run, r) for e, run in engines.items()},
            }
            title = f"scoring {len(rows)} {name}, dense_activation={activation}"
            table(title, "flows/s", len(rows), seconds(cases, args.runs), "plain")
        ours = detectors["reconstruction"].score_samples(X)
        print(f"\nlargest deviation from float64: folded {deviation(detectors['reconstruction'], X, ours):.1e}")
        for engine, run in engines.items():
            print(f"{engine}: {deviation(detectors['reconstruction'], X, np.concatenate(in_chunks(run, X))):.1e}")
    trained_deviation(args)


def exported(detector):
    """Return functions that score a chunk with the engines that are installed, each with one thread."""
    engines = {}
    if importlib.util.find_spec("onnx") is None:
        return engines
    path = os.path.join(tempfile.mkdtemp(), "model.onnx")
    detector.to_onnx(path)
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options)
        engines["ONNX Runtime"] = lambda rows: session.run(None, {"flows": rows})[0]
    if importlib.util.find_spec("openvino"):
        import openvino

        core = openvino.Core()
        precisions = ["f32"]
        if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            precisions.append("bf16")
        for precision in precisions:
            settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
            compiled = core.compile_model(path, "CPU", settings)
            engines[f"OpenVINO {precision}"] = lambda rows, c=compiled: c(rows)[0].copy()
    return engines


def in_chunks(run, rows):
    return [run(rows[first : first + 128]) for first in range(0, len(rows), 128)]


def exact_scores(detector, X, dtype):
    """Return the scores of the network as it was trained, nothing folded."""
    network = copy.deepcopy(detector.network_).to(dtype).eval()
    with torch.no_grad():
        features = network.features(torch.from_numpy(X))
        if detector.templates_ is None:
            return -(network.autoencoder(features) - features).square().mean(dim=1).double().numpy()
        places = network.h_c(features).double()
        distances = torch.cdist(places, torch.from_numpy(detector.templates_))
        n_neighbors = min(detector.n_neighbors, distances.shape[1])
        return -distances.topk(n_neighbors, largest=False).values.mean(dim=1).numpy()


def deviation(detector, X, scores):
    """Return the largest deviation from the network in float64, relative to the score or the median score."""
    expected = exact_scores(detector, X, torch.float64)
    return np.max(np.abs(scores - expected) / np.maximum(np.abs(expected), np.median(-expected)))


def trained_deviation(args):
    """Compare with float64 after a whole fit on target A: folded, and unfolded in float32."""
    sampler = FlowSampler(random_state=0)
    folder = args.folder / "targetA_windows_domain"
    X, _, _ = sampler.sample(folder / "normal_train.pcap")
    new = sampler.transform(folder / "normal_test.pcap")
    classes = sorted(args.folder.glob("reference_exact/*.pcap"))
    reference = sampler.sample(classes, [path.stem for path in classes])[:2]
    print("\n| whole fit on target A, rows | folded | as trained, float32 |\n|---|---|---|")
    for method in ("reconstruction", "knn"):
        detector = DOCIDSDetector(random_state=0, score_method=method).fit(X, reference=reference)
        for name, rows in (("training", X), ("new", new)):
            folded = deviation(detector, rows, detector.score_samples(rows))
            eager = deviation(detector, rows, exact_scores(detector, rows, torch.float32))
            print(f"| {method}, {name} | {folded:.1e} | {eager:.1e} |")


def others(args):
    """Score the same rows with what a user compares with; 10,000 rows to fit."""
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import LocalOutlierFactor
    from sklearn.svm import OneClassSVM

    rows = target_rows(args.folder)
    rows = np.concatenate(
        [rows, FlowSampler(fields="raw").transform(sorted(args.folder.glob("reference_exact/*.pcap")))]
    )
    rng = np.random.default_rng(0)
    X, new = rows[rng.permutation(len(rows))[:10_000]], rows[rng.permutation(len(rows))[:4000]]
    detectors = {
        "DOCIDSDetector": DOCIDSDetector(max_epochs=1, lambda_descriptiveness=0, random_state=0),
        "DOCIDSDetector, reconstruction": DOCIDSDetector(
            max_epochs=1, lambda_descriptiveness=0, random_state=0, score_method="reconstruction"
        ),
        "OneClassSVM": OneClassSVM(),
        "LocalOutlierFactor": LocalOutlierFactor(novelty=True),
        "IsolationForest": IsolationForest(random_state=0),
    }
    if importlib.util.find_spec("pyod"):
        from pyod.models.auto_encoder import AutoEncoder
        from pyod.models.ecod import ECOD

        detectors |= {"PyOD ECOD": ECOD(), "PyOD AutoEncoder": AutoEncoder(epoch_num=1, verbose=0, random_state=0)}
    cases = {}
    for name, detector in detectors.items():
        # PyOD takes floats; the others turn bytes into floats themselves.
        a, b = (X / 255.0, new / 255.0) if name.startswith("PyOD") else (X, new)
        detector.fit(a)
        cases[name] = lambda d=detector, b=b: d.decision_function(b)
    table("scoring 4000 flows, fitted on 10,000", "flows/s", len(new), seconds(cases, args.runs), "DOCIDSDetector")


def model(args):
    X, _ = training_rows(512)
    detector = fitted_on(X)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save_detector(detector, path)
        median = seconds({"load": lambda: load_detector(path)}, 9)["load"]
    print(f"\npickled detector {len(pickle.dumps(detector)) / 1e6:.1f} MB, load_detector {1000 * median:.0f} ms")


def threads(args):
    """Fit and score with one thread and with two: deviation of scores, and ROC-AUC of an attack on target A."""
    from sklearn_docids.metrics import attack_roc_auc_score

    folder = args.folder / "targetA_windows_domain"
    sampler = FlowSampler(random_state=0)
    normal, new, attack = (folder / f"{n}.pcap" for n in ("normal_train", "normal_test", "attack_APT29_C2"))
    X, _, _ = sampler.sample(normal)
    classes = sorted(args.folder.glob("reference_exact/*.pcap"))
    reference = sampler.sample(classes, [path.stem for path in classes])[:2]
    rows, labels = sampler.transform([new, attack]), []
    for path, label in ((new, 1), (attack, -1)):
        labels += [label] * len(sampler.transform(path))
    print(
        "\n| seed | threads of fit | ROC-AUC | largest deviation when scored with 1 and 2 threads |\n|---|---|---|---|"
    )
    for seed, n_threads in itertools.product(range(3), (1, 2)):
        torch.set_num_threads(n_threads)
        detector = DOCIDSDetector(max_epochs=100, random_state=seed).fit(X, reference=reference)
        scores = {}
        for n in (1, 2):
            torch.set_num_threads(n)
            scores[n] = detector.score_samples(rows)
        apart = np.max(np.abs(scores[1] - scores[2]) / np.maximum(-scores[1], np.median(-scores[1])))
        print(f"| {seed} | {n_threads} | {attack_roc_auc_score(labels, scores[1]):.3f} | {apart:.1e} |", flush=True)
    torch.set_num_threads(1)


def steps(args):
    """Take the steps from plain code to ours one by one."""
    train_steps(args)
    score_steps(args)


def train_steps(args):
    X, (X_reference, y_reference) = training_rows(1280)
    batches = [
        tuple(torch.from_numpy(rows[first : first + 128]) for rows in (X, X_reference, y_reference))
        for first in range(0, len(X), 128)
    ]
    criterion = WeightedLosses(descriptiveness=1.0, compactness=0.1, reconstruction=10.0)
    ours = DOCIDSNetwork(320, N_CLASSES, "target")

    def apart(target, reference):
        features = ours.features(target)
        scores = ours.h_c(ours.features(reference))
        return PairOutput(features, ours.h_c(features), ours.autoencoder(features), scores)

    def loop(network, step, fused):
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=5e-4, fused=fused)
        for batch in batches:
            step(network, optimizer, *batch)

    def our_step(forward):
        def step(network, optimizer, target, reference, labels):
            optimizer.zero_grad()
            criterion(forward(target, reference), labels)[0].backward()
            optimizer.step()

        return step

    plain = plain_network(n_classes=N_CLASSES)
    cases = {
        "plain": lambda: loop(plain, plain_step, None),
        "+ fused optimiser": lambda: loop(plain, plain_step, True),
        "+ channels last": lambda: loop(ours, our_step(apart), True),
        "+ dense layers on both inputs at once": lambda: loop(ours, our_step(ours), True),
    }
    table("steps of training, batch 128", "pairs/s", len(X), seconds(cases, args.runs), "plain")


def score_steps(args):
    X = target_rows(args.folder)
    detector = fitted_on(X)
    network, frozen = detector.network_, scoring.FrozenNetwork(detector.network_)
    plain = plain_network(n_classes=N_CLASSES).eval()

    def eager():
        with torch.no_grad():
            for first in range(0, len(X), 128):
                features = network.features(torch.from_numpy(X[first : first + 128]))
                (network.autoencoder(features) - features).square().mean(1)

    def fold(dense_rows, tails):
        folding.DENSE_ROWS = scoring.DENSE_ROWS = dense_rows
        folding.FoldedNetwork.parts_of = parts_of if tails else lambda self, X: np.full(len(X), folding.N_PARTS - 1)
        try:
            frozen.evaluate(scoring.reconstruction_error_of, X, "cpu")
        finally:
            folding.DENSE_ROWS = scoring.DENSE_ROWS = default
            folding.FoldedNetwork.parts_of = parts_of

    default, parts_of = folding.DENSE_ROWS, folding.FoldedNetwork.parts_of
    cases = {
        "plain": lambda: plain_scores(plain, X),
        "+ channels last": eager,
        "+ folded": lambda: fold(64, False),
        "+ zero tails as a constant": lambda: fold(64, True),
        f"+ dense layers on {default} rows": lambda: fold(default, True),
    }
    table(f"steps of scoring {len(X)} flows of A and B", "flows/s", len(X), seconds(cases, args.runs), "plain")


PARTS = {
    "train": (train, roofline, allocator), "host": (host,), "score": (score,), "others": (others,), "model": (model,),
    "threads": (threads,), "steps": (steps,),
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[*PARTS])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for part in args.parts:
        for measure in PARTS[part]:
            measure(args)


if __name__ == "__main__":
    main()
