"""Rows that lie in files: what is fitted and scored is the same as in memory, a few rows at a time."""

import os

import numpy as np
import pytest
from office import burst, capture_of, office
from test_fitting import Fault, killed_at

from sklearn_docids import AutoencoderDetector, DOCIDSDetector, FlowSampler, MultiViewDetector
from sklearn_docids._training import checkpoint
from sklearn_docids._views import content, network
from sklearn_docids._views.base import spaced
from sklearn_docids.capture import FlowTable, lazy
from sklearn_docids.capture.lazy import SelectedRows, is_lazy, lazily, on_demand, selected_flows
from sklearn_docids.capture.shards import ShardedArray
from sklearn_docids.detectors import _multiview, _trained

SIMPLE = ("statistics", "requests", "novelty", "content")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of flows: an office's, and a burst of guesses."""
    folder = tmp_path_factory.mktemp("flows")
    (folder / "a.pcap").write_bytes(capture_of([*office(300, 0), *burst(60, 1200.0)]))
    FlowSampler(layout="payload").write(folder / "a.pcap", folder / "out")
    return folder / "out"


@pytest.fixture
def by_50(monkeypatch):
    """Let 50 rows be many."""
    for module in (lazy, _multiview):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 50)


@pytest.fixture
def on_disk(folder, by_50):
    return FlowTable.load(folder)


@pytest.fixture
def in_memory(folder):
    flows = FlowTable.load(folder)
    return FlowTable(flows.rows.each(np.array), flows.capture, flows.captures, flows.counters, flows.ignored)


def never_whole(monkeypatch):
    """Refuse to read all rows of an array at once."""

    def refuse(array, dtype=None, copy=None):
        raise AssertionError("all rows are read at once")

    for kind in (SelectedRows, ShardedArray):
        monkeypatch.setattr(kind, "__array__", refuse)


# --------------------------------------------------------------------------------------------------------------------
# Rows


def test_mapped_rows_are_read_and_others_are_left(folder):
    mapped = np.load(folder / "X.npy", mmap_mode="r")
    assert is_lazy(lazily(mapped))
    assert is_lazy(lazily(mapped[10:]))
    rows = np.array(mapped)
    assert lazily(rows) is rows


@pytest.mark.parametrize("key", [7, -1, slice(3, 90, 4), np.array([5, 5, 80, 0]), np.arange(120) % 3 == 0])
def test_selected_rows_are_those_of_the_array(folder, key):
    rows = np.load(folder / "X.npy", mmap_mode="r")
    places = np.random.default_rng(0).permutation(len(rows))[:120]
    some, expected = SelectedRows(lazily(rows), places), rows[places]
    np.testing.assert_array_equal(some[key], expected[key])
    np.testing.assert_array_equal(np.asarray(some), expected)
    assert (some.shape, some.dtype, some.nbytes, len(some)) == (expected.shape, rows.dtype, expected.nbytes, 120)
    np.testing.assert_array_equal(some.at(np.array([3, 1]))[:], expected[[3, 1]])
    np.testing.assert_array_equal(some[key, ...], expected[key, ...])


def test_fields_of_selected_records(folder):
    records = np.load(folder / "flows.npy", mmap_mode="r")
    places = np.array([9, 2, 2])
    np.testing.assert_array_equal(SelectedRows(lazily(records), places)["dst_port"], records["dst_port"][places])


def test_a_selection_of_a_selection(on_disk):
    order = np.random.default_rng(0).permutation(len(on_disk))
    once = selected_flows(on_demand(on_disk), order)
    twice = selected_flows(once, order[:200])
    assert is_lazy(twice.rows.X)
    np.testing.assert_array_equal(twice.time_first, on_disk.time_first[order][order[:200]])
    np.testing.assert_array_equal(np.asarray(twice.X), np.asarray(on_disk.X)[order][order[:200]])


# --------------------------------------------------------------------------------------------------------------------
# Several views


@pytest.mark.parametrize("calibration", ["blocks", "later"])
@pytest.mark.parametrize("order", ["in time", "shuffled"])
def test_views_of_flows_on_disk_are_those_of_flows_in_memory(monkeypatch, on_disk, in_memory, calibration, order):
    places = np.arange(360) if order == "in time" else np.random.default_rng(0).permutation(360)
    disk, memory = selected_flows(on_demand(on_disk), places), in_memory[places]

    def fitted(flows):
        return MultiViewDetector(views=SIMPLE, calibration=calibration, false_alarm_rate=0.05, random_state=0).fit(
            flows
        )

    expected = fitted(memory)
    with monkeypatch.context() as patch:
        never_whole(patch)
        found = fitted(disk)
        scores = found.score_samples(disk)
        p_values = found.p_values(disk)
    assert found.offset_ == expected.offset_
    np.testing.assert_array_equal(scores, expected.score_samples(memory))
    np.testing.assert_array_equal(p_values, expected.p_values(memory))
    found.calibrate(disk, false_alarm_rate=0.1)
    assert found.offset_ == expected.calibrate(memory, false_alarm_rate=0.1).offset_


