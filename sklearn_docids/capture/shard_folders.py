# SPDX-License-Identifier: BSD-3-Clause
"""Folders of shards: a list of them, and each a file or folder of its own that is whole or not there.

The list is written before any shard, so that a run that was killed does not pass for one that has ended. It has the
settings that all shards share; each shard has them, too, with its own name, so that none can stand for another.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import numpy as np

from sklearn_docids._scratch import locked, named, scratch_folder, sync
from sklearn_docids.capture import folders, kernels
from sklearn_docids.capture.containers import Located, opened
from sklearn_docids.capture.flows import FlowRows
from sklearn_docids.capture.parquet import groups_of, metadata_of
from sklearn_docids.capture.shards import Part, ShardedArray, stamp_of
from sklearn_docids.capture.stored import OTHER_CONTENT, Parts, check_captures, check_rows, described

LIST, LOCK = "shards.json", ".docids-shards.lock"
NPY, PARQUET = "npy", "parquet"
# Another number where the same settings make other flows of a capture, or where shards hold something else.
FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
MAX_STEM = 80
SUFFIXES = re.compile(r"(\.(pcap|pcapng|cap|dmp|gz|zst|lz4|xz|bz2))+$", re.IGNORECASE)
# A capture is told from others by its size and so many parts of it, evenly spread with the first and last bytes among
# them: to read all of it would take as long as to sample it.
N_PARTS, PART_BYTES = 64, 2**12


class Shard(NamedTuple):
    """An entry of the list."""

    name: str
    capture: str
    refused: str | None = None  # why nothing could be read: there is no such shard then


class ShardList(NamedTuple):
    """The list of a folder."""

    kind: str
    settings: dict[str, Any]
    shards: list[Shard]


class ShardNote(NamedTuple):
    """What a shard says of itself."""

    counters: dict[str, int]
    ignored: dict[str, int]
    warnings: list[str]


# --------------------------------------------------------------------------------------------------------------------
# Names


def content_digest(capture: Located) -> str:
    """Return a digest of the size and some parts of a capture, of one of up to 256 KiB of all of it.

    Another capture has the same if it differs from it in other places alone: packets have time stamps, so that two
    records do not.
    """
    if os.path.exists(capture.path) and not os.path.isfile(capture.path):
        raise ValueError(f"{capture.name} is no file: a shard is named by what is in it, which is read twice")
    with opened(capture) as file:
        n_bytes = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(n_bytes).encode())
        is_small = n_bytes <= N_PARTS * PART_BYTES
        for first in [0] if is_small else np.linspace(0, n_bytes - PART_BYTES, N_PARTS).astype(np.int64).tolist():
            file.seek(first)
            rest = n_bytes if is_small else PART_BYTES
            while rest and (data := file.read(rest)):
                digest.update(data)
                rest -= len(data)
    return digest.hexdigest()


def shard_name(capture: Located, digest: str, settings: Mapping[str, Any]) -> str:
    """Return the name of the shard of a capture: of its file, and of what decides what is in the shard."""
    file_name = os.path.basename(capture.name)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", SUFFIXES.sub("", file_name)).lstrip("._-")[:MAX_STEM] or "capture"
    # With the whole name: two of one content may differ in what the stem leaves out.
    decisive = json.dumps([FORMAT, file_name, digest, settings], sort_keys=True)
    return f"{stem}-{hashlib.sha256(decisive.encode()).hexdigest()[:20]}"


def shard_path(folder: str, kind: str, name: str) -> str:
    """Return where a shard is."""
    return os.path.join(folder, name + (".parquet" if kind == PARQUET else ""))


# --------------------------------------------------------------------------------------------------------------------
# The list


def is_list_in(folder: str) -> bool:
    """Whether a folder has shards."""
    return os.path.exists(os.path.join(folder, LIST))


def read_list(folder: str) -> ShardList:
    """Return the list of a folder.

    Raises
    ------
    ValueError
        It is none, of a version that is not known, or damaged.
    """
    with open(os.path.join(folder, LIST), "rb") as file:
        text = file.read()
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise ValueError(f"it is of format {found['format']}, this version reads {FORMAT}: use another folder")
        shards = [Shard(entry["name"], entry["capture"], entry.get("refused")) for entry in found["shards"]]
        if found["kind"] not in (NPY, PARQUET) or not isinstance(found["settings"], dict):
            raise ValueError("it is no list of shards")
        for shard in shards:
            if not (NAME.fullmatch(shard.name) and isinstance(shard.capture, str)):
                raise ValueError(f"it lists {shard.name!r}, which is no name of a shard")
        if found["sha256"] != _list_digest(found["kind"], found["settings"], found["shards"]):
            raise ValueError("it is damaged: remove it and run write again")
        return ShardList(found["kind"], found["settings"], shards)
    except OTHER_CONTENT as error:
        raise ValueError(f"{os.path.join(folder, LIST)}: {str(error) or type(error).__name__}") from None


def _list_digest(kind: str, settings: Mapping[str, Any], entries: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps([kind, settings, entries], sort_keys=True).encode()).hexdigest()


def check_same(folder: str, found: ShardList, kind: str, settings: Mapping[str, Any]) -> None:
    """Refuse a folder whose shards are of other settings.

    Raises
    ------
    ValueError
        They are; it names the parameters.
    """
    if found.kind != kind:
        raise ValueError(f"{folder} has shards={found.kind!r}, shards={kind!r} need another folder")
    others = _differing(found.settings, settings)
    if others:
        raise ValueError(f"{folder} has shards of other settings, give them or use another folder: {others}")


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return which settings differ, and how."""
    names = [name for name in {**found, **wanted} if found.get(name, "?") != wanted.get(name, "?")]
    return ", ".join(f"{name}={found.get(name, '?')!r} there, {wanted.get(name, '?')!r} here" for name in names)


