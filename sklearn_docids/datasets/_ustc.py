# SPDX-License-Identifier: BSD-3-Clause
"""USTC-TFC2016, the paper's reference, as captures and as the session images that were made of it."""

from __future__ import annotations

import gzip
import importlib.util
import math
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from sklearn.base import clone
from sklearn.utils import Bunch, check_random_state

from sklearn_docids import paper
from sklearn_docids._sampler import FlowSampler
from sklearn_docids._warn import missing, warn_caller
from sklearn_docids.datasets._cache import as_sampled, captured_flows
from sklearn_docids.datasets._files import files_of, paths_below
from sklearn_docids.datasets._folder import check_n_per_class, drawn_bunch, plain_name
from sklearn_docids.datasets._sevenzip import extract

BENIGN = (
    "BitTorrent", "Facetime", "FTP", "Gmail", "MySQL", "Outlook", "Skype", "SMB", "Weibo", "WorldOfWarcraft",
)  # fmt: skip
MALWARE = ("Cridex", "Geodo", "Htbot", "Miuref", "Neris", "Nsis-ay", "Shifu", "Tinba", "Virut", "Zeus")
HOME = "https://github.com/yungshenglu/USTC-TFC2016"
IMAGES_HOME = "https://github.com/echowei/DeepTraffic, 1.malware_traffic_classification/3.PreprocessedResults/20class"
DESCR = """USTC-TFC2016 (Wang et al., ICOIN 2017): ten applications and ten kinds of malware, {what}.

Every benign flow has TTL 32 and MAC addresses of one maker, malware TTL 128 and those of VirtualBox, with few
exceptions: one header byte tells the two apart, so telling them apart proves nothing. As a reference, the set teaches
features.
"""
# An image is the beginning of a capture file.
IMAGE_BYTES = 784
# The images are of 128,433 sessions to train with and 14,267 to test with.
MOST_SESSIONS = 2**18
MAGIC = b"\xd4\xc3\xb2\xa1"


def load_ustc_tfc2016(
    folder: str | os.PathLike[str],
    *,
    n_per_class: int | None = 5000,
    sampler: FlowSampler | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    random_state: int | np.random.RandomState | None = None,
    return_X_y: bool = False,
    verbose: int = 0,
) -> Any:
    """Load USTC-TFC2016 from its captures: 20 classes, the paper's reference.

    Nothing is downloaded: clone the repository [1]_ and give its folder.

    Guide: :doc:`/datasets`.

    Parameters
    ----------
    folder : path
        Folder with ``Benign`` and ``Malware``, as published. A class is one or more captures (``SMB-1.pcap``,
        ``SMB-2.pcap``) or 7z archives of them; archives are unpacked one at a time into a temporary folder, which
        needs ``py7zr`` (``pip install py7zr``). Archives of a class that has a capture beside them
        are skipped, as are links that lead out of ``Benign`` or ``Malware`` (see `load_class_folder`).
    n_per_class : int or None, default=5000
        Most flows of a class, drawn at random (paper: 5,000); None: all.
    sampler : FlowSampler, default=None
        Sampler to use; None: `sklearn_docids.paper.sampler` with ``fields="no_addresses"``; its flows are never split
        by time, like sessions.
    cache_folder : path or None, default=None
        Folder for sampled flows, as in `load_cic_ids_2017`: archives need not be unpacked again.
    random_state : int, RandomState instance or None, default=None
        Source of the drawing and of random addresses.
    return_X_y : bool, default=False
        Whether to return ``(X, y)`` instead of a Bunch.
    verbose : int, default=0
        1 prints a line per capture, 2 a line for every tenth of one.

    Returns
    -------
    Bunch or tuple
        ``X``, ``y``, ``groups``, ``captures``, ``target_names``, ``DESCR`` as `load_class_folder` has them, and
        ``malware``: ndarray of bool, whether a flow is of a malware class.

    Raises
    ------
    FileNotFoundError
        A folder or a class is missing; the message names what and where to get it.
    ImportError
        There is an archive, and py7zr is not installed.
    OSError
        A file cannot be read, or there is no room to unpack an archive.
    ValueError
        A file belongs to no class of the set; an archive is damaged, encrypted or empty, holds links, or unpacks to
        more than the set can hold: 4 GiB, 100 files, or 1,000 times its size.
    CaptureError
        A file is not a capture.

    References
    ----------
    .. [1] https://github.com/yungshenglu/USTC-TFC2016
    .. [2] Wang, W., et al., "Malware traffic classification using convolutional neural network for representation
       learning", ICOIN 2017.

    Examples
    --------
    >>> from sklearn_docids.datasets import load_ustc_tfc2016
    >>> reference = load_ustc_tfc2016("USTC-TFC2016", random_state=0)  # doctest: +SKIP
    >>> reference.X.shape[1], len(reference.target_names)  # doctest: +SKIP
    (320, 20)
    """
    check_n_per_class(n_per_class)
    rng = check_random_state(random_state)
    seed = int(rng.randint(2**31 - 1))
    sampler = paper.sampler(fields="no_addresses") if sampler is None else clone(sampler)
    sampler.set_params(verbose=verbose)
    found = published_files(Path(folder))
    parts: list[np.ndarray] = []
    for _, path in found:
        flows = captured_flows(path, sampler, cache_folder, unpacked)
        parts.append(as_sampled(flows, sampler, training=True, seed=seed + len(parts)))
    counts = [len(rows) for rows in parts]
    y, groups = np.repeat([label for label, _ in found], counts), np.repeat(np.arange(len(found)), counts)
    data = _completed(drawn_bunch(np.concatenate(parts), y, groups, n_per_class, rng), "sampled as training data")
    data.captures = [path for _, path in found]
    return (data.X, data.y) if return_X_y else data


