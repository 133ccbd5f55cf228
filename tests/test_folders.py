"""Folders of flows: whole or as before, whatever kills a writer and however many write; scratch folders of the dead."""

import _thread
import io
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from captures import pcap, udp

from sklearn_docids import FlowSampler
from sklearn_docids.capture import FlowTable, folders


@pytest.fixture
def pair(write):
    """Two captures of as many flows, with nothing in common, and the flows of each."""
    packets = [[udp(sport=1000 * k + i, payload=b"x" * k) for i in range(20)] for k in (1, 2)]
    paths = [write(pcap(each), f"{k}.pcap") for k, each in enumerate(packets)]
    return paths, [FlowSampler().flows(path) for path in paths]


def is_same(loaded, flows):
    return (
        (loaded.X == flows.X).all()
        and (loaded.rows.records == flows.rows.records).all()
        and (loaded.kept_bytes == flows.kept_bytes).all()
        and (loaded.captures, loaded.counters) == (flows.captures, flows.counters)
    )


class KilledError(BaseException):
    pass


def dying(function, n_calls):
    """Return a function that moves files as another one does, but kills its caller behind so many of them."""
    left = [n_calls]

    def call(source, goal):
        if not left[0] and os.path.exists(source):
            raise KilledError
        function(source, goal)
        left[0] -= 1

    return call


@pytest.mark.parametrize("n_moved", range(len(folders.NAMES)))
def test_a_run_counts_as_a_whole_before_its_files_have_moved(pair, tmp_path, monkeypatch, n_moved):
    (old, new), (_, expected) = pair
    out = tmp_path / "out"
    FlowSampler().write(old, out)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying(os.replace, n_moved))
        with pytest.raises(KilledError):
            FlowSampler().write(new, out)
    assert is_same(FlowTable.load(out), expected)
    FlowSampler().write(new, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(folders.NAMES)
    assert is_same(FlowTable.load(out), expected)
    assert (np.load(out / "X.npy") == expected.X).all()


def test_a_run_that_dies_before_counts_for_nothing(pair, tmp_path, monkeypatch):
    (old, new), (expected, _) = pair
    out = tmp_path / "out"
    FlowSampler().write(old, out)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", dying(os.rename, 0))
        with pytest.raises(KilledError):
            FlowSampler().write(new, out)
    assert is_same(FlowTable.load(out), expected)


def test_writers_and_readers_at_once_see_whole_runs(pair, tmp_path):
    paths, tables = pair
    out = tmp_path / "out"
    FlowSampler().write(paths[0], out)
    writers = [
        threading.Thread(target=lambda path=path: [FlowSampler().write(path, out) for _ in range(15)]) for path in paths
    ]
    for writer in writers:
        writer.start()
    n_loaded = 0
    while any(writer.is_alive() for writer in writers) or not n_loaded:
        loaded = FlowTable.load(out)
        assert any(is_same(loaded, flows) for flows in tables)
        n_loaded += 1
    assert sorted(path.name for path in out.iterdir()) == sorted(folders.NAMES)


@pytest.mark.parametrize("name", folders.NAMES)
def test_a_file_of_another_run_is_refused(pair, tmp_path, name):
    for path, out in zip(pair[0], ("old", "new"), strict=True):
        FlowSampler().write(path, tmp_path / out)
    shutil.copy(tmp_path / "old" / name, tmp_path / "new" / name)
    with pytest.raises(ValueError, match=r"new: no flow table: .*\.(npy|json) was not written together with"):
        FlowTable.load(tmp_path / "new")


def test_checksums_of_large_arrays_are_of_parts_at_both_ends_and_between(monkeypatch):
    monkeypatch.setattr(folders, "N_PARTS", 3)
    monkeypatch.setattr(folders, "PART_BYTES", 4)
    data = np.zeros(100, np.uint8)
    changed = []
    for place in range(100):
        other = data.copy()
        other[place] = 1
        changed.append(folders._checksum(other) != folders._checksum(data))
    assert np.flatnonzero(changed).tolist() == [0, 1, 2, 3, 48, 49, 50, 51, 96, 97, 98, 99]
    assert folders._checksum(data[:12]) != folders._checksum(data[:12].reshape(3, 4))


def test_other_files_in_the_folder_stay_and_no_folder_is_replaced(pair, tmp_path):
    (old, new), (expected, _) = pair
    (tmp_path / "notes.txt").write_text("mine")
    FlowSampler().write(old, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "checksums.json").rename(tmp_path / "kept")
    (tmp_path / "checksums.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"checksums.json is a folder"):
        FlowSampler().write(new, tmp_path)
    (tmp_path / "checksums.json").rmdir()
    (tmp_path / "kept").rename(tmp_path / "checksums.json")
    assert is_same(FlowTable.load(tmp_path), expected)


def test_strangers_in_the_place_of_a_run_are_named(pair, tmp_path):
    (tmp_path / "out" / folders.NEXT).mkdir(parents=True)
    (tmp_path / "out" / folders.NEXT / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"docids-next holds files that do not belong there; remove it"):
        FlowSampler().write(pair[0][0], tmp_path / "out")


@pytest.mark.parametrize("name", folders.NAMES)
def test_a_pipe_in_the_place_of_a_file_is_refused(pair, tmp_path, name):
    FlowSampler().write(pair[0][0], tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    os.mkfifo(tmp_path / "out" / name)
    with pytest.raises(ValueError, match=rf"{name} is not a regular file"):
        FlowTable.load(tmp_path / "out")


# Scratch folders.

HOLDING = """
import sys
from sklearn_docids._scratch import scratch_folder
with scratch_folder(sys.argv[1]) as path:
    open(path + "/part", "w").close()
    print(path, flush=True)
    sys.stdin.read()
"""


def test_scratch_folders_of_the_dead_are_removed_and_those_of_the_living_are_not(pair, tmp_path):
    ours = tmp_path / ".docids-settings"
    ours.mkdir()
    (ours / "notes").touch()
    holder = [sys.executable, "-c", HOLDING, tmp_path]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        path = process.stdout.readline().strip()
        FlowSampler().write(pair[0][0], tmp_path / "X.npy")
        assert os.listdir(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.listdir(path)
    pair[1][0].save(tmp_path / "flows.npz")  # whoever writes next
    assert not os.path.exists(path)
    assert (ours / "notes").exists()


class Endless(io.RawIOBase):
    """A capture without an end, whose reader may be interrupted as if by Ctrl-C."""

    def __init__(self, interrupts=False):
        self.interrupts = interrupts
        self.records = pcap([bytes(udp())] * 500)[24:]
        self.rest = pcap([])
        self.n_reads = 0

    def readinto(self, buffer):
        self.n_reads += 1
        if self.interrupts and self.n_reads == 20:
            _thread.interrupt_main()
        self.rest = self.rest or self.records
        n_bytes = min(len(buffer), len(self.rest))
        buffer[:n_bytes], self.rest = self.rest[:n_bytes], self.rest[n_bytes:]
        return n_bytes


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_ctrl_c_ends_all_threads_and_leaves_nothing(tmp_path, n_jobs):
    sources = [Endless(interrupts=True), Endless(), Endless()]
    with pytest.raises(KeyboardInterrupt):
        FlowSampler(n_jobs=n_jobs).write(sources, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    n_reads = [source.n_reads for source in sources]
    with pytest.raises(KeyboardInterrupt):
        FlowSampler(n_jobs=n_jobs).transform([Endless(interrupts=True), Endless()])
    assert [source.n_reads for source in sources] == n_reads