def add_to_list(folder: str, scratch: str, kind: str, settings: Mapping[str, Any], shards: Sequence[Shard]) -> None:
    """Put shards on the list of a folder, behind those of others, while nobody else does."""
    with locked(os.path.join(folder, LOCK)):
        listed: list[Shard] = []
        if is_list_in(folder):
            found = read_list(folder)
            check_same(folder, found, kind, settings)
            listed = found.shards
        entries = [
            {"name": shard.name, "capture": shard.capture} | ({"refused": shard.refused} if shard.refused else {})
            for shard in _merged(listed, shards, lambda name: os.path.exists(shard_path(folder, kind, name)))
        ]
        described = {"format": FORMAT, "kind": kind, "settings": settings, "shards": entries}
        part = os.path.join(scratch, LIST)
        with open(part, "w", encoding="utf-8") as text:
            json.dump(described | {"sha256": _list_digest(kind, settings, entries)}, text, indent=1)
        sync(part)
        os.replace(part, os.path.join(folder, LIST))


def _merged(listed: Sequence[Shard], new: Sequence[Shard], is_there: Callable[[str], bool]) -> list[Shard]:
    """Return entries; what a run that has been given up listed of these captures is gone, if they are others now."""
    entries, captures = {shard.name: shard for shard in new}, {shard.capture for shard in new}
    kept = {
        shard.name: shard
        for shard in listed
        if shard.name in entries or shard.capture not in captures or is_there(shard.name)
    }
    return list((kept | entries).values())  # those that are listed keep their places


# --------------------------------------------------------------------------------------------------------------------
# Shards


