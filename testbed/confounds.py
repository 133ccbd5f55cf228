# SPDX-License-Identifier: BSD-3-Clause
"""Do header fields alone tell abnormal traffic from normal? A shallow decision tree tries, kind by kind.

    python testbed/confounds.py

TTL, TOS, IP ID, header lengths and TCP window betray the host or its system, not what it does. A tree of depth 3 is
trained and tested with them (five folds, leaves of at least 20 flows) to tell each kind from normal flows of the same
protocol. An area under the ROC curve of 0.5 means that the fields say nothing. It is measured with the first packet,
which only the beginning host has shaped, and with all four, in which the answer shows too. The last column adds the
lengths of the packets: those follow from what is said, and are no shortcut where what is said differs.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from sklearn_docids.datasets import load_testbed

N_PACKETS, N_BYTES = 4, 80
TCP = 6
FEWEST_FLOWS = 50
# Whether normal flows are those of the same port, packets that are looked at, whether at their lengths, too.
COMPARISONS = {
    "first packet, same protocol": (False, 1, False),
    "first packet, same port": (True, 1, False),
    "four packets, same port": (True, N_PACKETS, False),
    "and their lengths": (True, N_PACKETS, True),
}


def header_fields(X: np.ndarray, n_packets: int, *, lengths: bool = False) -> np.ndarray:
    """Return TTL, TOS, IP ID, IP and TCP header length, TCP window, and perhaps IP lengths of the first packets."""
    packets = X.reshape(len(X), N_PACKETS, N_BYTES)[:, :n_packets].astype(np.int64)
    tcp = packets[:, :, 23] == TCP
    fields = [
        packets[:, :, 22],
        packets[:, :, 15],
        256 * packets[:, :, 18] + packets[:, :, 19],
        packets[:, :, 14] & 15,
        np.where(tcp, packets[:, :, 46] >> 4, 0),
        np.where(tcp, 256 * packets[:, :, 48] + packets[:, :, 49], 0),
    ]
    if lengths:
        fields.append(256 * packets[:, :, 16] + packets[:, :, 17])
    return np.concatenate(fields, axis=1)


def tree_auc(fields: np.ndarray, abnormal: np.ndarray) -> float:
    """Return the area under the ROC curve of a shallow tree, tested on folds that it has not seen."""
    tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=20, class_weight="balanced", random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    chance = cross_val_predict(tree, fields, abnormal, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(abnormal, chance))


def main() -> None:
    """Print a row per kind."""
    testbed = load_testbed()
    X = np.concatenate([testbed.X_validation, testbed.X_test])
    kinds = np.concatenate([testbed.attack_validation, testbed.attack])
    flows = [testbed.flows_validation, testbed.flows_test]
    ports = np.concatenate([table.dst_port for table in flows])
    protocols = np.concatenate([table.protocol for table in flows])
    print(f"| kind | flows | {' | '.join(COMPARISONS)} |")
    print("|---" * (2 + len(COMPARISONS)) + "|")
    for kind in sorted(set(kinds) - {""}):
        abnormal = kinds == kind
        same_protocol = (kinds == "") & np.isin(protocols, np.unique(protocols[abnormal]))
        same_port = same_protocol & np.isin(ports, np.unique(ports[abnormal]))
        cells = []
        for of_port, n_packets, lengths in COMPARISONS.values():
            normal = same_port if of_port else same_protocol
            rows = abnormal | normal
            fields = header_fields(X[rows], n_packets, lengths=lengths)
            enough = min(abnormal.sum(), normal.sum()) >= FEWEST_FLOWS
            cells.append(f"{tree_auc(fields, abnormal[rows]):.3f}" if enough else "-")
        print(f"| {kind} | {abnormal.sum()} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
