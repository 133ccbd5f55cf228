# SPDX-License-Identifier: BSD-3-Clause
"""Measure how well a trained detector finds attacks in captures.

Measure how well a trained detector tells attacks from normal traffic, by flow and, with normal traffic to calibrate
with, by channel and host; compare it with simple detectors.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sklearn_docids._text import printable
from sklearn_docids.cli._inputs import (
    CAPTURE_HELP,
    add_midstream,
    add_model,
    expanded,
    loaded_detector,
    read_line,
    sampled_flows,
)
from sklearn_docids.cli._outputs import check_spared, check_writable, replacing
from sklearn_docids.cli._text import note, print_json, say
from sklearn_docids.cli._values import rate, seconds

CONTEXT = (
    "The flows of each attack were scored among the normal flows, in order of time, as what came before a flow is part "
    "of its score; the normal flows were scored without any attack."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_model(parser)
    repeated: dict[str, Any] = {"action": "append", "metavar": "CAPTURE"}
    parser.add_argument(
        "--normal", required=True, **repeated, help=f"normal traffic not trained on (may be repeated): {CAPTURE_HELP}"
    )
    parser.add_argument(
        "--attacks", required=True, metavar="DIR", help="one capture, or folder of captures, per attack, named after it"
    )
    parser.add_argument("--train", **repeated, help="the traffic of fit: compares with simple detectors")
    parser.add_argument(
        "--calibration", **repeated,
        help="normal traffic not trained on: measures channels and hosts, whose scores are compared with it",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=seconds, metavar="S", help="seconds in which a channel or host is one (default 3600)"
    )
    parser.add_argument(
        "--false-alarm-rate", type=rate, metavar="R", help="rate for the threshold of channels and hosts (default 0.01)"
    )
    parser.add_argument("--output", metavar="HTML", help="write the tables and pictures as one HTML page")
    parser.add_argument("--csv", metavar="CSV", help="write every measure: one line per detector and attack")
    parser.add_argument("--json", action="store_true", help="print every measure as JSON, instead of tables")
    parser.add_argument("--force", action="store_true", help="write over an existing model; never over an input")
    add_midstream(parser)


def run(args: argparse.Namespace) -> None:
    """Score everything, measure, print and write."""
    from sklearn_docids._meta import takes_tables
    from sklearn_docids.evaluation import Evaluation

    _check(args)
    captures = {
        option: expanded(getattr(args, option), f"--{option}")
        for option in ("normal", "train", "calibration")
        if getattr(args, option)
    }
    detector = loaded_detector(args.model, args.midstream)
    attacks = _attacks_of(detector, args.attacks)
    sets = {name: sampled_flows(detector, paths, f"--{name}", quiet=args.quiet) for name, paths in captures.items()}
    detectors = {"model": detector}
    if "train" in sets:
        detectors |= _simple_detectors(sets["train"], captures["train"], detector.sampler_.n_packets)
    found = _evaluated(detectors, sets["normal"], attacks, sets.get("calibration"), args)
    named = _named(sets, attacks)
    read = {name: read_line(flows.counters, flows.ignored) for name, flows in named.items()}
    remark = CONTEXT if takes_tables(detector) else ""
    if args.json:
        print_json([row for evaluation in found.values() for row in evaluation.rows])
    else:
        for level, evaluation in found.items():
            say(f"By {level}", "", *str(evaluation).splitlines(), "")
        say(*filter(None, [remark]), *(f"{name}: {line}" for name, line in read.items()))
    if args.csv is not None:
        with replacing(args.csv) as part:
            Evaluation.joined(found.values()).write_csv(part)
    if args.output is not None:
        from sklearn_docids._report.evaluation import write_report
        from sklearn_docids.cli._explaining import most_abnormal

        explained = {name: most_abnormal(detector, flows, 1, sets["normal"])[0] for name, flows in attacks.items()}
        with replacing(args.output) as part:
            texts = {"model": args.model, "note": remark, "command": args.given}
            write_report(part, found, detector, sets=named, explained=explained, **texts)
        note(args, f"report written to {args.output}")


def _check(args: argparse.Namespace) -> None:
    for option in ("window", "false_alarm_rate"):
        if getattr(args, option) is not None and not args.calibration:
            raise ValueError(
                f"--{option.replace('_', '-')} is for channels and hosts, which are measured with --calibration alone"
            )
    if not Path(args.attacks).is_dir():
        raise NotADirectoryError(
            f"--attacks {args.attacks} is not a folder: it holds one capture, or folder of captures, per attack"
        )
    for option, path in (("--csv", args.csv), ("--output", args.output)):
        if path is not None:
            check_writable(option, path)
            inputs = [args.model, *args.normal, *(args.train or ()), *(args.calibration or ())]
            check_spared(option, path, inputs, force=args.force)
    if args.output is not None:
        # The page has pictures: better missed now than behind all the work.
        import matplotlib.figure  # noqa: F401


def _named(sets: Mapping[str, Any], attacks: Mapping[str, Any]) -> dict[str, Any]:
    """Return all flows by what reports call them."""
    titles = {"normal": "normal", "train": "training", "calibration": "calibration"}
    return {titles[name]: flows for name, flows in sets.items()} | {
        f"attack {name}": flows for name, flows in attacks.items()
    }


def _attacks_of(detector: Any, folder: str) -> dict[str, Any]:
    """Return the flows of each attack, named after its capture or folder of captures."""
    from sklearn_docids.datasets._folder import class_captures

    by_name: dict[str, list[str]] = {}
    for path, name in zip(*class_captures(folder), strict=True):
        by_name.setdefault(printable(name), []).append(str(path))
    return {name: sampled_flows(detector, captures, "--attacks") for name, captures in by_name.items()}


def _aggregator(detector: Any, level: str, args: argparse.Namespace) -> Any:
    """Return the aggregator of a level, with the settings of the command line."""
    from sklearn_docids._meta import takes_tables
    from sklearn_docids.aggregation import FlowAggregator

    # What knows the past of a flow has added it up already.
    aggregator = FlowAggregator(level, combine="most_abnormal" if takes_tables(detector) else "sum")
    settings = {"window": args.window, "false_alarm_rate": args.false_alarm_rate}
    return aggregator.set_params(**{name: value for name, value in settings.items() if value is not None})


def _evaluated(
    detectors: dict[str, Any], normal: Any, attacks: dict[str, Any], calibration: Any, args: argparse.Namespace
) -> dict[str, Any]:
    """Return evaluations by level: of flows, and, with flows to calibrate with, of channels and hosts."""
    from sklearn_docids._meta import takes_tables
    from sklearn_docids.evaluation import Evaluation, evaluate

    found = {"flow": evaluate(detectors, normal, attacks)}
    if calibration is None:
        return found
    # Each kind of detector has its own way to put flows together.
    kinds = [{name: each for name, each in detectors.items() if takes_tables(each) == kind} for kind in (True, False)]
    for level in ("channel", "host"):
        parts = []
        for some in filter(None, kinds):
            aggregator = _aggregator(next(iter(some.values())), level, args)
            parts.append(evaluate(some, normal, attacks, level=level, calibration=calibration, aggregator=aggregator))
        found[level] = Evaluation.joined(parts)
    return found


def _simple_detectors(flows: Any, captures: Sequence[str], n_packets: int) -> dict[str, Any]:
    """Return simple detectors, trained on flows."""
    from sklearn.ensemble import IsolationForest

    from sklearn_docids.detectors import NearestNeighborDetector, StatisticDetector

    if len(flows) < 2:
        raise ValueError(f"--train {' '.join(captures)}: {len(flows)} flows are too few to train on")
    return {
        "IsolationForest": IsolationForest(random_state=0).fit(flows.X),
        "1-NN on bytes": NearestNeighborDetector().fit(flows.X),
        "number of packets": StatisticDetector(n_packets=n_packets).fit(flows.X),
    }
