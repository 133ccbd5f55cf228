# SPDX-License-Identifier: BSD-3-Clause
"""Labels of flows by a published schedule: a table of rules in a file, and one function that applies it.

A rule names a time window, two sets of addresses, and bounds on ports, packets and payload bytes. Cells of the table:
``21`` one value, ``33358 33360`` one of several, ``!33372`` all but these, ``1..281``, ``..32`` and ``150..`` ranges
with both ends; an empty cell allows anything. Times are UTC, both ends inside.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

NORMAL = "normal"
NOT_ATTEMPTED = -1
# Columns of a rule and of the flow table; the second name is that of a flow whose source is the rule's destination.
ORIENTED = {
    "source_port": ("src_port", "dst_port"),
    "destination_port": ("dst_port", "src_port"),
    "packets_forward": ("packets_forward", "packets_backward"),
    "packets_backward": ("packets_backward", "packets_forward"),
    "payload_forward": ("payload_forward", "payload_backward"),
    "payload_backward": ("payload_backward", "payload_forward"),
}


@dataclass(frozen=True)
class Rule:
    """One line of a schedule."""

    label: str
    attempted: int  # category of an attack that was only tried, NOT_ATTEMPTED if it was carried out
    start: int  # ns since 1970, UTC
    end: int
    source: frozenset[str]
    destination: frozenset[str]
    bounds: dict[str, str]  # cells that are not empty, by column


def read_schedule(name: str) -> list[Rule]:
    """Return the rules of a table of this package."""
    rules = []
    with files("sklearn_docids.datasets").joinpath(name).open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            rules.append(
                Rule(
                    label=line["label"],
                    attempted=int(line["attempted"] or NOT_ATTEMPTED),
                    start=int(np.datetime64(line["start"], "ns").astype(np.int64)),
                    end=int(np.datetime64(line["end"], "ns").astype(np.int64)),
                    source=frozenset(line["source"].split()),
                    destination=frozenset(line["destination"].split()),
                    bounds={column: line[column] for column in ORIENTED if line[column]},
                )
            )
    return rules


def within(values: np.ndarray, cell: str) -> np.ndarray:
    """Return which values a cell allows."""
    if ".." in cell:
        low, high = cell.split("..")
        return (values >= int(low or 0)) & (values <= int(high or np.iinfo(np.int64).max))
    chosen = np.isin(values, [int(value) for value in cell.removeprefix("!").split()])
    return ~chosen if cell.startswith("!") else chosen


def label_flows(flows: FlowTable, rules: list[Rule]) -> tuple[np.ndarray, np.ndarray]:
    """Return label and category of attempt of each flow; the last rule that fits decides.

    The first packet of a flow must lie in the window. A flow that was seen from its answer on has source and
    destination exchanged, and is labelled all the same.

    Returns
    -------
    labels : ndarray of str, shape (n_flows,)
        ``"normal"`` where no rule fits.
    attempted : ndarray of int64, shape (n_flows,)
        Category of an attack that was only tried, -1 otherwise.
    """
    labels = np.full(len(flows), NORMAL, dtype=object)
    attempted = np.full(len(flows), NOT_ATTEMPTED)
    for rule in rules:
        rows = np.flatnonzero((flows.time_first >= rule.start) & (flows.time_first <= rule.end))
        for orientation, (source, destination) in enumerate([("src_ip", "dst_ip"), ("dst_ip", "src_ip")]):
            fits = np.isin(flows[source][rows], list(rule.source))
            fits &= np.isin(flows[destination][rows], list(rule.destination))
            for column, cell in rule.bounds.items():
                fits &= within(flows[ORIENTED[column][orientation]][rows], cell)
            labels[rows[fits]] = rule.label
            attempted[rows[fits]] = rule.attempted
    return labels.astype(str), attempted
