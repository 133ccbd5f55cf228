# SPDX-License-Identifier: BSD-3-Clause
"""The table of flows a user gets: columns, one entry per flow; to files and back."""

from __future__ import annotations

import json
import os
import tokenize
import zipfile
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeAlias

import numpy as np

from sklearn_docids._scratch import scratch_folder, sync
from sklearn_docids._warn import missing
from sklearn_docids.capture import folders, kernels
from sklearn_docids.capture.community_id import community_id
from sklearn_docids.capture.context import FlowContext
from sklearn_docids.capture.flows import FlowRows, ReadCaptures, warn_of_refused
from sklearn_docids.capture.headers import LINK_TYPES, TCP

COLUMNS = (
    "capture", "time_first", "time_last", "src_ip", "dst_ip", "src_port", "dst_port", "protocol",
    "packets_forward", "packets_backward", "bytes_forward", "bytes_backward", "payload_forward", "payload_backward",
    "tcp_flags_forward", "tcp_flags_backward", "begin", "end", "midstream", "link_type", "truncated", "community_id",
)  # fmt: skip

# Columns that hold a number or more for each packet of a row.
PACKET_COLUMNS = ("X", "kept_bytes", "payload_lengths")

# Records are checked in groups that stay in the processor's caches, as each check reads all of their memory.
RECORDS_AT_ONCE = 2**13