def test_pieces_and_the_whole_agree(monkeypatch, in_memory):
    detector = MultiViewDetector(views=SIMPLE, false_alarm_rate=0.05, random_state=0).fit(in_memory)
    whole = detector.score_samples(in_memory)
    for module in (lazy, _multiview):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 37)
    np.testing.assert_array_equal(detector.score_samples(in_memory), whole)
    again = MultiViewDetector(views=SIMPLE, false_alarm_rate=0.05, random_state=0).fit(in_memory)
    np.testing.assert_array_equal(again.score_samples(in_memory), whole)


def test_of_many_flows_some_are_counted_and_some_train_the_network(monkeypatch, in_memory):
    monkeypatch.setattr(content, "MAX_COUNTED", 100)
    monkeypatch.setattr(network, "MAX_TRAINING", 120)
    seen = []
    view = network.NetworkView("bytes", _Recorder(seen), (in_memory.X[:10], np.zeros(10)))
    view.prepare(in_memory, np.random.RandomState(0))
    np.testing.assert_array_equal(seen[0], in_memory.X[spaced(360, 120)])
    detector = MultiViewDetector(views=("content",), false_alarm_rate=0.05, random_state=0).fit(in_memory)
    assert np.isfinite(detector.score_samples(in_memory)).all()


class _Recorder:
    """Keeps the rows it is fitted on."""

    def __init__(self, seen):
        self.seen = seen

    def get_params(self, deep=True):
        return {"seen": self.seen}

    def set_params(self, **parameters):
        return self

    def __sklearn_clone__(self):
        return self

    def fit(self, X, reference=None):
        self.seen.append(np.asarray(X))
        return self


# --------------------------------------------------------------------------------------------------------------------
# Rows alone


def rows_on_disk(folder, dtype=np.uint8, n=300):
    rng = np.random.default_rng(0)
    X = (rng.integers(60, 180, 12) + rng.integers(-20, 21, (n, 12))).astype(dtype)
    np.save(folder / "X.npy", X)
    return X, np.load(folder / "X.npy", mmap_mode="r")


def detectors():
    yield DOCIDSDetector(max_epochs=2, batch_size=16, random_state=0)
    yield DOCIDSDetector(max_epochs=2, batch_size=16, random_state=0, false_alarm_rate=0.1, early_stopping=True)
    yield AutoencoderDetector(max_epochs=2, batch_size=16, random_state=0)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_rows_on_disk_are_fitted_and_scored_as_in_memory(tmp_path, by_50, monkeypatch, number, dtype):
    X, mapped = rows_on_disk(tmp_path, dtype)
    reference = {"reference": (X[:30][:, ::-1].copy(), np.arange(30) % 3)} if number < 2 else {}
    found, expected = list(detectors())[number], list(detectors())[number]
    expected.fit(X, **reference)
    with monkeypatch.context() as patch:
        never_whole(patch)
        found.fit(mapped, **reference)
        scores = found.score_samples(mapped)
        found.calibrate(mapped, false_alarm_rate=0.2)
    np.testing.assert_array_equal(scores, expected.score_samples(X))
    assert found.calibrations_[0].offset == expected.offset_
    assert found.offset_ == expected.calibrate(X, false_alarm_rate=0.2).offset_
    np.testing.assert_array_equal(found.predict(mapped), expected.predict(X))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_found_on_disk(tmp_path, by_50, value):
    X, _ = rows_on_disk(tmp_path, np.float64)
    X[-1, 3] = value
    np.save(tmp_path / "X.npy", X)
    with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
        AutoencoderDetector(max_epochs=1).fit(np.load(tmp_path / "X.npy", mmap_mode="r"))


def test_too_few_rows_or_columns_on_disk_are_refused(tmp_path):
    _, mapped = rows_on_disk(tmp_path)
    detector = AutoencoderDetector(max_epochs=1, random_state=0).fit(mapped)
    with pytest.raises(ValueError, match="features"):
        detector.score_samples(np.ascontiguousarray(mapped[:, :5]))
    np.save(tmp_path / "narrow.npy", np.asarray(mapped[:, :5]))
    with pytest.raises(ValueError, match="features"):
        detector.score_samples(np.load(tmp_path / "narrow.npy", mmap_mode="r"))
    with pytest.raises(ValueError, match="sample"):
        AutoencoderDetector().fit(mapped[:1])


def test_automatic_epochs_train_on_some_of_many_rows(tmp_path, monkeypatch):
    _, mapped = rows_on_disk(tmp_path)
    monkeypatch.setattr(_trained, "AUTO_STEPS", 8)
    detector = AutoencoderDetector(max_epochs="auto", batch_size=16, random_state=0).fit(mapped)
    assert {epoch["pairs"] for epoch in detector.history_} == {8 * 16}


def test_training_on_disk_is_resumed_with_the_rows_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    X, mapped = rows_on_disk(tmp_path)
    (tmp_path / "c").mkdir()
    settings = {"max_epochs": 4, "batch_size": 16, "random_state": 0}
    stopped = AutoencoderDetector(**settings, checkpoint_folder=tmp_path / "c", callbacks=[Fault()])
    with killed_at(3):
        stopped.fit(mapped)
    assert len(os.listdir(tmp_path / "c")) == 1
    with killed_at(4):  # the same rows in memory go on with it
        stopped.fit(X)
    assert len(os.listdir(tmp_path / "c")) == 1
    resumed = stopped.fit(mapped)
    np.testing.assert_array_equal(
        resumed.score_samples(mapped), AutoencoderDetector(**settings).fit(X).score_samples(X)
    )
