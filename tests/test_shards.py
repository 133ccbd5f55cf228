# SPDX-License-Identifier: BSD-3-Clause
"""Flows in many files: arrays that are read where they are asked for."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import pytest
from captures import pcap, tcp, udp
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from sklearn_docids import CaptureError, CaptureWarning, FlowSampler
from sklearn_docids.capture import FlowTable, folders, kernels, shards
from sklearn_docids.capture.shards import Part, ShardedArray, mapped_array
from sklearn_docids.capture.table import COLUMNS, PACKET_COLUMNS
from sklearn_docids.cli import main


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


# Shards.

KINDS = ("npy", "parquet")


@pytest.fixture
def days(write):
    """Return captures, one of which holds no flow and one of which is cut."""
    paths = [
        write(pcap([p for k in range(1, 30) for p in (udp(sport=n * 100 + k), tcp(sport=k, payload=b"x" * k))]), name)
        for n, name in enumerate(["monday.pcap", "tuesday.pcap.raw", "day of rest.pcap"])
    ]
    return [*paths, write(pcap([]), "empty.pcap"), write(pcap([udp(), udp()])[:-5], "cut.pcap")]


def quietly(function, *arguments, **settings):
    """Call a function; captures may be damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CaptureWarning)
        return function(*arguments, **settings)


def alone(captures, **settings):
    """Return the flows of captures that do not continue each other, from memory."""
    return quietly(FlowSampler(rotated=False, **settings).flows, captures)


def shard_of(folder, stem):
    (path,) = folder.glob(f"{stem}-*")
    return path


