# SPDX-License-Identifier: BSD-3-Clause
"""Train a detector on captures of normal traffic.

Train a detector on captures of normal traffic, a whole day of it where hosts come and go by the hour. It looks at each
flow in several ways: its bytes as DOC-IDS sees them, its statistics, how its request is spelled, whether anybody asked
for this before, and how many flows of like content there were lately. Nothing else is needed: what bytes are compared
with is bundled.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sklearn_docids._scratch import named
from sklearn_docids.cli._inputs import (
    add_captures,
    add_scheduler,
    check_read,
    expanded,
    note_captures,
    on_cluster,
    reading,
)
from sklearn_docids.cli._options import NETWORK, SAMPLER, SEVERAL_VIEWS, add_parameters, given
from sklearn_docids.cli._outputs import check_spared, check_writable
from sklearn_docids.cli._text import note, print_json
from sklearn_docids.cli._values import add_seed, rate

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

# Views of a flow; and the one that is the paper's detector where it stands alone.
VIEWS = ("bytes", "statistics", "requests", "novelty", "content")
PAPER = ("bytes",)
FALSE_ALARM_RATE = 0.01
# Options that say nothing of the model.
NO_SETTINGS = {"captures", "command", "config", "force", "given", "json", "model", "quiet", "scheduler", "verbose"}
# With fewer flows than this nothing can be held out in blocks of time.
FEWEST_FLOWS = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_captures(parser)
    parser.add_argument("--model", required=True, metavar="M", help="model file to write")
    parser.add_argument("--force", action="store_true", help="write over an existing model; never over an input")
    parser.add_argument(
        "--reference", metavar="DIR",
        help="what bytes are compared with: one capture, or folder of captures, per class, named after it (default: "
        "the bundled services of the testbed)",
    )  # fmt: skip
    parser.add_argument(
        "--false-alarm-rate", type=rate, metavar="R",
        help=f"rate of false alarms to hold on new normal flows (default {FALSE_ALARM_RATE:g}, or the lowest that so "
        "few flows allow)",
    )  # fmt: skip
    add_seed(parser)
    add_scheduler(parser)
    parser.add_argument("--json", action="store_true", help="print what was learned as JSON")
    parser.add_argument(
        "--views", type=_views, default=VIEWS, metavar="V,V,...",
        help=f"views of a flow, of {','.join(VIEWS)} (default: all); bytes alone is the detector of the paper",
    )  # fmt: skip
    add_parameters(parser, "how captures become flows", SAMPLER)
    add_parameters(parser, "how views are calibrated and joined", SEVERAL_VIEWS)
    # The command sets the threshold by --false-alarm-rate.
    add_parameters(parser, "the network of bytes", NETWORK, left_out=("contamination",))


def _views(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(VIEWS) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different views, of {','.join(VIEWS)}")
    return names


def run(args: argparse.Namespace) -> None:
    """Sample, train, set the threshold and write the model."""
    # What can be refused is refused before the work begins.
    captures = expanded(args.captures)
    _check(args, captures)
    from sklearn_docids.persistence import save_detector

    detector, sampler = _unfitted(args)
    reference = _reference(args, sampler) if "bytes" in args.views else None
    by_path = args.scheduler is not None
    with on_cluster(args.scheduler), reading(captures, "reading", quiet=args.quiet, by_path=by_path) as sources:
        flows, _, _ = sampler.sample(sources)
    X, provenance = flows, _provenance(args, flows)
    if args.views == PAPER:
        X = flows.X
        sampler.set_params(output="rows")
    note_captures(args, captures, sampler.counters_)
    check_read(sampler.counters_, captures)
    n_judged = _set_rate(detector, args, len(X))
    try:
        detector.fit(X, reference=reference)
    except KeyboardInterrupt:
        if not getattr(detector, "interrupted_", False):
            way_out = "" if getattr(args, "checkpoint_folder", None) else "; --checkpoint-folder would keep the state"
            raise KeyboardInterrupt(f"no model was written{way_out}") from None
        save_detector(detector, args.model, sampler=sampler, provenance=provenance)
        raise KeyboardInterrupt(f"the model learned so far is written to {args.model}") from None
    with named(args.model):
        save_detector(detector, args.model, sampler=sampler, provenance=provenance)
    _report(args, detector, len(X), n_judged)


def _check(args: argparse.Namespace, captures: list[str]) -> None:
    of_network = set(given(args, NETWORK)) - {"false_alarm_rate", "random_state"}
    if "bytes" not in args.views:
        for name in ("reference", *sorted(of_network)):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is for the view of bytes, which --views leaves out")
    if args.views != PAPER:
        if "score_method" in of_network:
            raise ValueError("--score-method is for bytes as the only view: --views bytes")
        if getattr(args, "layout", "payload") != "payload":
            raise ValueError(f"--layout {args.layout} is for bytes as the only view: other views need the payload")
    if args.reference is not None and not Path(args.reference).is_dir():
        raise NotADirectoryError(
            f"--reference {args.reference} is not a folder: it holds one capture, or folder of captures, per class"
        )
    check_writable("--model", args.model, is_file=True)
    check_spared("--model", args.model, captures, force=args.force)
    folder = getattr(args, "checkpoint_folder", None)
    if folder is not None and not Path(folder).is_dir():
        raise NotADirectoryError(f"--checkpoint-folder {folder} is not an existing folder")


def _unfitted(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return the detector and the sampler that the options ask for, once their parameters are checked."""
    from sklearn_docids._sampler import FlowSampler
    from sklearn_docids.cli._training_bar import TrainingBar
    from sklearn_docids.detectors import DOCIDSDetector, MultiViewDetector

    layout = "packets" if args.views == PAPER else "payload"
    sampler = FlowSampler(layout=layout, output="flows").set_params(
        **{**given(args, SAMPLER), "random_state": args.seed}
    )
    of_network = {name: value for name, value in given(args, NETWORK).items() if name != "false_alarm_rate"}
    of_network["callbacks"] = None if args.quiet else [TrainingBar()]
    if args.views == PAPER:
        network: DOCIDSDetector = DOCIDSDetector()
        detector: Any = network
    else:
        of_views = {name: value for name, value in given(args, SEVERAL_VIEWS).items() if name != "false_alarm_rate"}
        detector = MultiViewDetector().set_params(**{**of_views, "views": args.views})
        network = detector._network()
        detector.set_params(detector=network)
    network.set_params(**of_network)
    network._validate_params()
    detector.set_params(random_state=args.seed)._validate_params()
    return detector, sampler.fit([])


