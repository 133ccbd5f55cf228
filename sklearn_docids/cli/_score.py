# SPDX-License-Identifier: BSD-3-Clause
"""Find what is abnormal in captures.

Score the flows of captures with a trained detector, in bounded memory, and print what was read and the incidents, the
most abnormal first, each with its reasons. An incident is the abnormal flows of one channel (source, destination, port
and protocol), or of one source where it has many channels, that follow each other within --window.

--output writes a table with a line per flow, by the end of its name: .csv, .jsonl, .parquet; or, .eve.json, the alarms
as Suricata writes them. Flows come in the order in which they end, as only then all of their packets are known. A model
of several views remembers what came before a flow: give captures in the order of time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sklearn_docids.cli._alarm_options import (
    add_alarm_options,
    add_zeek_log,
    drift_test,
    loaded_allow_list,
    zeek_connections,
)
from sklearn_docids.cli._inputs import (
    add_captures,
    add_midstream,
    add_model,
    check_read,
    expanded,
    loaded_detector,
    note_captures,
    reading,
)
from sklearn_docids.cli._outputs import check_spared, check_writable, replacing
from sklearn_docids.cli._summary import plain, print_findings
from sklearn_docids.cli._tables import CSV, EVE, PARQUET, CsvTable, FlowWriter, JsonLines, ParquetTable, format_of
from sklearn_docids.cli._text import note, print_json
from sklearn_docids.cli._values import positive

if TYPE_CHECKING:
    from sklearn_docids._alarms.alarm import Alarm
    from sklearn_docids._alarms.collect import Scored
    from sklearn_docids._alarms.findings import Findings
    from sklearn_docids.capture.table import FlowTable

N_LISTED = 20
# Flows that are scored and written together, at least.
CHUNK_FLOWS = 16_384


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_captures(parser)
    add_model(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help="write .csv, .jsonl or .parquet: a line per flow; .eve.json: the alarms; -: CSV to standard output, "
        "instead of the incidents",
    )  # fmt: skip
    parser.add_argument("--only-abnormal", action="store_true", help="leave normal flows out of the table")
    parser.add_argument("--html", metavar="FILE", help="write a page for people: see docids report")
    parser.add_argument("--write-pcap", metavar="FILE", help="write the packets of abnormal flows, as pcapng")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--top", type=positive, default=N_LISTED, metavar="N", help="incidents to print (default 20)")
    parser.add_argument("--force", action="store_true", help="write over an existing model; never over an input")
    add_alarm_options(parser)
    add_zeek_log(parser)
    add_midstream(parser)


def run(args: argparse.Namespace) -> None:
    """Score, write and print."""
    captures = expanded(args.captures)
    _check_outputs(args, captures)
    findings, _ = found_in(args, captures)
    note_captures(args, captures, findings.counters)
    check_read(findings.counters, captures)
    if args.output is not None:
        note(args, f"{findings.n_flows} flows scored, {args.output} written")
    if args.json:
        print_json(plain(findings))
    elif args.output != "-":
        print_findings(findings, args.top)


def _check_outputs(args: argparse.Namespace, captures: Sequence[str]) -> None:
    """Refuse what could not be written, and what would be lost, before the work."""
    inputs = [args.model, *captures, *filter(None, (args.allow_list, args.zeek_log))]
    for option in ("--output", "--html", "--write-pcap"):
        path = getattr(args, option[2:].replace("-", "_"), None)
        if path is not None and path != "-":
            check_writable(option, path)
            check_spared(option, path, inputs, force=args.force)
    outputs = [os.path.abspath(path) for path in (args.output, args.html, args.write_pcap) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise ValueError("two of --output, --html and --write-pcap name the same file")
    if args.output is not None:
        if format_of("--output", args.output) == PARQUET:
            import pyarrow  # noqa: F401 - better missed now than behind all the work
        if args.output == "-" and args.json:
            raise ValueError("--json and --output - both want standard output")
    if sys.stdout is None and (args.output in (None, "-")):
        raise ValueError("standard output is closed: --output names a file")
    if args.write_pcap is not None:
        from sklearn_docids._alarms.packets import check_read_again

        check_read_again(captures)


def found_in(args: argparse.Namespace, captures: Sequence[str]) -> tuple[Findings, Any]:
    """Score captures, write what the command line asks for; return what was found, and the detector."""
    allow_list = loaded_allow_list(args)
    connections = zeek_connections(args)
    detector = loaded_detector(args.model, args.midstream)
    collector = _collector(args, captures, detector, allow_list)
    sampler = detector.sampler_
    flagged: list[Any] = []
    with ExitStack() as stack:
        write = stack.enter_context(_output(args, detector, connections))
        sources = stack.enter_context(reading(captures, "scoring", quiet=args.quiet))
        for flows in pieces(sampler, sources):
            scored, alarms = collector.add(flows)
            write(scored, alarms)
            if args.write_pcap is not None:
                flagged.append(scored.flows[scored.verdicts == "abnormal"])
        findings = collector.finish()
        findings.counters, findings.ignored = sampler.counters_, sampler.ignored_
    if flagged:
        _write_packets(args, captures, _joined(flagged), sampler)
    if args.html is not None:
        from sklearn_docids._report.page import write_page

        with replacing(args.html) as part:
            write_page(part, findings, detector, command=args.given)
    return findings, detector


def _collector(args: argparse.Namespace, captures: Sequence[str], detector: Any, allow_list: Any) -> Any:
    import numpy as np

    from sklearn_docids._alarms.collect import Collector, Scorer
    from sklearn_docids._alarms.findings import Findings

    normal = getattr(detector, "calibration_scores_", ())
    findings = Findings(
        args.model, captures, float(detector.offset_), getattr(detector, "false_alarm_rate_", None), np.asarray(normal)
    )
    settings = {"level": args.level, "window": args.window, "per_day": args.alarms_per_day}
    return Collector(findings, Scorer(detector, allow_list), settings, drift_test(detector))


@contextmanager
def _table(args: argparse.Namespace, *, has_reasons: bool) -> Iterator[Any]:
    """Give a function that writes the table of flows."""
    kind = format_of("--output", args.output)
    with ExitStack() as stack:
        if args.output == "-":
            table: FlowWriter = CsvTable(sys.stdout, has_reasons=has_reasons)
        else:
            part = stack.enter_context(replacing(args.output))
            if kind == PARQUET:
                table = ParquetTable(part)
            else:
                file = stack.enter_context(open(part, "w", newline="", encoding="utf-8"))
                table = CsvTable(file, has_reasons=has_reasons) if kind == CSV else JsonLines(file)
        yield lambda scored, alarms: table.add(scored.abnormal() if args.only_abnormal else scored)
        table.close()


@contextmanager
def _alarm_lines(args: argparse.Namespace, connections: Any) -> Iterator[Any]:
    """Give a function that writes alarms as EVE."""
    from sklearn_docids._alarms.eve import AlarmWriter

    with replacing(args.output) as part, AlarmWriter(part, "eve", model=args.model, zeek=connections) as lines:

        def write(scored: Scored, alarms: Sequence[Alarm]) -> None:
            for alarm in alarms:
                lines.write(alarm)
            lines.flush()

        yield write


def _output(args: argparse.Namespace, detector: Any, connections: Any) -> AbstractContextManager[Any]:
    """Give what writes the file that --output asks for."""
    from sklearn_docids._meta import takes_tables

    if args.output is None:
        return nullcontext(lambda scored, alarms: None)
    if format_of("--output", args.output) == EVE:
        return _alarm_lines(args, connections)
    return _table(args, has_reasons=takes_tables(detector))


def pieces(sampler: Any, sources: Sequence[Any]) -> Iterator[FlowTable]:
    """Yield flows some thousand at a time, so that the network's blocks of rows are mostly full."""
    waiting: list[FlowTable] = []
    for flows in sampler.iter_flows(sources, early=False):
        waiting.append(flows)
        if sum(map(len, waiting)) >= CHUNK_FLOWS:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[FlowTable]) -> FlowTable:
    """Return flows of the same captures as one table."""
    import numpy as np

    from sklearn_docids.capture.table import FlowTable, joined

    rows, capture = joined([part.rows for part in parts]), np.concatenate([part.capture for part in parts])
    return FlowTable(rows, capture, parts[-1].captures, [])


def _write_packets(args: argparse.Namespace, captures: Sequence[str], flagged: FlowTable, sampler: Any) -> None:
    from sklearn_docids._alarms.packets import write_packets

    n_packets = write_packets(captures, flagged, args.write_pcap, sampler=sampler)
    note(args, f"{n_packets} packets of {len(flagged)} abnormal flows written to {args.write_pcap}")
