# SPDX-License-Identifier: BSD-3-Clause
"""Header-field policies: which header bytes of flows are kept, zeroed or randomised.

Zeros are written as the bytes are copied. Random values depend on the number of the flow among those of all captures,
which nobody knows before all are read: they are a second pass over the rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sklearn_docids.capture._native import kernel
from sklearn_docids.capture.flows import FlowRows
from sklearn_docids.capture.headers import PACKET_DTYPE, SAMPLED, find_transport
from sklearn_docids.capture.layouts import FIELDS, SERVICE_PORT
from sklearn_docids.capture.rewriting import (
    ACTIONS,
    KEEP,
    PORTS,
    RANDOMIZE,
    Rewriting,
    mix,
    rewrite,
    rewrite_packet,
)

POLICIES: dict[str, dict[str, str]] = {
    "raw": {},
    # Who talks to whom is the network's own matter: no address says what a flow does.
    "no_addresses": {"mac": "zero", "ip": "zero"},
    # The paper: MAC and IP addresses are random in the training data.
    "paper": {"mac": "randomize", "ip": "randomize"},
    # Addresses, and what tells hosts and capture points apart whatever they do: distance (TTL), counters, the
    # habits of a TCP stack, and checksums, which still encode the zeroed addresses.
    "portable": dict.fromkeys(
        ("mac", "ip", "ip_id", "ttl", "checksums", "tcp_seq", "tcp_window", "tcp_options", "tcp_timestamps"), "zero"
    ),
}


def policy_actions(fields: str | Mapping[str, str], *, training: bool) -> np.ndarray:
    """Return one action number per field of `FIELDS`; outside training, ``"randomize"`` keeps.

    Raises
    ------
    ValueError
        The policy, a field or an action is unknown.
    """
    if isinstance(fields, str):
        if fields not in POLICIES:
            raise ValueError(f"fields={fields!r} is no policy; choose from {sorted(POLICIES)} or give a mapping")
        fields = POLICIES[fields]
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise ValueError(f"fields names {unknown}, which are no header fields; choose from {list(FIELDS)}")
    wrong = sorted(str(action) for action in set(fields.values()) - set(ACTIONS))
    if wrong:
        raise ValueError(f"fields has the actions {wrong}; choose from {list(ACTIONS)}")
    actions = np.array([ACTIONS.index(fields.get(name, "keep")) for name in FIELDS], np.int64)
    return actions if training else np.where(actions == RANDOMIZE, KEEP, actions)


def described_actions(actions: np.ndarray) -> dict[str, str]:
    """Return actions as a mapping that `policy_actions` takes, without those that keep."""
    return {name: ACTIONS[action] for name, action in zip(FIELDS, actions.tolist(), strict=True) if action != KEEP}


def is_random(actions: np.ndarray) -> bool:
    """Whether actions need `apply_fields` after the capture has been read.

    It does all of them then: bytes to zero may be needed to find those that become random, as in TCP options.
    """
    return RANDOMIZE in actions


def actions_at_copy(actions: np.ndarray) -> tuple[int, ...]:
    """Return the actions to apply as bytes are copied."""
    return (KEEP,) * len(FIELDS) if is_random(actions) else tuple(actions.tolist())


def apply_fields(rows: FlowRows, actions: np.ndarray, seed: int) -> None:
    """Apply actions to ``rows.X`` in place.

    A randomised value is a keyed hash of (seed, flow, field, old value): equal values of a flow stay equal in both
    directions, the same address becomes another one in each flow, and a seed gives the same rows again. Checksums
    that are kept follow the changes around them: a valid one stays valid, and the old address cannot be read from
    it; one left to the network card stays so; 0 (not computed) stays 0. From a corrupt one it could be read. Rows of
    payload have the service port alone.

    Raises
    ------
    ValueError
        The rows are not as the sampler makes them.
    """
    rows.check()
    if not actions.any():
        return
    if rows.layout == "payload":
        apply_to_payload(rows.X, rows.kept_bytes, actions, np.uint64(seed))
    else:
        link_types = rows.records["link_type"].astype(np.int64)
        packet = np.zeros(1, PACKET_DTYPE)
        apply_to_rows(rows.X, rows.kept_bytes, link_types, actions, np.uint64(seed), packet)


@kernel
def seed_of(flow, seed):
    """Return the seed of the random values of a flow."""
    return mix(seed + np.uint64(flow) * np.uint64(0xD1342543DE82EF95))


@kernel
def apply_to_payload(X, kept, actions, seed):
    """Apply actions to the service port in the description of each packet."""
    n_bytes = X.shape[1] // kept.shape[1]
    for flow in range(len(X)):
        for number in range(kept.shape[1]):
            if kept[flow, number] > 0:
                port = number * n_bytes + SERVICE_PORT
                job = Rewriting(X[flow], X[flow], 0, port + 2, actions, seed_of(flow, seed))
                rewrite(job, port, port + 2, PORTS, False)


@kernel
def apply_to_rows(X, kept, link_types, actions, seed, packets):
    """Apply actions to all packets of all flows."""
    packet = packets[0]
    n_bytes = X.shape[1] // kept.shape[1]
    for flow in range(len(X)):
        row, flow_seed = X[flow], seed_of(flow, seed)
        packet.link_type = link_types[flow]
        for number in range(kept.shape[1]):
            packet.start = number * n_bytes
            stop = packet.start + kept[flow, number]
            find_headers(row, stop, packet)
            rewrite_packet(Rewriting(row, row, 0, stop, actions, flow_seed), packet)


@kernel
def find_headers(row, stop, packet):
    """Find the headers of a packet that a row holds the beginning of."""
    fate, version, ip, protocol, transport, _ = find_transport(row, packet.start, stop, packet.link_type)
    packet.ip_version, packet.ip = version, ip
    packet.protocol, packet.transport = (protocol, transport) if fate == SAMPLED else (0, stop)
