"""How scores of flows are added up to those of channels: what was tried on the validation part of the testbed.

    OMP_NUM_THREADS=1 python benchmarks/aggregation.py [--seeds 2]

The first half of the validation period calibrates and the second is scored, and the other way round. Each line has
the means over kinds of attack, halves and seeds of ROC-AUC, average precision and recall at 1 % false alarms, for
windows of 30, 60 and 120 s. With p, the share of normal flows that score as low as a flow, a channel is the sum of
(-log p) to a power over its most abnormal flows.
"""

import argparse
import itertools
import warnings

import numpy as np

from sklearn_docids import DOCIDSDetector, FlowSampler, ReferenceData
from sklearn_docids.datasets import load_testbed
from sklearn_docids.evaluation import Evaluation, Scored

WINDOWS_S = (30, 60, 120)
SUMS = list(itertools.product((1, 1.25, 1.5, 1.75, 2), (1, 10, 50, None)))


def channels_of(flows, window_s):
    """Return the number of the channel and window of each flow."""
    windows = flows.time_first // (window_s * 10**9)
    columns = (flows.src_ip, flows.dst_ip, flows.dst_port, flows.protocol, windows)
    numbers = {}
    return np.array(
        [numbers.setdefault(key, len(numbers)) for key in zip(*map(np.ndarray.tolist, columns), strict=True)]
    )


def tails(scores, normal):
    """Return -log p of flows."""
    return np.log((len(normal) + 1) / (np.searchsorted(np.sort(normal), scores, side="right") + 1))


def sums(values, channels, power, n_highest):
    """Return the sum of each channel, in the order of their numbers."""
    return np.array([np.sum(np.sort(values[channels == c])[::-1][:n_highest] ** power) for c in np.unique(channels)])


def measured(values, channels, attack, power, n_highest):
    """Return the means over attacks of three measures of channels."""
    is_normal = attack == ""
    normal = -sums(values[is_normal], channels[is_normal], power, n_highest)
    attacks = {}
    for kind in np.unique(attack[~is_normal]):
        attacked = np.unique(channels[attack == kind])
        rows = (is_normal | (attack == kind)) & np.isin(channels, attacked)
        attacks[kind] = -sums(values[rows], channels[rows], power, n_highest)
    found = Evaluation()
    found.add("", 0, Scored(normal, attacks), level="channel", n_resamples=0)
    return [found.values("", name)[0] for name in ("roc_auc", "average_precision", "recall_at_fpr_0_01")]


def measured_halves(flows, scores, attack, window_s):
    """Return the measures of each sum and half: (2, sums, 3)."""
    middle = (flows.time_first.min() + flows.time_first.max()) / 2
    first, channels = flows.time_first < middle, channels_of(flows, window_s)
    results = []
    for calibration in (first, ~first):
        values = tails(scores, scores[calibration & (attack == "")])[~calibration]
        results.append([measured(values, channels[~calibration], attack[~calibration], *how) for how in SUMS])
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    results = {window_s: [] for window_s in WINDOWS_S}
    for seed in range(args.seeds):
        data = load_testbed(sampler=FlowSampler(random_state=seed))
        reference = ReferenceData(data.X_reference, data.y_reference)
        detector = DOCIDSDetector(random_state=seed).fit(data.X_train, reference=reference)
        scores = detector.score_samples(data.X_validation)
        for window_s, of_window in results.items():
            of_window += measured_halves(data.flows_validation, scores, data.attack_validation, window_s)
    windows = " | ".join(f"{window_s} s" for window_s in WINDOWS_S)
    print(f"| power | flows | {windows} |\n|---|---|{'---|' * len(WINDOWS_S)}")
    for number, (power, n_highest) in enumerate(SUMS):
        means = [np.mean(of_window, axis=0)[number] for of_window in results.values()]
        cells = [", ".join(f"{value:.3f}" for value in mean) for mean in means]
        print(f"| {power} | {n_highest or 'all'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
