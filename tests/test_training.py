"""Paired mini-batches, the composite loss, and what training leaves untouched."""

import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive_network import plain_network, plain_step, scaled, weights_as_plain

from sklearn_docids import DOCIDSDetector, _training
from sklearn_docids._network import DOCIDSNetwork, PairOutput
from sklearn_docids._training import (
    CompositeLoss,
    PairedBatches,
    PairedFlows,
    TrainingSettings,
    batch_bounds,
    make_net,
)


@given(st.integers(2, 300), st.integers(2, 40))
def test_batches_walk_the_target_once_and_have_two_rows_or_more(n_rows, batch_size):
    bounds = batch_bounds(n_rows, batch_size)
    assert [i for first, last in bounds for i in range(first, last)] == list(range(n_rows))
    sizes = [last - first for first, last in bounds]
    assert min(sizes) >= 2
    assert max(sizes) <= batch_size + 1


def paired(n_target=50, counts=(5, 100, 20), batch_size=16):
    target = np.arange(n_target * 4, dtype=np.uint8).reshape(n_target, 4)
    labels = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(1).permutation(len(labels))
    reference = np.column_stack([labels, labels, labels, labels]).astype(np.uint8)[order]
    return PairedFlows(target, reference, labels[order]), batch_size


def test_an_epoch_sees_each_target_row_once_with_as_many_reference_rows():
    flows, batch_size = paired()
    batches = list(PairedBatches(flows, batch_size, seed=0, n_epoch=0))
    assert sorted(b for batch, _ in batches for b in batch["target"][:, 0].tolist()) == sorted(
        flows.target[:, 0].tolist()
    )
    assert all(len(batch["target"]) == len(batch["reference"]) == len(labels) for batch, labels in batches)


def test_reference_rows_carry_their_own_labels_and_classes_are_balanced():
    flows, batch_size = paired()
    iterator = PairedBatches(flows, batch_size, seed=0, n_epoch=0)
    drawn = [(batch["reference"], labels) for _ in range(200) for batch, labels in iterator]
    assert all((rows[:, 0] == labels).all() for rows, labels in drawn)
    shares = np.bincount(torch.cat([labels for _, labels in drawn]).numpy()) / sum(len(labels) for _, labels in drawn)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.02)


def test_bytes_stay_bytes_up_to_the_network():
    flows, batch_size = paired()
    batch, _ = next(iter(PairedBatches(flows, batch_size, seed=0, n_epoch=0)))
    assert batch["target"].dtype == batch["reference"].dtype == torch.uint8


def test_rows_on_a_device_give_the_batches_of_rows_in_memory(monkeypatch):
    rng = np.random.default_rng(0)
    target, reference = rng.integers(0, 256, (2, 50, 12), dtype=np.uint8)
    labels = rng.integers(0, 3, 50)
    in_memory = list(PairedBatches(PairedFlows(target, reference, labels), 16, seed=1, n_epoch=2))
    monkeypatch.setattr(_training, "resident", lambda rows, device: torch.from_numpy(rows))
    on_device = list(PairedBatches(PairedFlows(target, reference, labels), 16, seed=1, n_epoch=2))
    for (ours, our_labels), (theirs, their_labels) in zip(in_memory, on_device, strict=True):
        assert torch.equal(ours["target"], theirs["target"])
        assert torch.equal(ours["reference"], theirs["reference"])
        assert torch.equal(our_labels, their_labels)


def output(seed=0):
    torch.manual_seed(seed)
    return PairOutput(*(torch.randn(6, n, requires_grad=True) for n in (256, 3, 256, 3)))


@pytest.mark.parametrize("switched_off", range(3))
def test_a_weight_of_zero_switches_its_loss_off_exactly(switched_off):
    weights = [1.0, 0.1, 10.0]
    weights[switched_off] = 0.0
    out = output()
    total, terms = CompositeLoss(*weights, detach_target=False)(out, torch.arange(6) % 3)
    assert float(total.detach()) == pytest.approx(
        sum(w * t.item() for w, t in zip(weights, terms, strict=True)), rel=1e-6
    )
    total.backward()
    inputs = (out.reference_class_scores, out.target_class_scores, out.reconstruction)
    assert [tensor.grad is None for tensor in inputs] == [i == switched_off for i in range(3)]


@pytest.mark.parametrize("detach_target", [True, False])
def test_detach_target_keeps_the_reconstruction_loss_from_its_goal(detach_target):
    out = output()
    CompositeLoss(0, 0, 1, detach_target)(out, torch.arange(6) % 3)[0].backward()
    assert (out.target_features.grad is None) == detach_target


def tiny(seed=0, n=40, n_columns=12):
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 256, (n, n_columns), dtype=np.uint8)
    return X, (rng.integers(0, 256, (30, n_columns), dtype=np.uint8), np.arange(30) % 3)


def test_global_random_state_is_left_alone():
    X, reference = tiny()
    np.random.seed(5)
    torch.manual_seed(5)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    DOCIDSDetector(max_epochs=1, random_state=0).fit(X, reference=reference).score_samples(X)
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_global_random_state_does_not_matter():
    X, reference = tiny()
    scores = []
    for seed in (1, 2):
        np.random.seed(seed)
        torch.manual_seed(seed)
        scores.append(DOCIDSDetector(max_epochs=2, random_state=0).fit(X, reference=reference).score_samples(X))
    assert (scores[0] == scores[1]).all()


