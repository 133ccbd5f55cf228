# SPDX-License-Identifier: BSD-3-Clause
"""Scored flows as a table with a line per flow, in the format that a file's name asks for."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import numpy as np

from sklearn_docids._text import PROTOCOL_NAMES, csv_cell
from sklearn_docids.cli._text import main_reason

if TYPE_CHECKING:
    from sklearn_docids._alarms.collect import Scored

CSV, JSON_LINES, PARQUET, EVE = "CSV", "JSON lines", "Parquet", "EVE"
# The end of a name says what a file is; Suricata calls its own eve.json.
SUFFIXES = {
    ".csv": CSV, ".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".parquet": PARQUET, ".json": EVE, ".eve": EVE,
}  # fmt: skip
SIZES = ("packets_forward", "packets_backward", "bytes_forward", "bytes_backward")
COLUMNS = (
    "capture", "time_first", "time_last", "duration", "src_ip", "src_port", "dst_ip", "dst_port", "protocol", *SIZES,
    "begin", "end", "community_id", "score", "threshold", "p_value", "verdict",
)  # fmt: skip


def format_of(option: str, path: str) -> str:
    """Return the format that a name asks for; that of a device or pipe is CSV.

    Raises
    ------
    ValueError
        It asks for none.
    """
    for suffix, name in SUFFIXES.items():
        if path.endswith(suffix):
            return name
    if path == "-" or path.startswith(("/dev/", "/proc/")):
        return CSV
    raise ValueError(
        f"{option} {path}: the end of the name says what to write, {', '.join(SUFFIXES)}: CSV, JSON lines, Parquet, EVE"
    )


class FlowWriter(Protocol):
    """A table of flows in some format."""

    def add(self, scored: Scored) -> None:
        """Write lines of scored flows."""

    def close(self) -> None:
        """Write what is left."""


def columns_of(scored: Scored) -> dict[str, Sequence[Any]]:
    """Return what a table says of flows, a column per name.

    Times are UTC, in ISO 8601 with microseconds; ``duration`` is in seconds.
    """
    flows = scored.flows
    names = np.array([csv_cell(name) for name in flows.captures], dtype=object)
    columns: dict[str, Sequence[Any]] = {
        "capture": names[flows.capture].tolist(),
        "time_first": times(flows.time_first).tolist(),
        "time_last": times(flows.time_last).tolist(),
        "duration": ((flows.time_last - flows.time_first) / 1e9).tolist(),
        "src_ip": flows.src_ip.tolist(),
        "src_port": flows.src_port.tolist(),
        "dst_ip": flows.dst_ip.tolist(),
        "dst_port": flows.dst_port.tolist(),
        "protocol": [PROTOCOL_NAMES[protocol] for protocol in flows.protocol.tolist()],
        **{name: flows[name].tolist() for name in SIZES},
        "begin": flows.begin.tolist(),
        "end": flows.end.tolist(),
        "community_id": flows.community_id.tolist(),
        "score": scored.scores.tolist(),
        "threshold": [scored.threshold] * len(flows),
        "p_value": scored.p_values.tolist(),
        "verdict": scored.verdicts.tolist(),
    }
    if scored.reasons is not None:
        reasons = {row: csv_cell(main_reason(found)) for row, found in scored.reasons.items()}
        columns["reason"] = [reasons.get(row, "") for row in range(len(flows))]
    return columns


def times(nanoseconds: np.ndarray) -> np.ndarray:
    """Return ISO 8601 times with microseconds."""
    return np.char.add(np.datetime_as_string(nanoseconds.astype("datetime64[ns]"), unit="us"), "Z")


class CsvTable:
    """A CSV file with a head; a detector with views gives a reason of each abnormal flow."""

    def __init__(self, file: TextIO, *, has_reasons: bool):
        self._table = csv.writer(file, lineterminator="\n")
        self._table.writerow((*COLUMNS, "reason") if has_reasons else COLUMNS)

    def add(self, scored: Scored) -> None:
        """Write lines of scored flows."""
        self._table.writerows(zip(*columns_of(scored).values(), strict=True))

    def close(self) -> None:
        """Leave the file as it is."""


class JsonLines:
    """A JSON object per line; null stands for a number that is none."""

    def __init__(self, file: TextIO):
        self._file = file

    def add(self, scored: Scored) -> None:
        """Write lines of scored flows."""
        columns = columns_of(scored)
        columns["p_value"] = [None if math.isnan(value) else value for value in columns["p_value"]]
        for values in zip(*columns.values(), strict=True):
            self._file.write(json.dumps(dict(zip(columns, values, strict=True))) + "\n")

    def close(self) -> None:
        """Leave the file as it is."""


class ParquetTable:
    """A Parquet file, for pandas, DuckDB, Spark and others; times are UTC timestamps."""

    def __init__(self, path: str):
        self._path = path
        self._writer: Any = None

    def add(self, scored: Scored) -> None:
        """Write a group of rows."""
        import pyarrow
        import pyarrow.parquet

        columns: dict[str, Any] = dict(columns_of(scored))
        for name in ("time_first", "time_last"):
            columns[name] = pyarrow.array(scored.flows[name], pyarrow.timestamp("ns", "UTC"))
        table = pyarrow.table(columns)
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """Write the end of the file."""
        import pyarrow
        import pyarrow.parquet

        if self._writer is None:  # no flows
            pyarrow.parquet.write_table(pyarrow.table({name: [] for name in COLUMNS}), self._path)
        else:
            self._writer.close()
