# SPDX-License-Identifier: BSD-3-Clause
"""Community ID version 1: one name for a flow across Zeek, Suricata, Wireshark and us.

Specification: https://github.com/corelight/community-id-spec
"""

from __future__ import annotations

import base64
import hashlib
import struct

import numpy as np


def community_id(records: np.ndarray) -> np.ndarray:
    """Return the community IDs (str) of flow records, with seed 0."""
    ids = [_one_id(*fields) for fields in zip(*(records[name].tolist() for name in _FIELDS), strict=True)]
    return np.array(ids, dtype="U30")


_FIELDS = ("ip_version", "src_high", "src_low", "src_port", "dst_high", "dst_low", "dst_port", "protocol")


def _one_id(version: int, *fields: int) -> str:
    src_high, src_low, src_port, dst_high, dst_low, dst_port, protocol = fields
    n_bytes = 4 if version == 4 else 16
    source = (src_high << 64 | src_low).to_bytes(n_bytes, "big"), src_port
    destination = (dst_high << 64 | dst_low).to_bytes(n_bytes, "big"), dst_port
    # The smaller endpoint comes first, so that both directions get one name.
    (first, first_port), (second, second_port) = sorted((source, destination))
    ports = struct.pack("!HH", first_port, second_port)
    digest = hashlib.sha1(b"\0\0" + first + second + bytes([protocol, 0]) + ports).digest()
    return "1:" + base64.b64encode(digest).decode("ascii")
