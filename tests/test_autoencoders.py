"""The paper's two baselines: their networks, what their scores mean, and that they behave as the detector does."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch.callbacks import Callback

from sklearn_docids import AutoencoderDetector, ConvAutoencoderDetector, DOCIDSDetector, load_detector, save_detector
from sklearn_docids._network.autoencoders import CODE_CHANNELS, ConvAutoencoder, DenseAutoencoder
from sklearn_docids._network.scoring import CHUNK_ROWS
from sklearn_docids.detectors._rows import hold_out

BASELINES = [AutoencoderDetector, ConvAutoencoderDetector]
baselines = pytest.mark.parametrize("baseline", BASELINES)
rng = np.random.default_rng(0)
X = rng.integers(0, 256, (80, 24), dtype=np.uint8)


@parametrize_with_checks([baseline(max_epochs=2) for baseline in BASELINES], xfail_strict=True)
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)  # raises where the estimator does not do as scikit-learn asks


def test_dense_autoencoder_has_the_layers_of_the_papers_own():
    sizes = [tuple(layer.weight.shape) for layer in DenseAutoencoder(320, 255.0).modules() if hasattr(layer, "weight")]
    assert sizes == [(128, 320), (64, 128), (128, 64), (320, 128)]


@pytest.mark.parametrize("n_columns", [1, 2, 5, 319, 320, 321])
def test_convolutional_autoencoder_halves_the_row(n_columns):
    network = ConvAutoencoder(n_columns, 255.0)
    flows = torch.zeros((3, n_columns), dtype=torch.uint8)
    assert network(flows).reconstruction.shape == (3, n_columns)
    n_positions = network.code(flows).shape[1] / CODE_CHANNELS
    assert n_columns / 8 <= n_positions <= n_columns / 8 + 2


@baselines
def test_score_is_the_mean_squared_error_of_the_network(baseline):
    detector = baseline(max_epochs=2, random_state=0).fit(X)
    with torch.no_grad():
        output = detector.network_(torch.from_numpy(X))
    rows, reconstruction = output.target_features.numpy(), output.reconstruction.numpy()
    np.testing.assert_allclose(rows, X / 255, rtol=1e-6)
    errors = ((rows.astype(np.float64) - reconstruction) ** 2).mean(axis=1)
    np.testing.assert_allclose(detector.reconstruction_error(X), errors, rtol=1e-4)
    np.testing.assert_array_equal(detector.score_samples(X), -detector.reconstruction_error(X))
    np.testing.assert_allclose(detector.explain(X).sum(axis=(1, 2)), errors, rtol=1e-4)


@baselines
def test_training_lowers_the_error_and_strange_rows_stay_high(baseline):
    normal = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (600, 1)) + rng.integers(0, 12, (600, 24), dtype=np.uint8)
    detector = baseline(max_epochs=60, random_state=0).fit(normal[:500])
    losses = [epoch["reconstruction_loss"] for epoch in detector.history_]
    assert losses[-1] < losses[0] / 5
    assert detector.score_samples(X).max() < detector.score_samples(normal[500:]).min()
    assert (detector.predict(X) == -1).all()


@baselines
def test_score_does_not_depend_on_the_flows_beside(baseline):
    detector = baseline(max_epochs=1, random_state=0).fit(X)
    many = np.tile(X, (CHUNK_ROWS // len(X) + 2, 1))
    alone = np.array([detector.score_samples(X[i : i + 1])[0] for i in range(5)])
    np.testing.assert_array_equal(detector.score_samples(many)[:5], alone)
    np.testing.assert_array_equal(detector.score_samples(many)[-len(X) :][:5], alone)


def test_of_wide_rows_fewer_are_scored_at_a_time_and_alike():
    """A model file of 32 KB may ask for rows of 65,536 bytes: 256 of them at a time would take 4 GB."""
    wide = rng.integers(0, 256, (40, 8192), dtype=np.uint8)
    detector = ConvAutoencoderDetector(max_epochs=1, random_state=0).fit(wide[:2])
    alone = [detector.score_samples(wide[i : i + 1])[0] for i in (0, 39)]
    np.testing.assert_array_equal(detector.score_samples(wide)[[0, 39]], alone)


@baselines
def test_fits_are_equal_with_equal_seeds_and_leave_torchs_generator_alone(baseline):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = baseline(max_epochs=2, random_state=5).fit(X).score_samples(X)
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(baseline(max_epochs=2, random_state=5).fit(X).score_samples(X), first)
    assert not np.array_equal(baseline(max_epochs=2, random_state=6).fit(X).score_samples(X), first)


@baselines
def test_threshold_by_held_out_rows(baseline):
    detector = baseline(max_epochs=2, random_state=0, false_alarm_rate=0.25).fit(X)
    split_seed = np.random.RandomState(0).randint(2**31 - 1, size=2)[0]
    _, held_out = hold_out(X, 0.2, np.random.RandomState(split_seed))
    assert len(held_out) == 16
    assert detector.offset_ == np.sort(detector.score_samples(held_out))[3]  # a quarter of 17 may be below it
    n_pairs = [epoch["pairs"] for epoch in detector.history_]
    assert n_pairs == [64, 64]  # the others were trained on
    with pytest.raises(ValueError, match="contamination and false_alarm_rate"):
        baseline(false_alarm_rate=0.25, contamination=0.1).fit(X)
    with pytest.raises(ValueError, match="needs at least 999 held-out rows"):
        baseline(false_alarm_rate=0.001).fit(X)


@baselines
def test_saved_and_loaded_scores_are_equal_to_the_bit(baseline, tmp_path):
    detector = baseline(max_epochs=1, random_state=0, contamination=0.1).fit(X)
    save_detector(detector, tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    assert type(loaded) is baseline
    assert loaded.get_params() == detector.get_params()
    assert loaded.history_ == detector.history_
    np.testing.assert_array_equal(loaded.decision_function(X), detector.decision_function(X))
    save_detector(loaded, tmp_path / "again")
    again = load_detector(tmp_path / "again")
    np.testing.assert_array_equal(again.decision_function(X), detector.decision_function(X))


def test_a_model_of_one_kind_is_not_read_as_another(tmp_path):
    from test_persistence import rewritten

    save_detector(AutoencoderDetector(max_epochs=1, random_state=0).fit(X), tmp_path / "model")
    changes = [{"estimator": wrong} for wrong in ("ConvAutoencoderDetector", "IsolationForest", 3, ["DOCIDSDetector"])]
    for change in (*changes, {"classes": ["a", "b"]}, {"arrays": {"templates": ["F64", 3, 2]}}):
        path = rewritten(tmp_path / "model", tmp_path / "changed", lambda config, change=change: config.update(change))
        with pytest.raises(ValueError, match="not a usable DOC-IDS model"):
            load_detector(path)


@baselines
def test_changed_after_fit_is_not_saved(baseline, tmp_path):
    detector = baseline(max_epochs=1, random_state=0).fit(X).set_params(scale=1.0)
    with pytest.raises(ValueError, match="'scale'"):
        save_detector(detector, tmp_path / "model")


@baselines
def test_non_finite_loss_keeps_finite_weights(baseline):
    detector = baseline(max_epochs=9, batch_size=8, lr=1e20, schedule=None, optimizer="sgd", random_state=0)
    with pytest.warns(ConvergenceWarning, match="not finite.*the weights of step 0 are kept"):
        detector.fit(X)
    assert all(bool(torch.isfinite(value).all()) for value in detector.network_.state_dict().values())
    assert np.isfinite(detector.score_samples(X)).all()
    huge = X.astype(np.float64) * 1e30
    with pytest.raises(ValueError, match="scores of the training rows are not finite"):
        baseline(max_epochs=3, lr=1e30, schedule=None, optimizer="sgd", random_state=0).fit(huge)


class Interrupting(Callback):
    """Presses Ctrl-C in the fourth step."""

    def on_batch_begin(self, net, **kwargs):
        if len(net.losses.sizes) == 3:
            raise KeyboardInterrupt


@baselines
def test_ctrl_c_leaves_a_usable_detector(baseline):
    detector = baseline(max_epochs=9, batch_size=8, random_state=0, callbacks=[Interrupting()])
    with pytest.warns(ConvergenceWarning, match="interrupted"), pytest.raises(KeyboardInterrupt):
        detector.fit(X)
    assert detector.interrupted_
    assert np.isfinite(detector.decision_function(X)).all()


@baselines
def test_fit_inside_inference_mode(baseline):
    expected = baseline(max_epochs=1, random_state=0).fit(X).score_samples(X)
    with torch.inference_mode():
        found = baseline(max_epochs=1, random_state=0).fit(X).score_samples(X)
    np.testing.assert_array_equal(found, expected)


@baselines
def test_search_over_parameters_in_a_pipeline(baseline):
    pipeline = make_pipeline(FunctionTransformer(), baseline(max_epochs=1, random_state=0))
    name = baseline.__name__.lower()

    def mean_score(estimator, rows, y=None):
        return float(estimator.score_samples(rows).mean())

    search = GridSearchCV(pipeline, {f"{name}__max_epochs": [1, 20]}, scoring=mean_score, cv=2, error_score="raise")
    assert search.fit(X).best_params_ == {f"{name}__max_epochs": 20}


@baselines
def test_columns_that_are_no_packets_are_refused_by_explain(baseline):
    detector = baseline(max_epochs=1, random_state=0).fit(X)
    assert detector.explain(X, n_packets=3).shape == (80, 3, 8)
    with pytest.raises(ValueError, match="24 columns, which do not divide into n_packets=5"):
        detector.explain(X, n_packets=5)


def test_same_interface_as_the_detector():
    public = {name for name in dir(AutoencoderDetector) if not name.startswith("_")}
    assert public == {name for name in dir(ConvAutoencoderDetector) if not name.startswith("_")}
    of_the_detector = {name for name in dir(DOCIDSDetector) if not name.startswith("_")}
    assert public <= of_the_detector
    assert of_the_detector - public <= {
        "class_scores",
        "to_onnx",
        "most_similar_templates",
        "templates_",
        "template_flows_",
    }
