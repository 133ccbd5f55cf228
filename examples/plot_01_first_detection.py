"""
First detection
===============

From normal traffic to a first list of incidents: a detector learns a quiet period of an office, and a later period is
scored flow by flow. Four kinds of abnormal traffic are hidden in it. Three are found; one looks like any other visit to
a web page, and stays hidden.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_docids import DOCIDSDetector, FlowSampler, MultiViewDetector
from sklearn_docids.aggregation import find_incidents
from sklearn_docids.datasets import load_testbed
from sklearn_docids.metrics import alarm_counts

# %%
# The bundled captures
# --------------------
# The testbed comes with the package: captures of real programs in a sealed network, five people's computers and five
# servers. A `FlowTable` has a row per flow, with columns such as ``src_ip``. No label is used for training.

testbed = load_testbed(sampler=FlowSampler(layout="payload"))
train = testbed.flows_train
print(f"{len(train)} normal flows of {len(np.unique(train.src_ip))} hosts to learn from")

# %%
# Learn what is normal
# --------------------
# The detector looks at a flow in five ways. One of them is the network of DOC-IDS, which needs a labelled reference:
# the testbed has 22 services. To be quick, the network passes over the flows once here; by default it takes 500 steps.

network = DOCIDSDetector(max_epochs=1)
detector = MultiViewDetector(detector=network, false_alarm_rate=0.01, random_state=0)
detector.fit(train, reference=(testbed.flows_reference, testbed.y_reference))

# %%
# Score a later period
# --------------------
# The lower a score, the more abnormal the flow; below ``offset_`` it is flagged. The truth about the testbed is known,
# so alarms can be counted.

kinds = ["port_scan", "dns_tunnel", "ssh_guessing", "beacon_tls"]
chosen = np.isin(testbed.attack, ["", *kinds])
flows, kind = testbed.flows_test[chosen], testbed.attack[chosen]
judged = detector.stream().judge(flows)
scores = judged.scores
flagged = scores < detector.offset_

counts = alarm_counts(np.where(kind == "", 1, -1), np.where(flagged, -1, 1))
print(f"{counts.fpr:.1%} of {np.sum(kind == '')} normal flows are flagged")
for name in kinds:
    print(
        f"{name:13} {flagged[kind == name].mean():5.0%} of {np.sum(kind == name)} flows are flagged"
    )

# %%
# What an analyst reads
# ---------------------
# A burst of guesses is a hundred flows and one thing to look at: `find_incidents` groups flagged flows, here by source.

incidents = find_incidents(flows, scores, detector.offset_, level="host")
print(f"{flagged.sum()} flagged flows are {len(incidents)} incidents; the three most abnormal:")
for incident in sorted(incidents, key=lambda incident: incident.score)[:3]:
    print(f"  {incident.src_ip}: {incident.n_flows} flows in {incident.n_channels} channels")
    print(f"    {judged.reasons(incident.most_abnormal)[0].text}")

# %%
# The period in one picture
# -------------------------
# Each dot is a flow, and what lies above the line is an alarm. More than the 1 % asked for of the normal flows are: the
# view of content counts what a host has sent lately, so that the normal flows of a host that guesses passwords look
# like part of it, and this period is a minute longer than the one that was learned.
# :ref:`sphx_glr_gallery_plot_08_false_alarm_rate.py` is about rates that hold.

minutes = (flows.time_first - flows.time_first.min()) / 60e9
figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
ax.scatter(minutes[kind == ""], -scores[kind == ""], s=5, color="silver", label="normal")
looks = zip(kinds, "os^v", ["#0072b2", "#e69f00", "#009e73", "#cc79a7"], strict=True)
for name, marker, color in looks:
    is_kind = kind == name
    ax.scatter(minutes[is_kind], -scores[is_kind], s=14, marker=marker, color=color, label=name)
ax.axhline(-detector.offset_, color="black", linestyle="--", linewidth=1, label="threshold")
ax.set(
    xlabel="minutes",
    ylabel="abnormality (minus score)",
    title="One period of the office, flow by flow",
)
figure.legend(loc="outside lower center", ncols=3, markerscale=1.5, frameon=False)
plt.show()
