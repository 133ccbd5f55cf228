# SPDX-License-Identifier: BSD-3-Clause
"""The packets of flows, for Wireshark: from capture files, or of the last that a live source brought."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np

from sklearn_docids._alarms.pcapng import MAX_BLOCK, Interfaces, PcapngWriter, put_blocks
from sklearn_docids._alarms.selection import FlowSelection, new_clock
from sklearn_docids._sampler import FlowSampler
from sklearn_docids._scratch import scratch_folder, sync
from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.containers import RECORDS_PER_CALL, Capture, capture_name, opened
from sklearn_docids.capture.flows import FlowRules
from sklearn_docids.capture.records import RECORD_DTYPE, STATE_DTYPE, index_pcapng
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.exceptions import CaptureError, CaptureWarning

# A ring is made of so many parts, the oldest of which is forgotten when there is no more room.
N_PARTS = 16
MIN_RING_BYTES = 2**20


def check_read_again(captures: Sequence[object]) -> None:
    """Refuse sources that cannot be read a second time.

    Raises
    ------
    ValueError
        A source is no file.
    """
    for source in captures:
        if not (isinstance(source, str | bytes | os.PathLike) and os.path.isfile(source)):
            raise ValueError(
                f"{capture_name(source)} is not a file, so the packets of alarms cannot be read from it again: write "
                "what it brings to a file first, or watch it, which keeps the last packets"
            )


def write_packets(
    captures: Sequence[str | os.PathLike[str]],
    flows: FlowTable,
    path: str | os.PathLike[str],
    *,
    sampler: FlowSampler | None = None,
) -> int:
    """Copy the packets of flows from the captures they came from to a pcapng file, which is there whole or not at all.

    Each packet is copied as it was captured, in order of the captures: all bytes up to 262,144, as more cannot be read
    by Wireshark, with link type, time in ns and original length. A packet is taken if it has the five-tuple of a flow,
    in either direction, and a time between the flow's first and last packet, in the capture where the flow began or in
    one that continues it. The sampler's settings for tunnels, directions and timeouts hold. Of a damaged capture, what
    stands before the damage is copied.

    Parameters
    ----------
    captures : sequence of path
        The files that were sampled, in the same order.
    flows : FlowTable
        The flows, by the names of their captures.
    path : path
        File to write; another one of this name is replaced.
    sampler : FlowSampler, default=None
        The sampler that gave the flows; None: the default one.

    Returns
    -------
    int
        Number of packets.

    Raises
    ------
    OSError
        A capture cannot be read any more, or the file cannot be written.
    ValueError
        A capture is no file, or flows are of a capture that is not among those given.
    """
    check_read_again(captures)
    names = np.array(flows.captures, dtype=object)[flows.capture] if len(flows) else np.zeros(0, object)
    unknown = set(names) - {capture_name(source) for source in captures}
    if unknown:
        raise ValueError(f"there are flows of {min(unknown)}, which is not among the captures to read again")
    second_pass = _SecondPass(flows.rows.records, names, (FlowSampler() if sampler is None else sampler)._rules())
    with _whole(os.fsdecode(path)) as part, open(part, "wb") as file:
        writer = PcapngWriter(file)
        n_packets = sum(second_pass.copy(source, writer) for source in captures)
    n_expected = int(sum(flows.packets_forward + flows.packets_backward))
    if n_packets < n_expected:
        warn_caller(
            f"{os.fsdecode(path)}: {n_packets} packets of {n_expected} that the flows had: their captures have "
            "changed since they were read",
            CaptureWarning,
        )
    return n_packets


@contextmanager
def _whole(path: str) -> Iterator[str]:
    """Give a path to write to; what was written takes the place of ``path``, unless that is a pipe or device."""
    if os.path.exists(path) and not os.path.isfile(path):
        yield path
        return
    with scratch_folder(os.path.dirname(path) or ".") as scratch:
        part = os.path.join(scratch, "packets")
        yield part
        sync(part)
        os.replace(part, path)


class _SecondPass:
    """Reads captures again, one after the other, as far as they have packets of the flows."""

    def __init__(self, flows: np.ndarray, names: np.ndarray, rules: FlowRules):
        self._flows, self._names, self._rules = flows, names, rules
        self._settings = rules.settings()[0]
        self._clock = new_clock()
        self._run: set[str] = set()  # captures that continue each other, up to the one that is read

    def copy(self, source: str | os.PathLike[str], writer: PcapngWriter) -> int:
        """Copy the packets of the flows from a capture; return their number."""
        n_packets, selection = 0, None
        name = capture_name(source)
        try:
            with opened(source) as stream, closing(Capture(stream, name)) as capture:
                for data, records in capture.blocks():
                    if selection is None:
                        selection = self._selection(name, int(records["time"][0]))
                        if selection is None:
                            break
                    n_packets += writer.write(data, records, selection.marked(data, records, self._clock))
        except CaptureError:  # warned of by the first pass
            pass
        return n_packets

    def _selection(self, name: str, time: int) -> FlowSelection | None:
        """Return what tells the packets of the flows in a capture that begins at a time; None: it has none."""
        if not self._continues(time):
            self._clock = new_clock()
            self._run.clear()
        goes_on = np.isin(self._names, list(self._run)) & (
            self._flows["time_last"] >= time - int(self._settings["idle_timeout"])
        )
        here = goes_on | (self._names == name)
        self._run.add(name)
        if not here.any():
            self._run.clear()  # what did not reach this one does not reach the next
            return None
        return FlowSelection(self._flows[here], self._rules)

    def _continues(self, time: int) -> bool:
        """Whether the sampler lets flows go on in a capture that begins at a time."""
        silence = time - int(self._clock["latest"][0])
        return bool(self._run) and self._rules.rotated and 0 <= silence <= int(self._settings["idle_timeout"])


class _Part:
    """Packets of a while, as blocks one behind the other."""

    def __init__(self, n_bytes: int):
        self.data: np.ndarray = np.empty(n_bytes, np.uint8)
        self.clear()

    def clear(self) -> None:
        """Forget all packets."""
        self.stop = 0
        self.first, self.last = 2**63 - 1, -1  # ns

    def add(self, data: np.ndarray, records: np.ndarray, interfaces: Interfaces) -> int:
        """Take over packets as long as there is room and their link types have numbers; return how many it took."""
        everything = np.ones(len(records), np.bool_)
        done, self.stop = put_blocks(data, records, everything, 0, interfaces.numbers, self.data, self.stop)
        if done:
            self.first = min(self.first, int(records["time"][:done].min()))
            self.last = max(self.last, int(records["time"][:done].max()))
        return done


class PacketRing:
    """The last packets of a live source, at most ``max_bytes`` of them (each with 32 bytes of its own).

    Packets are cut to 262,144 bytes.

    Raises
    ------
    ValueError
        ``max_bytes`` is below 1 MiB.
    """

    def __init__(self, max_bytes: int, *, sampler: FlowSampler | None = None):
        if max_bytes < MIN_RING_BYTES:
            raise ValueError(f"max_bytes={max_bytes} is too little for the packets of flows: at least {MIN_RING_BYTES}")
        self._rules = (FlowSampler() if sampler is None else sampler)._rules()
        self._part_bytes = max(max_bytes // N_PARTS, MAX_BLOCK)
        self._max_parts = max_bytes // self._part_bytes
        self._parts: deque[_Part] = deque([_Part(self._part_bytes)])
        self._interfaces = Interfaces()

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        return len(self._parts) * self._part_bytes

    def add(self, data: np.ndarray, records: np.ndarray) -> None:
        """Take over the packets of a block, as `FlowAssembler.add` is given it."""
        while len(records):
            records = records[self._parts[-1].add(data, records, self._interfaces) :]
            if len(records) and not self._interfaces.number(int(records["link_type"][0]) & 0xFFFF):
                self._begin_part()

    def _begin_part(self) -> None:
        """Begin a part, that of the oldest packets if there are no more to be had."""
        if len(self._parts) < self._max_parts:
            self._parts.append(_Part(self._part_bytes))
        else:
            self._parts.rotate(-1)
            self._parts[-1].clear()

    def write(self, flows: FlowTable, writer: PcapngWriter) -> int:
        """Write the packets of flows that are still there, oldest first; return their number."""
        if not len(flows):
            return 0
        selection, clock = FlowSelection(flows.rows.records, self._rules), new_clock()
        first, last = int(flows.time_first.min()), int(flows.time_last.max())
        n_packets = 0
        for part in self._parts:
            if part.first <= last and part.last >= first:
                for records in self._records(part):
                    n_packets += writer.write(part.data, records, selection.marked(part.data, records, clock))
        return n_packets

    def _records(self, part: _Part) -> Iterator[np.ndarray]:
        records, state = np.empty(RECORDS_PER_CALL, RECORD_DTYPE), np.zeros(1, STATE_DTYPE)
        state["n_interfaces"] = len(self._interfaces.described)
        n, at = 1, 0
        while n:
            n, at, _, _ = index_pcapng(part.data, at, part.stop, records, self._interfaces.described, state[0])
            yield records[:n]
