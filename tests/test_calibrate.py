"""New thresholds without training: what rate they hold, what stays, and the way back."""

import json

import numpy as np
import pytest
import safetensors
from office import capture_of, office
from scipy.stats import beta, betabinom
from sklearn.exceptions import NotFittedError

from sklearn_docids import AutoencoderDetector, FlowSampler, MultiViewDetector, load_detector, save_detector
from sklearn_docids._provenance import MAX_CALIBRATIONS
from sklearn_docids._thresholds import conformal_threshold, realised_band
from sklearn_docids._views.tails import Tail
from sklearn_docids.exceptions import ModelFileError
from sklearn_docids.persistence import described_traffic

SAMPLER = FlowSampler(layout="payload", output="flows")


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    folder = tmp_path_factory.mktemp("days")
    found = {}
    for name, some in {"train": office(300, 0), "next": office(300, 1)}.items():
        (folder / name).write_bytes(capture_of(some))
        found[name] = SAMPLER.flows(folder / name)
    return found


def fitted_views(flows):
    return MultiViewDetector(views=("statistics", "novelty"), false_alarm_rate=0.05, random_state=0).fit(flows)


@pytest.fixture
def views(days):
    return fitted_views(days["train"])


def rows(n, seed):
    return np.random.default_rng(seed).integers(0, 256, size=(n, 12), dtype=np.uint8)


@pytest.fixture
def network():
    return AutoencoderDetector(max_epochs=1, random_state=0).fit(rows(200, 0))


def in_time(flows):
    return flows[np.argsort(flows.time_first, kind="stable")]


def is_in_band(verdicts, n, rate):
    """Return whether as many are flagged as a calibration of n scores lets happen, but for one in a million."""
    k = int(rate * (n + 1) + 1e-9)
    low, high = betabinom.ppf([5e-7, 1 - 5e-7], len(verdicts), k, n + 1 - k)
    return low <= (verdicts == -1).sum() <= high


# --------------------------------------------------------------------------------------------------------------------
# The threshold


def test_the_rate_on_new_rows_lands_in_its_band(network):
    for seed, (n, rate) in enumerate([(99, 0.01), (400, 0.05), (999, 0.2)]):
        network.calibrate(rows(n, 2 * seed + 1), false_alarm_rate=rate)
        assert is_in_band(network.predict(rows(5000, 2 * seed + 2)), n, rate)


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (964, 0.01), (10_000, 0.001)])
def test_the_band_is_that_of_order_statistics(n, rate):
    k = int(rate * (n + 1))
    assert realised_band(n, rate) == pytest.approx(beta.ppf([0.025, 0.975], k, n + 1 - k))


def test_the_band_holds_so_many_calibrations():
    rng = np.random.default_rng(0)
    low, high = realised_band(200, 0.05, confidence=0.8)
    shares = [conformal_threshold(rng.uniform(size=200), 0.05) for _ in range(2000)]  # of uniform scores, the rate
    assert np.mean([low <= share <= high for share in shares]) == pytest.approx(0.8, abs=0.03)


def test_rows_set_the_threshold_of_a_network(network):
    before, others = network.offset_, rows(150, 1)
    assert network.calibrate(others, false_alarm_rate=0.1) is network
    scores = network.score_samples(others)
    assert network.offset_ == np.sort(scores)[14] != before  # floor(0.1 * 151) - 1
    np.testing.assert_array_equal(network.calibration_scores_, scores)
    assert (network.false_alarm_rate_, network.false_alarm_rate) == (0.1, None)
    assert len(network.thinned_scores_) == 0


def test_without_a_rate_it_is_that_of_the_fit(network, views, days):
    assert network.calibrate(rows(100, 1)).false_alarm_rate_ == 0.01
    assert network.set_params(contamination=0.2).calibrate(rows(100, 1)).false_alarm_rate_ == 0.2
    assert views.calibrate(days["next"]).false_alarm_rate_ == 0.05