def assert_same(flows, expected):
    same = np.asarray(flows.X).tobytes() == expected.X.tobytes()
    assert same
    same = np.asarray(flows.rows.records).tobytes() == expected.rows.records.tobytes()
    assert same
    for name in (*COLUMNS, "kept_bytes", "payload_lengths"):
        assert np.array_equal(flows[name], expected[name]), name
    assert (flows.captures, flows.counters, flows.ignored) == (expected.captures, expected.counters, expected.ignored)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings", [{}, {"layout": "payload", "midstream": "drop", "fields": "raw"}, {"n_packets": 2}]
)
def test_shards_are_one_table_that_is_the_one_of_memory(days, tmp_path, kind, settings):
    sampler = FlowSampler(**settings)
    counters = quietly(sampler.write, days, tmp_path / "out", shards=kind)
    expected, flows = alone(days, **settings), FlowTable.load(tmp_path / "out")
    assert counters == sampler.counters_ == expected.counters
    assert sampler.ignored_ == expected.ignored
    assert_same(flows, expected)
    assert np.array_equal(flows.context, expected.context)
    assert isinstance(flows.X, ShardedArray)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_sharded_flows_is_a_table_in_memory(days, tmp_path, kind):
    quietly(FlowSampler().write, days, tmp_path / "out", shards=kind)
    expected, flows = alone(days), FlowTable.load(tmp_path / "out")
    for key in (slice(40, 90), flows.dst_port == 53, np.array([70, 3, 3]), 5, (np.array([1, 80]), ...)):
        assert isinstance(flows[key].X, np.ndarray)
        assert_same(flows[key], expected[key])
    for name in (*COLUMNS, *PACKET_COLUMNS):
        assert len(flows[name]) == len(flows)
    first, second = train_test_split(flows.X, random_state=0)
    assert np.array_equal(first, train_test_split(expected.X, random_state=0)[0])
    assert len(first) + len(second) == len(flows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_sharded_flows_are_saved_as_any(days, tmp_path, kind, suffix):
    quietly(FlowSampler().write, days, tmp_path / "out", shards=kind)
    FlowTable.load(tmp_path / "out").save(tmp_path / f"all.{suffix}")
    assert_same(FlowTable.load(tmp_path / f"all.{suffix}"), alone(days))


def test_tables_that_lie_in_files_are_joined(days, tmp_path):
    quietly(FlowSampler().write, days, tmp_path / "out", shards="npy")
    flows = FlowTable.load(tmp_path / "out")
    assert_same(FlowTable.concatenate([flows, flows]), FlowTable.concatenate([alone(days)] * 2))


def test_a_shard_is_a_table_of_its_own(days, tmp_path):
    for kind in KINDS:
        FlowSampler().write(days[:2], tmp_path / kind, shards=kind)
        assert_same(FlowTable.load(shard_of(tmp_path / kind, "monday")), alone(days[:1]))


def test_names_are_safe_and_say_what_they_are_of(write, tmp_path):
    names = ["a b\n;rm.pcap.gz", "-o.pcap", "é.pcap", "x" * 200, "c.PCAPNG"]
    FlowSampler().write([write(pcap([udp()]), name) for name in names], tmp_path / "out", shards="npy")
    found = [path.name.rpartition("-")[0] for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert sorted(found) == ["a_b_rm", "c", "capture", "o", "x" * 80]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_is_not_made_again(days, tmp_path, kind):
    sampler, out = FlowSampler(), tmp_path / "out"
    with pytest.warns(CaptureWarning) as first:
        counters = sampler.write(days, out, shards=kind)
    inodes = {path: path.stat().st_ino for path in out.rglob("*.npy" if kind == "npy" else "*.parquet")}
    with pytest.warns(CaptureWarning) as second:
        assert FlowSampler().write(days, out, shards=kind) == counters
    assert [str(warning.message) for warning in second] == [str(warning.message) for warning in first]
    assert {warning.filename for warning in (*first, *second)} == {__file__}
    assert {path: path.stat().st_ino for path in inodes} == inodes != {}


@pytest.mark.parametrize("kind", KINDS)
def test_more_captures_come_behind_those_that_are_there(days, tmp_path, kind):
    out = tmp_path / "out"
    FlowSampler().write(days[:1], out, shards=kind)
    shard = shard_of(out, "monday")
    inode = shard.stat().st_ino
    FlowSampler().write(days[2:0:-1], out, shards=kind)
    FlowSampler().write(days[:3], out, shards=kind)
    assert_same(FlowTable.load(out), alone([days[0], days[2], days[1]]))
    assert shard.stat().st_ino == inode


def test_a_capture_of_equal_name_and_content_has_one_shard(days, tmp_path):
    os.mkdir(tmp_path / "copy")
    copy = shutil.copy(days[0], tmp_path / "copy")
    counters = FlowSampler().write([days[0], copy], tmp_path / "out", shards="npy")
    assert counters[0] == counters[1]
    assert len(FlowTable.load(tmp_path / "out")) == len(alone(days[:1]))


def test_equal_parameters_are_the_same_however_they_are_written(days, tmp_path):
    out = tmp_path / "out"
    FlowSampler(idle_timeout=120, protocols=("tcp", "udp"), rotated=False).write(days[:1], out, shards="npy")
    same = FlowSampler(idle_timeout=np.float64(120), protocols=["udp", "tcp"], fields={"ip": "zero", "mac": "zero"})
    same.set_params(n_jobs=2, random_state=1, n_packets=np.int64(4), tcp_restart=np.bool_(True))
    same.write(days[:1], out, shards="npy")
    assert len(FlowTable.load(out).captures) == 1


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"idle_timeout": 60, "n_packets": 2}, "npy", "idle_timeout=120 there, 60 here, n_packets=4 there, 2 here"),
        ({"fields": "raw"}, "npy", r"fields=\{'mac': 'zero', 'ip': 'zero'\} there, \{\} here"),
        ({}, "parquet", "has shards='npy', shards='parquet' need another folder"),
        ({}, None, "out has shards: use another folder"),
    ],
)
def test_a_folder_of_other_settings_is_refused_before_anything_is_read(days, tmp_path, settings, kind, message):
    FlowSampler().write(days[:1], tmp_path / "out", shards="npy")
    before = sorted(os.listdir(tmp_path / "out"))
    with pytest.raises(ValueError, match=message):
        FlowSampler(**settings).write(days[:2], tmp_path / "out", shards=kind)
    assert sorted(os.listdir(tmp_path / "out")) == before


def test_a_folder_without_shards_is_refused(days, tmp_path):
    FlowSampler().write(days[:1], tmp_path / "out")
    with pytest.raises(ValueError, match="flows that were written without shards: use another folder"):
        FlowSampler().write(days[:1], tmp_path / "out", shards="npy")
    with pytest.raises(ValueError, match="shards is 'npy', 'parquet' or None, got 'csv'"):
        FlowSampler().write(days[:1], tmp_path / "out", shards="csv")


