"""
A pipeline from pcap
====================

One scikit-learn pipeline reads captures, samples rows of bytes from them and scores each flow. It is fitted on a file,
kept as a file, and used on another file. The picture shows what it sees: flows of a service look alike.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.pipeline import Pipeline

from sklearn_docids import DOCIDSDetector, FlowSampler, load_detector, save_detector
from sklearn_docids.datasets import load_class_folder, load_testbed

# %%
# Captures
# --------
# ``train`` and ``test`` are captures of the office, and the folder of the reference has a capture per service, as
# one of your own would: ``dns.pcap``, ``tls.pcap`` and so on. A labelled reference teaches the network to tell
# protocols apart.

captures = load_testbed().captures
folder = captures["reference"][0].parent
print(
    captures["train"].name,
    captures["test"].name,
    *[path.name for path in captures["reference"][:3]],
)

sampler = FlowSampler(random_state=0)
reference = load_class_folder(folder, sampler=sampler, return_X_y=True)

# %%
# From pcap to scores
# -------------------
# The sampler's defaults are the paper's rows: the first 80 bytes of the first 4 packets of each flow, in either
# direction; addresses are zeroed. One pass over the flows keeps this example quick.

network = DOCIDSDetector(max_epochs=1, false_alarm_rate=0.01, random_state=0)
pipeline = Pipeline([("sampler", sampler), ("detector", network)])
pipeline.fit([captures["train"]], detector__reference=reference)
scores = pipeline.score_samples([captures["test"]])
print(f"{len(scores)} flows scored, {np.sum(scores < network.offset_)} flagged")

# %%
# A model is a file
# -----------------
# It holds numbers and JSON. Loading it executes nothing, whoever has sent it.

with tempfile.TemporaryDirectory() as models:
    path = Path(models) / "office.model"
    save_detector(pipeline, path)
    print(f"{path.stat().st_size / 1e6:.0f} MB")
    loaded = load_detector(path)
print("same scores:", np.allclose(loaded.score_samples([captures["test"]]), scores))

# %%
# What the pipeline sees
# ----------------------
# Ten flows of each of six services, a line each, drawn as bytes: dark is 0, and packets that a flow does not have are
# 0 throughout. Beside them stands how abnormal each flow is. The last ten are the most abnormal ones of the period.
# Header fields that count, such as sequence numbers, are noise that the network learns to look through.

flows = sampler.flows(captures["test"])
services = {
    "DNS": (17, 53),
    "HTTP": (6, 80),
    "TLS": (6, 443),
    "SSH": (6, 22),
    "IMAP": (6, 143),
    "syslog": (17, 514),
}
rows = [
    np.flatnonzero((flows.protocol == p) & (flows.dst_port == port))[:10]
    for p, port in services.values()
]
rows.append(np.argsort(scores)[:10])
shown = np.concatenate(rows)

figure, (left, right) = plt.subplots(
    1, 2, figsize=(7, 5), width_ratios=[5, 1], sharey=True, layout="constrained"
)  # fmt: skip
left.imshow(flows.X[shown], cmap="cividis", aspect="auto", interpolation="nearest")
left.set_yticks(np.arange(4.5, len(shown), 10), [*services, "most\nabnormal"])
left.set_xticks(np.arange(0, 320, 80), [f"packet {number}" for number in range(1, 5)], ha="left")
left.set_title("Bytes of flows, one flow a line")
for edge in np.arange(9.5, len(shown) - 1, 10):
    left.axhline(edge, color="white", linewidth=1.5)
right.barh(np.arange(len(shown)), -scores[shown], height=1, color="#d55e00")
right.axvline(-network.offset_, color="black", linestyle="--", linewidth=1)
right.set(title="abnormality", xlabel="- -: threshold")
plt.show()
