# SPDX-License-Identifier: BSD-3-Clause
"""What files of flows hold, read and checked: whoever wrote them may be hostile, and compiled code checks no bounds."""

from __future__ import annotations

import json
import tokenize
import zipfile
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from sklearn_docids.capture import folders, kernels
from sklearn_docids.capture.flows import FlowRows
from sklearn_docids.capture.headers import LINK_TYPES
from sklearn_docids.capture.shards import mapped_array

# Records are checked in groups that stay in the processor's caches, as each check reads all of their memory.
RECORDS_AT_ONCE = 2**13
# What json, zipfile, numpy and pyarrow raise of a file that holds something else, or is damaged.
OTHER_CONTENT = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, RuntimeError, zipfile.BadZipFile,
    tokenize.TokenError,
)  # fmt: skip

Counters: TypeAlias = "list[dict[str, int]]"
# Flows, the capture of each, and per capture its name, its counters, and what was ignored.
Parts: TypeAlias = "tuple[FlowRows, np.ndarray, list[str], Counters, Counters]"


def described(text: bytes) -> tuple[str, tuple[list[str], Counters, Counters]]:
    """Return the layout of a file, and what it says of each capture."""
    found = json.loads(text)
    return found["layout"], (list(found["captures"]), list(found["counters"]), list(found["ignored"]))


def checked(rows: FlowRows, capture: np.ndarray, captures: list[str], counters: Counters, ignored: Counters) -> Parts:
    """Return the parts of a table read from a file, if they fit together."""
    check_rows(rows)
    check_captures(captures, counters, ignored)
    if not (
        (capture.dtype, capture.shape) == (np.dtype(np.int64), (len(rows),))
        and (len(capture) == 0 or 0 <= capture.min() <= capture.max() < len(captures))
    ):
        raise ValueError("its parts do not fit together")
    return rows, capture, captures, counters, ignored


def check_captures(captures: Sequence[Any], counters: Sequence[Any], ignored: Sequence[Any]) -> None:
    """Refuse what is said of captures if it is of other kinds."""
    if not (
        len(captures) == len(counters) == len(ignored)
        and all(isinstance(name, str) for name in captures)
        and all(isinstance(counts, dict) for counts in (*counters, *ignored))
    ):
        raise ValueError("its parts do not fit together")


def check_rows(rows: FlowRows) -> None:
    """Refuse flows that no capture could have given; of those that lie in files, some are read at a time."""
    rows = rows.each(_read_not_mapped)
    if len({len(array) for array in (rows.records, rows.X, rows.kept_bytes, rows.payload_lengths)}) > 1:
        raise ValueError("its parts do not fit together")
    for first in range(0, max(len(rows), 1), RECORDS_AT_ONCE):
        some = rows[first : first + RECORDS_AT_ONCE]
        some.check()
        _check_records(some.records)
        _check_lengths(some)


def _read_not_mapped(array: np.ndarray) -> np.ndarray:
    """Return a mapped array as one that is read: pages of files, once looked at, would stay in memory."""
    found = mapped_array(array)
    return array if found is None else found  # type: ignore[return-value] # read as arrays are


def _check_records(records: np.ndarray) -> None:
    """Refuse records of flows that no capture could have given."""
    is_ipv4, protocol = records["ip_version"] == 4, records["protocol"]
    if not ((is_ipv4 | (records["ip_version"] == 6)).all() and ((protocol == 6) | (protocol == 17)).all()):
        raise ValueError("it holds flows that are not TCP or UDP over IP")
    beyond = np.zeros(len(records), np.uint64)
    for name in ("src", "dst"):
        beyond |= records[f"{name}_high"] | records[f"{name}_low"] >> np.uint64(32)
    if beyond[is_ipv4].any():
        raise ValueError("it holds IPv4 flows with longer addresses")
    if not np.isin(records["link_type"], sorted(LINK_TYPES)).all():
        raise ValueError("it holds flows of a link type that cannot be read")
    if (records["begin"] >= len(kernels.BEGINS)).any() or (records["end"] >= len(kernels.ENDS)).any():
        raise ValueError("it holds flows that begin or end in no known way")
    if (records["truncated"].view(np.uint8) > 1).any():
        raise ValueError("it holds truth values other than 0 and 1")


def _check_lengths(rows: FlowRows) -> None:
    """Refuse payload of packets that are not there, and more of it than the flow has."""
    lengths = rows.payload_lengths.astype(np.int64)
    if lengths[rows.kept_bytes == 0].any():
        raise ValueError("payload_lengths holds payload of packets of which no byte was kept")
    forward, backward = lengths.clip(min=0).sum(axis=1), -lengths.clip(max=0).sum(axis=1)
    if (forward > rows.records["payload_forward"]).any() or (backward > rows.records["payload_backward"]).any():
        raise ValueError("payload_lengths holds more payload than the flows have")


def load_npz(path: str) -> Parts:
    """Read a file of `FlowTable.save`."""
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed, which save never does")
    with np.load(path, allow_pickle=False) as arrays:
        records, X, kept_bytes, payload_lengths, capture, text = (
            folders.array_from(partial(arrays.__getitem__, name))
            for name in ("records", "X", "kept_bytes", "payload_lengths", "capture", "described")
        )
    layout, of_captures = described(text.tobytes())
    return checked(FlowRows(records, X, kept_bytes, payload_lengths, layout), capture, *of_captures)


def load_folder(path: str) -> Parts:
    """Map the files of `FlowSampler.write`."""
    found = folders.stored(path)
    entries = json.loads(found.captures)
    names = [entry.pop("name") for entry in entries]
    ignored = [entry.pop("ignored", {}) for entry in entries]
    for entry in entries:
        entry.pop("shard", None)
    n_flows = [entry.get("flows", 0) for entry in entries]
    if not all(type(n) is int and n >= 0 for n in n_flows) or sum(n_flows) != len(found.records):
        raise ValueError("captures.json has other numbers of flows than flows.npy")
    folders.check_seal(found)
    layouts = [entry.pop("layout") for entry in entries]
    if layouts != layouts[:1] * len(layouts):
        raise ValueError("captures.json has several layouts")
    capture = np.repeat(np.arange(len(names)), n_flows)
    rows = FlowRows(found.records, found.X, found.kept_bytes, found.payload_lengths, layouts[0])
    return checked(rows, capture, names, entries, ignored)
