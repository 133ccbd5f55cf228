"""Context: what is counted of the recent past agrees with a slow twin, however flows come, in bounded memory."""

import naive
import numpy as np
import pytest
from captures import pcap, udp
from hypothesis import given, settings
from hypothesis import strategies as st

from sklearn_docids import FlowSampler
from sklearn_docids.capture.context import CONTEXT_COLUMNS, CONTEXT_DTYPE, DampedCounts, FlowContext
from sklearn_docids.capture.kernels import FLOW_DTYPE
from sklearn_docids.capture.table import FlowTable

HALF_LIVES = (0.5, 10.0, 600.0)
NS = 10**9
BEGIN_OF_2026, END_OF_SECONDS = 1_767_225_600 * NS, 2**32 * NS
STEPS = [0, 1, NS // 2, NS, 9 * NS, 10 * NS, 700 * NS, -NS, -(10**17)]
ABSURD = [0, -(2**63) + 1, 2**63 - 1, 2**62]


@st.composite
def clocks(draw, n_events):
    """Times that jump both ways, and some that cannot be."""
    times, time = [], draw(st.sampled_from([0, BEGIN_OF_2026, END_OF_SECONDS]))
    for _ in range(n_events):
        time += draw(st.sampled_from(STEPS))
        times.append(draw(st.sampled_from([time] * 12 + ABSURD)))
    return np.array(times, np.int64)


@st.composite
def events(draw):
    keys = draw(st.lists(st.sampled_from([0, 1, 2**32, 2**64 - 1, 5, 6, 7]), max_size=40))
    amounts = [draw(st.sampled_from([1.0, 0.0, 3.0])) for _ in keys]
    return np.array(keys, np.uint64), draw(clocks(len(keys))), np.array(amounts, np.float64)


@settings(max_examples=60, deadline=None)
@given(events(), st.integers(1, 8))
def test_damped_counts_agree_with_the_sum_over_all_events(stream, max_keys):
    counts = DampedCounts(HALF_LIVES, max_keys)
    expected, n_evicted = naive.damped_counts(*stream, HALF_LIVES, max_keys)
    assert counts.update(*stream) == pytest.approx(expected, rel=1e-12, abs=1e-300)
    assert counts.n_evicted == n_evicted


@settings(max_examples=30, deadline=None)
@given(stream=events())
def test_events_may_come_one_by_one(stream):
    at_once, one_by_one = DampedCounts(HALF_LIVES, 4), DampedCounts(HALF_LIVES, 4)
    parts = [one_by_one.update(*(array[i : i + 1] for array in stream)) for i in range(len(stream[0]))]
    assert np.concatenate([np.empty((0, 3)), *parts]).tobytes() == at_once.update(*stream).tobytes()


def test_half_is_left_after_a_half_life():
    counts = DampedCounts((1.0, 2.0))
    counts.update(np.uint64([1]), np.int64([0]), np.array([8.0]))
    assert counts.update(np.uint64([1]), np.int64([2 * NS])).tolist() == [[3.0, 5.0]]


def test_an_event_that_comes_late_counts_at_its_own_time_unless_a_clock_was_set_back():
    counts = DampedCounts((60.0,))
    key = np.uint64([1])
    found = [float(counts.update(key, np.int64([second * NS]))[0, 0]) for second in (1000, 940, 1000, 399)]
    assert found == [1.0, 1.5, 2.5, 3.5]


def test_a_flood_of_keys_takes_no_more_memory():
    counts = DampedCounts((1.0, 60.0), max_keys=65_536)
    for part in range(10):
        keys = np.arange(100_000 * part, 100_000 * (part + 1), dtype=np.uint64)
        assert (counts.update(keys, np.full(100_000, NS)) == 1).all()
    assert [len(array) for array in counts.table.arrays] == [131_072, 65_536, 1, 1]
    assert len(counts.table) <= 65_536
    assert counts.n_evicted == 1_000_000 - len(counts.table)


def test_a_flood_of_keys_leaves_what_is_in_use():
    counts = DampedCounts((600.0,), max_keys=1000)
    for first in range(0, 10_000, 400):
        counts.update(np.arange(first, first + 400, dtype=np.uint64) + np.uint64(1), np.zeros(400, np.int64))
        in_use = counts.update(np.uint64([0]), np.int64([0]))
    assert in_use.tolist() == [[25.0]]


def test_events_that_cannot_be_counted_are_refused():
    counts = DampedCounts((1.0,))
    with pytest.raises(ValueError, match="differ in shape"):
        counts.update(np.uint64([1, 2]), np.int64([1]))
    with pytest.raises(ValueError, match="not finite"):
        counts.update(np.uint64([1]), np.int64([1]), np.array([np.nan]))
    with pytest.raises(ValueError, match="longer than 0 s"):
        DampedCounts((1.0, 0.0))


# The halves of addresses, by IP version.
ADDRESSES = {4: [(0, 1), (0, 2)], 6: [(0, 1), (2**63, 2**33), (7, 1)]}


@st.composite
def flows(draw):
    """Few hosts and ports, with all that the context looks at."""
    records = np.zeros(draw(st.integers(0, 40)), FLOW_DTYPE)
    records["time_first"] = draw(clocks(len(records)))
    for flow in records:
        flow["ip_version"] = version = draw(st.sampled_from([4, 6]))
        for side in ("src", "dst"):
            flow[f"{side}_high"], flow[f"{side}_low"] = draw(st.sampled_from(ADDRESSES[version]))
        flow["dst_port"], flow["protocol"] = draw(st.sampled_from([53, 443])), draw(st.sampled_from([6, 17]))
        flow["tcp_flags_forward"], flow["tcp_flags_backward"] = draw(st.sampled_from([(2, 18), (6, 18), (2, 20)]))
        flow["payload_backward"] = draw(st.sampled_from([0, 100]))
    return records


def assert_equal_to_naive(context, expected):
    for name in CONTEXT_COLUMNS:
        # A mean of absurd seconds leaves its rounding error behind.
        tolerance = 1e-4 if name.startswith("interval") else 1e-9
        assert context[name] == pytest.approx([said[name] for said in expected], rel=1e-5, abs=tolerance)


@settings(max_examples=60, deadline=None)
@given(flows(), st.integers(1, 12))
def test_the_context_agrees_with_the_slow_twin(records, max_keys):
    context = FlowContext(max_keys)
    expected, n_evicted = naive.flow_context(records, max_keys)
    assert_equal_to_naive(context.update(records), expected)
    assert context.n_evicted == n_evicted


@settings(max_examples=30, deadline=None)
@given(flows(), st.integers(1, 12), st.integers(1, 5))
def test_flows_in_order_of_time_may_come_in_any_parts(records, max_keys, size):
    records = records[np.argsort(records["time_first"], kind="stable")]
    at_once, in_parts = FlowContext(max_keys), FlowContext(max_keys)
    parts = [in_parts.update(records[i : i + size]) for i in range(0, len(records), size)]
    assert np.concatenate([np.empty(0, CONTEXT_DTYPE), *parts]).tobytes() == at_once.update(records).tobytes()
    assert in_parts.n_evicted == at_once.n_evicted


def test_rows_come_in_the_order_of_the_flows():
    records = np.zeros(3, FLOW_DTYPE)
    records["time_first"] = [1200 * NS, 0, 600 * NS]
    context = FlowContext().update(records)
    assert context["source_flows_600"].tolist() == [1.75, 1.0, 1.5]
    assert context["interval_mean"].tolist() == [600, 0, 600]


def test_a_port_scan_is_counted_in_full():
    """No sketch that saturates: 10,000 ports are 10,000, however few of them a window of a minute would see."""
    records = np.zeros(10_000, FLOW_DTYPE)
    records["dst_port"] = np.arange(10_000)
    context = FlowContext().update(records)
    assert context["source_ports_60"].tolist() == list(range(1, 10_001))
    assert (context["source_destinations_60"] == 1).all()
    assert (context["channel_flows_600"] == 1).all()
    assert context["source_failed_60"].tolist() == list(range(10_000))


def test_a_beacon_has_no_spread():
    records = np.zeros(500, FLOW_DTYPE)
    records["time_first"] = BEGIN_OF_2026 + np.arange(500) * 45 * NS
    context = FlowContext().update(records)
    assert (context["interval_mean"][1:] == 45).all()
    assert (context["interval_spread"] == 0).all()


def test_a_status_counts_for_later_flows_only():
    records = np.zeros(3, FLOW_DTYPE)
    records["tcp_flags_backward"] = [4, 0, 0]
    records["payload_backward"] = 1
    context = FlowContext().update(records)
    assert context["channel_resets_10"].tolist() == [0, 1, 1]
    assert context["source_failed_10"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("side", ["src_low", "dst_low"])
def test_a_flood_of_addresses_takes_no_more_memory(side):
    context = FlowContext(max_keys=8192)
    for part in range(8):
        records = np.zeros(8192, FLOW_DTYPE)
        records[side] = np.arange(8192 * part, 8192 * (part + 1))
        assert (context.update(records)["channel_flows_1"] == 1).all()
    assert [len(table.arrays.entries) for table in context.tables] == [8192] * 4
    n_flooded = sum(len(table) > 1 for table in context.tables)
    assert n_flooded == (4 if side == "src_low" else 2)
    assert context.n_evicted == n_flooded * 65_536 - sum(len(table) for table in context.tables if len(table) > 1)


def test_tables_grow_as_flows_come():
    records = np.zeros(6000, FLOW_DTYPE)
    records["src_low"] = np.arange(6000) % 2000
    context = FlowContext()
    said = [context.update(records[i : i + 100])["source_flows_600"] for i in range(0, 6000, 100)]
    assert np.concatenate(said).tolist() == [1] * 2000 + [2] * 2000 + [3] * 2000
    assert [len(table.arrays.entries) for table in context.tables] == [4096] * 4


def test_times_of_all_ages_give_finite_numbers():
    records = np.zeros(9, FLOW_DTYPE)
    records["time_first"] = [-(2**63), 2**63 - 1, 0, 2**62, -1, 1, END_OF_SECONDS, -(2**63), 2**63 - 1]
    context = FlowContext()
    for i in range(9):
        said = np.array(context.update(records[i : i + 1])[0].tolist())
        assert (np.isfinite(said) & (said >= 0)).all()


def test_read_only_and_strided_records_are_taken():
    records = np.zeros(6, FLOW_DTYPE)
    records["time_first"] = np.arange(6) * NS
    records.flags.writeable = False
    assert FlowContext().update(records[::2])["interval_mean"].tolist() == [0, 2, 2]


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match="expected records of flows, got an array of float64"):
        FlowContext().update(np.zeros(3))
    with pytest.raises(ValueError, match="max_keys must be 1 or more, got 0"):
        FlowContext(0)


def test_a_table_has_the_context_of_its_own_flows(write):
    packets = [udp(sport=port, dport=53) for port in range(1000, 1003)]
    flows = FlowSampler().flows(write(pcap(packets, times=[0.0, 60.0, 120.0])))
    assert flows.context["channel_flows_60"].tolist() == [1.0, 1.5, 1.75]
    assert flows[1:].context["channel_flows_60"].tolist() == [1.0, 1.5]
    with pytest.raises(ValueError, match="read-only"):
        flows.context["channel_flows_60"][0] = 0


def test_captures_of_one_table_have_one_past(write):
    first = write(pcap([udp()], times=[0.0]), "first.pcap")
    second = write(pcap([udp(sport=2000)], times=[600.0]), "second.pcap")
    assert FlowSampler().flows([second, first]).context["source_flows_600"].tolist() == [1.5, 1.0]


def test_a_mapped_table_has_a_context(write, tmp_path):
    FlowSampler().write(write(pcap([udp(), udp(sport=2000)])), tmp_path / "flows")
    assert FlowTable.load(tmp_path / "flows").context["interval_mean"].tolist() == [0, 1]


def test_a_column_of_a_table_computes_no_context(write):
    flows = FlowSampler().flows(write(pcap([udp()])))
    assert flows.src_port.tolist() == flows["src_port"].tolist()
    assert "context" not in vars(flows)
