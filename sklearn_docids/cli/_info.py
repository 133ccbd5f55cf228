# SPDX-License-Identifier: BSD-3-Clause
"""Show what a model learned from, what its threshold is worth, and how it was made.

What a file says of itself is shown once its checksum is right. That shows damage, not who wrote it.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from sklearn_docids.cli._text import print_json, say, time_text

HELP = "show what a model learned from, and what its threshold is worth"
MAX_SETTING = 60
MARGIN, WIDTH = 14, 100


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", metavar="MODEL", help="model file")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def run(args: argparse.Namespace) -> None:
    """Read the file and print what it says."""
    from sklearn_docids._stored.summary import summary_of

    found = summary_of(args.model)
    if args.json:
        print_json(found)
    else:
        say(*_lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['model']}: {_kind(found)}, {found['bytes'] / 1e6:.1f} MB"
    yield from _paragraph("learned from", _traffic_lines(found["learned_from"]))
    yield from _paragraph("threshold", threshold_lines(found["threshold"]))
    yield from _paragraph("calibrations", [calibration_line(one, found) for one in found["calibrations"]])
    if found["views"] is not None:
        yield from _paragraph("views", [", ".join(found["views"])])
    yield from _paragraph("network", _network_lines(found["network"]))
    yield from _paragraph("sampler", _listed(found["sampler"]) or ["none: it cannot read captures"])
    yield from _paragraph("parameters", _listed(found["parameters"]))
    yield from _paragraph("settings", _listed(found["settings"]))
    yield from _paragraph("versions", [", ".join(f"{name} {version}" for name, version in found["versions"].items())])
    yield from _paragraph("sha256", [found["sha256"]])


def _paragraph(title: str, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(filter(None, lines)):
        yield f"{'' if number else title:{MARGIN}}{line}"


def _kind(found: dict[str, Any]) -> str:
    return f"{found['detector']} in a pipeline" if found["in_pipeline"] else str(found["detector"])


def _traffic_lines(traffic: dict[str, Any] | None) -> list[str]:
    if traffic is None:
        return ["unknown: whoever saved it did not say"]
    services = ", ".join(f"{name} ({n_flows})" for name, n_flows in traffic["services"])
    more = traffic["n_captures"] - len(traffic["captures"])
    return [
        f"{traffic['n_flows']} flows of {counted(traffic['n_hosts'], 'host')} in "
        f"{counted(traffic['n_captures'], 'capture')}{_between(traffic)}",
        *(f"  {_capture_line(capture)}" for capture in traffic["captures"]),
        f"  and {more} more" if more > 0 else "",
        f"{counted(traffic['n_services'], 'service')}: {services}",
    ]


def _capture_line(capture: dict[str, Any]) -> str:
    packets = "" if capture["packets"] is None else f"{capture['packets']} packets, "
    return f"{capture['name']}: {packets}{capture['flows']} flows{_between(capture)}"


def _between(traffic: dict[str, Any]) -> str:
    if traffic["time_first"] is None:
        return ""
    return f", {time_text(traffic['time_first'])} to {time_text(traffic['time_last'])}"


def threshold_lines(threshold: dict[str, Any]) -> list[str]:
    """Return what a threshold is worth, in words."""
    offset, n_flows, rate = threshold["offset"], threshold["n_flows"], threshold["false_alarm_rate"]
    if threshold["set_by_hand"]:
        return [
            f"{offset:.6g}, set by hand: nobody knows how many normal flows it flags; docids calibrate sets it anew"
        ]
    if rate is None:
        return [
            f"{offset:.6g}: flags a share of the {n_flows} flows it learned from, and more of new ones; docids "
            "calibrate sets it by other flows"
        ]
    lines = [f"{offset:.6g}: {percent(rate)} false alarms, from {n_flows} normal flows"]
    if "realised" in threshold:
        low, high = threshold["realised"]
        lines.append(f"of new flows like these, it flags {percent(low)} to {percent(high)} in 95 of 100 cases")
        lines.append(f"{percent(threshold['finer_rate'])} needs {_missing(threshold)}")
    return lines


def _missing(threshold: dict[str, Any]) -> str:
    hours = threshold["missing_hours"]
    # A fit may hold a part of the flows out, and only these set the threshold.
    flows = f"{threshold['missing_flows']} more flows that set it"
    return flows if hours is None else f"{duration(hours)} more of such traffic, {flows}"


def calibration_line(calibration: dict[str, Any], found: dict[str, Any]) -> str:
    """Return a line on a calibration, with a star at the one in use."""
    star = "*" if calibration["number"] == found["threshold"]["calibration"] else " "
    rate, traffic = calibration["false_alarm_rate"], calibration["traffic"]
    asked = "a share of its own flows" if rate is None else f"{percent(rate)} false alarms"
    by = "fit" if calibration["number"] == 0 else "calibrate"
    name = "" if traffic is None else f", {', '.join(capture['name'] for capture in traffic['captures'][:3])}"
    return (
        f"{star}{calibration['number']}  {calibration['date']}  {by:9}  {calibration['offset']:.6g}  {asked}, "
        f"{calibration['n_flows']} flows{name}{'' if traffic is None else _between(traffic)}"
    )


def _network_lines(network: dict[str, Any] | None) -> list[str]:
    if network is None:
        return ["none"]
    classes = "" if network["reference_classes"] is None else f", reference of {network['reference_classes']} classes"
    broken = ", training was interrupted" if network["interrupted"] else ""
    return [f"{network['weights']} weights, {counted(network['epochs'], 'epoch')}{classes}{broken}"]


def _listed(settings: dict[str, Any] | None) -> list[str]:
    return textwrap.wrap(", ".join(f"{name} {_short(value)}" for name, value in (settings or {}).items()), WIDTH)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_SETTING else f"{text[: MAX_SETTING - 3]}..."


def percent(share: float) -> str:
    """Return a share in percent, to three digits."""
    return f"{100 * share:.3g} %"


def counted(n: int, name: str) -> str:
    """Return a number with a name in singular or plural."""
    return f"{n} {name}" if n == 1 else f"{n} {name}s"


def duration(hours: float) -> str:
    """Return a duration in the largest unit of which it has two or more."""
    for unit, n_hours in (("weeks", 168.0), ("days", 24.0), ("h", 1.0), ("min", 1 / 60)):
        if hours >= 2 * n_hours:
            return f"{hours / n_hours:.0f} {unit}"
    return f"{hours * 3600:.0f} s"