def _provenance(args: argparse.Namespace, flows: FlowTable) -> dict[str, Any]:
    """Return what the model file is to say of what was learned."""
    from sklearn_docids._provenance import described_traffic, storable_settings

    settings = {name: value for name, value in vars(args).items() if name not in NO_SETTINGS and value is not None}
    return {"traffic": described_traffic(flows), "settings": storable_settings(settings)}


def _reference(args: argparse.Namespace, sampler: Any) -> Any:
    """Return the reference in a folder, or the bundled one."""
    from sklearn.base import clone

    from sklearn_docids.datasets import load_class_folder
    from sklearn_docids.datasets._testbed import REFERENCE
    from sklearn_docids.detectors import ReferenceData

    rows = clone(sampler).set_params(output="rows")
    reference = load_class_folder(args.reference or REFERENCE, sampler=rows)
    if args.reference is None:
        n_flows, n_services = len(reference.X), len(reference.target_names)
        note(args, f"no --reference: the bundled one is used, {n_flows} flows of {n_services} services")
    return ReferenceData(reference.X, reference.y)


def _set_rate(detector: Any, args: argparse.Namespace, n_flows: int) -> int:
    """Set the rate of false alarms: that asked for, or by default the lowest that the flows allow, down to 1 %.

    Return how many flows set the threshold.
    """
    from sklearn_docids._thresholds import least_held_out

    n_judged = n_flows
    if args.views == PAPER:
        n_judged = round(detector.validation_fraction * n_flows)
    elif detector.calibration == "later":
        n_judged = round(detector.calibration_share * n_flows)
    if n_flows < FEWEST_FLOWS:
        raise ValueError(f"{n_flows} flows are too few to learn what is normal: give at least {FEWEST_FLOWS}, or a day")
    wanted = FALSE_ALARM_RATE if args.false_alarm_rate is None else args.false_alarm_rate
    needed = least_held_out(wanted)
    if n_judged < needed:
        lowest = math.ceil(1000 / (n_judged + 1)) / 1000
        why = (
            f"a threshold for {100 * wanted:g} % false alarms takes at least {needed} flows that set it, but of "
            f"{n_flows} flows {n_judged} do"
        )
        if args.false_alarm_rate is not None:
            raise ValueError(f"{why}: give more traffic, or --false-alarm-rate {lowest:g}")
        note(args, f"{why}: it is that of {100 * lowest:g} %, until more traffic is learned")
        wanted = lowest
    detector.set_params(false_alarm_rate=wanted)
    return n_judged


def _report(args: argparse.Namespace, detector: Any, n_flows: int, n_judged: int) -> None:
    views = list(getattr(detector, "view_names_", args.views))  # some may have been left out
    n_learned = n_flows - n_judged if args.views == PAPER else n_flows
    held_out = "flows kept out of training"
    if args.views != PAPER and detector.calibration == "blocks":
        held_out = "flows, in blocks that views judge before they learn them"
    note(
        args,
        f"{n_learned} flows learned, by {' '.join(views)}; model written to {args.model}",
        f"the threshold is that of {100 * detector.false_alarm_rate:g} % false alarms, from {n_judged} {held_out}",
    )
    if args.json:
        print_json({
            "model": args.model, "flows_learned": n_learned, "views": views, "flows_of_threshold": n_judged,
            "false_alarm_rate": detector.false_alarm_rate, "threshold": detector.offset_,
        })  # fmt: skip