def _completed(data: Bunch, what: str) -> Bunch:
    """Add what is true of the set however it was read; warn of classes without flows."""
    missing = sorted(set(BENIGN + MALWARE) - set(data.target_names.tolist()))
    if missing:
        warn_caller(f"USTC-TFC2016: no flows of {', '.join(missing)}")
    data.malware = np.isin(data.y, MALWARE)
    data.DESCR = DESCR.format(what=what) + "\n" + data.DESCR
    return data


def published_files(home: Path) -> list[tuple[str, Path]]:
    """Return class and path of each capture, and of each archive of a class that has no capture beside it.

    Raises
    ------
    FileNotFoundError
        A folder or a class is missing.
    ValueError
        A file belongs to no class.
    """
    found: list[tuple[str, Path]] = []
    for folder, classes in (("Benign", BENIGN), ("Malware", MALWARE)):
        if not (home / folder).is_dir():
            raise FileNotFoundError(f"{home / folder} is missing; clone {HOME} and give its folder")
        paths = files_of(home / folder, paths_below(home / folder))
        captured = {class_of(p) for p in paths if p.suffix != ".7z"}
        for path in paths:
            label = class_of(path)
            if label not in classes:
                raise ValueError(f"{path} belongs to no class of {folder}; they are {', '.join(classes)}")
            if path.suffix != ".7z" or label not in captured:
                found.append((label, path))
        missing = sorted(set(classes) - {label for label, _ in found})
        if missing:
            raise FileNotFoundError(f"{home / folder} lacks {', '.join(missing)}; the whole set is on {HOME}")
    return found


def class_of(path: Path) -> str:
    """Return the class that a file is named after: that of SMB-1 and SMB-2 is SMB."""
    return re.sub(r"-\d+$", "", plain_name(path))


@contextmanager
def unpacked(path: Path) -> Iterator[list[Path]]:
    """Yield the captures of a file: itself, or what an archive holds, in a folder that is removed again.

    Raises
    ------
    ImportError
        It is an archive, and py7zr is not installed.
    OSError
        The archive cannot be read, or there is no room for what it holds.
    ValueError
        The archive is unusable.
    """
    if path.suffix != ".7z":
        yield [path]
        return
    if importlib.util.find_spec("py7zr") is None:
        raise missing(f"{path} is an archive: unpack it (7z x); to read it as it is", "py7zr")
    with tempfile.TemporaryDirectory(prefix="docids-") as folder:
        yield extract(path, Path(folder))


