# SPDX-License-Identifier: BSD-3-Clause
"""Set the threshold of a model anew, by other normal traffic, without training.

Another week, or a network that has changed a little: the model keeps what it has learned, and takes from these captures
what is normal now. Earlier calibrations stay in the file: --list shows them, --restore goes back to one. Where the
captures are of another site, the rate of false alarms holds, but docids fit finds more.

Many sensors, one model: each writes a --sketch of the scores of its captures, a file of at most 2 MB, and --merge sets
the threshold by all of them together.
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
    parser.add_argument(
        "--sketch", metavar="FILE", help="write the scores of the captures in brief, for --merge, and leave the model"
    )
    parser.add_argument(
        "--merge", nargs="+", metavar="FILE", help="set the threshold by sketches that this model gave, of many sensors"
    )
    parser.add_argument("--list", action="store_true", help="list the calibrations of the model, and do nothing else")
    parser.add_argument("--restore", type=_number, metavar="N", help="go back to a calibration of the list")
    parser.add_argument("--force", action="store_true", help="let --output replace a model; never an input")
    parser.add_argument("--json", action="store_true", help="print what was set as JSON")


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of the list")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """List, restore, write a sketch, or calibrate and write the model."""
    from sklearn_docids._stored.summary import summary_of

    captures = expanded(args.captures)
    before = summary_of(args.model)
    _check(args, captures, len(before["calibrations"]))
    if args.list:
        _print(args, before["calibrations"], [calibration_line(one, before) for one in before["calibrations"]])
        return
    if args.sketch:
        _write_sketch(args, captures, before["sha256"])
        return
    flagged = _change(args, captures, before["sha256"])
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
    wanted = {
        "captures": captures, "--list": args.list, "--restore": args.restore is not None, "--merge": args.merge,
    }  # fmt: skip
    given = [name for name, is_given in wanted.items() if is_given]
    if len(given) != 1:
        raise ValueError(
            f"give captures, --list, --restore or --merge, one of the four; given: {', '.join(given) or 'none'}"
        )
    others = {
        "--false-alarm-rate": args.false_alarm_rate is not None and (args.sketch or not (captures or args.merge)),
        "--output": args.output and (args.list or args.sketch),
        "--sketch": args.sketch and not captures,
    }
    for option, is_of_no_use in others.items():
        if is_of_no_use:
            raise ValueError(f"{option} is of no use with {'--sketch' if args.sketch and captures else given[0]}")
    if args.restore is not None and args.restore >= n_calibrations:
        raise ValueError(
            f"--restore {args.restore}: there is no such calibration; --list shows 0 to {n_calibrations - 1}"
        )
    inputs = [args.model, *captures, *(args.merge or ())]
    for option, path in (("--output", args.output), ("--sketch", args.sketch)):
        if path:
            check_spared(option, path, inputs, force=args.force)
    if args.sketch:
        check_writable("--sketch", args.sketch, is_file=True)
    elif not args.list:
        check_writable("--output" if args.output else "MODEL", args.output or args.model, is_file=True)


def _write_sketch(args: argparse.Namespace, captures: list[str], checksum: str) -> None:
    """Write what the model says of the captures' flows."""
    from sklearn_docids.monitoring import ScoreSketch
    from sklearn_docids.persistence import load_detector

    sketch, loaded = ScoreSketch(checksum), load_detector(args.model)
    detector = _detector_of(loaded)
    sketch.update(_scores(detector, _sampled(args, detector, captures)))
    sketch.save(args.sketch)
    lines = [f"{sketch.n_scores} scores of the model with sha256 {checksum[:12]}... in {args.sketch}"]
    _print(args, {"sketch": args.sketch, "n_scores": sketch.n_scores, "model": checksum}, lines)


def _merged(paths: list[str], checksum: str) -> Any:
    """Return sketches as one; they must be of the model as it is."""
    from sklearn_docids.monitoring import ScoreSketch

    merged = ScoreSketch(checksum)
    for path in paths:
        sketch = ScoreSketch.load(path)
        if sketch.model != checksum:
            raise ValueError(
                f"{path}: its scores are of another model, or of another calibration of this one; make it again with "
                "the model file as it is"
            )
        merged.merge(sketch)
    return merged


def _detector_of(loaded: Any) -> Any:
    from sklearn.pipeline import Pipeline

    return loaded[-1] if isinstance(loaded, Pipeline) else loaded


def _change(args: argparse.Namespace, captures: list[str], checksum: str) -> float | None:
    """Write the model with another calibration; return what share of the captures' flows the old one flags."""
    from sklearn_docids.persistence import load_detector, save_detector

    loaded = load_detector(args.model)
    detector, flagged = _detector_of(loaded), None
    if args.restore is not None:
        detector.restore_calibration(args.restore)
    elif args.merge:
        detector.calibrate(_merged(args.merge, checksum), false_alarm_rate=args.false_alarm_rate)
    else:
        flagged = _calibrate(args, detector, captures)
    output = args.output or args.model
    with named(output):
        save_detector(loaded, output)
    note(args, f"calibration {detector.active_calibration_} is in use; written to {output}")
    return flagged


def _calibrate(args: argparse.Namespace, detector: Any, captures: list[str]) -> float:
    flows = _sampled(args, detector, captures)
    flagged = float((_scores(detector, flows) < detector.offset_).mean())
    detector.calibrate(flows, false_alarm_rate=args.false_alarm_rate)
    if flagged > ANOTHER_SITE:
        note(
            args,
            f"the old threshold flags {percent(flagged)} of these flows: to the model they are of another site. The "
            "rate of false alarms holds now, but docids fit on them would find more attacks",
        )
    return flagged


def _sampled(args: argparse.Namespace, detector: Any, captures: list[str]) -> Any:
    """Return the flows of the captures."""
    if detector.sampler_ is None:
        raise ValueError(f"{args.model} holds no sampler, so captures cannot be read as it was trained; use docids fit")
    flows = sampled_flows(detector, captures, "CAPTURE", quiet=args.quiet)
    check_read(flows.counters, captures)
    return flows


def _scores(detector: Any, flows: Any) -> Any:
    from sklearn_docids.evaluation import given

    return detector.score_samples(given(detector, flows))