class FlowTable:
    """Flows of one or more captures, as columns.

    Every column is an attribute and an item: ``table.src_ip`` is ``table["src_ip"]``. Columns are read-only; a copy is
    not. A slice, an index array or a mask selects flows: ``table[table.dst_port == 443]``. scikit-learn's splitters,
    `cross_val_score` and `GridSearchCV` take a table as they take an array, and hand on tables.

    Parameters
    ----------
    rows : FlowRows
        The flows, in order of capture, then of first packet.
    capture : ndarray of int64, shape (n_flows,)
        Number of the capture each flow comes from.
    captures : sequence of str
        Names of the captures.
    counters : sequence of dict
        For each capture: ``packets`` read, packets by fate (``sampled``, ``non_ip``, ``other_protocol``,
        ``fragment``, ``short``, ``malformed``, ``unknown_link_type``, ``duplicate``; their sum is ``packets``),
        ``flows``, and ``flows_evicted`` (ended early by ``max_live_flows``).
    ignored : sequence of dict, default=None
        For each capture: what the packets of ``non_ip``, ``other_protocol`` and ``unknown_link_type`` are, by the names
        of EtherTypes, protocols and link types, most frequent first. None: nobody knows.

    Attributes
    ----------
    X : ndarray of uint8, shape (n_flows, n_packets * n_bytes)
        The rows of the sampler's ``layout``, zero-padded: first bytes of the first packets from the link header to the
        end of the IP packet, or descriptions and payload (see `FlowSampler`).
    kept_bytes : ndarray of uint16, shape (n_flows, n_packets)
        How many of the ``n_bytes`` of each packet are there, in order of ``X``; a description counts.
    payload_lengths : ndarray of int64, shape (n_flows, n_packets)
        Payload bytes of each packet of the row, in order of ``X``, by the IP length: behind the TCP or UDP header.
        Positive from source to destination, negative back, 0 without payload and where there is no packet.
    layout : {"packets", "payload"}
        What the rows hold.
    n_packets : int
        Packets that a row has room for.
    shape : tuple of int
        ``(n_flows,)``.
    capture : ndarray of int64
        Index into ``captures``.
    time_first, time_last : ndarray of int64
        Time of the first packet, latest time of a packet; ns since 1970-01-01 UTC.
    src_ip, dst_ip : ndarray of str
        Addresses. The source of a TCP flow sent the SYN or was sent the SYN-ACK. Where neither was seen, it is the side
        whose port lies in the higher of the ranges below 1024, below 49152 and above (RFC 6335); with both in the
        same range, and with UDP, the sender of the first packet.
    src_port, dst_port, protocol, link_type : ndarray of int64
        Ports; 6 for TCP or 17 for UDP; libpcap's number of the link type.
    packets_forward, packets_backward : ndarray of int64
        Packets from source to destination and back, all of the flow.
    bytes_forward, bytes_backward, payload_forward, payload_backward : ndarray of int64
        Bytes of those packets by their IP length: with IP header, and behind the TCP or UDP header.
    tcp_flags_forward, tcp_flags_backward : ndarray of int64
        All flags seen, OR-ed; 0 for UDP.
    begin : ndarray of str
        ``"handshake"``: with a SYN or SYN-ACK; ``"running"``: with another TCP packet, so the connection ran before the
        capture began; ``"timeout"``: a timeout had ended the flow of the same five-tuple, not longer ago than
        ``idle_timeout``; ``"first"``: with the first UDP packet.
    end : ndarray of str
        ``"closed"``: by RST, by FIN in every direction that has packets, or by a new connection behind a FIN;
        ``"idle"`` or ``"active"``: by that timeout; ``"evicted"``: to make room (``max_live_flows``); ``"open"``: it
        still ran when the capture ended, or `FlowSampler.iter_flows` gave it out.
    midstream : ndarray of bool
        The beginning of the connection was not seen: a TCP flow that did not begin with its handshake.
    truncated : ndarray of bool
        The capture holds fewer bytes of one of the kept packets than ``X`` has room for; with ``layout="payload"``,
        fewer bytes of its payload.
    community_id : ndarray of str
        Community ID version 1, seed 0, as Zeek and Suricata write it.
    context : structured ndarray, shape (n_flows,)
        What the flows of this table that began earlier say about each one, computed when it is first asked for: a slice
        has the context of the slice alone. All fields are float32. Those that end in ``_1``, ``_10``, ``_60`` or
        ``_600`` are damped counts, in which a flow weighs ``2 ** (-age / half_life)`` with that half-life in seconds.
        Counts of flows and of what is distinct have this flow in them, the others do not.

        ``channel_flows_*``, ``channel_resets_*``: flows of the same source, destination, destination port and protocol;
        those of them with a RST from the destination. ``source_flows_*``, ``source_failed_*``: flows of the same source
        address; those of them without payload from the destination, or with a RST.
        ``source_destinations_60``, ``source_destinations_600``, ``source_ports_60``, ``source_ports_600``: distinct
        destination addresses and destination ports of the source, each as old as its last flow. ``interval_mean``,
        ``interval_spread``: mean and standard deviation of the seconds between the beginnings of successive flows of
        the channel, with a half-life of 600 s; 0 for its first flow.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from sklearn_docids import FlowSampler
    >>> from sklearn_docids.datasets import make_traffic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     traffic = make_traffic(folder, n_flows=20, random_state=0)
    ...     flows = FlowSampler().flows(traffic.train)
    >>> flows.X.shape, flows.X.dtype
    ((20, 320), dtype('uint8'))
    >>> set(flows.protocol) <= {6, 17}
    True
    """

    def __init__(
        self,
        rows: FlowRows,
        capture: np.ndarray,
        captures: Sequence[str],
        counters: Sequence[dict[str, int]],
        ignored: Sequence[dict[str, int]] | None = None,
    ):
        self.rows = rows
        self.captures: list[str] = list(captures)
        self.counters: list[dict[str, int]] = list(counters)
        self.ignored: list[dict[str, int]] = [{} for _ in counters] if ignored is None else list(ignored)
        self._capture = capture

    def _numbers(self, name: str) -> np.ndarray:
        # Small unsigned integers would wrap around in a user's arithmetic.
        return _read_only(self.rows.records[name].astype(np.int64))

    @property
    def X(self) -> np.ndarray:
        """Bytes of the first packets."""
        return self.rows.X

    @property
    def kept_bytes(self) -> np.ndarray:
        """Bytes kept of each packet."""
        return _read_only(self.rows.kept_bytes)

    @property
    def payload_lengths(self) -> np.ndarray:
        """Payload bytes of each packet, negative from destination to source."""
        return _read_only(self.rows.payload_lengths.astype(np.int64))

    @property
    def layout(self) -> str:
        """What the rows hold."""
        return self.rows.layout

    @property
    def n_packets(self) -> int:
        """Packets that a row has room for."""
        return int(self.rows.kept_bytes.shape[1])

    @property
    def shape(self) -> tuple[int]:
        """Number of flows."""
        return (len(self),)

    @property
    def capture(self) -> np.ndarray:
        """Numbers of the captures."""
        return _read_only(self._capture)

    @cached_property
    def src_ip(self) -> np.ndarray:
        """Addresses of the senders of the first packets."""
        return _read_only(_addresses(self.rows.records, "src"))

    @cached_property
    def dst_ip(self) -> np.ndarray:
        """Addresses of the other sides."""
        return _read_only(_addresses(self.rows.records, "dst"))

    @cached_property
    def community_id(self) -> np.ndarray:
        """Community IDs, version 1."""
        return _read_only(community_id(self.rows.records))

    @cached_property
    def context(self) -> np.ndarray:
        """What the flows before say about each one."""
        return _read_only(FlowContext().update(self.rows.records))

    @property
    def truncated(self) -> np.ndarray:
        """Whether bytes are missing that the row has room for."""
        return _read_only(self.rows.records["truncated"])

    @property
    def time_first(self) -> np.ndarray:
        """Times of the first packets."""
        return self._numbers("time_first")

    @property
    def time_last(self) -> np.ndarray:
        """Latest times of a packet."""
        return self._numbers("time_last")

    @property
    def src_port(self) -> np.ndarray:
        """Ports of the senders of the first packets."""
        return self._numbers("src_port")

    @property
    def dst_port(self) -> np.ndarray:
        """Ports of the other sides."""
        return self._numbers("dst_port")

    @property
    def protocol(self) -> np.ndarray:
        """6 for TCP, 17 for UDP."""
        return self._numbers("protocol")

    @property
    def packets_forward(self) -> np.ndarray:
        """Packets from source to destination."""
        return self._numbers("packets_forward")

    @property
    def packets_backward(self) -> np.ndarray:
        """Packets from destination to source."""
        return self._numbers("packets_backward")

    @property
    def bytes_forward(self) -> np.ndarray:
        """IP bytes from source to destination."""
        return self._numbers("bytes_forward")

    @property
    def bytes_backward(self) -> np.ndarray:
        """IP bytes from destination to source."""
        return self._numbers("bytes_backward")

    @property
    def payload_forward(self) -> np.ndarray:
        """Payload bytes from source to destination."""
        return self._numbers("payload_forward")

    @property
    def payload_backward(self) -> np.ndarray:
        """Payload bytes from destination to source."""
        return self._numbers("payload_backward")

    @property
    def tcp_flags_forward(self) -> np.ndarray:
        """TCP flags from source to destination."""
        return self._numbers("tcp_flags_forward")

    @property
    def tcp_flags_backward(self) -> np.ndarray:
        """TCP flags from destination to source."""
        return self._numbers("tcp_flags_backward")

    @property
    def begin(self) -> np.ndarray:
        """How the flows began."""
        return _read_only(np.array(kernels.BEGINS)[self.rows.records["begin"]])

    @property
    def end(self) -> np.ndarray:
        """How the flows ended."""
        return _read_only(np.array(kernels.ENDS)[self.rows.records["end"]])

    @property
    def midstream(self) -> np.ndarray:
        """Whether the beginning of a connection was not seen."""
        return _read_only(is_midstream(self.rows.records))

    @property
    def link_type(self) -> np.ndarray:
        """Numbers of the link types, as libpcap counts them."""
        return self._numbers("link_type")

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<FlowTable: {len(self)} flows of {len(self.captures)} captures>"

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in (*COLUMNS, *PACKET_COLUMNS):
                raise KeyError(key)
            return getattr(self, key)
        if isinstance(key, tuple) and len(key) == 2 and key[1] is Ellipsis:  # scikit-learn selects rows so
            key = key[0]
        if isinstance(key, int | np.integer):
            key = [key]
        return FlowTable(self.rows[key], self._capture[key], self.captures, self.counters, self.ignored)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError("a FlowTable is no array of numbers; give its rows, table.X, or one of its columns")

    @staticmethod
    def concatenate(tables: Iterable[FlowTable]) -> FlowTable:
        """Return one table of the flows of several, one behind the other.

        Parameters
        ----------
        tables : iterable of FlowTable
            Tables of one layout, and of the same number of packets and bytes.

        Returns
        -------
        FlowTable
            All flows. The captures of each table are numbered behind those of the tables before it, with their
            counters; a capture of which several tables have flows is listed as often.

        Raises
        ------
        ValueError
            There is no table, or rows are of different layouts or shapes.
        """
        tables = list(tables)
        if not tables:
            raise ValueError("tables is empty: there are no flows to join")
        first_numbers = np.cumsum([0, *(len(table.captures) for table in tables[:-1])])
        return FlowTable(
            joined([table.rows for table in tables]),
            np.concatenate([table.capture + n for table, n in zip(tables, first_numbers, strict=True)]),
            [name for table in tables for name in table.captures],
            [counts for table in tables for counts in table.counters],
            [kinds for table in tables for kinds in table.ignored],
        )

    def to_pandas(self) -> Any:
        """Return the columns as a pandas DataFrame.

        Returns
        -------
        pandas.DataFrame
            One row per flow, the columns of the table that hold one value per flow, times as UTC timestamps.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise missing("to_pandas", "pandas") from None

        frame = pandas.DataFrame({name: self[name] for name in COLUMNS})
        for name in ("time_first", "time_last"):
            frame[name] = pandas.to_datetime(frame[name], unit="ns", utc=True)
        return frame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table to one file.

        Parameters
        ----------
        path : path
            ``*.npz``: numpy arrays. ``*.parquet``: one row per flow for pandas, DuckDB, Spark and others, with
            addresses as text, times as UTC timestamps and the bytes in a binary column ``X``; needs pyarrow.

        Raises
        ------
        ValueError
            The name ends otherwise.
        ImportError
            pyarrow is not installed.
        """
        path = os.fsdecode(path)
        described = json.dumps(
            {"captures": self.captures, "counters": self.counters, "ignored": self.ignored, "layout": self.layout}
        )
        if not path.endswith((".npz", ".parquet")):
            raise ValueError(f"a flow table is saved as .npz or .parquet, got {path!r}")
        with scratch_folder(os.path.dirname(path) or ".") as scratch:
            part = os.path.join(scratch, "table")
            if path.endswith(".parquet"):
                _save_parquet(self, part, described)
            else:
                with open(part, "wb") as file:
                    np.savez(
                        file, records=self.rows.records, X=self.X, kept_bytes=self.kept_bytes,
                        payload_lengths=self.rows.payload_lengths, capture=self._capture,
                        described=np.frombuffer(described.encode(), np.uint8),
                    )  # fmt: skip
            sync(part)
            os.replace(part, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FlowTable:
        """Read a table that `save` or `FlowSampler.write` wrote; nothing in it is executed.

        Parameters
        ----------
        path : path
            A ``.npz`` or ``.parquet`` file, or a folder of `FlowSampler.write`: its arrays are mapped into memory,
            read-only, and read as they are used.

        Returns
        -------
        FlowTable
            The table.

        Raises
        ------
        ValueError
            The file does not hold a flow table.
        ImportError
            pyarrow is not installed.
        """
        path = os.fsdecode(path)
        read = _load_folder if os.path.isdir(path) else _load_parquet if path.endswith(".parquet") else _load_npz
        try:
            return cls(*_checked(*read(path)))
        except _OTHER_CONTENT as error:
            raise ValueError(f"{path}: no flow table: {str(error) or type(error).__name__}") from None


def is_midstream(records: np.ndarray) -> np.ndarray:
    """Whether flows are of connections whose beginning was not seen."""
    return (records["protocol"] == TCP) & (records["begin"] != kernels.HANDSHAKE)


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


# Flows, the capture of each, and per capture its name, its counters, and what was ignored.
_Parts: TypeAlias = "tuple[FlowRows, np.ndarray, list[str], list[dict[str, int]], list[dict[str, int]]]"


def _described(text: bytes) -> tuple[str, tuple[list[str], list[dict[str, int]], list[dict[str, int]]]]:
    """Return the layout of a file, and what it says of each capture."""
    described = json.loads(text)
    return described["layout"], (list(described["captures"]), list(described["counters"]), list(described["ignored"]))


def _checked(
    rows: FlowRows,
    capture: np.ndarray,
    captures: list[str],
    counters: list[dict[str, int]],
    ignored: list[dict[str, int]],
) -> _Parts:
    """Return the parts of a table read from a file, if they fit together."""
    rows.check()
    if not (
        (capture.dtype, capture.shape) == (np.dtype(np.int64), (len(rows),))
        and len(captures) == len(counters) == len(ignored)
        and all(isinstance(name, str) for name in captures)
        and all(isinstance(counts, dict) for counts in (*counters, *ignored))
        and (len(capture) == 0 or 0 <= capture.min() <= capture.max() < len(captures))
    ):
        raise ValueError("its parts do not fit together")
    for first in range(0, len(rows), RECORDS_AT_ONCE):
        some = rows[first : first + RECORDS_AT_ONCE]
        _check_records(some.records)
        _check_lengths(some)
    return rows, capture, captures, counters, ignored


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


# What json, zipfile, numpy and pyarrow raise of a file that holds something else, or is damaged.
_OTHER_CONTENT = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, RuntimeError, zipfile.BadZipFile,
    tokenize.TokenError,
)  # fmt: skip


