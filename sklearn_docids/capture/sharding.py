# SPDX-License-Identifier: BSD-3-Clause
"""Captures to shards: each by whoever takes it, in this process or another, and none of them twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_docids._scratch import named, scratch_folder, sync
from sklearn_docids._warn import collected, warn_caller
from sklearn_docids.capture import folders
from sklearn_docids.capture.containers import Located, located
from sklearn_docids.capture.flows import FlowRows, FlowRules, Progress, warn_of_refused
from sklearn_docids.capture.parquet import pyarrow_parquet, save_parquet
from sklearn_docids.capture.shard_folders import (
    PARQUET,
    Shard,
    ShardNote,
    add_to_list,
    check_same,
    check_there,
    content_digest,
    is_list_in,
    noted,
    read_list,
    read_note,
    shard_name,
    shard_path,
)
from sklearn_docids.capture.shards import Part, ShardedArray, stamp_of
from sklearn_docids.capture.stored import OTHER_CONTENT
from sklearn_docids.capture.table import COLUMNS, FlowTable
from sklearn_docids.capture.writing import RowFile, RunAll, check_seen, row_formats, whole_folder, write_run
from sklearn_docids.exceptions import CaptureError, CaptureWarning

Collected = list[tuple[str, type[Warning]]]


@dataclass(frozen=True)
class ShardJob:
    """What all shards of a call have in common."""

    folder: str
    scratch: str  # inside the folder
    kind: str
    settings: Mapping[str, Any]
    rules: FlowRules
    on_error: str
    progress: Progress
    drop_midstream: bool


@dataclass
class Sharded:
    """What became of a capture."""

    counters: dict[str, int]
    ignored: dict[str, int]
    warnings: Collected
    error: CaptureError | None = None


def write_shards(
    sources: Sequence[Any],
    settings: Mapping[str, Any],
    rules: FlowRules,
    on_error: str,
    out: str,
    kind: str,
    progress: Progress,
    run_all: RunAll,
    drop_midstream: bool,
) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Write a shard of each capture into the folder ``out``; return the counters of each, and what was ignored.

    The list of the folder comes first. What is there already is not made again.
    """
    captures = [located(source) for source in sources]
    folder = os.path.abspath(out)
    _check_folder(folder, kind, settings)
    digests = run_all(_digest, [(capture,) for capture in captures])
    shards = [
        Shard(shard_name(capture, digest, settings), capture.name)
        for capture, digest in zip(captures, digests, strict=True)
    ]
    with named(folder), scratch_folder(folder) as scratch:
        add_to_list(folder, scratch, kind, settings, shards)
        job = ShardJob(folder, scratch, kind, settings, rules, on_error, progress, drop_midstream)
        results = _all_written(captures, shards, job, run_all)
        shards = [_or_refused(shard, results[shard.name].error) for shard in shards]
        # A run of the same captures that were others then may have changed the list.
        add_to_list(folder, scratch, kind, settings, shards)
        check_there(folder, kind, [shard for shard in shards if shard.refused is None])
    return _reported([results[shard.name] for shard in shards])


def _check_folder(folder: str, kind: str, settings: Mapping[str, Any]) -> None:
    """Make a folder; refuse one that has something else, before anything is read."""
    os.makedirs(folder, exist_ok=True)
    if kind == PARQUET:
        pyarrow_parquet()
    if is_list_in(folder):
        check_same(folder, read_list(folder), kind, settings)
    elif os.path.exists(os.path.join(folder, folders.CAPTURES)):
        raise ValueError(f"{folder} has flows that were written without shards: use another folder")


def _digest(capture: Located, stopped: Callable[[], bool]) -> str:
    return content_digest(capture)


def _or_refused(shard: Shard, error: CaptureError | None) -> Shard:
    return shard._replace(refused=str(error)) if error else shard


