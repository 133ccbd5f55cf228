"""Channels and hosts: sums by hand, streams as all at once, bounded memory, thresholds that hold."""

import copy
import dataclasses
import functools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from captures import pcap, tcp, udp, udp6
from naive import naive_evicted, naive_groups, naive_incident_threshold, naive_incidents, naive_place
from sklearn.exceptions import NotFittedError

from sklearn_docids import FlowSampler
from sklearn_docids.aggregation import (
    FlowAggregator,
    TooFewGroupsError,
    find_incidents,
    incident_budget_threshold,
)
from sklearn_docids.datasets import load_testbed

WINDOW = 10.0
DAY = 86_400.0


def sampled(path, packets, times):
    path.write_bytes(pcap(packets, times=times))
    return FlowSampler().flows(path)


@pytest.fixture(scope="module")
def traffic(tmp_path_factory):
    """Return 400 flows of five sources, over 60 s, and scores."""
    rng = np.random.default_rng(0)
    packets = []
    for number in range(400):
        host, server, port = rng.integers(1, 6), rng.integers(1, 4), int(rng.choice([53, 80, 443]))
        make = udp if port == 53 else tcp
        packets.append(make(src=f"10.0.0.{host}", dst=f"10.0.1.{server}", sport=10_000 + number, dport=port))
    flows = sampled(tmp_path_factory.mktemp("traffic") / "c.pcap", packets, np.sort(rng.uniform(0, 60, 400)))
    return flows, np.round(rng.normal(size=len(flows)), 2)


def described(groups):
    return sorted(
        (g.window, g.src_ip, g.dst_ip or "", g.dst_port or 0, g.n_flows, g.n_channels, round(g.score, 9))
        for g in groups
    )


