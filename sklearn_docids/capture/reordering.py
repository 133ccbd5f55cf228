# SPDX-License-Identifier: BSD-3-Clause
"""Packets that a capture holds out of the order of time, put back in order as they are read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.records import RECORD_DTYPE
from sklearn_docids.exceptions import CaptureError, CaptureWarning

# Bytes between the held packets, in relation to their own, before they are gathered instead of copied as they lie.
MOST_WASTE = 2
PAGE_BYTES = 4096
# More is not held back, whatever the size of the packets.
MOST_HELD_BYTES = 2**27

Block = tuple[np.ndarray, np.ndarray]


def reordered(blocks: Iterator[Block], window: int, name: str) -> Iterator[Block]:
    """Yield all records of blocks in order of time, those of equal time in order of the file.

    A record that stands behind at most ``window`` later ones finds its place. One that comes still later is yielded
    as soon as possible. At least ``window`` records, and their bytes, are held back all the time; fewer where these are
    more than `MOST_HELD_BYTES`, which is warned of once with the ``name`` of the capture.

    Raises
    ------
    CaptureError
        The capture is damaged; the records before the damage have been yielded.
    """
    held = np.empty(0, np.uint8), np.empty(0, RECORD_DTYPE)
    parts: list[Block] = []
    n_held = n_bytes = 0
    damage = None
    warned = False
    try:
        for data, records in blocks:
            if not len(records):  # a live stream is silent
                yield data, records
                continue
            parts.append(_copied(data, records))
            n_held += len(records)
            n_bytes += len(parts[-1][0])
            # Sorted once for every ``window`` new records, so that each of them is sorted twice at most.
            if n_held >= 2 * window or n_bytes >= 2 * MOST_HELD_BYTES:
                done, held = _split(_joined([held, *parts]), window)
                parts, n_held, n_bytes = [], len(held[1]), len(held[0])
                if n_held < window and not warned:
                    warn_caller(_too_large(name, n_held, window), CaptureWarning)
                    warned = True
                yield done
    except CaptureError as error:
        damage = error
    done, _ = _split(_joined([held, *parts]), 0)
    yield done
    if damage:
        raise damage


def _copied(data: np.ndarray, records: np.ndarray) -> Block:
    """Return records with a copy of their bytes: the buffer is used again for the next block."""
    if not len(records):
        return np.empty(0, np.uint8), records.copy()
    starts, lengths = records["start"], records["captured_length"]
    first, last = int(starts.min()), int((starts + lengths).max())
    moved = records.copy()
    if last - first > MOST_WASTE * int(lengths.sum()) + PAGE_BYTES:
        # A record of the far future is held until the end: only its own bytes must be, not all that follow it.
        moved["start"] = np.cumsum(lengths) - lengths
        return np.concatenate([data[a : a + n] for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]), moved
    moved["start"] -= first
    return data[first:last].copy(), moved


def _joined(parts: list[Block]) -> Block:
    """Return the records of all parts over one array of bytes."""
    starts = np.cumsum([0, *(len(data) for data, _ in parts[:-1])])
    records = np.concatenate([records for _, records in parts])
    records["start"] += np.repeat(starts, [len(part) for _, part in parts])
    return np.concatenate([data for data, _ in parts]), records


def _too_large(name: str, n_held: int, window: int) -> str:
    return (
        f"{name}: {n_held} of {window} packets are held back to be put in order, as more take over "
        f"{MOST_HELD_BYTES // 2**20} MiB; those that come still later stay out of order"
    )


def _split(block: Block, n_kept: int) -> tuple[Block, Block]:
    """Return the block in order of time without its last records, as many as may be held, and these."""
    data, records = block
    records = records[np.argsort(records["time"], kind="stable")]
    lasts = np.cumsum(records["captured_length"][::-1])
    n_kept = min(n_kept, int(np.searchsorted(lasts, MOST_HELD_BYTES, side="right")))
    done, kept = records[: len(records) - n_kept], records[len(records) - n_kept :]
    return (data, done), _copied(data, kept)
