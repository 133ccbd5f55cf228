# SPDX-License-Identifier: BSD-3-Clause
"""Sampled flows kept on disk: reading a day of captures again takes seconds instead of minutes.

A cached table lies in a folder of its own, named by a fingerprint of the capture (name, size, time of change, and what
stands at its beginning, middle and end) and of everything that decides its flows. Other settings have another folder,
so that nothing is ever mixed. Its files are checked against their checksums before they are used.
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

from sklearn_docids._sampler import FlowSampler
from sklearn_docids._version import __version__
from sklearn_docids._warn import warn_caller
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
        The file is not a capture, or is damaged and the sampler's ``on_error`` is ``"raise"``.

    Warns
    -----
    CaptureWarning
        The capture is damaged; from the cache, too.
    UserWarning
        What is cached is damaged and is made again, or the sampler had room for too few live flows.
    """
    plain = clone(sampler).set_params(fields="raw")
    if cache_folder is None:
        with opened(capture) as captures:
            return _unevicted(plain.flows(captures), capture)
    described = _described(capture, plain)
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    folder = Path(cache_folder) / f"{capture.name}-{digest[:16]}"
    flows = None
    if folder.exists():
        try:
            flows = _read(folder, described)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:  # no other error of the system is damage
            warn_caller(f"{folder} is damaged and made again: {error}")
            shutil.rmtree(folder)
    if flows is None:
        with opened(capture) as captures:
            flows = _sample_into(folder, captures, plain, described)
    return _unevicted(flows, capture)


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
        "parts": _parts_digest(capture, state.st_size),
        "sampler": {name: _plain(value) for name, value in settings.items()},
    }


def _plain(value: Any) -> Any:
    """Return a parameter as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value.item() if isinstance(value, np.generic) else value


def _parts_digest(path: Path, n_bytes: int) -> str:
    """Return a checksum of the beginning, the middle and the end of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for place in (0, n_bytes // 2, max(0, n_bytes - READ_AT_ONCE)):
            file.seek(place)
            digest.update(file.read(READ_AT_ONCE))
    return digest.hexdigest()


def _sample_into(folder: Path, captures: list[Path], sampler: FlowSampler, described: dict[str, Any]) -> FlowTable:
    """Sample captures into a folder next to it, which takes its name when it is whole."""
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
        unfinished.chmod(0o777 & ~_umask())  # mkdtemp lets nobody else in
        try:
            os.rename(unfinished, folder)
        except OSError:
            if not folder.exists():  # else another process was first; what it made is the same
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for warning in caught:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return FlowTable.load(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unevicted(flows: FlowTable, capture: Path) -> FlowTable:
    """Return flows; warn if some were ended early, because those have lost their later packets, and their label."""
    n_evicted = sum(counters["flows_evicted"] for counters in flows.counters)
    if n_evicted:
        warn_caller(
            f"{capture}: {n_evicted} flows were ended early, their later packets count as flows of their own; give a "
            "sampler with a higher max_live_flows"
        )
    return flows


def _read(folder: Path, described: dict[str, Any]) -> FlowTable:
    note = json.loads((folder / NOTE).read_text())
    if note["described"] != described:
        raise ValueError(f"it is of {note['described']}")
    for name, expected in note["sha256"].items():
        if checksum(folder / name) != expected:
            raise ValueError(f"{name} has another checksum than when it was written")
    flows = FlowTable.load(folder)
    for message in note["damage"]:
        warn_caller(message, CaptureWarning)
    return flows


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(READ_AT_ONCE):
            digest.update(data)
    return digest.hexdigest()
