# SPDX-License-Identifier: BSD-3-Clause
"""From verdicts to alarms: what is counted, and what is written where."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sklearn_docids._alarms.collect import ABNORMAL, HIDDEN, Scored
from sklearn_docids._scratch import sync

if TYPE_CHECKING:
    from sklearn_docids._alarms.alarm import Alarm
    from sklearn_docids._alarms.incidents import IncidentTracker
    from sklearn_docids._alarms.pcapng import PcapngWriter
    from sklearn_docids.capture.table import FlowTable
    from sklearn_docids.monitoring import DriftMonitor

# Incidents of which the flow written last is remembered.
MOST_REMEMBERED = 10_000


class Output(Protocol):
    """A file that alarms go to."""

    def write(self, alarm: Alarm) -> object:
        """Write an alarm."""

    def write_stats(self, counters: Mapping[str, int], *, time_ns: int) -> object:
        """Write counters, if there is a place for them."""

    def flush(self) -> object:
        """Hand all that was written to the system."""

    def reopen(self) -> object:
        """Open the file anew, as somebody has moved it away."""

    def close(self) -> object:
        """Close the file."""


class Packets(Protocol):
    """The last packets, for those of flows that become alarms."""

    def add(self, data: np.ndarray, records: np.ndarray) -> object:
        """Take packets over."""

    def write(self, flows: FlowTable, writer: PcapngWriter) -> int:
        """Write the packets of flows that are still there."""


class AlarmDesk:
    """Turns verdicts into alarms, writes them to all outputs, and counts.

    Of the ``flagged`` flows, ``hidden`` are those that a rule hides; the others make ``incidents``.
    """

    def __init__(
        self,
        tracker: IncidentTracker,
        outputs: Sequence[Output],
        *,
        drift: DriftMonitor | None = None,
        packets: Packets | None = None,
        paths: Sequence[str] = (),
    ):
        self._drift = drift
        self._paths = paths  # of the outputs that are files
        self._tracker = tracker
        self._outputs = outputs
        self._packets = packets
        self._n_flagged = self._n_hidden = 0

    def add_packets(self, data: np.ndarray, records: np.ndarray) -> None:
        """Take packets, of which those of alarms are written later."""
        if self._packets is not None:
            self._packets.add(data, records)

    def take(self, scored: Scored) -> None:
        """Take verdicts; write the alarms that come up."""
        n_hidden = int((scored.verdicts == HIDDEN).sum())
        self._n_hidden += n_hidden
        self._n_flagged += n_hidden + int((scored.verdicts == ABNORMAL).sum())
        if self._drift is not None:
            self._drift.update(*scored.visible())
        for alarm in self._tracker.update(scored.flagged()):
            for output in self._outputs:
                output.write(alarm)
        for output in self._outputs:
            output.flush()

    @property
    def drift(self) -> str:
        """What is to be said of a drift; empty without one."""
        return self._drift.describe() if self._drift is not None and self._drift.drifted_ else ""

    def counters(self) -> dict[str, int]:
        """Return what became of flagged flows."""
        return {
            "flagged": self._n_flagged, "hidden": self._n_hidden, "incidents": self._tracker.n_incidents,
            "incidents_evicted": self._tracker.n_evicted, "alarms": self._tracker.n_alarms,
            "over_budget": self._tracker.n_over_budget,
        }  # fmt: skip

    def write_stats(self, counters: Mapping[str, int], time_ns: int) -> None:
        """Write counters to all outputs that have a place for them."""
        for output in self._outputs:
            output.write_stats(counters, time_ns=time_ns)
            output.flush()

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        for output in self._outputs:
            output.flush()
        for path in self._paths:
            with suppress(OSError):  # a pipe or device, or moved away just now: there is no disk to wait for
                sync(path)

    def reopen(self) -> None:
        """Open all files anew."""
        for output in self._outputs:
            output.reopen()

    def close(self) -> None:
        """Close all files."""
        for output in self._outputs:
            output.close()

    def __enter__(self) -> AlarmDesk:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # said before
            self.close()


class PacketFile:
    """A pcapng file with the packets of the flow of each alarm, as far as they are still there."""

    def __init__(self, path: str, packets: Packets):
        self._path = path
        self._packets = packets
        self._written: OrderedDict[str, int] = OrderedDict()  # the flow written last, of each incident
        self.reopen()

    def write(self, alarm: Alarm) -> None:
        """Write the packets of the most abnormal flow, unless they are there."""
        flow = alarm.most_abnormal.flow
        number = int(flow.rows.records["row"][0])
        if self._written.pop(alarm.id, None) != number:
            self._packets.write(flow, self._writer)
        self._written[alarm.id] = number
        if len(self._written) > MOST_REMEMBERED:
            self._written.popitem(last=False)

    def write_stats(self, counters: Mapping[str, int], *, time_ns: int) -> None:
        """Write no counters."""

    def flush(self) -> None:
        """Hand all that was written to the system."""
        self._file.flush()

    def reopen(self) -> None:
        """Open the file anew; what is added to an older one is a section of its own."""
        from sklearn_docids._alarms.pcapng import PcapngWriter

        file = open(self._path, "ab")  # noqa: SIM115 - closed by `close`
        self.close()
        self._file = file
        self._writer = PcapngWriter(file)

    def close(self) -> None:
        """Close the file."""
        if hasattr(self, "_file"):
            self._file.close()
