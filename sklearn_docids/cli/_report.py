# SPDX-License-Identifier: BSD-3-Clause
"""Write a page for people of what is abnormal in captures.

Score the flows of captures with a trained detector, as docids score does, and write one HTML page: alarms by time, the
incidents with their reasons and bytes beside those of the most similar normal flow, hosts, scores against those of
normal traffic, what rules of the allow-list hid, and what was read and ignored. The page needs nothing beside it, runs
no script, and can be printed.
"""

from __future__ import annotations

import argparse

from sklearn_docids.cli._alarm_options import add_alarm_options
from sklearn_docids.cli._inputs import add_captures, add_midstream, add_model, check_read, expanded, note_captures
from sklearn_docids.cli._outputs import check_spared, check_writable
from sklearn_docids.cli._score import found_in
from sklearn_docids.cli._text import note


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_captures(parser)
    add_model(parser)
    parser.add_argument("-o", "--output", required=True, metavar="HTML", help="page to write")
    parser.add_argument("--force", action="store_true", help="write over an existing model; never over an input")
    add_alarm_options(parser)
    add_midstream(parser)


def run(args: argparse.Namespace) -> None:
    """Score, and write the page."""
    captures = expanded(args.captures)
    check_writable("--output", args.output)
    inputs = [args.model, *captures, *filter(None, [args.allow_list])]
    check_spared("--output", args.output, inputs, force=args.force)
    none = {"output": None, "write_pcap": None, "zeek_log": None}
    scoring = argparse.Namespace(**{**vars(args), **none, "html": args.output})
    findings, _ = found_in(scoring, captures)
    note_captures(args, captures, findings.counters)
    check_read(findings.counters, captures)
    note(args, f"{findings.n_flows} flows scored, {findings.n_incidents} incidents, {args.output} written")
