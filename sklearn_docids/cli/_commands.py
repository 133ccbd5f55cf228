# SPDX-License-Identifier: BSD-3-Clause
"""The command line: ``docids demo | sample | fit | score | explain | evaluate``."""

from __future__ import annotations

import argparse
import errno
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import numpy as np

from sklearn_docids._text import printable
from sklearn_docids._version import __version__
from sklearn_docids.cli._outputs import check_spared, check_writable, named, replacing, scratch_folder
from sklearn_docids.cli._text import (
    ScoreTable,
    format_flows,
    format_groups,
    format_reasons,
    format_views,
    in_options,
    say,
)

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable
    from sklearn_docids.cli._scoring import FlowSpool, FlowStream

N_LISTED = 10
# Views of a flow; and the one that is the paper's detector where it stands alone.
VIEWS = ("bytes", "statistics", "requests", "novelty", "content")
PAPER = ("bytes",)
FALSE_ALARM_RATE, MAX_RATE = 0.01, 0.5
CONTEXT = (
    "The flows of each attack were scored among the normal flows, in order of time, as what came before a flow is part "
    "of its score; the normal flows were scored without any attack."
)

CAPTURE_HELP = "pcap or pcapng, packed or not; - is standard input"
MODEL_HELP = (
    "model file written by fit, by someone you trust: its checksum shows damage, not who wrote it; a hostile model "
    "runs no code, but may read captures so as to miss attacks, or call them normal"
)
FAILED, INTERRUPTED, READER_GONE = 1, 130, 141
STATUS_HELP = (
    f"Exit status: 0 on success; {FAILED} where input, output or a setting cannot be used, or no packet that was read "
    f"is in a flow; 2 where the command line makes no sense; {INTERRUPTED} after Ctrl-C; {READER_GONE} where the "
    "reader of standard output has gone."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, as the help says."""
    if sys.stderr is None:  # closed: print would take standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    args = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)  # each damaged capture, not only the first
        warnings.showwarning = _show_warning
        status = _status_of(args)
    return _flush(status)


def _status_of(args: argparse.Namespace) -> int:
    try:
        args.command(args)
    except BrokenPipeError:  # the reader of our output has seen enough
        return READER_GONE
    except (ImportError, OSError, ValueError) as error:
        return _failed(error)
    except KeyboardInterrupt:
        print("docids: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _failed(error: Exception) -> int:
    # Only standard output has no name.
    place = "standard output: " if isinstance(error, OSError) and error.errno and error.filename is None else ""
    print(f"docids: error: {place}{in_options(printable(error))}", file=sys.stderr)
    return FAILED


def _flush(status: int) -> int:
    """Write the rest of standard output; where that fails, the interpreter must not try again."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not status:
            return READER_GONE if isinstance(error, BrokenPipeError) else _failed(error)
    return status


def _show_warning(message: Any, *args: Any, **kwargs: Any) -> None:
    print(f"docids: warning: {in_options(printable(message))}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser that repeats no control characters of its arguments, which may be names of files."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="docids", description="Network anomaly detection from raw packets (DOC-IDS).", epilog=STATUS_HELP
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_demo, _add_sample, _add_fit, _add_score, _add_explain, _add_evaluate):
        add(commands)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="train and score on the bundled testbed, in about two minutes")
    demo.add_argument("--seed", type=int, default=0, help="seed of training (default 0)")
    demo.add_argument("--output", default="docids-demo", metavar="DIR", help="folder to write to (default docids-demo)")
    demo.set_defaults(command=_demo)


