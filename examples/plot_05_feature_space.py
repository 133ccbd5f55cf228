"""
Feature space by t-SNE
======================

The paper's Figure 3 maps flows twice: by their bytes, and by the features that the network has learned. The features
tell services apart that lie in one heap by their bytes. Some kinds of abnormal traffic get a place of their own; others
share theirs with the normal flows of the same service.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import pairwise_distances

from sklearn_docids import DOCIDSDetector
from sklearn_docids.datasets import load_testbed
from sklearn_docids.plotting import EmbeddingDisplay

# %%
# The network
# -----------
# One pass over the training flows, with the reference of 22 services.

testbed = load_testbed()
detector = DOCIDSDetector(max_epochs=1, random_state=0)
detector.fit(testbed.X_train, reference=(testbed.X_reference, testbed.y_reference))

# %%
# Flows to map
# ------------
# 400 normal flows and 60 of each of six kinds. t-SNE takes a minute for 5,000.

rng = np.random.default_rng(0)
kinds = ["beacon_tcp", "beacon_tls", "dns_tunnel", "port_scan", "slow_http", "ssh_guessing"]
drawn = {kind: rng.permutation(np.flatnonzero(testbed.attack == kind))[:60] for kind in kinds}
normal = rng.permutation(np.flatnonzero(testbed.attack == ""))[:400]
rows = np.concatenate([normal, *drawn.values()])
X, kind = testbed.X_test[rows], testbed.attack[rows]

# %%
# How far from normal traffic
# ---------------------------
# A map of two dimensions distorts distances; these are of all dimensions: from each flow to the nearest normal one, in
# units of what is usual between normal flows.

for title, features in {"bytes": X.astype(np.float32), "features g": detector.embed(X)}.items():
    distances = pairwise_distances(features, features[kind == ""])
    np.fill_diagonal(distances, np.inf)
    nearest = distances.min(axis=1) / np.median(distances[kind == ""].min(axis=1))
    print(
        f"{title:10}",
        *[f"{name} {np.median(nearest[kind == name]):.1f}" for name in kinds],
        sep="  ",
    )

# %%
# Two maps
# --------
# Left: what the network is given. Right: what it makes of it. The maps are drawn by t-SNE from one seed; sizes of
# clusters and gaps between them mean little.

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 4), layout="constrained")
EmbeddingDisplay.from_predictions(kind, X, ax=left)
EmbeddingDisplay.from_estimator(detector, X, kind, ax=right)
for ax, title in ((left, "bytes of the rows"), (right, "features g")):
    ax.get_legend().remove()
    ax.set_title(title)
figure.legend(
    *right.get_legend_handles_labels(),
    loc="outside lower center",
    ncols=4,
    markerscale=2,
    frameon=False,
)
plt.show()
