# SPDX-License-Identifier: BSD-3-Clause
"""`FlowSampler`: captures into arrays of flow bytes."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from joblib import Parallel, delayed
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import _get_output_config

from sklearn_docids._bases import BaseEstimator, TransformerMixin
from sklearn_docids._text import printable
from sklearn_docids._warn import called_from, caller
from sklearn_docids.capture import fields as field_policies
from sklearn_docids.capture.containers import capture_name
from sklearn_docids.capture.counting import described
from sklearn_docids.capture.flows import FlowRows, FlowRules, assemble, interrupted, read_whole
from sklearn_docids.capture.table import FlowTable, concatenate
from sklearn_docids.capture.writing import write_flows


class FlowSampler(TransformerMixin, BaseEstimator):
    """Sample the first bytes of the first packets of each flow of a capture.

    A flow is a bidirectional five-tuple (addresses, ports, protocol TCP or UDP); its direction is that of the first
    packet seen. Each flow becomes one row: ``n_bytes`` of each of its first ``n_packets`` packets, from the link
    header to the end of the IP packet, zero-padded. Rows come in order of capture, then of first packet.

    The sampler is stateless: `transform`, `flows`, `sample`, `write` and `iter_flows` work before `fit`.

    Parameters
    ----------
    n_packets : int, default=4
        Packets kept per flow (paper, data preparation).
    n_bytes : int, default=80
        Bytes kept per packet (paper, data preparation).
    bidirectional : bool, default=True
        Whether both directions of a five-tuple are one flow.
    idle_timeout : float or None, default=120.0
        Seconds without a packet after which a five-tuple begins a new flow; None: never (the paper's reading).
        Measured on the clock of the capture, which never runs backwards (docs/sampling.md).
    tcp_restart : bool, default=True
        Whether a SYN after a FIN or RST begins a new flow. The paper does not split flows: False there.
    protocols : tuple of {"tcp", "udp"}, default=("tcp", "udp")
        Protocols that make flows; packets of others are counted and skipped.
    tunnels : {"outermost", "innermost"}, default="outermost"
        Which IP packet of a tunnel makes the flow: the one on the wire, or the one inside GRE, VXLAN, IP-in-IP or
        6in4, through at most 16 of them. A row then begins where the tunnel's payload does, as if the packet had been
        captured inside (link type 1 behind an Ethernet header, 101 where IP follows at once).
    duplicate_window : int, default=0
        A packet whose captured bytes equal those of one of so many packets before it is dropped and counted. 0 keeps
        all. ``editcap -D N`` compares with N - 1 packets.
    reorder_window : int, default=0
        A packet that stands behind at most so many later ones is put back in the order of time before flows are made
        and duplicates are looked for; ``reordercap`` does this for a whole file. 0 takes packets in file order.
    fields : {"no_addresses", "paper", "raw", "portable"} or mapping of str to str, default="no_addresses"
        What happens to header fields. A mapping takes ``mac, ip, ports, ip_id, ttl, checksums, tcp_seq, tcp_window,
        tcp_options, tcp_timestamps`` to ``"keep"``, ``"zero"`` or ``"randomize"``. ``"zero"`` holds everywhere;
        ``"randomize"`` holds for training data only, that is in `fit_transform` and `sample`: elsewhere the field is
        kept. ``"no_addresses"`` zeroes ``mac`` and ``ip``, ``"paper"`` randomises them (paper), ``"raw"`` keeps all,
        ``"portable"`` zeroes what betrays the capturing site: all of these fields but ``ports``. docs/benchmarks.md has
        how they detect.
    on_error : {"warn", "raise"}, default="warn"
        A damaged capture: warn (`CaptureWarning`) and keep what was read before, or raise `CaptureError`. With
        ``"warn"``, a file that is no capture is left out of a list as long as another file of it can be read.
    max_live_flows : int, default=262144
        Flows held in memory at a time, about 0.5 KB each. One more ends the longest idle one (counted).
    n_jobs : int or None, default=None
        Threads over captures, as in joblib. The result does not depend on it.
    random_state : int, RandomState instance or None, default=None
        Source of the randomised fields.
    verbose : int, default=0
        1 prints a line per capture, 2 also one about every tenth of it.

    Attributes
    ----------
    counters_ : list of dict
        For each capture of the call that ended last: packets read, packets by what happened to them, flows; empty for a
        capture that was left out. Nothing reads it: it is a convenience, replaced as a whole at the end of each call
        (by `iter_flows`: with each block of records). Threads that share a sampler take ``FlowTable.counters`` of their
        own tables instead, or what `write` returns.

    See Also
    --------
    DOCIDSDetector : The detector that takes these rows.

    Notes
    -----
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

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_packets": [Interval(Integral, 1, 1024, closed="both")],
        "n_bytes": [Interval(Integral, 1, 65_535, closed="both")],
        "bidirectional": ["boolean"],
        "idle_timeout": [Interval(Real, 0, None, closed="neither"), None],
        "tcp_restart": ["boolean"],
        "protocols": [tuple, list],
        "tunnels": [StrOptions({"outermost", "innermost"})],
        "duplicate_window": [Interval(Integral, 0, 65_536, closed="both")],
        "reorder_window": [Interval(Integral, 0, 1_000_000, closed="both")],
        "fields": [StrOptions(set(field_policies.POLICIES)), Mapping],
        "on_error": [StrOptions({"warn", "raise"})],
        "max_live_flows": [Interval(Integral, 1, 2**31 - 2**13, closed="both")],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_packets: int = 4,
        n_bytes: int = 80,
        *,
        bidirectional: bool = True,
        idle_timeout: float | None = 120.0,
        tcp_restart: bool = True,
        protocols: tuple[str, ...] = ("tcp", "udp"),
        tunnels: str = "outermost",
        duplicate_window: int = 0,
        reorder_window: int = 0,
        fields: str | Mapping[str, str] = "no_addresses",
        on_error: str = "warn",
        max_live_flows: int = 262_144,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ):
        self.n_packets = n_packets
        self.n_bytes = n_bytes
        self.bidirectional = bidirectional
        self.idle_timeout = idle_timeout
        self.tcp_restart = tcp_restart
        self.protocols = protocols
        self.tunnels = tunnels
        self.duplicate_window = duplicate_window
        self.reorder_window = reorder_window
        self.fields = fields
        self.on_error = on_error
        self.max_live_flows = max_live_flows
        self.n_jobs = n_jobs
        self.random_state = random_state
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
            the name. A binary file may be a pipe or ``sys.stdin.buffer``: all that is needed is ``readinto``.

        Returns
        -------
        ndarray of uint8, shape (n_flows, n_packets * n_bytes)
            One row per flow. No flows: shape (0, n_packets * n_bytes).

        Raises
        ------
        OSError
            A path is missing or cannot be read.
        CaptureError
            No input is a capture, or one is damaged and ``on_error="raise"``.
        """
        return self._output(captures, self.flows(captures).X)

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
        ndarray of uint8, shape (n_flows, n_packets * n_bytes)
            One row per flow.
        """
        return self._output(captures, self._sampled(captures, training=True).X)

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

    def sample(self, captures: Any, y: Any = None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Return training data: bytes as in `fit_transform`, a label per flow and the capture of each flow.

        Parameters
        ----------
        captures : path, binary file or list of them
            Captures, as in `transform`.
        y : list or callable, default=None
            One label per capture, one array of labels per capture (a label per flow), or a function that takes the
            `FlowTable` and returns a label per flow.

        Returns
        -------
        X : ndarray of uint8, shape (n_flows, n_packets * n_bytes)
            One row per flow.
        y_flow : ndarray, shape (n_flows,), or None
            Labels; None if ``y`` is None.
        groups : ndarray of int64, shape (n_flows,)
            Number of the capture of each flow, for splitters that keep captures together.

        Raises
        ------
        ValueError
            The number of labels is neither that of the captures nor that of the flows.
        """
        flows = self._sampled(captures, training=True)
        return flows.X, _flow_labels(y, flows), flows.capture

    def write(self, captures: Any, out: str | os.PathLike[str]) -> list[dict[str, int]]:
        """Write what `flows` returns to disk in bounded memory.

        Parameters
        ----------
        captures : path, binary file or list of them
            Captures, as in `transform`.
        out : path
            ``X.npy``: an array file with the bytes alone. Another name: a folder with ``X.npy``, ``flows.npy`` (a
            structured array, one record per flow), ``kept_bytes.npy`` and ``captures.json``. Files of these names
            are replaced, each as a whole, when all captures have been read.

        Returns
        -------
        list of dict
            Counters per capture.
        """
        counters = write_flows(
            _as_list(captures), self._rules(), self.on_error, os.fsdecode(out), self._progress, self._run_all
        )
        self.counters_ = counters
        return counters

    def iter_flows(self, source: Any, *, early: bool = True) -> Iterator[FlowTable]:
        """Yield flows of a stream in bounded memory, each as soon as it is complete or when it has ended.

        Bytes are as in `transform`.

        Parameters
        ----------
        source : path or binary file
            One capture; a pipe or FIFO is read as its data comes.
        early : bool, default=True
            True: a flow comes with its ``n_packets``-th packet, its columns with the counts up to then; later packets
            are absorbed until it idles out or restarts, and shorter flows come when they do. False: every flow comes
            when it has idled out, restarted or been ended by ``max_live_flows``, or with the end of the stream, and
            rows and columns are those of `flows`, in another order.

        Yields
        ------
        FlowTable
            One or more flows, in the order in which they were complete or, with ``early=False``, ended: an eighth of
            ``idle_timeout`` late at most, by the clock of the capture.
        """
        rules = self._rules(emit_early=early)
        queue: list[FlowRows] = []
        name = capture_name(source)
        for assembler in assemble(source, rules, self.on_error, lambda rows: queue.append(rows.copy())):
            assembler.flush_idle()
            self.counters_ = [assembler.counters]
            for rows in queue:
                yield FlowTable(rows, np.zeros(len(rows), np.int64), [name], self.counters_)
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
        return FlowRules(
            n_packets=int(self.n_packets),
            n_bytes=int(self.n_bytes),
            bidirectional=self.bidirectional,
            idle_timeout=self.idle_timeout,
            tcp_restart=self.tcp_restart,
            protocols=tuple(self.protocols),
            max_live_flows=self.max_live_flows,
            innermost=self.tunnels == "innermost",
            duplicate_window=self.duplicate_window,
            reorder_window=self.reorder_window,
            emit_early=emit_early,
            field_actions=field_policies.actions_at_copy(self._actions(training=training)),
        )

    def _actions(self, *, training: bool) -> np.ndarray:
        return field_policies.policy_actions(self.fields, training=training)

    def _sampled(self, captures: Any, *, training: bool) -> FlowTable:
        rules = self._rules(training=training)
        sources = _as_list(captures)
        parts = self._run_all(read_whole, [(source, rules, self.on_error, self._progress) for source in sources])
        flows = concatenate([capture_name(source) for source in sources], parts, rules)
        # Outside training nothing is random, and no generator is touched.
        seed = int(check_random_state(self.random_state).randint(2**63 - 1, dtype=np.int64)) if training else 0
        actions = self._actions(training=training)
        if field_policies.is_random(actions):
            field_policies.apply_fields(flows.rows, actions, seed)
        self.counters_ = flows.counters
        return flows

    def _run_all(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a function once per capture, in threads: kernels release the GIL, and nothing is copied.

        After an error no other capture is begun; those in work are finished, so that no thread goes on behind the
        caller's back, and the first error in order of captures is raised, whatever the number of threads. Ctrl-C does
        not wait for them, but ends them, too, with the next packets they read.
        """
        failed, interruption, frame = threading.Event(), threading.Event(), caller()

        def guarded(each: tuple[Any, ...]) -> tuple[Any, Exception | None]:
            if failed.is_set() or interruption.is_set():
                return None, None
            token = interrupted.set(interruption)
            try:
                with called_from(frame):
                    return function(*each), None
            except Exception as error:
                failed.set()
                return None, error
            finally:
                interrupted.reset(token)

        try:
            results = Parallel(n_jobs=self.n_jobs, require="sharedmem")(delayed(guarded)(each) for each in arguments)
        except BaseException:
            interruption.set()
            raise
        for _, error in results:
            if error:
                raise error
        return [result for result, _ in results]

    def _progress(self, name: str, fraction: float | None, counters: dict[str, int]) -> None:
        if self.verbose > (0 if fraction is None else 1):
            done = "" if fraction is None else f"{fraction:.0%}, "
            print(f"{printable(name)}: {done}{described(counters)}", flush=True)

    def _output(self, captures: Any, X: np.ndarray) -> Any:
        """Return X with an index of its own where scikit-learn would copy that of a Series of paths."""
        if hasattr(captures, "iloc") and _get_output_config("transform", self)["dense"] == "pandas":
            import pandas

            return pandas.DataFrame(X, columns=self.get_feature_names_out())
        return X


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
    return np.concatenate([_capture_labels(*entry) for entry in zip(y, n_flows, flows.captures, strict=True)])


def _capture_labels(label: Any, n_flows: int, name: str) -> np.ndarray:
    if np.ndim(label) == 0:
        return np.repeat(np.asarray(label), n_flows)
    if len(label) != n_flows:
        raise ValueError(f"y has {len(label)} labels for the {n_flows} flows of {name}")
    return np.asarray(label)
