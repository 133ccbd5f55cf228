# SPDX-License-Identifier: BSD-3-Clause
"""A folder with one capture, or one folder of captures, per class: the general way to a reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch, check_random_state

from sklearn_docids._sampler import FlowSampler
from sklearn_docids._warn import warn_caller
from sklearn_docids.datasets._files import files_of, paths_below

PACKED = (".gz", ".zst", ".lz4", ".xz", ".bz2")


def class_captures(folder: str | os.PathLike[str]) -> tuple[list[Path], list[str]]:
    """Return captures and their classes: a file's name without suffixes, or the name of the folder it lies in.

    Raises
    ------
    OSError
        The folder is missing, is not a folder or cannot be read.
    ValueError
        It has no captures.

    Warns
    -----
    UserWarning
        A folder of a class has no captures, or what is no file is skipped.
    """
    home = Path(folder)
    paths = files_of(home, paths_below(home))
    entries = [path.relative_to(home).parts[0] for path in paths]
    folders = {entry.name for entry in home.iterdir() if entry.is_dir() and not entry.is_symlink()}
    for name in sorted(folders - set(entries)):
        if not name.startswith("."):
            warn_caller(f"{home / name} holds no captures")
    if not paths:
        raise ValueError(f"{folder} holds no captures: one capture, or folder of captures, per class is needed")
    labels = [plain_name(path) if path.parent == home else entry for path, entry in zip(paths, entries, strict=True)]
    return paths, labels


def plain_name(path: Path) -> str:
    """Return a file's name without suffixes: dns.pcap.gz is of class dns, too."""
    return Path(path.stem).stem if path.suffix in PACKED else path.stem


def load_class_folder(
    folder: str | os.PathLike[str],
    *,
    sampler: FlowSampler | None = None,
    n_per_class: int | None = None,
    random_state: int | np.random.RandomState | None = None,
    return_X_y: bool = False,
) -> Any:
    """Load a labelled reference: one capture, or one folder of captures, per class.

    Guide: :doc:`/how-to/reference`.

    Parameters
    ----------
    folder : path
        Folder whose entries are captures (``dns.pcap``, ``tls.pcapng.gz``: class ``dns``, class ``tls``) or folders of
        captures (their name is the class). Names that begin with a dot are skipped, and, with a warning, pipes,
        sockets, devices, links to folders, and links that lead out of the folder: it may come from a stranger.
    sampler : FlowSampler, default=None
        Sampler to use; None: ``FlowSampler(random_state=random_state)``, which zeroes addresses. Rows are training data
        (`FlowSampler.sample`): with ``fields="paper"``, addresses are random.
    n_per_class : int or None, default=None
        Most flows of a class, drawn at random; None: all.
    random_state : int, RandomState instance or None, default=None
        Source of the drawing.
    return_X_y : bool, default=False
        Whether to return ``(X, y)`` instead of a Bunch: what `DOCIDSDetector.fit` takes as ``reference``.

    Returns
    -------
    Bunch or tuple
        ``X``: ndarray of uint8, shape (n_flows, n_packets * n_bytes); ``y``: ndarray of str, the class of each flow;
        ``groups``: ndarray of int64, the number of the capture of each flow, for scikit-learn's group splitters;
        ``captures``: their paths; ``target_names``: the classes, sorted; ``DESCR``: flows per class as text.

    Raises
    ------
    OSError
        The folder or a capture is missing or cannot be read.
    ValueError
        The folder has no captures, or ``n_per_class`` is less than 1.
    CaptureError
        None of the files is a capture.

    Warns
    -----
    UserWarning
        A class has no captures or no flows, or what is no file is skipped.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn_docids.datasets import load_class_folder, make_traffic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     traffic = make_traffic(folder, n_flows=20, random_state=0)
    ...     reference = load_class_folder(traffic.reference[0].parent, n_per_class=5, random_state=0)
    >>> reference.X.shape[1], len(reference.y) == 5 * len(reference.target_names)
    (320, True)
    """
    check_n_per_class(n_per_class)
    rng = check_random_state(random_state)
    if sampler is None:
        sampler = FlowSampler(random_state=int(rng.randint(2**31 - 1)))
    paths, labels = class_captures(folder)
    X, y, groups = sampler.sample(paths, labels)
    y = np.asarray(y)
    for label in sorted(set(labels) - set(y.tolist())):
        warn_caller(f"class {label!r} of {folder} has no flows")
    data = drawn_bunch(X, y, groups, n_per_class, rng)
    data.captures = paths
    data.DESCR = f"Flows of {len(paths)} captures in {folder}, sampled as training data.\n{data.DESCR}"
    return (data.X, data.y) if return_X_y else data


def check_n_per_class(n_per_class: int | None) -> None:
    """Refuse numbers that leave a class without flows."""
    if n_per_class is not None and n_per_class < 1:
        raise ValueError(f"n_per_class must be at least 1 or None, got {n_per_class!r}")


def drawn_bunch(
    X: np.ndarray, y: np.ndarray, groups: np.ndarray, n_per_class: int | None, rng: np.random.RandomState
) -> Bunch:
    """Return rows as a Bunch, at most so many of each class; ``DESCR`` has a line per class."""
    if n_per_class is not None:
        rows = drawn_per_class(y, n_per_class, rng)
        X, y, groups = X[rows], y[rows], groups[rows]
    names, counts = np.unique(y, return_counts=True)
    lines = "".join(f"{name}: {count} flows\n" for name, count in zip(names, counts, strict=True))
    return Bunch(X=X, y=y, groups=groups, target_names=names, DESCR=lines)


def drawn_per_class(y: np.ndarray, n_per_class: int, rng: np.random.RandomState) -> np.ndarray:
    """Return at most so many rows of each class, drawn at random, in their order."""
    if not len(y):
        return np.empty(0, np.int64)
    order = rng.permutation(len(y))
    rows = [order[y[order] == label][:n_per_class] for label in np.unique(y)]
    return np.sort(np.concatenate(rows))
