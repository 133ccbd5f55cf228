"""Channels and hosts: sums by hand, streams as all at once, bounded memory, thresholds that hold."""

import numpy as np
import pytest
from captures import pcap, tcp, udp
from naive import naive_groups
from sklearn.exceptions import NotFittedError

from sklearn_docids import FlowSampler
from sklearn_docids.aggregation import FlowAggregator, TooFewGroupsError

WINDOW = 10.0


@pytest.fixture
def traffic(write):
    """Return 400 flows of five sources, over 60 s, and scores."""
    rng = np.random.default_rng(0)
    packets = []
    for number in range(400):
        host, server, port = rng.integers(1, 6), rng.integers(1, 4), int(rng.choice([53, 80, 443]))
        make = udp if port == 53 else tcp
        packets.append(make(src=f"10.0.0.{host}", dst=f"10.0.1.{server}", sport=10_000 + number, dport=port))
    flows = FlowSampler().flows(write(pcap(packets, times=np.sort(rng.uniform(0, 60, 400)))))
    return flows, np.round(rng.normal(size=len(flows)), 2)


def described(groups):
    return sorted(
        (g.window, g.src_ip, g.dst_ip or "", g.dst_port or 0, g.n_flows, g.n_channels, round(g.score, 9))
        for g in groups
    )


@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize("n_highest", [1, 3, 50])
def test_scores_are_those_of_the_obvious_way(traffic, level, n_highest):
    flows, scores = traffic
    aggregator = FlowAggregator(level, window=WINDOW, n_highest=n_highest, false_alarm_rate=None).fit(flows, scores)
    expected = naive_groups(flows, aggregator.abnormality(scores), level, WINDOW, n_highest)
    groups = aggregator.score(flows, scores)
    assert described(groups) == expected
    assert [g.score for g in groups] == sorted(g.score for g in groups)
    for group in groups:
        assert flows.src_ip[group.most_abnormal] == group.src_ip
        assert group.time_first <= flows.time_first[group.most_abnormal] <= group.time_last


@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize("size", [1, 7, 400])
def test_a_stream_gives_what_all_at_once_gives(traffic, level, size):
    flows, scores = traffic
    aggregator = FlowAggregator(level, window=WINDOW, false_alarm_rate=None).fit(flows, scores)
    groups = []
    for first in range(0, len(flows), size):
        groups += aggregator.update(flows[first : first + size], scores[first : first + size])
    if size < len(flows):
        assert groups  # before the end
    groups += aggregator.flush()
    assert described(groups) == described(aggregator.score(flows, scores))
    assert aggregator.flush() == []


@pytest.mark.parametrize("level", ["channel", "host"])
def test_memory_is_bounded_and_no_flow_is_lost(traffic, level):
    flows, scores = traffic
    aggregator = FlowAggregator(level, window=1e6, false_alarm_rate=None, max_groups=10).fit(flows, scores)
    groups = []
    for row in range(len(flows)):
        groups += aggregator.update(flows[row : row + 1], scores[row : row + 1])
        assert sum(group.n_channels for group in aggregator._live.groups.values()) <= 10
    n_evicted = aggregator.n_evicted_
    assert n_evicted == len(groups) > 0
    groups += aggregator.flush()
    assert sum(group.n_flows for group in groups) == len(flows)
    assert aggregator.n_evicted_ == 0


def test_abnormality_is_the_share_of_normal_flows(traffic):
    flows, scores = traffic
    aggregator = FlowAggregator(false_alarm_rate=None).fit(flows, scores)
    for score in (-9.0, 0.0, 0.5, 9.0):
        share = (np.sum(scores <= score) + 1) / (len(scores) + 1)
        assert aggregator.abnormality([score])[0] == pytest.approx((-np.log(share)) ** 1.5)
    assert aggregator.abnormality([scores.max()])[0] == 0


def test_many_channels_make_a_host_abnormal_and_none_of_its_channels(write):
    def flows_of(n_ports, host):
        packets = [tcp(src=host, sport=5000 + n, dport=1000 + n % n_ports) for n in range(60)]
        return FlowSampler().flows(write(pcap(packets, times=np.linspace(0, 9, 60))))

    few, many = flows_of(3, "10.0.0.1"), flows_of(60, "10.0.0.2")
    scores = np.linspace(-1, 0, 60)
    hosts = FlowAggregator("host", window=60, false_alarm_rate=None).fit(few, scores)
    assert hosts.score(many, scores)[0].score < 4 * hosts.score(few, scores)[0].score
    assert hosts.score(many, scores)[0].n_channels == 60
    channels = FlowAggregator("channel", window=60, false_alarm_rate=None).fit(few, scores)
    assert channels.score(many, scores)[0].score > channels.score(few, scores)[0].score