def test_a_table_gives_a_network_times_and_channels(days):
    train, later = days["train"], days["next"]
    network = AutoencoderDetector(max_epochs=1, random_state=0).fit(train.X)
    network.calibrate(later, false_alarm_rate=0.1)
    np.testing.assert_array_equal(network.calibration_scores_, network.score_samples(in_time(later).X))
    assert 0 < len(network.thinned_scores_) < len(later)
    assert network.calibrations_[1].traffic == described_traffic(later)


def test_held_out_scores_of_a_fit_are_kept_and_learned_ones_are_not(network):
    assert len(network.calibration_scores_) == 0
    held_out = AutoencoderDetector(max_epochs=1, false_alarm_rate=0.1, random_state=0).fit(rows(200, 0))
    assert len(held_out.calibration_scores_) == 40
    assert held_out.offset_ == conformal_threshold(held_out.calibration_scores_, 0.1)


# --------------------------------------------------------------------------------------------------------------------
# Several views


def test_views_keep_what_they_have_learned_and_say_anew_how_usual_it_is(views, days):
    flows, scores = in_time(days["next"]), np.empty(300)
    learned = [{name: array.copy() for name, array in view.state().items()} for view in views._views]
    abnormality = [view.observe(flows, view.new_memory()).abnormality for view in views._views]
    views.calibrate(days["next"][::-1])
    for view, before, seen, tails in zip(views._views, learned, abnormality, views._tails, strict=True):
        assert all((array == before[name]).all() for name, array in view.state().items())
        np.testing.assert_array_equal(tails.everything.scores, np.sort(seen))
    # What sets the threshold is judged without itself: every tenth flow by the tails of the others.
    for number in range(10):
        own = np.arange(300) % 10 == number
        scores[own] = -sum(Tail.of(seen[~own]).surprise(seen[own]) for seen in abnormality)
    np.testing.assert_allclose(views.calibration_scores_, scores, rtol=1e-12)
    assert views.offset_ == conformal_threshold(views.calibration_scores_, 0.05)


def test_of_a_foreign_network_the_rate_holds_again(views, days, tmp_path):
    """Its hosts are new to the detector, each of them: that says nothing once it is calibrated there."""
    (tmp_path / "days").write_bytes(capture_of(office(600, 5)))
    flows = SAMPLER.flows(tmp_path / "days")
    for side in ("src", "dst"):
        flows.rows.records[f"{side}_low"] += 7 << 16
    assert (views.predict(flows) == -1).mean() > 0.9
    half, rest = flows[::2], flows[1::2]
    views.calibrate(half)
    assert is_in_band(views.predict(rest), 300, 0.05)


def test_it_scores_as_before_once_the_first_calibration_is_restored(views, days):
    flows = days["next"]
    scores, p_values, offset = views.score_samples(flows), views.p_values(flows), views.offset_
    views.calibrate(flows, false_alarm_rate=0.2)
    assert (views.score_samples(flows) != scores).any()
    assert views.restore_calibration(0) is views
    np.testing.assert_array_equal(views.score_samples(flows), scores)
    np.testing.assert_array_equal(views.p_values(flows), p_values)
    assert (views.offset_, views.active_calibration_, len(views.calibrations_)) == (offset, 0, 2)
    assert views.restore_calibration(1).false_alarm_rate_ == 0.2


def test_a_refused_calibration_changes_nothing(views, days):
    before = views.offset_, views.calibrations_, views.score_samples(days["next"])
    with pytest.raises(ValueError, match=r"false_alarm_rate=0.05 needs at least 19 normal flows.*got 18"):
        views.calibrate(days["next"][:18])
    with pytest.raises(ValueError, match=r"false_alarm_rate must be a number in \(0, 0.5\], got 0.7"):
        views.calibrate(days["next"], false_alarm_rate=0.7)
    with pytest.raises(TypeError, match="X must be a FlowTable"):
        views.calibrate(days["next"].X)
    with pytest.raises(ValueError, match="sample both alike"):
        views.calibrate(FlowSampler(2, 24).flows(days["next"].captures[0]))
    with pytest.raises(ValueError, match="there is no calibration 1: there are 0 to 0"):
        views.restore_calibration(1)
    assert (views.offset_, views.calibrations_) == before[:2]
    np.testing.assert_array_equal(views.score_samples(days["next"]), before[2])


