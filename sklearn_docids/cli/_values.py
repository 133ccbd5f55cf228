# SPDX-License-Identifier: BSD-3-Clause
"""Texts of options to values: numbers of things, times, rates, seeds."""

from __future__ import annotations

import argparse

MAX_RATE = 0.5


def positive(text: str) -> int:
    """Return a number of things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def seconds(text: str) -> float:
    """Return a time, longer than nothing."""
    value = _number(text, "seconds")
    if not 1e-9 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def rate(text: str) -> float:
    """Return a rate of false alarms."""
    value = _number(text, "flows, such as 0.01")
    if not 0 < value <= MAX_RATE:
        raise argparse.ArgumentTypeError(f"{text} is no rate above 0 and up to {MAX_RATE:g}")
    return value


def seed(text: str) -> int:
    """Return a seed as scikit-learn takes it."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def _number(text: str, of_what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of {of_what}") from None


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add the seed."""
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of all that is drawn (default 0)")
