# SPDX-License-Identifier: BSD-3-Clause
"""Sampled flows kept on disk: reading a day of captures again takes seconds instead of minutes.

A cached table lies in a folder of its own, named by a fingerprint of the capture (name, size, time of change) and of
everything that decides its flows. Other settings have another folder, so that nothing is ever mixed. Its files are
checked against their checksums before they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from sklearn_docids import __version__
from sklearn_docids._sampler import FlowSampler
from sklearn_docids.capture import CaptureWarning
from sklearn_docids.capture import fields as field_policies
from sklearn_docids.capture.table import FlowTable

# Parameters of a sampler that change neither which flows there are nor their bytes as captured.
CHANGES_NOTHING = ("fields", "n_jobs", "random_state", "verbose")
NOTE = "cache.json"
READ_AT_ONCE = 2**20


@contextmanager
def one_capture(path: Path) -> Iterator[list[Path]]:
    """Yield the captures in a file that is one itself."""
    yield [path]


def captured_flows(
    capture: Path,
    sampler: FlowSampler,
    cache_folder: str | os.PathLike[str] | None,
    opened: Callable[[Path], AbstractContextManager[list[Path]]] = one_capture,
) -> FlowTable:
    """Return the flows of a capture with their bytes as captured, from the cache if they are there.

    ``opened`` gives the captures in a file: itself, or those in an archive while it is unpacked.

    Raises
    ------
    OSError
        The capture or the folder cannot be read or written.
    CaptureError
        The file is no capture, or is damaged and the sampler's ``on_error`` is ``"raise"``.

    Warns
    -----
    CaptureWarning
        The capture is damaged; from the cache, too.
    UserWarning
        What is cached is damaged; it is made again.
    """
    plain = clone(sampler).set_params(fields="raw")
    if cache_folder is None:
        with opened(capture) as captures:
            return plain.flows(captures)
    described = _described(capture, plain)
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    folder = Path(cache_folder) / f"{capture.name}-{digest[:16]}"
    if folder.exists():
        try:
            return _read(folder, described)
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(f"{folder} is damaged and made again: {error}", UserWarning, stacklevel=3)
            shutil.rmtree(folder)
    with opened(capture) as captures:
        return _sample_into(folder, captures, plain, described)


def as_sampled(flows: FlowTable, sampler: FlowSampler, *, training: bool, seed: int) -> np.ndarray:
    """Return the bytes of captured flows under the field policy of a sampler."""
    rows = flows.rows.copy()  # those of the cache are read-only
    field_policies.apply_fields(rows, sampler._actions(training=training), seed)
    return rows.X


def _described(capture: Path, sampler: FlowSampler) -> dict[str, Any]:
    state = capture.stat()
    settings = {name: value for name, value in sampler.get_params().items() if name not in CHANGES_NOTHING}
    return {
        "version": __version__,
        "capture": capture.name,
        "bytes": state.st_size,
        "changed": state.st_mtime_ns,
        "sampler": {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
    }


def _sample_into(folder: Path, captures: list[Path], sampler: FlowSampler, described: dict[str, Any]) -> FlowTable:
    """Sample captures into a folder beside, which takes its name when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="docids-", dir=folder.parent))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sampler.write(captures, unfinished)
        damage = [str(w.message) for w in caught if issubclass(w.category, CaptureWarning)]
        checksums = {path.name: checksum(path) for path in sorted(unfinished.iterdir())}
        note = {"described": described, "damage": damage, "sha256": checksums}
        (unfinished / NOTE).write_text(json.dumps(note, indent=1))
        if not folder.exists():  # another process may have been first; what it made is the same
            os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return FlowTable.load(folder)


def _read(folder: Path, described: dict[str, Any]) -> FlowTable:
    note = json.loads((folder / NOTE).read_text())
    if note["described"] != described:
        raise ValueError(f"it is of {note['described']}")
    for name, expected in note["sha256"].items():
        if checksum(folder / name) != expected:
            raise ValueError(f"{name} has another checksum than when it was written")
    flows = FlowTable.load(folder)
    for message in note["damage"]:
        warnings.warn(message, CaptureWarning, stacklevel=4)
    return flows


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(READ_AT_ONCE):
            digest.update(data)
    return digest.hexdigest()
