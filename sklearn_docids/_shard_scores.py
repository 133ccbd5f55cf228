# SPDX-License-Identifier: BSD-3-Clause
"""Scores of shards, each by whoever takes it: in this process or in another one."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from sklearn_docids._meta import takes_tables
from sklearn_docids._running import run_all, shared_folder
from sklearn_docids._scratch import named, scratch_folder
from sklearn_docids.capture.shard_folders import check_there, is_list_in, read_list, shard_path
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.capture.writing import check_seen


def score_shards(model: str | os.PathLike[str], folder: str | os.PathLike[str], *, n_jobs: int | None = None) -> Any:
    """Return how normal the flows of shards are, shard by shard, wherever joblib says.

    A worker is told a model file and a shard, reads both, and leaves scores in a file: no array goes through a
    scheduler. `joblib.parallel_config` chooses the engine; threads are the default.

    Guide: :doc:`/how-to/many-captures`.

    Parameters
    ----------
    model : path
        A file of `~sklearn_docids.save_detector`.
    folder : path
        Shards of `~sklearn_docids.FlowSampler.write`, sampled as the model's training flows were.
    n_jobs : int or None, default=None
        Shards at a time, as in joblib.

    Returns
    -------
    ndarray of float64, shape (n_flows,)
        What `score_samples` says of each shard by itself, in the order of ``FlowTable.load(folder)``. Rows of bytes
        score as they do together. The view ``"content"`` of `~sklearn_docids.MultiViewDetector` remembers nothing of
        the shards before: where many captures are of a few minutes each, score the table as a whole.

    Raises
    ------
    ValueError
        The folder holds no shards; one is missing, damaged or does not fit the model.
    ModelFileError
        The file is no model.
    ChildProcessError
        A worker died, and then another one.

    See Also
    --------
    MultiViewDetector.score_samples : Takes the table of all shards, and reads it in pieces.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids import FlowSampler, MultiViewDetector, save_detector
    >>> from sklearn_docids.datasets import make_traffic
    >>> from sklearn_docids.evaluation import score_shards
    >>> sampler = FlowSampler(layout="payload", output="flows")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     traffic = make_traffic(folder, n_flows=200, random_state=0)
    ...     detector = MultiViewDetector(views=("statistics",), random_state=0).fit(sampler.transform(traffic.train))
    ...     save_detector(detector, f"{folder}/model", sampler)
    ...     counters = sampler.write(traffic.train, f"{folder}/shards", shards="npy")
    ...     scores = score_shards(f"{folder}/model", f"{folder}/shards", n_jobs=2)
    >>> scores.shape
    (200,)
    """
    model, folder = os.path.abspath(os.fsdecode(model)), os.path.abspath(os.fsdecode(folder))
    if not is_list_in(folder):
        raise ValueError(f"{folder} holds no shards: FlowSampler.write makes them with shards='npy' or 'parquet'")
    listed = read_list(folder)
    shards = [shard for shard in listed.shards if shard.refused is None]
    check_there(folder, listed.kind, shards)
    detector_of(model, os.stat(model).st_mtime_ns)  # what is wrong with it is said once, here
    with scratch_folder(shared_folder()) as scratch:
        outputs = [os.path.join(scratch, f"{number}.npy") for number in range(len(shards))]
        paths = [shard_path(folder, listed.kind, shard.name) for shard in shards]
        run_all(_score, [(model, *each, scratch) for each in zip(paths, outputs, strict=True)], n_jobs)
        return np.concatenate([np.zeros(0), *(np.load(path) for path in outputs)])


def _score(model: str, shard: str, output: str, scratch: str, stopped: Callable[[], bool]) -> None:
    """Leave the scores of a shard in a file."""
    check_seen(scratch)
    detector = detector_of(model, os.stat(model).st_mtime_ns)
    flows = FlowTable.load(shard)
    rows = flows if takes_tables(detector) else flows.X
    with named(output):
        np.save(output, detector.score_samples(rows) if len(flows) else np.zeros(0))


@lru_cache(maxsize=1)
def detector_of(model: str, changed_ns: int) -> Any:
    """Return the detector of a model file; a worker reads it once."""
    from sklearn_docids.persistence import load_detector  # brings torch

    loaded = load_detector(model)
    return loaded[-1] if isinstance(loaded, Pipeline) else loaded
