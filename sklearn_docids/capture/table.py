# SPDX-License-Identifier: BSD-3-Clause
"""The table of flows a user gets: columns, one entry per flow; to files and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np

from sklearn_docids._scratch import scratch_folder, sync
from sklearn_docids._warn import missing
from sklearn_docids.capture import kernels
from sklearn_docids.capture.community_id import community_id
from sklearn_docids.capture.context import FlowContext
from sklearn_docids.capture.flows import FlowRows, ReadCaptures, warn_of_refused
from sklearn_docids.capture.headers import TCP
from sklearn_docids.capture.parquet import load_parquet, save_parquet
from sklearn_docids.capture.shard_folders import is_list_in, load_shards
from sklearn_docids.capture.stored import OTHER_CONTENT, Parts, load_folder, load_npz

COLUMNS = (
    "capture", "time_first", "time_last", "src_ip", "dst_ip", "src_port", "dst_port", "protocol",
    "packets_forward", "packets_backward", "bytes_forward", "bytes_backward", "payload_forward", "payload_backward",
    "tcp_flags_forward", "tcp_flags_backward", "begin", "end", "midstream", "link_type", "truncated", "community_id",
)  # fmt: skip

# Columns that hold a number or more for each packet of a row.
PACKET_COLUMNS = ("X", "kept_bytes", "payload_lengths")


class FlowTable:
    """Flows of one or more captures, a row each: what detectors learn from, select from and explain.

    Every column is an attribute and an item: ``table.src_ip`` is ``table["src_ip"]``. Columns are read-only; a copy is
    not. A slice, an index array or a mask selects flows: ``table[table.dst_port == 443]``. scikit-learn's splitters,
    `cross_val_score` and `GridSearchCV` take a table as they take an array, and hand on tables.

    Guide: :doc:`/tutorials/python`.

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
        return _read_only(np.asarray(self.rows.kept_bytes))

    @property
    def payload_lengths(self) -> np.ndarray:
        """Payload bytes of each packet, negative from destination to source."""
        return _read_only(np.asarray(self.rows.payload_lengths).astype(np.int64))

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
                save_parquet(self, COLUMNS, part, described)
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
            read-only, and read as they are used. The shards of a folder are one table, whose ``X`` is read from
            the files wherever it is indexed (``numpy.asarray(table.X)`` reads all) and whose other columns take memory
            once they are asked for; Parquet shards are unpacked into temporary files first (``TMPDIR``), which go with
            the table.

        Returns
        -------
        FlowTable
            The table.

        Raises
        ------
        ValueError
            The file does not hold a flow table; or a shard is missing or damaged, or is of other settings than its
            folder.
        ImportError
            pyarrow is not installed.
        """
        path = os.fsdecode(path)
        read = _reader(path)
        try:
            return cls(*read(path))
        except OTHER_CONTENT as error:
            raise ValueError(f"{path}: no flow table: {str(error) or type(error).__name__}") from None


def _reader(path: str) -> Callable[[str], Parts]:
    """Return what reads a file or a folder of flows."""
    if os.path.isdir(path):
        return load_shards if is_list_in(path) else load_folder
    return load_parquet if path.endswith(".parquet") else load_npz


def is_midstream(records: np.ndarray) -> np.ndarray:
    """Whether flows are of connections whose beginning was not seen."""
    return (records["protocol"] == TCP) & (records["begin"] != kernels.HANDSHAKE)


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


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
