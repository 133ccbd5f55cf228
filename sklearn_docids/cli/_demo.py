# SPDX-License-Identifier: BSD-3-Clause
"""`docids demo`: from the bundled captures to a ranked list of abnormal flows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM

from sklearn_docids._sampler import FlowSampler
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.cli._outputs import replacing
from sklearn_docids.cli._text import format_flows, say
from sklearn_docids.datasets import load_testbed
from sklearn_docids.detectors import AutoencoderDetector, DOCIDSDetector, StatisticDetector
from sklearn_docids.metrics import attack_average_precision_score, attack_roc_auc_score

N_LISTED = 10
MAX_EPOCHS: int | str = "auto"
FALSE_ALARM_RATE = 0.05


def run(folder: str, seed: int) -> None:
    """Train on the bundled testbed, score and report; everything follows from ``seed``."""
    print("Sampling the bundled testbed: the first 80 bytes of the first 4 packets, addresses zeroed ...", flush=True)
    testbed = load_testbed(sampler=FlowSampler())
    y_test, kinds = testbed.y_test, testbed.attack
    print(
        f"  reference {len(testbed.X_reference)} flows of {len(set(testbed.y_reference))} services, "
        f"training {len(testbed.X_train)} normal flows, test {len(y_test)} flows with {np.sum(y_test == -1)} abnormal"
    )
    print("Training DOC-IDS and four others on the normal flows ...", flush=True)
    detector = DOCIDSDetector(
        max_epochs=MAX_EPOCHS, false_alarm_rate=FALSE_ALARM_RATE, random_state=seed, verbose=1
    ).fit(testbed.X_train, reference=(testbed.X_reference, testbed.y_reference))
    scores = {
        "DOC-IDS": detector.score_samples(testbed.X_test),
        **{
            name: baseline.fit(testbed.X_train).score_samples(testbed.X_test)
            for name, baseline in _baselines(seed).items()
        },
        "number of packets": StatisticDetector("packets").fit(testbed.X_train).score_samples(testbed.X_test),
    }
    _print_report(scores, y_test, kinds)
    _print_alarms(detector, testbed.X_test, y_test, len(testbed.X_train))
    _print_most_abnormal(testbed.flows_test, scores["DOC-IDS"], kinds)
    Path(folder).mkdir(parents=True, exist_ok=True)
    _draw(Path(folder) / "demo.png", scores, y_test, detector.offset_)


def _baselines(seed: int) -> dict[str, Any]:
    def scaled(detector: Any) -> Any:
        return make_pipeline(FunctionTransformer(lambda X: X / np.float32(255)), detector)

    return {
        "Autoencoder": AutoencoderDetector(max_epochs=MAX_EPOCHS, random_state=seed),
        "IsolationForest": scaled(IsolationForest(random_state=seed)),
        "OneClassSVM": scaled(OneClassSVM()),
    }


def _print_report(scores: dict[str, np.ndarray], y_test: np.ndarray, kinds: np.ndarray) -> None:
    names = list(scores)
    print(f"\nAbnormal are {np.mean(y_test == -1):.1%} of the test flows: a detector that guesses has this PR-AUC.\n")
    print(f"{'':22}" + "".join(f"{name:>18}" for name in names))
    everything = np.full(len(y_test), True)
    lines = {
        "PR-AUC": (attack_average_precision_score, everything),
        "ROC-AUC": (attack_roc_auc_score, everything),
    }
    for kind in sorted(set(kinds) - {""}):
        lines[f"ROC-AUC {kind}"] = attack_roc_auc_score, (kinds == kind) | (kinds == "")
    for title, (measure, rows) in lines.items():
        print(f"{title:22}" + "".join(f"{measure(y_test[rows], scores[name][rows]):18.3f}" for name in names))
    print(
        "Each kind is compared with all normal flows: a part of what is found is the service, not what is done with it."
    )


def _print_alarms(detector: DOCIDSDetector, X_test: np.ndarray, y_test: np.ndarray, n_train: int) -> None:
    flagged = detector.predict(X_test) == -1
    normal, abnormal = np.mean(flagged[y_test == 1]), np.mean(flagged[y_test == -1])
    n_held_out = round(detector.validation_fraction * n_train)
    print(
        f"\nThe threshold for {FALSE_ALARM_RATE:.0%} false alarms was set with {n_held_out} flows kept out of training;"
    )
    print(f"it flags {normal:.1%} of the normal test flows and {abnormal:.1%} of the abnormal ones.")


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
    right.set_title("ROC: abnormal among normal flows")
    with replacing(str(path)) as part:
        figure.savefig(part, dpi=120, format="png")
    say("", f"Picture: {path}")
