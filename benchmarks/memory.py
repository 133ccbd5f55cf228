"""What it takes to fit and to score more flows than fit in memory.

    OMP_NUM_THREADS=1 python benchmarks/memory.py --make folder --flows 10000000
    OMP_NUM_THREADS=1 python benchmarks/memory.py --folder folder --studies views network

The table is the testbed's traffic again and again, each time later and of other hosts; 456 bytes a flow on disk. Each
study is a process of its own, and after each stage prints the most memory that was ever resident, as the system counts
it, pages of mapped files included, beside CPU seconds.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from sklearn_docids import DOCIDSDetector, FlowSampler, MultiViewDetector
from sklearn_docids.capture import FlowTable, folders
from sklearn_docids.datasets import load_testbed

SAMPLER = FlowSampler(layout="payload")
N_SITES = 200
PAUSE_NS = 10**9


def make(folder, n_flows):
    """Write a folder of flows as `FlowSampler.write` does."""
    flows = testbed_flows()
    span = int(flows.time_first.max() - flows.time_first.min()) + PAUSE_NS
    folder.mkdir(parents=True)
    sources = (flows.X, flows.rows.records, flows.rows.kept_bytes, flows.rows.payload_lengths)
    arrays = [
        np.lib.format.open_memmap(folder / name, "w+", source.dtype, (n_flows, *source.shape[1:]))
        for name, source in zip(folders.ARRAYS, sources, strict=True)
    ]
    for number, first in enumerate(range(0, n_flows, len(flows))):
        here = slice(first, min(first + len(flows), n_flows))
        for array, source in zip(arrays, sources, strict=True):
            array[here] = source[: here.stop - here.start]
        change(arrays[1][here], number, span)
    for array in arrays:
        array.flush()
    captures = [{"name": "testbed", "flows": n_flows, "packets": 0, "ignored": {}, "layout": "payload"}]
    (folder / folders.CAPTURES).write_text(json.dumps(captures))
    folders.seal(str(folder))


def testbed_flows():
    captures = load_testbed(sampler=SAMPLER).captures
    flows = SAMPLER.flows([captures[period] for period in ("train", "validation", "test")])
    return flows[np.argsort(flows.time_first, kind="stable")]


def change(records, number, span):
    """Let flows begin later, at another site."""
    for time_of in ("time_first", "time_last"):
        records[time_of] += number * span
    for address in ("src_low", "dst_low"):
        records[address][records["ip_version"] == 4] ^= np.uint64((number % N_SITES) << 8)


def views(flows, data):
    detector = MultiViewDetector(random_state=0)
    yield "fit, five views", lambda: detector.fit(flows, reference=(data.flows_reference, data.y_reference))
    yield "score, five views", lambda: detector.score_samples(flows)


def network(flows, data):
    detector = DOCIDSDetector(random_state=0)
    yield "fit, network", lambda: detector.fit(flows.X, reference=(data.X_reference, data.y_reference))
    yield "score, network", lambda: detector.score_samples(flows.X)


def quick(flows, data):
    detector = MultiViewDetector(views=("statistics", "requests", "novelty"), random_state=0)
    yield "fit, three views", lambda: detector.fit(flows)
    yield "score, three views", lambda: detector.score_samples(flows)


STUDIES = {"views": views, "network": network, "quick": quick}


def measure(study, folder):
    flows, data = FlowTable.load(folder), load_testbed(sampler=SAMPLER)
    print(f"{study}: {len(flows):,} flows; {resident_mib()} MiB before the fit", flush=True)
    for stage, run in STUDIES[study](flows, data):
        before, start = time.process_time(), time.perf_counter()
        run()
        cpu, wall = time.process_time() - before, time.perf_counter() - start
        print(f"{stage}: {cpu:.0f} CPU s, {wall:.0f} s; {resident_mib()} MiB at most", flush=True)


def resident_mib():
    """Return the most memory that was resident, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=Path, metavar="FOLDER")
    parser.add_argument("--flows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=["views", "network"])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the same flows again and again are no traffic to learn from
    if arguments.make:
        make(arguments.make, arguments.flows)
    elif arguments.here:
        measure(*arguments.studies, arguments.folder)
    else:
        for study in arguments.studies:
            own = [sys.executable, __file__, "--here", "--folder", arguments.folder, "--studies", study]
            subprocess.run(own, check=True)


if __name__ == "__main__":
    main()
