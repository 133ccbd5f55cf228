# SPDX-License-Identifier: BSD-3-Clause
"""Raise alarms on traffic as it comes.

SOURCE is an interface, which is captured on through tcpdump or dumpcap, the one process that needs the right to; or
standard input (-), a FIFO, or a file; or a folder into which a capture writes a file after the other, as tcpdump -G and
-C and dumpcap -b do. Write ./eth0 for a file of that name.

A flow gets its verdict when it ends: by its last packet, or when it has been silent for the model's --idle-timeout;
with --verdict early, with the packet that completes its row. Alarms are EVE lines on standard output, or what --output
asks for by the end of its name. Counters of all that became of packets and flows come with them as stats lines.

SIGTERM and SIGINT end the watch, with everything written: flows of a stream that are still open are judged as they are,
those of a folder go on with the next start. SIGHUP opens outputs anew and reads model and allow-list again. SIGUSR1
asks for a stats line.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from sklearn_docids._scratch import named
from sklearn_docids.cli._alarm_options import (
    add_alarm_options,
    add_zeek_log,
    drift_test,
    loaded_allow_list,
    zeek_connections,
)
from sklearn_docids.cli._inputs import add_midstream, add_model, check_model, loaded_detector
from sklearn_docids.cli._outputs import check_spared, check_writable
from sklearn_docids.cli._text import note
from sklearn_docids.cli._values import positive, seconds

if TYPE_CHECKING:
    from sklearn_docids._watch.signals import Signals
    from sklearn_docids._watch.verdicts import Judge

MEBIBYTE = 2**20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", metavar="SOURCE", help="interface, folder, FIFO, file, or - for standard input")
    add_model(parser)
    parser.add_argument(
        "-o", "--output", default="-", metavar="FILE",
        help="file that alarms are added to: .json EVE, .jsonl, .csv (default: EVE on standard output)",
    )  # fmt: skip
    parser.add_argument("--sensor", metavar="NAME", help="name of this sensor in EVE lines")
    parser.add_argument(
        "--verdict", default="end", choices=("end", "early"),
        help="when a flow is judged: when it has ended, or with the packet that completes its row (default end)",
    )  # fmt: skip
    parser.add_argument(
        "--stats", type=seconds, default=60.0, metavar="S", help="write counters every so many seconds (default 60)"
    )
    add_alarm_options(parser)
    add_zeek_log(parser)
    add_midstream(parser)
    parser.add_argument("--write-pcap", metavar="FILE", help="add the packets of the flow of each alarm, as pcapng")
    parser.add_argument(
        "--ring", type=positive, default=64, metavar="MIB", help="memory for the last packets (default 64)"
    )
    of_interface = parser.add_argument_group("of an interface")
    of_interface.add_argument("--filter", metavar="BPF", help="capture what the filter lets through alone")
    of_interface.add_argument("--snaplen", type=positive, metavar="N", help="capture so many bytes of each packet")
    of_folder = parser.add_argument_group("of a folder")
    of_folder.add_argument(
        "--settle", type=seconds, default=10.0, metavar="S",
        help="take a file when it has not changed for so long, or another one was written to later (default 10)",
    )  # fmt: skip
    of_folder.add_argument(
        "--state", metavar="FILE",
        help="file that says how far the folder was read (default: beside the folder, FOLDER.docids-state)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Watch until the source ends or a signal says stop."""
    if os.name != "posix":
        raise ValueError("docids watch needs pipes and signals as POSIX has them; docids score reads files")
    from sklearn_docids._watch.signals import Signals

    kind = kind_of(args.source)
    _check(args, kind)
    with Signals() as signals, ExitStack() as stack:
        source = _source(args, kind, signals)
        stack.callback(source.close)
        if kind == "folder":
            stack.callback(_lock(args).close)
        _watch(args, kind, signals, source)


def kind_of(source: str) -> str:
    """Return what a source is: "stream", "folder" or "interface".

    Raises
    ------
    OSError
        There is nothing of this name, or it may not be read.
    """
    from sklearn_docids._watch.interfaces import interfaces

    if source == "-":
        if sys.stdin is None:
            raise ValueError("standard input is closed: there is nothing to read for -")
        return "stream"
    if os.sep not in source and source in [*interfaces(), "any"]:
        return "interface"
    try:
        mode = os.stat(source).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{source} is no file, pipe or folder, and no interface: there are {', '.join(interfaces())}"
        ) from None
    if not os.access(source, os.R_OK):
        raise PermissionError(f"{source} may not be read")
    return "folder" if stat.S_ISDIR(mode) else "stream"


def _check(args: argparse.Namespace, kind: str) -> None:
    """Refuse what can be refused before anything is loaded."""
    for option, wanted in (("--filter", "interface"), ("--snaplen", "interface"), ("--state", "folder")):
        if getattr(args, option[2:]) is not None and kind != wanted:
            raise ValueError(
                f"{option} is for {'an' if wanted == 'interface' else 'a'} {wanted}, not for {args.source}"
            )
    if kind == "folder":
        args.state = args.state or f"{os.path.abspath(args.source)}.docids-state"
        check_writable("--state", args.state, is_file=True)
    if args.filter is not None:
        from sklearn_docids._watch.interfaces import check_filter

        check_filter(args.filter)
    _check_outputs(args)
    check_model(args.model)


