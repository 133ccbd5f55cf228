"""Alarms as flagged flows come: they hold the incidents of the whole, come up seldom, and fit into memory."""

import math
import sys
from collections import Counter

import numpy as np
import pytest
from flagged import SECOND, flagged_flow, flow_table

from sklearn_docids._alarms.alarm import FlaggedFlow
from sklearn_docids._alarms.incidents import IncidentTracker
from sklearn_docids.aggregation import find_incidents

DAY = 86_400
HOUR = 3600


def at(seconds, score=-5.0, **columns):
    return flagged_flow(score=score, time_first=round(seconds * SECOND), **columns)


def as_flagged(flows, scores):
    return [
        FlaggedFlow(flows[row], "a.pcap", float(score), 0.0, math.nan, ()) for row, score in enumerate(scores.tolist())
    ]


def random_flows(seed, n_flows, days=3.0):
    """Return flows of few hosts, in order of time, many of them close to each other, and scores, some alike."""
    rng = np.random.default_rng(seed)
    times = np.sort(np.concatenate([rng.uniform(0, days * DAY, n_flows // 2), rng.normal(DAY, HOUR, n_flows // 2)]))
    hosts = ["10.0.0.1", "10.0.0.2", "fd00::1", "::a00:1"]
    flows = []
    for time in (times * SECOND).astype(int).tolist():
        host = hosts[rng.integers(4)]
        server = f"fd00::{rng.integers(1, 4)}" if ":" in host else f"10.0.1.{rng.integers(1, 4)}"
        protocol = int(rng.choice([6, 17]))
        columns = {"src": host, "dst": server, "dst_port": int(rng.integers(1, 4)), "protocol": protocol}
        flows.append({"time_first": time, **columns})
    return flow_table(flows), np.round(rng.normal(-5, 1, len(flows)), 1)


def told(alarm):
    flow = alarm.most_abnormal.flow
    who = (str(flow.src_ip[0]),)
    if alarm.level == "channel":
        who += (str(flow.dst_ip[0]), int(flow.dst_port[0]), int(flow.protocol[0]))
    of_most_abnormal = int(flow.time_first[0]), alarm.most_abnormal.score
    return alarm.level, who, alarm.time_first, alarm.time_last, alarm.n_flows, alarm.n_channels, *of_most_abnormal


@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize("window", [60.0, 3600.0, 86_400.0])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_incidents_of_a_stream_are_those_of_the_whole_table(level, window, batch):
    flows, scores = random_flows(7, 400)
    flagged, found = as_flagged(flows, scores), []
    tracker = IncidentTracker(level=level, window=window, max_channels=math.inf, on_end=found.append)
    for first in range(0, len(flagged), batch):
        # In any order within a batch.
        tracker.update(reversed(flagged[first : first + batch]) if batch > 1 else flagged[first : first + batch])
    found += tracker.close()
    expected = [
        (
            level,
            (incident.src_ip, incident.dst_ip, incident.dst_port, incident.protocol)[: 4 if level == "channel" else 1],
            incident.time_first, incident.time_last, incident.n_flows, incident.n_channels, incident.score,
        )
        for incident in find_incidents(flows, scores, 0.0, level=level, window=window)
    ]  # fmt: skip
    assert sorted(told(alarm)[:6] + told(alarm)[7:] for alarm in found) == sorted(expected)
    assert tracker.n_incidents == len(expected) > 4
    assert sum(alarm.n_flows for alarm in found) == len(flows)


def naive_tracker(flagged, level, window, max_channels):
    """Return the alarms of flows in the order of time, by going through all incidents each time."""
    incidents, alarms = [], []
    for flow in flagged:
        time = int(flow.flow.time_first[0])
        source, channel = told_keys(flow)
        going_on = [
            incident
            for incident in incidents
            if time - incident["times"][-1] <= round(window * SECOND)
            and time // (DAY * SECOND) == incident["times"][0] // (DAY * SECOND)
        ]
        key = channel if level == "channel" else source
        if level == "channel" and not any(incident["key"] == channel for incident in going_on):
            n_channels = sum(incident["key"][:1] == source and len(incident["key"]) > 1 for incident in going_on)
            key = source if n_channels >= max_channels else channel
        incident = next((incident for incident in going_on if incident["key"] == key), None)
        if incident is None:
            incident = {"key": key, "times": [], "channels": [], "flows": []}
            incidents.append(incident)
        incident["times"].append(time)
        incident["channels"].append(channel)
        incident["flows"].append(flow)
        if str(len(incident["times"])).rstrip("0") == "1":
            worst = min(incident["flows"], key=lambda flow: flow.score)
            alarms.append(
                (
                    "host" if len(key) == 1 else "channel", key, incident["times"][0], time, len(incident["times"]),
                    len(set(incident["channels"])), int(worst.flow.time_first[0]), worst.score,
                )
            )  # fmt: skip
    return alarms


def told_keys(flow):
    table = flow.flow
    source = (str(table.src_ip[0]),)
    return source, (*source, str(table.dst_ip[0]), int(table.dst_port[0]), int(table.protocol[0]))


@pytest.mark.parametrize("level", ["channel", "host"])
@pytest.mark.parametrize("window", [300.0, 7200.0])
@pytest.mark.parametrize("max_channels", [1, 3])
def test_alarms_are_those_of_the_obvious_way(level, window, max_channels):
    flows, scores = random_flows(3, 400, days=1.2)
    flagged = as_flagged(flows, scores)
    tracker = IncidentTracker(level=level, window=window, max_channels=max_channels)
    alarms = [told(alarm) for flow in flagged for alarm in tracker.update([flow])]
    assert alarms == naive_tracker(flagged, level, window, max_channels)
    assert tracker.n_alarms == len(alarms) > 20
    assert (tracker.n_over_budget, tracker.n_evicted) == (0, 0)


def test_an_incident_comes_up_with_each_tenfold_of_its_flows():
    tracker = IncidentTracker()
    alarms = tracker.update(at(number) for number in range(1234))
    assert [alarm.n_flows for alarm in alarms] == [1, 10, 100, 1000]
    assert [alarm.n_reported for alarm in alarms] == [1, 2, 3, 4]
    assert [alarm.time_last // SECOND for alarm in alarms] == [0, 9, 99, 999]
    assert len({alarm.id for alarm in alarms}) == 1
    (rest,) = tracker.close()
    assert (rest.n_flows, rest.n_reported, rest.id) == (1234, 4, alarms[0].id)
    assert tracker.close() == []


def test_a_scan_is_ten_alarms_of_channels_and_one_of_the_host():
    tracker = IncidentTracker()
    alarms = tracker.update(at(port / 1000, dst_port=port) for port in range(1, 5001))
    assert Counter(alarm.level for alarm in alarms[:11]) == {"channel": 10, "host": 1}
    assert [alarm.level for alarm in alarms[10:]] == ["host"] * 4
    assert [(alarm.n_flows, alarm.n_channels) for alarm in alarms[10:]] == [(n, n) for n in (1, 10, 100, 1000)]
    assert alarms[10].who == "10.0.0.1"
    assert tracker.n_incidents == 11
    # The channels that have an incident of their own keep it.
    tracker.update([at(6, dst_port=3)])
    assert {alarm.n_flows for alarm in tracker.close() if alarm.level == "channel"} == {1, 2}


def test_channels_count_while_their_incidents_are_open():
    tracker = IncidentTracker(max_channels=2, window=100)
    levels = [
        alarm.level
        for time, port in [(0, 1), (50, 2), (60, 3), (101, 4), (120, 5)]
        for alarm in tracker.update([at(time, dst_port=port)])
    ]
    assert levels == ["channel", "channel", "host", "channel"]  # port 5 joins the host's


def test_ids_of_incidents_are_the_same_in_every_run_and_differ_between_incidents():
    flows, scores = random_flows(1, 200)
    runs = [IncidentTracker(max_channels=2).update(as_flagged(flows, scores)) for _ in range(2)]
    assert [alarm.id for alarm in runs[0]] == [alarm.id for alarm in runs[1]]
    assert len({alarm.id for alarm in runs[0] if alarm.n_flows == 1}) == sum(a.n_flows == 1 for a in runs[0])


def test_an_incident_ends_at_midnight_and_keeps_its_late_flows():
    tracker = IncidentTracker()
    times = [DAY - 20, DAY - 10, DAY + 5, DAY - 1]  # the last one is reported late
    alarms = [alarm for time in times for alarm in tracker.update([at(time)])]
    assert [alarm.time_first // SECOND for alarm in alarms] == [DAY - 20, DAY + 5]
    assert [alarm.n_flows for alarm in tracker.close()] == [3, 1]


def test_a_clock_that_is_set_back_begins_no_incident():
    tracker = IncidentTracker(window=60)
    assert len(tracker.update([at(40_000)])) == 1
    assert tracker.update([at(1000)]) == []
    (incident,) = tracker.close()
    assert (incident.time_first, incident.time_last) == (1000 * SECOND, 40_000 * SECOND)


def test_one_flow_with_a_wrong_clock_ends_no_other_incident():
    tracker = IncidentTracker()
    tracker.update([at(10), at(20, dst_port=22)])
    tracker.update([at(9_000_000_000, src="10.9.9.9")])
    assert tracker.update([at(30), at(40, dst_port=22)]) == []
    assert tracker.n_incidents == 3


def test_incidents_end_as_time_goes_on_and_are_handed_over_once():
    ended = []
    tracker = IncidentTracker(window=60, on_end=ended.append)
    for time in range(0, 10_000, 10):
        tracker.update([at(time, src_port=1, dst_port=1 + time)])
        assert len(tracker._open) <= 9
    assert len(ended) + len(tracker.close()) == tracker.n_incidents == len({alarm.id for alarm in ended}) + 8
    assert tracker.n_evicted == 0
    assert tracker._channels_of == {}


@pytest.mark.parametrize("times", [(-(2**63), 2**63 - 1), (2**63 - 1, -(2**63)), (0, -1, 0)])
def test_times_at_the_edges_are_times(times):
    tracker = IncidentTracker(per_day=5)
    for time in times:
        tracker.update([flagged_flow(time_first=time)])
    assert tracker.n_alarms == tracker.n_incidents == 2


def test_a_flood_of_sources_is_bounded_and_counted():
    ended = []
    tracker = IncidentTracker(max_open=50, on_end=ended.append)
    for number in range(400):
        tracker.update([at(number / 100, src=f"10.1.{number // 200}.{number % 200}", dst_port=number)])
        tracker.update([at(number / 100, src="10.0.0.7", dst_port=7)])  # never the one that is idle for longest
    assert (tracker.n_evicted, tracker.n_incidents) == (351, 401)
    left = tracker.close()
    assert len(left) == 50
    assert max(alarm.n_flows for alarm in left) == 400
    assert len(ended) == 351


def test_channels_of_a_host_are_counted_as_far_as_memory_goes():
    tracker = IncidentTracker(level="host", max_open=20)
    tracker.update(at(number / 100, dst_port=number) for number in range(300))
    (host,) = tracker.close()
    assert (host.n_flows, host.n_channels) == (300, 200)
    assert tracker._n_known == 0


def test_an_open_incident_keeps_one_flow_and_not_the_table_it_is_from():
    flows = flow_table([{"time_first": number} for number in range(50)])
    flagged = FlaggedFlow(flows[3:4], "a.pcap", -9.0, 0.0, math.nan, ())
    tracker = IncidentTracker()
    (alarm,) = tracker.update([flagged])
    rows = alarm.most_abnormal.flow.rows
    assert rows.records.base is rows.X.base is None
    assert rows.records[0] == flows.rows.records[3]
    assert sys.getsizeof(rows.X) < 500


def test_a_budget_is_spent_at_once_and_granted_anew_evenly():
    tracker = IncidentTracker(per_day=24, window=60)

    def come_up(time, n):
        return len(tracker.update(at(time, src=f"10.0.{number}.1") for number in range(n)))

    assert come_up(0, 20) == 20
    assert come_up(1000, 10) == 4  # of a day 4 are left, and no hour has passed
    assert come_up(1000 + 3 * HOUR, 10) == 3
    assert tracker.n_over_budget == 6 + 7
    assert come_up(1000 + 3 * HOUR + 2 * DAY, 30) == 24
    assert (tracker.n_alarms, tracker.n_over_budget) == (51, 19)


def test_beyond_the_budget_only_what_is_more_abnormal_than_all_of_a_day_comes_up():
    tracker = IncidentTracker(per_day=1, window=60)
    scores = {0: -5.0, 100: -6.0, 200: -6.0, 300: -5.5, 400: -7.0, DAY + 500: -1.0, DAY + 600: -0.5, DAY + 700: -1.5}
    alarms = [
        time for time, score in scores.items() for _ in tracker.update([at(time, score=score, dst_port=1 + time % 999)])
    ]
    # At a day and 500 s one is granted again; those of the day before count no more.
    assert alarms == [0, 100, 400, DAY + 500, DAY + 700]
    assert tracker.n_over_budget == 3


def test_what_the_budget_holds_back_goes_on_and_may_come_up_later():
    tracker = IncidentTracker(per_day=1, window=HOUR)
    assert len(tracker.update([at(0)])) == 1
    assert tracker.update([at(1, src="10.0.0.2")]) == []
    alarms = tracker.update(at(2 + number, src="10.0.0.2", score=-9.0) for number in range(9))
    assert [(alarm.n_flows, alarm.n_reported) for alarm in alarms] == [(10, 1)]


def test_a_small_budget_lets_one_alarm_come_up():
    tracker = IncidentTracker(per_day=0.5)
    days = [number for number in range(6) for _ in tracker.update([at(number * DAY)])]
    assert days[0] == 0
    assert 3 <= len(days) <= 6


def test_a_clock_that_was_wrong_does_not_stop_the_budget():
    tracker = IncidentTracker(per_day=2, window=60)
    tracker.update([at(9_000_000_000, score=-99.0)])
    come_up = [day for day in range(1, 6) for _ in tracker.update([at(day * DAY, dst_port=day)])]
    assert come_up == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "flow"}, "level='flow' is none of 'channel', 'host'"),
        ({"window": 0}, "window=0 is not more than 0"),
        ({"window": math.nan}, "window=nan"),
        ({"window": 86_401}, "at most 86400 seconds"),
        ({"max_channels": 0}, "max_channels=0"),
        ({"per_day": 0}, "per_day=0"),
        ({"per_day": math.inf}, "per_day=inf"),
        ({"max_open": 0}, "max_open=0"),
    ],
)
def test_unusable_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        IncidentTracker(**settings)
