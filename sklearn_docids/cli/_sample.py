# SPDX-License-Identifier: BSD-3-Clause
"""Write the flow bytes of captures as an array.

Write the first bytes of the first packets of each flow as a NumPy array, for programs of your own; fit and score read
captures themselves.

With --shards, OUT is a folder that gets a shard per capture: a folder of arrays, or a Parquet file. A shard is whole or
not there, and one that is there is not made again: give the same command again where it was interrupted, or where there
are more captures. Python reads all of them with FlowTable.load, DuckDB and Polars read OUT/*.parquet. With --scheduler,
the workers of a Dask cluster write the shards.
"""

from __future__ import annotations

import argparse
import os

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
from sklearn_docids.cli._options import SAMPLER, add_parameters, given
from sklearn_docids.cli._outputs import check_spared, check_writable
from sklearn_docids.cli._text import note, print_json


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_captures(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT",
        help="X.npy: the array alone; another name: a folder with the array and the flow table",
    )  # fmt: skip
    parser.add_argument(
        "--shards", nargs="?", const="npy", choices=("npy", "parquet"),
        help="write a shard per capture: arrays (npy, where nothing is given) or parquet; each capture is on its own, "
        "whatever --rotated says",
    )  # fmt: skip
    add_scheduler(parser)
    parser.add_argument("--force", action="store_true", help="write over an existing model; never over an input")
    parser.add_argument("--json", action="store_true", help="print the counters of each capture as JSON")
    add_parameters(parser, "how captures become flows", SAMPLER)


def run(args: argparse.Namespace) -> None:
    """Sample and write."""
    captures = expanded(args.captures)
    if args.shards and os.path.isfile(args.output):
        raise NotADirectoryError(f"--output {args.output} is a file: --shards needs a folder")
    if args.output.endswith(".npy") and not args.shards:
        check_writable("--output", args.output)
    check_spared("--output", args.output, captures, force=args.force)
    from sklearn_docids._sampler import FlowSampler

    sampler = FlowSampler().set_params(**given(args, SAMPLER)).fit([])
    by_path = bool(args.shards or args.scheduler)
    with (
        named(args.output), on_cluster(args.scheduler),
        reading(captures, "reading", quiet=args.quiet, by_path=by_path) as sources,
    ):  # fmt: skip
        counters = sampler.write(sources, args.output, shards=args.shards)
    note_captures(args, captures, counters)
    note(args, f"{sum(c.get('flows', 0) for c in counters)} flows written to {args.output}")
    if args.json:
        print_json([{"capture": name, **counts} for name, counts in zip(captures, counters, strict=True)])
    check_read(counters, captures)