def test_open_files_and_pipes_have_no_shards(days, tmp_path):
    with days[0].open("rb") as file, pytest.raises(TypeError, match=r"monday.pcap is no path: shards, and workers"):
        FlowSampler().write(file, tmp_path / "out", shards="npy")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no file: a shard is named by what is in it"):
        FlowSampler().write(tmp_path / "pipe", tmp_path / "out", shards="npy")
    assert not (tmp_path / "out" / "shards.json").exists()


# Runs that did not end, and shards that are not what they seem.


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_shard_is_named_and_made_again(days, tmp_path, kind):
    out = tmp_path / "out"
    quietly(FlowSampler().write, days, out, shards=kind)
    for stem in ("monday", "cut"):
        os.rename(shard_of(out, stem), tmp_path / stem)
    with pytest.raises(ValueError, match=r"2 of 5 shards are missing, the first is monday-.* \(of .*monday.pcap\): "):
        FlowTable.load(out)
    quietly(FlowSampler().write, days, out, shards=kind)
    assert_same(FlowTable.load(out), alone(days))


def truncated(path):
    os.truncate(path, path.stat().st_size - 100)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def noted(change):
    """Return what changes the note of a shard of arrays, with a checksum that fits."""

    def _noted(path):
        entries = json.loads(path.read_text())
        change(entries[0])
        path.write_text(json.dumps(entries))
        folders.seal(path.parent)

    return _noted


DAMAGE_OF_ARRAYS = {
    "truncated X": ("X.npy", truncated, "X.npy is no file of an array"),
    "other bytes": ("X.npy", flipped, "X.npy was not written together"),
    "no records": ("flows.npy", os.remove, "flows.npy"),
    "no note": ("captures.json", os.remove, "captures.json"),
    "text": ("captures.json", lambda path: path.write_text("hello"), "Expecting value"),
    "of no shard": ("captures.json", noted(lambda entry: entry.pop("shard")), "'shard'"),
    "other settings": ("captures.json", noted(lambda e: e["shard"]["settings"].update(n_bytes=40)), "n_bytes=40 there"),
    "other version": ("captures.json", noted(lambda e: e["shard"].update(format=9)), "format 9, this version reads 1"),
    "other shard": ("captures.json", noted(lambda e: e["shard"].update(name="x-1")), "it is the shard x-1"),
    "other count": ("captures.json", noted(lambda entry: entry.update(flows=1)), "holds 58 flows and says 1"),
    "no number": ("captures.json", noted(lambda entry: entry.update(flows="58")), "its parts do not fit together"),
    "no warnings": ("captures.json", noted(lambda e: e["shard"].update(warnings=[1])), "something else than warnings"),
}


@pytest.mark.parametrize("damage", DAMAGE_OF_ARRAYS)
def test_a_damaged_shard_of_arrays_is_named(days, tmp_path, damage):
    name, change, message = DAMAGE_OF_ARRAYS[damage]
    FlowSampler().write(days[:3], tmp_path / "out", shards="npy")
    shard = shard_of(tmp_path / "out", "tuesday.pcap.raw")
    change(shard / name)
    with pytest.raises(ValueError, match=rf"(?s)no flow table: {shard.name} \(of .*\): .*{message}.*; remove it and"):
        FlowTable.load(tmp_path / "out")
    shutil.rmtree(shard)
    FlowSampler().write(days[:3], tmp_path / "out", shards="npy")
    assert_same(FlowTable.load(tmp_path / "out"), alone(days[:3]))


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "other"])
def test_a_damaged_parquet_shard_is_named(days, tmp_path, damage):
    FlowSampler().write(days[:3], tmp_path / "out", shards="parquet")
    shard = shard_of(tmp_path / "out", "tuesday.pcap.raw")
    changes = {
        "truncated": truncated, "text": lambda path: path.write_text("hello"),
        "empty": lambda path: path.write_bytes(b""),
        "other": lambda path: shutil.copy(shard_of(tmp_path / "out", "monday"), path),
    }  # fmt: skip
    changes[damage](shard)
    with pytest.raises(ValueError, match=rf"(?s){shard.name} \(of .*\): .*; remove it and run write again"):
        FlowTable.load(tmp_path / "out")