def noted(name: str, settings: Mapping[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
    """Return what a shard keeps beside its flows."""
    return {"format": FORMAT, "name": name, "settings": dict(settings), "warnings": list(warnings)}


def read_note(path: str, kind: str, name: str, settings: Mapping[str, Any]) -> ShardNote:
    """Return what the shard at a path says of itself, if it is the one.

    Raises
    ------
    OSError, or one of `OTHER_CONTENT`
        It is missing, or damaged as far as can be told without reading all of it.
    """
    if kind == PARQUET:
        return _note_in_parquet(metadata_of(path), name, settings)
    return _note_in_folder(folders.stored(path).captures, name, settings)


def _note_in_parquet(text: bytes, name: str, settings: Mapping[str, Any]) -> ShardNote:
    layout, ((_,), (counters,), (ignored,)) = described(text)
    return _checked_note(json.loads(text)["shard"], layout, counters, ignored, name, settings)


def _note_in_folder(text: bytes, name: str, settings: Mapping[str, Any]) -> ShardNote:
    (entry,) = json.loads(text)
    note, layout, ignored = (entry.pop(key) for key in ("shard", "layout", "ignored"))
    del entry["name"]
    return _checked_note(note, layout, entry, ignored, name, settings)


def _checked_note(
    note: Any, layout: Any, counters: Any, ignored: Any, name: str, settings: Mapping[str, Any]
) -> ShardNote:
    if note["format"] != FORMAT:
        raise ValueError(f"it is of format {note['format']}, this version reads {FORMAT}")
    if note["name"] != name:
        raise ValueError(f"it is the shard {note['name']}")
    others = _differing(note["settings"], settings)
    if others:
        raise ValueError(f"it is of other settings: {others}")
    check_captures([name], [counters], [ignored])
    if layout != settings["layout"] or type(counters["flows"]) is not int:
        raise ValueError("its parts do not fit together")
    if not all(isinstance(text, str) for text in note["warnings"]):
        raise ValueError("it holds something else than warnings")
    return ShardNote(counters, ignored, note["warnings"])


# --------------------------------------------------------------------------------------------------------------------
# All of them as one table


def load_shards(folder: str) -> Parts:
    """Open the shards of a folder as the parts of one table.

    Raises
    ------
    ValueError
        One is missing, damaged, or of something else; it is named.
    """
    listed = read_list(folder)
    read = [shard for shard in listed.shards if shard.refused is None]
    check_there(folder, listed.kind, read)
    with closing(_Unpacked(listed.settings) if listed.kind == PARQUET else _InPlace(listed.settings)) as flows:
        notes = {shard.name: _added(flows, shard_path(folder, listed.kind, shard.name), shard) for shard in read}
        rows = flows.rows()
    counters = [notes[shard.name].counters if shard.name in notes else {} for shard in listed.shards]
    ignored = [notes[shard.name].ignored if shard.name in notes else {} for shard in listed.shards]
    capture = np.repeat(np.arange(len(counters)), [counts.get("flows", 0) for counts in counters])
    return rows, capture, [shard.capture for shard in listed.shards], counters, ignored


def check_there(folder: str, kind: str, shards: Sequence[Shard]) -> None:
    """Refuse a folder in which some shards are not there.

    Raises
    ------
    ValueError
        So it is; it names the first.
    """
    missing = [shard for shard in shards if not os.path.exists(shard_path(folder, kind, shard.name))]
    if missing:
        path = shard_path(folder, kind, missing[0].name)
        raise ValueError(
            f"{len(missing)} of {len(shards)} shards are missing, the first is {os.path.basename(path)} (of "
            f"{missing[0].capture}): a run has not ended, or was killed; run write again, it keeps those that are there"
        )


def _added(flows: _InPlace, path: str, shard: Shard) -> ShardNote:
    """Add the flows of a shard to others; return what it says of itself."""
    try:
        return flows.add(path, shard.name)
    except (OSError, *OTHER_CONTENT) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT, errno.ENOTDIR):
            raise  # of the system; those of pyarrow have no number
        raise ValueError(
            f"{os.path.basename(path)} (of {shard.capture}): {str(error) or type(error).__name__}; remove it and run "
            "write again"
        ) from None


class _InPlace:
    """Flows of shards of arrays, which are read where they are."""

    def __init__(self, settings: Mapping[str, Any]):
        self._settings = settings
        n_packets = int(settings["n_packets"])
        # In order of `folders.ARRAYS`: the fields of `FlowRows`, and of each the type and the shape of a row.
        self._forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
            "X": (np.dtype(np.uint8), (n_packets * int(settings["n_bytes"]),)),
            "records": (kernels.FLOW_DTYPE, ()),
            "kept_bytes": (np.dtype(np.uint16), (n_packets,)),
            "payload_lengths": (np.dtype(np.int32), (n_packets,)),
        }
        self._parts: dict[str, list[Part]] = {name: [] for name in self._forms}

    def add(self, path: str, name: str) -> ShardNote:
        """Add the flows of a shard, if they are in order; return what it says of itself."""
        found = folders.stored(path)
        note = _note_in_folder(found.captures, name, self._settings)
        folders.check_seal(found)
        arrays = {name: getattr(found, name) for name in self._forms}
        self._check_forms(arrays)
        parts = {name: [Part(a.filename, a.offset, len(a), stamp_of(a.filename))] for name, a in arrays.items()}
        check_rows(self._of_parts(parts, None))
        for name, (part,) in parts.items():
            self._parts[name].append(part)
        _check_number(len(found.records), note)
        return note

    def _check_forms(self, arrays: Mapping[str, np.ndarray]) -> None:
        if any((a.dtype, a.shape[1:]) != self._forms[name] or not a.ndim for name, a in arrays.items()):
            raise ValueError("its arrays are not those of its settings")

    def _of_parts(self, parts: Mapping[str, Sequence[Part]], owner: object) -> FlowRows:
        arrays = {name: ShardedArray(parts[name], *form, owner=owner) for name, form in self._forms.items()}
        return FlowRows(**arrays, layout=self._settings["layout"])  # type: ignore[arg-type] # read as arrays are

    def rows(self) -> FlowRows:
        """Return all flows."""
        return self._of_parts(self._parts, None)

    def close(self) -> None:
        """Stop adding."""


