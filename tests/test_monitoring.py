"""`DriftMonitor`: against another library and its slow twin, its bound on false alarms, and what is no drift."""

import numpy as np
import pytest
from captures import udp
from crepes.martingales import StepBettingFunction, semi_online_p_values
from office import burst, capture_of, office

from sklearn_docids import FlowSampler, MultiViewDetector, _thinning
from sklearn_docids._thinning import Recent, Thinner
from sklearn_docids.datasets import load_testbed
from sklearn_docids.monitoring import BETS, DriftMonitor

SAMPLER = FlowSampler(layout="payload")


def tables(folder, **dialogues):
    """Return the flows of captures that are written into a folder."""
    for name, some in dialogues.items():
        (folder / name).write_bytes(capture_of(some))
    return {name: SAMPLER.flows(folder / name) for name in dialogues}


def dns(number, time, source, name=b"\x01\0printer"):
    """Return a question without an answer, of another network."""
    return [udp(20_000 + number, 5353, name, src=source, dst="192.168.7.9")], [time]


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Return flows of an office on two days, of a burst of guesses on the second, and of another network."""
    other = [dns(i, 2000 + 3.0 * i, f"192.168.7.{i % 20}") for i in range(200)]
    return tables(
        tmp_path_factory.mktemp("days"),
        train=office(400, 0),
        quiet=office(300, 1),
        guessed=[*office(300, 1), *burst(60, 1200.0)],
        other=other,
    )


@pytest.fixture(scope="module")
def detector(days):
    return MultiViewDetector(views=("statistics", "requests", "novelty"), false_alarm_rate=0.05, random_state=0).fit(
        days["train"]
    )


def monitor_of(detector, flows):
    monitor = DriftMonitor(detector.thinned_scores_, random_state=0)
    monitor.update(detector.score_samples(flows), flows)
    return monitor


def generator_behind(seed, n_drawn):
    """Return the generator of a library that has drawn a number for each score of the calibration."""
    generator = np.random.RandomState(seed)
    generator.random_sample(n_drawn)
    return generator


def mixture(rewards):
    """Return the capital over all beginnings of bets, the sum written out."""
    found = []
    for n in range(1, len(rewards) + 1):
        begun = sum(rewards[first:n].prod(axis=0).mean() / ((first + 1) * (first + 2)) for first in range(n))
        found.append(1 / (n + 1) + begun)
    return np.array(found)


# --------------------------------------------------------------------------------------------------------------------
# The test itself


@pytest.mark.parametrize("shift", [0, 2])
def test_p_values_and_bets_are_those_of_another_library(shift):
    rng = np.random.default_rng(shift)
    normal, new = -rng.integers(0, 9, 40) / 2, -rng.integers(0, 9, 60) / 2 - shift  # many are equal
    p_values = semi_online_p_values(-np.concatenate([normal, new]), seed=7)[len(normal) :]
    levels, shares = (sorted(set(numbers)) for numbers in zip(*BETS, strict=True))
    expected = mixture(StepBettingFunction(Gs=shares, A=levels).apply(p_values))
    monitor = DriftMonitor(normal, random_state=generator_behind(7, len(normal)))
    found = []
    for score in new:
        monitor.update([score])
        found.append(monitor.log_martingale)
    np.testing.assert_allclose(found, np.log(expected), rtol=1e-9, atol=1e-9)
    assert monitor.n_unusual == np.sum(p_values <= 0.05)
    assert monitor.drifted_ == (expected.max() >= 100) == bool(shift)


def test_quiet_streams_are_called_drift_no_more_often_than_promised():
    n_drifted = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        normal, new = (-np.floor(3 * rng.exponential(size=n)) for n in ([5, 60][seed % 2], 150))
        monitor = DriftMonitor(normal, rate=0.1, random_state=seed)
        monitor.update(new)
        n_drifted += monitor.drifted_
    assert 0 < n_drifted <= 30


def test_pieces_are_as_the_whole(days, detector):
    flows, scores = days["quiet"], detector.score_samples(days["quiet"])
    order = np.argsort(flows.time_first, kind="stable")
    monitor = DriftMonitor(detector.thinned_scores_, random_state=0)
    for rows in np.array_split(order, 7):
        monitor.update(scores[rows], flows[rows])
    assert monitor.log_martingale == pytest.approx(monitor_of(detector, flows).log_martingale, abs=1e-12)
    assert monitor.n_flows == len(flows)


def test_more_normal_flows_are_no_drift():
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(-rng.exponential(size=200), random_state=0)
    monitor.update(-0.2 * rng.exponential(size=2000))
    assert not monitor.drifted_


def test_drift_stays():
    monitor = DriftMonitor(np.zeros(500), random_state=0)
    monitor.update(np.full(30, -9.0))
    monitor.update(np.zeros(3000))
    assert monitor.drifted_
    assert monitor.log_martingale < np.log(100)


def test_twice_as_many_unusual_flows_are_no_drift_and_ten_times_as_many_are():
    rng = np.random.default_rng(0)
    for more, is_drift in ((0.05, False), (0.45, True)):
        monitor = DriftMonitor(-rng.uniform(size=1000), random_state=0)
        normal, unusual = rng.uniform(size=500), rng.uniform(0.95, 1, size=500)
        monitor.update(-np.where(rng.uniform(size=500) < more, unusual, normal))
        assert monitor.drifted_ == is_drift


# --------------------------------------------------------------------------------------------------------------------
# Traffic


def test_another_day_is_no_drift_and_another_network_is(days, detector):
    assert not monitor_of(detector, days["quiet"]).drifted_
    assert monitor_of(detector, days["other"]).drifted_


def test_a_host_that_attacks_is_no_drift(days, detector):
    flows = days["guessed"]
    assert (detector.predict(flows)[flows.src_port >= 30_000] == -1).all()
    assert not monitor_of(detector, flows).drifted_


def test_the_next_period_of_the_testbed_is_no_drift():
    testbed = load_testbed(sampler=SAMPLER)
    is_normal = testbed.y_validation == 1
    detector = MultiViewDetector(views=("requests", "novelty"), random_state=0).fit(testbed.flows_train)
    later = testbed.flows_validation[is_normal]
    assert not monitor_of(detector, later).drifted_
    # A port scan alone among them.
    mixed = testbed.flows_validation[is_normal | (np.asarray(testbed.attack_validation) == "port_scan")]
    assert len(mixed) > len(later) + 100
    assert not monitor_of(detector, mixed).drifted_


def test_of_each_channel_one_flow_a_minute_is_compared(tmp_path):
    times = [0.0, 10.0, 59.0, 61.0, 100.0, 122.0]
    same = [dns(i, 1000 + time, "10.0.0.1") for i, time in enumerate(times)]
    other = [dns(9, 1005.0, "10.0.0.2")]
    flows = tables(tmp_path, flows=[*same, *other])["flows"]
    flows = flows[np.argsort(flows.time_first)]
    chosen = flows[Thinner().chosen(flows)]
    seconds = (chosen.time_first / 1e9 - 1000).round().tolist()
    assert list(zip(chosen.src_ip.tolist(), seconds, strict=True)) == [
        ("10.0.0.1", 0), ("10.0.0.2", 5), ("10.0.0.1", 61), ("10.0.0.1", 122),
    ]  # fmt: skip


def test_a_clock_set_back_silences_no_channel_for_longer_than_a_minute():
    recent = Recent()
    recent.add(1, 10**18)
    assert recent.has(1, 10**18 - 10**9)
    assert not recent.has(1, 10**18 - 10**12)


def test_a_flood_of_channels_takes_bounded_memory(monkeypatch):
    monkeypatch.setattr(_thinning, "MAX_KEYS", 100)
    recent = Recent()
    for key in range(1000):
        recent.add(key, key)
        assert recent.has(key, key)
        assert len(recent._times) <= 100


def test_detectors_keep_the_thinned_scores_of_their_calibration(days, detector):
    flows = days["train"][np.argsort(days["train"].time_first, kind="stable")]
    expected = detector.calibration_scores_[Thinner().chosen(flows)]
    np.testing.assert_array_equal(detector.thinned_scores_, expected)
    assert 8 <= len(expected) < 100


# --------------------------------------------------------------------------------------------------------------------
# Words


def test_it_says_what_it_found_and_what_to_do(days, detector):
    assert DriftMonitor([0.0]).describe() == "Drift: no flow was compared with the calibration yet."
    monitor = monitor_of(detector, days["quiet"])
    n = monitor.n_compared
    assert monitor.describe().startswith(f"No drift: {monitor.n_unusual} of {n} compared flows (")
    text = monitor_of(detector, days["other"]).describe()
    assert text.startswith("Drift: this traffic is not like that of the calibration: ")
    assert "docids calibrate" in text
    assert "fit anew" in text
    assert "look at it first" not in text


def test_it_names_the_source_of_most_of_it(tmp_path, detector):
    lines = [dns(i, 2000 + 61.0 * i, "192.168.7.1") for i in range(30)]
    flows = tables(tmp_path, flows=lines)["flows"]
    assert "of them from 192.168.7.1: look at it first" in monitor_of(detector, flows).describe()


def test_it_says_that_a_calibration_is_small():
    monitor = DriftMonitor(np.arange(-9.0, 1.0), random_state=0)
    monitor.update([0.0])
    assert "only 10 flows to compare with" in monitor.describe()


@pytest.mark.parametrize(
    ("scores", "parameters", "message"),
    [
        ([], {}, "calibration_scores is empty"),
        ([np.nan], {}, "calibration_scores must be finite"),
        ([[0.0]], {}, "calibration_scores must be finite"),
        ([0.0], {"rate": 0.0}, "'rate' parameter"),
        ([0.0], {"rate": 1.5}, "'rate' parameter"),
        ([0.0], {"random_state": "x"}, "'random_state' parameter"),
    ],
)
def test_unusable_parameters_are_refused(scores, parameters, message):
    with pytest.raises(ValueError, match=message):
        DriftMonitor(scores, **parameters)


def test_scores_of_other_flows_are_refused(days):
    monitor = DriftMonitor([0.0])
    with pytest.raises(ValueError, match="there are 2 scores of 300 flows"):
        monitor.update([0.0, 1.0], days["quiet"])
    with pytest.raises(ValueError, match="scores must be finite"):
        monitor.update([np.inf])
    assert monitor.n_flows == 0
