# SPDX-License-Identifier: BSD-3-Clause
"""What makes alarms of abnormal flows: options that several commands have, and what they stand for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sklearn_docids.cli._text import note
from sklearn_docids.cli._values import positive, seconds

if TYPE_CHECKING:
    from sklearn_docids._alarms.allow import AllowList
    from sklearn_docids._alarms.zeek import ZeekConnections


def add_alarm_options(parser: argparse.ArgumentParser) -> None:
    """Add what makes alarms of abnormal flows."""
    parser.add_argument("--allow-list", metavar="FILE", help="rules that hide what is known: see docids allow")
    parser.add_argument(
        "--level", default="channel", choices=("channel", "host"),
        help="what an incident is of: a channel, joined to its host where that has more than ten; or a host "
        "(default channel)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=seconds, default=3600.0, metavar="S",
        help="an abnormal flow belongs to an incident whose last one began so many seconds before (default 3600)",
    )  # fmt: skip
    parser.add_argument(
        "--alarms-per-day", type=positive, metavar="N",
        help="a budget: beyond it, only what is more abnormal than all of the last day comes up; the rest is counted",
    )  # fmt: skip


def add_zeek_log(parser: argparse.ArgumentParser) -> None:
    """Add the log of Zeek."""
    parser.add_argument("--zeek-log", metavar="FILE", help="conn.log of Zeek: its uid goes into lines of EVE")


def loaded_allow_list(args: argparse.Namespace) -> AllowList | None:
    """Return the rules that the command line names; say which of them have expired."""
    if args.allow_list is None:
        return None
    from sklearn_docids._alarms.allow import AllowList

    allow_list = AllowList.load(args.allow_list)
    note(args, *allow_list.described([0] * len(allow_list.rules), 0))  # those that have expired
    return allow_list


def zeek_connections(args: argparse.Namespace) -> ZeekConnections | None:
    """Return the connections that Zeek has logged, if the command line names its log."""
    if args.zeek_log is None:
        return None
    from sklearn_docids._alarms.zeek import ZeekConnections

    return ZeekConnections(args.zeek_log)


def drift_test(detector: Any) -> Any:
    """Return a test for drift; None for a model that knows nothing of the channels of its calibration."""
    from sklearn_docids.monitoring import DriftMonitor

    normal = getattr(detector, "thinned_scores_", ())
    return DriftMonitor(normal, random_state=0) if len(normal) else None
