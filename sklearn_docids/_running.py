# SPDX-License-Identifier: BSD-3-Clause
"""Functions called once per capture, wherever joblib says: in threads of this process, or in other processes."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from contextvars import Context, copy_context
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend

from sklearn_docids._warn import called_from, caller, collected, warn_caller

# A thread that waits for a pipe cannot be stopped; one that reads a file takes far less time to notice.
STOPS_WITHIN_S = 5.0
# A task costs a scheduler some milliseconds, as much as a small capture: so many calls make one where there are many.
# It and its results then stay below 10 kB; each worker still gets several tasks, as some take longer than others.
CALLS_AT_ONCE, TASKS_EACH = 4, 4

Function = Callable[..., Any]
Arguments = Sequence[tuple[Any, ...]]


def is_far() -> bool:
    """Whether joblib's backend, as `joblib.parallel_config` chose it, works in other processes or on other machines."""
    backend, _ = get_active_backend(prefer="threads")
    return not getattr(backend, "supports_sharedmem", False)


def shared_folder() -> str:
    """Return where other processes leave what is to be returned: the folder that joblib uses, where there is one."""
    return os.environ.get("JOBLIB_TEMP_FOLDER") or tempfile.gettempdir()


def run_all(function: Function, arguments: Arguments, n_jobs: int | None) -> list[Any]:
    """Return what a function returns for each tuple of arguments, in order.

    The function gets one more argument, a function that says whether the result is still waited for. In other
    processes, what it returns is pickled, and it may be called again where a worker died.
    """
    return _run_far(function, arguments, n_jobs) if is_far() else _run_in_threads(function, arguments, n_jobs)


def _run_in_threads(function: Function, arguments: Arguments, n_jobs: int | None) -> list[Any]:
    """Call a function in threads: kernels release the GIL, and nothing is copied.

    After an error no other call is begun; those in work are finished, so that no thread goes on behind the caller's
    back, and the first error in order of calls is raised, whatever the number of threads. Ctrl-C stops those in work,
    too.
    """
    failed, stopped = threading.Event(), threading.Event()
    begun: list[threading.Event] = []
    with called_from(caller()):
        contexts = [copy_context() for _ in arguments]  # two threads cannot be in one

    def guarded(context: Context, each: tuple[Any, ...]) -> tuple[Any, Exception | None]:
        done = threading.Event()
        begun.append(done)
        try:
            if failed.is_set() or stopped.is_set():
                return None, None
            return context.run(function, *each, stopped.is_set), None
        except Exception as error:
            failed.set()
            return None, error
        finally:
            done.set()

    try:
        calls = (delayed(guarded)(*call) for call in zip(contexts, arguments, strict=True))
        results = Parallel(n_jobs=n_jobs, prefer="threads")(calls)
    except BaseException:  # joblib's own threads would go on
        stopped.set()
        for done in begun:
            done.wait(STOPS_WITHIN_S)
        raise
    for _, error in results:
        if error:
            raise error
    return [result for result, _ in results]


def _run_far(function: Function, arguments: Arguments, n_jobs: int | None) -> list[Any]:
    """Call a function in other processes; warn here of what they would warn of.

    Raises
    ------
    ChildProcessError
        A worker died, and then one again. Dask itself gives what a dead worker had to another one first.
    """
    calls = [delayed(_worked)(function, each) for each in arguments]
    at_once = max(1, min(CALLS_AT_ONCE, len(calls) // (TASKS_EACH * effective_n_jobs(n_jobs))))
    # All are handed out now: workers that have done theirs do not wait for more.
    parallel = Parallel(n_jobs=n_jobs, prefer="threads", batch_size=at_once, pre_dispatch="all")
    try:
        results = parallel(calls)
    except _deaths():
        try:
            results = parallel(calls)
        except _deaths() as error:
            reason = " ".join(str(error).split())
            raise ChildProcessError(f"a worker died, and another one when its work was done again: {reason}") from None
    for _, found in results:
        for message, category in found:
            warn_caller(message, category)
    return [result for result, _ in results]


def _worked(function: Function, each: tuple[Any, ...]) -> tuple[Any, list[tuple[str, type[Warning]]]]:
    """Call a function in a worker; return its result, and what to warn of. What is missing is missing on a machine."""
    try:
        with collected() as found:
            return function(*each, _never), found
    except OSError as error:
        if error.errno is None or error.filename is None:
            raise
        raise type(error)(error.errno, f"{error.strerror} (on {socket.gethostname()})", error.filename) from None


def _never() -> bool:
    return False


def _deaths() -> tuple[type[Exception], ...]:
    """Return what backends raise of workers that died."""
    cluster = sys.modules.get("distributed")
    return (BrokenExecutor, *([cluster.KilledWorker] if cluster else ()))
