# SPDX-License-Identifier: BSD-3-Clause
"""What a detector knows of the rows it was fitted on, to tell when it is given rows of another kind.

Rows come as bare arrays, so all of it is read from them: their range of values, how the first packet of each begins,
and which header fields are zero throughout. Nothing is said of rows that are no packets, but for their range.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from sklearn_docids._warn import warn_caller
from sklearn_docids.capture.layouts import FIELDS
from sklearn_docids.detectors._frames import N_HEAD, PAYLOAD, UNKNOWN, Frame, frame_of, is_frame_name

# Rows that are looked at, evenly spaced: enough for shares of some percent, and no cost beside scoring.
N_ROWS = 500
# Fewer rows than this say nothing about the rest.
MIN_ROWS = 20
# A frame of a smaller share of the rows of fit is one that was not learned.
KNOWN_SHARE = 0.01
# Strange frames of a smaller share are a matter of the score.
STRANGE_SHARE = 0.1
# A reference is other traffic than the target: it is of another kind where most of it is.
STRANGE_SHARE_OF_REFERENCE = 0.5
# A field is zeroed where so few rows have a value in it, and kept where so many have.
ZEROED_SHARE, KEPT_SHARE = 0.01, 0.5
# Fields of which no packet on a wire has zeros alone: an attacker may well zero the others.
NEVER_ZERO = {"mac", "ip", "ports", "ttl"}

# Bytes of a packet are not all smaller.
LARGE_BYTE = 128
# Ranges of values. What is none of the first three may be anything: small counts, sums, bytes with a little noise.
BYTES, FRACTIONS, SCALED, OTHER = "bytes", "fractions", "scaled", "other"
RANGES = (BYTES, FRACTIONS, SCALED, OTHER)


class RowProfile(NamedTuple):
    """What rows look like."""

    n_rows: int
    values: str  # one of `RANGES`
    frames: dict[str, int]  # rows by how they begin; none where they were scaled
    fields: dict[str, list[int]]  # of each field: rows that have it, rows in which it is not zero

    @classmethod
    def of(cls, X: np.ndarray) -> RowProfile:
        """Return the profile of rows, (n_rows, n_columns), of any type of number."""
        rows = X[:: max(1, -(-len(X) // N_ROWS))]
        values = _range_of(rows)
        by_frame = {} if values == SCALED else _by_frame(_heads(rows, values == FRACTIONS))
        frames = Counter[str]()
        fields = {name: [0, 0] for name in FIELDS}
        for frame, heads in by_frame.items():
            frames[UNKNOWN if frame is None else frame.name] += len(heads)
            for name, n_kept in _kept_fields(frame, heads).items():
                fields[name][0] += len(heads)
                fields[name][1] += n_kept
        return cls(len(rows), values, dict(frames), fields)

    def plus(self, other: RowProfile) -> RowProfile:
        """Return the profile of these rows and others."""
        frames = Counter(self.frames) + Counter(other.frames)
        fields = {name: [a + b for a, b in zip(self.fields[name], other.fields[name], strict=True)] for name in FIELDS}
        values = self.values if other.values in (self.values, OTHER) else other.values
        return RowProfile(self.n_rows + other.n_rows, values, dict(frames), fields)

    def zeroed(self) -> set[str]:
        """Return the fields that are zero in nearly all rows."""
        return {name for name, (n, kept) in self.fields.items() if n >= MIN_ROWS and kept <= ZEROED_SHARE * n}

    def kept(self) -> set[str]:
        """Return the fields that have values in most rows."""
        return {name for name, (n, kept) in self.fields.items() if n >= MIN_ROWS and kept >= KEPT_SHARE * n}

    def layout(self) -> str | None:
        """Return the sampler's layout of most rows; None where nobody can tell."""
        n_payload, n_unknown = self.frames.get(PAYLOAD, 0), self.frames.get(UNKNOWN, 0)
        n_packets = sum(self.frames.values()) - n_payload - n_unknown
        n_rows, layout = max((n_payload, "payload"), (n_packets, "packets"))
        return layout if n_rows >= max(MIN_ROWS, self.n_rows / 2) else None

    def strange_frames(self, known: RowProfile) -> dict[str, int]:
        """Return the frames, with numbers of rows, that are not among those of the rows of another profile."""
        least = KNOWN_SHARE * known.n_rows if known.frames else 0
        return {name: n for name, n in self.frames.items() if known.frames.get(name, 0) < least}


def is_profile(value: Any) -> bool:
    """Return whether a value from a model file is that of a profile."""
    if not isinstance(value, dict) or set(value) != set(RowProfile._fields) or not _is_count(value["n_rows"], 2**62):
        return False
    n_rows, frames, fields = value["n_rows"], value["frames"], value["fields"]
    return (
        value["values"] in RANGES
        and isinstance(frames, dict)
        and all(is_frame_name(name) and _is_count(n, n_rows) for name, n in frames.items())
        and sum(frames.values()) <= n_rows
        and isinstance(fields, dict)
        and set(fields) == set(FIELDS)
        and all(_are_counts(counts, n_rows) for counts in fields.values())
    )


