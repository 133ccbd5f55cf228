# SPDX-License-Identifier: BSD-3-Clause
"""Sealed files: tensors and a JSON object in one safetensors file, with a checksum over all of it.

Reading one executes nothing, and tensors are not touched before names, types, shapes and size are those that were
expected. What reads the JSON object alone imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError

if TYPE_CHECKING:
    import torch

# No header of ours is longer: the longest part of it, the history, has 250 bytes per epoch.
MAX_HEADER = 4 * 2**20
UNSEALED = "0" * 64
DTYPES = {"torch.float32": "F32", "torch.float64": "F64", "torch.int64": "I64", "torch.uint8": "U8"}
SIZES = {"F32": 4, "F64": 8, "I64": 8, "U8": 1}

# Keys of an epoch in a history.
HISTORY = (
    "epoch", "pairs", "descriptiveness_loss", "compactness_loss", "reconstruction_loss", "validation_loss",
)  # fmt: skip

# Names of tensors, each with type and shape as they stand in the header.
Expected = dict[str, tuple[str, list[int]]]


class SealedFileError(Exception):
    """What is wrong with a file."""


def described(tensors: dict[str, torch.Tensor]) -> Expected:
    """Return names, types and shapes of tensors."""
    return {name: (DTYPES[str(value.dtype)], list(value.shape)) for name, value in tensors.items()}


def part(named: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return what has names with a prefix, by the rest of the names."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def write(path: str, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write a file that `opened` will take; one that is there already is replaced as a whole.

    Raises
    ------
    OSError
        The file cannot be written, or what has its name is not a file.
    SealedFileError
        `opened` would refuse the file.
    """
    import safetensors.torch

    path = os.path.realpath(path)  # the file behind a link, not the link
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(f"{path} exists and is not a file")
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


class SealedFile(NamedTuple):
    """A file whose header is read."""

    config: dict[str, Any]
    header: dict[str, Any]
    seal: str
    file: Any

    def checksum(self) -> str:
        """Return the checksum, if it is right."""
        self.file.seek(0)
        _check_seal(self.file.read(), self.seal)
        return self.seal

    def tensors(self, expected: Expected) -> dict[str, torch.Tensor]:
        """Return the tensors, all finite, if they are the expected ones and the checksum is right."""
        import safetensors.torch

        with _damage_named():
            _check_tensors(self.header, expected, os.fstat(self.file.fileno()).st_size - self.file.tell())
            self.file.seek(0)
            data = self.file.read()
            _check_seal(data, self.seal)
            tensors = safetensors.torch.load(data)
            _check_finite(tensors)
        return tensors


@contextmanager
def opened(path: str) -> Iterator[SealedFile]:
    """Open a file and read its JSON object; tensors are read when their names and shapes are known from it.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    SealedFileError
        Anything about its content.
    """
    with open(path, "rb") as file:
        with _damage_named():
            header = _read_header(file, os.fstat(file.fileno()).st_size)
            metadata = header.pop("__metadata__", None)
            if not isinstance(metadata, dict) or not isinstance(metadata.get("docids"), str):
                raise SealedFileError("it has no DOC-IDS metadata")
            config = _parse_json(metadata["docids"])
            if not isinstance(config, dict):
                raise SealedFileError("its metadata is not a JSON object")
        yield SealedFile(config, header, str(metadata.get("sha256")), file)


@contextmanager
def _damage_named() -> Iterator[None]:
    try:
        yield
    except (SafetensorError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise SealedFileError(str(error)) from None


# Names of fields, each with a predicate that its value must satisfy.
Checks = dict[str, Callable[[Any], bool]]


def check_fields(config: dict[str, Any], keys: set[str], checks: Checks) -> None:
    """Refuse a config of other keys, or with a value that does not satisfy its predicate; checked in their order."""
    if set(config) != keys:
        raise SealedFileError(f"its metadata has other keys than expected: {sorted(set(config) ^ keys)}")
    for name, is_good in checks.items():
        if not is_good(config[name]):
            raise SealedFileError(f"its metadata has an unusable value for {name!r}")


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 1 on that fits into 32 bits."""
    return type(value) is int and 1 <= value < 2**31


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def is_strings(value: Any) -> bool:
    """Return whether a value is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_history(value: Any) -> bool:
    """Return whether a value is a list of epochs, each a number per name."""
    return isinstance(value, list) and all(
        isinstance(epoch, dict) and set(epoch) <= set(HISTORY) and all(map(is_number, epoch.values()))
        for epoch in value
    )


def _check_finite(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.numel() and not all(math.isfinite(end) for end in tensor.aminmax()):  # NaN is both ends
            raise SealedFileError(f"tensor {name} holds NaN or infinity")


def _read_header(file: Any, size: int) -> dict[str, Any]:
    """Return the header of a safetensors file; the file then stands at the first tensor."""
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > min(size - 8, MAX_HEADER):
        raise SealedFileError("it does not begin like a safetensors file")
    header = _parse_json(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise SealedFileError("its header is not a JSON object")
    return header


def _parse_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            raise SealedFileError("a key of its JSON stands there twice")
        return result

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except ValueError as error:  # a number of thousands of digits is one without being a JSONDecodeError
        raise SealedFileError(f"its JSON is damaged: {error}") from None
    _refuse_non_finite(value, "")
    return value


def _refuse_non_finite(value: Any, name: str) -> None:
    """Refuse NaN and infinity, which Python's reader takes as a word, and as a number too large."""
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _refuse_non_finite(item, f"{name}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise SealedFileError(f"its JSON holds {value} for {name!r}")


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