def _add_sample(commands: Any) -> None:
    sample = commands.add_parser("sample", help="write the flow bytes of captures as an array")
    sample.add_argument("captures", nargs="+", metavar="CAPTURE", help=CAPTURE_HELP)
    sample.add_argument("--jobs", type=int, metavar="N", help="threads over captures, -1: one per core (default 1)")
    sample.add_argument(
        "--tunnels", default="outermost", choices=("outermost", "innermost"),
        help="IP packet that makes the flow of a tunnelled packet (default outermost)",
    )  # fmt: skip
    sample.add_argument(
        "--duplicate-window", type=int, default=0, metavar="N",
        help="drop packets whose bytes equal those of one of N before (default 0: keep all)",
    )  # fmt: skip
    sample.add_argument(
        "-o", "--output", required=True, metavar="OUT",
        help="X.npy: the array alone; another name: a folder with the array and the flow table",
    )  # fmt: skip
    _add_midstream_option(sample, "keep")
    _add_force_option(sample)
    _add_fields_option(sample)
    sample.set_defaults(command=_sample)


def _add_fit(commands: Any) -> None:
    fit = commands.add_parser(
        "fit",
        help="train a detector on captures of normal traffic",
        description="Train a detector on captures of normal traffic, a whole day of it where hosts come and go by the "
        "hour. It looks at each flow in several ways: its bytes as DOC-IDS sees them, its statistics, how its request "
        "is spelled, whether anybody asked for this before, and how many flows of like content there were lately.",
    )
    fit.add_argument("captures", nargs="+", metavar="CAPTURE", help=f"normal traffic: {CAPTURE_HELP}")
    fit.add_argument(
        "--views", type=_views, default=VIEWS, metavar="V,V,...",
        help=f"views of a flow, of {','.join(VIEWS)} (default: all); bytes alone is the detector of the paper",
    )  # fmt: skip
    fit.add_argument(
        "--reference", metavar="DIR",
        help="what bytes are compared with: one capture, or folder of captures, per class, named after it (default: "
        "the bundled services of the testbed)",
    )  # fmt: skip
    fit.add_argument("--model", required=True, metavar="M", help="model file to write")
    _add_force_option(fit)
    fit.add_argument(
        "--max-epochs", type=_epochs, metavar="N", help="passes of the network of bytes over the traffic (default auto)"
    )
    fit.add_argument(
        "--score-method",
        choices=("knn", "reconstruction"),
        help="score of bytes as the only view (default knn)",
    )
    fit.add_argument(
        "--false-alarm-rate", type=float, metavar="R",
        help=f"rate of false alarms to hold on new normal flows (default {FALSE_ALARM_RATE:g}); with bytes alone it "
        "keeps a fifth of the flows out of training (default: flag 1 %% of the training flows, more of new ones)",
    )  # fmt: skip
    fit.add_argument(
        "--checkpoint-folder", metavar="DIR",
        help="existing folder for the state of the network of bytes; the same command, started again after a break, "
        "goes on",
    )  # fmt: skip
    _add_midstream_option(fit, "keep")
    fit.add_argument("--seed", type=int, default=0, help="seed of sampling and training (default 0)")
    _add_fields_option(fit)
    fit.set_defaults(command=_fit)


def _add_score(commands: Any) -> None:
    score = commands.add_parser(
        "score",
        help="score the flows of captures with a trained detector",
        description="Score the flows of captures with a trained detector, in bounded memory. The table has a line per "
        "flow: times, five-tuple, how it began and ended, score (the lower, the more abnormal), verdict, and, from a "
        "model of several views, why it is abnormal. Flows come in the order in which they end, as only then all of "
        "their packets are known; sort by time_first for the order in which they began. A model of several views "
        "remembers what came before a flow: give captures in the order of time.",
    )
    score.add_argument("captures", nargs="+", metavar="CAPTURE", help=CAPTURE_HELP)
    score.add_argument("--model", required=True, metavar="M", help=MODEL_HELP)
    score.add_argument(
        "--output", metavar="CSV",
        help="table, with rankings of flows, channels and hosts on standard output; default: the table on standard "
        "output alone",
    )  # fmt: skip
    _add_midstream_option(score, None)
    _add_force_option(score)
    _add_level_options(score)
    score.set_defaults(command=_score)


