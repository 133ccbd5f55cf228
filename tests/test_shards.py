# SPDX-License-Identifier: BSD-3-Clause
"""Flows in many files: arrays that are read where they are asked for."""

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sklearn_docids.capture import kernels, shards
from sklearn_docids.capture.shards import Part, ShardedArray, mapped_array


@pytest.fixture
def lay(tmp_path):
    """Write arrays as the parts of one; return it and its twin in memory."""

    def _lay(arrays):
        parts = []
        for number, array in enumerate(arrays):
            path = tmp_path / f"{number}.bin"
            path.write_bytes(b"head" + array.tobytes())
            parts.append(Part(str(path), 4, len(array), shards.stamp_of(path)))
        return ShardedArray(parts, arrays[0].dtype, arrays[0].shape[1:]), np.concatenate(arrays)

    return _lay


@pytest.fixture
def three(lay):
    numbers = np.arange(60, dtype=np.uint16).reshape(20, 3)
    return lay([numbers[:7], numbers[7:7], numbers[7:8], numbers[8:], numbers[:0]])


KEYS = [
    slice(None), slice(3, 12), slice(12, 3), slice(None, None, 3), slice(None, None, -1), slice(-4, None), slice(7, 8),
    np.array([0, 19, 7, 7, -1]), [5, 3], [], np.arange(20) % 3 == 0, np.zeros(20, bool), np.uint8(4), -1, 0,
    (np.array([3, 1]), ...), (slice(2, 9), 1), (4, slice(0, 2)), np.array([2, 8], np.uint64),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing_gives_what_numpy_gives(three, key):
    array, twin = three
    assert np.array_equal(array[key], twin[key])
    assert array[key].dtype == twin.dtype


@given(st.lists(st.integers(-20, 19), max_size=40), st.sampled_from([1, 8, 2**20]), st.sampled_from([0, 6, 2**13]))
def test_rows_are_the_same_in_pieces_of_any_size(tmp_path_factory, places, piece, gap):
    numbers = np.arange(60, dtype=np.uint16).reshape(20, 3)
    path = tmp_path_factory.getbasetemp() / "pieces.bin"
    if not path.exists():
        path.write_bytes(numbers.tobytes())
    parts = [Part(str(path), 0, 9, shards.stamp_of(path)), Part(str(path), 54, 11, shards.stamp_of(path))]
    array = ShardedArray(parts, np.uint16, (3,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "PIECE_BYTES", piece)
        patch.setattr(shards, "GAP_BYTES", gap)
        assert np.array_equal(array[np.array(places, int)], numbers[np.array(places, int)])


@pytest.mark.parametrize(
    "key",
    [20, -21, [20], [[1]], np.ones(19, bool), [0.5], "name"],
    ids=str,
)
def test_what_numpy_refuses_is_refused(three, key):
    with pytest.raises((IndexError, KeyError)):
        three[0][key]


def test_it_says_of_itself_what_an_array_does(three):
    array, twin = three
    for name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize"):
        assert getattr(array, name) == getattr(twin, name)
    assert len(array) == 20
    assert np.array_equal(list(array), twin)
    assert repr(array) == "<ShardedArray: uint16 (20, 3) in 5 files>"


def test_numpy_takes_all_of_it(three):
    array, twin = three
    assert np.array_equal(np.asarray(array), twin)
    assert np.asarray(array, np.float64).dtype == np.float64
    assert array.__array__().base is None
    with pytest.raises(ValueError, match="always a copy"):
        np.array(array, copy=False)


def test_a_field_is_that_of_all_parts(lay, monkeypatch):
    records = np.zeros(50, kernels.FLOW_DTYPE)
    records["src_port"] = np.arange(50)
    array, twin = lay([records[:20], records[20:]])
    monkeypatch.setattr(shards, "PIECE_BYTES", 7 * records.itemsize)
    assert np.array_equal(array["src_port"], twin["src_port"])


def test_an_array_without_parts_is_empty():
    array = ShardedArray([], np.uint8, (320,))
    assert array[:].shape == (0, 320)
    assert array[np.zeros(0, bool)].shape == (0, 320)


def test_more_files_than_a_process_may_open_are_one_array(tmp_path):
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_open = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 100
    parts = []
    for number in range(n_open + 40):
        path = tmp_path / str(number)
        path.write_bytes(bytes([number % 256]))
        parts.append(Part(str(path), 0, 1, shards.stamp_of(path)))
    array = ShardedArray(parts, np.uint8, ())
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 20, limit[1]))
    try:
        assert np.asarray(array).tolist() == [number % 256 for number in range(n_open + 40)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_a_copy_in_another_process_reads_the_same_files(three):
    copy = pickle.loads(pickle.dumps(three[0]))
    assert np.array_equal(copy, three[1])


def test_a_file_that_was_changed_is_named(three):
    array, _ = three
    path = array.parts[0].path
    os.truncate(path, 20)
    with pytest.raises(ValueError, match=r"0\.bin was changed since it was opened"):
        array[0]
    assert array[7].tolist() == [21, 22, 23]


def test_a_file_that_is_gone_is_named(three):
    os.remove(three[0].parts[0].path)
    with pytest.raises(FileNotFoundError, match=r"0\.bin"):
        three[0][:]


@pytest.mark.parametrize("of", [lambda X: X, lambda X: X[3:9], np.asarray, lambda X: X[2:][1:5]])
def test_a_mapped_array_is_read_instead(tmp_path, of):
    twin = np.arange(40, dtype=np.int32).reshape(10, 4)
    np.save(tmp_path / "X.npy", twin)
    array = mapped_array(of(np.load(tmp_path / "X.npy", mmap_mode="r")))
    assert np.array_equal(array, of(twin))


@pytest.mark.parametrize("mode", ["c", "r"])
def test_changes_that_are_in_no_file_are_not_lost(tmp_path, mode):
    np.save(tmp_path / "X.npy", np.zeros((10, 4), np.uint8))
    X = np.load(tmp_path / "X.npy", mmap_mode=mode)
    if mode == "c":
        X[0, 0] = 1
    else:  # another file has the name
        np.save(tmp_path / "new.npy", np.ones((10, 4), np.uint8))
        os.replace(tmp_path / "new.npy", tmp_path / "X.npy")
    assert mapped_array(X) is None


@pytest.mark.parametrize("of", [np.array, lambda X: X[:, :2], lambda X: X[::2], lambda X: X[:0], lambda X: X[0, 0]])
def test_any_other_array_is_none(tmp_path, of):
    np.save(tmp_path / "X.npy", np.zeros((10, 4), np.uint8))
    assert mapped_array(of(np.load(tmp_path / "X.npy", mmap_mode="r"))) is None
