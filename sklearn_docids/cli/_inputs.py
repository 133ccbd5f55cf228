# SPDX-License-Identifier: BSD-3-Clause
"""What commands read: captures as files, folders, patterns and standard input, and models."""

from __future__ import annotations

import argparse
import errno
import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from sklearn_docids._warn import missing
from sklearn_docids.cli._text import note

CAPTURE_HELP = (
    "pcap or pcapng, packed or not; a folder: the captures in it, in the order of time; a quoted pattern such as "
    "'day-*.pcap'; a URL that fsspec opens, such as s3://bucket/day.pcap; -: standard input"
)
MODEL_HELP = (
    "model file written by fit, by someone you trust: its checksum shows damage, not who wrote it; a hostile model "
    "runs no code, but may read captures so as to miss attacks, or call them normal"
)
# A scheduler that has not answered for so long, in seconds, is not there.
SCHEDULER_ANSWERS_WITHIN = 5.0
# Progress is shown of what takes longer, in seconds; and how often where no terminal replaces the line before.
SHOWN_AFTER, SECONDS_BETWEEN_LINES = 2.0, 10.0


def add_captures(parser: argparse.ArgumentParser) -> None:
    """Add the captures that a command is about."""
    parser.add_argument("captures", nargs="+", metavar="CAPTURE", help=CAPTURE_HELP)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model to read."""
    parser.add_argument("--model", required=True, metavar="M", help=MODEL_HELP)


def add_midstream(parser: argparse.ArgumentParser) -> None:
    """Add what becomes of the tails of connections."""
    parser.add_argument(
        "--midstream", choices=("keep", "drop"),
        help="TCP flows that do not begin with their handshake, as tails of connections that ran before the capture "
        "began (default as the model was trained)",
    )  # fmt: skip


def add_scheduler(parser: argparse.ArgumentParser) -> None:
    """Add where captures are read."""
    parser.add_argument(
        "--scheduler", metavar="ADDRESS",
        help="scheduler of a Dask cluster that you trust, such as tcp://10.0.0.1:8786: its workers read the captures; "
        "they must see captures and output under the same paths, also JOBLIB_TEMP_FOLDER where flows are returned",
    )  # fmt: skip


async def _scheduler_answers(address: str) -> None:
    """Return once a scheduler has answered: a client would wait for ever where a connection is taken and no more."""
    import distributed

    settings = distributed.Security().get_connection_args("client")
    async with distributed.rpc(address, connection_args=settings) as scheduler:
        await scheduler.identity()


@contextmanager
def on_cluster(address: str | None) -> Iterator[None]:
    """Let joblib use a Dask cluster; None: nothing changes."""
    if address is None:
        yield
        return
    try:
        import distributed
    except ImportError:
        raise missing("--scheduler", "distributed") from None
    import asyncio

    import joblib

    try:
        asyncio.run(asyncio.wait_for(_scheduler_answers(address), SCHEDULER_ANSWERS_WITHIN))
        connected = distributed.Client(address, timeout=SCHEDULER_ANSWERS_WITHIN)
    except Exception as error:  # whoever answers in another language makes it raise anything
        reason = str(error) or f"nothing came for {SCHEDULER_ANSWERS_WITHIN:g} s"
        raise ConnectionError(f"--scheduler {address}: no Dask scheduler answers there: {reason}") from None
    with connected as client:
        try:
            client.wait_for_workers(1, timeout=SCHEDULER_ANSWERS_WITHIN)
        except TimeoutError:
            raise ConnectionError(
                f"--scheduler {address}: its cluster has no workers, start some: dask worker"
            ) from None
        with joblib.parallel_config("dask"):
            yield


def expanded(captures: Sequence[str], option: str = "CAPTURE") -> list[str]:
    """Return the files that captures stand for, ``-`` for standard input, if all are there and can be read.

    Raises
    ------
    OSError
        One is missing, or may not be read.
    ValueError
        A folder holds no captures, a pattern fits no file, or standard input is closed or given twice.
    """
    found = [path for capture in captures for path in _expanded(capture, option)]
    if found.count("-") > 1:
        raise ValueError(f"{option}: - is standard input, which can be read once")
    return found


def _expanded(capture: str, option: str) -> list[str]:
    if capture == "-":
        if sys.stdin is None:
            raise ValueError("standard input is closed: there is nothing to read for -")
        return [capture]
    if "://" in capture:  # fsspec's; whoever reads it says whether it is there
        return [capture]
    if os.path.isdir(capture):
        return _captures_in(capture, option)
    if glob.has_magic(capture) and not os.path.lexists(capture):
        paths = [path for path in glob.glob(capture, recursive=True) if not os.path.isdir(path)]
        if not paths:
            raise ValueError(f"{option} {capture}: no file fits the pattern")
        return _in_order(paths)
    os.stat(capture)
    if not os.access(capture, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), capture)
    return [capture]


def _captures_in(folder: str, option: str) -> list[str]:
    from sklearn_docids.cli._outputs import begins_like_a_capture

    paths = [entry.path for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
    found = [path for path in paths if begins_like_a_capture(path)]
    if not found:
        raise ValueError(f"{option} {folder}: there is no capture in this folder; those in folders in it are not read")
    return _in_order(found)


def _in_order(paths: Sequence[str]) -> list[str]:
    """Return captures in the order of their first packets, then of their names."""
    from sklearn_docids.capture.flows import first_time

    return sorted(paths, key=lambda path: (first_time(path) or 0, path))


class Counted(io.RawIOBase):
    """A file that tells a bar how many of its bytes were read."""

    def __init__(self, file: Any, bar: Any):
        self._file, self._bar = file, bar
        self.name = file.name

    def readinto(self, buffer: Any) -> int | None:
        """Read once."""
        n_bytes: int | None = self._file.readinto(buffer)
        self._bar.update(n_bytes or 0)
        return n_bytes

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        descriptor: int = self._file.fileno()
        return descriptor

    def tell(self) -> int:
        """Return how many bytes lie before the next one."""
        place: int = self._file.tell()
        return place

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


@contextmanager
def reading(captures: Sequence[str], title: str, *, quiet: bool, by_path: bool = False) -> Iterator[list[Any]]:
    """Give captures as the sampler takes them; show how far it is, where that takes long.

    With ``by_path``, others may open them, and nobody shows how far they are.
    """
    if by_path:
        if "-" in captures:
            raise ValueError("- is standard input, which neither --shards nor --scheduler can read: give a file")
        yield list(captures)
        return
    sizes = [os.path.getsize(path) for path in captures if path != "-" and os.path.isfile(path)]
    known = sum(sizes) if len(sizes) == len(captures) else None
    with progress_bar(known, title, "B", quiet=quiet) as bar, ExitStack() as opened:
        yield [_opened(path, bar, opened) for path in captures]


def _opened(path: str, bar: Any, opened: ExitStack) -> Any:
    if path == "-":
        return sys.stdin.buffer
    # A pipe is waited for, and may be opened once: that is up to who reads it.
    return opened.enter_context(Counted(io.FileIO(path), bar)) if os.path.isfile(path) else path


def progress_bar(total: int | None, title: str, unit: str, *, quiet: bool) -> Any:
    """Return a bar on standard error, which appears after two seconds: rate, and time left where that is known."""
    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=total, desc=title, unit=unit, unit_scale=True, delay=SHOWN_AFTER, file=sys.stderr, disable=quiet,
        mininterval=0.2 if is_terminal else SECONDS_BETWEEN_LINES, leave=False, dynamic_ncols=is_terminal,
        ascii=None if is_terminal else True,
    )  # fmt: skip


def check_read(counters: Iterable[Mapping[str, int]], captures: Sequence[str]) -> None:
    """Refuse captures of whose packets none is in a flow: that nothing was found in them means nothing."""
    from sklearn_docids.capture.counting import described, summed

    read = summed(counters)
    if read["packets"] and not read["flows"]:
        raise ValueError(f"{' '.join(captures)}: no packet is in a TCP or UDP flow: {described(read)}")


def note_captures(args: argparse.Namespace, captures: Sequence[str], counters: Iterable[Mapping[str, int]]) -> None:
    """Say what became of each capture, if more is to be said."""
    from sklearn_docids.capture.counting import described

    if args.verbose:
        for name, counts in zip(captures, counters, strict=True):
            note(args, f"{name}: {described(counts) if counts else 'left out'}")


def read_line(counters: Iterable[Mapping[str, int]], ignored: Iterable[Mapping[str, int]]) -> str:
    """Return a line on what was read and what became of it."""
    from sklearn_docids.capture.counting import described, most_frequent, summed

    kinds = most_frequent(ignored)
    return f"read {described(summed(counters))}" + (f"; of the ignored: {kinds}" if kinds else "")


def loaded_detector(path: str, midstream: str | None = None) -> Any:
    """Return a detector that knows how its captures are read, of a pipeline its last step."""
    check_model(path)
    from sklearn.pipeline import Pipeline

    from sklearn_docids.persistence import load_detector

    loaded = load_detector(path)
    detector: Any = loaded[-1] if isinstance(loaded, Pipeline) else loaded
    if detector.sampler_ is None:
        raise ValueError(f"{path} holds no sampler, so captures cannot be read as it was trained; use docids fit")
    # Standard output is the table's alone; detectors that take tables are given them by hand.
    detector.sampler_.set_params(verbose=0, output="rows")
    if midstream is not None:
        detector.sampler_.set_params(midstream=midstream)
    return detector


def check_model(path: str) -> None:
    """Refuse what is no model before torch is imported, which takes seconds."""
    from sklearn_docids.cli._outputs import begins_like_a_capture, begins_like_a_model

    if begins_like_a_model(path):
        return
    if begins_like_a_capture(path):
        raise ValueError(f"--model {path} is a capture: are the arguments swapped?")
    raise ValueError(f"--model {path} is not a usable DOC-IDS model: it does not begin like one")


def sampled_flows(detector: Any, captures: Sequence[str], option: str, *, quiet: bool = True) -> Any:
    """Return the flows of captures that must have some."""
    from sklearn_docids.capture.counting import described, summed

    with reading(captures, option, quiet=quiet) as sources:
        flows = detector.sampler_.flows(sources)
    if not len(flows):
        raise ValueError(f"{option} {' '.join(captures)}: there is no flow in it: {described(summed(flows.counters))}")
    return flows
