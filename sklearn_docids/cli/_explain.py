# SPDX-License-Identifier: BSD-3-Clause
"""Show what makes the most abnormal flows of captures abnormal.

Show what each view finds in the most abnormal flows, and which of their bytes make them abnormal to the network. --flow
asks for one flow by its community ID, as score writes it, or by addresses and ports.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sklearn_docids.cli._inputs import (
    add_captures,
    add_midstream,
    add_model,
    expanded,
    loaded_detector,
    read_line,
    sampled_flows,
)
from sklearn_docids.cli._text import format_reasons, format_views, note, print_json, say
from sklearn_docids.cli._values import positive

if TYPE_CHECKING:
    from sklearn_docids.cli._explaining import Explained


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_captures(parser)
    add_model(parser)
    add_midstream(parser)
    parser.add_argument("--flows", type=positive, default=3, metavar="N", help="most abnormal flows (default 3)")
    parser.add_argument(
        "--flow", metavar="ID", help="this flow alone: its community ID, or 10.0.0.7:50000->10.0.0.9:22"
    )
    parser.add_argument("--bytes", type=positive, default=16, metavar="N", help="bytes of each (default 16)")
    parser.add_argument("--json", action="store_true", help="print the reasons as JSON")


def run(args: argparse.Namespace) -> None:
    """Score all flows, and explain some."""
    from sklearn_docids.cli._explaining import explained

    captures = expanded(args.captures)
    detector = loaded_detector(args.model, args.midstream)
    flows = sampled_flows(detector, captures, "CAPTURE", quiet=args.quiet)
    found = explained(detector, flows, args.flows, args.bytes, wanted=args.flow)
    if args.json:
        print_json([_plain(flow) for flow in found])
    else:
        for flow in found:
            _print(flow)
    note(args, read_line(flows.counters, flows.ignored))


def _print(flow: Explained) -> None:
    say(flow.flow)
    if flow.views is not None:
        say(*format_views(flow.views))
    if flow.bytes is not None:
        say(*format_reasons(flow.bytes))
    say("")


def _plain(flow: Explained) -> dict[str, Any]:
    return {
        "flow": flow.flow,
        "views": None if flow.views is None else [reason._asdict() for reason in flow.views],
        "bytes": None if flow.bytes is None else [reason._asdict() for reason in flow.bytes],
    }
