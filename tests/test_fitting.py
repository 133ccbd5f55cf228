"""How training ends early, goes on, and is resumed; callbacks; options of the training step."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback, EarlyStopping, GradientNormClipping, LRScheduler
from test_persistence import rewritten

from sklearn_docids import AutoencoderDetector, DOCIDSDetector, _sealed, load_detector, save_detector
from sklearn_docids._training import callbacks, checkpoint, net
from sklearn_docids._training.net import PairedNet, WeightedLosses
from sklearn_docids.detectors._templates import draw_templates


def rows(n=40, n_columns=12, seed=0):
    """Target rows around a centre, reference rows of three classes."""
    rng = np.random.default_rng(seed)
    X = (rng.integers(60, 180, n_columns) + rng.integers(-20, 21, (n, n_columns))).astype(np.uint8)
    return X, (rng.integers(0, 256, (30, n_columns), dtype=np.uint8), np.arange(30) % 3)


def detector(**parameters):
    return DOCIDSDetector(**{"max_epochs": 3, "batch_size": 16, "random_state": 0, **parameters})


def weights(fitted):
    return torch.cat([value.flatten().double() for value in fitted.network_.state_dict().values()])


# Early stopping


def test_early_stopping_ends_training_when_nothing_improves():
    X, reference = rows(200)
    settings = {"early_stopping": True, "n_iter_no_change": 3, "tol": 0.01, "schedule": None}
    fitted = detector(max_epochs=200, **settings).fit(X, reference=reference)
    losses = [epoch["validation_loss"] for epoch in fitted.history_]
    assert 5 < fitted.n_iter_ == len(losses) < 200
    assert fitted.history_[0]["pairs"] == 160
    improved, best = [], np.inf
    for loss in losses:
        improved.append(loss < best - 0.01)
        best = loss if improved[-1] else best
    assert not any(improved[-3:])
    assert all(any(improved[i : i + 3]) for i in range(len(improved) - 3))


def test_early_stopping_keeps_the_weights_of_the_best_epoch():
    X, reference = rows(200)
    settings = {"early_stopping": True, "n_iter_no_change": 1000, "tol": 0, "schedule": None, "lr": 0.01}
    fitted = detector(max_epochs=12, **settings).fit(X, reference=reference)
    losses = [epoch["validation_loss"] for epoch in fitted.history_]
    n_best = int(np.argmin(losses)) + 1
    assert n_best < 12
    assert torch.equal(weights(fitted), weights(detector(max_epochs=n_best, **settings).fit(X, reference=reference)))


def test_the_held_out_loss_is_that_of_its_definition():
    X, reference = rows(60)
    fitted = detector(early_stopping=True, max_epochs=1).fit(X, reference=reference)
    rng = np.random.RandomState(fitted._split_seed)
    held_out = X[np.sort(rng.permutation(60)[:12])]
    with torch.no_grad():
        output = fitted.network_(torch.from_numpy(held_out))
        total, _ = WeightedLosses(compactness=0.1, reconstruction=1.0)(output, None)
    assert fitted.history_[0]["validation_loss"] == pytest.approx(float(total), rel=1e-5)


def test_early_stopping_and_threshold_hold_out_different_rows():
    X, reference = rows(200)
    fitted = detector(early_stopping=True, false_alarm_rate=0.05, max_epochs=1).fit(X, reference=reference)
    assert fitted.history_[0]["pairs"] == 200 - 40 - 32


def test_early_stopping_names_too_few_rows():
    X, reference = rows(3)
    with pytest.raises(ValueError, match="early_stopping needs 2 rows to train on and 2 held-out rows"):
        detector(early_stopping=True).fit(X, reference=reference)


# Going on


def test_warm_start_goes_on_from_weights_and_moments():
    X, reference = rows()
    going_on = detector(schedule=None, warm_start=True)
    going_on.fit(X, reference=reference).fit(X, reference=reference)
    at_once = detector(schedule=None, max_epochs=6).fit(X, reference=reference)
    assert torch.equal(weights(going_on), weights(at_once))
    assert going_on.history_ == at_once.history_
    assert going_on.n_iter_ == 6


def test_moments_are_kept_for_a_warm_start_alone():
    X, reference = rows()
    kept, dropped = (detector(warm_start=warm).fit(X, reference=reference) for warm in (True, False))
    assert dropped._moments is None
    assert len(pickle.dumps(kept)) > 2.9 * len(pickle.dumps(dropped))
    going_on = pickle.loads(pickle.dumps(kept))
    assert torch.equal(weights(going_on.fit(X, reference=reference)), weights(kept.fit(X, reference=reference)))


def test_without_warm_start_a_fit_begins_anew():
    X, reference = rows()
    fitted = detector().fit(X, reference=reference)
    before = weights(fitted)
    assert torch.equal(weights(fitted.fit(X, reference=reference)), before)
    assert fitted.n_iter_ == 3


def test_partial_fit_is_an_epoch_of_a_fit_at_a_constant_rate():
    X, reference = rows()
    partly = detector()
    for _ in range(3):
        partly.partial_fit(X, reference=reference)
    assert torch.equal(weights(partly), weights(detector(schedule=None).fit(X, reference=reference)))
    assert [epoch["epoch"] for epoch in partly.history_] == [1, 2, 3]


def test_partial_fit_keeps_the_templates_of_earlier_rows():
    X, reference = rows(310)
    fitted = detector().fit(X[:300], reference=reference)
    before = {flow.tobytes() for flow in fitted.template_flows_}
    fitted.partial_fit(X[300:], reference=reference)
    after = {flow.tobytes() for flow in fitted.template_flows_}
    new = {flow.tobytes() for flow in X[300:]}
    assert len(before) == 149
    assert 149 <= len(after) <= 154
    assert after <= before | new
    assert len(after & new) <= 4  # fewer than half of the new rows: the others set the threshold


def test_partial_fit_goes_on_flagging_the_share_asked_for_of_all_rows_seen():
    X, reference = rows(800)
    strange = (X[400:].astype(int) + 40).astype(np.uint8)  # a second service
    fitted = detector(contamination=0.1, max_epochs=1)
    for _ in range(3):
        fitted.partial_fit(X[:400], reference=reference).partial_fit(strange, reference=reference)
    flagged = [np.mean(fitted.predict(part) == -1) for part in (X[:400], strange)]
    assert np.mean(flagged) == pytest.approx(0.1, abs=0.06)
    assert max(flagged) < 0.3  # neither is forgotten


def test_a_reservoir_holds_every_row_with_the_same_probability():
    counts = np.zeros(60)
    for seed in range(400):
        rng = np.random.RandomState(seed)
        templates, n_seen = None, 0
        for first in (0, 20, 40):
            X = np.arange(first, first + 20)[:, None]
            drawn = draw_templates(X, 8, rng, templates, n_seen)
            templates, n_seen = drawn.templates, n_seen + 20
            assert len(templates) == 8
            assert set(drawn.others[:, 0]) | set(templates[drawn.n_kept :, 0]) == set(X[:, 0])
        counts[templates[:, 0]] += 1
    expected = 400 * 8 / 60
    assert np.abs(counts.reshape(3, 20).mean(axis=1) / expected - 1).max() < 0.06
    assert (
        (counts - expected) ** 2 / expected
    ).sum() < 95  # chi square of 59 degrees of freedom: beyond 95 once in 500


def test_partial_fit_of_a_loaded_detector_goes_on(tmp_path):
    X, reference = rows()
    fitted = detector().fit(X, reference=reference)
    save_detector(fitted, tmp_path / "model")
    loaded = load_detector(tmp_path / "model").partial_fit(X, reference=reference)
    assert torch.equal(weights(loaded), weights(fitted.partial_fit(X, reference=reference)))
    assert loaded.n_iter_ == 4


def test_a_reference_may_lack_classes_later_but_bring_no_new_ones():
    X, (X_reference, y) = rows()
    fitted = detector().partial_fit(X, reference=(X_reference, y))
    fitted.partial_fit(X, reference=(X_reference[y == 1], y[y == 1]))
    assert fitted.reference_classes_.tolist() == [0, 1, 2]
    before = weights(fitted)
    with pytest.raises(ValueError, match=r"classes \[3\] that the first fit did not know"):
        fitted.partial_fit(X, reference=(X_reference, y + 1))
    with pytest.raises(ValueError, match="expecting 12 features"):
        fitted.partial_fit(X[:, 1:], reference=(X_reference, y))
    assert torch.equal(weights(fitted), before)
    assert np.isfinite(fitted.score_samples(X)).all()
    alone = detector(lambda_descriptiveness=0).partial_fit(X)
    with pytest.raises(ValueError, match="the network knows no classes"):
        alone.partial_fit(X, reference=(X_reference, y))


def test_there_is_no_partial_fit_with_early_stopping():
    assert hasattr(detector(), "partial_fit")
    assert not hasattr(detector(early_stopping=True), "partial_fit")


def test_another_optimizer_begins_with_moments_of_its_own():
    X, reference = rows()
    fitted = detector(warm_start=True).fit(X, reference=reference).set_params(optimizer="sgd")
    assert np.isfinite(fitted.fit(X, reference=reference).offset_)
    assert {kind.partition(".")[2] for kind in fitted._moments} == {"momentum_buffer"}


# Checkpoints


class Killed(BaseException):
    """Stands for the end of the process: nothing in the package may catch it."""


class Fault(Callback):
    """Raises at an epoch or step, if `at` says so; a class attribute, because `fit` calls copies."""

    at = None

    def on_epoch_begin(self, net, **kwargs):
        if self.at == ("epoch", net.n_epochs_run):
            raise Killed

    def on_batch_begin(self, net, **kwargs):
        if self.at == ("step", len(net.losses.sizes)):
            raise KeyboardInterrupt


@contextmanager
def killed_at(epoch):
    """End the process, as it were, when an epoch begins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fault, "at", ("epoch", epoch))
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"optimizer": "sgd", "schedule": None},
        {"early_stopping": True, "n_iter_no_change": 4, "tol": 1e-3, "max_epochs": 40},
        {"score_method": "knn", "false_alarm_rate": 0.2, "batch_norm": "joint"},
        {"lambda_descriptiveness": 0.0, "lambda_reconstruction": 0.0},
    ],
)
def test_a_resumed_fit_equals_an_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, parameters):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    X, reference = rows(100)
    parameters = {"max_epochs": 5, **parameters}
    uninterrupted = detector(**parameters).fit(X, reference=reference)
    resumed = detector(checkpoint_folder=tmp_path, callbacks=[Fault()], **parameters)
    for epoch in (2, 2, 4):  # the second comes before anything new is written
        with killed_at(epoch):
            resumed.fit(X, reference=reference)
        assert not hasattr(resumed, "network_")
    assert len(os.listdir(tmp_path)) == 1
    resumed.fit(X, reference=reference)
    assert torch.equal(weights(resumed), weights(uninterrupted))
    assert resumed.history_ == uninterrupted.history_
    assert resumed.offset_ == uninterrupted.offset_
    assert (resumed.score_samples(X) == uninterrupted.score_samples(X)).all()
    assert os.listdir(tmp_path) == []


