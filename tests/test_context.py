"""Context: what is counted of the recent past agrees with a slow twin, however events come, in bounded memory."""

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_docids.capture.context import DampedCounts, WindowCounts

DURATIONS = (0.5, 10.0, 600.0)
NS = 10**9
ABSURD = [0, -(2**63), 2**63 - 1, 2**62]


@st.composite
def events(draw):
    """Few keys, clocks that jump both ways."""
    keys, times, amounts, time = [], [], [], draw(st.sampled_from([0, 10**18, 4_294_967_296 * NS]))
    for _ in range(draw(st.integers(0, 40))):
        time += draw(st.sampled_from([0, 1, NS // 2, NS, 9 * NS, 10 * NS, 700 * NS, -NS, -(10**17)]))
        keys.append(draw(st.sampled_from([0, 1, 2**32, 2**64 - 1, 5, 6, 7])))
        times.append(draw(st.sampled_from([time] * 9 + ABSURD)))
        amounts.append(draw(st.sampled_from([1.0, 0.0, 3.0])))
    return np.array(keys, np.uint64), np.array(times, np.int64), np.array(amounts, np.float64)


def twin_results(twin, measure, keys, times, amounts):
    rows = []
    for key, time, amount in zip(keys.tolist(), times.tolist(), amounts.tolist(), strict=True):
        time = max(time, -(2**63) + 1)
        twin.add(key, time, amount)
        rows.append([getattr(twin, measure)(key, time, seconds) for seconds in DURATIONS])
    return np.array(rows).reshape(-1, len(DURATIONS))


@settings(max_examples=60, deadline=None)
@given(events(), st.integers(1, 8))
def test_damped_counts_agree_with_the_sum_over_all_events(stream, max_keys):
    twin, counts = naive.RecentEvents(max_keys), DampedCounts(DURATIONS, max_keys)
    expected = twin_results(twin, "damped", *stream)
    assert counts.update(*stream) == pytest.approx(expected, rel=1e-12, abs=1e-300)
    assert counts.n_evicted == twin.n_evicted


@settings(max_examples=60, deadline=None)
@given(events(), st.integers(1, 8), st.integers(1, 12))
def test_window_counts_agree_with_the_sum_over_all_events(stream, max_keys, max_events):
    twin = naive.RecentEvents(max_keys, max_events, longest=max(DURATIONS))
    counts = WindowCounts(DURATIONS, max_keys, max_events)
    expected = twin_results(twin, "within", *stream)
    assert counts.update(*stream).tolist() == expected.tolist()
    assert (counts.n_evicted, counts.n_dropped) == (twin.n_evicted, twin.n_dropped)


COUNTERS = pytest.mark.parametrize("counter", [DampedCounts, WindowCounts])


@COUNTERS
@settings(max_examples=30, deadline=None)
@given(stream=events())
def test_events_may_come_one_by_one(counter, stream):
    at_once, one_by_one = counter(DURATIONS, 4), counter(DURATIONS, 4)
    parts = [one_by_one.update(*(array[i : i + 1] for array in stream)) for i in range(len(stream[0]))]
    assert np.concatenate([np.empty((0, 3)), *parts]).tobytes() == at_once.update(*stream).tobytes()


@COUNTERS
def test_a_look_adds_nothing(counter):
    counts = counter((1.0, 10.0))
    counts.update(np.uint64([7, 7]), np.int64([0, NS]))
    before = counts.peek(np.uint64([7, 7, 8]), np.int64([NS, 3 * NS, NS]))
    assert before.tolist() == counts.peek(np.uint64([7, 7, 8]), np.int64([NS, 3 * NS, NS])).tolist()
    assert before[2].tolist() == [0, 0]
    after = counts.update(np.uint64([7]), np.int64([3 * NS]))
    assert after.tolist() == (before[1:2] + 1).tolist()


def test_half_is_left_after_a_half_life():
    counts = DampedCounts((1.0, 2.0))
    counts.update(np.uint64([1]), np.int64([0]), np.array([8.0]))
    assert counts.peek(np.uint64([1]), np.int64([2 * NS])).tolist() == [[2.0, 4.0]]


def test_an_event_as_old_as_the_window_is_outside():
    counts = WindowCounts((2.0,))
    sums = counts.update(np.uint64([1, 1, 1]), np.int64([0, 2 * NS - 1, 2 * NS]))
    assert sums.tolist() == [[1.0], [2.0], [2.0]]


@COUNTERS
def test_a_flood_of_keys_takes_no_more_memory(counter):
    counts = counter((1.0, 60.0), max_keys=65_536)
    arrays = [array for array in (*counts.table.arrays, *getattr(counts, "windows", ())) if array.size]
    sizes = [array.nbytes for array in arrays]
    for part in range(10):
        keys = np.arange(100_000 * part, 100_000 * (part + 1), dtype=np.uint64)
        assert (counts.update(keys, np.full(100_000, NS)) == 1).all()
    assert [array.nbytes for array in arrays] == sizes
    assert len(counts.table) <= 65_536
    assert counts.n_evicted == 1_000_000 - len(counts.table)


@COUNTERS
def test_a_flood_of_keys_leaves_what_is_in_use(counter):
    counts = counter((600.0,), max_keys=1000)
    for first in range(0, 10_000, 400):
        counts.update(np.arange(first, first + 400, dtype=np.uint64) + np.uint64(1), np.zeros(400, np.int64))
        in_use = counts.update(np.uint64([0]), np.int64([0]))
    assert in_use.tolist() == [[25.0]]


@COUNTERS
def test_events_that_cannot_be_counted_are_refused(counter):
    counts = counter((1.0,))
    with pytest.raises(ValueError, match="differ in shape"):
        counts.update(np.uint64([1, 2]), np.int64([1]))
    with pytest.raises(ValueError, match="not finite"):
        counts.update(np.uint64([1]), np.int64([1]), np.array([np.nan]))
    with pytest.raises(ValueError, match="longer than 0 s"):
        counter((1.0, 0.0))
