# SPDX-License-Identifier: BSD-3-Clause
"""``docids allow``: rules that hide alarms, made of an alarm, and what they hide of those that are stored."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from sklearn_docids._text import printable
from sklearn_docids.cli._outputs import check_writable, replacing

if TYPE_CHECKING:
    from sklearn_docids._alarms.allow import AllowList, AllowRule
    from sklearn_docids._alarms.stored import StoredAlarm

HELP = "hide alarms by rules made of an alarm; show what rules hide of stored alarms"
DEFAULT_LIST = "allow.toml"
SCOPES = ("channel", "host", "service")
N_SHOWN = 5
STDIN = "-"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Add a rule to an allow-list that hides an alarm and those like it, after a preview of what it would have "
        "hidden; or, with --apply, print the alarms that an allow-list leaves. Alarms are lines of EVE, of JSON or of "
        "CSV that docids wrote. docids score and docids watch take the same list."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--from", dest="alarm", metavar="ALARM",
        help="alarm to make the rule of: FILE:N, line N of a file; a file with one alarm, or with --id; - is standard "
        "input",
    )  # fmt: skip
    what.add_argument(
        "--apply",
        metavar="FILE",
        help="print the lines of a file whose alarms the list does not hide; - is standard input",
    )
    parser.add_argument("--id", metavar="ID", help="incident of the alarm, where --from has several")
    parser.add_argument("--why", metavar="TEXT", help="why this is no alarm; the rule keeps it")
    parser.add_argument("--list", default=DEFAULT_LIST, metavar="FILE", help=f"allow-list (default {DEFAULT_LIST})")
    parser.add_argument(
        "--scope", choices=SCOPES,
        help="what the rule hides: flows of this channel (source, destination, service), all of this host as source, "
        "or all to this service of the destination (default: the level of the alarm)",
    )  # fmt: skip
    parser.add_argument(
        "--until", metavar="TIME", help="end of the rule: a day, 2026-12-31 (UTC), or a time with zone (default: none)"
    )
    parser.add_argument(
        "--preview",
        metavar="FILE",
        help="stored alarms to count what the rule would have hidden (default: those of --from)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the rule and the preview; write nothing")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.apply is not None:
        given = [name for name in ("id", "why", "scope", "until", "preview") if getattr(args, name) is not None]
        if given:
            raise ValueError(f"--{given[0]} goes with --from, which makes a rule; --apply only reads the list")
        _apply(args.list, args.apply)
    else:
        _allow(args)


def _say(*lines: str) -> None:
    for line in lines:
        print(printable(line), file=sys.stderr)


def _write(data: bytes) -> None:
    if sys.stdout is None:
        raise ValueError("standard output is closed: there is nowhere to print to")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Open a file of alarms, or standard input."""
    if path != STDIN:
        with open(path, "rb") as file:
            yield file
    elif sys.stdin is None:
        raise ValueError("standard input is closed: there is nothing to read for -")
    else:
        yield sys.stdin.buffer


# --------------------------------------------------------------------------------------------------------------------
# What a list hides


def _apply(list_path: str, alarms_path: str) -> None:
    """Print the lines that stay, and say what was hidden."""
    import numpy as np

    from sklearn_docids._alarms.allow import NOT_HIDDEN, AllowList
    from sklearn_docids._alarms.stored import facts_of, in_groups, read_lines

    rules = AllowList.load(list_path)
    n_hidden, n_alarms, n_others = np.zeros(len(rules.rules), np.int64), 0, 0
    with _opened(alarms_path) as file:
        for lines in in_groups(read_lines(file)):
            alarms = [line.alarm for line in lines if line.alarm is not None]
            found = rules.first_fitting(facts_of(alarms))
            n_hidden += np.bincount(found[found != NOT_HIDDEN], minlength=len(n_hidden))
            n_alarms += len(alarms)
            n_others += len(lines) - len(alarms)
            hidden = iter((found != NOT_HIDDEN).tolist())
            stays = [line.text for line in lines if line.alarm is None or not next(hidden)]
            _write(b"".join(stays))
    total = int(n_hidden.sum())
    _say(f"{n_alarms} alarms, {total} of them hidden, {n_alarms - total} stay", *rules.described(n_hidden, n_alarms))
    if n_others:
        _say(f"{n_others} lines are no alarms of docids, and stay")


