# SPDX-License-Identifier: BSD-3-Clause
"""Write the flow bytes of captures as an array.

Write the first bytes of the first packets of each flow as a NumPy array, for programs of your own; fit and score read
captures themselves.
"""

from __future__ import annotations

import argparse

from sklearn_docids.cli._inputs import add_captures, check_read, expanded, note_captures, reading
from sklearn_docids.cli._options import SAMPLER, add_parameters, given
from sklearn_docids.cli._outputs import check_spared, check_writable, named
from sklearn_docids.cli._text import note, print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_captures(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT",
        help="X.npy: the array alone; another name: a folder with the array and the flow table",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="write over an existing model; never over an input")
    parser.add_argument("--json", action="store_true", help="print the counters of each capture as JSON")
    add_parameters(parser, "how captures become flows", SAMPLER)


def run(args: argparse.Namespace) -> None:
    """Sample and write."""
    captures = expanded(args.captures)
    if args.output.endswith(".npy"):
        check_writable("--output", args.output)
    check_spared("--output", args.output, captures, force=args.force)
    from sklearn_docids._sampler import FlowSampler

    sampler = FlowSampler().set_params(**given(args, SAMPLER)).fit([])
    with named(args.output), reading(captures, "reading", quiet=args.quiet) as sources:
        counters = sampler.write(sources, args.output)
    note_captures(args, captures, counters)
    note(args, f"{sum(c.get('flows', 0) for c in counters)} flows written to {args.output}")
    if args.json:
        print_json([{"capture": name, **counts} for name, counts in zip(captures, counters, strict=True)])
    check_read(counters, captures)