def _all_written(
    captures: Sequence[Located], shards: Sequence[Shard], job: ShardJob, run_all: RunAll
) -> dict[str, Sharded]:
    """Write each shard once; return what became of it. Of captures of one name and one content there is one."""
    distinct = {shard.name: capture for shard, capture in zip(shards, captures, strict=True)}
    try:
        done = run_all(write_shard, [(capture, name, job) for name, capture in distinct.items()])
        return dict(zip(distinct, done, strict=True))
    except CaptureError as error:
        refused = [_or_refused(shard, error) for shard in shards if shard.capture == error.capture]
        add_to_list(job.folder, job.scratch, job.kind, job.settings, refused)
        raise
    except ChildProcessError as error:
        try:
            check_there(job.folder, job.kind, shards)
        except ValueError as missing:
            raise ChildProcessError(f"{error}; {missing}") from None
        raise


def _reported(results: Sequence[Sharded]) -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Warn of what was found; return counters, and what was ignored."""
    for result in results:
        for message, category in result.warnings:
            warn_caller(message, category)
    warn_of_refused([result.error for result in results if result.error], len(results))
    return [result.counters for result in results], [result.ignored for result in results]


def write_shard(capture: Located, name: str, job: ShardJob, stopped: Callable[[], bool]) -> Sharded:
    """Write the shard of a capture, if it is not there; return what became of it, which is small."""
    check_seen(job.scratch)
    note = _note(name, job)
    if note is not None:
        job.progress(capture.name, None, note.counters)
        return Sharded(note.counters, note.ignored, [(text, CaptureWarning) for text in note.warnings])
    with named(job.folder):
        return _write_shard(capture, name, job, stopped)


def _note(name: str, job: ShardJob) -> ShardNote | None:
    """Return what a shard says of itself; None: it is missing, or has to be written again."""
    try:
        return read_note(shard_path(job.folder, job.kind, name), job.kind, name, job.settings)
    except (OSError, *OTHER_CONTENT):
        return None


def _write_shard(capture: Located, name: str, job: ShardJob, stopped: Callable[[], bool]) -> Sharded:
    with collected() as found:
        files, read = write_run(
            [capture], job.rules, job.on_error, job.scratch, row_formats(job.rules), job.progress, job.drop_midstream,
            stopped,
        )  # fmt: skip
    if read.errors or stopped():  # of what was stopped, nobody will ask
        return Sharded({}, {}, found, *read.errors)
    (counters,), (ignored,) = read.counters, read.ignored
    note = noted(name, job.settings, [text for text, category in found if issubclass(category, CaptureWarning)])
    if job.kind == PARQUET:
        described = {
            "captures": [capture.name], "counters": [counters], "ignored": [ignored], "layout": job.rules.layout,
            "shard": note,
        }  # fmt: skip
        _publish_parquet(files, counters, json.dumps(described), job, name)
    else:
        described = {"name": capture.name, **counters, "ignored": ignored, "layout": job.rules.layout, "shard": note}
        _publish_folder(whole_folder(files, [described]), name, job)
    return Sharded(counters, ignored, found)


def _publish_parquet(
    files: Sequence[RowFile], counters: dict[str, int], described: str, job: ShardJob, name: str
) -> None:
    """Write flows that lie in files as Parquet, some of them at a time; the file gets its name when it is whole."""
    arrays = {
        file.form.field: ShardedArray(
            [Part(file.path, file.data_start, file.n_rows, stamp_of(file.path))], file.form.dtype, file.form.row_shape
        )
        for file in files
    }
    rows = FlowRows(**arrays, layout=job.rules.layout)  # type: ignore[arg-type] # read as arrays are
    table = FlowTable(rows, np.zeros(len(rows), np.int64), [name], [counters])
    part = os.path.join(os.path.dirname(files[0].path), name)
    save_parquet(table, COLUMNS, part, described)
    sync(part)
    os.replace(part, shard_path(job.folder, PARQUET, name))
    shutil.rmtree(os.path.dirname(part))


def _publish_folder(whole: str, name: str, job: ShardJob) -> None:
    """Give a folder its name, unless another writer was quicker: what it wrote is the same."""
    path = shard_path(job.folder, job.kind, name)
    try:
        os.rename(whole, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        if _note(name, job) is None:
            with suppress(FileNotFoundError):
                os.rename(path, f"{whole}-damaged")
            os.rename(whole, path)