# --------------------------------------------------------------------------------------------------------------------
# A new rule


def _allow(args: argparse.Namespace) -> None:
    """Add a rule to the list."""
    from sklearn_docids._alarms.allow import AllowList

    if not args.why or not args.why.strip():
        raise ValueError("--why is missing: say in a few words why this is no alarm")
    if not args.dry_run:
        check_writable("--list", args.list, is_file=True)
    until = None if args.until is None else _end(args.until)
    before = _content(args.list)
    rules = AllowList.parse(before, args.list)
    alarms, alarm = _chosen(args.alarm, args.id)
    text = _rule_text(alarm, args.scope or alarm.level, args.why, until)
    after = before + _gap(before) + text.encode()
    rule = AllowList.parse(after, args.list).rules[-1]
    _check_is_new(rules, rule, alarm, args.list)
    _preview(rule, args.alarm, alarms if args.preview is None else _alarms_in(args.preview), args.list)
    _write(text.encode())
    if args.dry_run:
        _say(f"--dry-run: {args.list} stays as it is")
    else:
        with replacing(os.path.realpath(args.list)) as part, open(part, "wb") as file:
            file.write(after)
            file.flush()
            os.fsync(file.fileno())
        _say(f"added to {args.list} as rule {rule.number}")


def _content(path: str) -> bytes:
    """Return what a list holds; nothing if there is none yet."""
    from sklearn_docids._alarms.allow import MAX_BYTES

    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return b""


def _gap(before: bytes) -> bytes:
    """Return what goes between the rules that are there and a new one."""
    if not before:
        return b""
    return b"\n" if before.endswith(b"\n") else b"\n\n"


def _end(text: str) -> str:
    """Return the end of a rule as TOML has it, if that is to come."""
    from datetime import UTC, date, datetime

    from sklearn_docids._alarms.allow import until

    try:
        value = date.fromisoformat(text) if len(text) == len("2026-12-31") else datetime.fromisoformat(text)
        end = until(value)
    except (ValueError, OverflowError):
        raise ValueError(
            f"--until {text} is no day, such as 2026-12-31, and no time with zone, such as 2026-12-31T18:00:00Z"
        ) from None
    if end < datetime.now(UTC):
        raise ValueError(f"--until {text} is over, so the rule would hide nothing")
    return value.isoformat()


def _alarms_in(path: str) -> list[StoredAlarm]:
    """Return the alarms of a file, which must have some."""
    from sklearn_docids._alarms.stored import read_lines

    with _opened(path) as file:
        alarms = [line.alarm for line in read_lines(file) if line.alarm is not None]
    if not alarms:
        raise ValueError(f"{_called(path)} holds no alarm that docids wrote as EVE, JSON lines or CSV")
    return alarms


def _called(path: str) -> str:
    return "standard input" if path == STDIN else path


def _chosen(given: str, incident: str | None) -> tuple[list[StoredAlarm], StoredAlarm]:
    """Return the alarms of a file and the one that is meant."""
    path, _, number = given.rpartition(":")
    if path and number.isdecimal() and not os.path.exists(given):
        if incident is not None:
            raise ValueError(f"--id names an incident, but --from {given} names a line already: give one of them")
        return _alarms_in(path), _alarm_at(path, int(number))
    alarms = _alarms_in(given)
    ids = list(dict.fromkeys(alarm.id for alarm in alarms))
    if incident is None and len(ids) == 1:
        incident = ids[0]
    found = [alarm for alarm in alarms if alarm.id == incident]
    if not found:
        what = f"--id {incident} is not among them" if incident is not None else "say which one is meant by --id ID"
        raise ValueError(f"{_called(given)} has alarms of {len(ids)} incidents, {what}: {_some(ids)}")
    return alarms, found[-1]  # it is the last that knows most of the incident


