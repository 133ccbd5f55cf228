# SPDX-License-Identifier: BSD-3-Clause
"""What sampling in several processes, and to shards, costs and brings.

    OMP_NUM_THREADS=1 python benchmarks/scale.py CAPTURE [--studies workers shards tasks killed] [--captures 1000]

CAPTURE is a classic pcap that is not packed. Its packets are dealt out, in their order, to so many captures as
``--distinct`` says; each gets several names, so that there are ``--captures`` of them. They are not packed: what is
packed is unpacked in a thread of its own, so that one worker would use two cores. Everything lies in ``--folder``, best
one in memory, as what waits for a disk tells nothing of processors.

**workers.** Shards of all captures by one process, by a Dask cluster of two worker processes, and by two of joblib's
(loky), in turns and after a warm-up. One is the caller itself, as joblib asks no cluster of one worker: it pays for no
scheduler. A cluster is there only in its own turns, as an idle one takes time from the others. It is measured as Dask
sets it up, with a C library that gives all memory back at once (MALLOC_TRIM_THRESHOLD_), and without that. Rows have to
be the same. On a machine that does other work, wall-clock times say little: CPU seconds of all processes tell what
workers and scheduler cost beside the work.

**shards.** Shards against `write` without them, in this process and one thread: CPU seconds, and wall-clock seconds.

**tasks.** How large a task of as many captures as may be in one is, and what comes back, in bytes.

**killed.** The cluster of two, of which one worker is killed when a tenth of the shards are there.
"""

import argparse
import contextlib
import functools
import itertools
import os
import pickle
import shutil
import signal
import statistics
import struct
import tempfile
import threading
import time
import warnings
from pathlib import Path
from unittest import mock

import cloudpickle
import dask
import distributed
import joblib
import numpy as np
import psutil

from sklearn_docids import FlowSampler, _running
from sklearn_docids.capture import FlowTable

SAMPLER = FlowSampler(rotated=False)
BEFORE_WORKERS = "distributed.nanny.pre-spawn-environ"


# ---------------------------------------------------------------------------------------------------------------------
# Captures


def make_captures(source, folder, n_captures, n_distinct):
    """Return captures, cut from one, several names for each."""
    data = Path(source).read_bytes()
    cuts = borders(data, n_distinct)
    folder.mkdir()
    for number, (first, last) in enumerate(itertools.pairwise(cuts)):
        (folder / f"part-{number}").write_bytes(data[:24] + data[first:last])
    paths = [folder / f"{number:04}.pcap" for number in range(n_captures)]
    for number, path in enumerate(paths):
        os.link(folder / f"part-{number % (len(cuts) - 1)}", path)
    return paths


def borders(data, n_parts):
    """Return where parts of about as many bytes begin, and where the last one ends."""
    order = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">"}[data[:4]]
    found, place = [24], 24
    while place < len(data):
        place += 16 + struct.unpack_from(order + "I", data, place + 8)[0]
        if place - 24 >= len(found) * (len(data) - 24) / n_parts:
            found.append(place)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def cpu_seconds():
    """Return the CPU seconds so far of this process and of those that it has started."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def timed(call):
    """Return the CPU seconds and the wall-clock seconds that a call takes."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    call()
    return cpu_seconds() - cpu, time.perf_counter() - wall


def in_turns(cases, out, n_runs):
    """Return (CPU, wall-clock seconds) of each run of each case; they take turns, the first round warms up.

    A case is what has to be there around a call, and the call. The folder that it writes is not there before.
    """
    times = {name: [] for name in cases}
    for run in range(n_runs + 1):
        for name, (around, case) in cases.items():
            shutil.rmtree(out, ignore_errors=True)
            with around():
                seconds = timed(case)
            if run:
                times[name].append(seconds)
    return times


def print_times(times, title, ratio_of):
    """Print medians, and the median of the ratios of rounds to the first case."""
    first = next(iter(times.values()))
    print(f"\n| {title} | CPU s | wall s, median (lowest-highest) | {ratio_of[0]} |\n|---|---|---|---|")
    for name, runs in times.items():
        ratio = statistics.median(ratio_of[1](one, run) for one, run in zip(first, runs, strict=True))
        walls = sorted(wall for _, wall in runs)
        cpu = statistics.median(cpu for cpu, _ in runs)
        print(f"| {name} | {cpu:.2f} | {statistics.median(walls):.2f} ({walls[0]:.2f}-{walls[-1]:.2f}) | {ratio:.2f} |")


def rows_of(flows):
    return [
        np.asarray(getattr(flows.rows, name)).tobytes() for name in ("X", "records", "kept_bytes", "payload_lengths")
    ]


@contextlib.contextmanager
def cluster(n_workers, folder):
    """Use a cluster of processes of one thread.

    What Dask sets in the environment of this process, too, is taken back: joblib's processes would have it.
    """
    options = {"n_workers": n_workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        mock.patch.dict(os.environ),
        distributed.LocalCluster(**options, local_directory=str(folder), memory_limit=0) as workers,
        distributed.Client(workers) as client,
    ):
        client.wait_for_workers(n_workers)
        yield client


# ---------------------------------------------------------------------------------------------------------------------
# Studies