@pytest.mark.parametrize("rate", [0, -1, True, "0.1", float("nan")])
def test_rates_that_are_none_are_refused(network, rate):
    with pytest.raises(ValueError, match="false_alarm_rate must be a number"):
        network.calibrate(rows(100, 1), false_alarm_rate=rate)


def test_an_unfitted_detector_is_not_calibrated(days):
    with pytest.raises(NotFittedError):
        MultiViewDetector().calibrate(days["next"])
    with pytest.raises(NotFittedError):
        AutoencoderDetector().calibrate(rows(100, 1))
    with pytest.raises(NotFittedError):
        MultiViewDetector().restore_calibration(0)


def test_scores_that_are_all_equal_are_named(network):
    with pytest.warns(UserWarning, match="the threshold separates nothing"):
        network.calibrate(np.zeros((100, 12), np.uint8))


def test_old_calibrations_are_dropped_but_for_that_of_the_fit(network):
    for n in range(1, MAX_CALIBRATIONS):
        network.calibrate(rows(99 + n, n))
    with pytest.warns(UserWarning, match=r"calibration 1, of .*, is dropped: 20 are kept"):
        network.calibrate(rows(150, 0))
    assert [found.n_flows for found in network.calibrations_] == [200, *range(101, 99 + MAX_CALIBRATIONS), 150]


def test_a_fit_forgets_calibrations(views, days):
    views.calibrate(days["next"]).provenance_ = {"traffic": None, "settings": {}}
    views.fit(days["train"])
    assert (len(views.calibrations_), views.active_calibration_, views.provenance_) == (1, 0, None)


# --------------------------------------------------------------------------------------------------------------------
# Model files


@pytest.mark.parametrize("kind", ["views", "network"])
def test_calibrations_travel_with_the_model(tmp_path, days, views, network, kind):
    detector, given = (views, days["next"]) if kind == "views" else (network, rows(100, 3))
    more = given if kind == "views" else rows(60, 4)
    detector.calibrate(given).calibrate(more, false_alarm_rate=0.2).restore_calibration(1)
    save_detector(detector, tmp_path / "m")
    loaded = load_detector(tmp_path / "m")
    assert (loaded.offset_, loaded.active_calibration_) == (detector.offset_, 1)
    for number in (0, 1, 2):
        expected, found = (each.restore_calibration(number) for each in (detector, loaded))
        np.testing.assert_array_equal(found.score_samples(given), expected.score_samples(given))
        np.testing.assert_array_equal(found.calibration_scores_, expected.calibration_scores_)
        np.testing.assert_array_equal(found.thinned_scores_, expected.thinned_scores_)
        same = ("date", "offset", "false_alarm_rate", "n_flows", "traffic")
        for name in same:
            assert getattr(found.calibrations_[number], name) == getattr(expected.calibrations_[number], name)


def test_a_threshold_set_by_hand_travels_with_the_model(tmp_path, network):
    network.offset_ = -0.25
    save_detector(network, tmp_path / "m")
    loaded = load_detector(tmp_path / "m")
    assert (loaded.offset_, loaded.restore_calibration(0).offset_) == (-0.25, network.calibrations_[0].offset)


def test_what_it_learned_from_travels_with_the_model(tmp_path, views, days):
    provenance = {"traffic": described_traffic(days["train"]), "settings": {"seed": 3, "views": ["a", "b"], "x": None}}
    save_detector(views, tmp_path / "m", provenance=provenance)
    loaded = load_detector(tmp_path / "m")
    assert loaded.provenance_ == provenance
    save_detector(loaded, tmp_path / "again")
    assert load_detector(tmp_path / "again").provenance_ == provenance


