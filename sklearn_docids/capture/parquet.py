# SPDX-License-Identifier: BSD-3-Clause
"""Flows as Parquet, for pandas, DuckDB, Polars and others, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import numpy as np

from sklearn_docids._warn import missing
from sklearn_docids.capture import kernels
from sklearn_docids.capture.flows import FlowRows
from sklearn_docids.capture.stored import Parts, checked, described

# So many flows are read or written at a time: some ten MB.
GROUP_ROWS = 2**15
# What is said of captures, and its checksum: those of pages do not cover the end of a file, where this stands.
METADATA, METADATA_SHA256 = b"sklearn_docids", b"sklearn_docids.sha256"
# Fields of records that a file has as text.
_NAMED = {"begin": kernels.BEGINS, "end": kernels.ENDS}
_ADDRESSES = ("src_high", "src_low", "dst_high", "dst_low", "ip_version")
_STORED = tuple(name for name in kernels.FLOW_DTYPE.names or () if name not in (*_NAMED, *_ADDRESSES))
_TIMES = ("time_first", "time_last")
_OF_PACKETS = ("kept_bytes", "payload_lengths")


def pyarrow_parquet() -> Any:
    """Return pyarrow, with what reads and writes Parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing("a Parquet file", "pyarrow") from None
    return pyarrow


def save_parquet(table: Any, names: Sequence[str], path: str, metadata: str) -> None:
    """Write a table of flows with columns of these names, some of it at a time."""
    pyarrow = pyarrow_parquet()
    writer = None
    try:
        for first in range(0, max(len(table), 1), GROUP_ROWS):
            group = _columns(table[first : first + GROUP_ROWS], names)
            if writer is None:
                schema = group.schema.with_metadata({METADATA: metadata, METADATA_SHA256: _digest(metadata.encode())})
                # X is of bytes that hardly repeat as a whole: a dictionary of them only costs time.
                writer = pyarrow.parquet.ParquetWriter(
                    path, schema, compression="zstd", use_dictionary=[name for name in schema.names if name != "X"],
                    write_page_checksum=True,
                )  # fmt: skip
            writer.write_table(group)
    finally:
        if writer is not None:
            writer.close()


def _columns(table: Any, names: Sequence[str]) -> Any:
    """Return flows as a table of pyarrow."""
    pyarrow = pyarrow_parquet()
    columns: dict[str, Any] = {"capture": table.capture, "row": table.rows.records["row"]}
    columns |= {name: table[name] for name in names if name != "capture"}
    columns |= {name: pyarrow.array(columns[name], pyarrow.timestamp("ns", "UTC")) for name in _TIMES}
    for name in _OF_PACKETS:
        numbers = np.ascontiguousarray(getattr(table.rows, name))
        columns[name] = pyarrow.FixedSizeListArray.from_arrays(numbers.reshape(-1), table.n_packets)
    rows = np.ascontiguousarray(table.X)
    columns["X"] = pyarrow.FixedSizeBinaryArray.from_buffers(
        pyarrow.binary(rows.shape[1]), len(rows), [None, pyarrow.py_buffer(rows)]
    )
    return pyarrow.table(columns)


def load_parquet(path: str) -> Parts:
    """Read a file of `FlowTable.save`."""
    with pyarrow_parquet().parquet.ParquetFile(path, page_checksum_verification=True) as file:
        layout, of_captures = described(_metadata(file))
        rows, capture = _flows(file.read(), layout)
    return checked(rows, capture, *of_captures)


def metadata_of(path: str) -> bytes:
    """Return what a file says of its flows."""
    with pyarrow_parquet().parquet.ParquetFile(path) as file:
        return _metadata(file)


def _metadata(file: Any) -> bytes:
    found = file.schema_arrow.metadata
    text = found[METADATA]
    if found[METADATA_SHA256] != _digest(text):
        raise ValueError("what it says of its captures is damaged")
    return text


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def groups_of(path: str, layout: str) -> Iterator[FlowRows]:
    """Yield the flows of a file, some at a time; at least once."""
    pyarrow = pyarrow_parquet()
    with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        if not file.metadata.num_rows:
            yield _flows(file.read(), layout)[0]
        for batch in file.iter_batches(GROUP_ROWS):
            yield _flows(pyarrow.Table.from_batches([batch]), layout)[0]


def _flows(stored: Any, layout: str) -> tuple[FlowRows, np.ndarray]:
    """Return flows, and the capture of each, of a table of pyarrow."""
    pyarrow = pyarrow_parquet()
    if any(column.null_count for column in stored.columns):
        raise ValueError("it has missing values")
    records = np.zeros(len(stored), kernels.FLOW_DTYPE)
    for name, values in _NAMED.items():
        records[name] = [values.index(value) for value in stored[name].to_pylist()]
    for name in _STORED:
        column = stored[name].cast(pyarrow.int64()) if name in _TIMES else stored[name]
        # A checked cast: a number that does not fit raises.
        records[name] = column.cast(pyarrow.from_numpy_dtype(records.dtype[name])).to_numpy()
    versions = [_store_addresses(records, side, stored[f"{side}_ip"].to_numpy()) for side in ("src", "dst")]
    if (versions[0] != versions[1]).any():
        raise ValueError("it has flows between IPv4 and IPv6")
    records["ip_version"] = versions[0]
    kept_bytes, payload_lengths = (
        stored[name].combine_chunks().flatten().to_numpy().reshape(-1, stored.schema.field(name).type.list_size)
        for name in _OF_PACKETS
    )
    width = stored.schema.field("X").type.byte_width
    X = np.frombuffer(b"".join(stored["X"].to_pylist()), np.uint8).reshape(-1, width).copy()
    capture = stored["capture"].cast(pyarrow.int64()).to_numpy()
    return FlowRows(records, X, kept_bytes, payload_lengths, layout), capture


def _store_addresses(records: np.ndarray, side: str, texts: np.ndarray) -> np.ndarray:
    """Fill in the addresses of one side, each distinct one parsed once; return their IP versions."""
    distinct, place = np.unique(texts.astype("U39"), return_inverse=True)
    addresses = [ip_address(str(text)) for text in distinct]
    low = np.array([int(address) & (2**64 - 1) for address in addresses], np.uint64)
    high = np.array([int(address) >> 64 for address in addresses], np.uint64)
    versions = np.array([address.version for address in addresses], np.uint8)
    records[f"{side}_low"], records[f"{side}_high"] = low[place], high[place]
    return versions[place]
