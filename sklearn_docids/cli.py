# SPDX-License-Identifier: BSD-3-Clause
"""The command line: ``docids demo | sample | fit | score``."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_docids import __version__
from sklearn_docids._report import format_flows, write_scores

N_LISTED = 10


CAPTURE_HELP = "pcap or pcapng, packed or not; - is standard input"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, 1 for unusable input, 130 for Ctrl-C."""
    args = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)  # each damaged capture, not only the first
        warnings.showwarning = _show_warning
        try:
            args.command(args)
        except BrokenPipeError:  # the reader of our output has seen enough
            sys.stderr.close()
        except (OSError, ValueError) as error:
            print(f"docids: error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("docids: interrupted", file=sys.stderr)
            return 130
    return 0


def _show_warning(message: Any, *args: Any, **kwargs: Any) -> None:
    print(f"docids: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="docids", description="Network anomaly detection from raw packets (DOC-IDS).")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train and score on the bundled testbed, in about two minutes")
    demo.add_argument("--seed", type=int, default=0, help="seed of training (default 0)")
    demo.add_argument("--output", default="docids-demo", metavar="DIR", help="folder to write to (default docids-demo)")
    demo.set_defaults(command=_demo)

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
    _add_fields_option(sample)
    sample.set_defaults(command=_sample)

    fit = commands.add_parser("fit", help="train a detector on captures of normal traffic")
    fit.add_argument("captures", nargs="+", metavar="CAPTURE", help=f"normal traffic: {CAPTURE_HELP}")
    fit.add_argument(
        "--reference",
        required=True,
        metavar="DIR",
        help="one capture, or folder of captures, per class, named after it",
    )
    fit.add_argument("--model", required=True, metavar="M", help="model file to write")
    fit.add_argument("--max-epochs", type=_epochs, default="auto", metavar="N", help="passes over the traffic")
    fit.add_argument("--score-method", default="knn", choices=("knn", "reconstruction"))
    fit.add_argument(
        "--false-alarm-rate", type=float, metavar="R",
        help="rate of false alarms to hold on new normal flows; keeps a fifth of the flows out of training",
    )  # fmt: skip
    fit.add_argument(
        "--checkpoint-folder", metavar="DIR",
        help="existing folder for the state of training; the same command, started again after a break, goes on",
    )  # fmt: skip
    fit.add_argument("--seed", type=int, default=0, help="seed of sampling and training (default 0)")
    _add_fields_option(fit)
    fit.set_defaults(command=_fit)

    score = commands.add_parser("score", help="score the flows of captures with a trained detector")
    score.add_argument("captures", nargs="+", metavar="CAPTURE", help=CAPTURE_HELP)
    score.add_argument("--model", required=True, metavar="M", help="model file written by fit")
    score.add_argument("--output", metavar="CSV", help="one row per flow; default: standard output")
    score.set_defaults(command=_score)
    return parser


def _add_fields_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fields", default="no_addresses", choices=("no_addresses", "paper", "portable", "raw"),
        help="header-field policy (default no_addresses)",
    )  # fmt: skip


def _epochs(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _demo(args: argparse.Namespace) -> None:
    from sklearn_docids import _demo

    _demo.run(args.output, args.seed)


def _sample(args: argparse.Namespace) -> None:
    from sklearn_docids import FlowSampler

    sampler = FlowSampler(
        fields=args.fields, tunnels=args.tunnels, duplicate_window=args.duplicate_window, n_jobs=args.jobs, verbose=2
    )
    counters = sampler.write(sources(args.captures), args.output)
    print(f"{sum(c.get('flows', 0) for c in counters)} flows written to {args.output}")


def _fit(args: argparse.Namespace) -> None:
    from sklearn_docids import DOCIDSDetector, FlowSampler, ReferenceData
    from sklearn_docids.datasets import load_class_folder

    sampler = FlowSampler(fields=args.fields, random_state=args.seed, verbose=1)
    detector = DOCIDSDetector(
        max_epochs=args.max_epochs, score_method=args.score_method, false_alarm_rate=args.false_alarm_rate,
        checkpoint_folder=args.checkpoint_folder, random_state=args.seed, verbose=1,
    )  # fmt: skip
    # What can be refused is refused before the work begins.
    detector._validate_params()
    folder = Path(args.model).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of --model {args.model} does not exist")
    if not args.model or (Path(args.model).exists() and not Path(args.model).is_file()):
        raise FileExistsError(f"--model {args.model or repr('')} is no name of a file")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"the folder of --model {args.model} cannot be written to")
    if args.checkpoint_folder is not None and not Path(args.checkpoint_folder).is_dir():
        raise NotADirectoryError(f"--checkpoint-folder {args.checkpoint_folder} is no existing folder")
    X_reference, y_reference = load_class_folder(args.reference, sampler=sampler, return_X_y=True)
    X, _, _ = sampler.sample(sources(args.captures))
    detector.fit(X, reference=ReferenceData(X_reference, y_reference))
    detector.save(args.model, sampler=sampler.set_params(verbose=0))
    print(f"{len(X)} flows and {len(X_reference)} reference flows learned, model written to {args.model}")
    if args.false_alarm_rate is None:
        print(
            "The threshold flags 1 % of these flows, more of new ones; --false-alarm-rate sets it with held-out flows."
        )


def sources(captures: Sequence[str]) -> list[Any]:
    """Return captures as the sampler takes them; ``-`` is standard input."""
    return [sys.stdin.buffer if capture == "-" else capture for capture in captures]


def _score(args: argparse.Namespace) -> None:
    from sklearn_docids import load_detector

    detector = load_detector(args.model)
    if detector.sampler_ is None:
        raise ValueError(f"{args.model} holds no sampler, so captures cannot be read as it was trained; use docids fit")
    # Standard output is the table's alone.
    flows = detector.sampler_.set_params(verbose=0).flows(sources(args.captures))
    scores = detector.score_samples(flows.X) if len(flows) else np.empty(0)
    if args.output is None:
        write_scores(sys.stdout, flows, scores, detector.offset_)
        return
    with open(args.output, "w", newline="", encoding="utf-8") as file:
        write_scores(file, flows, scores, detector.offset_)
    n_abnormal = int(np.sum(scores < detector.offset_))
    print(f"{len(flows)} flows, {n_abnormal} abnormal, written to {args.output}")
    order = np.argsort(scores, kind="stable")[:N_LISTED]
    if len(order):
        print(f"\nThe {len(order)} most abnormal flows:")
        print("\n".join(line.rstrip() for line in format_flows(flows[order], scores[order])))
