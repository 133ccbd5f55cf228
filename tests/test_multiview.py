"""`MultiViewDetector`: its views against their slow twins, its calibration by time, and what it refuses."""

import itertools
import warnings

import naive_views
import numpy as np
import pytest
from captures import pcap, udp
from office import burst, capture_of, office
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline
from sklearn.utils._testing import ignore_warnings
from sklearn.utils.estimator_checks import (
    check_estimator_cloneable,
    check_estimator_repr,
    check_get_params_invariance,
    check_mixin_order,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)

from sklearn_docids import DOCIDSDetector, FlowSampler, MultiViewDetector
from sklearn_docids._views import network
from sklearn_docids._views.content import ContentView
from sklearn_docids._views.novelty import NoveltyView
from sklearn_docids._views.requests import RequestsView
from sklearn_docids._views.statistics import StatisticsView
from sklearn_docids._views.tails import MIN_GROUP, Tail, Tails
from sklearn_docids.detectors import ScoreStream
from sklearn_docids.plotting import ViewsDisplay

SIMPLE = ("statistics", "requests", "novelty", "content")


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Return training flows, and others: normal ones, a burst of guesses, and a flow to a new port."""
    folder = tmp_path_factory.mktemp("office")
    strange = ([udp(9, 8443, b"?", src="10.0.0.2", dst="10.0.9.9")], [1300.0])
    (folder / "train").write_bytes(capture_of(office(300, 0)))
    (folder / "test").write_bytes(capture_of([*office(200, 1, 400), *burst(60, 1200.0), strange]))
    sampler = FlowSampler(layout="payload")
    return sampler.flows(folder / "train"), sampler.flows(folder / "test")


@pytest.fixture(scope="module")
def fitted(tables):
    return MultiViewDetector(views=SIMPLE, false_alarm_rate=0.02, random_state=0).fit(tables[0])


def by_view(detector, flows):
    """Return what each view of a detector observes of flows in order of time."""
    return {view.name: view.observe(flows, view.new_memory()).abnormality for view in detector._views}


def is_burst(flows):
    return (flows.src_port >= 30_000) & (flows.src_port < 31_000)


# --------------------------------------------------------------------------------------------------------------------
# Views against their twins


@pytest.mark.parametrize(
    ("view", "twin"),
    [
        (NoveltyView("n"), naive_views.novelty),
        (RequestsView("r"), naive_views.requests),
        (StatisticsView("s"), naive_views.statistics_distance),
    ],
)
def test_views_without_memory_are_their_twins(tables, view, twin):
    train, test = tables
    rng = np.random.RandomState(0)
    view.prepare(train, rng)
    view.fit(train, rng)
    np.testing.assert_allclose(view.observe(test, None).abnormality, twin(train, test), rtol=1e-9, atol=1e-12)


def test_content_is_its_twin(tables):
    train, test = tables
    view, rng = ContentView("c"), np.random.RandomState(0)
    view.prepare(train, rng)
    view.fit(train, rng)
    clusterings = [(found.centers, found.most) for found in view.clusterings]
    expected = naive_views.content_excess(test, clusterings)
    np.testing.assert_allclose(view.observe(test, view.new_memory()).abnormality, expected, rtol=1e-9, atol=1e-9)


def test_the_counts_of_content_that_are_normal_are_quantiles_of_training(tables):
    train, _ = tables
    view, rng = ContentView("c"), np.random.RandomState(0)
    view.prepare(train, rng)
    view.fit(train, rng)
    zero = [(found.centers, np.zeros_like(found.most)) for found in view.clusterings[:1]]
    # Without what was normal, the largest count over sides and half-lives is left.
    largest = naive_views.content_excess(train, zero)
    assert view.clusterings[0].most.max() <= max(largest) + 1e-9
    assert view.clusterings[0].most.max() >= np.quantile(largest, 0.9)


@pytest.mark.parametrize("n_normal", [1, 5, 400])
def test_surprise_is_its_twin(n_normal):
    rng = np.random.default_rng(n_normal)
    normal = rng.normal(size=n_normal)
    scores = np.concatenate([normal[:20], rng.normal(size=50), [5.0, 9.0, -9.0]])
    tail = Tail.of(normal)
    below = scores <= normal.max()
    expected = np.array([naive_views.surprise(normal.tolist(), score) for score in scores[below]])
    np.testing.assert_allclose(tail.surprise(scores[below]), expected, rtol=1e-12)
    if n_normal > 1:
        expected = [naive_views.surprise(normal.tolist(), score) for score in scores[~below]]
        np.testing.assert_allclose(tail.surprise(scores[~below]), expected, rtol=1e-12)


def test_scores_beyond_every_normal_one_are_still_ranked():
    tail = Tail.of(np.zeros(100))
    np.testing.assert_allclose(tail.surprise(np.array([0.0, 1.0, 2.0])), [0, np.log(101) + 1, np.log(101) + 2])


def test_equal_scores_make_tails_that_can_be_stored():
    for value in (0.1, 1 / 3, 7.3):
        scores = np.concatenate([[0.0], np.full(99, value)])
        tails = Tails.of(scores, None)
        assert tails.everything.scale == pytest.approx(np.std(scores))
        assert Tails.restored(tails.state()).everything.scale == tails.everything.scale


def test_a_group_with_enough_normal_flows_has_a_tail_of_its_own():
    scores = np.concatenate([np.zeros(MIN_GROUP), np.ones(MIN_GROUP - 1), np.full(MIN_GROUP, 2.0)])
    groups = np.repeat([7, 8, 9], [MIN_GROUP, MIN_GROUP - 1, MIN_GROUP])
    tails = Tails.of(scores, groups)
    assert set(tails.of_group) == {7, 9}
    found = tails.surprise(np.array([1.0, 1.0, 1.0, 1.0]), np.array([7, 8, 9, 1]))
    n, pooled = len(scores), 2 * MIN_GROUP - 1
    assert found == pytest.approx([np.log(MIN_GROUP + 1) + 1, *[-np.log((pooled + 1) / (n + 1))], 0.0, found[1]])


# --------------------------------------------------------------------------------------------------------------------
# The whole


def test_it_finds_what_no_single_flow_shows(tables, fitted):
    _, test = tables
    verdicts = fitted.predict(test)
    flagged = verdicts == -1
    assert flagged[is_burst(test)][10:].all()
    assert flagged[test.dst_port == 8443].all()
    normal = ~is_burst(test) & (test.dst_port != 8443)
    assert flagged[normal].mean() < 0.05


def test_scores_are_fishers_sums_of_the_p_values(tables, fitted):
    _, test = tables
    p_values = fitted.p_values(test)
    assert p_values.shape == (len(test), 4)
    assert ((p_values > 0) & (p_values <= 1)).all()
    scores = fitted.score_samples(test)
    np.testing.assert_allclose(scores, np.log(p_values).sum(axis=1), rtol=1e-9)
    assert (scores <= 0).all()
    np.testing.assert_array_equal(fitted.decision_function(test), scores - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(test), np.where(scores >= fitted.offset_, 1, -1))


def test_power_weighs_the_views_against_each_other(tables, fitted):
    train, test = tables
    other = clone(fitted).set_params(power=2.0).fit(train)
    np.testing.assert_allclose(other.score_samples(test), -(np.log(fitted.p_values(test)) ** 2).sum(axis=1), rtol=1e-9)


def test_a_stream_of_flows_one_by_one_is_scored_as_the_table(tables, fitted):
    _, test = tables
    order = np.argsort(test.time_first, kind="stable")
    stream = fitted.stream()
    assert isinstance(stream, ScoreStream)
    one_by_one = np.concatenate([stream.score_samples(test[row]) for row in order])
    np.testing.assert_allclose(one_by_one, fitted.score_samples(test)[order], rtol=1e-12)


def test_one_pass_over_a_stream_gives_scores_p_values_and_reasons(tables, fitted):
    flows = tables[1]
    stream = fitted.stream()
    both = [stream.judge(flows[rows]) for rows in (slice(130), slice(130, None))]
    scores, p_values = (np.concatenate([getattr(one, name) for one in both]) for name in ("scores", "p_values"))
    np.testing.assert_allclose(scores, fitted.score_samples(flows), rtol=1e-12)
    np.testing.assert_allclose(p_values, fitted.p_values(flows), rtol=1e-12)
    found = [[reason.text for reason in one.reasons(row)] for one in both for row in range(len(one.scores))]
    assert found == [[reason.text for reason in reasons] for reasons in fitted.explain(flows)]


def test_the_order_of_rows_does_not_matter(tables, fitted):
    train, test = tables
    mixed = np.random.default_rng(0).permutation(len(test))
    np.testing.assert_array_equal(fitted.score_samples(test[mixed]), fitted.score_samples(test)[mixed])
    again = clone(fitted).fit(train[::-1])
    np.testing.assert_allclose(again.score_samples(test), fitted.score_samples(test), rtol=1e-9)


def test_reasons_say_what_is_abnormal(tables, fitted):
    _, test = tables
    reasons = fitted.explain(test)
    assert len(reasons) == len(test)
    (row,) = np.flatnonzero(test.dst_port == 8443)
    assert [reason.text for reason in reasons[row] if reason.view == "novelty"] == [
        "udp/8443 was never a destination here"
    ]
    guess = reasons[np.flatnonzero(is_burst(test))[-1]]
    texts = {reason.view: reason.text for reason in guess}
    assert texts["content"] == "58 flows like this from 10.0.0.1 in 60 s; normal are at most 1.0"
    assert texts["requests"].startswith("the request begins 'POST /login?~~%%': ")
    assert all(a.p_value <= b.p_value for of_flow in reasons for a, b in itertools.pairwise(of_flow))
    np.testing.assert_array_equal([len(of_flow) for of_flow in reasons], (fitted.p_values(test) <= 0.05).sum(axis=1))


def test_calibration_by_blocks_scores_each_block_by_views_of_the_others(tables, fitted):
    train, _ = tables
    order = np.argsort(train.time_first, kind="stable")
    flows, blocks = train[order], np.arange(len(train)) * 4 // len(train)
    expected = np.full(len(train), np.nan)
    for block in range(4):
        expected[blocks == block] = naive_views.novelty(flows[blocks != block], flows[blocks == block])
    place = fitted.view_names_.index("novelty")
    np.testing.assert_array_equal(fitted._tails[place].everything.scores, np.sort(expected))


def test_calibration_by_later_flows_never_learns_them(tables):
    train, _ = tables
    order = np.argsort(train.time_first, kind="stable")
    detector = MultiViewDetector(
        views=("novelty", "statistics"), calibration="later", calibration_share=0.4, random_state=0
    ).fit(train)
    earlier, later = train[order[:180]], train[order[180:]]
    np.testing.assert_array_equal(
        detector._tails[0].everything.scores, np.sort(naive_views.novelty(earlier, later)).astype(float)
    )
    assert len(detector.calibration_scores_) == 120


def test_the_threshold_holds_its_rate_on_later_normal_flows(tables, tmp_path):
    train, test = tables
    (tmp_path / "later").write_bytes(capture_of(office(300, 3)))
    later = FlowSampler(layout="payload").flows(tmp_path / "later")
    detector = MultiViewDetector(views=SIMPLE, false_alarm_rate=0.05, random_state=0).fit(train)
    assert (detector.calibration_scores_ < detector.offset_).mean() <= 0.05
    normal = test[~is_burst(test) & (test.dst_port != 8443)]
    # Counts of flows alike are few and come in bursts: in ten minutes of traffic they are not quite those of training.
    assert 0.01 < np.mean([(detector.predict(flows) == -1).mean() for flows in (normal, later)]) < 0.1


def test_a_seed_decides_everything(tables, fitted):
    train, test = tables
    np.testing.assert_array_equal(clone(fitted).fit(train).score_samples(test), fitted.score_samples(test))
    np.testing.assert_array_equal(
        clone(fitted).set_params(n_jobs=2).fit(train).score_samples(test), fitted.score_samples(test)
    )


def test_the_bytes_are_a_view_of_docids(tables):
    train, test = tables
    labels = np.where(train.dst_port == 80, "web", "dns")
    detector = MultiViewDetector(
        views=("bytes", "novelty"), detector=DOCIDSDetector(max_epochs=1), false_alarm_rate=0.05, random_state=0
    )
    detector.fit(train, reference=(train, labels))
    assert detector.view_names_ == ["bytes", "novelty"]
    assert detector.detector.random_state is None
    places = detector.detector_.class_scores(train.X)
    distances = np.sqrt(((detector.detector_.class_scores(test.X)[:, None] - places) ** 2).sum(axis=2))
    expected = np.sort(distances, axis=1)[:, 19]
    np.testing.assert_allclose(by_view(detector, test)["bytes"], expected, rtol=1e-6)
    rows = clone(detector).fit(train, reference=(train.X, labels))
    np.testing.assert_array_equal(rows.score_samples(test), detector.score_samples(test))


def test_a_view_of_ones_own_is_any_outlier_detector(tables):
    train, test = tables
    own = ("forest", IsolationForest(n_estimators=20), ["payload_backward", "payload_lengths"])
    detector = MultiViewDetector(views=(own, "novelty"), false_alarm_rate=0.05, random_state=0).fit(train)
    forest = detector._views[0].detector
    columns = np.column_stack([test.payload_backward, test.payload_lengths])
    np.testing.assert_array_equal(by_view(detector, test)["forest"], -forest.score_samples(columns))
    assert detector.explain(test[test.dst_port == 8443])[0][0].view == "novelty"


def test_context_is_a_column_of_a_view_of_ones_own(tables):
    train, test = tables
    own = ("counts", IsolationForest(n_estimators=20), ["source_flows_10", "channel_flows_1"])
    detector = MultiViewDetector(views=(own,), false_alarm_rate=0.05, random_state=0).fit(train)
    order = np.argsort(test.time_first, kind="stable")
    stream = detector.stream()
    one_by_one = np.concatenate([stream.score_samples(test[row]) for row in order])
    np.testing.assert_allclose(one_by_one, detector.score_samples(test)[order], rtol=1e-12)
    assert detector.score_samples(test)[is_burst(test)][30:].max() < np.median(detector.score_samples(train))


# --------------------------------------------------------------------------------------------------------------------
# Beside scikit-learn


# The others of `check_estimator` give X as an array of numbers, which a table of flows is not.
@pytest.mark.parametrize(
    "check",
    [
        check_estimator_cloneable,
        check_estimator_repr,
        check_get_params_invariance,
        check_mixin_order,
        check_no_attributes_set_in_init,
        check_set_params,
        check_valid_tag_types,
    ],
)
@ignore_warnings
def test_estimator_checks_that_give_no_array(check):
    check("MultiViewDetector", MultiViewDetector())


def test_it_can_be_made_with_defaults():
    check_parameters_default_constructible("MultiViewDetector", MultiViewDetector())


def test_it_works_behind_a_sampler_and_in_a_search(tables, tmp_path):
    train, _ = tables
    (tmp_path / "a").write_bytes(capture_of(office(300, 4)))
    sampler = FlowSampler(layout="payload", output="flows")
    pipeline = Pipeline([("sampler", sampler), ("detector", MultiViewDetector(views=("statistics",), random_state=0))])
    verdicts = pipeline.fit(tmp_path / "a").predict(tmp_path / "a")
    assert verdicts.shape == (300,)

    def normal_score(detector, flows, y=None):
        return float((detector.predict(flows) == 1).mean())

    search = GridSearchCV(
        MultiViewDetector(views=("novelty", "statistics"), false_alarm_rate=0.05, random_state=0),
        {"power": [1.0, 2.0]}, scoring=normal_score, cv=KFold(2),
    )  # fmt: skip
    search.fit(train)
    assert 0.5 < search.best_score_ <= 1
    assert search.best_estimator_.score_samples(train).shape == (300,)


# --------------------------------------------------------------------------------------------------------------------
# Bad input


def test_rows_of_bytes_are_no_table(tables, fitted):
    with pytest.raises(TypeError, match="X must be a FlowTable, got ndarray: FlowSampler"):
        MultiViewDetector().fit(tables[0].X)
    with pytest.raises(TypeError, match="X must be a FlowTable"):
        fitted.score_samples(tables[0].X)


def test_views_of_payload_need_its_rows(tmp_path, fitted):
    (tmp_path / "a").write_bytes(capture_of(office(300, 5)))
    packets = FlowSampler().flows(tmp_path / "a")
    with pytest.raises(ValueError, match=r"the views requests, content need payload rows, but X has layout='packets'"):
        MultiViewDetector(views=SIMPLE).fit(packets)
    MultiViewDetector(views=("statistics", "novelty")).fit(packets)
    with pytest.raises(ValueError, match=r"layout='packets', but the detector was fitted on .* with layout='payload'"):
        fitted.score_samples(packets)


def test_too_few_flows_for_the_rate_are_refused(tables):
    train, _ = tables
    with pytest.raises(ValueError, match=r"need 999 normal flows to calibrate with, but X leaves 300"):
        MultiViewDetector(views=("novelty",), false_alarm_rate=0.001).fit(train)
    for few in (0, 1):
        with pytest.raises(ValueError, match=f"but X leaves {few}"):
            MultiViewDetector(views=("novelty",), false_alarm_rate=0.5).fit(train[:few])
    with pytest.raises(ValueError, match="X leaves 75"):
        MultiViewDetector(views=("novelty",), calibration="later").fit(train)


def test_without_a_reference_the_bytes_are_left_out(tables):
    with pytest.warns(UserWarning, match="fit without a reference: the view 'bytes' is left out"):
        detector = MultiViewDetector(false_alarm_rate=0.02, random_state=0).fit(tables[0])
    assert detector.view_names_ == list(SIMPLE)


def test_of_too_few_flows_for_a_network_the_bytes_are_left_out(tables, monkeypatch):
    train, _ = tables
    monkeypatch.setattr(network, "MIN_FLOWS", 301)
    detector = MultiViewDetector(views=("bytes", "statistics"), false_alarm_rate=0.02, random_state=0)
    with pytest.warns(UserWarning, match="the view 'bytes' is left out: its network would learn 300 flows by heart"):
        detector.fit(train, reference=(train, train.dst_port))
    assert detector.view_names_ == ["statistics"]
    assert detector.detector_ is None


def test_a_threshold_that_separates_nothing_is_said(tables):
    with pytest.warns(UserWarning, match="the threshold separates nothing: all 300 scores that set it are 0"):
        MultiViewDetector(views=("novelty",), false_alarm_rate=0.02, random_state=0).fit(tables[0])


def test_a_minute_of_training_counts_over_shorter_times_alone(tables):
    train, test = tables
    minute = train[train.time_first < train.time_first.min() + 45 * 10**9]
    with pytest.warns(UserWarning, match=r"spans 4\d(\.\d)? s, .* counts flows over 1, 10 s alone"):
        detector = MultiViewDetector(views=("content",), false_alarm_rate=0.2, random_state=0).fit(minute)
    assert np.isfinite(detector.score_samples(test)).all()


def test_flows_all_alike_and_times_of_1970_are_normal(tmp_path):
    packets = [udp(10_000 + i, 53, b"same") for i in range(150)]
    (tmp_path / "a").write_bytes(pcap(packets, times=[0.0] * 150))
    flows = FlowSampler(layout="payload").flows(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all of it within 0 s
        detector = MultiViewDetector(views=SIMPLE, random_state=0).fit(flows)
    assert np.isfinite(detector.score_samples(flows)).all()
    assert (detector.predict(flows[:50]) == 1).all()


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (("bites",), "a view is one of bytes, statistics, requests, novelty, content or"),
        ((), "views must be one or more"),
        (("novelty", "novelty"), "of different names"),
        ((("bytes", IsolationForest(), ["dst_port"]),), "needs a name of its own"),
        ((("own", IsolationForest, ["dst_port"]),), "no detector|clone|fit"),
        ((("own", object(), ["dst_port"]),), "an outlier detector with fit and score_samples"),
        ((("own", IsolationForest(), ["dst_prt"]),), r"the view 'own' needs the columns \['dst_prt'\]"),
        ((("own", IsolationForest(), "dst_port"),), "needs a list of names of columns"),
        ((("own", IsolationForest(), ["src_ip"]),), "the column 'src_ip' holds no numbers"),
    ],
)
def test_views_that_are_none_are_refused(tables, views, message):
    with pytest.raises((ValueError, TypeError), match=message):
        MultiViewDetector(views=views).fit(tables[0])


class Broken(IsolationForest):
    def fit(self, X, y=None):
        raise RuntimeError("no memory left")


class NotANumber(IsolationForest):
    def score_samples(self, X):
        return np.full(len(X), np.nan)


def test_a_detector_of_ones_own_that_fails_is_named(tables):
    with pytest.raises(RuntimeError, match="no memory left") as raised:
        MultiViewDetector(views=(("own", Broken(), ["dst_port"]),)).fit(tables[0])
    assert raised.value.__notes__ == ["in fit of the view 'own', Broken on ['dst_port']"]
    with pytest.raises(ValueError, match="the view 'own': its detector gave scores that are not one number per flow"):
        MultiViewDetector(views=(("own", NotANumber(), ["dst_port"]),)).fit(tables[0])


def test_a_fit_that_fails_leaves_no_half_of_a_detector(tables, fitted):
    detector = clone(fitted).fit(tables[0])
    with pytest.raises(ValueError, match="power"):
        detector.set_params(power=0.5).fit(tables[0])
    assert not [name for name in vars(detector) if name.endswith("_") and not name.startswith("__")]


def test_no_flows_have_no_scores(tables, fitted):
    none = tables[1][:0]
    assert fitted.score_samples(none).shape == (0,)
    assert fitted.p_values(none).shape == (0, 4)
    assert fitted.explain(none) == []


def test_the_views_of_a_flow_are_drawn_with_their_reasons(tables, fitted):
    _, test = tables
    (row,) = np.flatnonzero(test.dst_port == 8443)
    display = ViewsDisplay.from_estimator(fitted, test, int(row))
    widths = [bar.get_width() for bar in display.ax_.patches]
    np.testing.assert_allclose(widths, 1 / fitted.p_values(test)[row])
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == list(SIMPLE)
    assert "udp/8443 was never a destination here" in [text.get_text() for text in display.ax_.texts]


@pytest.mark.parametrize("size", [(7, 4), (6.4, 4.8), (3, 2), (1.2, 1.2)])
def test_reasons_stay_between_their_bar_and_the_next(size):
    figure_module = pytest.importorskip("matplotlib.figure")
    reasons = dict.fromkeys(["statistics", "requests", "novelty"], "a reason of many words " * 30)
    ax = figure_module.Figure(figsize=size).subplots()
    display = ViewsDisplay.from_predictions([0.1, 0.01, 0.2, 0.5], [*reasons, "content"], reasons, ax=ax)
    display.figure_.canvas.draw()
    bars = [bar.get_window_extent() for bar in ax.patches]
    texts = [text.get_window_extent() for text in ax.texts]
    for bar, text, following in zip(bars, texts, bars[1:], strict=False):
        assert bar.y0 + 1 > text.y1 > text.y0 > following.y1 - 1


@pytest.mark.parametrize("p_values", [[0.5], [0.5, 0.0], [0.5, 1.5], [0.5, np.nan]])
def test_what_is_no_p_value_of_each_view_is_not_drawn(p_values):
    with pytest.raises(ValueError, match="p_values must be 2 numbers above 0 and at most 1"):
        ViewsDisplay.from_predictions(p_values, ["novelty", "content"])


def test_a_statistic_that_never_varied_has_no_spread_of_rounding(tmp_path):
    packets = [udp(10_000 + i, 53, b"same") for i in range(1000)]
    (tmp_path / "a").write_bytes(pcap(packets, times=[float(i) for i in range(1000)]))
    flows = FlowSampler(layout="payload").flows(tmp_path / "a")
    view = StatisticsView("s")
    view.fit(flows, np.random.RandomState(0))
    np.testing.assert_array_equal(view.spread, 1.0)
