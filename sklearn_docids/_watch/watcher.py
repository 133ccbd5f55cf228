# SPDX-License-Identifier: BSD-3-Clause
"""The loop of `docids watch`: packets to flows, flows to verdicts, verdicts to alarms."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sklearn_docids._warn import collected
from sklearn_docids._watch.alarms import AlarmDesk
from sklearn_docids._watch.counting import Delays
from sklearn_docids._watch.flows import LiveAssembler, decided_at, table_of
from sklearn_docids._watch.folders import FolderSource
from sklearn_docids._watch.resuming import resume, save
from sklearn_docids._watch.signals import Signals
from sklearn_docids._watch.streams import Block, Event, File
from sklearn_docids._watch.verdicts import Judge
from sklearn_docids.capture.flows import FlowRules
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.exceptions import CaptureError

# Flows are judged together when so many wait, or one has waited for so long.
BATCH_FLOWS, BATCH_S = 4096, 0.1
# Flows that are open when we are told to stop are judged for so long.
LAST_VERDICTS_S = 1.5
# Of the time, for states.
MOST_OF_TIME = 0.05
# So many different warnings are repeated to people.
MOST_SAID = 1000
# Packets are of now if they are not further from the clock of the machine.
NOW_NS = 10 * 10**9


class Source(Protocol):
    """Where packets come from."""

    name: str

    def events(self) -> Iterator[Event]:
        """Yield files, blocks of records, and None where nothing comes."""

    def drops(self) -> dict[str, int]:
        """Return counts of what was lost on its way."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a source is watched."""

    early: bool = False  # a verdict with the packet that completes the row, instead of at the end of the flow
    stats_every: float = 60.0  # s
    state: str | None = None  # file, for a folder
    state_every: float = 5.0  # s, where that takes less than a twentieth of the time


