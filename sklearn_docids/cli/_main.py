# SPDX-License-Identifier: BSD-3-Clause
"""The command line ``docids``: which commands there are, and what errors, warnings and Ctrl-C become."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import sys
import textwrap
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from sklearn_docids._text import printable
from sklearn_docids._version import __version__
from sklearn_docids._warn import missing
from sklearn_docids.cli._config import take_config
from sklearn_docids.cli._options import in_options

# What each command does stands here, so that the list of them imports none of them.
COMMANDS = {
    "demo": "train and score on the bundled testbed, in about two minutes",
    "fit": "train a detector on captures of normal traffic",
    "score": "find what is abnormal in captures: incidents, the most abnormal first, with reasons",
    "report": "write a page for people of what is abnormal in captures",
    "watch": "raise alarms on traffic as it comes: an interface, a pipe, a folder that a capture writes into",
    "explain": "show what makes the most abnormal flows of captures abnormal",
    "allow": "make a rule of an alarm, which hides others like it, and apply rules to stored alarms",
    "info": "show what a model learned from, and what its threshold is worth",
    "calibrate": "set the threshold of a model anew, by other normal traffic, without training",
    "evaluate": "measure how well a trained detector finds attacks in captures",
    "sample": "write the flow bytes of captures as an array",
}
FAILED, UNUSABLE, INTERRUPTED, READER_GONE = 1, 2, 130, 141
EPILOG = f"""\
first alarm in two commands:
  docids fit monday.pcap --model office.model
  docids score tuesday.pcap --model office.model

`docids COMMAND --help` lists the options of a command. Standard output is data alone; messages, warnings and progress
go to standard error.

exit status:
  0    success
  {FAILED}    input, output or a setting cannot be used, or no packet that was read is in a flow
  {UNUSABLE}    the command line makes no sense
  {INTERRUPTED}  Ctrl-C
  {READER_GONE}  the reader of standard output has gone
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, as the help says.

    Guide: :doc:`/reference/command-line`.
    """
    if sys.stderr is None:  # closed: print would take standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)  # each damaged capture, not only the first
        warnings.showwarning = _show_warning
        status = _status_of(list(sys.argv[1:] if arguments is None else arguments))
    return _flush(status)


def _status_of(arguments: list[str]) -> int:
    try:
        command, args = _parsed(arguments)
        command.run(args)
    except BrokenPipeError:  # the reader of our output has seen enough
        return READER_GONE
    except (ImportError, OSError, ValueError) as error:
        return _failed(error)
    except KeyboardInterrupt as interrupt:
        print("docids: interrupted" + "".join(f": {printable(why)}" for why in interrupt.args), file=sys.stderr)
        return INTERRUPTED
    return 0


def _parsed(arguments: list[str]) -> tuple[ModuleType, argparse.Namespace]:
    """Return the module of the command and what the command line and its config file say."""
    parser = _Parser(
        prog="docids", description="Network anomaly detection from raw packets (DOC-IDS).", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"docids {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command", title="commands")
    for name, summary in COMMANDS.items():
        # What is not asked for is neither imported nor built.
        if name in arguments[:1]:
            module = import_module(f"sklearn_docids.cli._{name}")
            _add_command(commands, name, summary, module)
        else:
            commands.add_parser(name, help=summary, add_help=False)
    args = parser.parse_args(arguments)
    args.given = shlex.join(["docids", *arguments])
    return module, args


def _add_command(commands: Any, name: str, summary: str, module: ModuleType) -> None:
    paragraphs = (module.__doc__ or "").split("\n\n")
    description = "\n\n".join(textwrap.fill(" ".join(text.split()), 79) for text in paragraphs[1:] or paragraphs)
    parser = commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_options(parser)
    parser.add_argument("--config", metavar="FILE", help="TOML or YAML file with options, named as here without --")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress and no notes; warnings stay")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more about what is done")
    parser.checks_options = True


class _Parser(argparse.ArgumentParser):
    """A parser that names a mistyped option, and repeats no control characters, which names of files may hold."""

    checks_options = False

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.checks_options:
            self._check_options(args)
            if "--help" not in args and "-h" not in args:
                take_config(self, args)
        return super().parse_known_args(args, namespace)

    def _check_options(self, args: Sequence[str]) -> None:
        """Name the first unknown option: argparse would first miss those that are required."""
        for arg in args:
            if arg == "--":
                return
            name = arg.partition("=")[0]
            if re.match("--[a-z]", name) and name not in self._option_string_actions:
                nearest = difflib.get_close_matches(name, self._option_string_actions, n=1)
                self.error(f"there is no option {name}" + "".join(f": did you mean {option}?" for option in nearest))

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += "; an option takes one value, and may be given again"
        super().error(printable(message))


def _failed(error: Exception) -> int:
    if isinstance(error, ModuleNotFoundError) and error.name:
        error = missing("this", error.name.partition(".")[0])
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