def test_no_damage_of_a_parquet_shard_changes_a_row(days, tmp_path):
    FlowSampler().write(days[:1], tmp_path / "out", shards="parquet")
    shard, expected, n_named = shard_of(tmp_path / "out", "monday"), alone(days[:1]), 0
    data = shard.read_bytes()
    # Pages of columns have checksums of their own; what is said of captures stands at the end.
    for place in [*range(0, len(data), 211), *range(max(0, len(data) - 5000), len(data), 23)]:
        shard.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        try:
            assert_same(FlowTable.load(tmp_path / "out"), expected)  # it was in what nobody reads, such as statistics
        except ValueError as error:
            assert f"{shard.name} (of {days[0]}): " in str(error)  # noqa: PT017 - there may be none
            n_named += 1
    assert n_named > 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_that_cannot_be_opened_is_made_again(days, tmp_path, kind):
    out = tmp_path / "out"
    FlowSampler().write(days[:2], out, shards=kind)
    shard = shard_of(out, "monday")
    truncated(shard if kind == "parquet" else shard / "X.npy")
    FlowSampler().write(days[:2], out, shards=kind)
    assert_same(FlowTable.load(out), alone(days[:2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.update(format=2), "it is of format 2, this version reads 1"),
        (lambda found: found.update(kind="csv"), "it is no list of shards"),
        (lambda found: found["shards"][0].update(name="../../etc"), "lists '../../etc', which is no name of a shard"),
        (lambda found: found.update(settings=[]), "it is no list of shards"),
        (lambda found: found["settings"].pop("layout"), "it is damaged: remove it and run write again"),
        (lambda found: found["shards"][0].update(capture="other.pcap"), "it is damaged"),
        (lambda found: found.pop("shards"), "shards"),
    ],
)
def test_a_list_that_is_none_is_refused(days, tmp_path, change, message):
    FlowSampler().write(days[:1], tmp_path / "out", shards="npy")
    path = tmp_path / "out" / "shards.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=message):
        FlowTable.load(tmp_path / "out")


def test_no_damage_of_a_list_changes_what_it_lists(days, tmp_path):
    FlowSampler().write(days[:1], tmp_path / "out", shards="npy")
    path, expected = tmp_path / "out" / "shards.json", alone(days[:1])
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            FlowTable.load(tmp_path / "out")
    path.write_bytes(data)
    assert_same(FlowTable.load(tmp_path / "out"), expected)


def test_a_shard_that_changes_behind_a_table_is_named(days, tmp_path):
    FlowSampler().write(days[:1], tmp_path / "out", shards="npy")
    flows = FlowTable.load(tmp_path / "out")
    flipped(shard_of(tmp_path / "out", "monday") / "X.npy")
    with pytest.raises(ValueError, match=r"X.npy was changed since it was opened: load it again"):
        flows.X[:]


def test_a_refused_capture_is_noted_and_tried_again(days, write, tmp_path):
    bad, out = write(b"nothing", "bad.pcap"), tmp_path / "out"
    for _ in range(2):
        with pytest.warns(CaptureWarning, match=r"bad.pcap: not a capture.*; it is left out"):
            counters = FlowSampler().write([days[0], bad, days[1]], out, shards="npy")
        assert counters[1] == {}
        assert_same(FlowTable.load(out), alone([days[0], bad, days[1]]))
    shutil.copy(days[2], bad)
    FlowSampler().write([days[0], bad, days[1]], out, shards="npy")
    assert len(FlowTable.load(out)) == len(alone(days[:3]))
    assert len(FlowTable.load(out).captures) == 3  # what the capture was before is forgotten


def test_a_folder_of_nothing_but_refused_captures_has_no_flows(write, tmp_path):
    with pytest.raises(CaptureError, match="not a capture"):
        FlowSampler().write(write(b"nothing"), tmp_path / "out", shards="npy")
    assert FlowTable.load(tmp_path / "out").X[:].shape == (0, 320)


