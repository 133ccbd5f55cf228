# SPDX-License-Identifier: BSD-3-Clause
"""What views have learned, as arrays that a model file can hold: bytes and float64, of known shapes and ranges."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# No honest number is larger, and squares and sums of numbers up to here are finite.
LARGEST = 1e100
# Sizes of a dimension that only the size of the file bounds.
ANY_NUMBER = range(1, 2**31)


class ArrayRule(NamedTuple):
    """What an array may be."""

    dtype: str  # uint8 or float64
    shape: tuple[range, ...]  # of each dimension, the sizes it may have
    lowest: float = -LARGEST
    highest: float = LARGEST

    def allows(self, dtype: str, shape: list[int]) -> bool:
        """Return whether an array may be of this type and shape."""
        return (
            dtype == self.dtype
            and len(shape) == len(self.shape)
            and all(size in sizes for size, sizes in zip(shape, self.shape, strict=True))
        )

    def check(self, name: str, array: np.ndarray) -> None:
        """Refuse an array with a number out of range."""
        if array.size and not (self.lowest <= array.min() <= array.max() <= self.highest):
            raise ValueError(f"{name} holds numbers out of {self.lowest:g} to {self.highest:g}")


def exactly(size: int) -> range:
    """Return the one size that a dimension may have."""
    return range(size, size + 1)


def up_to(size: int) -> range:
    """Return the sizes from 1 on."""
    return range(1, size + 1)


def bytes_of(words: np.ndarray) -> np.ndarray:
    """Return words of 64 bits as bytes, (n, 8), the lowest first."""
    return words.astype("<u8").view(np.uint8).reshape(len(words), 8)


def words_of(array: np.ndarray) -> np.ndarray:
    """Return the words of `bytes_of`."""
    return np.ascontiguousarray(array).view("<u8").astype(np.uint64).reshape(len(array))


def check_whole_and_ascending(name: str, numbers: np.ndarray) -> None:
    """Refuse numbers that are not whole, sorted and different."""
    if (numbers != np.floor(numbers)).any() or not (numbers[1:] > numbers[:-1]).all():
        raise ValueError(f"{name} holds numbers that are not whole, ascending and different")
