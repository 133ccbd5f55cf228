"""What calibration elsewhere is worth, and when the test for drift speaks.

Detectors are fitted on the testbed and on two real sites (a folder of captures, ``--data``), calibrated on normal
traffic of another, and asked about traffic that they have not seen. A detector that is fitted there is the measure.

    OMP_NUM_THREADS=1 python benchmarks/monitoring.py --data ../shared/data

Nothing here is tuned on the test part of the testbed, with one exception: that one flow per channel and minute is
compared, and that a source gains once a minute, was chosen among few round numbers with an eye on all streams below.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import betabinom

from sklearn_docids import FlowSampler, MultiViewDetector
from sklearn_docids._thresholds import realised_band
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.datasets import load_testbed
from sklearn_docids.metrics import attack_roc_auc_score
from sklearn_docids.monitoring import DriftMonitor

SITES = {"A": "targetA_windows_domain", "B": "targetB_smart_speaker"}
VIEWS = ("statistics", "requests", "novelty", "content")
RATES = {"testbed": 0.01, "A": 0.05, "B": 0.01}
SAMPLER = FlowSampler(layout="payload")
N_WEEKS, N_COMPARED = 1000, 3000
N_SPLITS = 20


def load(data):
    """Return training and later normal flows of each site, and the testbed's flows of attacks by part and kind."""
    testbed = load_testbed(sampler=SAMPLER)
    parts, attacks = {}, {}
    for part, y, kinds in (
        ("validation", testbed.y_validation, testbed.attack_validation),
        ("test", testbed.y_test, testbed.attack),
    ):
        flows, y, kinds = testbed[f"flows_{part}"], np.asarray(y), np.asarray(kinds)
        parts[part] = flows[y == 1]
        attacks[part] = {kind: (flows[(y == 1) | (kinds == kind)], y[(y == 1) | (kinds == kind)]) for kind in
                         sorted(set(kinds) - {""})}  # fmt: skip
    train = {"testbed": testbed.flows_train}
    later = {"testbed": parts["validation"], "testbed, test part": parts["test"]}
    for site, folder in SITES.items() if data else ():
        train[site] = SAMPLER.flows(data / folder / "normal_train.pcap")
        later[site] = SAMPLER.flows(data / folder / "normal_test.pcap")
    return train, later, attacks


def first_drift(detector, flows):
    """Return how many flows there were when drift was noticed, or None, and the highest evidence until then."""
    monitor, scores = DriftMonitor(detector.thinned_scores_, random_state=0), detector.score_samples(flows)
    highest = 0.0
    for row in np.argsort(flows.time_first, kind="stable"):
        monitor.update(scores[[row]], flows[[row]])
        highest = max(highest, monitor.log_martingale)
        if monitor.drifted_:
            return monitor.n_flows, highest
    return None, highest


def report_drift(detectors, later, attacks):
    print("Drift: flows until it is noticed (highest evidence, natural logarithm; 4.6 is drift)")
    for name, detector in detectors.items():
        found = {site: first_drift(detector, flows) for site, flows in later.items()}
        told = "; ".join(f"{site}: {at or 'quiet'} ({highest:.1f})" for site, (at, highest) in found.items())
        n_scores = f"{len(detector.thinned_scores_)} of {len(detector.calibration_scores_)} scores"
        print(f"  fitted on {name}, {n_scores}: {told}")
    found = [
        first_drift(detectors["testbed"], flows)[0] for of_part in attacks.values() for flows, _ in of_part.values()
    ]
    print(f"  attacks of the testbed, each alone among normal flows: drift in {sum(map(bool, found))} of {len(found)}")


def report_quiet_weeks():
    n_drifted, begun = 0, time.perf_counter()
    for week in range(N_WEEKS):
        rng = np.random.default_rng(week)
        n = int(rng.choice([30, 385, 2000]))
        # Every other week, many scores are equal.
        draw = (lambda k, rng=rng: -np.floor(3 * rng.exponential(size=k))) if week % 2 else (
            lambda k, rng=rng: -rng.exponential(size=k))  # fmt: skip
        monitor = DriftMonitor(draw(n), random_state=week)
        monitor.update(draw(N_COMPARED))
        n_drifted += monitor.drifted_
    spent = (time.perf_counter() - begun) / N_WEEKS / N_COMPARED
    print(
        f"  {N_WEEKS} quiet weeks of {N_COMPARED} compared flows: drift in {n_drifted}; {1e6 * spent:.0f} us per flow"
    )


def report_calibration(detectors, train, later, attacks):
    print("Calibration: flagged of later normal flows, mean ROC AUC over the attacks of the testbed's validation part")
    for name, detector in detectors.items():
        for site, flows in train.items():
            if site == name:
                continue
            before = (detector.predict(later[site]) == -1).mean()
            detector.calibrate(flows, false_alarm_rate=RATES[site])
            low, high = realised_band(len(flows), RATES[site])
            flagged = (detector.predict(later[site]) == -1).mean()
            print(f"  {name} on {site}: {before:.3f}, calibrated there {flagged:.4f} (band {low:.4f} to {high:.4f})",
                  f"AUC {auc(detector, attacks):.3f}" if site == "testbed" else "")  # fmt: skip
            detector.restore_calibration(0)
            if site == "testbed":
                print(f"    as fitted: AUC {auc(detector, attacks):.3f}")
    print(f"  fitted there: AUC {auc(detectors['testbed'], attacks):.3f}")


def auc(detector, attacks):
    found = [attack_roc_auc_score(y, detector.score_samples(flows)) for flows, y in attacks["validation"].values()]
    return np.mean(found)


def report_band(detector, flows):
    inside, rng = 0, np.random.default_rng(0)
    for _ in range(N_SPLITS):
        mixed = rng.permutation(len(flows))
        half, rest = flows[mixed[::2]], flows[mixed[1::2]]
        detector.calibrate(half)
        # The share of so many flows, where the rate is that of the band.
        k = int(0.01 * (len(half) + 1))
        low, high = betabinom.ppf([0.025, 0.975], len(rest), k, len(half) + 1 - k)
        inside += low <= (detector.predict(rest) == -1).sum() <= high
        detector.restore_calibration(0)
        detector.calibrations_ = detector.calibrations_[:1]
    print(f"  random halves of the test part: the rate of the other half is in the band in {inside} of {N_SPLITS}")


def report_time(detector, flows):
    flows = FlowTable.concatenate([flows] * (1 + 10_000 // len(flows)))[:10_000]
    begun = time.perf_counter()
    detector.calibrate(flows)
    print(f"  calibrate on {len(flows)} flows, {', '.join(detector.view_names_)}: {time.perf_counter() - begun:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with captures of the sites")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    train, later, attacks = load(args.data)
    detectors = {
        site: MultiViewDetector(views=VIEWS, false_alarm_rate=RATES[site], random_state=0).fit(flows)
        for site, flows in train.items()
    }
    report_drift(detectors, later, attacks)
    report_quiet_weeks()
    report_calibration(detectors, train, later, attacks)
    report_band(detectors["testbed"], later["testbed, test part"])
    testbed = load_testbed(sampler=SAMPLER)
    with_network = MultiViewDetector(random_state=0)
    report_time(with_network.fit(train["testbed"], reference=(testbed.X_reference, testbed.y_reference)),
                later["testbed"])  # fmt: skip


if __name__ == "__main__":
    main()