def test_an_error_that_is_wanted_is_raised_and_what_was_read_stays(days, write, tmp_path):
    sampler, bad = FlowSampler(on_error="raise"), write(b"nothing", "bad.pcap")
    for _ in range(2):
        with pytest.raises(CaptureError, match=r"bad.pcap: not a capture"):
            sampler.write([days[0], bad], tmp_path / "out", shards="npy")
    assert len(FlowTable.load(tmp_path / "out")) == len(alone(days[:1]))


def test_a_capture_that_has_changed_gets_another_shard(days, tmp_path):
    out = tmp_path / "out"
    FlowSampler().write(days[:1], out, shards="npy")
    before, n_before = shard_of(out, "monday"), len(alone(days[:1]))
    shutil.copy(days[1], days[0])
    FlowSampler().write(days[:1], out, shards="npy")
    assert len(FlowTable.load(out)) == n_before + len(alone(days[:1]))
    shutil.rmtree(before)  # what is not wanted any more is removed
    FlowSampler().write(days[:1], out, shards="npy")
    assert_same(FlowTable.load(out), alone(days[:1]))


def written(folder, captures, start):
    start.wait()
    FlowSampler().write(captures, folder, shards="npy")


def test_two_writers_of_one_folder_do_not_mix(days, tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    halves = [days[:3], [days[0], days[2], days[1]]]
    writers = [context.Process(target=written, args=(tmp_path / "out", half, start)) for half in halves]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    flows = FlowTable.load(tmp_path / "out")
    assert sorted(flows.captures) == sorted(map(str, days[:3]))
    assert len(flows) == len(alone(days[:3]))
    assert [path for path in os.listdir(tmp_path / "out") if path.startswith(".docids-") and "lock" not in path] == []


ENDLESS_RUN = """
import sys
from sklearn_docids import FlowSampler
FlowSampler().write(sys.argv[2:], sys.argv[1], shards="npy")
"""


def test_a_killed_run_is_seen_and_gone_on_with(write, tmp_path):
    paths = [write(pcap([bytes(udp(sport=k))] * 3000), f"{k}.pcap") for k in range(1, 120)]
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", ENDLESS_RUN, out, *paths]) as process:
        while not list(out.glob("[0-9]*-*")) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    n_done = len(list(out.glob("[0-9]*-*")))
    assert 0 < n_done < len(paths)
    with pytest.raises(ValueError, match=rf"{len(paths) - n_done} of {len(paths)} shards are missing"):
        FlowTable.load(out)
    FlowSampler().write(paths, out, shards="npy")
    assert_same(FlowTable.load(out), alone(paths))
    assert len(list(out.iterdir())) == len(paths) + 2  # the list and its lock


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_named_and_nothing_half_is_there(write, tmp_path, kind):
    path = write(pcap([udp(sport=s, payload=os.urandom(30)) for s in range(1, 500)]))
    code = (
        "import resource, sys, pyarrow.parquet; from sklearn_docids import FlowSampler; import signal;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sampler = FlowSampler(); sampler.flows(sys.argv[1]);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "sampler.write(sys.argv[1], sys.argv[2], shards=sys.argv[3])"
    )
    out = tmp_path / "out"
    result = subprocess.run([sys.executable, "-c", code, path, out, kind], capture_output=True, text=True)
    assert f"OSError: [Errno 27] File too large: '{out}'" in result.stderr
    assert sorted(os.listdir(out)) == [".docids-shards.lock", "shards.json"]
    with pytest.raises(ValueError, match="1 of 1 shards are missing"):
        FlowTable.load(out)


# Other programs.


def test_duckdb_reads_parquet_shards_as_they_are(days, tmp_path):
    duckdb = pytest.importorskip("duckdb")
    FlowSampler().write(days[:3], tmp_path / "out", shards="parquet")
    query = f"select count(*), sum(src_port), sum(octet_length(X)) from '{tmp_path}/out/*.parquet' where protocol = 17"
    flows = alone(days[:3])
    flows = flows[flows.protocol == 17]
    assert duckdb.connect().execute(query).fetchone() == (len(flows), flows.src_port.sum(), flows.X.size)


def test_polars_reads_parquet_shards_as_they_are(days, tmp_path):
    polars = pytest.importorskip("polars")
    FlowSampler().write(days[:3], tmp_path / "out", shards="parquet")
    found = polars.read_parquet(tmp_path / "out" / "*.parquet")
    flows = alone(days[:3])
    assert sorted(found["community_id"]) == sorted(flows.community_id)
    assert sorted(found["X"].to_list()) == sorted(row.tobytes() for row in flows.X)


def test_temporary_files_go_with_the_table(days, tmp_path, monkeypatch):
    os.mkdir(tmp_path / "tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    FlowSampler().write(days[:2], tmp_path / "out", shards="parquet")
    flows = FlowTable.load(tmp_path / "out")
    X = flows.X
    del flows
    assert len(X[:]) == len(alone(days[:2]))
    assert len(os.listdir(tmp_path / "tmp")) == 1
    del X
    assert os.listdir(tmp_path / "tmp") == []


def test_a_table_that_cannot_be_loaded_leaves_no_temporary_files(days, tmp_path, monkeypatch):
    os.mkdir(tmp_path / "tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    FlowSampler().write(days[:2], tmp_path / "out", shards="parquet")
    truncated(shard_of(tmp_path / "out", "tuesday.pcap.raw"))
    with pytest.raises(ValueError, match="remove it and run write again"):
        FlowTable.load(tmp_path / "out")
    assert os.listdir(tmp_path / "tmp") == []


# URLs.


@pytest.fixture
def fsspec():
    return pytest.importorskip("fsspec")


@pytest.mark.parametrize("method", ["flows", "iter_flows", "write", "shards"])
def test_urls_are_read_where_fsspec_is_installed(days, tmp_path, fsspec, method):
    urls = [f"memory://captures/{path.name}" for path in days[:2]]
    for url, path in zip(urls, days, strict=False):
        with fsspec.open(url, "wb") as file:
            file.write(path.read_bytes())
    urls.append(f"file://{days[2]}")
    sampler, out = FlowSampler(rotated=False), tmp_path / "out"
    if method == "flows":
        flows = sampler.flows(urls)
    elif method == "iter_flows":
        flows = FlowTable.concatenate([*sampler.iter_flows(urls, early=False)])
        flows = flows[np.lexsort((flows.rows.records["row"], flows.capture))]
    else:
        sampler.write(urls, out, shards="npy" if method == "shards" else None)
        flows = FlowTable.load(out)
    assert np.array_equal(np.asarray(flows.X), alone(days[:3]).X)
    assert flows.captures[-3:] == urls


def test_a_url_that_cannot_be_opened_is_named(fsspec):
    with pytest.raises(ValueError, match=r"gopher://x/y.pcap cannot be opened: Protocol not known: gopher"):
        FlowSampler().flows("gopher://x/y.pcap")
    with pytest.raises(FileNotFoundError, match=r"nothing"):
        FlowSampler().flows("memory://nothing.pcap")


def test_a_url_needs_fsspec(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"a capture at s3://b/c.pcap needs the package fsspec: pip install fsspec"):
        FlowSampler().flows("s3://b/c.pcap")


# The command line.


def test_sample_writes_shards_and_goes_on_with_them(days, tmp_path, capsys):
    out = str(tmp_path / "out")
    for captures in (days[:2], days[:3]):
        assert main(["sample", *map(str, captures), "-o", out, "--shards"]) == 0
        assert capsys.readouterr().err == f"docids: {len(alone(captures))} flows written to {out}\n"
    assert main(["sample", str(days[0]), "-o", out, "--shards", "npy", "--n-bytes", "40"]) == 1
    assert "--n-bytes 80 there, 40 here" in capsys.readouterr().err
    assert main(["sample", f"file://{days[0]}", "-o", str(tmp_path / "p"), "--shards", "parquet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["flows"] == len(alone(days[:1]))


def test_what_shards_cannot_be_made_of_is_one_line(days, tmp_path, capsys):
    assert main(["sample", "-", "-o", str(tmp_path / "out"), "--shards"]) == 1
    assert "- is standard input, which neither --shards nor --scheduler can read" in capsys.readouterr().err
    (tmp_path / "X.npy").write_bytes(b"")
    assert main(["sample", str(days[0]), "-o", str(tmp_path / "X.npy"), "--shards"]) == 1
    assert "X.npy is a file: --shards needs a folder" in capsys.readouterr().err
