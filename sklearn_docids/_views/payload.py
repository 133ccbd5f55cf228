# SPDX-License-Identifier: BSD-3-Clause
"""What views read from payload rows: the first request, the first response, and the service."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sklearn_docids._text import PROTOCOL_NAMES
from sklearn_docids.capture.layouts import BACKWARD, DESCRIPTION_BYTES, FORWARD
from sklearn_docids.capture.lazy import pieces
from sklearn_docids.capture.table import FlowTable

# Ports from here on are given out by systems as they like: one of them is as good as another.
FIRST_EPHEMERAL_PORT = 32_768
MAX_SERVICE = 255 * 65_536 + FIRST_EPHEMERAL_PORT


class Messages(NamedTuple):
    """First payload of each flow in one direction."""

    data: np.ndarray  # uint8 (n_flows, n_bytes), zero-padded
    lengths: np.ndarray  # int64 (n_flows,): bytes of `data` that are payload


def first_messages(flows: FlowTable, direction: int) -> Messages:
    """Return the beginning of the first payload that was sent in a direction; empty where there was none."""
    lengths = flows.payload_lengths * {FORWARD: 1, BACKWARD: -1}[direction]
    rows, first = np.arange(len(flows)), (lengths > 0).argmax(axis=1)
    lengths = np.maximum(0, lengths[rows, first])
    payload = flows.X.reshape(len(flows), flows.n_packets, -1)[rows, first, DESCRIPTION_BYTES:]
    return Messages(payload * (lengths > 0)[:, None].astype(np.uint8), np.minimum(lengths, payload.shape[1]))


def services(flows: FlowTable) -> np.ndarray:
    """Return a number per flow for protocol and destination port; ephemeral ports are one service."""
    found = np.empty(len(flows), np.int64)
    for piece in pieces(len(flows)):
        records = flows.rows.records[piece]
        found[piece] = records["protocol"].astype(np.int64) * 65_536
        found[piece] += np.minimum(records["dst_port"], FIRST_EPHEMERAL_PORT)
    return found


def service_name(service: int) -> str:
    """Return what a service is called: ``tcp/443``."""
    protocol, port = divmod(int(service), 65_536)
    name = f"{PROTOCOL_NAMES.get(protocol, protocol)}/{port}"
    return name + " or above" if port == FIRST_EPHEMERAL_PORT else name


def quoted(message: bytes, n_bytes: int = 32) -> str:
    """Return the beginning of a message as text that no terminal acts upon."""
    text = repr(message[:n_bytes])[1:]
    return text + "..." if len(message) > n_bytes else text


def hashed(salt: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """Return 64 bits per row: two rows that differ have the same with probability 2**-32 at most over the salt.

    ``salt`` holds 1 + 2 random words per column. The upper 32 bits are multilinear in the halves of the columns, and
    the last step is one to one.
    """
    total = np.full(len(columns[0]), salt[0], np.uint64)
    for number, column in enumerate(columns):
        words = column.astype(np.uint64)
        total += salt[2 * number + 1] * (words & np.uint64(0xFFFFFFFF))
        total += salt[2 * number + 2] * (words >> np.uint64(32))
    return np.asarray(total ^ (total >> np.uint64(32)))