def _check_number(n_flows: int, note: ShardNote) -> None:
    if n_flows != note.counters["flows"]:
        raise ValueError(f"it holds {n_flows} flows and says {note.counters['flows']}")


class _Unpacked(_InPlace):
    """Flows of Parquet shards, which become arrays in temporary files: a file for each array of all shards.

    They have names, so that other processes of this machine can read a table that they are given.
    """

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self._owner = _TemporaryFolder()
        self._files = {name: open(os.path.join(self._owner.path, name), "wb") for name in self._forms}  # noqa: SIM115
        self._n_rows = 0

    def add(self, path: str, name: str) -> ShardNote:
        """Add the flows of a shard, if they are in order; return what it says of itself."""
        note = _note_in_parquet(metadata_of(path), name, self._settings)
        n_before = self._n_rows
        for rows in groups_of(path, self._settings["layout"]):
            self._check_forms({name: getattr(rows, name) for name in self._forms})
            check_rows(rows)
            with named(self._owner.path):
                for name, file in self._files.items():
                    file.write(np.ascontiguousarray(getattr(rows, name)).data)
            self._n_rows += len(rows)
        _check_number(self._n_rows - n_before, note)
        return note

    def rows(self) -> FlowRows:
        """Return all flows."""
        self.close()
        parts = {name: [Part(file.name, 0, self._n_rows, stamp_of(file.name))] for name, file in self._files.items()}
        return self._of_parts(parts, self._owner)

    def close(self) -> None:
        """Stop adding."""
        with named(self._owner.path):
            for file in self._files.values():
                file.close()


class _TemporaryFolder:
    """A folder that is removed with the last array that reads from it, or by whoever needs one after a kill."""

    def __init__(self) -> None:
        opened = ExitStack()
        self.path = opened.enter_context(scratch_folder(tempfile.gettempdir()))
        weakref.finalize(self, _close_in, os.getpid(), opened)


def _close_in(process: int, opened: ExitStack) -> None:
    if os.getpid() == process:  # not in a child that was forked
        opened.close()
