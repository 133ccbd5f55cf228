# SPDX-License-Identifier: BSD-3-Clause
"""Names that clients ask for, where the payload bytes of a row show them whole.

These are the names of DNS queries, also by mDNS and LLMNR, and the hosts of HTTP requests, whose header they are in
where the path is short. Of 72 bytes of payload, a name of up to 55 characters fits into a query. The name in a TLS
hello lies further back than the rows reach, and no guess is made at a name that is cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sklearn_docids.capture.layouts import DESCRIPTION_BYTES, DIRECTION, FORWARD

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

PROTOCOLS = {"tcp": 6, "udp": 17}
DNS_PORTS = (53, 5353, 5355)  # DNS, mDNS, LLMNR
DNS_HEADER = 12
MAX_LABEL = 63
LABEL = re.compile(rb"[\w-]+", re.ASCII)
REQUEST = re.compile(rb"[A-Z]{3,20} ")
# The name of a proxy's request is in its first line; a user name in front of it would be taken for it.
PROXY_REQUEST = re.compile(rb"CONNECT ([\w.-]+)(?::\d+)? HTTP/|[A-Z]+ https?://([\w.-]+)(?::\d*)?[/? ]", re.ASCII)
HOST = re.compile(rb"\r\nHost:[ \t]*([\w.-]+)(?::\d+)?[ \t]*(?=\r\n)", re.ASCII | re.IGNORECASE)
NO_NAME = ""


def asked_name(flows: FlowTable, row: int) -> str:
    """Return the one name that a flow asks for, in lower case; empty where none is visible, or there are several."""
    if flows.layout != "payload":
        return NO_NAME
    rows, record = flows.rows, flows.rows.records[row]
    places = rows.X[row].reshape(flows.n_packets, -1)
    messages = [
        place[DESCRIPTION_BYTES:kept].tobytes()
        for place, kept in zip(places, rows.kept_bytes[row].tolist(), strict=True)
        if kept > DESCRIPTION_BYTES and place[DIRECTION] == FORWARD
    ]
    return name_in(messages, int(record["protocol"]), int(record["dst_port"]))


def name_in(messages: Sequence[bytes], protocol: int, port: int) -> str:
    """Return the one name that messages from a client ask for; of each, the beginning is enough."""
    if protocol == PROTOCOLS["udp"] and port in DNS_PORTS:
        names = {_name_in_query(message) for message in messages}
    elif protocol == PROTOCOLS["tcp"] and messages and REQUEST.match(messages[0]):
        names = {_name_in_request(message) for message in messages}
    else:
        return NO_NAME
    names.discard(None)
    name = names.pop() if len(names) == 1 else None
    return (name or b"").decode("ascii").lower().rstrip(".")


def _name_in_query(message: bytes) -> bytes | None:
    """Return the name of a DNS query; empty if it is not there whole or there are several, None of an answer."""
    if len(message) > 2 and message[2] & 0x80:
        return None
    if message[4:6] != b"\0\1":  # number of questions
        return b""
    labels, at = [], DNS_HEADER
    while at < len(message) and 0 < message[at] <= MAX_LABEL:
        labels.append(message[at + 1 : at + 1 + message[at]])
        at += 1 + message[at]
    is_whole = at < len(message) and message[at] == 0
    return b".".join(labels) if is_whole and all(map(LABEL.fullmatch, labels)) else b""


def _name_in_request(message: bytes) -> bytes | None:
    """Return the host of an HTTP request; empty if it is not there whole or there are several, None of a body."""
    if not REQUEST.match(message):
        return None
    proxied = PROXY_REQUEST.match(message)
    if proxied:
        return proxied[1] or proxied[2]
    headers, end, _ = message.partition(b"\r\n\r\n")
    hosts = {host.lower() for host in HOST.findall(headers + end)}
    return hosts.pop() if len(hosts) == 1 else b""
