"""Scores in brief: what threshold they give, how calibrations of many sensors become one, and files of strangers."""

import base64
import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from office import capture_of, office

from sklearn_docids import AutoencoderDetector, FlowSampler, MultiViewDetector, load_detector, save_detector
from sklearn_docids import _score_sketch as module
from sklearn_docids._thresholds import conformal_threshold
from sklearn_docids.cli import main
from sklearn_docids.monitoring import ScoreSketch

datasketches = pytest.importorskip("datasketches")
MANY = 400_000


def exponential(n, seed=0):
    return -np.random.default_rng(seed).exponential(size=n)


@pytest.fixture(scope="module")
def many():
    """Return two sketches that hold a part of their scores, and all scores."""
    scores = exponential((2, MANY))
    return [ScoreSketch("m").update(some) for some in scores], scores.ravel()


def copied(sketch):
    return ScoreSketch(sketch.model).merge(sketch)


# --------------------------------------------------------------------------------------------------------------------
# Thresholds


@given(st.lists(st.integers(-5, 0), min_size=2, max_size=60), st.sampled_from([0.5, 0.37, 0.1, 0.05]))
def test_few_scores_give_their_own_threshold(scores, rate):
    sketch = ScoreSketch().update(np.array(scores, float))
    if int(rate * (len(scores) + 1) + 1e-9) < 1:
        with pytest.raises(ValueError, match=f"at least .* scores, not {len(scores)}"):
            sketch.threshold(rate)
    else:
        assert sketch.threshold(rate) == conformal_threshold(np.array(scores, float), rate)


def test_sixty_thousand_scores_are_all_held():
    scores = exponential(60_000)
    sketch = ScoreSketch().update(scores)
    assert sketch.rank_error == 0
    assert all(sketch.threshold(rate) == conformal_threshold(scores, rate) for rate in (0.5, 0.01, 0.00123, 1e-4, 2e-5))


@pytest.mark.parametrize("rate", [0.1, 0.01, 0.001])
def test_of_many_scores_it_flags_no_more_than_asked_for_and_hardly_less(many, rate):
    (first, second), scores = many
    both = copied(first).merge(second)
    assert both.n_scores == len(scores) == 2 * MANY
    assert 0 < both.rank_error < 5e-5
    share = (scores < both.threshold(rate)).mean()
    # The error holds in 99 of 100 sketches; twice that on each side, so that the test stays green.
    assert rate - 3 * both.rank_error <= share <= rate + both.rank_error


def test_a_rate_below_the_error_is_refused(many):
    (sketch, _), _ = many
    with pytest.raises(ValueError, match=r"rate of 1e-05 is below the error of the sketch, 4\.\de-05"):
        sketch.threshold(1e-5)


def test_quantiles_are_a_fair_part_of_the_scores(many):
    (sketch, _), scores = many
    found = sketch.quantiles(1000)
    assert (np.diff(found) >= 0).all()
    expected = np.quantile(scores[:MANY], (np.arange(1000) + 0.5) / 1000)
    np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=3 * sketch.rank_error)
    assert ScoreSketch().update(exponential(5)).quantiles().tolist() == sorted(exponential(5))
    assert ScoreSketch().quantiles().tolist() == []


@pytest.mark.parametrize("scores", [[np.nan], [-np.inf], [[-1.0]], -1.0])
def test_what_is_no_score_is_refused(scores):
    with pytest.raises(ValueError, match="finite numbers in one dimension"):
        ScoreSketch().update(scores)


# --------------------------------------------------------------------------------------------------------------------
# Merging


def test_scores_of_different_models_are_not_mixed():
    first, second = ScoreSketch("a").update([-1.0]), ScoreSketch("b").update([-2.0])
    with pytest.raises(ValueError, match="different models cannot be put together: a here, b there"):
        first.merge(second)
    assert first.n_scores == 1


def test_the_other_sketch_stays_as_it_is(many):
    (first, second), _ = many
    before = second.threshold(0.01)
    copied(first).merge(second)
    assert (second.n_scores, second.threshold(0.01)) == (MANY, before)


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    """Return paths of captures, their flows, and a detector fitted on the first."""
    folder, sampler = tmp_path_factory.mktemp("week"), FlowSampler(layout="payload", output="flows")
    paths = [folder / f"{day}.pcap" for day in ("mon", "tue", "wed")]
    for seed, path in enumerate(paths):
        path.write_bytes(capture_of(office(300, seed)))
    flows = [sampler.flows(path) for path in paths]
    detector = MultiViewDetector(views=("statistics", "novelty"), false_alarm_rate=0.05, random_state=0).fit(flows[0])
    save_detector(detector, folder / "office.model", sampler)
    return folder, paths, flows