def test_flows_that_come_back_make_a_channel_abnormal(write):
    def flows_of(n):
        return FlowSampler().flows(write(pcap([tcp(sport=5000 + i, dport=443) for i in range(n)])))

    one, ten = flows_of(1), flows_of(10)
    aggregator = FlowAggregator(window=60, false_alarm_rate=None).fit(ten, np.arange(10.0))
    assert aggregator.score(ten, np.full(10, 3.0))[0].score == pytest.approx(10 * aggregator.score(one, [3.0])[0].score)


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
        (group,) = others.score(flows[keys == key], scores[keys == key])
        of_groups.append(group.score)
    assert aggregator.offset_ == pytest.approx(np.sort(of_groups)[int(0.05 * (len(of_groups) + 1)) - 1])
    assert FlowAggregator(window=WINDOW, false_alarm_rate=None).fit(flows, scores).offset_ == -np.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "flow"}, "The 'level' parameter"),
        ({"window": 0}, "The 'window' parameter"),
        ({"window": 1e-10}, "The 'window' parameter"),
        ({"n_highest": 0}, "The 'n_highest' parameter"),
        ({"false_alarm_rate": 0.9}, "The 'false_alarm_rate' parameter"),
        ({"level": "host", "window": 1e6}, "needs at least 99 normal hosts.*there are 5"),
    ],
)
def test_unusable_settings_raise(traffic, settings, message):
    with pytest.raises(ValueError, match=message):
        FlowAggregator(**settings).fit(*traffic)


def test_a_refused_fit_leaves_nothing_behind(traffic):
    flows, scores = traffic
    aggregator = FlowAggregator("host", window=1e6)
    with pytest.raises(TooFewGroupsError):
        aggregator.fit(flows, scores)
    with pytest.raises(NotFittedError):
        aggregator.score(flows, scores)


def test_scores_in_two_columns_are_refused(traffic):
    flows, scores = traffic
    aggregator = FlowAggregator(window=WINDOW, false_alarm_rate=None).fit(flows, scores)
    with pytest.raises(ValueError, match="should be a 1d array"):
        aggregator.score(flows, np.stack([scores, scores], axis=1))


def test_wrong_clocks_do_not_hold_back_a_stream(write):
    seconds = np.arange(0, 50_000, 50.0)
    wrong = {100: 4e9, 400: 4e9, 700: 0.0}  # the year 2096, and 1970
    times = [wrong.get(number, 1.7e9 + second) for number, second in enumerate(seconds)]
    flows = FlowSampler().flows(write(pcap([tcp(sport=5000 + n) for n in range(len(times))], times=times)))
    aggregator = FlowAggregator(window=60, false_alarm_rate=None).fit(flows, np.zeros(len(flows)))
    groups = []
    for row in range(len(flows)):
        groups += aggregator.update(flows[row : row + 1], [0.0])
    expected = aggregator.score(flows, np.zeros(len(flows)))
    assert len(expected) - len(groups) < 15
    assert described(groups + aggregator.flush()) == described(expected)


def test_all_at_once_no_group_is_split(traffic):
    flows, scores = traffic
    few, many = (FlowAggregator(false_alarm_rate=None, max_groups=n).fit(flows, scores) for n in (3, 10**5))
    assert described(few.score(flows, scores)) == described(many.score(flows, scores))


def test_eviction_takes_a_tenth_of_the_channels_or_more(write):
    # One channel to a window: looking for the oldest one for each new flow would take forever.
    flows = FlowSampler().flows(write(pcap([tcp(sport=5000 + n) for n in range(300)], times=np.zeros(300))))
    aggregator = FlowAggregator(window=1, false_alarm_rate=None, max_groups=100).fit(flows, np.zeros(300))
    flows.time_first[:] = np.random.default_rng(0).permutation(300) * 10**9 * 1000
    sizes = []
    for row in range(300):
        aggregator.update(flows[row : row + 1], [0.0])
        sizes.append(aggregator.n_evicted_)
    steps = np.diff(sizes)
    assert steps.max() <= 20
    assert np.all(steps[steps > 0] >= 10)


def test_unusable_scores_raise(traffic):
    flows, scores = traffic
    with pytest.raises(ValueError, match="scores contains NaN"):
        FlowAggregator(false_alarm_rate=None).fit(flows, np.where(np.arange(len(scores)) == 3, np.nan, scores))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        FlowAggregator(false_alarm_rate=None).fit(flows, scores[1:])
    with pytest.raises(ValueError, match="no flows to calibrate with"):
        FlowAggregator(false_alarm_rate=None).fit(flows[:0], scores[:0])
