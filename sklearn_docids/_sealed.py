# SPDX-License-Identifier: BSD-3-Clause
"""Sealed files: tensors and a JSON object in one safetensors file, with a checksum over all of it.

Reading one executes nothing, and tensors are not touched before names, types, shapes and size are those that were
expected.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

# A longer header is none of ours: the longest part of it, the history, has 250 bytes per epoch.
MAX_HEADER = 4 * 2**20
UNSEALED = "0" * 64
DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8"}
SIZES = {"F32": 4, "F64": 8, "I64": 8, "U8": 1}

# Names of tensors, each with type and shape as they stand in the header.
Expected = dict[str, tuple[str, list[int]]]


class SealedFileError(Exception):
    """What is wrong with a file."""


def described(tensors: dict[str, torch.Tensor]) -> Expected:
    """Return names, types and shapes of tensors."""
    return {name: (DTYPES[value.dtype], list(value.shape)) for name, value in tensors.items()}


def write(path: str, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write a file that `read` will take; one that is there already is replaced as a whole.

    Raises
    ------
    OSError
        The file cannot be written, or what has its name is no file.
    SealedFileError
        `read` would refuse the file.
    """
    path = os.path.realpath(path)  # the file behind a link, not the link
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(f"{path} is there and no file")
    text = json.dumps(config, allow_nan=False, default=_plain)
    on_host = {name: value.cpu().contiguous() for name, value in tensors.items()}
    _check_finite(on_host)
    if 2 * len(text) > MAX_HEADER:  # as a string inside the header, it has a backslash before each quote
        raise SealedFileError(f"its settings and history take {len(text)} bytes of JSON")
    data = safetensors.torch.save(on_host, {"docids": text, "sha256": UNSEALED})
    data = data.replace(_seal(UNSEALED), _seal(hashlib.sha256(data).hexdigest()), 1)
    part = f"{path}.{uuid.uuid4().hex}.part"  # a name of its own: another process may be writing, too
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):
            shutil.copymode(path, part)
        os.replace(part, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(part)
        raise


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):  # NumPy's numbers
        return value.item()
    raise TypeError(f"a model file cannot hold a {type(value).__name__}")


def _seal(digest: str) -> bytes:
    """Return the checksum as it stands in the header; inside a JSON string, its quotes would be escaped."""
    return f'"sha256":"{digest}"'.encode()


def read(path: str, expected: Callable[[dict[str, Any]], Expected]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return JSON object and tensors of a file, the latter finite.

    ``expected`` gets the object and returns what tensors go with it, or raises `SealedFileError`.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    SealedFileError
        Anything about its content.
    """
    try:
        return _read(path, expected)
    except (SafetensorError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise SealedFileError(str(error)) from None


def _read(path: str, expected: Callable[[dict[str, Any]], Expected]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = _read_header(file, size)
        metadata = header.pop("__metadata__", None)
        if not isinstance(metadata, dict) or not isinstance(metadata.get("docids"), str):
            raise SealedFileError("it has no DOC-IDS metadata")
        config = _parse_json(metadata["docids"])
        if not isinstance(config, dict):
            raise SealedFileError("its metadata is no JSON object")
        _check_tensors(header, expected(config), size - file.tell())
        file.seek(0)
        data = file.read()
    _check_seal(data, str(metadata.get("sha256")))
    tensors = safetensors.torch.load(data)
    _check_finite(tensors)
    return config, tensors


def _check_finite(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.numel() and not all(math.isfinite(end) for end in tensor.aminmax()):  # NaN is both ends
            raise SealedFileError(f"tensor {name} holds NaN or infinity")


def plain_history(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a history for JSON, which has no infinity: a loss that was switched off may be infinite."""
    return [{name: v if math.isfinite(v) else None for name, v in epoch.items()} for epoch in history]


def _read_header(file: Any, size: int) -> dict[str, Any]:
    """Return the header of a safetensors file; the file then stands at the first tensor."""
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > min(size - 8, MAX_HEADER):
        raise SealedFileError("it does not begin like a safetensors file")
    header = _parse_json(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise SealedFileError("its header is no JSON object")
    return header


def _parse_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise SealedFileError("a key of its JSON stands there twice")
        return result

    def refuse(constant: str) -> None:
        raise SealedFileError(f"its JSON holds {constant}")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except ValueError as error:  # a number of thousands of digits is one without being a JSONDecodeError
        raise SealedFileError(f"its JSON is damaged: {error}") from None


def _check_tensors(header: dict[str, Any], expected: Expected, n_bytes: int) -> None:
    """Check names, types and shapes of the tensors, and that they fill the rest of the file."""
    if set(header) != set(expected):
        raise SealedFileError(f"its tensors are not those of its network: {sorted(set(header) ^ set(expected))[:4]}")
    for name, entry in header.items():
        if not isinstance(entry, dict) or (entry.get("dtype"), entry.get("shape")) != expected[name]:
            raise SealedFileError(f"tensor {name} is not the {expected[name]} of its network")
    needed = sum(math.prod(shape) * SIZES[dtype] for dtype, shape in expected.values())
    if needed != n_bytes:
        raise SealedFileError(f"its tensors take {n_bytes} bytes, its network needs {needed}")


def _check_seal(data: bytes, digest: str) -> None:
    """Check the checksum: that of the file with zeros in its place."""
    place = data.find(_seal(digest))
    view = memoryview(data)  # no copies: a model has 23 MB
    hashed = hashlib.sha256(view[: max(place, 0)])
    hashed.update(_seal(UNSEALED))
    hashed.update(view[place + len(_seal(digest)) :])
    if place < 0 or hashed.hexdigest() != digest:
        raise SealedFileError("its checksum is wrong")