def _check_outputs(args: argparse.Namespace) -> None:
    from sklearn_docids._alarms.eve import output_kind

    if args.output == "-" and sys.stdout is None:
        raise ValueError("standard output is closed: --output names a file")
    inputs = [args.model, *(path for path in (args.source, args.allow_list, args.zeek_log) if path is not None)]
    for option, path in (("--output", args.output), ("--write-pcap", args.write_pcap)):
        if path is not None and path != "-":
            check_writable(option, path)
            if option == "--output":
                output_kind(path)
                check_spared(option, path, inputs)


def _lock(args: argparse.Namespace) -> Any:
    from sklearn_docids._watch.states import StateLock

    return StateLock(args.state)


def _source(args: argparse.Namespace, kind: str, signals: Signals) -> Any:
    from sklearn_docids._watch import folders, interfaces, streams

    if kind == "folder":
        return folders.FolderSource(args.source, signals, settle=args.settle, note=lambda text: note(args, text))
    if kind == "interface":
        helper = interfaces.started(args.source, args.filter, args.snaplen)
        return interfaces.InterfaceSource(args.source, helper, signals)
    if args.source == "-":
        return streams.StreamSource(os.dup(sys.stdin.fileno()), "standard input", signals)
    return streams.StreamSource(streams.opened(args.source), args.source, signals)


def _watch(args: argparse.Namespace, kind: str, signals: Signals, source: Any) -> None:
    """Load all that makes alarms of packets, and watch."""
    from sklearn_docids._watch.verdicts import Judge
    from sklearn_docids._watch.watcher import Plan, Watcher

    allow_list = loaded_allow_list(args)
    reload = Reload(args)
    detector = loaded_detector(args.model, args.midstream)
    source.window = detector.sampler_.reorder_window
    plan = Plan(early=args.verdict == "early", stats_every=args.stats, state=args.state)
    with ExitStack() as stack:
        stack.enter_context(named(args.output))
        desk = stack.enter_context(_desk(args, kind, detector))
        judge = Judge(detector, allow_list)
        note(args, f"watching {args.source}, with the model {args.model}")
        Watcher(
            source, judge, desk, signals, plan, note=lambda text: note(args, text), reload=reload
        ).run()  # fmt: skip


def _desk(args: argparse.Namespace, kind: str, detector: Any) -> Any:
    """Return the desk with its outputs."""
    from sklearn_docids._alarms.eve import AlarmWriter
    from sklearn_docids._alarms.incidents import IncidentTracker
    from sklearn_docids._watch.alarms import AlarmDesk

    tracker = IncidentTracker(level=args.level, window=args.window, per_day=args.alarms_per_day)
    lines = AlarmWriter(
        args.output, "eve" if args.output == "-" else None, model=args.model, sensor=args.sensor,
        interface=args.source if kind == "interface" else None, zeek=zeek_connections(args),
    )  # fmt: skip
    outputs: list[Any] = [lines]
    packets = None
    if args.write_pcap is not None:
        from sklearn_docids._alarms.packets import PacketRing
        from sklearn_docids._watch.alarms import PacketFile

        packets = PacketRing(args.ring * MEBIBYTE, sampler=detector.sampler_)
        outputs.append(PacketFile(args.write_pcap, packets))
    paths = [path for path in (args.output, args.write_pcap) if path is not None and path != "-"]
    return AlarmDesk(tracker, outputs, packets=packets, drift=drift_test(detector), paths=paths)


class Reload:
    """What SIGHUP does to the judge: the allow-list is read again, and the model, where its file is another one."""

    def __init__(self, args: argparse.Namespace):
        self._args = args
        self._stamp = self._stamp_now()

    def __call__(self, judge: Judge) -> Judge:
        """Return the judge to go on with; what cannot be read stays as it was, and that is said."""
        allow_list = judge.allow_list
        try:
            allow_list = loaded_allow_list(self._args)
        except (OSError, ValueError) as error:
            note(self._args, f"the allow-list stays as it was: {error}")
        return self._judge_of_the_file(judge, allow_list)

    def _judge_of_the_file(self, judge: Judge, allow_list: Any) -> Judge:
        from sklearn_docids._watch.verdicts import Judge

        try:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                judge = Judge(loaded_detector(self._args.model, self._args.midstream))
                self._stamp = stamp
                note(self._args, f"the model {self._args.model} was loaded again")
        except (ImportError, OSError, ValueError) as error:
            note(self._args, f"the model stays as it was: {error}")
        judge.allow_list = allow_list
        return judge

    def _stamp_now(self) -> tuple[int, ...]:
        found = os.stat(self._args.model)
        return found.st_ino, found.st_size, found.st_mtime_ns
