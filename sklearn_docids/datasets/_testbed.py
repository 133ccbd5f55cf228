# SPDX-License-Identifier: BSD-3-Clause
"""The bundled testbed: real programs talking to each other in closed networks, labels written down as they acted."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import Bunch

from sklearn_docids._sampler import FlowSampler
from sklearn_docids.capture.layouts import DESCRIPTION_BYTES
from sklearn_docids.datasets._folder import plain_name

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

# What the bundled captures hold of a flow, and what a row may ask for: with headers of 66 bytes, as Ethernet, IPv4 and
# TCP with time stamps have, there are 94 bytes of payload in 160.
MOST_PACKETS, MOST_BYTES = 8, 160
LARGEST_ROWS = {"packets": (MOST_PACKETS, MOST_BYTES), "payload": (MOST_PACKETS // 2, DESCRIPTION_BYTES + 94)}
PROTOCOLS = {"tcp": 6, "udp": 17}
# The clock of the program that acts and that of the capture are one, but the packet comes later than the wish.
CLOCK_NS = 500_000_000
# For so long, Linux does not use the ports of a closed connection again; no flow of the truth lasts longer.
REUSE_NS = 60_000_000_000
# Nobody waits longer for an answer over UDP.
LONGEST_UDP_NS = 10_000_000_000
MIXED = "?"
PERIODS = ("train", "validation", "test")
FOLDER = Path(str(files("sklearn_docids.datasets"))) / "testbed"
REFERENCE = FOLDER / "reference"


def load_testbed(*, sampler: FlowSampler | None = None) -> Bunch:
    """Load the bundled testbed: a reference of 22 services, and an office in normal and abnormal times.

    The captures are of unmodified programs from Debian packages in closed network namespaces. The reference has one
    capture per service. The target is an office of five clients and five servers: a normal training period, and a
    validation and a test period in which the same hosts carry abnormal traffic, too. The truth was written down by the
    scripts that made it. ``testbed/`` in the repository rebuilds everything.

    Guide: :doc:`/tutorials/python`.

    Parameters
    ----------
    sampler : FlowSampler, default=None
        Sampler to use, for at most 8 packets of 160 bytes, which is what the captures hold of a flow: with
        ``layout="payload"``, 4 packets of 102 bytes. None: ``FlowSampler()``, which zeroes addresses. Reference and
        training rows are sampled as training data (`FlowSampler.sample`), the others as they are scored. Whatever its
        ``output``, there are rows and tables.

    Returns
    -------
    Bunch
        ``X_reference``, ``X_train``, ``X_validation``, ``X_test``: ndarray of uint8, shape (n_flows, n_packets *
        n_bytes); ``y_reference``: ndarray of str, the service; ``y_validation``, ``y_test``: ndarray of int64, +1
        normal and -1 abnormal; ``attack_validation``, ``attack``: ndarray of str, the kind of each abnormal flow of
        validation and test, "" for normal ones; ``tempo_validation``, ``tempo``: "quick", "slow" or ""; ``groups``:
        ndarray of int64, the number of the host that began each training flow, for scikit-learn's group splitters;
        ``flows_reference``, ``flows_train``, ``flows_validation``, ``flows_test``: the `FlowTable` that the rows of
        ``X_reference`` and the others are those of; ``captures``: paths by part; ``DESCR``: flows per class as text.

    Raises
    ------
    ValueError
        The sampler asks for more of a flow than the captures hold, or for the two directions as flows of their own.

    Notes
    -----
    Attack kinds are stand-ins made by plain clients, without exploits, and the network has no delay, loss or router.
    Results on it compare detectors; they do not tell how many attacks would be found elsewhere. Guesses of passwords
    for SSH and FTP and beacons over TLS begin as their normal kin do: in the first 80 bytes of four packets there is
    nothing to tell them apart. Flows of which one UDP port was used twice, for a normal and an abnormal question, are
    left out.

    Examples
    --------
    >>> from sklearn_docids.datasets import load_testbed
    >>> testbed = load_testbed()
    >>> testbed.X_train.shape[1], len(set(testbed.y_reference))
    (320, 22)
    >>> sorted(set(testbed.attack.tolist()))[1:4]
    ['beacon_http', 'beacon_tcp', 'beacon_tls']
    """
    sampler = FlowSampler() if sampler is None else sampler
    n_packets, n_bytes = LARGEST_ROWS.get(sampler.layout, (MOST_PACKETS, MOST_BYTES))
    if sampler.n_packets > n_packets or sampler.n_bytes > n_bytes:
        raise ValueError(
            f"the testbed's captures hold {MOST_PACKETS} packets of {MOST_BYTES} bytes of a flow, enough for rows of "
            f"layout={sampler.layout!r} with n_packets={n_packets} of n_bytes={n_bytes}, but the sampler asks for "
            f"n_packets={sampler.n_packets} of n_bytes={sampler.n_bytes}"
        )
    if not sampler.bidirectional:
        raise ValueError("the truth is about whole flows: give a sampler with bidirectional=True")
    captures: dict[str, Any] = {period: FOLDER / f"{period}.pcap.xz" for period in PERIODS}
    captures["reference"] = sorted(REFERENCE.glob("*.pcap.xz"))
    services = [plain_name(path) for path in captures["reference"]]
    flows_reference = sampler._sampled(captures["reference"], training=True, y=services)
    flows_train = sampler._sampled(captures["train"], training=True)
    data = Bunch(
        X_reference=flows_reference.X,
        y_reference=np.array(services)[flows_reference.capture],
        flows_reference=flows_reference,
        X_train=flows_train.X,
        flows_train=flows_train,
        groups=np.unique(flows_train.src_ip, return_inverse=True)[1],
        captures=captures,
    )
    for period, suffix in (("validation", "_validation"), ("test", "")):
        flows = sampler.flows(captures[period])
        kinds, tempi = truth_of(flows, FOLDER / f"{period}.csv")
        unmixed = kinds != MIXED
        flows, kinds, tempi = flows[unmixed], kinds[unmixed], tempi[unmixed]
        data[f"X_{period}"] = flows.X
        data[f"y_{period}"] = np.where(kinds == "", 1, -1)
        data[f"attack{suffix}"], data[f"tempo{suffix}"] = kinds, tempi
        data[f"flows_{period}"] = flows
    data.DESCR = _described(data)
    return data


def truth_of(flows: FlowTable, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return kind and tempo of each flow as written down, "" for normal flows.

    A line belongs to the flows of its five-tuple, seen from either side, that begin with it or within a minute: later,
    the five-tuple may be somebody else's. A UDP port may be used again while the flow of its last use is live; the kind
    of a flow that thereby holds normal and abnormal packets is `MIXED`.
    """
    lines: dict[tuple[Any, ...], list[tuple[int, str, str]]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            source = line["source"], int(line["source_port"])
            destination = line["destination"], int(line["destination_port"])
            began = int(float(line["time"]) * 1e9)
            for ends in ((source, destination), (destination, source)):
                key = (PROTOCOLS[line["protocol"]], *ends)
                lines.setdefault(key, []).append((began, line["kind"], line["tempo"]))
    kinds, tempi = np.full((2, len(flows)), "", dtype=object)
    sources = zip(flows.src_ip.tolist(), flows.src_port.tolist(), strict=True)
    destinations = zip(flows.dst_ip.tolist(), flows.dst_port.tolist(), strict=True)
    for row, key in enumerate(zip(flows.protocol.tolist(), sources, destinations, strict=True)):
        for began, kind, tempo in lines.get(key, ()):
            if kinds[row] == MIXED:
                break
            first, last = flows.time_first[row], flows.time_last[row]
            if began - CLOCK_NS <= first < began + REUSE_NS:
                reused = key[0] == PROTOCOLS["udp"] and last > first + LONGEST_UDP_NS
                kinds[row], tempi[row] = MIXED if reused else kind, tempo
            elif first < began < last:
                kinds[row] = MIXED
    return kinds.astype(str), tempi.astype(str)


def _described(data: Bunch) -> str:
    text = "Testbed: real programs in closed networks, truth written down as they acted.\n\nReference:\n"
    for name, count in zip(*np.unique(data.y_reference, return_counts=True), strict=True):
        text += f"  {name}: {count} flows\n"
    text += f"\nTarget, training: {len(data.X_train)} normal flows\n"
    for title, kinds in (("validation", data.attack_validation), ("test", data.attack)):
        text += f"Target, {title}: {np.sum(kinds == '')} normal flows\n"
        for name, count in zip(*np.unique(kinds[kinds != ""], return_counts=True), strict=True):
            text += f"  {name}: {count} flows\n"
    return text
