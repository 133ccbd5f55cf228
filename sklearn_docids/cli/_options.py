# SPDX-License-Identifier: BSD-3-Clause
"""Options made of the parameters of a class, read from its source: to import it would take seconds."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).parent.parent
SAMPLER = "_sampler.py", "FlowSampler"
SEVERAL_VIEWS = "detectors/_multiview.py", "MultiViewDetector"
NETWORK = "detectors/_docids.py", "DOCIDSDetector"
# What no command line can give, or what each command decides for itself.
NO_OPTIONS = {"callbacks", "detector", "output", "verbose", "warm_start"}
# Parameters that have a name of their own on the command line.
SHORT = {"n_jobs": "--jobs", "random_state": "--seed"}
# Parameters of functions that options are handed to.
OTHERS = ("level", "per_day", "window")
TEXTS = ("path", "str")
# A value as errors print it. No file is called so, unless it has a space or an end behind a number.
VALUE = r"(?:'[^']*'|None|[-+.\de]+)(?=[\s,;:)]|$)"


class Parameter(NamedTuple):
    """A parameter as its class documents it."""

    name: str
    kind: str  # "float or None"
    default: str  # as documented; empty where there is none
    help: str  # its first sentence

    @property
    def option(self) -> str:
        """What it is called on the command line."""
        return SHORT.get(self.name, f"--{self.name.replace('_', '-')}")


@cache
def parameters_of(module: str, name: str) -> tuple[Parameter, ...]:
    """Return the parameters of a class of the package that options can give."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    text = (ast.get_docstring(found, clean=False) or "").replace("\\\n", "")
    section = cleandoc(text).split("Parameters\n----------\n")[1].split("\n\n")[0]
    return tuple(parameter for parameter in _parsed(section) if parameter.name not in NO_OPTIONS)


def _parsed(section: str) -> Iterator[Parameter]:
    """Yield the parameters of a section of a docstring in numpydoc's format."""
    for entry in re.split(r"\n(?=\w)", section):
        head, _, body = entry.partition("\n")
        name, _, kind = head.partition(" : ")
        kind, _, default = kind.partition(", default=")
        text = re.sub(r"\s+", " ", re.sub(r"`| \[\d\]_", "", body)).strip()
        yield Parameter(name, kind, default.strip("()").replace('"', ""), text.split(". ")[0].rstrip("."))


def add_parameters(
    parser: argparse.ArgumentParser, title: str, source: tuple[str, str], left_out: Sequence[str] = ()
) -> None:
    """Add an option for each parameter of a class; those that are not given leave nothing behind."""
    group = parser.add_argument_group(title)
    for parameter in parameters_of(*source):
        if parameter.name not in left_out and parameter.option not in parser._option_string_actions:
            group.add_argument(
                parameter.option, dest=parameter.name, default=argparse.SUPPRESS, help=_help(parameter),
                **_how(parameter),
            )  # fmt: skip


def _help(parameter: Parameter) -> str:
    default = {"True": "yes", "False": "no"}.get(parameter.default, parameter.default)
    text = parameter.help + (f" (default {default})" if default else "")
    # An abbreviation stays as it is.
    return (text if text[1:2].isupper() else text[:1].lower() + text[1:]).replace("%", "%%")


def _how(parameter: Parameter) -> dict[str, Any]:
    """Return how the text of an option becomes a value."""
    metavar = parameter.option[2:].rpartition("-")[2].upper()
    if parameter.name == "n_jobs":
        return {"type": _threads, "metavar": "N"}
    if parameter.kind == "bool":
        return {"action": argparse.BooleanOptionalAction}
    choices = re.match(r"\{(.+?)\}", parameter.kind)
    if choices and not parameter.kind.startswith("tuple"):
        return {"choices": tuple(_value(each.strip().strip('"')) for each in choices[1].split(",")), "type": _value}
    if parameter.kind.startswith(("tuple", "sequence")):
        return {"type": _values, "metavar": f"{metavar},..."}
    return {"type": str if parameter.kind.startswith(TEXTS) else _value, "metavar": metavar}


def _value(text: str) -> Any:
    """Return a number where text is one, None for "none"; else the text, which the class may take or refuse."""
    if text.lower() == "none":
        return None
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _threads(text: str) -> int:
    if not re.fullmatch(r"-?\d+", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of threads; -1 is one per core")
    return int(text)


def _values(text: str) -> tuple[Any, ...]:
    return tuple(_value(part.strip()) for part in text.split(","))


def given(args: argparse.Namespace, source: tuple[str, str]) -> dict[str, Any]:
    """Return the parameters of a class that the command line or the config file gives."""
    names = {parameter.name for parameter in parameters_of(*source)}
    return {name: value for name, value in vars(args).items() if name in names}


def in_options(text: str) -> str:
    """Return text with options of the command line in place of parameters of Python."""

    def option(found: re.Match[str]) -> str:
        return options[found["named"]] if found["named"] else f"{options[found['given']]} "

    options = _options()
    names = "|".join(options)
    named = rf"The '(?P<named>{names})' parameter of \w+"
    return re.sub(rf"(?:(?<=\s)|^)(?:{named}|(?P<given>{names})=(?={VALUE}))", option, text)


@cache
def _options() -> dict[str, str]:
    """Return what each parameter is called on the command line."""
    of_classes = [parameter for source in (SAMPLER, SEVERAL_VIEWS, NETWORK) for parameter in parameters_of(*source)]
    others = [Parameter(name, "", "", "") for name in OTHERS]
    return {parameter.name: parameter.option for parameter in [*of_classes, *others]}
