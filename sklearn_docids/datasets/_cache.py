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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from sklearn_docids._sampler import FlowSampler
from sklearn_docids._scratch import scratch_folder
from sklearn_docids._version import __version__
from sklearn_docids._warn import collected, warn_caller
from sklearn_docids.capture import CaptureWarning
from sklearn_docids.capture import fields as field_policies
from sklearn_docids.capture.folders import NAMES
from sklearn_docids.capture.table import FlowTable

# Parameters of a sampler that change neither which flows there are nor their bytes as captured.
CHANGES_NOTHING = ("fields", "n_jobs", "random_state", "output", "verbose")
NOTE = "cache.json"
READ_AT_ONCE = 2**20
# What is raised of files that are missing or hold something else; no other error of the system is damage.
DAMAGE = (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError)


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
        except DAMAGE as error:
            warn_caller(f"{folder} is damaged and made again: {error}")
            _remove(folder)
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
    with scratch_folder(folder.parent) as scratch:
        whole = Path(scratch) / "whole"
        with collected() as found:
            sampler.write(captures, whole)
        damage = [message for message, category in found if issubclass(category, CaptureWarning)]
        note = {"described": described, "damage": damage, "sha256": {name: checksum(whole / name) for name in NAMES}}
        (whole / NOTE).write_text(json.dumps(note, indent=1))
        try:
            os.rename(whole, folder)
        except OSError:
            if not folder.exists():  # else another process was first; what it made is the same
                raise
    for message, category in found:
        warn_caller(message, category)
    return FlowTable.load(folder)


def _remove(folder: Path) -> None:
    """Remove a folder; to other processes, it is whole or absent."""
    with scratch_folder(folder.parent) as scratch, suppress(FileNotFoundError):  # another may have been quicker
        os.rename(folder, Path(scratch) / "damaged")


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
    _check_file(folder / NOTE)
    note = _checked_note((folder / NOTE).read_text(), described)
    for name, expected in note["sha256"].items():
        _check_file(folder / name)
        if checksum(folder / name) != expected:
            raise ValueError(f"{name} has another checksum than when it was written")
    flows = FlowTable.load(folder)
    n_packets, n_bytes = (described["sampler"][name] for name in ("n_packets", "n_bytes"))
    if (flows.X.shape[1], flows.n_packets) != (n_packets * n_bytes, n_packets):
        raise ValueError(f"its rows are not of {n_packets} packets of {n_bytes} bytes")
    if flows.layout != described["sampler"]["layout"]:
        raise ValueError(f"its rows are of layout={flows.layout!r}")
    for message in note["damage"]:
        warn_caller(message, CaptureWarning)
    return flows


def _check_file(path: Path) -> None:
    """Refuse what is missing or has no end, as pipes and devices."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing, or not a file")


def _checked_note(text: str, described: dict[str, Any]) -> dict[str, Any]:
    note = json.loads(text)
    if note["described"] != described:
        raise ValueError(f"it is of {note['described']}")
    if not isinstance(note["sha256"], dict) or set(note["sha256"]) != set(NAMES):
        raise ValueError(f"{NOTE} has no checksums of {', '.join(NAMES)}")
    if not isinstance(note["damage"], list) or not all(isinstance(message, str) for message in note["damage"]):
        raise ValueError(f"{NOTE} holds something else than warnings")
    return dict(note)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(READ_AT_ONCE):
            digest.update(data)
    return digest.hexdigest()