def test_a_detector_takes_the_threshold_of_a_sketch_and_leaves_the_rest(week, tmp_path):
    folder, _, flows = week
    detector = load_detector(folder / "office.model")
    scores = np.concatenate([detector.score_samples(some) for some in flows[1:]])
    thinned = detector.thinned_scores_
    detector.calibrate(ScoreSketch().update(scores), false_alarm_rate=0.02)
    assert detector.offset_ == conformal_threshold(scores, 0.02)
    assert detector.false_alarm_rate_ == 0.02
    np.testing.assert_array_equal(detector.calibration_scores_, np.sort(scores))
    np.testing.assert_array_equal(detector.thinned_scores_, thinned)
    np.testing.assert_array_equal(detector.score_samples(flows[1]), scores[: len(flows[1])])
    save_detector(detector, tmp_path / "again")
    assert load_detector(tmp_path / "again").offset_ == detector.offset_
    before = detector.calibrations_[0].offset
    assert detector.restore_calibration(0).offset_ == before


def test_a_network_takes_it_too():
    X = np.random.default_rng(0).integers(0, 256, size=(200, 12), dtype=np.uint8)
    detector = AutoencoderDetector(max_epochs=1, random_state=0).fit(X[:100])
    scores = detector.score_samples(X[100:])
    detector.calibrate(ScoreSketch().update(scores), false_alarm_rate=0.1)
    assert detector.offset_ == conformal_threshold(scores, 0.1)


def test_too_few_scores_change_nothing(week):
    detector = load_detector(week[0] / "office.model")
    before = detector.offset_
    with pytest.raises(ValueError, match="needs at least 99 normal flows to calibrate with, got 3"):
        detector.calibrate(ScoreSketch().update([-1.0, -2.0, -3.0]), false_alarm_rate=0.01)
    assert (detector.offset_, len(detector.calibrations_)) == (before, 1)


