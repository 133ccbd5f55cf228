# SPDX-License-Identifier: BSD-3-Clause
"""`docids demo`: from the bundled captures to a ranked list of incidents, each with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import OneClassSVM
from sklearn.utils import Bunch

from sklearn_docids._sampler import FlowSampler
from sklearn_docids._text import PROTOCOL_NAMES
from sklearn_docids.aggregation import find_incidents
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.cli._outputs import replacing
from sklearn_docids.cli._text import main_reason, say
from sklearn_docids.datasets import load_testbed
from sklearn_docids.detectors import DOCIDSDetector, Judgement, MultiViewDetector, ReferenceData, StatisticDetector
from sklearn_docids.metrics import attack_average_precision_score, attack_roc_auc_score

N_LISTED = 10
MAX_EPOCHS: int | str = "auto"
VIEWS = "several views"


def run(folder: str, seed: int) -> None:
    """Train on the bundled testbed, score and report; everything follows from ``seed``."""
    print("Sampling the bundled testbed: the first 80 bytes of the first 4 packets, addresses zeroed ...", flush=True)
    packets = load_testbed(sampler=FlowSampler())
    flows = load_testbed(sampler=FlowSampler(layout="payload"))
    y_test, kinds = flows.y_test, flows.attack
    print(
        f"  reference {len(flows.X_reference)} flows of {len(set(flows.y_reference))} services, "
        f"training {len(flows.X_train)} normal flows, test {len(y_test)} flows with {np.sum(y_test == -1)} abnormal"
    )
    print("Training a detector of several views, DOC-IDS and three simple ones on the normal flows ...", flush=True)
    detector = _fitted_views(flows, seed)
    judged = detector.stream().judge(flows.flows_test)
    scores = {VIEWS: judged.scores, **_other_scores(packets, seed)}
    _print_report(scores, y_test, kinds)
    _print_alarms(detector, judged.scores, flows.flows_test, y_test)
    _print_incidents(detector, flows.flows_test, judged, kinds)
    _draw(Path(folder) / "demo.png", scores, y_test, detector.offset_)


def _fitted_views(flows: Bunch, seed: int) -> MultiViewDetector:
    detector: MultiViewDetector = MultiViewDetector(random_state=seed, verbose=1)
    detector.set_params(detector=detector._network().set_params(max_epochs=MAX_EPOCHS))
    return detector.fit(flows.flows_train, reference=ReferenceData(flows.X_reference, flows.y_reference))


def _other_scores(packets: Bunch, seed: int) -> dict[str, np.ndarray]:
    """Return scores of the test flows by detectors of single flows, which are given the headers, too."""

    def scaled(detector: Any) -> Any:
        return make_pipeline(FunctionTransformer(lambda X: X / np.float32(255)), detector)

    network: DOCIDSDetector = DOCIDSDetector(max_epochs=MAX_EPOCHS, random_state=seed, verbose=1)
    fitted = {
        "DOC-IDS": network.fit(packets.X_train, reference=ReferenceData(packets.X_reference, packets.y_reference)),
        "IsolationForest": scaled(IsolationForest(random_state=seed)).fit(packets.X_train),
        "OneClassSVM": scaled(OneClassSVM()).fit(packets.X_train),
        "number of packets": StatisticDetector("packets").fit(packets.X_train),
    }
    return {name: detector.score_samples(packets.X_test) for name, detector in fitted.items()}


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


def _print_alarms(detector: MultiViewDetector, scores: np.ndarray, flows: FlowTable, y_test: np.ndarray) -> None:
    flagged = scores < detector.offset_
    among, abnormal = np.mean(flagged[y_test == 1]), np.mean(flagged[y_test == -1])
    alone = np.mean(detector.predict(flows[y_test == 1]) == -1)
    print(
        f"\nThe threshold for {detector.false_alarm_rate:.0%} false alarms was set with the "
        f"{len(detector.calibration_scores_)} training flows; it flags {abnormal:.1%} of the abnormal test flows.\n"
        f"Of the normal ones it flags {alone:.1%} where there is no attack, and {among:.1%} among the attacks, whose "
        "flows count\nwith those that are like them."
    )


def _print_incidents(detector: MultiViewDetector, flows: FlowTable, judged: Judgement, kinds: np.ndarray) -> None:
    """Print the most abnormal incidents, the kinds of their flows, and why the most abnormal flow of each is so."""
    incidents = find_incidents(flows, judged.scores, detector.offset_)
    print(f"\nThe flagged flows are {len(incidents)} incidents of channels; the {N_LISTED} most abnormal:")
    for incident in incidents[:N_LISTED]:
        names, numbers = np.unique(kinds[incident.rows], return_counts=True)
        what = ", ".join(f"{n} {name or 'normal'}" for name, n in zip(names.tolist(), numbers.tolist(), strict=True))
        protocol = PROTOCOL_NAMES[incident.protocol or 0]
        who = f"{incident.src_ip} -> {incident.dst_ip}:{incident.dst_port}/{protocol}"
        say(f"{incident.score:9.1f}  {who}: {what}", f"{'':11}{main_reason(judged.reasons(incident.most_abnormal))}")


def _draw(path: Path, scores: dict[str, np.ndarray], y_test: np.ndarray, threshold: float) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\nNo picture: matplotlib is not installed (pip install matplotlib).")
        return
    from sklearn_docids.plotting import RocDisplay, ScoreHistogramDisplay

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ScoreHistogramDisplay.from_predictions(y_test, scores[VIEWS], threshold=threshold, ax=left)
    left.set_title(f"{VIEWS}: scores of test flows")
    for name, values in scores.items():
        RocDisplay.from_predictions(y_test, values, name=name, ax=right)
    right.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    right.set_title("ROC: abnormal among normal flows")
    with replacing(str(path)) as part:
        figure.savefig(part, dpi=120, format="png")
    say("", f"Picture: {path}")
