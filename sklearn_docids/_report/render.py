# SPDX-License-Identifier: BSD-3-Clause
"""From values to a page, by the templates beside this module: what is not markup is spelled out and escaped."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sklearn_docids._text import format_p_value, printable
from sklearn_docids._version import __version__


def write(path: str | os.PathLike[str], template: str, **values: Any) -> None:
    """Write the page that a template makes of values."""
    now = np.datetime64("now", "ns").astype(np.int64)
    parts = _environment().get_template(template).generate(version=__version__, now=int(now), **values)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(parts)


def moment(time_ns: int) -> str:
    """Return a time of UTC, in whole seconds."""
    return str(np.datetime64(time_ns, "ns").astype("datetime64[s]")).replace("T", " ")


def counted(n: int, thing: str) -> str:
    """Return how many things there are: ``1 flow``, ``1,200 flows``."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def percent(share: float) -> str:
    """Return a share in per cent, exact enough to tell a small one from none."""
    return f"{100 * share:.3g} %"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sklearn_docids._report"), autoescape=True, undefined=StrictUndefined, finalize=_spelled,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "counted": counted,
        "moment": moment,
        "number": lambda value: f"{value:,}",
        "p_value": format_p_value,
        "percent": percent,
        "score": lambda value: f"{value:.4g}",
    }
    return environment


def _spelled(value: Any) -> Any:
    """Spell out characters that steer, such as those that turn the direction of reading, wherever a value is shown."""
    return value if isinstance(value, Markup) else printable(value)
