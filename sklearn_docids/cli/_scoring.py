# SPDX-License-Identifier: BSD-3-Clause
"""Captures scored in bounded memory: flows as they end, the most abnormal of them, channels and hosts."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sklearn_docids._meta import takes_tables
from sklearn_docids._sampler import FlowSampler
from sklearn_docids.capture.containers import capture_name
from sklearn_docids.capture.flows import FlowRows
from sklearn_docids.capture.kernels import FLOW_DTYPE
from sklearn_docids.capture.table import FlowTable, joined
from sklearn_docids.cli._text import main_reason

if TYPE_CHECKING:
    from sklearn_docids.aggregation import FlowAggregator, FlowGroup

# Flows that are scored and written together, at least: enough that the network's blocks of rows are mostly full.
CHUNK_FLOWS = 16_384


class FlowStream:
    """Flows of captures, some thousand at a time, in the order in which they end.

    ``counters`` has those of each capture. A file that is no capture is left out, as by `FlowSampler.flows`.
    """

    def __init__(self, sampler: FlowSampler, sources: Sequence[Any]):
        self._sampler = sampler
        self._sources = sources
        self._names = [capture_name(source) for source in sources]

    @property
    def counters(self) -> list[dict[str, int]]:
        """Counters of each capture read so far."""
        return self._sampler.counters_

    @property
    def ignored(self) -> list[dict[str, int]]:
        """What was ignored of each capture read so far."""
        return self._sampler.ignored_

    def __iter__(self) -> Iterator[FlowTable]:
        waiting: list[FlowTable] = []
        for flows in self._sampler.iter_flows(self._sources, early=False):
            waiting.append(flows)
            if sum(map(len, waiting)) >= CHUNK_FLOWS:
                yield self._joined(waiting)
                waiting = []
        if waiting:
            yield self._joined(waiting)

    def _joined(self, parts: Sequence[FlowTable]) -> FlowTable:
        rows, capture = joined([part.rows for part in parts]), np.concatenate([part.capture for part in parts])
        return FlowTable(rows, capture, self._names, [])


def judged(detector: Any, tables: Iterable[FlowTable]) -> Iterator[tuple[FlowTable, np.ndarray, list[str] | None]]:
    """Yield tables with the scores of their flows, and, from a detector with views, why those flagged are."""
    if not takes_tables(detector):
        for flows in tables:
            yield flows, detector.score_samples(flows.X), None
        return
    stream = detector.stream()
    for flows in tables:
        found = stream.judge(flows)
        is_abnormal = found.scores < detector.offset_
        reasons = [main_reason(found.reasons(row)) if flagged else "" for row, flagged in enumerate(is_abnormal)]
        yield flows, found.scores, reasons


class Ranking:
    """How many flows there were, how many beyond the threshold, and the most abnormal of them."""

    def __init__(self, offset: float, n_listed: int):
        self.n_flows: int = 0
        self.n_abnormal: int = 0
        self.n_midstream: int = 0  # of the abnormal ones
        self.scores: np.ndarray = np.empty(0)
        self.flows: FlowTable | None = None
        self._offset = offset
        self._n_listed = n_listed

    def add(self, flows: FlowTable, scores: np.ndarray) -> None:
        """Take more flows."""
        self.n_flows += len(flows)
        is_abnormal = scores < self._offset
        self.n_abnormal += int(np.sum(is_abnormal))
        self.n_midstream += int(np.sum(is_abnormal & flows.midstream))
        if self.flows is not None:
            scores = np.concatenate([self.scores, scores])
            capture = np.concatenate([self.flows.capture, flows.capture])
            flows = FlowTable(joined([self.flows.rows, flows.rows]), capture, flows.captures, [])
        lowest = np.argsort(scores, kind="stable")[: self._n_listed]
        self.flows, self.scores = flows[lowest], scores[lowest]


class FlowSpool:
    """Scored flows without their bytes, in a file without a name: channels and hosts are made of them at the end.

    They are read in the order in which they began, so that a window is over when a flow of the next one comes, however
    long a flow lasted. Memory has a score and a time of each.
    """

    def __init__(self, folder: str | None):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._scores: list[np.ndarray] = []
        self._times: list[np.ndarray] = []

    def __enter__(self) -> FlowSpool:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, flows: FlowTable, scores: np.ndarray) -> None:
        """Take more flows."""
        self._file.write(flows.rows.records.tobytes())
        self._file.flush()  # a full disk is to be known now
        self._scores.append(scores)
        self._times.append(flows.time_first)

    def whole(self) -> tuple[FlowTable, np.ndarray]:
        """Return all flows, mapped into memory, and their scores."""
        return _without_bytes(np.memmap(self._file, FLOW_DTYPE, "r")), np.concatenate(self._scores)

    def by_time(self) -> Iterator[tuple[FlowTable, np.ndarray]]:
        """Yield flows in the order in which they began, with their scores."""
        order, scores = np.argsort(np.concatenate(self._times), kind="stable"), np.concatenate(self._scores)
        for first in range(0, len(order), CHUNK_FLOWS):
            rows = order[first : first + CHUNK_FLOWS]
            # Mapped anew each time: what has been read need not stay in memory.
            yield _without_bytes(np.memmap(self._file, FLOW_DTYPE, "r")[rows]), scores[rows]


def _without_bytes(records: np.ndarray) -> FlowTable:
    no_bytes, no_packets = np.empty((len(records), 0), np.uint8), np.empty((len(records), 0), np.uint16)
    rows = FlowRows(records, no_bytes, no_packets, no_packets.astype(np.int32), layout="packets")
    return FlowTable(rows, np.broadcast_to(0, len(records)), [""], [])


class GroupRanking:
    """How many channels or hosts there were, how many beyond the threshold, and the most abnormal of them."""

    def __init__(self, aggregator: FlowAggregator, spool: FlowSpool, n_listed: int):
        self.n_groups: int = 0
        self.n_abnormal: int = 0
        self.groups: list[FlowGroup] = []
        self._offset = aggregator.offset_
        self._n_listed = n_listed
        stream = aggregator.stream()
        for flows, scores in spool.by_time():
            self._add(stream.update(flows, scores))
        self._add(stream.flush())
        self.n_evicted: int = stream.n_evicted

    def _add(self, groups: Sequence[FlowGroup]) -> None:
        self.n_groups += len(groups)
        self.n_abnormal += sum(group.score < self._offset for group in groups)
        self.groups = heapq.nsmallest(self._n_listed, [*self.groups, *groups], key=lambda group: group.score)
