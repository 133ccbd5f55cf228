"""Flagged flows made of their columns alone, for tests of what is said of them."""

from ipaddress import ip_address

import numpy as np

from sklearn_docids._alarms.alarm import Alarm, FlaggedFlow
from sklearn_docids.capture.flows import FlowRows
from sklearn_docids.capture.kernels import FLOW_DTYPE
from sklearn_docids.capture.layouts import DESCRIPTION_BYTES
from sklearn_docids.capture.table import FlowTable

SECOND = 10**9


def flow_table(flows, request=b"", n_bytes=80):
    """Return a table of flows, each a dict of columns; ``src`` and ``dst`` are addresses."""
    records = np.zeros(len(flows), FLOW_DTYPE)
    for record, given in zip(records, flows, strict=True):
        columns = {"src": "10.0.0.1", "dst": "10.0.1.1", "src_port": 40_000, "dst_port": 443, "protocol": 6} | given
        for side in ("src", "dst"):
            address = ip_address(columns.pop(side))
            record[f"{side}_high"], record[f"{side}_low"] = int(address) >> 64, int(address) & (2**64 - 1)
            record["ip_version"] = address.version
        columns["time_last"] = columns.get("time_last", columns.get("time_first", 0))
        columns["link_type"] = 1
        for name, value in columns.items():
            record[name] = value
    X = np.zeros((len(flows), n_bytes), np.uint8)
    X[:, DESCRIPTION_BYTES : DESCRIPTION_BYTES + len(request)] = np.frombuffer(request, np.uint8)
    kept = np.full((len(flows), 1), n_bytes, np.uint16)
    lengths = np.full((len(flows), 1), len(request), np.int32)
    return FlowTable(FlowRows(records, X, kept, lengths, "payload"), np.zeros(len(flows), np.int64), ["a.pcap"], [{}])


def flagged_flow(score=-5.0, p_value=0.002, reasons=(), capture="a.pcap", threshold=-4.0, request=b"", **columns):
    return FlaggedFlow(flow_table([columns], request), capture, score, threshold, p_value, reasons)


def alarm_of(flagged, level="channel", n_flows=1, n_channels=1, n_reported=1, time_first=None, time_last=None):
    begin = int(flagged.flow.time_first[0])
    first, last = begin if time_first is None else time_first, begin if time_last is None else time_last
    return Alarm("00c0ffee00c0ffee", level, first, last, n_flows, n_channels, flagged, n_reported)
