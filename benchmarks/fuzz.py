"""Damaged captures, and folders of flows, for as long as it is let: the long run of ``tests/mutations.py``.

    python benchmarks/fuzz.py [--seconds 600] [--jobs 2] [--first-seed 0]

Every input is a function of its seed. Each job is a process of its own and writes down the seed it is at, so that a
crash or a hang (20 s) names the input; ``--first-seed SEED --seconds 1`` runs it again. With ``NUMBA_BOUNDSCHECK=1``
numba checks every index.
"""

import argparse
import faulthandler
import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import mutations

HANG_SECONDS = 20


def work(first_seed, step, seconds, seed_now, results):
    n_inputs = n_captures = 0
    failures = []
    end = time.monotonic() + seconds
    seed = first_seed
    while time.monotonic() < end:
        seed_now.value = seed
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            n_captures += mutations.run(seed)
        except Exception as error:
            failures.append(f"seed {seed}: {error!r}")
        faulthandler.cancel_dump_traceback_later()
        n_inputs += 1
        seed += step
    results.put((n_inputs, n_captures, failures))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    args = parser.parse_args()
    mutations.run(0)  # compiles, before there are several processes
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    seeds = [context.Value("q", -1) for _ in range(args.jobs)]
    jobs = [
        context.Process(target=work, args=(args.first_seed + i, args.jobs, args.seconds, seeds[i], results))
        for i in range(args.jobs)
    ]
    for job in jobs:
        job.start()
    n_inputs = n_captures = 0
    failures = []
    for job, seed in zip(jobs, seeds, strict=True):
        job.join()
        if job.exitcode:
            failures.append(f"seed {seed.value}: the process ended with {job.exitcode}")
    while not results.empty():
        n, captures, failed = results.get()
        n_inputs, n_captures, failures = n_inputs + n, n_captures + captures, failures + failed
    print(f"{n_inputs} damaged captures, {n_captures} of them still captures: {len(failures)} failures")
    print("\n".join(failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