def _load_npz(path: str) -> _Parts:
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed, which save never does")
    with np.load(path, allow_pickle=False) as arrays:
        records, X, kept_bytes, payload_lengths, capture, text = (
            folders.array_from(partial(arrays.__getitem__, name))
            for name in ("records", "X", "kept_bytes", "payload_lengths", "capture", "described")
        )
    layout, described = _described(text.tobytes())
    return FlowRows(records, X, kept_bytes, payload_lengths, layout), capture, *described


def _load_folder(path: str) -> _Parts:
    found = folders.stored(path)
    described = json.loads(found.captures)
    names = [entry.pop("name") for entry in described]
    ignored = [entry.pop("ignored", {}) for entry in described]
    n_flows = [entry.get("flows", 0) for entry in described]
    if not all(type(n) is int and n >= 0 for n in n_flows) or sum(n_flows) != len(found.records):
        raise ValueError("captures.json has other numbers of flows than flows.npy")
    folders.check_seal(found)
    layouts = [entry.pop("layout") for entry in described]
    if layouts != layouts[:1] * len(layouts):
        raise ValueError("captures.json has several layouts")
    capture = np.repeat(np.arange(len(names)), n_flows)
    rows = FlowRows(found.records, found.X, found.kept_bytes, found.payload_lengths, layouts[0])
    return rows, capture, names, described, ignored