def rows_of(group, flows):
    """Return the rows whose flows are in a group."""
    is_in = (flows.time_first // round(WINDOW * 1e9) == group.window) & (flows.src_ip == group.src_ip)
    if group.dst_ip is not None:
        is_in &= (flows.dst_ip == group.dst_ip) & (flows.dst_port == group.dst_port)
        is_in &= flows.protocol == group.protocol
    else:
        assert group.dst_port is group.protocol is None
    return np.flatnonzero(is_in)


RULES = [("sum", 1), ("sum", 3), ("sum", 50), ("most_abnormal", 50)]


@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize(("combine", "n_highest"), RULES)
def test_scores_are_those_of_the_obvious_way(traffic, level, combine, n_highest):
    flows, scores = traffic
    aggregator = FlowAggregator(level, window=WINDOW, combine=combine, n_highest=n_highest, false_alarm_rate=None).fit(
        flows, scores
    )
    expected = naive_groups(flows, aggregator.abnormality(scores), level, WINDOW, n_highest, combine)
    groups = aggregator.aggregate(flows, scores)
    assert described(groups) == expected
    assert [g.score for g in groups] == sorted(g.score for g in groups)
    for group in groups:
        rows = rows_of(group, flows)
        assert len(rows) == group.n_flows
        assert (group.time_first, group.time_last) == (flows.time_first[rows].min(), flows.time_first[rows].max())
        assert group.most_abnormal == rows[scores[rows].argmin()]  # the first among equals


@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize("size", [1, 7, 400])
@pytest.mark.parametrize("combine", ["sum", "most_abnormal"])
def test_a_stream_gives_what_all_at_once_gives(traffic, level, size, combine):
    flows, scores = traffic
    aggregator = FlowAggregator(level, window=WINDOW, combine=combine, false_alarm_rate=None).fit(flows, scores)
    stream, groups = aggregator.stream(), []
    for first in range(0, len(flows), size):
        groups += stream.update(flows[first : first + size], scores[first : first + size])
    if size < len(flows):
        assert groups  # before the end
    rest = stream.flush()
    assert [g.score for g in rest] == sorted(g.score for g in rest)
    assert described(groups + rest) == described(aggregator.aggregate(flows, scores))
    assert stream.flush() == []


def test_streams_do_not_mix(traffic):
    flows, scores = traffic
    aggregator = FlowAggregator(window=WINDOW, false_alarm_rate=None).fit(flows, scores)
    first, second = aggregator.stream(), aggregator.stream()
    first.update(flows, scores)
    assert second.flush() == []


def test_a_stream_keeps_to_the_fit_it_began_with(traffic):
    flows, scores = traffic
    aggregator = FlowAggregator(window=1e6, false_alarm_rate=None).fit(flows, scores)
    expected = described(aggregator.aggregate(flows, scores))
    stream = aggregator.stream()
    aggregator.set_params(level="host", n_highest=1, max_groups=1).fit(flows, np.zeros(len(flows)))
    stream.update(flows, scores)
    assert described(stream.flush()) == expected


@pytest.mark.filterwarnings("ignore:there are more than")
@pytest.mark.parametrize("level", ["channel", "host"])
def test_memory_is_bounded_and_no_flow_is_lost(traffic, level):
    flows, scores = traffic
    aggregator = FlowAggregator(level, window=1e6, false_alarm_rate=None, max_groups=10).fit(flows, scores)
    stream, groups = aggregator.stream(), []
    for row in range(len(flows)):
        groups += stream.update(flows[row : row + 1], scores[row : row + 1])
        assert sum(group.n_channels for group in copy.deepcopy(stream).flush()) <= 10
    assert stream.n_evicted == len(groups) > 0
    groups += stream.flush()
    assert sum(group.n_flows for group in groups) == len(flows)


@pytest.mark.filterwarnings("ignore:there are more than")
@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize("max_groups", [1, 2, 10, 20, 37])
@pytest.mark.parametrize("combine", ["sum", "most_abnormal"])
def test_those_that_go_are_the_least_abnormal(traffic, level, max_groups, combine):
    flows, scores = traffic
    aggregator = FlowAggregator(
        level, window=1e6, combine=combine, n_highest=3, false_alarm_rate=None, max_groups=max_groups
    ).fit(flows, scores)
    stream = aggregator.stream()
    evicted = stream.update(flows, scores)
    expected = naive_evicted(flows, aggregator.abnormality(scores), level, 3, max_groups, combine)
    assert [(g.src_ip, g.n_flows, round(g.score, 9)) for g in evicted] == expected
    assert stream.n_evicted == len(expected)


@pytest.fixture(scope="module")
def scan_and_beacon(tmp_path_factory):
    """Return a scan of 1,000 ports during which another host calls home 20 times; all flows are as unusual."""
    packets = []
    for number in range(1000):
        packets.append(tcp(src="10.0.0.66", dst="10.0.1.1", sport=5000 + number, dport=1 + number))
        if number % 50 == 0:
            packets.append(tcp(src="10.0.0.7", dst="10.9.9.9", sport=2000 + number, dport=443))
    flows = sampled(tmp_path_factory.mktemp("scan") / "c.pcap", packets, np.linspace(0, 1000, len(packets)))
    return flows, np.full(len(flows), -1.0)


@pytest.mark.filterwarnings("ignore:there are more than")
@pytest.mark.parametrize("level", ["channel", "host"])
def test_a_scan_does_not_wipe_out_the_sum_of_a_beacon(scan_and_beacon, level):
    flows, scores = scan_and_beacon
    aggregator = FlowAggregator(level, false_alarm_rate=None, max_groups=100).fit(flows, np.arange(len(flows)))
    stream = aggregator.stream()
    groups = [
        group for row in range(len(flows)) for group in stream.update(flows[row : row + 1], scores[row : row + 1])
    ]
    assert stream.n_evicted == len(groups) > 0
    groups = sorted(groups + stream.flush(), key=lambda group: group.score)
    (beacon,) = [group for group in groups if group.src_ip == "10.0.0.7"]  # never cut
    (expected,) = [group for group in aggregator.aggregate(flows, scores) if group.src_ip == "10.0.0.7"]
    assert beacon == dataclasses.replace(expected, most_abnormal=0)
    if level == "channel":
        assert groups[0] == beacon


@pytest.mark.filterwarnings("ignore:there are more than")
def test_of_equally_abnormal_groups_the_least_recently_active_go(tmp_path):
    ports = [*range(1, 11), 1, 11]  # the first channel has a flow once more before there is one channel too many
    flows = sampled(
        tmp_path / "c.pcap", [tcp(sport=50 + n, dport=port) for n, port in enumerate(ports)], np.arange(12.0)
    )
    stream = FlowAggregator(n_highest=1, false_alarm_rate=None, max_groups=10).fit(flows, np.zeros(12)).stream()
    assert [group.dst_port for group in stream.update(flows, np.full(12, -1.0))] == [2, 3]


@pytest.mark.filterwarnings("ignore:there are more than")
def test_eviction_frees_a_tenth_of_the_room_at_a_time(scan_and_beacon):
    # One at a time, each new channel would cost a search through all others; all at once, nothing would be kept.
    flows, scores = scan_and_beacon
    stream = FlowAggregator(false_alarm_rate=None, max_groups=100).fit(flows, scores).stream()
    sizes = [len(stream.update(flows[row : row + 1], scores[row : row + 1])) for row in range(len(flows))]
    assert set(sizes) == {0, 11}  # a tenth, and the one too many
    assert stream.n_evicted == sum(sizes)


@pytest.fixture(scope="module")
def flood_and_beacon(tmp_path_factory):
    """Return a function that gives 1,000 flows to new hosts, by some sources, and 20 flows of a beacon."""

    @functools.cache
    def make(n_sources):
        packets = []
        for number in range(1000):
            source, new = (f"10.{net}.{number // 250}.{1 + number % 250}" for net in (1, 2))
            if n_sources < 1000:
                source = f"10.1.0.{1 + number % n_sources}"
            packets.append(tcp(src=source, dst=new, sport=5000 + number, dport=80))
            if number % 50 == 0:
                packets.append(tcp(src="10.0.0.7", dst="10.9.9.9", sport=2000 + number, dport=443))
        path = tmp_path_factory.mktemp("flood") / "c.pcap"
        return sampled(path, packets, np.linspace(0, 1000, len(packets)))

    return make


def streamed(aggregator, flows, scores, size):
    """Return a stream that has had flows, some at a time, and the groups that it gave."""
    stream, groups = aggregator.stream(), []
    for first in range(0, len(flows), size):
        groups += stream.update(flows[first : first + size], scores[first : first + size])
    return stream, groups


@pytest.mark.filterwarnings("ignore:there are more than")
@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize("n_sources", [1, 2, 7, 1000])
def test_a_flood_pushes_out_no_flow_unseen_and_that_of_a_few_sources_no_other_source(
    flood_and_beacon, level, n_sources
):
    flows = flood_and_beacon(n_sources)
    scores = np.where(flows.src_ip == "10.0.0.7", 3.5, -1.0)
    # Of ten normal flows, those of the flood are below all, those of the beacon below six.
    aggregator = FlowAggregator(level, false_alarm_rate=None, max_groups=50).fit(flows[:10], np.arange(10.0))
    assert aggregator.abnormality([-1.0]) > 3 * aggregator.abnormality([3.5])
    stream, groups = streamed(aggregator, flows, scores, 20)
    assert stream.n_evicted == len(groups) > 0
    groups += stream.flush()
    assert sum(group.n_flows for group in groups) == len(flows)
    beacons = [group for group in groups if group.src_ip == "10.0.0.7"]
    if n_sources < 10:
        (expected,) = [group for group in aggregator.aggregate(flows, scores) if group.src_ip == "10.0.0.7"]
        assert [dataclasses.replace(group, most_abnormal=0) for group in beacons] == [
            dataclasses.replace(expected, most_abnormal=0)
        ]
    else:  # none of its flows ever outweighs one of the flood before it has to go
        assert len(beacons) > 1
        assert sum(group.n_flows for group in beacons) == 20


@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize("n_sources", [2, 1000])
def test_what_a_flood_pushes_out_is_what_the_obvious_way_says(flood_and_beacon, level, n_sources):
    flows = flood_and_beacon(n_sources)[:400]
    scores = np.random.default_rng(0).normal(size=400)
    aggregator = FlowAggregator(level, window=1e6, n_highest=3, false_alarm_rate=None, max_groups=50).fit(flows, scores)
    stream = aggregator.stream()
    with pytest.warns(UserWarning, match="there are more than 50 channels at a time") as warned:
        evicted = stream.update(flows[:200], scores[:200])
    evicted += stream.update(flows[200:], scores[200:])
    assert len(warned) == 1
    assert warned[0].filename == __file__
    expected = naive_evicted(flows, aggregator.abnormality(scores), level, 3, 50)
    assert [(g.src_ip, g.n_flows, round(g.score, 9)) for g in evicted] == expected
    assert stream.n_evicted == len(expected) > 10


@pytest.mark.filterwarnings("ignore:there are more than")
def test_windows_that_never_close_take_no_memory(tmp_path):
    # Every third flow bears a window of its own in the future, which the clock never reaches.
    times = 60.0 * np.where(np.arange(2000) % 3, 0, 10 + np.arange(2000))
    flows = sampled(tmp_path / "c.pcap", [tcp(sport=5000 + n) for n in range(2000)], times)
    scores = np.zeros(len(flows))
    aggregator = FlowAggregator(window=60, false_alarm_rate=None, max_groups=50).fit(flows[:9], scores[:9])
    early, late = (streamed(aggregator, flows[:n], scores[:n], 500)[0] for n in (500, 2000))
    assert abs(len(pickle.dumps(late)) - len(pickle.dumps(early))) < 500


def test_a_clock_that_goes_to_and_fro_closes_the_windows_that_are_over(tmp_path):
    windows = np.tile(np.repeat([0, 3], 9), 5)
    flows = sampled(tmp_path / "c.pcap", [tcp(sport=5000 + n) for n in range(90)], windows * 60 + np.arange(90) / 1e3)
    aggregator = FlowAggregator(window=60, false_alarm_rate=None).fit(flows, np.zeros(90))
    stream = aggregator.stream()
    done = [(group.window, group.n_flows) for row in range(90) for group in stream.update(flows[row : row + 1], [0.0])]
    assert done == [(0, 9)] * 5  # each time the fifth of the last nine flows is in window 3 again
    assert [(group.window, group.n_flows) for group in stream.flush()] == [(3, 45)]


def test_abnormality_is_the_share_of_normal_flows(traffic):
    flows, scores = traffic
    aggregator = FlowAggregator(false_alarm_rate=None).fit(flows, scores)
    for score in (-9.0, 0.0, 0.5, 9.0):
        share = (np.sum(scores <= score) + 1) / (len(scores) + 1)
        assert aggregator.abnormality([score])[0] == pytest.approx((-np.log(share)) ** 1.5)
    assert aggregator.abnormality([scores.max()])[0] == 0


def test_where_nothing_adds_up_abnormality_has_no_steps_and_no_highest_value(traffic):
    flows, scores = traffic
    aggregator = FlowAggregator(combine="most_abnormal", false_alarm_rate=None).fit(flows, scores)
    rng = np.random.default_rng(0)
    new = np.sort(np.concatenate([rng.uniform(-30, scores.max(), 300), scores.min() - np.geomspace(1e-9, 1e9, 50)]))
    expected = [-np.log(naive_place(scores.tolist(), score) / (len(scores) + 1)) for score in new.tolist()]
    assert aggregator.abnormality(new) == pytest.approx(np.array(expected) ** 1.5)
    assert (np.diff(aggregator.abnormality(new)) < 0).all()
    adding_up = FlowAggregator(false_alarm_rate=None).fit(flows, scores)
    assert aggregator.abnormality(scores).tolist() == adding_up.abnormality(scores).tolist()
    assert aggregator.abnormality([scores.max(), 9.0]).tolist() == [0, 0]


@pytest.mark.parametrize("normal", [[0.0, 0, 0], [-1.7e308, 0, 1.7e308], [0, 5e-324, 5e-324]], ids=str)
def test_of_any_two_numbers_the_lower_is_no_less_abnormal(traffic, normal):
    aggregator = FlowAggregator(combine="most_abnormal", false_alarm_rate=None).fit(traffic[0][:3], normal)
    found = aggregator.abnormality([-1.79e308, -1.75e308, -1e300, -1, -1e-300, 0, 1e-300, 1, 1e300, 1.79e308])
    assert np.isfinite(found).all()
    assert found[0] > found[-1] == 0
    assert (np.diff(found) <= 0).all()


@pytest.mark.parametrize("level", ["channel", "host"])
def test_groups_rank_as_the_scores_of_their_most_abnormal_flows(traffic, level):
    flows, scores = traffic
    settings = {"window": WINDOW, "combine": "most_abnormal", "false_alarm_rate": None}
    aggregator = FlowAggregator(level, **settings).fit(flows[:30], scores[:30])
    new = scores + np.random.default_rng(0).normal(-2, 1e-3, len(scores))  # many are below all of the thirty
    groups = aggregator.aggregate(flows, new)
    lowest = [new[rows_of(group, flows)].min() for group in groups]
    assert lowest == sorted(lowest)
    assert sum(score < scores[:30].min() for score in lowest) > 10
    assert len({group.score for group in groups}) == len(groups)
    assert [new[group.most_abnormal] for group in groups] == lowest


@pytest.mark.parametrize("level", ["channel", "host"])
def test_where_nothing_adds_up_the_threshold_is_a_lowest_flow_score_of_a_group(traffic, level):
    flows, scores = traffic
    settings = {"window": WINDOW, "combine": "most_abnormal", "false_alarm_rate": 0.1}
    aggregator = FlowAggregator(level, **settings).fit(flows, scores)
    groups = aggregator.aggregate(flows, scores)
    lowest = np.array([scores[rows_of(group, flows)].min() for group in groups])
    threshold = np.sort(lowest)[int(0.1 * (len(lowest) + 1)) - 1]
    assert aggregator.offset_ == -aggregator.abnormality([threshold])[0]
    new = scores + np.random.default_rng(0).normal(size=len(scores))
    for group in aggregator.aggregate(flows, new):
        assert (group.score < aggregator.offset_) == (new[rows_of(group, flows)].min() < threshold)


def test_of_many_normal_scores_evenly_spaced_ones_are_kept(traffic):
    flows, _ = traffic
    many = np.arange(150_000.0)
    fitted = FlowAggregator(false_alarm_rate=None).fit(flows[np.resize(np.arange(400), 150_000)], many[::-1])
    kept = fitted.normal_scores_
    assert (len(kept), kept[0], kept[-1]) == (100_000, many[0], many[-1])
    assert set(np.diff(kept)) == {1, 2}
    few = many[:100_000]
    fitted = FlowAggregator(false_alarm_rate=None).fit(flows[np.resize(np.arange(400), 100_000)], few[::-1])
    assert fitted.normal_scores_.tolist() == few.tolist()


def test_many_channels_make_a_host_abnormal_and_none_of_its_channels(write):
    def flows_of(n_ports, host):
        packets = [tcp(src=host, sport=5000 + n, dport=1000 + n % n_ports) for n in range(60)]
        return FlowSampler().flows(write(pcap(packets, times=np.linspace(0, 9, 60))))

    few, many = flows_of(3, "10.0.0.1"), flows_of(60, "10.0.0.2")
    scores = np.linspace(-1, 0, 60)
    hosts = FlowAggregator("host", window=60, false_alarm_rate=None).fit(few, scores)
    assert hosts.aggregate(many, scores)[0].score < 4 * hosts.aggregate(few, scores)[0].score
    assert hosts.aggregate(many, scores)[0].n_channels == 60
    channels = FlowAggregator("channel", window=60, false_alarm_rate=None).fit(few, scores)
    assert channels.aggregate(many, scores)[0].score > channels.aggregate(few, scores)[0].score


def test_a_port_of_tcp_and_the_same_of_udp_are_two_channels(tmp_path):
    flows = sampled(tmp_path / "c.pcap", [tcp(dport=53), udp(dport=53)], [0.0, 1.0])
    (host,) = FlowAggregator("host", false_alarm_rate=None).fit(flows, [0.0, 1.0]).aggregate(flows, [0.0, 1.0])
    assert host.n_channels == 2
    channels = FlowAggregator(false_alarm_rate=None).fit(flows, [0.0, 1.0]).aggregate(flows, [0.0, 1.0])
    assert [channel.protocol for channel in channels] == [6, 17]


def test_flows_that_come_back_make_a_channel_abnormal(write):
    def flows_of(n):
        return FlowSampler().flows(write(pcap([tcp(sport=5000 + i, dport=443) for i in range(n)])))

    one, ten = flows_of(1), flows_of(10)
    aggregator = FlowAggregator(window=60, false_alarm_rate=None).fit(ten, np.arange(10.0))
    assert aggregator.aggregate(ten, np.full(10, 3.0))[0].score == pytest.approx(
        10 * aggregator.aggregate(one, [3.0])[0].score
    )


@pytest.mark.parametrize("level", ["channel", "host"])
def test_the_threshold_is_the_conformal_one_of_groups_each_ranked_among_the_others(traffic, level):
    flows, scores = traffic
    aggregator = FlowAggregator(level, window=WINDOW, false_alarm_rate=0.05).fit(flows, scores)
    channel = (flows.dst_ip, flows.dst_port, flows.protocol) if level == "channel" else ()
    keys = np.array([str(key) for key in zip(flows.time_first // 10**10, flows.src_ip, *channel, strict=True)])
    of_groups = []
    for key in np.unique(keys):
        others = FlowAggregator(level, window=WINDOW, false_alarm_rate=None).fit(
            flows[keys != key], scores[keys != key]
        )
        (group,) = others.aggregate(flows[keys == key], scores[keys == key])
        of_groups.append(group.score)
    assert aggregator.offset_ == pytest.approx(np.sort(of_groups)[int(0.05 * (len(of_groups) + 1)) - 1])
    assert aggregator.false_alarm_rate_ == 0.05
    assert aggregator.no_threshold_reason_ == ""


def test_two_hosts_are_ranked_among_each_other(tmp_path):
    packets = [tcp(src=f"10.0.0.{1 + n % 2}", sport=1000 + n, dport=443) for n in range(8)]
    flows = sampled(tmp_path / "c.pcap", packets, np.arange(8.0))
    scores = np.array([-9.0, 1, -8, 2, -7, 3, -6, 4])  # the first host scores below all of the second
    aggregator = FlowAggregator("host", false_alarm_rate=0.5).fit(flows, scores)
    # One channel each: its most abnormal flow, of which no flow of the other is as low, or all four are.
    assert aggregator.offset_ == pytest.approx(-(np.log(5) ** 1.5))


def test_without_a_rate_there_is_no_threshold(traffic):
    aggregator = FlowAggregator(window=WINDOW, false_alarm_rate=None).fit(*traffic)
    assert aggregator.offset_ == -np.inf
    assert aggregator.false_alarm_rate_ is None
    assert aggregator.no_threshold_reason_ == "false_alarm_rate=None"


def test_the_default_rate_is_held_where_there_are_groups_enough(traffic):
    flows, scores = traffic
    by_default, asked = (
        FlowAggregator(window=1, **rate).fit(flows, scores) for rate in ({}, {"false_alarm_rate": 0.01})
    )
    assert by_default.offset_ == asked.offset_ > -np.inf
    assert by_default.false_alarm_rate_ == 0.01


def test_by_default_too_few_groups_are_a_warning_and_no_threshold():
    testbed = load_testbed(sampler=FlowSampler())
    flows = testbed.flows_validation[testbed.attack_validation == ""]
    with pytest.warns(UserWarning, match="no threshold: .* at least 99 normal hosts, .* there are [0-9]+:") as warned:
        aggregator = FlowAggregator("host").fit(flows, -flows.X.mean(axis=1))
    assert warned[0].filename == __file__
    assert aggregator.offset_ == -np.inf
    assert aggregator.false_alarm_rate_ is None
    assert f"no threshold: {aggregator.no_threshold_reason_}" == str(warned[0].message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "flow"}, "The 'level' parameter"),
        ({"window": 0}, "The 'window' parameter"),
        ({"window": 1e-10}, "The 'window' parameter"),
        ({"window": 1e10}, r"The 'window' parameter .* in the range \[1e-09, 9000000000\.0\]"),
        ({"combine": "mean"}, "The 'combine' parameter"),
        ({"n_highest": 0}, "The 'n_highest' parameter"),
        ({"false_alarm_rate": 0.9}, "The 'false_alarm_rate' parameter"),
        ({"level": "host", "window": 1e6, "false_alarm_rate": 0.01}, "needs at least 99 normal hosts.*there are 5:"),
        ({"level": "host", "window": 1e6, "false_alarm_rate": 1 / 7}, "needs at least 6 normal hosts.*there are 5:"),
        ({"false_alarm_rate": "most"}, "The 'false_alarm_rate' parameter"),
    ],
)
def test_unusable_settings_raise(traffic, settings, message):
    with pytest.raises(ValueError, match=message):
        FlowAggregator(**settings).fit(*traffic)


def test_as_many_groups_as_needed_are_enough(traffic):
    aggregator = FlowAggregator("host", window=1e6, false_alarm_rate=1 / 6).fit(*traffic)
    assert aggregator.offset_ > -np.inf


def test_a_refused_fit_leaves_nothing_behind(traffic):
    flows, scores = traffic
    aggregator = FlowAggregator("host", window=1e6, false_alarm_rate=None).fit(flows, scores)
    aggregator.note_ = "mine"
    with pytest.raises(TooFewGroupsError):
        aggregator.set_params(false_alarm_rate=0.01).fit(flows, scores)
    assert vars(aggregator) == {**aggregator.get_params(), "note_": "mine"}
    for use in (aggregator.stream, lambda: aggregator.aggregate(flows, scores), lambda: aggregator.abnormality(scores)):
        with pytest.raises(NotFittedError):
            use()


@pytest.mark.parametrize(
    "changed",
    [{"level": "host"}, {"window": 20.0}, {"combine": "most_abnormal"}, {"n_highest": 3}, {"false_alarm_rate": 0.2}],
    ids=str,
)
def test_an_old_fit_does_not_serve_new_settings(traffic, changed):
    flows, scores = traffic
    aggregator = FlowAggregator(window=WINDOW, false_alarm_rate=None).fit(flows, scores).set_params(**changed)
    ((name, value),) = changed.items()
    for use in (aggregator.stream, lambda: aggregator.aggregate(flows, scores)):
        with pytest.raises(NotFittedError, match=f"^{name} was .* in fit and is {value!r} now.*fit"):
            use()
    aggregator.fit(flows, scores).aggregate(flows, scores)


@pytest.mark.filterwarnings("ignore:there are more than")
def test_the_room_of_a_stream_may_be_changed_after_fit(traffic):
    aggregator = FlowAggregator(window=1e6, false_alarm_rate=None).fit(*traffic)
    stream = aggregator.set_params(max_groups=2).stream()
    assert stream.update(*traffic)
    with pytest.raises(ValueError, match="The 'max_groups' parameter"):
        aggregator.set_params(max_groups=0).stream()


def test_scores_are_no_metadata():
    assert [name for name in dir(FlowAggregator) if name.startswith("set_") and name.endswith("_request")] == []
    assert FlowAggregator().get_metadata_routing()._serialize() == {}


def test_groups_cannot_be_changed(traffic):
    aggregator = FlowAggregator(window=WINDOW, false_alarm_rate=None).fit(*traffic)
    group = aggregator.aggregate(*traffic)[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        group.score = 0.0


def test_counting_alarms_loads_no_torch():
    modules = "sklearn_docids.aggregation, sklearn_docids.evaluation, sklearn_docids.metrics"
    code = (
        f"import sys, {modules}; from sklearn_docids.detectors import StatisticDetector; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_scores_in_two_columns_are_refused(traffic):
    flows, scores = traffic
    aggregator = FlowAggregator(window=WINDOW, false_alarm_rate=None).fit(flows, scores)
    with pytest.raises(ValueError, match="should be a 1d array"):
        aggregator.aggregate(flows, np.stack([scores, scores], axis=1))


def test_wrong_clocks_do_not_hold_back_a_stream(write):
    seconds = np.arange(0, 50_000, 50.0)
    wrong = {100: 4e9, 400: 4e9, 700: 0.0}  # the year 2096, and 1970
    times = [wrong.get(number, 1.7e9 + second) for number, second in enumerate(seconds)]
    flows = FlowSampler().flows(write(pcap([tcp(sport=5000 + n) for n in range(len(times))], times=times)))
    aggregator = FlowAggregator(window=60, false_alarm_rate=None).fit(flows, np.zeros(len(flows)))
    stream, groups = aggregator.stream(), []
    for row in range(len(flows)):
        groups += stream.update(flows[row : row + 1], [0.0])
    expected = aggregator.aggregate(flows, np.zeros(len(flows)))
    assert len(expected) - len(groups) < 15
    assert described(groups + stream.flush()) == described(expected)


def test_a_window_is_over_when_most_of_nine_flows_are_in_the_next_but_one(tmp_path):
    windows = np.repeat([0, 1, 2], 9)
    flows = sampled(tmp_path / "c.pcap", [tcp(sport=5000 + n) for n in range(27)], windows * 60 + np.arange(27.0))
    stream = FlowAggregator(window=60, false_alarm_rate=None).fit(flows, np.zeros(27)).stream()
    done = [stream.update(flows[row : row + 1], [0.0]) for row in range(27)]
    assert [row for row, groups in enumerate(done) if groups] == [18 + 4]  # the fifth of the last nine
    assert [(group.window, group.n_flows) for group in done[22]] == [(0, 9)]
    assert [(group.window, group.n_flows) for group in stream.flush()] == [(1, 9), (2, 9)]


def test_all_at_once_no_group_is_split(traffic):
    flows, scores = traffic
    few, many = (FlowAggregator(false_alarm_rate=None, max_groups=n).fit(flows, scores) for n in (3, 10**5))
    assert described(few.aggregate(flows, scores)) == described(many.aggregate(flows, scores))


def test_unusable_scores_raise(traffic):
    flows, scores = traffic
    with pytest.raises(ValueError, match="scores contains NaN"):
        FlowAggregator(false_alarm_rate=None).fit(flows, np.where(np.arange(len(scores)) == 3, np.nan, scores))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        FlowAggregator(false_alarm_rate=None).fit(flows, scores[1:])
    with pytest.raises(ValueError, match="no flows to calibrate with"):
        FlowAggregator(false_alarm_rate=None).fit(flows[:0], scores[:0])
    with pytest.raises(ValueError, match=r"flows must be a FlowTable, as from FlowSampler\.flows; got ndarray"):
        FlowAggregator(false_alarm_rate=None).fit(flows.X, scores)


@pytest.mark.parametrize("rate", [0.5, "auto"])
def test_a_threshold_of_groups_that_are_all_alike_is_said(tmp_path, rate):
    (tmp_path / "c.pcap").write_bytes(pcap([tcp(src=f"10.0.0.{number}") for number in range(1, 121)]))
    flows = FlowSampler().flows(tmp_path / "c.pcap")
    with pytest.warns(UserWarning, match="separates nothing: all 120 scores that set it are 0, and whatever"):
        aggregator = FlowAggregator("host", false_alarm_rate=rate).fit(flows, np.zeros(120))
    assert aggregator.offset_ == 0
    FlowAggregator("host", false_alarm_rate=None).fit(flows, np.zeros(120))  # no threshold, nothing to say


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Return 500 flows of three sources, in bursts over six days with a pause of two, in no order, and scores."""
    rng = np.random.default_rng(1)
    times = np.sort(np.repeat(rng.uniform(0, 4 * DAY, 125), 4) + rng.uniform(0, 4000, 500)).round()
    times[times > 2 * DAY] += 2 * DAY
    packets = []
    for number in range(500):
        make, host, server, port = rng.choice([tcp, udp]), *rng.integers(1, [4, 3, 3])
        packets.append(make(src=f"10.0.0.{host}", dst=f"10.0.1.{server}", sport=10_000 + number, dport=int(port)))
    flows = sampled(tmp_path_factory.mktemp("days") / "c.pcap", packets, times)
    return flows[rng.permutation(len(flows))], np.round(rng.normal(size=len(flows)), 2)


@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize("window", [1e-9, 600.0, 3600.0, DAY])
@pytest.mark.parametrize("threshold", [-1.0, 0.5, np.inf])
def test_incidents_are_those_of_the_obvious_way(days, level, window, threshold):
    flows, scores = days
    incidents = find_incidents(flows, scores, threshold, level=level, window=window)
    expected = naive_incidents(flows, scores, threshold, level, window)
    assert sorted(incident.rows.tolist() for incident in incidents) == sorted(expected)
    order = [(incident.score, incident.time_first) for incident in incidents]
    assert order == sorted(order)
    for incident in incidents:
        rows = incident.rows
        assert incident.most_abnormal == rows[scores[rows].argmin()]
        assert incident.score == scores[incident.most_abnormal]
        assert (incident.time_first, incident.time_last) == (flows.time_first[rows[0]], flows.time_first[rows[-1]])
        assert incident.n_flows == len(rows)
        channels = set(zip(flows.dst_ip[rows], flows.dst_port[rows], flows.protocol[rows], strict=True))
        assert incident.n_channels == len(channels)
        assert incident.src_ip == flows.src_ip[rows[0]]
        key = (incident.dst_ip, incident.dst_port, incident.protocol)
        assert key == (*channels,)[0] if level == "channel" else key == (None, None, None)


def incidents_at(path, *seconds, **settings):
    """Return how many flows of one channel, all flagged, each incident has, in the order of time."""
    flows = sampled(path / "c.pcap", [tcp(sport=5000 + number) for number in range(len(seconds))], seconds)
    incidents = find_incidents(flows, np.zeros(len(flows)), 1.0, **settings)
    return [incident.n_flows for incident in sorted(incidents, key=lambda incident: incident.time_first)]


def test_a_flow_belongs_to_the_incident_up_to_a_window_after_its_last_flow(tmp_path):
    assert incidents_at(tmp_path, 0, 60, 120, 180.000001, 240.000002, window=60) == [3, 1, 1]


def test_what_goes_on_for_days_comes_up_once_a_day(tmp_path):
    hourly = 1.7e9 - 1.7e9 % DAY + 3600 * np.arange(8, 80)
    assert incidents_at(tmp_path, *hourly) == [16, 24, 24, 8]


@pytest.mark.parametrize("level", ["channel", "host"])
def test_days_one_by_one_are_the_incidents_of_all_days(days, level):
    flows, scores = days
    day = flows.time_first // round(DAY * 1e9)
    one_by_one = []
    for number in np.unique(day):
        rows = np.flatnonzero(day == number)
        one_by_one += [
            rows[incident.rows].tolist() for incident in find_incidents(flows[rows], scores[rows], 0.5, level=level)
        ]
    assert sorted(one_by_one) == sorted(i.rows.tolist() for i in find_incidents(flows, scores, 0.5, level=level))


def test_only_what_scores_below_the_threshold_is_in_an_incident(tmp_path):
    flows = sampled(tmp_path / "c.pcap", [tcp(sport=5000 + number) for number in range(4)], np.arange(4.0))
    (incident,) = find_incidents(flows, [-1.0, -2, -3, -2], -1.0)
    assert incident.rows.tolist() == [1, 2, 3]
    assert (incident.most_abnormal, incident.score) == (2, -3)
    assert find_incidents(flows, [-1.0, -2, -3, -2], -3.0) == []
    assert find_incidents(flows[:0], [], 0.0) == []


def test_an_address_of_each_version_is_another_source(tmp_path):
    packets = [udp(src="10.0.0.7", dst="10.0.0.1"), udp6(src="::10.0.0.7", dst="::10.0.0.1")]
    flows = sampled(tmp_path / "c.pcap", packets, [0.0, 1.0])
    assert [incident.src_ip for incident in find_incidents(flows, [0, 0], 1.0)] == ["10.0.0.7", "::a00:7"]


def test_incidents_cannot_be_changed_and_are_compared(days):
    first, second = (find_incidents(*days, 0.0) for _ in range(2))
    assert first == second
    with pytest.raises(dataclasses.FrozenInstanceError):
        first[0].score = 0.0
    with pytest.raises(ValueError, match="read-only"):
        first[0].rows[0] = 0


@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize("window", [600.0, 3600.0, 12_000.0])
@pytest.mark.parametrize("budget", [1, 7, 15])
def test_the_threshold_for_a_budget_is_that_of_the_obvious_way(days, level, window, budget):
    flows, scores = days
    seconds = np.diff(np.sort(flows.time_first)) / 1e9
    per_day = budget / (3 * seconds[seconds <= 3600].sum() / DAY)
    threshold = incident_budget_threshold(flows, scores, per_day=per_day, per_hosts=1, level=level, window=window)
    assert threshold == naive_incident_threshold(flows, scores, budget, level, window)
    candidates = sorted(set(scores))
    numbers = [
        len(find_incidents(flows, scores, score, level=level, window=window))
        for score in candidates[: candidates.index(threshold) + 2]
    ]
    assert max(numbers[:-1]) <= budget < numbers[-1]


def test_the_budget_is_that_of_hosts_and_days_that_were_captured(days, tmp_path):
    hours = np.concatenate([np.arange(49), 200 + np.arange(25)])  # two days, a pause, one day
    packets = [tcp(src=f"10.0.0.{1 + number % 4}", sport=5000 + number) for number in range(len(hours))]
    flows = sampled(tmp_path / "c.pcap", packets, 3600.0 * hours)
    scores = np.arange(len(flows))
    # 5 a day of 2 hosts: 30 in 3 days of 4 hosts. No flow joins another.
    assert incident_budget_threshold(flows, scores, per_day=5, per_hosts=2, window=60) == 30
    assert incident_budget_threshold(flows, scores, per_day=1 / 6, per_hosts=2, window=60) == 1
    with pytest.raises(
        ValueError, match=r"^0.16 incidents a day of 2 hosts are 0.96 in these flows, 3 days of 4 hosts"
    ):
        incident_budget_threshold(flows, scores, per_day=0.16, per_hosts=2, window=60)


def test_a_wrong_clock_adds_no_days(tmp_path):
    times = np.array([*3600.0 * np.arange(25), 4e9])
    flows = sampled(tmp_path / "c.pcap", [tcp(sport=5000 + number) for number in range(26)], times)
    assert incident_budget_threshold(flows, np.arange(26), per_day=3, per_hosts=1, window=60) == 3


def test_more_flagged_flows_may_be_fewer_incidents_and_yet_beyond_the_budget(tmp_path):
    flows = sampled(tmp_path / "c.pcap", [tcp(sport=5000 + number) for number in range(25)], 3600.0 * np.arange(25))
    scores = np.full(25, 9.0)
    scores[[10, 12, 11]] = 1, 2, 3  # two incidents, which the third flow makes one
    settings = {"per_hosts": 1, "window": 3600}
    assert [len(find_incidents(flows, scores, score)) for score in (1, 2, 3, 9)] == [0, 1, 2, 1]
    assert incident_budget_threshold(flows, scores, per_day=1, **settings) == 2
    with pytest.warns(UserWarning, match="the budget, 2 incidents, is not used up") as warned:
        assert incident_budget_threshold(flows, scores, per_day=2, **settings) == 9
    assert warned[0].filename == __file__


def test_a_threshold_for_a_budget_that_flags_nothing_is_said(tmp_path):
    flows = sampled(tmp_path / "c.pcap", [tcp(sport=5000 + number) for number in range(25)], 3600.0 * np.arange(25))
    with pytest.warns(
        UserWarning, match="no flow .* the 25 that share the lowest score, 0, are 25 .* the budget is 3;"
    ):
        assert incident_budget_threshold(flows, np.zeros(25), per_day=3, per_hosts=1, window=60) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": np.nan}, "The 'threshold' parameter of find_incidents"),
        ({"level": "flow"}, "The 'level' parameter of find_incidents"),
        ({"window": 0}, "The 'window' parameter of find_incidents"),
        ({"window": 86_401}, "The 'window' parameter of find_incidents"),
        ({"scores": np.zeros(3)}, "inconsistent numbers of samples"),
        ({"flows": np.zeros((500, 3))}, "flows must be a FlowTable"),
    ],
)
def test_unusable_settings_of_incidents_raise(days, settings, message):
    flows, scores = days
    with pytest.raises(ValueError, match=message):
        find_incidents(**{"flows": flows, "scores": scores, "threshold": 0.0, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_day": 0}, "The 'per_day' parameter"),
        ({"per_hosts": np.nan}, "The 'per_hosts' parameter"),
        ({"window": -1}, "The 'window' parameter"),
        ({"level": "flow"}, "The 'level' parameter"),
        ({"flows": None}, "flows must be a FlowTable"),
        ({"scores": np.full(500, np.inf)}, "scores contains infinity"),
    ],
)
def test_unusable_settings_of_a_budget_raise(days, settings, message):
    flows, scores = days
    with pytest.raises(ValueError, match=message):
        incident_budget_threshold(**{"flows": flows, "scores": scores, **settings})


def test_without_flows_there_is_no_threshold_for_a_budget(days):
    with pytest.raises(ValueError, match="are 0 in these flows, 0 days of 0 hosts"):
        incident_budget_threshold(days[0][:0], [])