def _alarm_at(path: str, number: int) -> StoredAlarm:
    """Return the alarm in a line of a file."""
    from sklearn_docids._alarms.stored import read_lines

    with _opened(path) as file:
        line = next((line for line in read_lines(file) if line.number == number), None)
    if line is None or line.alarm is None:
        raise ValueError(f"{path} has no alarm in line {number}" if line else f"{path} has no line {number}")
    return line.alarm


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:N_SHOWN]) + (", ..." if len(ids) > N_SHOWN else "")


def _rule_text(alarm: StoredAlarm, scope: str, why: str, until: str | None) -> str:
    """Return a rule that hides an alarm, as TOML."""
    from datetime import UTC, datetime

    from sklearn_docids._alarms.names import PROTOCOLS

    protocol = next(name for name, number in PROTOCOLS.items() if number == alarm.protocol)
    source = {"source": _quoted(str(alarm.source))}
    service = {"destination": _quoted(str(alarm.destination)), "service": _quoted(f"{protocol}/{alarm.port}")}
    keys = {"host": source, "service": service, "channel": source | service}[scope] | {"why": _quoted(why)}
    if until is not None:
        keys["until"] = until
    keys["added"] = datetime.now(UTC).isoformat(timespec="seconds")
    return "[[rule]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())


def _quoted(text: str) -> str:
    """Return text as a TOML string."""
    import json

    # JSON's strings are TOML's, but for one character; surrogates are bytes of an argument that is no text.
    shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return json.dumps(shown, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check_is_new(rules: AllowList, new: AllowRule, alarm: StoredAlarm, path: str) -> None:
    """Refuse a rule for what is hidden already."""
    from sklearn_docids._alarms.allow import NOT_HIDDEN
    from sklearn_docids._alarms.stored import facts_of

    place = int(rules.first_fitting(facts_of([alarm]))[0])
    if place != NOT_HIDDEN:
        rule = rules.rules[place]
        same = "is the same" if rule.hides_the_same == new.hides_the_same else "hides this alarm already"
        raise ValueError(f"rule {rule.number} of {path} {same}: {rule.why}")


def _preview(rule: AllowRule, source: str, alarms: Sequence[StoredAlarm], path: str) -> None:
    """Say what the rule would have hidden of stored alarms."""
    from sklearn_docids._alarms.allow import NOT_HIDDEN, AllowList, hides_most
    from sklearn_docids._alarms.stored import facts_of

    found = AllowList([rule]).first_fitting(facts_of(alarms)) != NOT_HIDDEN
    hidden = [alarm for alarm, is_hidden in zip(alarms, found.tolist(), strict=True) if is_hidden]
    n_flows = _flows_by_incident(hidden)
    _say(
        f"rule {rule.number} of {path} would have hidden {len(hidden)} of {len(alarms)} alarms: "
        f"{len(n_flows)} incidents with {sum(n_flows.values())} flows",
        *(_line_of(alarm) for alarm in hidden[:N_SHOWN]),
    )
    if len(hidden) > N_SHOWN:
        _say(f"  ... and {len(hidden) - N_SHOWN} more")
    if len(alarms) > 1 and hides_most(len(hidden), len(alarms)):
        _say(f"that is {len(hidden) / len(alarms):.0%} of them: see whether the rule is wider than it should be")


def _flows_by_incident(alarms: Sequence[StoredAlarm]) -> dict[str, int]:
    """Return how many flows each incident had when it was last reported."""
    n_flows: dict[str, int] = {}
    for alarm in alarms:
        n_flows[alarm.id] = max(alarm.n_flows, n_flows.get(alarm.id, 0))
    return n_flows


def _line_of(alarm: StoredAlarm) -> str:
    destination = f"[{alarm.destination}]" if alarm.destination.version == 6 else str(alarm.destination)
    channel = "" if alarm.is_of_many else f" -> {destination}:{alarm.port}"
    return f"  {alarm.time}  {alarm.source}{channel}  {alarm.n_flows} flows  {alarm.reason}"