def workers(paths, folder, n_runs):
    out = folder / "out"
    around = {
        "one process": contextlib.nullcontext,
        "Dask, two worker processes": lambda: warm_cluster(paths, folder),
        "the same, memory is kept": lambda: warm_cluster(
            paths, folder, **{f"{BEFORE_WORKERS}.MALLOC_TRIM_THRESHOLD_": None}
        ),
        "joblib's loky, two processes": lambda: joblib.parallel_config("loky", n_jobs=2),
    }
    expected = rows_of(SAMPLER.flows(paths))
    for name, each in around.items():
        with each():
            SAMPLER.write(paths, out, shards="npy")
        assert rows_of(FlowTable.load(out)) == expected, name
        shutil.rmtree(out)
    cases = {name: (each, lambda: SAMPLER.write(paths, out, shards="npy")) for name, each in around.items()}
    print_times(
        in_turns(cases, out, n_runs), "shards of all captures", ("x one process", lambda one, run: one[1] / run[1])
    )
    print("\nRows are the same in all cases.")


@contextlib.contextmanager
def warm_cluster(paths, folder, **config):
    """Let joblib use a cluster of two processes that have sampled some captures each."""
    with dask.config.set(config), cluster(2, folder), joblib.parallel_config("dask"):
        SAMPLER.write(paths[:40], folder / "warm", shards="npy")
        shutil.rmtree(folder / "warm")
        yield


def shards(paths, folder, n_runs):
    out = folder / "out"
    kinds = {"write": {}, "write, shards='npy'": {"shards": "npy"}, "write, shards='parquet'": {"shards": "parquet"}}
    cases = {
        name: (contextlib.nullcontext, functools.partial(SAMPLER.write, paths, out, **kind))
        for name, kind in kinds.items()
    }
    print_times(in_turns(cases, out, n_runs), "one thread", ("CPU, x write", lambda one, run: run[0] / one[0]))


def tasks(paths, folder, n_runs):
    """Print the sizes of what is sent to other processes, and of what comes back."""
    sizes, run_far = {}, _running._run_far

    def noted(function, arguments, n_jobs):
        for first in range(0, len(arguments), _running.CALLS_AT_ONCE):
            some = arguments[first : first + _running.CALLS_AT_ONCE]
            task = [(_running._worked, (function, each)) for each in some]
            results = [_running._worked(function, each) for each in some]
            sizes.setdefault(function.__name__, []).append((len(cloudpickle.dumps(task)), len(pickle.dumps(results))))
        return run_far(function, arguments, n_jobs)

    _running._run_far = noted
    try:
        with joblib.parallel_config("loky", n_jobs=1):  # one: in this process
            SAMPLER.write(paths, folder / "tasks", shards="npy")
            SAMPLER.flows(paths)
    finally:
        _running._run_far = run_far
    print("\n| call | tasks | largest task, bytes | largest result, bytes |\n|---|---|---|---|")
    for name, found in sizes.items():
        sent, returned = map(max, zip(*found, strict=True))
        print(f"| {name} | {len(found)} | {sent} | {returned} |")


def killed(paths, folder, n_runs):
    out, expected = folder / "killed", rows_of(SAMPLER.flows(paths))
    with cluster(2, folder) as client:
        victim = next(iter(client.run(os.getpid).values()))
        thread = threading.Thread(target=kill_later, args=[victim, out, len(paths) // 10])
        thread.start()
        began = time.perf_counter()
        with joblib.parallel_config("dask"):
            SAMPLER.write(paths, out, shards="npy")
        seconds = time.perf_counter() - began
        thread.join()
        assert victim not in client.run(os.getpid).values()
    flows = FlowTable.load(out)
    same = rows_of(flows) == expected
    print(f"\n{len(flows.captures)} of {len(paths)} captures are there after {seconds:.1f} s; same rows: {same}")


def kill_later(process, out, n_shards):
    while not out.exists() or sum(not name.startswith((".", "shards.json")) for name in os.listdir(out)) < n_shards:
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    print(f"\nWorker {process} was killed when {n_shards} shards were there.")


STUDIES = {"workers": workers, "shards": shards, "tasks": tasks, "killed": killed}


def main():
    with tempfile.TemporaryDirectory(dir=ARGUMENTS.folder) as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        paths = make_captures(ARGUMENTS.capture, folder / "captures", ARGUMENTS.captures, ARGUMENTS.distinct)
        counters = SAMPLER.flows(paths[: ARGUMENTS.distinct]).counters
        packets, flows = (sum(c[what] for c in counters) / len(counters) for what in ("packets", "flows"))
        size = sum(os.path.getsize(path) for path in paths)
        print(
            f"{len(paths)} captures of {packets:,.0f} packets and {flows:,.0f} flows on average, {size / 1e9:.2f} GB; "
            f"{ARGUMENTS.runs} runs; load {os.getloadavg()[0]:.1f} before them"
        )
        for study in ARGUMENTS.studies:
            STUDIES[study](paths, folder, ARGUMENTS.runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("capture")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--captures", type=int, default=1000)
    parser.add_argument("--distinct", type=int, default=50)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", default="/dev/shm", help="where captures and flows lie (default /dev/shm)")
    ARGUMENTS = parser.parse_args()
    main()
