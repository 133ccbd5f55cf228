"""Why is this flow abnormal? Three abnormal flows of the bundled testbed, each in every view, as text and picture.

Each kind is scored among the normal flows of its period, as the view of content counts what came before.

    python examples/views_of_a_flow.py [--seed 0] [--output views.png] [--views statistics requests novelty content]
"""

import argparse

import numpy as np
from matplotlib.figure import Figure

from sklearn_docids import FlowSampler, MultiViewDetector, ReferenceData
from sklearn_docids.datasets import load_testbed
from sklearn_docids.plotting import ViewsDisplay

KINDS = ("dns_tunnel", "ssh_guessing", "injection")
VIEWS = ("bytes", "statistics", "requests", "novelty", "content")


def main(arguments=None):
    """Print and draw the views of the flow of median score of each kind; return their reasons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="views.png")
    parser.add_argument("--views", nargs="+", default=VIEWS)
    args = parser.parse_args(arguments)
    testbed = load_testbed(sampler=FlowSampler(layout="payload"))
    detector = MultiViewDetector(views=args.views, random_state=args.seed)
    detector.fit(testbed.flows_train, reference=ReferenceData(testbed.flows_reference, testbed.y_reference))
    figure = Figure(figsize=(9, 3.4 * len(KINDS)), layout="constrained")
    found = {}
    for kind, ax in zip(KINDS, figure.subplots(len(KINDS)), strict=True):
        flows = testbed.flows_test[np.isin(testbed.attack, ("", kind))]
        is_kind = testbed.attack[np.isin(testbed.attack, ("", kind))] == kind
        scores = detector.score_samples(flows)
        row = np.flatnonzero(is_kind)[np.argsort(scores[is_kind])[is_kind.sum() // 2]]
        ends = f"{flows.src_ip[row]} -> {flows.dst_ip[row]}:{flows.dst_port[row]}"
        found[kind] = detector.explain(flows)[row]
        print(f"{kind}, {ends}: score {scores[row]:.1f}, threshold {detector.offset_:.1f}")
        for reason in found[kind]:
            print(f"  {reason.view:10}  p {reason.p_value:.1g}  {reason.text}")
        ViewsDisplay.from_estimator(detector, flows, int(row), ax=ax)
        ax.set_title(f"{kind}, {ends}")
    figure.savefig(args.output, dpi=100)
    return found


if __name__ == "__main__":
    main()
