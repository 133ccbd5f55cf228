# SPDX-License-Identifier: BSD-3-Clause
"""`FlowSampler`: captures into arrays of flow bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from joblib import effective_n_jobs
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import _get_output_config

from sklearn_docids._bases import BaseEstimator, TransformerMixin
from sklearn_docids._running import is_far, run_all, shared_folder
from sklearn_docids._text import printable
from sklearn_docids.capture import fields as field_policies
from sklearn_docids.capture.containers import capture_name, located
from sklearn_docids.capture.counting import described
from sklearn_docids.capture.flows import (
    FlowAssembler,
    FlowRows,
    FlowRules,
    Progress,
    assemble,
    first_time,
    read_captures,
    warn_of_refused,
)
from sklearn_docids.capture.layouts import DESCRIPTION_BYTES, LAYOUTS
from sklearn_docids.capture.shard_folders import NPY, PARQUET
from sklearn_docids.capture.sharding import write_shards
from sklearn_docids.capture.table import FlowTable, concatenate, less_dropped, without_midstream
from sklearn_docids.capture.writing import flows_through_files, write_flows
from sklearn_docids.exceptions import CaptureError

# Parameters that change nothing in a shard, which is of one capture; what is randomised is not in it either.
_CHANGES_NO_SHARD = ("n_jobs", "output", "random_state", "rotated", "verbose")


class FlowSampler(TransformerMixin, BaseEstimator):
    """Turn captures into rows of bytes for a detector: the first bytes of the first packets of each flow.

    A flow is a bidirectional five-tuple (addresses, ports, protocol TCP or UDP); its direction is that of the handshake
    (see `FlowTable`). Each flow becomes one row of ``n_packets`` places of ``n_bytes`` bytes: its first packets, from
    the link header to the end of the IP packet, or their payload, zero-padded. Rows come in order of capture, then of
    first packet.

    The sampler is stateless: `transform`, `flows`, `sample`, `write` and `iter_flows` work before `fit`.

    Parameters come in four groups: what a row holds (to ``layout``; see also ``fields``), what a flow is (to
    ``rotated``), which packets count (to ``reorder_window``), practice.

    Guide: :doc:`/sampling`.

    Parameters
    ----------
    n_packets : int, default=4
        Packets kept per flow (paper, data preparation).
    n_bytes : int, default=80
        Bytes kept per packet (paper, data preparation).
    layout : {"packets", "payload"}, default="packets"
        What a row holds of each packet. ``"packets"``: the first ``n_packets`` packets with their headers (paper).
        ``"payload"``: a description of 8 bytes and ``n_bytes - 8`` bytes behind the TCP or UDP header, the same however
        the packet is wrapped. Of the first ``2 * n_packets`` packets, those with payload come first, then those
        without, in order, as many as there is room for. See Notes.
    bidirectional : bool, default=True
        Whether both directions of a five-tuple are one flow.
    idle_timeout : float or None, default=120.0
        Seconds without a packet after which a five-tuple begins a new flow; None: never (the paper's reading).
        Measured on the clock of the capture, which never runs backwards (:doc:`/sampling`).
    active_timeout : float or None, default=None
        Seconds after which a flow that still has packets ends, and the next packet begins another one: sessions that
        last for hours are looked at again and again. None: never.
    tcp_restart : bool, default=True
        Whether a SYN after a FIN or RST begins a new flow. The paper does not split flows: False there.
    protocols : tuple of {"tcp", "udp"}, default=("tcp", "udp")
        Protocols that make flows; packets of others are counted and skipped.
    midstream : {"keep", "drop"}, default="keep"
        What becomes of TCP flows that do not begin with their handshake: tails of connections that ran before the
        capture began or were cut by a timeout. ``"drop"`` leaves them out and counts them (``flows_dropped``).
    rotated : bool, default=True
        Whether flows go on from one capture of a list to the next where that begins no earlier than the one before
        ended and at most ``idle_timeout`` later, as the files of ``tcpdump -G`` and ``-C`` do. Their row is that of the
        capture in which they began. False: each capture on its own, as always with the ``shards`` of `write`.
    tunnels : {"outermost", "innermost"}, default="outermost"
        Which IP packet of a tunnel makes the flow: the one on the wire, or the one inside GRE (with ERSPAN and PPTP),
        VXLAN, Geneve, GTP-U, EtherIP, IP-in-IP, 6in4 or MPLS in any of them, through at most 16 tunnels. A row then
        begins where the tunnel's payload does, as if the packet had been captured inside (link type 1 behind an
        Ethernet header, 101 where IP follows at once).
    tunnel_endpoints : bool, default=True
        Whether packets that came through tunnels between other hosts are of other flows, whatever their five-tuple.
        With False, anybody who can send a packet to the capture point can add packets to any flow by wrapping them in a
        tunnel; it is of use where the two directions of a connection take different tunnels.
    vxlan_ports : tuple of int, default=(4789,)
        UDP ports of VXLAN (IANA's; Linux used 8472 before).
    duplicate_window : int, default=0
        A packet that equals one of so many packets before it from the IP header on is dropped and counted. 0 keeps all.
        ``editcap -D N`` compares whole frames, with N - 1 packets.
    duplicate_seconds : float or None, default=None
        Most seconds between the time stamps of two such packets, as ``editcap -w``; None: any number.
    duplicate_ignore_ttl : bool, default=False
        Whether packets that differ in TTL (or hop limit) and IPv4 header checksum alone are equal: copies from before
        and behind a router.
    reorder_window : int, default=0
        A packet that stands behind at most so many later ones is put back in the order of time before flows are made
        and duplicates are looked for; ``reordercap`` does this for a whole file. 0 takes packets in file order. At most
        128 MiB are held back.
    fields : {"no_addresses", "paper", "raw", "portable"} or mapping of str to str, default="no_addresses"
        What happens to header fields. A mapping takes ``mac, ip, ports, ip_id, ttl, checksums, tcp_seq, tcp_window,
        tcp_options, tcp_timestamps`` to ``"keep"``, ``"zero"`` or ``"randomize"``. ``"zero"`` holds everywhere;
        ``"randomize"`` holds for training data only, that is in `fit_transform` and `sample`: elsewhere the field is
        kept. ``"no_addresses"`` zeroes ``mac`` and ``ip``, ``"paper"`` randomises them (paper), ``"raw"`` keeps all,
        ``"portable"`` zeroes what betrays the capturing site: all of these fields but ``ports``. :doc:`/benchmarks` has
        how they detect.
    on_error : {"warn", "raise"}, default="warn"
        A damaged capture: warn (`CaptureWarning`) and keep what was read before, or raise `CaptureError`. With
        ``"warn"``, a file that is no capture is left out of a list as long as another file of it can be read.
    max_live_flows : int, default=262144
        Flows held in memory at a time, about 0.5 KB each. One more ends the longest idle one (counted).
    n_jobs : int or None, default=None
        Threads over captures, as in joblib. The result does not depend on it. Captures that may continue each other,
        each beginning no earlier than the one before it, are read by one thread: ``rotated=False`` reads all at a time.
        `joblib.parallel_config` gives the captures, if they are paths or URLs, to other workers, such as processes
        (``"loky"``) or a cluster (``"dask"``); these leave flows in files, in a folder that they must share with the
        caller: ``out`` of `write`, otherwise ``JOBLIB_TEMP_FOLDER`` or that for temporary files.
    random_state : int, RandomState instance or None, default=None
        Source of the randomised fields.
    output : {"rows", "flows"}, default="rows"
        What `transform`, `fit_transform` and `sample` return: ``"rows"``, the bytes alone, or ``"flows"``, the
        `FlowTable` with these bytes in ``X``, for the next step of a `Pipeline` that takes tables.
        ``set_output(transform="pandas")`` and ``"polars"`` apply to rows; with ``"flows"``, an error says so.
    verbose : int, default=0
        1 prints a line per capture, 2 also one about every tenth of it.

    Attributes
    ----------
    counters_ : list of dict
        For each capture of the call that ended last: packets read, packets by what happened to them, flows; empty for a
        capture that was left out. Nothing reads it: it is a convenience, replaced as a whole at the end of each call
        (by `iter_flows`: with each block of records). Threads that share a sampler take ``FlowTable.counters`` of their
        own tables instead, or what `write` returns.

    ignored_ : list of dict
        For each capture of that call: what the packets are that are counted as ``non_ip``, ``other_protocol`` and
        ``unknown_link_type``, by the names of EtherTypes, protocols and link types, most frequent first.

    See Also
    --------
    DOCIDSDetector : The detector that takes these rows.

    Notes
    -----
    With ``layout="payload"``, each place of a row begins with this description, zero where there is no packet:

    ===== ==========================================================================
    byte  holds
    ===== ==========================================================================
    0     protocol: 6 for TCP, 17 for UDP
    1     direction: 1 from source to destination, 2 back
    2, 3  payload length in bytes by the IP length, big-endian; at most 65,535
    4     TCP flags; 0 for UDP
    5     number of the packet in its flow, from 1; at most 255
    6, 7  service port: that of the flow's destination, big-endian; under the action
          of ``ports`` in ``fields``, which has no other effect on these rows
    ===== ==========================================================================

    With ``fields="paper"``, ``fit_transform(c)`` differs from ``fit(c).transform(c)``, as it does in scikit-learn's
    ``TargetEncoder``. In a `Pipeline`, ``fit`` thereby sees random addresses and ``score_samples`` the real ones, which
    is what the paper does.

    References
    ----------
    .. [1] "DOC-IDS: A Deep Learning-Based Method for Feature Extraction and Anomaly Detection in Network Traffic",
       Sensors 22(12), 4405, 2022.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler
    >>> from sklearn_docids.datasets import make_traffic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     traffic = make_traffic(folder, n_flows=20, random_state=0)
    ...     X = FlowSampler().transform(traffic.train)
    >>> X.shape, X.dtype
    ((20, 320), dtype('uint8'))
    """

    counters_: list[dict[str, int]]
    ignored_: list[dict[str, int]]

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_packets": [Interval(Integral, 1, 1024, closed="both")],
        "n_bytes": [Interval(Integral, 1, 65_535, closed="both")],
        "layout": [StrOptions(set(LAYOUTS))],
        "bidirectional": ["boolean"],
        "idle_timeout": [Interval(Real, 0, None, closed="neither"), None],
        "active_timeout": [Interval(Real, 0, None, closed="neither"), None],
        "tcp_restart": ["boolean"],
        "midstream": [StrOptions({"keep", "drop"})],
        "rotated": ["boolean"],
        "protocols": [tuple, list],
        "tunnels": [StrOptions({"outermost", "innermost"})],
        "tunnel_endpoints": ["boolean"],
        "vxlan_ports": [tuple, list],
        "duplicate_window": [Interval(Integral, 0, 65_536, closed="both")],
        "duplicate_seconds": [Interval(Real, 0, None, closed="left"), None],
        "duplicate_ignore_ttl": ["boolean"],
        "reorder_window": [Interval(Integral, 0, 1_000_000, closed="both")],
        "fields": [StrOptions(set(field_policies.POLICIES)), Mapping],
        "on_error": [StrOptions({"warn", "raise"})],
        "max_live_flows": [Interval(Integral, 1, 2**31 - 2**13, closed="both")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "output": [StrOptions({"rows", "flows"})],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_packets: int = 4,
        n_bytes: int = 80,
        *,
        layout: str = "packets",
        bidirectional: bool = True,
        idle_timeout: float | None = 120.0,
        active_timeout: float | None = None,
        tcp_restart: bool = True,
        protocols: tuple[str, ...] = ("tcp", "udp"),
        midstream: str = "keep",
        rotated: bool = True,
        tunnels: str = "outermost",
        tunnel_endpoints: bool = True,
        vxlan_ports: tuple[int, ...] = (4789,),
        duplicate_window: int = 0,
        duplicate_seconds: float | None = None,
        duplicate_ignore_ttl: bool = False,
        reorder_window: int = 0,
        fields: str | Mapping[str, str] = "no_addresses",
        on_error: str = "warn",
        max_live_flows: int = 262_144,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        output: str = "rows",
        verbose: int = 0,
    ):
        self.n_packets = n_packets
        self.n_bytes = n_bytes
        self.layout = layout
        self.bidirectional = bidirectional
        self.idle_timeout = idle_timeout
        self.active_timeout = active_timeout
        self.tcp_restart = tcp_restart
        self.midstream = midstream
        self.rotated = rotated
        self.protocols = protocols
        self.tunnels = tunnels
        self.tunnel_endpoints = tunnel_endpoints
        self.vxlan_ports = vxlan_ports
        self.duplicate_window = duplicate_window
        self.duplicate_seconds = duplicate_seconds
        self.duplicate_ignore_ttl = duplicate_ignore_ttl
        self.reorder_window = reorder_window
        self.fields = fields
        self.on_error = on_error
        self.max_live_flows = max_live_flows
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.output = output
        self.verbose = verbose

    def fit(self, captures: Any, y: Any = None) -> FlowSampler:
        """Check the parameters; nothing is learned and no capture is read.

        Parameters
        ----------
        captures : path, binary file or list of them
            Ignored.
        y : object, default=None
            Ignored.

        Returns
        -------
        FlowSampler
            The sampler itself.
        """
        self._rules()
        return self

    def transform(self, captures: Any) -> Any:
        """Return the flow bytes of captures as they are scored: nothing is randomised.

        Parameters
        ----------
        captures : path, binary file or list of them
            Captures, pcap or pcapng, each also packed with gzip, zstd, lz4, xz or bzip2; the first bytes decide, not
            the name. A binary file may be a pipe or ``sys.stdin.buffer``: all that is needed is ``readinto``. A path
            with ``://`` in it is a URL that fsspec opens, if it is installed, such as ``"s3://bucket/day.pcap"``.

        Returns
        -------
        ndarray of uint8, shape (n_flows, n_packets * n_bytes), or FlowTable
            One row per flow. No flows: shape (0, n_packets * n_bytes). With ``output="flows"``, the table.

        Raises
        ------
        OSError
            A path is missing or cannot be read.
        CaptureError
            No input is a capture, or one is damaged and ``on_error="raise"``.
        ValueError
            A parameter is wrong, or ``output="flows"`` meets ``set_output(transform="pandas")`` or ``"polars"``.
        """
        return self._output(captures, training=False)

    def fit_transform(self, captures: Any, y: Any = None) -> Any:  # type: ignore[override] # no fit parameters
        """Return the flow bytes of captures as training data: fields with action ``"randomize"`` are random.

        Parameters
        ----------
        captures : path, binary file or list of them
            Captures, as in `transform`.
        y : object, default=None
            Ignored.

        Returns
        -------
        ndarray of uint8, shape (n_flows, n_packets * n_bytes), or FlowTable
            One row per flow; with ``output="flows"``, the table.
        """
        return self._output(captures, training=True)

    def flows(self, captures: Any) -> FlowTable:
        """Return the flows of captures with their columns, bytes as in `transform`.

        Parameters
        ----------
        captures : path, binary file or list of them
            Captures, as in `transform`.

        Returns
        -------
        FlowTable
            ``X`` and one entry per flow in each column.
        """
        return self._sampled(captures, training=False)

    def sample(self, captures: Any, y: Any = None) -> tuple[Any, np.ndarray | None, np.ndarray]:
        """Return training data: bytes as in `fit_transform`, a label per flow and the capture of each flow.

        Parameters
        ----------
        captures : path, binary file or list of them
            Captures, as in `transform`.
        y : list or callable, default=None
            One label per capture, one array of labels per capture (a label per flow), or a function that takes the
            `FlowTable` and returns a label per flow. Flows do not go on from a capture to one of another label.

        Returns
        -------
        X : ndarray of uint8, shape (n_flows, n_packets * n_bytes), or FlowTable
            One row per flow; with ``output="flows"``, the table.
        y_flow : ndarray, shape (n_flows,), or None
            Labels; None if ``y`` is None.
        groups : ndarray of int64, shape (n_flows,)
            Number of the capture of each flow, for splitters that keep captures together.

        Raises
        ------
        ValueError
            The number of labels is neither that of the captures nor that of the flows.
        """
        flows = self._sampled(captures, training=True, y=y)
        return self._given(flows), _flow_labels(y, flows), flows.capture

    def write(self, captures: Any, out: str | os.PathLike[str], *, shards: str | None = None) -> list[dict[str, int]]:
        """Write what `flows` returns to disk in bounded memory.

        Parameters
        ----------
        captures : path, binary file or list of them
            Captures, as in `transform`.
        out : path
            ``X.npy``: an array file with the bytes alone. Another name: a folder with ``X.npy``, ``flows.npy`` (a
            structured array, one record per flow), ``kept_bytes.npy``, ``payload_lengths.npy``, ``captures.json`` and
            ``checksums.json``. When all captures have been read, files of these names are replaced, for
            `FlowTable.load` all at once: whatever kills a process, and however many write to one folder, it loads what
            one call wrote. Other files stay.
        shards : {"npy", "parquet"} or None, default=None
            Whether ``out`` becomes a folder of shards, which `FlowTable.load` opens as one table: for each capture a
            folder of arrays as above, or a Parquet file as `FlowTable.save` writes it. Each capture is on its own, as
            with ``rotated=False``, and a path or URL. A shard is whole or not there, and named by its capture (file
            name, size, and up to 256 KiB of what is in it, evenly spread) and by the parameters: one that is there is
            not made again, so the same call goes on where another one was killed, and several may write to one folder.
            A capture that has changed since gets another shard, beside the older one. Captures of the same name and
            content have one shard. None: no shards.

        Returns
        -------
        list of dict
            Counters per capture; those of shards that were there are the same as when they were written.

        Raises
        ------
        OSError
            A capture cannot be read, or the folder not be written, or a worker of joblib does not see it.
        ChildProcessError
            Workers of joblib died. Shards that are missing then are named: call again.
        TypeError
            A capture is an open file, and ``shards`` is given, or joblib's workers are other processes.
        ValueError
            The folder has shards of other parameters, which are named, or flows that are no shards.
        """
        out, sources = os.fsdecode(out), _as_list(captures)
        rules = self._rules()
        how = (self._progress(), self._run_all, self.midstream == "drop")
        if shards is None:
            out = os.path.abspath(out) if is_far() else out
            counters, self.ignored_ = write_flows(self._runs(sources), rules, self.on_error, out, *how)
        elif shards in (NPY, PARQUET):
            counters, self.ignored_ = write_shards(sources, self._settings(), rules, self.on_error, out, shards, *how)
        else:
            raise ValueError(f"shards is 'npy', 'parquet' or None, got {shards!r}")
        self.counters_ = counters
        return counters

    def iter_flows(self, captures: Any, *, early: bool = True) -> Iterator[FlowTable]:
        """Yield flows of captures or of a stream in bounded memory, as soon as they are complete.

        Bytes are as in `transform`. A pipe, FIFO, socket or device is read as its data comes. If its packets are of now
        and then none comes, time goes on by the clock of the machine, so that idle flows come out of a quiet link.

        Parameters
        ----------
        captures : path, binary file or list of them
            Captures, as in `transform`; read in order, also with ``n_jobs``.
        early : bool, default=True
            Whether a flow comes out with the packet that completes its row: the ``n_packets``-th; with
            ``layout="payload"``, the ``n_packets``-th one with payload, or the ``2 * n_packets``-th. Later packets of
            it are absorbed until it ends; its columns hold the counts up to that packet. False: all flows come out
            when they have ended, with all counts.

        Yields
        ------
        FlowTable
            One or more flows, in the order in which they were complete or, with ``early=False``, ended: an eighth of
            ``idle_timeout`` late at most. ``captures`` and ``counters`` are those up to now.
        """
        rules = self._rules(emit_early=early)
        queue: list[FlowRows] = []
        assembler = FlowAssembler(rules, lambda rows: queue.append(rows.copy()))
        read = _ReadSoFar()
        sources, errors = _as_list(captures), []
        for source in sources:
            read.begin(capture_name(source), assembler)
            try:
                for _ in assemble(source, assembler, self.on_error, patience=_patience(rules)):
                    assembler.flush_idle()
                    read.counters[-1], read.ignored[-1] = assembler.counters, assembler.ignored
                    yield from self._tables(queue, read)
            except CaptureError as error:
                if self.on_error == "raise":
                    raise
                errors.append(error)
                read.counters[-1], read.ignored[-1] = {}, {}
        for _ in assembler.finish():
            yield from self._tables(queue, read)
        yield from self._tables(queue, read)
        warn_of_refused(errors, len(sources))

    def _tables(self, queue: list[FlowRows], read: _ReadSoFar) -> Iterator[FlowTable]:
        """Yield the flows of a queue, which is empty then, each with the number of the capture in which it began."""
        drops = self.midstream == "drop"
        for rows in queue:
            capture = np.searchsorted(read.first_rows, rows.records["row"], side="right") - 1
            flows = FlowTable(rows, capture, read.names, read.counters, read.ignored)
            if drops:
                read.dropped += np.bincount(capture[flows.midstream], minlength=len(read.names))
                flows = flows[~flows.midstream]
                flows.counters = less_dropped(read.counters, read.dropped.tolist())
            if len(flows):
                yield flows
        self.counters_ = less_dropped(read.counters, read.dropped.tolist()) if drops else list(read.counters)
        self.ignored_ = list(read.ignored)
        queue.clear()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns: packet and byte, ``p0_b00`` to ``p3_b79`` by default.

        Parameters
        ----------
        input_features : object, default=None
            Ignored.

        Returns
        -------
        ndarray of str objects, shape (n_packets * n_bytes,)
            Column names.
        """
        width = max(2, len(str(self.n_bytes - 1)))
        names = [f"p{packet}_b{byte:0{width}d}" for packet in range(self.n_packets) for byte in range(self.n_bytes)]
        return np.array(names, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True  # the input is captures, not an array
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def _rules(self, *, training: bool = False, emit_early: bool = False) -> FlowRules:
        self._validate_params()
        if not self.protocols or not set(self.protocols) <= {"tcp", "udp"}:
            raise ValueError(f"protocols must name 'tcp', 'udp' or both, got {self.protocols!r}")
        if not all(isinstance(port, Integral) and 0 < port < 2**16 for port in self.vxlan_ports):
            raise ValueError(f"vxlan_ports must be numbers from 1 to 65535, got {self.vxlan_ports!r}")
        if self.layout == "payload" and self.n_bytes <= DESCRIPTION_BYTES:
            raise ValueError(
                f"layout='payload' needs n_bytes of more than {DESCRIPTION_BYTES}, which describe each packet in front "
                f"of its payload, got n_bytes={self.n_bytes}"
            )
        return FlowRules(
            n_packets=int(self.n_packets),
            n_bytes=int(self.n_bytes),
            layout=self.layout,
            bidirectional=self.bidirectional,
            idle_timeout=self.idle_timeout,
            active_timeout=self.active_timeout,
            tcp_restart=self.tcp_restart,
            rotated=self.rotated,
            protocols=tuple(self.protocols),
            max_live_flows=self.max_live_flows,
            innermost=self.tunnels == "innermost",
            tunnel_endpoints=self.tunnel_endpoints,
            vxlan_ports=tuple(self.vxlan_ports),
            duplicate_window=self.duplicate_window,
            duplicate_seconds=self.duplicate_seconds,
            duplicate_ignore_ttl=self.duplicate_ignore_ttl,
            reorder_window=self.reorder_window,
            emit_early=emit_early,
            field_actions=field_policies.actions_at_copy(self._actions(training=training)),
        )

    def _actions(self, *, training: bool) -> np.ndarray:
        return field_policies.policy_actions(self.fields, training=training)

    def _sampled(self, captures: Any, *, training: bool, y: Any = None) -> FlowTable:
        rules = self._rules(training=training)
        sources = _as_list(captures)
        runs = self._runs(sources, _capture_labels(y, len(sources)))
        progress = self._progress()
        if is_far():
            parts = flows_through_files(runs, rules, self.on_error, shared_folder(), progress, self._run_all)
        else:
            parts = self._run_all(read_captures, [(run, rules, self.on_error, progress) for run in runs])
        flows = concatenate([capture_name(source) for source in sources], parts)
        if self.midstream == "drop":
            flows = without_midstream(flows)
        # Outside training nothing is random, and no generator is touched.
        seed = int(check_random_state(self.random_state).randint(2**63 - 1, dtype=np.int64)) if training else 0
        actions = self._actions(training=training)
        if field_policies.is_random(actions):
            field_policies.apply_fields(flows.rows, actions, seed)
        self.counters_, self.ignored_ = flows.counters, flows.ignored
        return flows

    def _runs(self, sources: list[Any], labels: Sequence[Any] | None = None) -> list[list[Any]]:
        """Return the captures in groups that are read one after the other: those that may continue each other.

        A capture that begins earlier than the one before it cannot, and one of another label is of something else.
        Where other processes read them, they are told where the captures are.
        """
        if is_far():
            sources = [located(source) for source in sources]
        if not self.rotated:
            return [[source] for source in sources]
        in_threads = effective_n_jobs(self.n_jobs) > 1
        runs: list[list[Any]] = []
        label_before, time_before = None, 0
        for source, label in zip(sources, labels or [None] * len(sources), strict=True):
            time = (first_time(source) if in_threads else None) or time_before
            if not runs or label != label_before or time < time_before:
                runs.append([])
            runs[-1].append(source)
            label_before, time_before = label, time
        return runs

    def _run_all(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a function once per capture, or run of captures, as joblib is told to."""
        return run_all(function, arguments, self.n_jobs)

    def _progress(self) -> Progress:
        return partial(_print_progress, self.verbose)

    def _settings(self) -> dict[str, Any]:
        """Return what decides which flows a capture on its own has, and their bytes, as JSON gives it back."""
        kept = {name: _plain(value) for name, value in self.get_params().items() if name not in _CHANGES_NO_SHARD}
        return kept | {"fields": field_policies.described_actions(self._actions(training=False))}

    def _given(self, flows: FlowTable) -> Any:
        return flows if self.output == "flows" else flows.X

    def _output(self, captures: Any, *, training: bool) -> Any:
        """Return rows, with an index of their own where scikit-learn would copy that of a Series of paths, or flows."""
        container = _get_output_config("transform", self)["dense"]
        if self.output == "flows" and container != "default":
            raise ValueError(
                f"output='flows' gives a FlowTable, which does not go into {container}: choose output='rows', or "
                "set_output(transform='default') for this step"
            )
        given = self._given(self._sampled(captures, training=training))
        if hasattr(captures, "iloc") and container == "pandas":
            import pandas

            return pandas.DataFrame(given, columns=self.get_feature_names_out())
        return given


class _ReadSoFar:
    """What `FlowSampler.iter_flows` knows of each capture."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.first_rows: list[int] = []
        self.counters: list[dict[str, int]] = []
        self.ignored: list[dict[str, int]] = []
        self.dropped: np.ndarray = np.zeros(0, np.int64)

    def begin(self, name: str, assembler: FlowAssembler) -> None:
        """Add a capture."""
        self.names.append(name)
        self.first_rows.append(assembler.n_rows)
        self.counters.append({})
        self.ignored.append({})
        self.dropped = np.append(self.dropped, 0)


def _print_progress(verbose: int, name: str, fraction: float | None, counters: dict[str, int]) -> None:
    if verbose > (0 if fraction is None else 1):
        done = "" if fraction is None else f"{fraction:.0%}, "
        print(f"{printable(name)}: {done}{described(counters)}", flush=True)


def _plain(value: Any) -> Any:
    """Return a parameter as JSON gives it back, equal ones alike."""
    if isinstance(value, tuple | list):
        return sorted(map(_plain, value))
    if isinstance(value, Real) and not isinstance(value, bool | np.bool_):
        number = float(value)
        return int(number) if number.is_integer() else number
    return bool(value) if isinstance(value, np.bool_) else value


def _patience(rules: FlowRules) -> float | None:
    """Return for how many seconds a silent stream is waited for before idle flows are looked for."""
    return None if rules.idle_timeout is None else min(max(rules.idle_timeout / 8, 0.05), 1.0)


def _as_list(captures: Any) -> list[Any]:
    """Return a list of sources, whether one was given or several."""
    if isinstance(captures, str | bytes | os.PathLike | io.IOBase) or hasattr(captures, "readinto"):
        return [captures]
    try:
        sources = list(captures)
    except TypeError:
        raise TypeError(f"captures must be a path, an open binary file or a list of them, got {captures!r}") from None
    if not sources:
        raise ValueError("captures is an empty list")
    return sources


def _capture_labels(y: Any, n_captures: int) -> list[Any] | None:
    """Return the label of each capture, None if there is not one of each."""
    if y is None or callable(y) or isinstance(y, str | bytes) or not hasattr(y, "__len__") or len(y) != n_captures:
        return None
    labels = list(y)
    return labels if all(np.ndim(label) == 0 for label in labels) else None


def _flow_labels(y: Any, flows: FlowTable) -> np.ndarray | None:
    if y is None:
        return None
    if callable(y):
        labels = np.asarray(y(flows))
        if labels.shape != (len(flows),):
            raise ValueError(f"y returned labels of shape {labels.shape} for {len(flows)} flows")
        return labels
    if isinstance(y, str | bytes) or not hasattr(y, "__len__"):
        raise ValueError(f"y must be a list with an entry per capture or a function of the flow table, got {y!r}")
    n_flows = np.bincount(flows.capture, minlength=len(flows.captures))
    if len(y) != len(n_flows):
        raise ValueError(f"y has {len(y)} entries for {len(n_flows)} captures")
    return np.concatenate([_labels_of_capture(*entry) for entry in zip(y, n_flows, flows.captures, strict=True)])


def _labels_of_capture(label: Any, n_flows: int, name: str) -> np.ndarray:
    if np.ndim(label) == 0:
        return np.repeat(np.asarray(label), n_flows)
    if len(label) != n_flows:
        raise ValueError(f"y has {len(label)} labels for the {n_flows} flows of {name}")
    return np.asarray(label)
