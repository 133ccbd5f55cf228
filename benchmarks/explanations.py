"""Whether explanations point at what was altered: eight bytes in a row are given values never seen there in training.

    OMP_NUM_THREADS=1 python benchmarks/explanations.py [--seeds 3] [--flows 500]

Normal flows of the testbed's test part; the altered place is drawn among those of packets that are there and where
training left values unused. Printed is the share of flows in which at least four of the eight altered bytes are among
the 16 of 320 with the largest attribution, for ``explain`` and, beside it, for the plain gradient; and the share of
flows that the alteration made more abnormal.
"""

import argparse
import warnings

import numpy as np

from sklearn_docids import DOCIDSDetector, FlowSampler, ReferenceData
from sklearn_docids._network import scoring
from sklearn_docids.datasets import load_testbed

N_ALTERED, N_HIGHEST, N_NEEDED = 8, 16, 4


def altered(X, X_train, rng):
    """Return altered copies of rows, and the first altered column of each."""
    unused = [np.setdiff1d(np.arange(256), X_train[:, column]) for column in range(X.shape[1])]
    rows, places = X.copy(), []
    for row in rows:
        packets = row.reshape(4, 80).any(axis=1)
        possible = [
            80 * packet + byte
            for packet in np.flatnonzero(packets)
            for byte in range(80 - N_ALTERED + 1)
            if all(len(unused[80 * packet + byte + i]) for i in range(N_ALTERED))
        ]
        place = int(rng.choice(possible))
        for column in range(place, place + N_ALTERED):
            row[column] = rng.choice(unused[column])
        places.append(place)
    return rows, np.array(places)


def share_found(attribution, places):
    highest = np.argsort(-np.abs(attribution.reshape(len(places), -1)), axis=1)[:, :N_HIGHEST]
    hits = ((highest >= places[:, None]) & (highest < places[:, None] + N_ALTERED)).sum(axis=1)
    return np.mean(hits >= N_NEEDED)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flows", type=int, default=500)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    data = load_testbed(sampler=FlowSampler())
    print("| seed | explain | gradient | made more abnormal |\n|---|---|---|---|")
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        normal = data.X_test[data.y_test == 1]
        normal = normal[rng.permutation(len(normal))[: args.flows]]
        rows, places = altered(normal, data.X_train, rng)
        reference = ReferenceData(data.X_reference, data.y_reference)
        detector = DOCIDSDetector(random_state=seed).fit(data.X_train, reference=reference)
        gradient = scoring.gradient(detector._scorer.abnormality, detector.network_, rows, "cpu")
        risen = np.mean(detector.score_samples(rows) < detector.score_samples(normal))
        found = share_found(detector.explain(rows), places), share_found(gradient, places)
        print(f"| {seed} | {found[0]:.3f} | {found[1]:.3f} | {risen:.3f} |", flush=True)


if __name__ == "__main__":
    main()
