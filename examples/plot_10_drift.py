"""
Drift
=====

A threshold holds its rate of false alarms as long as traffic is like that which set it. `DriftMonitor` tests this after
each flow, and may look as often as it likes: without a change, it says "drift" in at most one of a hundred runs.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np

from sklearn_docids import FlowSampler, MultiViewDetector
from sklearn_docids.datasets import load_testbed
from sklearn_docids.monitoring import DriftMonitor

# %%
# A model of one network
# ----------------------
# It learns the office. The captures of the reference are of other hosts with other services: another network, as far as
# this model knows.

testbed = load_testbed(sampler=FlowSampler(layout="payload"))
detector = MultiViewDetector(views=("statistics", "requests", "novelty"), random_state=0).fit(
    testbed.flows_train
)
periods = {
    "the office, a later period": testbed.flows_test[testbed.y_test == 1],
    "the office under attack": testbed.flows_test,
    "another network": testbed.flows_reference,
}

# %%
# Watching
# --------
# The monitor compares scores with those of the calibration, one of each channel and minute, since others are no
# independent evidence. The evidence is the logarithm of a gambler's capital: it grows only if more flows are unusual
# than were then. Attacks of some hosts are no drift, however many flows they flag.

evidence = {}
for name, flows in periods.items():
    flows = flows[np.argsort(flows.time_first, kind="stable")]
    scores = detector.score_samples(flows)
    monitor = DriftMonitor(detector.thinned_scores_, rate=0.01, random_state=0)
    path = []
    for first in range(0, len(flows), 20):
        piece = slice(first, first + 20)
        monitor.update(scores[piece], flows[piece])
        path.append((monitor.n_compared, monitor.log_martingale))
    evidence[name] = np.array(path)
    text = f"{name}: {np.mean(scores < detector.offset_):.1%} flagged. {monitor.describe()}"
    print(textwrap.fill(text, 100), end="\n\n")

# %%
# Evidence by flow
# ----------------
# Above the line there is drift. The model of the office flags every flow of the other network: look at the traffic
# first, then calibrate where a network has changed a little, or fit anew where it is another one.

figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
looks = zip(evidence.items(), ["#0072b2", "#e69f00", "#d55e00"], ["-", "--", "-."], strict=True)
for (name, path), color, linestyle in looks:
    ax.plot(*path.T, color=color, linestyle=linestyle, linewidth=2, label=name)
ax.axhline(
    np.log(100), color="black", linestyle=":", label="drift, wrongly in one of 100 runs at most"
)
ax.set(xlabel="flows compared", ylabel="evidence for drift (logarithm)")
ax.legend()
plt.show()
