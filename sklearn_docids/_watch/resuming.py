# SPDX-License-Identifier: BSD-3-Clause
"""What survives a kill: how far each file of a folder was read, the flows that were open, and the last ones judged."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sklearn_docids._watch.flows import ROWS, LiveAssembler, Snapshot, fingerprint, rows_of, table_of
from sklearn_docids._watch.folders import FolderSource, taken_of
from sklearn_docids._watch.states import read_state, write_state
from sklearn_docids._watch.verdicts import Judge
from sklearn_docids.capture.flows import FlowRows

JUDGED = "judged_"


def save(path: str, source: FolderSource, assembler: LiveAssembler, judge: Judge) -> None:
    """Write the state of a folder; all flows that were handed on must have been judged and written."""
    config = {
        "folder": os.path.abspath(source.name),
        "settings": fingerprint(assembler.rules),
        "files": source.described(),
        "names": assembler.names,
    }
    write_state(path, config, {**assembler.snapshot().arrays(), **_judged(judge.last(), assembler)})


def _judged(rows: FlowRows | None, assembler: LiveAssembler) -> dict[str, np.ndarray]:
    found = assembler.rows[:0] if rows is None else rows
    return {JUDGED + name: getattr(found, name) for name in ROWS}


def resume(path: str, source: FolderSource, assembler: LiveAssembler, judge: Judge) -> tuple[int, str]:
    """Go on where a state was written; return how many flows are open, and what people should know of it.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no state, damaged, or that of another folder.
    """
    like = {**assembler.snapshot().arrays(), **_judged(None, assembler)}
    found = read_state(path, like)
    if found is None:
        return 0, ""
    config, arrays = found
    folder = os.path.abspath(source.name)
    if config["folder"] != folder:
        raise ValueError(
            f"the state {path} is that of the folder {config['folder']}, not of {folder}: name another --state"
        )
    source.taken = taken_of(config["files"])
    if config["settings"] != fingerprint(assembler.rules):
        n_open = int((~arrays["given_out"]).sum())
        return 0, f"the model reads captures in another way than before: {n_open} flows that were open are left out"
    return _go_on(path, config, arrays, assembler, judge), ""


def _go_on(
    path: str, config: dict[str, Any], arrays: dict[str, np.ndarray], assembler: LiveAssembler, judge: Judge
) -> int:
    rules = assembler.rules
    judged = rows_of({name: arrays.pop(JUDGED + name) for name in ROWS}, rules)
    try:
        judged.check()
        snapshot = Snapshot.of(arrays, rules)
    except ValueError as error:
        raise ValueError(f"the state {path} is damaged ({error}): remove it, and all files count as new") from None
    assembler.restore(snapshot)
    assembler.names = [(int(first), str(name)) for first, name in config["names"]]
    if len(judged):
        judge.remember(table_of([judged], assembler.names))
    return assembler.n_open + sum(map(len, assembler.done))