class Watcher:
    """Watches a source until it ends or a signal says stop.

    ``reload`` returns the judge to go on with, after SIGHUP. ``note`` takes lines for people.
    """

    def __init__(
        self,
        source: Source,
        judge: Judge,
        desk: AlarmDesk,
        signals: Signals,
        plan: Plan,
        *,
        note: Callable[[str], object],
        reload: Callable[[Judge], Judge],
    ):
        self._source = source
        self._judge = judge
        self._desk = desk
        self._signals = signals
        self._plan = plan
        self._note = note
        self._reload = reload
        self._delays = Delays()
        self._counts: Counter[str] = Counter()
        self._assembler = LiveAssembler(self._rules(judge))
        now = time.monotonic()
        self._next_verdicts, self._next_stats, self._next_state = now, now + plan.stats_every, now + plan.state_every
        self._has_news = False
        self._n_read = 0
        self._n_unjudged = 0  # flows that were open in the end, and for which there was no time
        self._is_over = False
        self._said: set[str] = set()
        self._folder = source if isinstance(source, FolderSource) else None

    def run(self) -> None:
        """Watch.

        Raises
        ------
        OSError
            The source is gone, or an output cannot be written.
        CaptureError
            What comes is no capture, or damaged; what came before is judged and written.
        """
        try:
            try:
                self._resume()
                failure = self._watch()
                self._finish()
            finally:
                self._source.close()
            self._write_stats()
        except BrokenPipeError:
            raise
        except OSError:
            self._note(self.summary())
            raise
        self._note(self.summary())
        if failure:
            raise failure

    def counters(self) -> dict[str, int]:
        """Return what became of packets, flows and flagged flows; sums hold exactly.

        ``packets`` is the sum of the fates; ``flows_begun + flows_resumed + flows_again = flows_scored +
        flows_dropped + flows_open``, where a flow that went on after it was closed is one ``again``; ``flagged =
        hidden +`` the flows of incidents.
        """
        counts, fates = self._counts, self._fates()
        n_begun = counts["begun"] + self._n_begun()
        n_open = self._n_unjudged + self._assembler.n_open
        n_again = counts["scored"] + counts["dropped"] + n_open - n_begun - counts["resumed"]
        return {
            "packets": sum(fates.values()), **fates, **self._source.drops(),
            "flows_begun": n_begun, "flows_resumed": counts["resumed"], "flows_again": n_again,
            "flows_scored": counts["scored"], "flows_dropped": counts["dropped"], "flows_open": n_open,
            "flows_evicted": counts["evicted"] + self._assembler.counters["flows_evicted"],
            **self._desk.counters(),
        }  # fmt: skip

    def summary(self) -> str:
        """Return a line for people: all counters that are not zero."""
        found = self.counters()
        listed = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in found.items() if n or name == "packets")
        return f"{self._source.name}: {listed}"

    def _rules(self, judge: Judge) -> FlowRules:
        rules: FlowRules = judge.detector.sampler_._rules(emit_early=self._plan.early)
        return rules

    def _fates(self) -> dict[str, int]:
        return {name: n + self._counts[name] for name, n in self._assembler.fates.items()}

    def _n_begun(self) -> int:
        return self._assembler.n_rows - self._counts["rows_before"]

    def _watch(self) -> Exception | None:
        """Take events until there are no more; return what the source has failed with."""
        events = self._source.events()
        while True:
            try:
                event = next(events)
            except StopIteration:
                return None
            except (CaptureError, OSError) as error:
                return error
            self._take(event)
            self._look_around()

    def _take(self, event: Event) -> None:
        if self._folder and self._folder.n_read != self._n_read:
            self._n_read, self._has_news = self._folder.n_read, True
        if isinstance(event, File):
            self._give_verdicts()  # on flows of files that may be forgotten now
            self._assembler.begin_file(event.name)
            return
        if isinstance(event, Block):
            self._has_news = True
            self._desk.add_packets(event.data, event.records)
            self._assembler.add(event.data, event.records)
            self._assembler.wait(event.silence)
        self._assembler.flush_idle()

    def _look_around(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if now >= self._next_verdicts or sum(map(len, self._assembler.done)) >= BATCH_FLOWS:
            self._give_verdicts()
            self._next_verdicts = now + BATCH_S
        if self._signals.taken("reload"):
            self._begin_anew()
        if self._signals.taken("report"):
            self._write_stats()
            self._note(self.summary())
        elif now >= self._next_stats:
            self._write_stats()
            self._next_stats = now + self._plan.stats_every
        if self._plan.state and now >= self._next_state:
            self._write_state()

    def _give_verdicts(self) -> None:
        """Judge the flows that wait."""
        done, self._assembler.done = self._assembler.done, []
        if done:
            self._judge_flows(table_of(done, self._assembler.names))

    def _judge_flows(self, flows: FlowTable) -> None:
        n_all = len(flows)
        if self._judge.detector.sampler_.midstream == "drop":
            flows = flows[~flows.midstream]
        self._counts["dropped"] += n_all - len(flows)
        self._has_news = True
        if len(flows):
            with collected() as found:
                scored = self._judge.judge(flows)
            self._counts["scored"] += len(flows)
            self._desk.take(scored)
            self._measure(flows.rows.records)
            for text in [*(message for message, _ in found), self._desk.drift]:
                self._note_once(text)

    def _note_once(self, text: str) -> None:
        """Say what was not said before, but for its numbers."""
        kind = re.sub(r"[\d.,]+", "", text)
        if text and kind not in self._said and len(self._said) < MOST_SAID:
            self._said.add(kind)
            self._note(text)

    def _measure(self, records: np.ndarray) -> None:
        """Note how long verdicts took, if packets are of now."""
        now = time.time_ns()
        if not self._folder and not self._is_over and abs(now - self._assembler.clock) < NOW_NS:
            self._delays.add(now - decided_at(records, self._assembler.rules))

    def _write_stats(self) -> None:
        self._give_verdicts()
        self._desk.write_stats({**self.counters(), **self._delays.taken()}, time.time_ns())

    def _resume(self) -> None:
        if self._plan.state and self._folder:
            self._counts["resumed"], text = resume(self._plan.state, self._folder, self._assembler, self._judge)
            self._counts["rows_before"] = self._assembler.n_rows
            if text:
                self._note(text)

    def _write_state(self) -> None:
        """Write the state of a folder, where there is anything new."""
        begun = time.monotonic()
        if self._has_news and not self._holds_packets_back():
            self._save()
        took = time.monotonic() - begun
        self._next_state = begun + took + max(self._plan.state_every, took / MOST_OF_TIME)

    def _holds_packets_back(self) -> bool:
        """Whether packets that were read are not in flows yet, as they are to be put in order."""
        folder = self._folder
        return bool(self._assembler.rules.reorder_window) and folder is not None and not folder.between_files

    def _save(self) -> None:
        if self._plan.state and self._folder:
            self._assembler.flush()
            self._give_verdicts()
            self._desk.sync()
            save(self._plan.state, self._folder, self._assembler, self._judge)
            self._has_news = False

    def _finish(self) -> None:
        """Judge what is open, of a folder later: its flows go on with the next start."""
        self._assembler.flush_ended()
        self._give_verdicts()
        if self._plan.state:
            self._write_state()
        else:
            self._end_flows(time.monotonic() + LAST_VERDICTS_S if self._signals.stop else float("inf"))
        self._desk.sync()

    def _end_flows(self, deadline: float) -> None:
        """Judge the flows that are open, as many as there is time for."""
        self._give_verdicts()
        self._is_over = True  # it is not the traffic that ends these
        for _ in self._assembler.finish():
            if time.monotonic() < deadline:
                self._give_verdicts()
        if time.monotonic() < deadline:
            self._give_verdicts()
        self._n_unjudged, self._assembler.done = sum(map(len, self._assembler.done)), []
        self._is_over = False

    def _begin_anew(self) -> None:
        """Reload the model and all that outputs have; flows that are open go on if they are the new model's, too."""
        self._give_verdicts()
        self._desk.reopen()
        judge = self._reload(self._judge)
        rules = self._rules(judge)
        if rules != self._assembler.rules:
            self._end_flows(float("inf"))
            self._replace_assembler(rules)
        self._judge = judge

    def _replace_assembler(self, rules: FlowRules) -> None:
        """Begin with no flows; the counters go on."""
        old = self._assembler
        self._counts.update(old.fates)
        self._counts["begun"] += self._n_begun()
        self._counts["evicted"] += old.counters["flows_evicted"]
        self._counts["rows_before"] = 0
        self._assembler = LiveAssembler(rules)
        self._assembler.begin_file(old.names[-1][1] if old.names else self._source.name)
