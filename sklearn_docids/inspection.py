# SPDX-License-Identifier: BSD-3-Clause
"""Why a flow is abnormal: the bytes that raise its score, by packet and header field, compared with a normal flow."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sklearn_docids.capture import layouts
from sklearn_docids.capture.headers import LINK_ETHERNET, TCP, UDP, find_transport
from sklearn_docids.capture.layouts import DESCRIPTION, DESCRIPTION_BYTES, LAYOUTS

__all__ = ["ByteReason", "byte_reasons", "field_names"]


class ByteReason(NamedTuple):
    """One byte of a flow and its part in the score.

    Guide: :doc:`/tutorials/from-alarm-to-reason`.
    """

    packet: int
    byte: int
    field: str
    value: int
    nearest_value: int | None
    attribution: float


def byte_reasons(
    detector: Any,
    X: ArrayLike,
    *,
    n_listed: int = 16,
    n_packets: int | None = None,
    link_type: int = LINK_ETHERNET,
    layout: str | None = None,
) -> list[list[ByteReason]]:
    """Return the bytes that matter most to the score of each flow.

    Guide: :doc:`/tutorials/from-alarm-to-reason`.

    Parameters
    ----------
    detector : DOCIDSDetector, AutoencoderDetector or ConvAutoencoderDetector
        Fitted detector with ``explain``.
    X : array-like of shape (n_flows, n_columns)
        Flow bytes.
    n_listed : int, default=16
        Most bytes to list per flow; those without any part in the score are left out.
    n_packets : int or None, default=None
        Packets of a row, as in the detector's ``explain``.
    link_type : int, default=1
        libpcap's number of the link type: 1 for Ethernet, 101 for IP without link header; those that `FlowSampler`
        reads.
    layout : {"packets", "payload"} or None, default=None
        What the rows hold, as in `FlowSampler`. None: the layout of the detector's ``sampler_``, ``"packets"`` without
        one.

    Returns
    -------
    list of list of ByteReason
        For each flow, by descending size of the attribution: ``packet`` and ``byte`` (counted from 0), ``field``,
        ``value``, ``nearest_value`` (of the most similar template; None where the detector has none), ``attribution``
        (see the detector's ``explain``).

    Raises
    ------
    ValueError
        ``n_listed`` is not a positive whole number, ``layout`` is none, or the detector refuses X.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_docids import AutoencoderDetector
    >>> from sklearn_docids.inspection import byte_reasons
    >>> X = np.tile(np.arange(80, dtype=np.uint8), (20, 1))
    >>> X[:, 79] = range(20)
    >>> detector = AutoencoderDetector(max_epochs=200, random_state=0).fit(X)
    >>> strange = X[:1].copy()
    >>> strange[0, 22] = 255
    >>> byte_reasons(detector, strange, n_listed=1, n_packets=1)[0][0].byte
    22
    """
    if not isinstance(n_listed, Integral) or n_listed < 1:
        raise ValueError(f"n_listed must be a positive whole number, got {n_listed!r}")
    if layout is None:
        sampler = getattr(detector, "sampler_", None)
        layout = "packets" if sampler is None else sampler.layout
    attributions = detector.explain(X, n_packets=n_packets)
    n_packets, width = attributions.shape[1:]
    similar: list[Any] = [None] * len(attributions)
    if getattr(detector, "template_flows_", None) is not None:
        similar = list(detector.template_flows_[detector.most_similar_templates(X)])
    X = np.asarray(X)  # names of columns are the detector's business
    reasons = []
    for row, flat in enumerate(attributions.reshape(len(X), -1)):
        packets = X[row].reshape(n_packets, width)
        names = [name for packet in packets for name in field_names(packet, link_type, layout=layout)]
        order = [column for column in np.argsort(-np.abs(flat), kind="stable")[:n_listed] if flat[column]]
        reasons.append(
            [
                ByteReason(
                    int(column // width), int(column % width), names[column], int(X[row, column]),
                    None if similar[row] is None else int(similar[row][column]), float(flat[column]),
                )
                for column in order
            ]
        )  # fmt: skip
    return reasons


def field_names(packet: Any, link_type: int = LINK_ETHERNET, *, layout: str = "packets") -> list[str]:
    """Return the name of the field that each byte of a packet in a row belongs to.

    Guide: :doc:`/sampling`.

    Parameters
    ----------
    packet : array-like of uint8, shape (n_bytes,)
        What a row holds of the packet: its first bytes, from the link header, or its description and payload. What is
        missing may be zero.
    link_type : int, default=1
        libpcap's number of the link type: 1 for Ethernet, 101 for IP without link header; those that `FlowSampler`
        reads.
    layout : {"packets", "payload"}, default="packets"
        What a row holds, as in `FlowSampler`.

    Returns
    -------
    list of str
        ``"payload"`` behind the headers, ``"IP options"`` also for extension headers, ``"no packet"`` for a packet
        that is all zero, ``"unknown"`` for one in which no IP header is found. With ``layout="payload"``:
        ``"protocol"``, ``"direction"``, ``"payload length"``, ``"TCP flags"``, ``"packet number"``,
        ``"service port"``, and ``"payload byte 0"`` for the first byte behind the TCP or UDP header.

    Raises
    ------
    ValueError
        ``layout`` is none.

    Examples
    --------
    >>> from sklearn_docids.inspection import field_names
    >>> names = field_names([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 17] + [0] * 20, link_type=101)
    >>> names[8], names[20], names[29]
    ('IP TTL', 'source port', 'payload')
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is none; choose from {list(LAYOUTS)}")
    data = np.ascontiguousarray(packet, dtype=np.uint8)
    if not data.any():
        return ["no packet"] * len(data)
    if layout == "payload":
        names = DESCRIPTION.names() + [f"payload byte {n}" for n in range(len(data) - DESCRIPTION_BYTES)]
        return names[: len(data)]
    _, version, ip, protocol, transport, _ = find_transport(data, 0, len(data), link_type)
    if not version:
        return ["unknown"] * len(data)
    names = _link_fields(ip) if link_type == LINK_ETHERNET else ["link header"] * ip
    names += (layouts.IPV4 if version == 4 else layouts.IPV6).names()
    names += ["IP options"] * (transport - len(names))
    names += _transport_fields(data, transport, protocol)
    names += ["payload"] * (len(data) - len(names))
    return names[: len(data)]


def _link_fields(n_bytes: int) -> list[str]:
    names = layouts.ETHERNET.names()
    return names + ["tags and labels"] * (n_bytes - len(names))


def _transport_fields(data: np.ndarray, at: int, protocol: int) -> list[str]:
    if protocol == UDP:
        return layouts.UDP.names()
    if protocol != TCP:
        return []
    length_at = at + layouts.TCP_HEADER_LENGTH
    n_header = 4 * int(data[length_at] >> 4) if length_at < len(data) else layouts.TCP_BYTES
    return layouts.TCP.names() + ["TCP options"] * max(0, n_header - layouts.TCP_BYTES)
