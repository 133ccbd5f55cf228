# SPDX-License-Identifier: BSD-3-Clause
"""What one large capture costs stage by stage, and what a second core could save.

    OMP_NUM_THREADS=1 python benchmarks/onecapture.py CAPTURE [CAPTURE.gz ...] [--runs 5] [--only stages threads]

**Stages.** Each case does what the one it goes on from does, and a stage more, so a stage costs the difference of two
lines. Cases take turns in one process, after a warm-up of compiled code and page cache: medians of CPU seconds (user
and system, all threads of the process), and wall-clock seconds.

**Threads.** The capture twice, side by side, and the capture once, split by five-tuple: each of two threads reads,
indexes and parses everything and files the packets of half of the hashes. No thread waits for another, and the clock
sees all packets. Then the rows of both are put in order of first packets, and the script checks that they are those of
`FlowSampler.flows`. Evictions, duplicates and counters, which are of all flows, are left out, so a real split would be
slower. The time of the thread that took longest, in CPU seconds, is what the wall clock would show on idle cores: the
figure to go by on a machine that does other work.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing

import numba
import numpy as np

from sklearn_docids import CaptureWarning, FlowSampler
from sklearn_docids.capture import kernels
from sklearn_docids.capture.compression import Unpacked, compression_of
from sklearn_docids.capture.containers import Capture, Window, opened
from sklearn_docids.capture.flows import FlowAssembler
from sklearn_docids.capture.kernels import DONE, LOOKAHEAD

SAMPLER = FlowSampler(rotated=False)
COLUMNS = ("records", "X", "kept_bytes", "payload_lengths")


# ---------------------------------------------------------------------------------------------------------------------
# Stages


def drain(stream):
    """Read a stream as captures are read, into the same pages again and again."""
    window = Window(stream)
    while window.read(1):
        window.advance(window.stop)


def read(path):
    with opened(path) as file:
        drain(file)


def unpack(path):
    with opened(path) as file:
        magic = file.read(4)
        with closing(Unpacked(magic, file, compression_of(magic))) as unpacked:
            drain(unpacked)


def index(path, use=lambda data, records: None):
    with opened(path) as file, closing(Capture(file, path)) as capture:
        for data, records in capture.blocks():
            use(data, records)


@numba.njit(nogil=True, _nrt=False)
def parse_packets(data, records, storage):
    """Read headers and hash five-tuples, as the kernel does before it files packets."""
    for group in range(0, len(records), LOOKAHEAD):
        kernels.read_ahead(data, records[group : group + LOOKAHEAD], storage)


def parse(path):
    storage = FlowAssembler(SAMPLER._rules())._storage
    index(path, lambda data, records: parse_packets(data, records, storage))


def file(path):
    """Assign packets to flows, copy bytes, and keep all flows in memory: what `FlowSampler.flows` does."""
    return filed(path, FlowAssembler(SAMPLER._rules()))


def file_and_drop(path):
    """Do the same through slots that are used again, as `FlowSampler.write` does; finished flows are dropped."""
    return filed(path, FlowAssembler(SAMPLER._rules(), lambda rows: None))


def filed(path, assembler):
    index(path, assembler.add)
    for _ in assembler.finish():
        pass
    return assembler.rows


def write(path):
    with tempfile.TemporaryDirectory(dir=ARGUMENTS.folder) as folder:
        SAMPLER.write(path, folder)


# Each with the one that it goes on from.
STAGES = {
    "read": (read, None),
    "unpack": (unpack, "read"),
    "index": (index, "unpack"),
    "parse headers": (parse, "index"),
    "file, all flows in memory (`flows`)": (file, "parse headers"),
    "file, finished flows leave": (file_and_drop, "parse headers"),
    "to disk (`write`)": (write, "file, finished flows leave"),
}


# ---------------------------------------------------------------------------------------------------------------------
# Two threads


@numba.njit(nogil=True, _nrt=False)
def add_half(data, records, first, number, half, storage):
    """Do what `kernels.add_packets` does for half of the five-tuples; the clock goes by all packets.

    The row of a flow is the number of its first packet; ``number`` is that of the first one of the records.
    """
    cursor, rules = storage.cursors[0], storage.settings[0]
    for group in range(first, len(records), LOOKAHEAD):
        ahead = records[group : group + LOOKAHEAD]
        kernels.read_ahead(data, ahead, storage)
        for i in range(len(ahead)):
            packet = storage.packets[i]
            mine = packet.fate == kernels.SAMPLED and np.int64(packet.hash) >> 31 == half
            if mine:
                lacking = kernels.missing_room(storage)
                if lacking != DONE:
                    return group + i, lacking
            kernels.advance_clock(cursor, packet.time, rules.idle_timeout, rules.memory)
            if mine:
                n_rows = cursor.n_rows
                kernels.file_packet(data, packet, storage)
                if cursor.n_rows > n_rows:
                    storage.rows.flows[n_rows].row = number + group + i
    return len(records), DONE


class HalfAssembler(FlowAssembler):
    """The flows of half of the five-tuples."""

    def __init__(self, half, keys):
        super().__init__(SAMPLER._rules())
        self._half, self._keys, self._number = half, keys, 0

    def add(self, data, records):
        done, lacking = add_half(data, records, 0, self._number, self._half, self._storage)
        while lacking != DONE:
            self._make_room(lacking)
            done, lacking = add_half(data, records, done, self._number, self._half, self._storage)
        self._number += len(records)


def timed(call):
    """Return what a call returns, and the CPU seconds of its thread."""
    began = time.thread_time()
    return call(), time.thread_time() - began


def in_threads(*calls):
    """Return what the calls return, and the CPU seconds of the one that took longest."""
    with ThreadPoolExecutor(len(calls)) as pool:
        results, seconds = zip(*pool.map(timed, calls), strict=True)
    return results, max(seconds)


def once(path):
    return in_threads(lambda: file(path))[1]


def twice(path):
    return in_threads(lambda: file(path), lambda: file(path))[1]


def seconds_once(path):
    return timed(lambda: len(file(path)))[1]


def in_processes(path):
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        return max(pool.map(seconds_once, [path, path]))


def file_halves(path):
    keys = FlowAssembler(SAMPLER._rules())._keys
    return in_threads(*(lambda half=half: filed(path, HalfAssembler(half, keys)) for half in (0, 1)))


def in_order(halves):
    """Return the columns of both, in order of first packets, and the CPU seconds of the longer thread."""
    began = time.thread_time()
    order = np.argsort(np.concatenate([half.records["row"] for half in halves]), kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    places = place[: len(halves[0])], place[len(halves[0]) :]
    whole = [np.empty((len(order), *getattr(halves[0], name).shape[1:]), getattr(halves[0], name).dtype)
             for name in COLUMNS]  # fmt: skip
    sorting = time.thread_time() - began

    def put(half, rows):
        for name, column in zip(COLUMNS, whole, strict=True):
            column[rows] = getattr(half, name)

    return whole, sorting + in_threads(*(lambda each=each: put(*each) for each in zip(halves, places, strict=True)))[1]


def split(path):
    return file_halves(path)[1]


def split_in_order(path):
    halves, seconds = file_halves(path)
    return seconds + in_order(halves)[1]


THREADS = {
    "once, one thread": once,
    "twice, two threads": twice,
    "twice, two processes": in_processes,
    "once, split by five-tuple": split,
    "the same, rows in order": split_in_order,
}


def check_split(path):
    """Compare what the split gives with what `FlowSampler.flows` gives, but for the number of the row."""
    (records, *columns), _ = in_order(file_halves(path)[0])
    expected = file(path)
    records["row"] = expected.records["row"]
    for column, name in zip((records, *columns), COLUMNS, strict=True):
        assert np.array_equal(column, getattr(expected, name)), name


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def touch_memory(n_bytes=2**30):
    """Fetch memory from the host of a virtual machine, or a case would pay for it (benchmarks/sampling.py)."""
    np.zeros(n_bytes, np.uint8)[::4096] = 1


def measured(cases, path, n_runs):
    """Return (CPU seconds, wall-clock seconds, what the case returned) of each run of each case; they take turns."""
    times = {name: [] for name in cases}
    for run in range(n_runs + 1):
        for name, case in cases.items():
            touch_memory()
            cpu, wall = time.process_time(), time.perf_counter()
            result = case(path)
            if run:  # the first round warms up
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall, result))
            del result
    return times


def median(runs, which):
    return statistics.median(run[which] for run in runs)


def stages(path, n_runs):
    with opened(path) as stream:
        packed = compression_of(stream.read(4))
    # Flows would be kept until the last run.
    cases = {name: lambda path, case=case: (case(path), None)[1] for name, (case, _) in STAGES.items()}
    if not packed:
        cases.pop("unpack")
    times = measured(cases, path, n_runs)
    print("\n| up to | CPU s | this stage, CPU s | wall s, median (lowest-highest) |\n|---|---|---|---|")
    for name in cases:
        before = STAGES[name][1]
        before = "read" if before == "unpack" and not packed else before
        cpu, walls = median(times[name], 0), sorted(run[1] for run in times[name])
        stage = cpu - (median(times[before], 0) if before else 0.0)
        print(f"| {name} | {cpu:.2f} | {stage:.2f} | {median(times[name], 1):.2f} ({walls[0]:.2f}-{walls[-1]:.2f}) |")


def threads(path, n_runs):
    check_split(path)
    times = measured(THREADS, path, n_runs)
    alone = times["once, one thread"]
    print("\n| on two cores | longest thread, CPU s | work per time, x once | wall s, median (lowest) |")
    print("|---|---|---|---|")
    for name, runs in times.items():
        ratio = statistics.median(one[2] / run[2] for one, run in zip(alone, runs, strict=True))
        work = ratio * (2 if name.startswith("twice") else 1)
        walls = f"{median(runs, 1):.2f} ({min(run[1] for run in runs):.2f})"
        print(f"| {name} | {median(runs, 2):.2f} | {work:.2f} | {walls} |")


def main():
    for path in ARGUMENTS.captures:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CaptureWarning)
            counters = SAMPLER.flows(path).counters[0]
            size = f"{os.path.getsize(path) / 1e9:.2f} GB, {counters['packets']:,} packets, {counters['flows']:,} flows"
            print(f"\n{path}: {size}, {ARGUMENTS.runs} runs, load {os.getloadavg()[0]:.1f} before them")
            for study in ARGUMENTS.only:
                {"stages": stages, "threads": threads}[study](path, ARGUMENTS.runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("captures", nargs="+")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=("stages", "threads"), default=("stages", "threads"))
    parser.add_argument("--folder", help="where `write` writes (default: the system's folder for temporary files)")
    ARGUMENTS = parser.parse_args()
    main()
