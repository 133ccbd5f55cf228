# SPDX-License-Identifier: BSD-3-Clause
"""Names that others chose, in output: the one rule for terminals and the one for cells of a CSV file; p-values."""

from __future__ import annotations

import re

# The protocols that make flows, by their numbers.
PROTOCOL_NAMES = {6: "tcp", 17: "udp"}
# What a spreadsheet takes for the beginning of a formula, at the beginning of a cell; for some a semicolon ends one
# (OWASP, "CSV Injection").
FORMULA_START = re.compile(r"(^|;)(\s*)(?=[=+\-@＝＋－＠])")
# Beyond the scores of calibration, a p-value is an extrapolation: how small it is says nothing.
LEAST_P_VALUE = 1e-6


def printable(text: object) -> str:
    """Return text as one line: whatever could steer a terminal, end a line or not be encoded is spelled out."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def csv_cell(name: str) -> str:
    """Return a name for a CSV file: `printable`, and with an apostrophe wherever it would begin a formula."""
    return FORMULA_START.sub(r"\1\2'", printable(name))


def format_p_value(p_value: float) -> str:
    """Return a p-value, but for extrapolations: those are smaller than any that could be counted."""
    return f"{p_value:.2g}" if p_value >= LEAST_P_VALUE else f"<{LEAST_P_VALUE:.0e}"
