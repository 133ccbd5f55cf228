# SPDX-License-Identifier: BSD-3-Clause
"""Set the threshold of a model anew, by other normal traffic, without training.

Another week, or a network that has changed a little: the model keeps what it has learned, and takes from these captures
what is normal now. Earlier calibrations stay in the file: --list shows them, --restore goes back to one. Where the
captures are of another site, the rate of false alarms holds, but docids fit finds more.
"""

from __future__ import annotations

import argparse
from typing import Any

from sklearn_docids._scratch import named
from sklearn_docids.cli._info import calibration_line, percent, threshold_lines
from sklearn_docids.cli._inputs import CAPTURE_HELP, check_read, expanded, sampled_flows
from sklearn_docids.cli._outputs import check_spared, check_writable
from sklearn_docids.cli._text import note, print_json, say
from sklearn_docids.cli._values import rate

HELP = "set the threshold of a model anew, by other normal traffic, without training"
# Where the old threshold flags more, the views know little of these flows (docs/benchmarks.md).
ANOTHER_SITE = 0.2


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", metavar="MODEL", help="model file; it is replaced, unless --output names another")
    parser.add_argument("captures", nargs="*", metavar="CAPTURE", help=f"normal traffic: {CAPTURE_HELP}")
    parser.add_argument(
        "--false-alarm-rate", type=rate, metavar="R",
        help="rate of false alarms to hold on new normal flows (default: as before)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="NEW", help="model file to write instead")
    parser.add_argument("--list", action="store_true", help="list the calibrations of the model, and do nothing else")
    parser.add_argument("--restore", type=_number, metavar="N", help="go back to a calibration of the list")
    parser.add_argument("--force", action="store_true", help="let --output replace a model; never an input")
    parser.add_argument("--json", action="store_true", help="print what was set as JSON")


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of the list")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """List, restore, or calibrate and write the model."""
    from sklearn_docids._stored.summary import summary_of

    captures = expanded(args.captures)
    before = summary_of(args.model)
    _check(args, captures, len(before["calibrations"]))
    if args.list:
        _print(args, before["calibrations"], [calibration_line(one, before) for one in before["calibrations"]])
        return
    flagged = _change(args, captures)
    after = summary_of(args.output or args.model)
    threshold = {**after["threshold"], "before": before["threshold"]["offset"], "flagged_before": flagged}
    lines = [f"threshold before: {threshold['before']:.6g}", *_first_with(threshold_lines(threshold), "threshold: ")]
    if flagged is not None:
        lines.insert(1, f"it flags {percent(flagged)} of these {threshold['n_flows']} flows")
    _print(args, threshold, lines)


def _print(args: argparse.Namespace, found: Any, lines: list[str]) -> None:
    if args.json:
        print_json(found)
    else:
        say(*lines)


def _first_with(lines: list[str], title: str) -> list[str]:
    return [title + lines[0], *lines[1:]]


def _check(args: argparse.Namespace, captures: list[str], n_calibrations: int) -> None:
    """Refuse what can be refused before anything is read."""
    wanted = {"captures": captures, "--list": args.list, "--restore": args.restore is not None}
    given = [name for name, is_given in wanted.items() if is_given]
    if len(given) != 1:
        raise ValueError(f"give captures, --list or --restore, one of the three; given: {', '.join(given) or 'none'}")
    others = {
        "--false-alarm-rate": args.false_alarm_rate is not None and not captures,
        "--output": args.list and args.output,
    }
    for option, is_of_no_use in others.items():
        if is_of_no_use:
            raise ValueError(f"{option} is of no use with {given[0]}")
    if args.restore is not None and args.restore >= n_calibrations:
        raise ValueError(
            f"--restore {args.restore}: there is no such calibration; --list shows 0 to {n_calibrations - 1}"
        )
    if args.output:
        check_spared("--output", args.output, [args.model, *captures], force=args.force)
    if not args.list:
        check_writable("--output" if args.output else "MODEL", args.output or args.model, is_file=True)


def _change(args: argparse.Namespace, captures: list[str]) -> float | None:
    """Write the model with another calibration; return what share of the captures' flows the old one flags."""
    from sklearn.pipeline import Pipeline

    from sklearn_docids.persistence import load_detector, save_detector

    loaded = load_detector(args.model)
    detector: Any = loaded[-1] if isinstance(loaded, Pipeline) else loaded
    flagged = None
    if args.restore is not None:
        detector.restore_calibration(args.restore)
    else:
        flagged = _calibrate(args, detector, captures)
    output = args.output or args.model
    with named(output):
        save_detector(loaded, output)
    note(args, f"calibration {detector.active_calibration_} is in use; written to {output}")
    return flagged


def _calibrate(args: argparse.Namespace, detector: Any, captures: list[str]) -> float:
    from sklearn_docids.evaluation import given

    if detector.sampler_ is None:
        raise ValueError(f"{args.model} holds no sampler, so captures cannot be read as it was trained; use docids fit")
    flows = sampled_flows(detector, captures, "CAPTURE", quiet=args.quiet)
    check_read(flows.counters, captures)
    flagged = float((detector.score_samples(given(detector, flows)) < detector.offset_).mean())
    detector.calibrate(flows, false_alarm_rate=args.false_alarm_rate)
    if flagged > ANOTHER_SITE:
        note(
            args,
            f"the old threshold flags {percent(flagged)} of these flows: to the model they are of another site. The "
            "rate of false alarms holds now, but docids fit on them would find more attacks",
        )
    return flagged
