# SPDX-License-Identifier: BSD-3-Clause
"""Files of a data set, perhaps from a stranger's archive: links may lead anywhere, pipes and devices have no end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from sklearn_docids._warn import warn_caller


def paths_below(folder: Path) -> Iterator[Path]:
    """Yield all that is in a folder and in the folders in it, without names that begin with a dot.

    Links are not followed: one to a folder is a path like any other.

    Raises
    ------
    OSError
        The folder, or one in it, is missing or cannot be read.
    """
    for where, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        yield from (Path(where, name) for name in [*links, *names] if not name.startswith("."))


def _refuse(error: OSError) -> NoReturn:
    raise error


def files_of(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Return those of some paths in a folder that are files, or links to files in the same folder; sorted.

    Warns
    -----
    UserWarning
        There are others, which are skipped.
    """
    home = Path(os.path.realpath(folder))
    found: list[Path] = []
    skipped: list[Path] = []
    for path in sorted(paths):
        (found if _is_file_of(home, path) else skipped).append(path)
    if skipped:
        warn_caller(
            f"{folder}: skipped {', '.join(str(path) for path in skipped)}: links that lead out of the folder or to "
            "folders, pipes, sockets and devices are not read; put the files themselves there, or name the folder they "
            "are in"
        )
    return found


def _is_file_of(home: Path, path: Path) -> bool:
    try:
        target = Path(os.path.realpath(path, strict=True))
        return target.is_relative_to(home) and stat.S_ISREG(target.stat().st_mode)
    except OSError:  # a link to nothing, or to itself
        return False
