"""
Several views of a flow
=======================

No single way of looking at a flow finds every kind of attack. `MultiViewDetector` adds up what five views find
improbable. The picture shows what each finds alone, what they find together, and what the sum costs.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_docids import DOCIDSDetector, FlowSampler, MultiViewDetector
from sklearn_docids.datasets import load_testbed
from sklearn_docids.metrics import recall_at_fpr_score

# %%
# One detector, five views
# ------------------------
# The network of ``bytes`` passes over the flows once here, to be quick.

testbed = load_testbed(sampler=FlowSampler(layout="payload"))
network = DOCIDSDetector(batch_size=32, max_epochs=1)
detector = MultiViewDetector(detector=network, random_state=0)
detector.fit(testbed.flows_train, reference=(testbed.flows_reference, testbed.y_reference))

# %%
# What each view says
# -------------------
# ``bytes``: like which normal flow is it? ``statistics``: how long and large is it? ``requests``: is its request
# spelled as others are? ``novelty``: has anybody asked this server for this? ``content``: how many like it came before?
#
# Each view gives a flow a p-value, and the score is the sum of their logarithms. Each kind of attack is judged among
# the normal flows of its period, as the view of content counts what came before.

kinds = sorted(set(testbed.attack.tolist()) - {""})
names = [*detector.view_names_, "together"]
recall = np.empty((len(kinds), len(names)))
for number, kind in enumerate(kinds):
    chosen = np.isin(testbed.attack, ["", kind])
    judged = detector.stream().judge(testbed.flows_test[chosen])
    of_views = [*np.log(judged.p_values).T, judged.scores]
    recall[number] = [
        recall_at_fpr_score(testbed.y_test[chosen], scores, max_fpr=0.01) for scores in of_views
    ]

for name, mean in zip(names, recall.mean(axis=0), strict=True):
    print(f"{name:10} finds {mean:.0%} at 1 % false alarms, mean over {len(kinds)} kinds")

# %%
# Who finds what
# --------------
# Read along a line: where one view finds all and the sum less, the sum pays for what the other views do not see. Read
# down a column: no view finds more than some kinds. Beacons over TLS stay hidden from all of them.

figure, ax = plt.subplots(figsize=(7, 5.4), layout="constrained")
ax.imshow(recall, cmap="cividis", aspect="auto", vmin=0, vmax=1)
for row, column in np.ndindex(*recall.shape):
    color = "black" if recall[row, column] > 0.5 else "white"
    ax.text(column, row, f"{recall[row, column]:.0%}", ha="center", va="center", color=color)
ax.axvline(len(names) - 1.5, color="white", linewidth=4)
ax.set_xticks(range(len(names)), names)
ax.set_yticks(range(len(kinds)), kinds)
ax.set_title("Attacks found at 1 % false alarms, by view")
plt.show()