def load_ustc_tk2016(
    folder: str | os.PathLike[str],
    *,
    subset: str = "test",
    n_per_class: int | None = 5000,
    sampler: FlowSampler | None = None,
    random_state: int | np.random.RandomState | None = None,
    return_X_y: bool = False,
) -> Any:
    """Load USTC-TFC2016 from its session images: the first 784 bytes of each session's capture file.

    Nothing is downloaded. The images are ``SessionAllLayers`` of 20 classes [1]_. What a session sent beyond 784 bytes,
    with 40 bytes of file and record headers and 16 for every further packet among them, is lost: of most benign
    classes, parts of the first 4 x 80 bytes are missing.

    Guide: :doc:`/datasets`.

    Parameters
    ----------
    folder : path
        Folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the like of ``t10k``, as they are or
        packed (``.gz``).
    subset : {"test", "train"}, default="test"
        ``"test"`` reads the ``t10k`` files (14,267 sessions), ``"train"`` the others (128,433).
    n_per_class : int or None, default=5000
        Most flows of a class, drawn at random (paper: 5,000); None: all.
    sampler : FlowSampler, default=None
        Sampler to use; None: `sklearn_docids.paper.sampler` with ``fields="no_addresses"``.
    random_state : int, RandomState instance or None, default=None
        Source of the drawing, and of random addresses where no sampler is given.
    return_X_y : bool, default=False
        Whether to return ``(X, y)`` instead of a Bunch.

    Returns
    -------
    Bunch or tuple
        As `load_ustc_tfc2016`; ``groups`` is 0 throughout.

    Raises
    ------
    FileNotFoundError
        A file is missing; the message names it and where to get it.
    OSError
        A file cannot be read.
    ValueError
        A file is damaged, is not an idx file, does not fit the other, is of more than 262,144 sessions, or its images
        are not of 784 bytes or not of sessions with all layers.

    References
    ----------
    .. [1] https://github.com/echowei/DeepTraffic

    Examples
    --------
    >>> from sklearn_docids.datasets import load_ustc_tk2016
    >>> reference = load_ustc_tk2016("SessionAllLayers", random_state=0)  # doctest: +SKIP
    """
    if subset not in ("test", "train"):
        raise ValueError(f"subset must be 'test' or 'train', got {subset!r}")
    check_n_per_class(n_per_class)
    rng = check_random_state(random_state)
    if sampler is None:
        sampler = paper.sampler(fields="no_addresses", random_state=int(rng.randint(2**31 - 1)))
    stem = "t10k" if subset == "test" else "train"
    images = read_idx(Path(folder) / f"{stem}-images-idx3-ubyte", 3)
    numbers = read_idx(Path(folder) / f"{stem}-labels-idx1-ubyte", 1)
    if math.prod(images.shape[1:]) != IMAGE_BYTES or len(images) != len(numbers) or not len(numbers):
        raise ValueError(
            f"{folder}: {len(images)} images of {' x '.join(map(str, images.shape[1:]))} bytes and {len(numbers)} "
            f"labels do not fit; the images of the set are of 28 x 28, see {IMAGES_HOME}"
        )
    if numbers.max() >= len(BENIGN + MALWARE):
        raise ValueError(f"{folder}: there is a label {numbers.max()}, so the images are not of 20 classes")
    captures = [BytesIO(capture_of(image.tobytes())) for image in images]
    X, y, _ = sampler.sample(captures, [(BENIGN + MALWARE)[number] for number in numbers])
    data = drawn_bunch(X, np.asarray(y), np.zeros(len(X), np.int64), n_per_class, rng)
    data = _completed(data, "as the first 784 bytes of each session's file")
    data.captures = [Path(folder)]
    return (data.X, data.y) if return_X_y else data


def read_idx(path: Path, n_dimensions: int) -> np.ndarray:
    """Return the array of bytes in an idx file, packed or not.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    ValueError
        It is damaged, no idx file, or is of more sessions than the data set can have.
    """
    packed = path.with_name(f"{path.name}.gz")
    if path.is_file():
        return _idx_array(path, path.open("rb"), n_dimensions)
    if not packed.is_file():
        raise FileNotFoundError(f"{path} is missing, packed or not; it is on {IMAGES_HOME}")
    try:
        return _idx_array(packed, gzip.open(packed), n_dimensions)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{packed}: damaged: {error}; get it again from {IMAGES_HOME}") from None


def _idx_array(path: Path, opened: BinaryIO | gzip.GzipFile, n_dimensions: int) -> np.ndarray:
    """Return the array in an open idx file, of which no more is read than it says and the set can have."""
    with opened as file:
        head = file.read(4 + 4 * n_dimensions)
        if len(head) < 4 + 4 * n_dimensions or head[:4] != bytes([0, 0, 8, n_dimensions]):
            raise ValueError(f"{path}: no idx file of bytes in {n_dimensions} dimensions; get it from {IMAGES_HOME}")
        shape = struct.unpack(f">{n_dimensions}I", head[4:])
        n_bytes, most = math.prod(shape), MOST_SESSIONS * (IMAGE_BYTES if n_dimensions > 1 else 1)
        if n_bytes > most:
            raise ValueError(f"{path}: {n_bytes} bytes, and those of {MOST_SESSIONS} sessions at most are {most}")
        data = file.read(n_bytes + 1)
    if len(data) != n_bytes:
        raise ValueError(f"{path}: not the {n_bytes} bytes that its head says; get it again from {IMAGES_HOME}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def capture_of(image: bytes) -> bytes:
    """Return an image as a capture that ends with its last packet, whose captured length is what is left of it."""
    if image[:4] != MAGIC:
        raise ValueError("an image does not begin like a capture: only SessionAllLayers can be read, not SessionL7")
    position, records = 24, [image[:24]]
    while position + 16 < len(image) and any(image[position : position + 16]):
        seconds, fraction, captured, original = struct.unpack("<4I", image[position : position + 16])
        kept = image[position + 16 : position + 16 + captured]
        records.append(struct.pack("<4I", seconds, fraction, len(kept), original) + kept)
        position += 16 + captured
    return b"".join(records)
