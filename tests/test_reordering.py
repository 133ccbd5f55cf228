"""Packets out of the order of time: put back within a window, and never lost, whatever the capture does."""

from io import BytesIO

import numpy as np
import pytest
from captures import pcap, tcp
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_docids import CaptureError, CaptureWarning, FlowSampler
from sklearn_docids.capture import reordering
from sklearn_docids.capture.containers import RECORDS_PER_CALL
from sklearn_docids.capture.records import RECORD_DTYPE
from sklearn_docids.capture.reordering import reordered


def raw(**parameters):
    return FlowSampler(fields="raw", **parameters)


def assert_same_flows(first, second):
    np.testing.assert_array_equal(first.X, second.X)
    for column in ("time_first", "time_last", "src_ip", "src_port", "packets_forward", "packets_backward"):
        np.testing.assert_array_equal(first[column], second[column])
    assert first.counters == second.counters


def packets_and_times(n_packets, n_ports, rng):
    """Return packets of some connections, each with a number of its own in it, and ascending times."""
    ports = rng.integers(1000, 1000 + n_ports, n_packets)
    return [tcp(sport=int(p), payload=b"%06d" % i) for i, p in enumerate(ports)], np.arange(n_packets, dtype=float)


def displaced(n_packets, most, rng):
    """Return an order in which no packet stands behind more than ``most`` later ones."""
    return np.argsort(np.arange(n_packets) + rng.uniform(0, most, n_packets), kind="stable")


@pytest.mark.parametrize(("n_packets", "window"), [(3000, 2), (3000, 7), (3000, 3000), (3000, 4000), (10_000, 40)])
def test_displaced_packets_find_their_place(n_packets, window):
    rng = np.random.default_rng(window)
    packets, times = packets_and_times(n_packets, 60, rng)
    order = displaced(n_packets, window, rng)
    assert (np.diff(order) < 0).any()
    mixed = pcap([packets[i] for i in order], times=times[order])
    in_order = pcap(packets, times=times)
    assert_same_flows(raw(reorder_window=window).flows(BytesIO(mixed)), raw().flows(BytesIO(in_order)))
    assert not np.array_equal(raw().flows(BytesIO(mixed)).X, raw().flows(BytesIO(in_order)).X)


@settings(max_examples=60, deadline=None)
@given(times=st.lists(st.integers(0, 12), min_size=1, max_size=40), window=st.integers(1, 50))
def test_equal_to_a_sorted_capture_where_the_window_is_wide_enough(times, window):
    packets = [tcp(sport=1000 + i % 5, payload=b"%d" % i) for i in range(len(times))]
    later_before = max(sum(t > times[i] for t in times[:i]) for i in range(len(times)))
    found = raw(reorder_window=window).flows(BytesIO(pcap(packets, times=times)))
    assert found.counters[0]["sampled"] == len(times)
    if later_before <= window:
        order = sorted(range(len(times)), key=lambda i: times[i])  # stable: equal times in order of the file
        expected = raw().flows(BytesIO(pcap([packets[i] for i in order], times=sorted(times))))
        assert_same_flows(found, expected)


def test_a_packet_later_than_the_window_is_kept_all_the_same():
    n = 2 * RECORDS_PER_CALL
    late = pcap([bytes(tcp())] * (n + 1), times=[*range(1, n + 1), 0])
    flows = raw(reorder_window=10, idle_timeout=None).flows(BytesIO(late))
    assert flows.packets_forward.tolist() == [n + 1]
    assert flows.time_first.tolist() == [10**9]  # it began with what stood first
    assert raw(reorder_window=n, idle_timeout=None).flows(BytesIO(late)).time_first.tolist() == [0]


def test_records_before_damage_are_kept():
    rng = np.random.default_rng(0)
    packets, times = packets_and_times(50, 5, rng)
    order = displaced(50, 20, rng)
    mixed = pcap([packets[i] for i in order], times=times[order])
    damaged = mixed[:-10]
    kept = sorted(order[:-1])
    expected = raw().flows(BytesIO(pcap([packets[i] for i in kept], times=times[kept])))
    with pytest.warns(CaptureWarning, match="the 49 records before it are kept"):
        assert_same_flows(raw(reorder_window=20).flows(BytesIO(damaged)), expected)
    with pytest.raises(CaptureError, match="record 50"):
        raw(reorder_window=20, on_error="raise").flows(BytesIO(damaged))


def test_duplicates_are_looked_for_in_order_of_time():
    first, second = tcp(payload=b"a"), tcp(payload=b"b")
    mixed = pcap([first, second, second, first], times=[0, 2, 3, 1])
    assert raw(duplicate_window=1).flows(BytesIO(mixed)).counters[0]["duplicate"] == 1
    assert raw(duplicate_window=1, reorder_window=5).flows(BytesIO(mixed)).counters[0]["duplicate"] == 2


def test_streams_are_put_in_order_too():
    rng = np.random.default_rng(1)
    packets, times = packets_and_times(500, 40, rng)
    order = displaced(500, 30, rng)
    mixed = BytesIO(pcap([packets[i] for i in order], times=times[order]))
    parts = list(raw(reorder_window=30).iter_flows(mixed))
    expected = list(raw().iter_flows(BytesIO(pcap(packets, times=times))))
    found, wanted = (np.concatenate([part.X for part in flows]) for flows in (parts, expected))
    assert sorted(map(bytes, found)) == sorted(map(bytes, wanted))


@pytest.mark.parametrize("window", [-1, 1_000_001, 1.5, "all"])
def test_windows_that_are_none_are_refused(window):
    with pytest.raises(ValueError, match="reorder_window"):
        raw(reorder_window=window).flows([])


def test_an_empty_capture_is_empty_in_any_order():
    assert len(raw(reorder_window=5).flows(BytesIO(pcap([])))) == 0


def test_one_record_of_the_future_does_not_hold_all_bytes_behind_it():
    blocks, n = 60, 100
    data = np.arange(n * 50, dtype=np.int64).astype(np.uint8)

    def capture():
        for block in range(blocks):
            records = np.zeros(n, RECORD_DTYPE)
            records["start"], records["captured_length"] = 50 * np.arange(n), 50
            records["time"] = block * n + np.arange(n)
            if block == 0:
                records["time"][0] = 10**15
            yield data, records

    largest = n_records = 0
    for held, records in reordered(capture(), 150, "x"):
        largest = max(largest, len(held))
        n_records += len(records)
        for record in records:
            place = 50 * (0 if record["time"] == 10**15 else int(record["time"]) % n)
            at = int(record["start"])
            np.testing.assert_array_equal(held[at : at + 50], data[place : place + 50])
    assert n_records == blocks * n
    assert largest < blocks * n * 50 / 10


def test_large_packets_are_held_back_up_to_a_number_of_bytes(monkeypatch):
    monkeypatch.setattr(reordering, "MOST_HELD_BYTES", 5000)
    data = np.zeros(1000, np.uint8)

    def capture():
        for time in range(100):
            record = np.zeros(1, RECORD_DTYPE)
            record["captured_length"], record["time"] = 1000, time ^ 1
            yield data, record

    with pytest.warns(CaptureWarning, match=r"big\.pcap: 5 of 1000 packets are held back") as caught:
        found = [(len(held), records["time"].tolist()) for held, records in reordered(capture(), 1000, "big.pcap")]
    assert (len(caught), max(size for size, _ in found)) == (1, 10_000)
    assert [time for _, times in found for time in times] == list(range(100))