def _are_counts(value: Any, n_rows: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_count(value[0], n_rows) and _is_count(value[1], value[0])


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _range_of(rows: np.ndarray) -> str:
    if not rows.size or rows.dtype.kind == "b":
        return OTHER
    lowest, highest = rows.min(), rows.max()
    has_fractions = rows.dtype.kind == "f" and (rows != np.floor(rows)).any()
    if has_fractions and lowest >= -1 and highest <= 1:
        return FRACTIONS
    if lowest < -1 or (has_fractions and highest < LARGE_BYTE):
        return SCALED
    return BYTES if LARGE_BYTE <= highest <= 255 and not has_fractions else OTHER


def _heads(rows: np.ndarray, are_fractions: bool) -> np.ndarray:
    """Return the first bytes of rows that hold bytes, or bytes divided by 255."""
    head = rows[:, :N_HEAD]
    if are_fractions:
        head = np.rint(head * 255.0)
    return np.ascontiguousarray(head.clip(0, 255), dtype=np.uint8)


def _by_frame(heads: np.ndarray) -> dict[Frame | None, np.ndarray]:
    """Return rows by their frames."""
    places: dict[Frame | None, list[int]] = {}
    for place, head in enumerate(heads):
        places.setdefault(frame_of(head.tobytes()), []).append(place)
    return {frame: heads[found] for frame, found in places.items()}


def _kept_fields(frame: Frame | None, heads: np.ndarray) -> dict[str, int]:
    """Return for each field of a frame the number of rows in which it is not zero."""
    kept: dict[str, np.ndarray] = {}
    for name, first, stop in () if frame is None else frame.fields():
        kept.setdefault(name, np.zeros(len(heads), bool))
        kept[name] |= heads[:, first:stop].any(axis=1)
    return {name: int(has_value.sum()) for name, has_value in kept.items()}


def check_rows(fitted: RowProfile, X: np.ndarray) -> None:
    """Warn of rows to score, or refuse them, that are of another kind than the rows of fit."""
    rows = RowProfile.of(X)
    check_range_of_values(fitted, rows, "X", "the rows of fit")
    _warn_of_frames(fitted, rows, STRANGE_SHARE, "X", "the rows of fit")
    _warn_of_fields(rows.zeroed() & fitted.kept() & NEVER_ZERO, rows.kept() & fitted.zeroed(), "X", "the rows of fit")


def check_more_rows(fitted: RowProfile, rows: RowProfile) -> None:
    """Do so with rows of a fit that goes on, which may well bring new frames."""
    check_range_of_values(fitted, rows, "X", "the rows of earlier fits")
    _warn_of_layout(fitted, rows, "X", "the rows of earlier fits")
    _warn_of_fields(rows.zeroed() & fitted.kept(), rows.kept() & fitted.zeroed(), "X", "the rows of earlier fits")


def check_reference_rows(target: RowProfile, X: np.ndarray | None) -> None:
    """Do so with the reference of a fit, if it has one, which is compared with its target."""
    if X is None:
        return
    rows = RowProfile.of(X)
    check_range_of_values(target, rows, "reference X", "the target rows")
    _warn_of_frames(target, rows, STRANGE_SHARE_OF_REFERENCE, "reference X", "the target rows")
    _warn_of_fields(rows.zeroed() & target.kept(), rows.kept() & target.zeroed(), "reference X", "the target rows")


def check_range_of_values(known: RowProfile, rows: RowProfile, name: str, others: str) -> None:
    """Refuse fractions beside bytes, and the reverse; warn of bytes that were scaled in another way."""
    held = {BYTES: "bytes, 0 to 255", FRACTIONS: "fractions, at most 1"}
    if {known.values, rows.values} == set(held):
        raise ValueError(
            f"{name} holds {held[rows.values]}, but {others} hold {held[known.values]}: one of the two was divided by "
            "255; give both at the same scale"
        )
    if {known.values, rows.values} == {BYTES, SCALED}:
        scaled, unscaled = (name, others) if rows.values == SCALED else (others, name)
        warn_caller(
            f"there are fractions or negative numbers in {scaled}, but bytes, 0 to 255, in {unscaled}: what was "
            "learned of the ones does not hold for the others; give both at the same scale"
        )


def _warn_of_layout(known: RowProfile, rows: RowProfile, name: str, others: str) -> bool:
    """Warn of rows of another layout of the sampler; return whether they are."""
    if None in (rows.layout(), known.layout()) or rows.layout() == known.layout():
        return False
    warn_caller(
        f"the rows of {name} are of FlowSampler(layout={rows.layout()!r}), but {others} are of "
        f"layout={known.layout()!r}: their bytes stand for other things; sample both with one layout"
    )
    return True


def _warn_of_frames(known: RowProfile, rows: RowProfile, least_share: float, name: str, others: str) -> None:
    if _warn_of_layout(known, rows, name, others):
        return
    strange = rows.strange_frames(known)
    n_strange = sum(strange.values())
    if n_strange >= max(MIN_ROWS, least_share * rows.n_rows):
        warn_caller(
            f"{n_strange / rows.n_rows:.0%} of the rows of {name} begin with {_listed(strange)}; {others} begin with "
            f"{_listed(known.frames)}. Bytes behind another link header, tag or IP version stand at other places than "
            "those that were learned: use captures of one kind of link, or train on all kinds"
        )


def _listed(frames: dict[str, int]) -> str:
    names = sorted(frames, key=lambda name: -frames[name])
    return " or ".join(f"({name})" for name in names[:3]) + (" or others" if len(names) > 3 else "")


def _warn_of_fields(zeroed: set[str], kept: set[str], name: str, others: str) -> None:
    """Warn of fields that are zero in the named rows alone, and of those that have values in them alone."""
    for fields, where, elsewhere in ((zeroed, name, others), (kept, others, name)):
        if fields:
            warn_caller(
                f"the header fields {', '.join(sorted(fields))} are zero in {where}, but not in {elsewhere}: sample "
                f"both by one policy, FlowSampler(fields=...)"
            )