def test_sensors_calibrate_one_model_together(week, tmp_path, capsys):
    folder, paths, flows = week
    model, merged = folder / "office.model", tmp_path / "merged.model"
    for path in paths[1:]:
        sketch = tmp_path / f"{path.stem}.sketch"
        assert main(["calibrate", str(model), str(path), "--sketch", str(sketch), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["n_scores"] == 300
    sketches = [str(tmp_path / f"{day}.sketch") for day in ("tue", "wed")]
    assert main(["calibrate", str(model), "--merge", *sketches, "-o", str(merged), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    detector = load_detector(model)
    scores = np.concatenate([detector.score_samples(some) for some in flows[1:]])
    assert found["n_flows"] == 600
    assert found["offset"] == conformal_threshold(scores, 0.05) == load_detector(merged).offset_


def test_a_sketch_of_another_model_is_refused(week, tmp_path, capsys):
    model, sketch = week[0] / "office.model", tmp_path / "a.sketch"
    ScoreSketch("another").update(exponential(300)).save(sketch)
    assert main(["calibrate", str(model), "--merge", str(sketch), "-o", str(tmp_path / "new")]) == 1
    assert f"{sketch}: its scores are of another model, or of another calibration" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--merge", "a.sketch", "--list"], "one of the four; given: --list, --merge"),
        (["--sketch", "a.sketch"], "given: none"),
        (["--list", "--sketch", "a.sketch"], "--sketch is of no use with --list"),
        (["CAPTURE", "--sketch", "a.sketch", "-o", "new"], "--output is of no use with --sketch"),
        (["CAPTURE", "--sketch", "a.sketch", "--false-alarm-rate", "0.1"], "--false-alarm-rate is of no use with --sk"),
        (["CAPTURE", "--sketch", "MODEL"], "is an input of this command, and would be lost"),
        (["--merge", "MODEL"], "no sketch of scores"),
    ],
)
def test_what_does_not_go_together_is_refused(week, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    names = {"CAPTURE": str(week[1][1]), "MODEL": str(week[0] / "office.model")}
    assert main(["calibrate", names["MODEL"], *(names.get(option, option) for option in options)]) in (1, 2)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasketches", None)
    with pytest.raises(ImportError, match="a sketch of scores needs the package datasketches: pip install"):
        ScoreSketch()


# --------------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("n", [0, 1, 2, 300, MANY])
def test_a_file_holds_the_sketch(tmp_path, n):
    sketch = ScoreSketch("m").update(exponential(n))
    sketch.save(tmp_path / "s")
    found = ScoreSketch.load(tmp_path / "s")
    assert (found.model, found.n_scores, found.rank_error) == ("m", n, sketch.rank_error)
    np.testing.assert_array_equal(found.quantiles(100), sketch.quantiles(100))
    assert (tmp_path / "s").stat().st_size < 2_200_000
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def changed(**fields):
    return lambda config: json.dumps({**config, **fields}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: b"", "Expecting value"),
        (lambda config: b"[" * 100_000, "recursion"),
        (lambda config: b"[]", "something else"),
        (lambda config: json.dumps({**config, "more": 1}).encode(), "something else"),
        (lambda config: json.dumps(config).encode().ljust(2**23 + 1), "something else"),
        (changed(format=2), "format 2, this version reads 1"),
        (changed(model=1), "something else"),
        (changed(n_scores=301), "another number of scores"),
        (changed(n_scores=True), "another number of scores"),
        (changed(kll="é"), "ASCII"),
        (changed(kll=[]), "bytes-like"),
        (changed(kll=""), "unpack"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    ScoreSketch("m").update(exponential(300)).save(tmp_path / "s")
    (tmp_path / "s").write_bytes(change(json.loads((tmp_path / "s").read_bytes())))
    with pytest.raises(ValueError, match=f"s: no sketch of scores: .*{message}"):
        ScoreSketch.load(tmp_path / "s")


# The library reads beyond the end of bytes that lie about themselves, and the process ends. Small sketches have all
# kinds of levels, too.
@pytest.fixture
def small_sketches(monkeypatch):
    monkeypatch.setattr(module, "K", 50)
    return [ScoreSketch().update(exponential(n))._sketch.serialize() for n in (0, 1, 2, 40, 300, 5000, 100_000)]


def passes(kll):
    try:
        module.check_kll(kll)
    except (ValueError, struct.error):
        return False
    return True


def assert_works(kll):
    sketch = datasketches.kll_doubles_sketch.deserialize(kll)
    assert sketch.serialize() == kll or sketch.is_empty()
    other = datasketches.kll_doubles_sketch(module.K)
    other.update(exponential(1000))
    other.merge(sketch)
    assert other.n == sketch.n + 1000
    assert np.isfinite(other.get_quantile(0.5))


def test_whole_sketches_pass(small_sketches):
    for kll in small_sketches:
        assert passes(kll)
        assert_works(kll)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_sketches_are_refused_or_work(small_sketches, data):
    whole = data.draw(st.sampled_from(small_sketches))
    n_bytes = data.draw(st.integers(0, len(whole) - 1))
    assert not passes(whole[:n_bytes])
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(whole), 60) - 1))
        changed[at : at + 4] = data.draw(st.sampled_from([b"\0", b"\xff" * 4, b"\0\0\0\x80", b"\x01\0\0\0"]))
    for each in (bytes(changed), bytes(changed[:n_bytes])):
        if passes(each):
            assert_works(each)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, b"\x02", "head is damaged"),
        (2, b"\x07", "another kind"),
        (3, b"\x80", "another kind"),
        (4, b"\x10\0", "another kind"),
        (8, b"\0" * 8, "as many scores"),
        (16, b"\x10\0", "head is damaged"),
        (18, b"\xff", "head is damaged"),
        (20, b"\0\0\0\0", "cut, or longer"),
        (-8, struct.pack("<d", np.nan), "out of range"),
        (-8, struct.pack("<d", -1e300), "out of range"),
    ],
)
def test_lies_are_named(small_sketches, place, value, message):
    kll = bytearray(small_sketches[-1])
    place %= len(kll)
    kll[place : place + len(value)] = value
    with pytest.raises(ValueError, match=message):
        module.check_kll(bytes(kll))


def test_scores_out_of_order_are_refused(small_sketches):
    kll = bytearray(small_sketches[-1])
    kll[-16:] = kll[-8:] + kll[-16:-8]
    with pytest.raises(ValueError, match="out of order"):
        module.check_kll(bytes(kll))


def test_the_file_is_that_of_the_library(tmp_path):
    ScoreSketch().update(exponential(300)).save(tmp_path / "s")
    kll = base64.b64decode(json.loads((tmp_path / "s").read_bytes())["kll"])
    assert datasketches.kll_doubles_sketch.deserialize(kll).n == 300