# Columns of a Parquet file that the records hold under the same name.
_NAMED = {"begin": kernels.BEGINS, "end": kernels.ENDS}
_STORED = ("row", *(name for name in COLUMNS if name in (kernels.FLOW_DTYPE.names or ()) and name not in _NAMED))
_TIMES = ("time_first", "time_last")
_OF_PACKETS = ("kept_bytes", "payload_lengths")


def _parquet() -> Any:
    """Return pyarrow, with what reads and writes Parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing("a Parquet file", "pyarrow") from None
    return pyarrow


def _save_parquet(table: FlowTable, path: str, described: str) -> None:
    pyarrow = _parquet()
    records = table.rows.records
    columns: dict[str, Any] = {"capture": table.capture, "row": records["row"]}
    columns |= {name: table[name] for name in COLUMNS if name != "capture"}
    columns |= {name: pyarrow.array(columns[name], pyarrow.timestamp("ns", "UTC")) for name in _TIMES}
    for name in _OF_PACKETS:
        numbers = getattr(table.rows, name)
        columns[name] = pyarrow.FixedSizeListArray.from_arrays(numbers.reshape(-1), table.n_packets)
    rows = np.ascontiguousarray(table.X)
    columns["X"] = pyarrow.FixedSizeBinaryArray.from_buffers(
        pyarrow.binary(rows.shape[1]), len(rows), [None, pyarrow.py_buffer(rows)]
    )
    stored = pyarrow.table(columns).replace_schema_metadata({"sklearn_docids": described})
    pyarrow.parquet.write_table(stored, path)


def _load_parquet(path: str) -> _Parts:
    pyarrow = _parquet()
    stored = pyarrow.parquet.read_table(path)
    layout, described = _described(stored.schema.metadata[b"sklearn_docids"])
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
    return FlowRows(records, X, kept_bytes, payload_lengths, layout), capture, *described


def _store_addresses(records: np.ndarray, side: str, texts: np.ndarray) -> np.ndarray:
    """Fill in the addresses of one side, each distinct one parsed once; return their IP versions."""
    distinct, place = np.unique(texts.astype("U39"), return_inverse=True)
    addresses = [ip_address(str(text)) for text in distinct]
    low = np.array([int(address) & (2**64 - 1) for address in addresses], np.uint64)
    high = np.array([int(address) >> 64 for address in addresses], np.uint64)
    versions = np.array([address.version for address in addresses], np.uint8)
    records[f"{side}_low"], records[f"{side}_high"] = low[place], high[place]
    return versions[place]


def _addresses(records: np.ndarray, side: str) -> np.ndarray:
    """Return addresses as strings; each distinct one is formatted once."""
    packed = np.stack([records["ip_version"].astype(np.uint64), records[f"{side}_high"], records[f"{side}_low"]], 1)
    distinct, place = np.unique(packed, axis=0, return_inverse=True)
    texts = [
        str(IPv4Address(int(low))) if version == 4 else str(IPv6Address(int(high) << 64 | int(low)))
        for version, high, low in distinct
    ]
    return np.array(texts, dtype="U39")[place.ravel()]


def concatenate(names: Sequence[str], parts: Sequence[ReadCaptures]) -> FlowTable:
    """Return one table of the flows of captures that could be read, with a warning for each that could not.

    If none could be read, the first error is raised.
    """
    warn_of_refused([error for part in parts for error in part.errors], len(names))
    counters = [counts for part in parts for counts in part.counters]
    # A capture that was left out keeps its number and has no flows.
    capture = np.repeat(np.arange(len(counters)), [counts.get("flows", 0) for counts in counters])
    ignored = [kinds for part in parts for kinds in part.ignored]
    return FlowTable(joined([part.rows for part in parts]), capture, names, counters, ignored)


def without_midstream(flows: FlowTable) -> FlowTable:
    """Return a table without flows that do not begin with their handshake; its counters say how many there were."""
    kept = ~flows.midstream
    rest = flows[kept]
    dropped = np.bincount(flows.capture[~kept], minlength=len(flows.captures)).tolist()
    rest.counters = less_dropped(flows.counters, dropped)
    return rest


def less_dropped(counters: Sequence[dict[str, int]], dropped: Sequence[int]) -> list[dict[str, int]]:
    """Return counters of captures of whose flows some were left out; those of a refused capture stay empty."""
    return [
        counts and counts | {"flows": counts["flows"] - n, "flows_dropped": n}
        for counts, n in zip(counters, dropped, strict=True)
    ]


def joined(rows: Sequence[FlowRows]) -> FlowRows:
    """Return flows one behind the other.

    Raises
    ------
    ValueError
        Their rows are of different layouts or shapes.
    """
    kinds = list(dict.fromkeys(part.described() for part in rows))
    if len(kinds) > 1:
        raise ValueError(f"rows of {kinds[0]} and rows of {kinds[1]} cannot be in one table: sample both alike")
    if len(rows) == 1:
        return rows[0]
    return FlowRows(
        np.concatenate([part.records for part in rows]),
        np.concatenate([part.X for part in rows]),
        np.concatenate([part.kept_bytes for part in rows]),
        np.concatenate([part.payload_lengths for part in rows]),
        rows[0].layout,
    )
