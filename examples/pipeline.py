"""From captures to scores in one scikit-learn pipeline.

The pipeline's first step reads captures, its second trains on them. Neither ``fit`` nor ``score_samples`` sees MAC or
IP addresses: `FlowSampler` zeroes them by default.
"""

import tempfile

import numpy as np
from sklearn.pipeline import Pipeline

from sklearn_docids import DOCIDSDetector, FlowSampler
from sklearn_docids.datasets import make_traffic
from sklearn_docids.metrics import attack_roc_auc_score


def main(n_flows=200, max_epochs=20):
    """Train on normal traffic, score traffic with attacks in it; return the ROC-AUC."""
    with tempfile.TemporaryDirectory() as folder:
        traffic = make_traffic(folder, n_flows=n_flows, n_reference=20, n_attacks=10, random_state=0)
        sampler = FlowSampler(random_state=0)
        X_reference, y_reference, _ = sampler.sample(traffic.reference, traffic.reference_classes)
        pipeline = Pipeline(
            [
                ("sampler", sampler),
                ("detector", DOCIDSDetector(max_epochs=max_epochs, batch_size=64, random_state=0)),
            ]
        )
        pipeline.fit([traffic.train], detector__reference=(X_reference, y_reference))
        scores = pipeline.score_samples([traffic.test])
        y = np.where(traffic.attack_of(sampler.flows(traffic.test)) == "", 1, -1)
    auc = attack_roc_auc_score(y, scores)
    print(f"{len(scores)} flows scored, {np.sum(y == -1)} of them attacks: ROC-AUC {auc:.3f}")
    return auc


if __name__ == "__main__":
    main()