def test_a_warm_start_is_resumed_too(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    X, reference = rows()
    fits = [detector(warm_start=True).fit(X, reference=reference) for _ in range(2)]
    fits[0].fit(X, reference=reference)
    with killed_at(5):
        fits[1].set_params(checkpoint_folder=tmp_path, callbacks=[Fault()]).fit(X, reference=reference)
    fits[1].fit(X, reference=reference)
    assert torch.equal(weights(fits[0]), weights(fits[1]))
    assert fits[0].history_ == fits[1].history_


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-4},
        {"random_state": 1},
        {"batch_size": 8},
        {"callbacks": [GradientNormClipping(0.1)]},
        "rows",
        "labels",
    ],
)
def test_another_fit_does_not_find_the_checkpoint(tmp_path, monkeypatch, change):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    X, (X_reference, y) = rows()
    with killed_at(2):
        detector(checkpoint_folder=tmp_path, callbacks=[Fault()]).fit(X, reference=(X_reference, y))
    if change == "rows":
        X[0, 0] ^= 1
    if change == "labels":
        y[0] = 1
    parameters = {"callbacks": [Fault()], **(change if isinstance(change, dict) else {})}
    fitted = detector(checkpoint_folder=tmp_path, **parameters).fit(X, reference=(X_reference, y))
    assert torch.equal(weights(fitted), weights(detector(**parameters).fit(X, reference=(X_reference, y))))
    assert len(os.listdir(tmp_path)) == 1


