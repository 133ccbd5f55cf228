# SPDX-License-Identifier: BSD-3-Clause
"""Options from a file: what ``--config`` names takes the place of defaults; the command line takes that of both."""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 2**20


def take_config(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Take over the options of the file that ``--config`` names, if it does.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no TOML or YAML, or holds what is no option, or no value of one.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(arguments)[0].config
    if path is None:
        return
    actions = {name: action for action in parser._actions for name in _names(action)}
    for name, value in _read(path).items():
        action = actions.get(str(name).replace("_", "-"))
        if action is None:
            nearest = difflib.get_close_matches(str(name).replace("_", "-"), actions, n=1)
            raise ValueError(f"{path}: there is no option {name}" + "".join(f": did you mean {n}?" for n in nearest))
        _set_default(parser, action, value, f"{path}: {name}")


def _names(action: argparse.Action) -> list[str]:
    """Return what a file calls an option, or the captures."""
    if action.dest in ("help", "config"):
        return []
    return [option[2:] for option in action.option_strings if option.startswith("--")] or [action.dest]


def _read(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: a file of options is smaller than {MAX_BYTES} bytes")
    is_yaml = Path(path).suffix in (".yaml", ".yml")
    try:
        found = _from_yaml(data) if is_yaml else tomllib.loads(data.decode())
    except ValueError as error:  # also where it is not UTF-8
        raise ValueError(f"{path}: no {'YAML' if is_yaml else 'TOML'}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a file of options has a name and a value in each line")
    return found


def _from_yaml(data: bytes) -> Any:
    import yaml

    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(error) from None


def _set_default(parser: argparse.ArgumentParser, action: argparse.Action, value: Any, place: str) -> None:
    """Take a value as if the command line had it; what is given there takes its place."""
    try:
        parser.set_defaults(**{action.dest: _converted(parser, action, value)})
    except (argparse.ArgumentError, argparse.ArgumentTypeError, ValueError, TypeError) as error:
        reason = error.message if isinstance(error, argparse.ArgumentError) else error
        raise ValueError(f"{place} = {value!r}: {reason}") from None
    action.required = False
    if not action.option_strings:
        action.nargs = "*"


def _converted(parser: argparse.ArgumentParser, action: argparse.Action, value: Any) -> Any:
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise ValueError("it is true or false")
        return value
    if isinstance(value, dict):  # the actions of header fields
        return value
    takes_many = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
    if takes_many:
        return [_one(parser, action, each) for each in (value if isinstance(value, list) else [value])]
    return _one(parser, action, ",".join(map(str, value)) if isinstance(value, list) else value)


def _one(parser: argparse.ArgumentParser, action: argparse.Action, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("it is a number or text")
    converted = parser._get_value(action, str(value))
    parser._check_value(action, converted)
    return converted
