# SPDX-License-Identifier: BSD-3-Clause
"""Files that commands write: refused before the work, whole or not there, and never in place of what they are from."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sklearn_docids._scratch import named
from sklearn_docids.exceptions import CaptureError

# A model begins with the length of its header, in 8 bytes, and the header with metadata: settings and a checksum of 64
# digits, in any order.
N_LENGTH_BYTES, N_BYTES_READ = 8, 256


def check_writable(option: str, path: str, *, is_file: bool = False) -> None:
    """Refuse what could not be written, before the work that is to go into it."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of {option} {path} does not exist")
    # A device, such as /dev/stdout, or a pipe can be written to as well, except by what makes files alone.
    if not path or Path(path).is_dir() or (is_file and not _is_replaced(path)):
        raise FileExistsError(f"{option} {path or repr('')} is not a file name")
    if not os.access(folder if _is_replaced(path) else path, os.W_OK):
        raise PermissionError(f"{option} {path} cannot be written to")


def _is_replaced(path: str) -> bool:
    """Return whether a new file takes the place of a path: not that of a device, whatever it leads to."""
    is_device = os.path.abspath(path).startswith(("/dev/", "/proc/"))
    return not is_device and (Path(path).is_file() or not Path(path).exists())


def scratch_folder(path: str) -> str | None:
    """Return a folder with room for what is written to ``path``; None: that for temporary files."""
    return (os.path.dirname(path) or ".") if _is_replaced(path) else None


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """Give a path to write to; what was written takes the place of ``path`` when all of it is there."""
    if not _is_replaced(path):
        yield path
        return
    with named(path), tempfile.TemporaryDirectory(prefix=".docids-", dir=os.path.dirname(path) or ".") as scratch:
        part = os.path.join(scratch, "part")
        yield part
        if Path(path).is_file():
            shutil.copymode(path, part)
        os.replace(part, path)


def check_spared(option: str, path: str, inputs: Iterable[str], *, force: bool = False) -> None:
    """Refuse to write over an input of the command, over a capture, or, without ``force``, over a model."""
    if not Path(path).is_file():
        return
    if any(Path(given).exists() and os.path.samefile(given, path) for given in inputs if given != "-"):
        raise FileExistsError(f"{option} {path} is an input of this command, and would be lost")
    if begins_like_a_capture(path):
        raise FileExistsError(f"{option} {path} is a capture, and would be lost")
    if begins_like_a_model(path) and not force:
        raise FileExistsError(f"{option} {path} is a model, and would be lost: --force replaces it")


def begins_like_a_capture(path: str) -> bool:
    """Return whether a file is a capture, packed or not, perhaps a damaged one."""
    from sklearn_docids.capture.containers import Capture, opened

    try:
        with opened(path) as stream:
            capture = Capture(stream, path)
            try:
                next(capture.blocks(), None)
            finally:
                capture.close()
    except CaptureError as error:
        return error.record is not None  # damage behind a beginning that was right
    except ImportError:  # packed in a way that cannot be looked into here
        return True
    return True


def begins_like_a_model(path: str) -> bool:
    """Return whether a file begins as model files do."""
    with open(path, "rb") as file:
        header = file.read(N_BYTES_READ)[N_LENGTH_BYTES:]
    return header.startswith(b'{"__metadata__":{') and b'"docids":' in header