def test_traffic_is_described_without_an_address(days):
    found = described_traffic(days["train"])
    flows = days["train"]
    assert (found["n_flows"], found["n_hosts"], found["n_captures"]) == (300, 5, 1)
    assert found["services"] == [["tcp/80", 150], ["udp/53", 150]]
    assert (found["time_first"], found["time_last"]) == (flows.time_first.min(), flows.time_first.max())
    (capture,) = found["captures"]
    assert (capture["packets"], capture["flows"]) == (flows.counters[0]["packets"], 300)
    assert "10.0" not in json.dumps({**found, "captures": []})


@pytest.mark.parametrize(
    "provenance",
    [
        {}, {"traffic": None}, {"traffic": {}, "settings": {}}, {"traffic": None, "settings": {"x": {}}},
        {"traffic": None, "settings": {"x": "y" * 257}}, {"traffic": None, "settings": {"x": [1] * 101}},
        {"traffic": None, "settings": {}, "code": "import os"}, "office",
    ],
)  # fmt: skip
def test_another_provenance_is_not_saved(tmp_path, network, provenance):
    with pytest.raises(ValueError, match=r"cannot be saved: .*'provenance'"):
        save_detector(network, tmp_path / "m", provenance=provenance)


def set_at(*place):
    """Return a change of a config: the value at a place, ``...`` for the first calibration."""
    *parents, name, value = place

    def change(config):
        for parent in parents:
            config = config["calibrations"][0] if parent is ... else config[parent]
        config[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("calibrations", []), "'calibrations'"),
        (set_at("calibrations", {}), "'calibrations'"),
        (set_at("calibrations", [None]), "'calibrations'"),
        (lambda config: config.update(calibrations=config["calibrations"] * 21), "'calibrations'"),
        (set_at("active_calibration", 1), "'active_calibration'"),
        (set_at("active_calibration", True), "'active_calibration'"),
        (set_at(..., "code", "import os"), "other keys"),
        (set_at(..., "date", "\x1b[31myesterday"), "'date'"),
        (set_at(..., "offset", "0"), "'offset'"),
        (set_at(..., "false_alarm_rate", 0.7), "'false_alarm_rate'"),
        (set_at(..., "n_flows", 0), "'n_flows'"),
        (set_at(..., "n_flows", 299), "more scores than flows"),
        (set_at(..., "traffic", {}), "'traffic'"),
        (set_at(..., "arrays", "thinned", ["F64", 0]), "'arrays.thinned'"),
        (set_at(..., "arrays", "thinned", ["F64", 2**40]), "'arrays.thinned'"),
        (set_at(..., "arrays", "thinned", ["F64", 10**6]), "tensor"),
        (set_at(..., "arrays", "more", ["F64", 1]), "not those of its views"),
        (set_at(..., "arrays", {}), "not those of its views"),
        (set_at("provenance", {"traffic": None, "settings": {"x": {"y": 1}}}), "'provenance'"),
    ],
)
def test_calibrations_that_do_not_fit_are_refused(tmp_path, days, change, message):
    from test_persistence import rewritten

    save_detector(fitted_views(days["train"]), tmp_path / "m")
    path = rewritten(tmp_path / "m", tmp_path / "hostile", lambda config: change(config) and None)
    with pytest.raises(ModelFileError, match=message):
        load_detector(path)


def test_scores_above_what_a_score_can_be_are_refused(tmp_path, network):
    from test_persistence import rewritten

    save_detector(network.calibrate(rows(100, 1)), tmp_path / "m")
    with safetensors.safe_open(tmp_path / "m", "pt") as file:
        assert "calibrations.1.scores" in file.keys()  # noqa: SIM118
    path = rewritten(tmp_path / "m", tmp_path / "h", change_tensors=lambda t: t["calibrations.1.scores"].fill_(1.0))
    with pytest.raises(ModelFileError, match="a calibration is unusable: scores holds numbers out"):
        load_detector(path)