def _add_explain(commands: Any) -> None:
    explain = commands.add_parser("explain", help="show what makes the most abnormal flows of captures abnormal")
    explain.add_argument("captures", nargs="+", metavar="CAPTURE", help=CAPTURE_HELP)
    explain.add_argument("--model", required=True, metavar="M", help=MODEL_HELP)
    _add_midstream_option(explain, None)
    explain.add_argument("--flows", type=_positive, default=3, metavar="N", help="most abnormal flows (default 3)")
    explain.add_argument("--bytes", type=_positive, default=16, metavar="N", help="bytes of each (default 16)")
    explain.set_defaults(command=_explain)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="measure how well a trained detector finds attacks in captures")
    evaluate.add_argument("--model", required=True, metavar="M", help=MODEL_HELP)
    evaluate.add_argument("--normal", nargs="+", required=True, metavar="CAPTURE", help="normal traffic not trained on")
    evaluate.add_argument(
        "--attacks", required=True, metavar="DIR", help="one capture, or folder of captures, per attack, named after it"
    )
    evaluate.add_argument(
        "--train", nargs="+", metavar="CAPTURE", help="the traffic of fit: compares with simple detectors"
    )
    evaluate.add_argument("--output", metavar="HTML", help="write the tables and pictures as one HTML page")
    _add_midstream_option(evaluate, None)
    _add_force_option(evaluate)
    evaluate.add_argument("--csv", metavar="CSV", help="write every measure: one line per detector and attack")
    _add_level_options(evaluate)
    evaluate.set_defaults(command=_evaluate)


def _add_level_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibration", nargs="+", metavar="CAPTURE",
        help="normal traffic not trained on: what scores of channels and hosts are compared with",
    )  # fmt: skip
    parser.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="seconds in which a channel or host is one (default 3600)",
    )


def _add_midstream_option(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--midstream", default=default, choices=("keep", "drop"),
        help="TCP flows that do not begin with their handshake, as tails of connections that ran before the capture "
        f"began (default {default or 'as the model was trained'})",
    )  # fmt: skip


def _add_force_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="write over an existing model; never over an input")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _add_fields_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fields", default="no_addresses", choices=("no_addresses", "paper", "portable", "raw"),
        help="header-field policy (default no_addresses)",
    )  # fmt: skip


