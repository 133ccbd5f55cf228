# SPDX-License-Identifier: BSD-3-Clause
"""`docids demo`: from captures written on the spot to a ranked list of abnormal flows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM

from sklearn_docids._base import AUTO_STEPS
from sklearn_docids._detector import DOCIDSDetector
from sklearn_docids._report import format_flows
from sklearn_docids._sampler import FlowSampler
from sklearn_docids._training import batch_bounds
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.datasets import make_traffic
from sklearn_docids.metrics import attack_average_precision_score, attack_roc_auc_score

N_LISTED = 10
DEMO_EPOCHS = 25
DEMO_BATCH_SIZE = 64
FALSE_ALARM_RATE = 0.05


def run(folder: str, seed: int) -> None:
    """Write traffic, train, score and report; everything follows from ``seed``."""
    print(f"Writing synthetic captures to {folder} (seed {seed}) ...", flush=True)
    traffic = make_traffic(
        os.path.join(folder, "traffic"), n_flows=500, n_reference=50, n_attacks=30, random_state=seed
    )

    print("Sampling flows: the first 80 bytes of the first 4 packets, addresses zeroed ...", flush=True)
    # Addresses are zeroed in training and scoring alike: here they carry nothing that a detector should learn.
    sampler = FlowSampler(fields={"mac": "zero", "ip": "zero", "checksums": "zero"}, random_state=seed)
    X_reference, y_reference, _ = sampler.sample(traffic.reference, traffic.reference_classes)
    train, test = sampler.flows(traffic.train), sampler.flows(traffic.test)
    kinds = traffic.attack_of(test)
    y_test = np.where(kinds == "", 1, -1)
    print(
        f"  reference {len(X_reference)} flows of {len(traffic.reference_classes)} classes, "
        f"training {len(train)} normal flows, test {len(test)} flows with {np.sum(y_test == -1)} attacks"
    )

    detector = DOCIDSDetector(
        max_epochs=DEMO_EPOCHS,
        batch_size=DEMO_BATCH_SIZE,
        false_alarm_rate=FALSE_ALARM_RATE,
        random_state=seed,
        verbose=1,
    )
    n_trained = len(train) - round(detector.validation_fraction * len(train))
    steps = DEMO_EPOCHS * len(batch_bounds(n_trained, DEMO_BATCH_SIZE))
    print(
        f"Training DOC-IDS for {steps} steps of {DEMO_BATCH_SIZE} pairs "
        f"(fewer than the default of about {AUTO_STEPS} steps of 128) ...",
        flush=True,
    )
    detector.fit(train.X, reference=(X_reference, y_reference))
    scores = {
        "DOC-IDS": detector.score_samples(test.X),
        **{name: baseline.fit(train.X).score_samples(test.X) for name, baseline in _baselines(seed).items()},
        "number of packets": _packet_count_scores(train, test),
    }
    _print_report(scores, y_test, kinds)
    flagged = detector.predict(test.X) == -1
    normal, attacks = np.mean(flagged[y_test == 1]), np.mean(flagged[y_test == -1])
    n_held_out = len(train) - n_trained
    print(
        f"\nThe threshold for {FALSE_ALARM_RATE:.0%} false alarms was set with {n_held_out} flows kept out of training;"
    )
    print(f"it flags {normal:.1%} of the normal test flows and {attacks:.1%} of the attacks.")
    _print_most_abnormal(test, scores["DOC-IDS"], kinds)
    _draw(Path(folder) / "demo.png", scores, y_test, detector.offset_)


def _baselines(seed: int) -> dict[str, Any]:
    def scaled(detector: Any) -> Any:
        return make_pipeline(FunctionTransformer(lambda X: X / np.float32(255)), detector)

    return {
        "IsolationForest": scaled(IsolationForest(random_state=seed)),
        "OneClassSVM": scaled(OneClassSVM()),
    }


def _packet_count_scores(train: FlowTable, test: FlowTable) -> np.ndarray:
    """Return how common a flow's number of packets is in the training data: a detector that looks at nothing else."""
    n_train = train.packets_forward + train.packets_backward
    n_test = test.packets_forward + test.packets_backward
    frequency = np.bincount(n_train, minlength=int(n_test.max()) + 1)
    return frequency[n_test] / len(n_train)


def _print_report(scores: dict[str, np.ndarray], y_test: np.ndarray, kinds: np.ndarray) -> None:
    attacks = sorted(set(kinds) - {""})
    print(f"\nAttacks are {np.mean(y_test == -1):.1%} of the test flows: a detector that guesses has this PR-AUC.")
    print(f"{'':18} ROC-AUC  PR-AUC   ROC-AUC by kind: " + "  ".join(attacks))
    for name, values in scores.items():
        overall = f"{attack_roc_auc_score(y_test, values):7.3f} {attack_average_precision_score(y_test, values):7.3f}"
        by_kind = []
        for attack in attacks:
            rows = (kinds == attack) | (kinds == "")
            by_kind.append(f"{attack_roc_auc_score(y_test[rows], values[rows]):{len(attack)}.3f}")
        print(f"{name:18} {overall} {'':18}" + "  ".join(by_kind))


def _print_most_abnormal(flows: FlowTable, scores: np.ndarray, kinds: np.ndarray) -> None:
    order = np.argsort(scores, kind="stable")[:N_LISTED]
    print(f"\nThe {len(order)} most abnormal flows:")
    for line, kind in zip(format_flows(flows[order], scores[order]), kinds[order], strict=True):
        print(f"{line}  {kind or 'normal'}")


def _draw(path: Path, scores: dict[str, np.ndarray], y_test: np.ndarray, threshold: float) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\nNo picture: matplotlib is not installed (pip install 'sklearn-docids[plot]').")
        return
    from sklearn_docids.plotting import RocDisplay, ScoreHistogramDisplay

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ScoreHistogramDisplay.from_predictions(y_test, scores["DOC-IDS"], threshold=threshold, ax=left)
    left.set_title("DOC-IDS: scores of test flows")
    for name, values in scores.items():
        RocDisplay.from_predictions(y_test, values, name=name, ax=right)
    right.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    right.set_title("ROC: attacks among normal flows")
    figure.savefig(path, dpi=120)
    print(f"\nPicture: {path}")