def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    X, reference = rows()
    with killed_at(2):
        detector(checkpoint_folder=tmp_path, callbacks=[Fault()]).fit(X, reference=reference)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    for place in np.random.default_rng(0).integers(0, len(data), 20):
        flipped = bytearray(data)
        flipped[place] ^= 16
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=f"{path.name}: not a usable checkpoint: .*remove the file"):
            detector(checkpoint_folder=tmp_path, callbacks=[Fault()]).fit(X, reference=reference)


@pytest.mark.parametrize(
    "change",
    [
        {"history": 5}, {"history": [5]}, {"history": [{"epoch": "x"}]}, {"n_epochs": "x"}, {"n_epochs": 99},
        {"n_epochs": -1}, {"n_epochs": 99, "history": [{}] * 99}, {"moments": [[]]}, {"moments": ["0.code"]},
        {"snapshot_step": "x"}, {"best_loss": "x"},
        {"n_without": 1.5}, {"format": 2}, {"fingerprint": "0" * 64}, {"code": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_a_well_sealed_checkpoint_of_wrong_fields_is_refused(tmp_path, monkeypatch, change):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    X, reference = rows()
    with killed_at(2):
        detector(checkpoint_folder=tmp_path, callbacks=[Fault()]).fit(X, reference=reference)
    (path,) = tmp_path.iterdir()
    rewritten(path, path, lambda config: config.update(change))
    with pytest.raises(ValueError, match="not a usable checkpoint"):
        detector(checkpoint_folder=tmp_path, callbacks=[Fault()]).fit(X, reference=reference)


def test_a_checkpoint_needs_a_folder_and_a_seed(tmp_path):
    X, reference = rows()
    with pytest.raises(NotADirectoryError, match="nowhere"):
        detector(checkpoint_folder=tmp_path / "nowhere").fit(X, reference=reference)
    with pytest.raises(ValueError, match="checkpoint_folder needs an int as random_state"):
        detector(checkpoint_folder=tmp_path, random_state=None).fit(X, reference=reference)


def test_checkpoints_are_seldom_written(tmp_path, monkeypatch):
    X, reference = rows()
    written = []
    monkeypatch.setattr(_sealed, "write", lambda path, *args: written.append(path))
    detector(checkpoint_folder=tmp_path).fit(X, reference=reference)
    assert written == []


def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(tmp_path):
    code = f"""
        import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        from sklearn_docids._training import checkpoint
        from test_fitting import detector, rows
        checkpoint.SECONDS_BETWEEN_CHECKPOINTS = 0
        X, reference = rows()
        print("begun", flush=True)
        detector(checkpoint_folder={str(tmp_path)!r}, max_epochs=80).fit(X, reference=reference)
    """
    X, reference = rows()
    for n_killed in range(3):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
        process.stdout.readline()
        deadline = time.monotonic() + 30
        while not any(name.endswith(".checkpoint") for name in os.listdir(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2 * n_killed)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert len(os.listdir(tmp_path)) >= 1
    resumed = detector(checkpoint_folder=tmp_path, max_epochs=80).fit(X, reference=reference)
    uninterrupted = detector(max_epochs=80).fit(X, reference=reference)
    assert torch.equal(weights(resumed), weights(uninterrupted))
    assert resumed.history_ == uninterrupted.history_


def test_a_checkpoint_is_there_until_the_fit_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    X, reference = rows()

    class Interrupting(Callback):
        def on_train_end(self, net, **kwargs):  # training is done, the threshold is not set
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector(checkpoint_folder=tmp_path, callbacks=[Interrupting()]).fit(X, reference=reference)
    assert len(os.listdir(tmp_path)) == 1
    with pytest.warns(ConvergenceWarning, match="not finite"):
        detector(checkpoint_folder=tmp_path, optimizer="sgd", lr=1e12, schedule=None).fit(X, reference=reference)
    assert len(os.listdir(tmp_path)) == 1
    detector(checkpoint_folder=tmp_path).fit(X, reference=reference)
    assert len(os.listdir(tmp_path)) == 1  # the one of the fit that was interrupted


def test_a_full_disk_costs_the_checkpoint_not_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    X, reference = rows()
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.warns(UserWarning, match="no checkpoint could be written, training goes on: No space left"):
        fitted = detector(checkpoint_folder=tmp_path).fit(X, reference=reference)
    assert torch.equal(weights(fitted), weights(detector().fit(X, reference=reference)))
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_that_another_process_has_removed_is_the_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    X, reference = rows()

    class Removing(Callback):
        def on_train_end(self, net, **kwargs):
            for path in tmp_path.iterdir():
                path.unlink()

    fitted = detector(checkpoint_folder=tmp_path, callbacks=[Removing()]).fit(X, reference=reference)
    assert torch.equal(weights(fitted), weights(detector().fit(X, reference=reference)))


class Diverging(Fault):
    """Makes a weight infinite in the sixth epoch."""

    def on_batch_end(self, net, **kwargs):
        if net.n_epochs_run == 6:
            with torch.no_grad():
                net.module_.h_c.bias[0] = torch.inf


def test_a_resumed_fit_that_diverges_ends_at_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    monkeypatch.setattr(callbacks, "STEPS_BETWEEN_SNAPSHOTS", 5)
    X, reference = rows()
    message = r"not finite in epoch 6, batch 2 .*the weights of step 15 are kept"
    with pytest.warns(ConvergenceWarning, match=message):
        uninterrupted = detector(max_epochs=8, callbacks=[Diverging()]).fit(X, reference=reference)
    resumed = detector(max_epochs=8, checkpoint_folder=tmp_path, callbacks=[Diverging()])
    with killed_at(5):
        resumed.fit(X, reference=reference)
    with pytest.warns(ConvergenceWarning, match=message):
        resumed.fit(X, reference=reference)
    assert torch.equal(weights(resumed), weights(uninterrupted))


# What an end before the time leaves


def ctrl_c_in_held_out_loss(monkeypatch, n_calls=3):
    calls = []
    original = PairedNet.held_out_loss

    def interrupted(*args):
        calls.append(args)
        if len(calls) == n_calls:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(PairedNet, "held_out_loss", interrupted)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("called", [None, [Callback()]])
def test_ctrl_c_while_held_out_rows_are_looked_at_is_an_interruption(monkeypatch, called):
    ctrl_c_in_held_out_loss(monkeypatch)
    X, reference = rows()
    fitted = detector(early_stopping=True, callbacks=called, max_epochs=20)
    with pytest.raises(KeyboardInterrupt, match="fitted as far as it came"):
        fitted.fit(X, reference=reference)
    assert fitted.interrupted_
    assert np.isfinite(fitted.score_samples(X)).all()


def test_ctrl_c_is_not_lost_where_warnings_are_errors(monkeypatch):
    ctrl_c_in_held_out_loss(monkeypatch)
    X, reference = rows()
    fitted = detector(early_stopping=True, max_epochs=20)
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(X, reference=reference)
    assert fitted.interrupted_


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_warm_start_after_divergence_begins_with_moments_of_its_own(optimizer):
    X, reference = rows()
    fitted = detector(warm_start=True, optimizer=optimizer, schedule=None, lr=1e12 if optimizer == "sgd" else 1e30)
    with pytest.warns(ConvergenceWarning, match="not finite"):
        fitted.fit(X, reference=reference)
    fitted.set_params(lr=1e-3).fit(X, reference=reference)
    assert torch.isfinite(weights(fitted)).all()


@pytest.mark.parametrize("name", ["lambda_descriptiveness", "lambda_compactness", "lambda_reconstruction"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_loss_can_be_switched_on_later(name, optimizer):
    X, reference = rows()
    fitted = detector(warm_start=True, optimizer=optimizer, **{name: 0.0}).fit(X, reference=reference)
    fitted.set_params(**{name: 1.0}).fit(X, reference=reference)
    assert fitted.n_iter_ == 6


def test_fits_that_go_on_hold_out_the_same_rows():
    class Seen(Callback):
        def on_train_begin(self, net, X=None, **kwargs):
            self.rows = {flow.tobytes() for flow in X.arrays[0]}

    X, reference = rows(100)
    fitted = detector(warm_start=True, false_alarm_rate=0.1, random_state=None, callbacks=[Seen()])
    trained_on = [fitted.fit(X, reference=reference).callbacks_[0].rows for _ in range(3)]
    assert len(trained_on[0]) == 80
    assert trained_on == [trained_on[0]] * 3


def test_weights_that_leave_nothing_to_train_are_refused():
    X, reference = rows()
    off = {"lambda_compactness": 0.0, "lambda_reconstruction": 0.0}
    with pytest.raises(ValueError, match="nothing is left to train"):
        detector(lambda_descriptiveness=0.0, **off).fit(X, reference=reference)
    with pytest.raises(ValueError, match="early_stopping watches the target losses"):
        detector(early_stopping=True, **off).fit(X, reference=reference)


def test_an_infinite_loss_of_held_out_rows_stops_training(monkeypatch, tmp_path):
    X, reference = rows()
    losses = iter([1.0, np.inf])
    monkeypatch.setattr(PairedNet, "held_out_loss", lambda *args: next(losses))
    with pytest.warns(ConvergenceWarning, match="the loss of held-out rows is not finite in epoch 2; training stops"):
        fitted = detector(early_stopping=True, max_epochs=5).fit(X, reference=reference)
    save_detector(fitted, tmp_path / "model")


@pytest.mark.parametrize("name", ["descriptiveness", "compactness", "reconstruction"])
def test_a_loss_of_weight_0_is_not_computed_and_the_history_says_0(name, monkeypatch):
    def computed(*args):
        raise AssertionError(f"{name} was computed")

    monkeypatch.setattr(net, f"{name}_loss", computed)
    X, reference = rows()
    fitted = detector(**{f"lambda_{name}": 0.0}).fit(X, reference=reference)
    assert [epoch[f"{name}_loss"] for epoch in fitted.history_] == [0.0] * 3


def test_no_gradients_stay_behind():
    X, reference = rows()
    assert all(parameter.grad is None for parameter in detector().fit(X, reference=reference).network_.parameters())


# The other detectors


def test_the_autoencoders_share_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    X, reference = rows(100)
    settings = {"max_epochs": 4, "batch_size": 16, "random_state": 0}
    plain = AutoencoderDetector(**settings).fit(X)
    assert torch.equal(weights(AutoencoderDetector(**settings).fit(X, reference=reference)), weights(plain))
    going_on = AutoencoderDetector(**{**settings, "max_epochs": 2}, schedule=None, warm_start=True).fit(X).fit(X)
    assert torch.equal(weights(going_on), weights(AutoencoderDetector(**settings, schedule=None).fit(X)))
    stopped = AutoencoderDetector(**settings, early_stopping=True, callbacks=[Counting()]).fit(X)
    assert set(stopped.history_[0]) == {"epoch", "pairs", "reconstruction_loss", "validation_loss"}
    assert stopped.callbacks_[0].heard == ["epoch"] * 4 + ["end"]
    resumed = AutoencoderDetector(**settings, checkpoint_folder=tmp_path, callbacks=[Fault()])
    with killed_at(3):
        resumed.fit(X)
    assert torch.equal(weights(resumed.fit(X)), weights(plain))
    assert plain.partial_fit(X).n_iter_ == 5


# What the caller has told torch


def test_types_and_modes_of_the_caller_do_not_matter(tmp_path):
    X, reference = rows()
    expected = detector().fit(X, reference=reference)
    save_detector(expected, tmp_path / "model")
    torch.set_default_dtype(torch.float64)
    try:
        fitted = detector().fit(X, reference=reference)
        assert fitted.network_.h_c.weight.dtype == torch.float32
        assert load_detector(tmp_path / "model").score_samples(X) == pytest.approx(expected.score_samples(X), rel=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            fitted = detector().fit(X, reference=reference)
            loaded = load_detector(tmp_path / "model")
            assert torch.equal(weights(fitted), weights(expected))
            assert (loaded.score_samples(X) == expected.score_samples(X)).all()
            assert (fitted.explain(X) == expected.explain(X)).all()


def test_what_the_caller_has_set_for_the_whole_process_neither_matters_nor_changes(tmp_path):
    """In a process of its own: some of it cannot be taken back. A tensor on the device "meta" holds nothing."""
    code = f"""
        import pickle, sys; sys.path.insert(0, {os.path.dirname(__file__)!r})
        import numpy as np, torch
        from test_fitting import detector, rows
        from sklearn_docids import ConvAutoencoderDetector, DOCFeatures, load_detector, save_detector
        X, reference = rows()

        def results():
            for settings in ({{}}, {{"score_method": "reconstruction", "optimizer": "sgd", "early_stopping": True}}):
                fitted = detector(**settings).fit(X, reference=reference)
                save_detector(fitted, {str(tmp_path / "model")!r})
                for each in (fitted, load_detector({str(tmp_path / "model")!r}), pickle.loads(pickle.dumps(fitted))):
                    yield from (each.score_samples(X), each.explain(X), each.embed(X), each.offset_)
            yield detector().partial_fit(X, reference=reference).partial_fit(X, reference=reference).score_samples(X)
            yield ConvAutoencoderDetector(max_epochs=1, random_state=0).fit(X).score_samples(X)
            yield DOCFeatures(max_epochs=1, random_state=0).fit(X, reference=reference).transform(X)

        def state():
            modes = torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()
            numbers = torch.get_num_threads(), torch.get_float32_matmul_precision()
            return torch.get_default_device(), torch.get_default_dtype(), modes, numbers, torch.random.initial_seed()

        expected = list(results())
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        torch.set_grad_enabled(False)
        before = state()
        for found, wanted in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
            assert state() == before
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, timeout=300)


# Callbacks


class Recorder(Callback):
    """Class attributes, because `fit` calls copies."""

    seen: list = []  # noqa: RUF012

    def on_batch_end(self, net, loss=None, **kwargs):
        self.seen.append(("batch", float(loss.detach())))

    def on_epoch_end(self, net, **kwargs):
        losses = net.history[:, "train_loss"]
        assert net.history[-1, "train_loss_best"] == (losses.index(min(losses)) == len(losses) - 1)
        self.seen.append(("epoch", losses[-1]))


def test_skorch_callbacks_are_called_with_the_losses():
    X, reference = rows()
    Recorder.seen = []
    fitted = detector(callbacks=[Recorder()], max_epochs=2).fit(X, reference=reference)
    assert [kind for kind, _ in Recorder.seen] == ["batch"] * 3 + ["epoch"] + ["batch"] * 3 + ["epoch"]
    epoch = fitted.history_[0]
    total = epoch["descriptiveness_loss"] + 0.1 * epoch["compactness_loss"] + epoch["reconstruction_loss"]
    assert Recorder.seen[3][1] == pytest.approx(total, rel=1e-5)
    assert np.average([loss for _, loss in Recorder.seen[:3]], weights=[16, 16, 8]) == pytest.approx(total, rel=1e-5)


def test_callbacks_change_nothing_and_are_not_changed():
    X, reference = rows()
    callback = Recorder()
    with_callback = detector(callbacks=[callback]).fit(X, reference=reference)
    assert torch.equal(weights(with_callback), weights(detector().fit(X, reference=reference)))
    assert with_callback.callbacks == [callback]
    assert vars(callback) == {}


def test_a_skorch_callback_can_stop_training_which_is_no_interruption():
    X, reference = rows()
    stop = EarlyStopping("train_loss", patience=2, threshold=1e9, threshold_mode="abs", sink=lambda text: None)
    fitted = detector(callbacks=[stop], max_epochs=50).fit(X, reference=reference)
    assert fitted.n_iter_ == 3  # the first epoch is the best, two follow
    assert not fitted.interrupted_


def test_a_callback_of_a_users_own_can_stop_training():
    class StopAtTwo(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                net.stop_training()

    X, reference = rows()
    assert detector(callbacks=[StopAtTwo()], max_epochs=9).fit(X, reference=reference).n_iter_ == 2


class Counting(Callback):
    """As most callbacks are written: state set in the constructor, none of it a parameter."""

    def __init__(self):
        self.heard = []

    def on_epoch_end(self, net, **kwargs):
        self.heard.append("epoch")

    def on_train_end(self, net, **kwargs):
        self.heard.append("end")


def test_an_ordinary_callback_is_called_and_what_it_recorded_is_there():
    X, reference = rows()
    given = Counting()
    fitted = detector(callbacks=[given], max_epochs=2).fit(X, reference=reference)
    assert [callback.heard for callback in fitted.callbacks_] == [["epoch", "epoch", "end"]]
    assert given.heard == []
    assert fitted.partial_fit(X, reference=reference).callbacks_[0].heard == ["epoch", "end"]
    assert detector().fit(X, reference=reference).callbacks_ == []


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_callbacks_are_told_of_the_end_of_training_that_was_interrupted(monkeypatch):
    X, reference = rows()
    heard = []
    monkeypatch.setattr(Counting, "on_train_end", lambda self, net, **kwargs: heard.append(net.n_epochs_run))
    monkeypatch.setattr(Fault, "at", ("step", 2))
    with pytest.raises(KeyboardInterrupt):
        detector(callbacks=[Counting(), Fault()]).fit(X, reference=reference)
    monkeypatch.setattr(Fault, "at", ("epoch", 2))
    with pytest.raises(Killed):
        detector(callbacks=[Counting(), Fault()]).fit(X, reference=reference)
    assert heard == [1, 2]


def test_partial_fit_calls_callbacks_too():
    X, reference = rows()
    Recorder.seen = []
    detector(callbacks=[Recorder()]).partial_fit(X, reference=reference)
    assert [kind for kind, _ in Recorder.seen] == ["batch"] * 3 + ["epoch"]


def test_callbacks_that_cannot_work_are_refused():
    X, reference = rows()
    with pytest.raises(ValueError, match="callbacks must be a list of skorch callbacks, got a function"):
        detector(callbacks=[lambda net: None]).fit(X, reference=reference)
    with pytest.raises(ValueError, match="callbacks has an LRScheduler, and schedule='one_cycle'"):
        detector(callbacks=[LRScheduler()]).fit(X, reference=reference)
    stepped = detector(callbacks=[LRScheduler("StepLR", step_size=1)], schedule=None).fit(X, reference=reference)
    assert not torch.equal(weights(stepped), weights(detector(schedule=None).fit(X, reference=reference)))


def test_a_model_file_has_no_callbacks(tmp_path):
    X, reference = rows()
    fitted = detector(callbacks=[Recorder()], checkpoint_folder=tmp_path).fit(X, reference=reference)
    save_detector(fitted, tmp_path / "m")
    loaded = load_detector(tmp_path / "m")
    assert (loaded.callbacks, loaded.checkpoint_folder) == (None, None)


sklearn_callback = pytest.importorskip("sklearn.callback", reason="needs scikit-learn 1.9")


class Tasks:
    """A callback by scikit-learn's protocol, which stops after an epoch."""

    def __init__(self, last_epoch=None):
        self.last_epoch = last_epoch
        self.calls = []

    def setup(self, estimator, context):
        self.calls.append("setup")

    def teardown(self, estimator, context):
        self.calls.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None):
        self.calls.append(("begin", context.task_name, context.task_id, len(X)))

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.calls.append(("end", context.task_name, context.task_id, fitted_estimator))
        return context.task_name == "epoch" and context.task_id == self.last_epoch


def test_scikit_learn_callbacks_see_fit_and_epochs_and_can_stop():
    X, reference = rows()
    tasks = Tasks(last_epoch=1)
    fitted = detector(max_epochs=9).set_callbacks(tasks).fit(X, reference=reference)
    assert fitted.n_iter_ == 2
    assert [call if isinstance(call, str) else call[:3] for call in tasks.calls] == [
        "setup", ("begin", "fit", 0), ("begin", "epoch", 0), ("end", "epoch", 0), ("begin", "epoch", 1),
        ("end", "epoch", 1), ("end", "fit", 0), "teardown",
    ]  # fmt: skip
    assert tasks.calls[1][3] == 40
    after_first, after_second = tasks.calls[3][3], tasks.calls[5][3]
    assert (after_second.score_samples(X) == fitted.score_samples(X)).all()
    assert after_second.offset_ == fitted.offset_
    assert after_first.n_iter_ == 1
    assert (after_first.score_samples(X) != fitted.score_samples(X)).all()


def test_scikit_learn_callbacks_hear_the_end_of_a_fit_that_diverged():
    X, reference = rows()
    tasks = Tasks()
    with pytest.warns(ConvergenceWarning, match="not finite"):
        detector(optimizer="sgd", schedule=None, lr=1e12).set_callbacks(tasks).fit(X, reference=reference)
    ended = [call[1:3] for call in tasks.calls if call[0] == "end"]
    assert ended == [("epoch", 0), ("fit", 0)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scikit_learn_callbacks_hear_the_end_of_a_fit_that_was_interrupted(monkeypatch):
    X, reference = rows()
    tasks = Tasks()
    monkeypatch.setattr(Fault, "at", ("step", 2))
    with pytest.raises(KeyboardInterrupt):
        detector(callbacks=[Fault()]).set_callbacks(tasks).fit(X, reference=reference)
    assert [call[1:3] for call in tasks.calls if call[0] == "end"] == [("epoch", 0), ("fit", 0)]


def test_scikit_learn_callbacks_are_called_in_partial_fit():
    X, reference = rows()
    tasks = Tasks()
    fitted = detector().set_callbacks(tasks).partial_fit(X, reference=reference)
    assert [call[:2] for call in tasks.calls if call[0] == "end"] == [("end", "epoch"), ("end", "fit")]
    assert (tasks.calls[-2][3].score_samples(X) == fitted.score_samples(X)).all()


def test_looking_at_a_half_trained_detector_changes_nothing():
    X, reference = rows()
    watched = detector().set_callbacks(Tasks()).fit(X, reference=reference)
    assert torch.equal(weights(watched), weights(detector().fit(X, reference=reference)))


def test_scoring_monitor_logs_a_score_per_epoch():
    pytest.importorskip("pandas")
    from sklearn_docids.metrics import attack_roc_auc_score

    X, reference = rows()
    y = np.where(np.arange(40) % 4, 1, -1)
    monitor = sklearn_callback.ScoringMonitor(
        scoring=lambda fitted, X, y: {"auc": attack_roc_auc_score(y, fitted.score_samples(X))}
    )
    fitted = detector().set_callbacks(monitor).fit(X, y, reference=reference)
    logged = [row["auc"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(logged) == 3
    assert logged[-1] == attack_roc_auc_score(y, fitted.score_samples(X))


# The training step


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_graphics_card_computes_nearly_the_same(optimizer):
    X, reference = rows()
    on_cpu = detector(device="cpu", optimizer=optimizer).fit(X, reference=reference)
    on_card = detector(device="cuda", optimizer=optimizer).fit(X, reference=reference)
    assert on_card.history_[0]["reconstruction_loss"] == pytest.approx(
        on_cpu.history_[0]["reconstruction_loss"], rel=1e-2
    )
    np.testing.assert_allclose(on_card.score_samples(X), on_cpu.score_samples(X), rtol=0.05)


@pytest.mark.parametrize("n_steps", [10, 100, 500])
def test_the_one_cycle_rate_is_that_of_torch(n_steps):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=n_steps, cycle_momentum=False)
    expected = []
    for _ in range(n_steps - 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    ours = [callbacks.one_cycle(step, n_steps, 1e-3) for step in range(n_steps - 1)]
    # Ours takes the middle of each step, torch the beginning: at most a step of the steep side apart.
    assert ours == pytest.approx(expected, abs=1e-3 * 6 / n_steps)
    assert 0 < min(ours) <= max(ours) <= 1e-3


def test_a_single_step_trains_at_a_rate_worth_the_name():
    assert callbacks.one_cycle(0, 1, 1e-3) > 5e-4


def test_losses_that_overflow_after_a_while_are_reported_with_their_place():
    X, reference = rows()

    with pytest.warns(ConvergenceWarning, match=r"not finite in epoch 1, batch [23] \(descriptiveness_loss"):
        fitted = detector(optimizer="sgd", schedule=None, lr=1e12).fit(X, reference=reference)
    assert len(fitted.history_) == 1
    assert torch.isfinite(weights(fitted)).all()