def _views(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(VIEWS) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different views, of {','.join(VIEWS)}")
    return names


def _epochs(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _demo(args: argparse.Namespace) -> None:
    from sklearn_docids.cli import _demo

    _demo.run(args.output, args.seed)


def _sample(args: argparse.Namespace) -> None:
    from sklearn_docids._sampler import FlowSampler

    sampler = FlowSampler(
        fields=args.fields, tunnels=args.tunnels, duplicate_window=args.duplicate_window, midstream=args.midstream,
        n_jobs=args.jobs, verbose=2,
    )  # fmt: skip
    check_spared("--output", args.output, args.captures, force=args.force)
    with named(args.output):
        counters = sampler.write(sources(args.captures), args.output)
    say(f"{sum(c.get('flows', 0) for c in counters)} flows written to {args.output}")
    _check_read(counters, args.captures)


def _fit(args: argparse.Namespace) -> None:
    from sklearn_docids._sampler import FlowSampler
    from sklearn_docids.persistence import save_detector

    # What can be refused is refused before the work begins.
    _check_fit(args)
    detector = _unfitted(args)
    captures = sources(args.captures)
    layout, output = ("packets", "rows") if args.views == PAPER else ("payload", "flows")
    sampler = FlowSampler(
        layout=layout, output=output, fields=args.fields, midstream=args.midstream, random_state=args.seed, verbose=1
    )
    reference = _reference(args.reference, sampler) if "bytes" in args.views else None
    X, _, _ = sampler.sample(captures)
    _check_read(sampler.counters_, args.captures)
    n_judged = round(detector.validation_fraction * len(X)) if args.views == PAPER else len(X)
    if detector.false_alarm_rate is not None:
        _check_rate(detector.false_alarm_rate, n_judged, len(X))
    detector.fit(X, reference=reference)
    with named(args.model):
        save_detector(detector, args.model, sampler=sampler.set_params(verbose=0))
    n_learned = len(X) - n_judged if args.views == PAPER and detector.false_alarm_rate is not None else len(X)
    views = getattr(detector, "view_names_", args.views)  # some may have been left out
    say(f"{n_learned} flows learned, by {' '.join(views)}; model written to {args.model}")
    say(_threshold_of(detector, n_judged))


def _check_fit(args: argparse.Namespace) -> None:
    for option, value in (("--max-epochs", args.max_epochs), ("--checkpoint-folder", args.checkpoint_folder)):
        if value is not None and "bytes" not in args.views:
            raise ValueError(f"{option} is for the network of bytes, a view that --views leaves out")
    if args.reference is not None and "bytes" not in args.views:
        raise ValueError("--reference is what bytes are compared with, a view that --views leaves out")
    if args.score_method is not None and args.views != PAPER:
        raise ValueError("--score-method is for bytes as the only view: --views bytes")
    check_writable("--model", args.model, is_file=True)
    check_spared("--model", args.model, args.captures, force=args.force)
    if args.checkpoint_folder is not None and not Path(args.checkpoint_folder).is_dir():
        raise NotADirectoryError(f"--checkpoint-folder {args.checkpoint_folder} is not an existing folder")


def _unfitted(args: argparse.Namespace) -> Any:
    """Return the detector that the options ask for."""
    from sklearn_docids.detectors import DOCIDSDetector, MultiViewDetector

    rate = args.false_alarm_rate
    if args.views == PAPER:
        network: DOCIDSDetector = DOCIDSDetector(score_method=args.score_method or "knn", false_alarm_rate=rate)
        detector: Any = network
    else:
        rate = FALSE_ALARM_RATE if rate is None else rate
        detector = MultiViewDetector(views=args.views, false_alarm_rate=rate)
        network = detector._network()
        detector.set_params(detector=network)
    max_epochs = "auto" if args.max_epochs is None else args.max_epochs
    network.set_params(checkpoint_folder=args.checkpoint_folder, max_epochs=max_epochs, verbose=1)
    network._validate_params()
    detector._validate_params()
    return detector.set_params(random_state=args.seed)


def _reference(folder: str | None, sampler: Any) -> Any:
    """Return the reference in a folder, or the bundled one."""
    from sklearn_docids.datasets import load_class_folder
    from sklearn_docids.datasets._testbed import REFERENCE
    from sklearn_docids.detectors import ReferenceData

    reference = load_class_folder(REFERENCE if folder is None else folder, sampler=sampler)
    if folder is None:
        n_flows, n_services = len(reference.X), len(reference.target_names)
        say(f"no --reference: the bundled one is used, {n_flows} flows of {n_services} services")
    return ReferenceData(reference.X, reference.y)


def _check_rate(rate: float, n_judged: int, n_flows: int) -> None:
    """Refuse too few flows for a threshold that holds a rate of false alarms."""
    from sklearn_docids._thresholds import least_held_out

    needed = least_held_out(rate)
    if n_judged < needed:
        lowest = math.ceil(1000 / (n_judged + 1)) / 1000
        way_out = f", or --false-alarm-rate {lowest:g}" if lowest <= MAX_RATE else ""
        raise ValueError(
            f"a threshold for {100 * rate:g} % false alarms takes at least {needed} flows that set it, but of "
            f"{n_flows} flows {n_judged} do: give more traffic{way_out}"
        )


def _threshold_of(detector: Any, n_judged: int) -> str:
    rate = detector.false_alarm_rate
    if rate is None:
        return (
            "The threshold flags 1 % of these flows, more of new ones; --false-alarm-rate sets it with held-out flows."
        )
    return f"The threshold is that of {100 * rate:g} % false alarms; {n_judged} flows have set it."


def sources(captures: Sequence[str]) -> list[Any]:
    """Return captures as the sampler takes them, if all are there; ``-`` is standard input."""
    return [_source(capture) for capture in captures]


def _source(capture: str) -> Any:
    if capture == "-":
        if sys.stdin is None:
            raise ValueError("standard input is closed: there is nothing to read for -")
        return sys.stdin.buffer
    os.stat(capture)
    for code, is_so in ((errno.EISDIR, os.path.isdir(capture)), (errno.EACCES, not os.access(capture, os.R_OK))):
        if is_so:
            raise OSError(code, os.strerror(code), capture)
    return capture


def _check_read(counters: Iterable[Mapping[str, int]], captures: Sequence[str]) -> None:
    """Refuse captures of whose packets none is in a flow: that nothing was found in them means nothing."""
    from sklearn_docids.capture.counting import described, summed

    read = summed(counters)
    if read["packets"] and not read["flows"]:
        raise ValueError(f"{' '.join(captures)}: no packet is in a TCP or UDP flow: {described(read)}")


def _loaded(path: str, midstream: str | None) -> Any:
    """Return a detector that knows how its captures are read, of a pipeline its last step."""
    from sklearn.pipeline import Pipeline

    from sklearn_docids.persistence import load_detector

    loaded = load_detector(path)
    detector: Any = loaded[-1] if isinstance(loaded, Pipeline) else loaded
    if detector.sampler_ is None:
        raise ValueError(f"{path} holds no sampler, so captures cannot be read as it was trained; use docids fit")
    # Standard output is the table's alone; detectors that take tables are given them by hand.
    detector.sampler_.set_params(verbose=0, output="rows")
    if midstream is not None:
        detector.sampler_.set_params(midstream=midstream)
    return detector


def _flows(sampler: Any, captures: Sequence[str], option: str) -> Any:
    """Return the flows of captures that must have some."""
    from sklearn_docids.capture.counting import described, summed

    flows = sampler.flows(sources(captures))
    if not len(flows):
        raise ValueError(f"{option} {' '.join(captures)}: there is no flow in it: {described(summed(flows.counters))}")
    return flows


def _score(args: argparse.Namespace) -> None:
    from sklearn_docids.cli._scoring import FlowStream

    _check_output_of_score(args)
    detector = _loaded(args.model, args.midstream)
    aggregators = _aggregators(detector, args)
    stream = FlowStream(detector.sampler_, sources(args.captures))
    if args.output is None:
        for _ in _scored(detector, stream, sys.stdout):
            pass
        print(f"docids: {_read(stream.counters, stream.ignored)}", file=sys.stderr)
    else:
        _score_to_file(args.output, detector, stream, aggregators)
    _check_read(stream.counters, args.captures)


def _check_output_of_score(args: argparse.Namespace) -> None:
    if args.output is not None:
        check_writable("--output", args.output)
        check_spared("--output", args.output, [args.model, *args.captures, *(args.calibration or ())], force=args.force)
    elif args.calibration or args.window is not None:
        raise ValueError("--calibration and --window are for the rankings, which need --output: flows are printed now")
    elif sys.stdout is None:
        raise ValueError("standard output is closed: --output names a file for the table")


def _scored(detector: Any, stream: Iterable[FlowTable], file: TextIO) -> Iterator[tuple[FlowTable, np.ndarray]]:
    """Score flows and write a line of each, some thousand at a time; hand them on."""
    from sklearn_docids._meta import takes_tables
    from sklearn_docids.cli._scoring import judged

    table = ScoreTable(file, detector.offset_, has_reasons=takes_tables(detector))
    for flows, scores, reasons in judged(detector, stream):
        table.add(flows, scores, reasons)
        yield flows, scores


def _score_to_file(output: str, detector: Any, stream: FlowStream, aggregators: Sequence[Any]) -> None:
    """Write the table to a file and print rankings."""
    from sklearn_docids.cli._scoring import FlowSpool, Ranking

    ranking = Ranking(detector.offset_, N_LISTED)
    with FlowSpool(scratch_folder(output)) as spool:
        with replacing(output) as part, open(part, "w", newline="", encoding="utf-8") as file:
            for flows, scores in _scored(detector, stream, file):
                ranking.add(flows, scores)
                spool.add(flows, scores)
        abnormal = f"{ranking.n_abnormal} abnormal"
        if ranking.n_midstream:
            abnormal += f" ({ranking.n_midstream} of them midstream: the beginning of the connection was not seen)"
        read = _read(stream.counters, stream.ignored)
        say(f"{ranking.n_flows} flows, {abnormal}, written to {output}", read)
        if ranking.flows is not None:
            say("", f"The {len(ranking.flows)} most abnormal flows:", *format_flows(ranking.flows, ranking.scores))
            for aggregator in aggregators:
                _print_groups(aggregator, spool)


def _read(counters: Iterable[Mapping[str, int]], ignored: Iterable[Mapping[str, int]]) -> str:
    """Return a line on what was read and what became of it."""
    from sklearn_docids.capture.counting import described, most_frequent, summed

    kinds = most_frequent(ignored)
    return f"read {described(summed(counters))}" + (f"; of the ignored: {kinds}" if kinds else "")


def _aggregators(detector: Any, args: argparse.Namespace) -> list[Any]:
    """Return aggregators of channels and of hosts, fitted if there are flows to calibrate with."""
    from sklearn_docids.evaluation import given

    aggregators = [_aggregator(detector, level, args.window) for level in ("channel", "host")]
    if args.calibration:
        flows = _flows(detector.sampler_, args.calibration, "--calibration")
        scores = detector.score_samples(given(detector, flows))
        return [aggregator.fit(flows, scores) for aggregator in aggregators]
    return [aggregator.set_params(false_alarm_rate=None) for aggregator in aggregators]


def _aggregator(detector: Any, level: str, window: float | None) -> Any:
    """Return the aggregator of a level, with the window of the command line if it has one."""
    from sklearn_docids._meta import takes_tables
    from sklearn_docids.aggregation import FlowAggregator

    # What knows the past of a flow has added it up already.
    aggregator = FlowAggregator(level, combine="most_abnormal" if takes_tables(detector) else "sum")
    return aggregator if window is None else aggregator.set_params(window=window)


def _print_groups(aggregator: Any, spool: FlowSpool) -> None:
    """Print the most abnormal channels or hosts."""
    from sklearn_docids.cli._scoring import GroupRanking

    level, window = aggregator.level, aggregator.window
    if aggregator.false_alarm_rate is None:
        # A ranking needs no threshold, and the flows themselves say which of them are rare.
        aggregator.fit(*spool.whole())
    ranking = GroupRanking(aggregator, spool, N_LISTED)
    threshold = " (no threshold: that takes --calibration with enough traffic)"
    if aggregator.false_alarm_rate_ is not None:
        rate = f"{aggregator.false_alarm_rate_:.0%}"
        threshold = f"; {ranking.n_abnormal} are beyond the threshold for {rate} false alarms"
    split = ""
    if ranking.n_evicted:
        split = f"; more than {aggregator.max_groups} channels at a time: {ranking.n_evicted} {level}s came out early"
    listed = f"The {len(ranking.groups)} most abnormal of {ranking.n_groups} {level}s, in windows of {window:g} s"
    say("", f"{listed}{threshold}{split}:", *format_groups(ranking.groups, aggregator.offset_))


def _explain(args: argparse.Namespace) -> None:
    from sklearn_docids.cli._explaining import explained

    detector = _loaded(args.model, args.midstream)
    flows = _flows(detector.sampler_, args.captures, "CAPTURE")
    for flow in explained(detector, flows, args.flows, args.bytes):
        say(flow.flow)
        if flow.views is not None:
            say(*format_views(flow.views))
        if flow.bytes is not None:
            say(*format_reasons(flow.bytes))
        say("")
    say(_read(flows.counters, flows.ignored))


def _evaluate(args: argparse.Namespace) -> None:
    from sklearn_docids._meta import takes_tables
    from sklearn_docids.evaluation import Evaluation

    _check_outputs_of_evaluate(args)
    detector = _loaded(args.model, args.midstream)
    sampler = detector.sampler_
    attacks = _attacks_of(sampler, args.attacks)
    normal = _flows(sampler, args.normal, "--normal")
    calibration = _flows(sampler, args.calibration, "--calibration") if args.calibration else None
    read = _read_for_evaluate(normal, attacks, calibration)
    detectors = {"model": detector}
    if args.train:
        detectors |= _simple_detectors(sampler, args.train)
        read["training"] = _read(sampler.counters_, sampler.ignored_)
    found = _evaluated(detectors, normal, attacks, calibration, args.window)
    note = CONTEXT if takes_tables(detector) else ""
    for level, evaluation in found.items():
        say(f"By {level}", "", *str(evaluation).splitlines(), "")
    if note:
        say(note)
    say(*(f"{name}: {line}" for name, line in read.items()))
    if args.csv is not None:
        with replacing(args.csv) as part:
            Evaluation.joined(found.values()).write_csv(part)
    if args.output is not None:
        from sklearn_docids.cli._explaining import explained
        from sklearn_docids.cli._html import write_report

        flows = [flow for attack in attacks.values() for flow in explained(detector, attack, 1, 16, normal)]
        title = f"docids evaluate: {printable(args.model)}"
        with replacing(args.output) as part:
            write_report(part, found, title=title, read=read, note=note, explained=flows)
        say(f"Report: {args.output}")


def _read_for_evaluate(normal: Any, attacks: Mapping[str, Any], calibration: Any) -> dict[str, str]:
    """Return a line per set of flows on what was read for it."""
    sets = {"normal": normal, **{f"attack {name}": flows for name, flows in attacks.items()}}
    if calibration is not None:
        sets["calibration"] = calibration
    return {name: _read(flows.counters, flows.ignored) for name, flows in sets.items()}


def _check_outputs_of_evaluate(args: argparse.Namespace) -> None:
    for option, path in (("--csv", args.csv), ("--output", args.output)):
        if path is not None:
            check_writable(option, path)
            inputs = [args.model, *args.normal, *(args.train or ()), *(args.calibration or ())]
            check_spared(option, path, inputs, force=args.force)
    if args.output is not None:
        import matplotlib.figure  # noqa: F401 - the page has pictures: better missed now than behind all the work


def _attacks_of(sampler: Any, folder: str) -> dict[str, Any]:
    """Return the flows of each attack, named after its capture or folder of captures."""
    from sklearn_docids.datasets._folder import class_captures

    by_name: dict[str, list[str]] = {}
    for path, name in zip(*class_captures(folder), strict=True):
        by_name.setdefault(printable(name), []).append(str(path))
    return {name: _flows(sampler, captures, "--attacks") for name, captures in by_name.items()}


def _evaluated(
    detectors: dict[str, Any], normal: Any, attacks: dict[str, Any], calibration: Any, window: float | None
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
            aggregator = _aggregator(next(iter(some.values())), level, window)
            parts.append(evaluate(some, normal, attacks, level=level, calibration=calibration, aggregator=aggregator))
        found[level] = Evaluation.joined(parts)
    return found


def _simple_detectors(sampler: Any, captures: Sequence[str]) -> dict[str, Any]:
    """Return simple detectors, trained on captures."""
    from sklearn.ensemble import IsolationForest

    from sklearn_docids.detectors import NearestNeighborDetector, StatisticDetector

    X, _, _ = sampler.sample(sources(captures))
    if len(X) < 2:
        raise ValueError(f"--train {' '.join(captures)}: {len(X)} flows are too few to train on")
    return {
        "IsolationForest": IsolationForest(random_state=0).fit(X),
        "1-NN on bytes": NearestNeighborDetector().fit(X),
        "number of packets": StatisticDetector(n_packets=sampler.n_packets).fit(X),
    }
