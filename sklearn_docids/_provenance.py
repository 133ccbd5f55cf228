# SPDX-License-Identifier: BSD-3-Clause
"""What a model learned from, or was calibrated with, in words and numbers that a model file can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sklearn_docids._sealed import is_number
from sklearn_docids._views.payload import service_name, services
from sklearn_docids.capture.lazy import pieces

if TYPE_CHECKING:
    from sklearn_docids.capture.table import FlowTable

# More are counted, not listed.
MAX_CAPTURES, MAX_SERVICES = 20, 20
MAX_SETTINGS, MAX_TEXT = 100, 256
# That of `fit`, and the latest ones.
MAX_CALIBRATIONS = 20
TRAFFIC_KEYS = {
    "captures", "n_captures", "n_flows", "n_hosts", "services", "n_services", "time_first", "time_last",
}  # fmt: skip
CAPTURE_KEYS = {"name", "packets", "flows", "time_first", "time_last"}
COUNTS = ("n_captures", "n_flows", "n_hosts", "n_services")


def described_traffic(flows: FlowTable) -> dict[str, Any]:
    """Return what a model file says of the flows that a detector learned from, or was calibrated with.

    It holds no address: hosts are counted.

    Guide: :doc:`/how-to/still-fits`.

    Parameters
    ----------
    flows : FlowTable
        The flows.

    Returns
    -------
    dict
        ``captures``: of each of the first 20, ``name``, ``packets`` read (None where nobody knows), ``flows``,
        ``time_first`` and ``time_last`` (of the beginnings of its flows, ns since 1970; None without flows).
        ``services``: ``(name, number of flows)`` of the 20 most frequent. ``n_captures``, ``n_flows``, ``n_hosts``,
        ``n_services``, ``time_first``, ``time_last``: of all.

    See Also
    --------
    sklearn_docids.save_detector : Stores it, as ``provenance={"traffic": described_traffic(flows), "settings": {}}``.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler
    >>> from sklearn_docids.datasets import make_traffic
    >>> from sklearn_docids.persistence import described_traffic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     flows = FlowSampler().flows(make_traffic(folder, n_flows=20, random_state=0).train)
    >>> described_traffic(flows)["n_flows"]
    20
    """
    numbers, n_flows = np.unique(services(flows), return_counts=True)
    times = flows.time_first
    most = np.argsort(-n_flows, kind="stable")[:MAX_SERVICES]
    return {
        "captures": [_described_capture(flows, number, times) for number in range(len(flows.captures))[:MAX_CAPTURES]],
        "n_captures": len(flows.captures),
        "n_flows": len(flows),
        "n_hosts": _n_hosts(flows),
        "services": [[service_name(numbers[place]), int(n_flows[place])] for place in most],
        "n_services": len(numbers),
        **_times(times),
    }


def _described_capture(flows: FlowTable, number: int, times: np.ndarray) -> dict[str, Any]:
    counters = flows.counters[number] if number < len(flows.counters) else {}
    times = times[flows.capture == number]
    return {
        "name": _cut(flows.captures[number]),
        "packets": counters.get("packets"),
        "flows": len(times),
        **_times(times),
    }


def _times(times: np.ndarray) -> dict[str, int | None]:
    if not len(times):
        return {"time_first": None, "time_last": None}
    return {"time_first": int(times.min()), "time_last": int(times.max())}


def _n_hosts(flows: FlowTable) -> int:
    hosts = np.zeros((0, 2), np.uint64)
    for piece in pieces(len(flows)):
        records = flows.rows.records[piece]
        sides = [np.stack([records[f"{side}_high"], records[f"{side}_low"]], axis=1) for side in ("src", "dst")]
        hosts = np.unique(np.concatenate([hosts, *sides]), axis=0)
    return len(hosts)


def storable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, as those of a command line, so that a model file can hold them; long ones are cut."""
    kept = list(settings.items())[:MAX_SETTINGS]
    return {
        name: [_plain(item) for item in value[:MAX_SETTINGS]] if isinstance(value, list | tuple) else _plain(value)
        for name, value in kept
    }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool) or is_number(value) else _cut(value)


def _cut(text: Any) -> str:
    return str(text)[:MAX_TEXT]


def is_provenance(value: Any) -> bool:
    """Return whether a value is what `save_detector` takes as provenance."""
    return (
        isinstance(value, dict)
        and set(value) == {"traffic", "settings"}
        and (value["traffic"] is None or is_traffic(value["traffic"]))
        and _are_settings(value["settings"])
    )


def is_traffic(value: Any) -> bool:
    """Return whether a value is one of `described_traffic`, JSON's lists for tuples."""
    return (
        isinstance(value, dict)
        and set(value) == TRAFFIC_KEYS
        and all(_is_number_of(value[name]) for name in COUNTS)
        and _are_times(value)
        and _are_few(value["captures"], MAX_CAPTURES, _is_capture)
        and _are_few(value["services"], MAX_SERVICES, _is_service)
    )


def is_text(value: Any) -> bool:
    """Return whether a value is a string of bounded length."""
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _is_capture(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == CAPTURE_KEYS
        and is_text(value["name"])
        and (value["packets"] is None or _is_number_of(value["packets"]))
        and _is_number_of(value["flows"])
        and _are_times(value)
    )


def _is_service(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and is_text(value[0]) and _is_number_of(value[1])


def _are_times(value: dict[str, Any]) -> bool:
    """Return whether beginning and end are both unknown, or in this order."""
    first, last = value["time_first"], value["time_last"]
    if first is None or last is None:
        return first is None and last is None
    return type(first) is int and type(last) is int and -(2**63) <= first <= last < 2**63


def _are_settings(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_SETTINGS
        and all(is_text(name) for name in value)
        and all(_is_scalar(item) or _are_few(item, MAX_SETTINGS, _is_scalar) for item in value.values())
    )


def _are_few(value: Any, most: int, is_good: Any) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(is_good, value))


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool) or is_text(value) or is_number(value)


def _is_number_of(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
