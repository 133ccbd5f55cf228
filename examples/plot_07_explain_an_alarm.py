"""
Explaining an alarm
===================

An alarm is worth what an analyst can make of it. Three flagged flows are explained in words, view by view, and the
bytes of one of them are compared with those of the most similar normal flow.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np

from sklearn_docids import DOCIDSDetector, FlowSampler, MultiViewDetector
from sklearn_docids.datasets import load_testbed
from sklearn_docids.inspection import byte_reasons
from sklearn_docids.plotting import ExplanationDisplay, ViewsDisplay

# %%
# A detector
# ----------
# All five views; the network passes over the flows once here, to be quick.

testbed = load_testbed(sampler=FlowSampler(layout="payload"))
network = DOCIDSDetector(batch_size=32, max_epochs=1)
detector = MultiViewDetector(detector=network, random_state=0)
detector.fit(testbed.flows_train, reference=(testbed.flows_reference, testbed.y_reference))

# %%
# Reasons in words
# ----------------
# Of three kinds, the flow of median score, each judged among the normal flows of its period: what a view says may
# depend on the flows before. *p* is the share of normal flows that are as unusual in that view.

found = {}
for kind in ("dns_tunnel", "ssh_guessing", "injection"):
    chosen = np.isin(testbed.attack, ["", kind])
    flows, of_kind = testbed.flows_test[chosen], np.flatnonzero(testbed.attack[chosen] == kind)
    judged = detector.stream().judge(flows)
    row = int(of_kind[np.argsort(judged.scores[of_kind])[len(of_kind) // 2]])
    found[kind] = flows[[row]], judged.p_values[row], judged.reasons(row)
    print(f"{kind}: score {judged.scores[row]:.1f}, threshold {detector.offset_:.1f}")
    for reason in found[kind][2]:
        text = f"{reason.view}, p {reason.p_value:.1g}: {reason.text}"
        print(textwrap.fill(text, 90, initial_indent="  ", subsequent_indent="    "))

# %%
# A tunnel through DNS is spelled unlike other names. A guess of a password for SSH begins as any login does: only its
# company gives it away. An injection is spelled unlike the requests to this server.

figure, axes = plt.subplots(len(found), figsize=(7, 12), layout="constrained")
figure.get_layout_engine().set(hspace=0.07)
for ax, (kind, (flow, p_values, reasons)) in zip(axes, found.items(), strict=True):
    texts = {reason.view: reason.text for reason in reasons}
    ViewsDisplay.from_predictions(p_values, detector.view_names_, texts, ax=ax)
    ax.set_title(f"{kind}: {flow.src_ip[0]} to {flow.dst_ip[0]}, port {flow.dst_port[0]}")

# %%
# Reasons in bytes
# ----------------
# The network of the view of bytes says which bytes of the injection matter, and what the most similar normal flow has
# in their place. Parts add up to about the difference in score to a flow with those bytes.

injection = found["injection"][0].X
for reason in byte_reasons(detector.detector_, injection, n_listed=6, layout="payload")[0]:
    here, there = bytes([reason.value]), bytes([reason.nearest_value])
    print(
        f"packet {reason.packet}, {reason.field}: {here} instead of {there}, part {reason.attribution:+.2f}"
    )

figure, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
ExplanationDisplay.from_estimator(detector.detector_, injection, ax=ax)
ax.set_title("The injection, byte by byte: what is red makes it abnormal", fontsize="medium")
plt.show()