def test_threads_of_the_process_are_left_alone():
    X, reference = tiny()
    before = torch.get_num_threads()
    DOCIDSDetector(max_epochs=1).fit(X, reference=reference)
    assert torch.get_num_threads() == before


def test_losses_fall():
    X, reference = tiny(n=200)
    history = DOCIDSDetector(max_epochs=15, batch_size=32, random_state=0).fit(X, reference=reference).history_
    for name in ("descriptiveness_loss", "reconstruction_loss"):
        assert history[-1][name] < 0.5 * history[0][name]
    assert all(epoch["pairs"] == 200 for epoch in history)


def net_and_twin(dtype, batch_norm="target", optimizer="adamw", n_columns=320):
    """Return our net and the plain network, of the same weights, each with its optimiser."""
    settings = TrainingSettings(
        n_epochs=1, batch_size=16, optimizer=optimizer, lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule=None,
        precision="float32", execution="eager", device="cpu", seed=0, first_epoch=0,
    )  # fmt: skip
    losses = {"descriptiveness": 1.0, "compactness": 0.1, "reconstruction": 10.0, "detach_target": False}
    net = make_net(
        DOCIDSNetwork, {"n_columns": n_columns, "n_classes": 20, "batch_norm": batch_norm}, losses, settings, []
    )
    net.module_.to(dtype)
    for moments in net.optimizer_.state.values():
        moments.update({kind: value.to(dtype) for kind, value in moments.items()})
    twin = plain_network(n_columns).to(dtype)
    twin.load_state_dict(weights_as_plain(net.module_))
    options = {"lr": 1e-3, "weight_decay": 5e-4, **({"momentum": 0.9} if optimizer == "sgd" else {})}
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    return net, twin, kind(twin.parameters(), **options)


def batches(n_batches, n_columns=320):
    rng = np.random.default_rng(0)
    target, reference = rng.integers(0, 256, (2, 16 * n_batches, n_columns), dtype=np.uint8)
    return PairedBatches(PairedFlows(target, reference, rng.integers(0, 20, len(target))), 16, seed=0, n_epoch=0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_ten_steps_end_at_the_weights_of_a_plain_loop(optimizer):
    net, twin, twin_optimizer = net_and_twin(torch.float64, optimizer=optimizer)
    first = weights_as_plain(net.module_)
    for inputs, labels in batches(10):
        net.train_step((inputs, labels))
        plain_step(twin, twin_optimizer, inputs["target"], inputs["reference"], labels)
    ours, theirs = weights_as_plain(net.module_), dict(twin.named_parameters())
    moved = sum(float((value - first[name]).detach().square().sum()) for name, value in theirs.items())
    apart = sum(float((value - ours[name]).detach().square().sum()) for name, value in theirs.items())
    assert moved > 0
    assert apart**0.5 <= 1e-8 * moved**0.5


@pytest.mark.parametrize("batch_norm", ["target", "separate"])
def test_the_losses_of_a_step_are_those_of_a_plain_loop(batch_norm):
    net, twin, twin_optimizer = net_and_twin(torch.float32, batch_norm)
    for inputs, labels in batches(1):
        net.train_step((inputs, labels))
        terms = plain_step(twin, twin_optimizer, inputs["target"], inputs["reference"], labels)
    assert net.last_losses[1:].tolist() == pytest.approx([float(term.detach()) for term in terms], rel=1e-5)


@pytest.mark.parametrize("batch_norm", ["target", "separate"])
def test_running_statistics_are_those_of_a_plain_loop(batch_norm):
    net, twin, twin_optimizer = net_and_twin(torch.float64, batch_norm, n_columns=12)
    for inputs, labels in batches(3, n_columns=12):
        net.train_step((inputs, labels))
        if batch_norm == "separate":
            plain_step(twin, twin_optimizer, inputs["target"], inputs["reference"], labels)
        else:  # the reference passes through a copy, whose statistics are thrown away
            kept = {name: value.clone() for name, value in twin.named_buffers()}
            twin["g"](scaled(inputs["target"], twin))
            after = {name: value.clone() for name, value in twin.named_buffers()}
            twin.load_state_dict(kept, strict=False)
            plain_step(twin, twin_optimizer, inputs["target"], inputs["reference"], labels)
            twin.load_state_dict(after, strict=False)
    ours = weights_as_plain(net.module_)
    for name, value in twin.named_buffers():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-10)


def test_threads_change_a_score_by_rounding_alone():
    X, reference = tiny(n_columns=320)
    detector = DOCIDSDetector(max_epochs=2, random_state=0).fit(X, reference=reference)
    n_threads = torch.get_num_threads()
    try:
        scores = []
        for n in (1, 2):
            torch.set_num_threads(n)
            scores.append(detector.score_samples(X))
    finally:
        torch.set_num_threads(n_threads)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_compiled_step_trains_to_nearly_the_same_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    X, reference = tiny(n=64)
    settings = {"max_epochs": 2, "batch_size": 32, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler about its own parts
        compiled = DOCIDSDetector(execution="compiled", **settings).fit(X, reference=reference)
    eager = DOCIDSDetector(**settings).fit(X, reference=reference)
    assert list(compiled.network_.state_dict()) == list(eager.network_.state_dict())
    for ours, theirs in zip(compiled.history_, eager.history_, strict=True):
        assert ours["reconstruction_loss"] == pytest.approx(theirs["reconstruction_loss"], rel=1e-2)
    assert len(pickle.dumps(compiled)) < len(pickle.dumps(eager)) + 1000
