"""Paired mini-batches, the composite loss, and what training leaves untouched."""

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive_network import plain_network, plain_step, scaled, weights_as_plain

from sklearn_docids import DOCIDSDetector
from sklearn_docids._network.table1 import DOCIDSNetwork, PairOutput
from sklearn_docids._network.tensors import initialize
from sklearn_docids._training import pairs
from sklearn_docids._training.net import TrainingSettings, WeightedLosses, make_net
from sklearn_docids._training.pairs import PairedBatches, PairedFlows, batch_bounds


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
    monkeypatch.setattr(pairs, "resident", lambda rows, device: torch.from_numpy(rows))
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
    names = ["descriptiveness", "compactness", "reconstruction"]
    weights = dict(zip(names, [1.0, 0.1, 10.0], strict=True))
    weights[names.pop(switched_off)] = 0.0
    torch.manual_seed(0)
    network = DOCIDSNetwork(12, 3)
    rows = torch.randint(256, (2, 6, 12))
    losses = WeightedLosses(**weights)
    total, terms = losses(network(rows[0], rows[1], losses=losses.weights), torch.arange(6) % 3)
    assert list(terms) == names
    assert float(total.detach()) == pytest.approx(sum(weights[n] * t.item() for n, t in terms.items()), rel=1e-6)
    total.backward()
    heads = {"h_c": network.h_c.bias, "autoencoder": network.autoencoder[0].bias}
    without = {name: bias.grad is None for name, bias in heads.items()}
    assert without == {"h_c": not {"descriptiveness", "compactness"} & set(names), "autoencoder": switched_off == 2}


def test_initial_weights_are_those_of_pytorch_without_its_generator():
    torch.manual_seed(7)
    expected = DOCIDSNetwork(40, 3).state_dict()
    state = torch.get_rng_state()
    network = DOCIDSNetwork.without_memory({"n_columns": 40, "n_classes": 3})
    initialize(network, 7)
    for name, value in network.state_dict().items():
        assert torch.equal(value, expected[name]), name
        assert value.stride() == expected[name].stride()
    assert torch.equal(torch.get_rng_state(), state)


def test_fits_in_threads_are_those_of_one_thread():
    X, reference = tiny()

    def scores(seed):
        return DOCIDSDetector(max_epochs=1, random_state=seed).fit(X, reference=reference).score_samples(X)

    alone = [scores(seed) for seed in range(4)]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with joblib.parallel_config("threading"):
        together = joblib.Parallel(4)(joblib.delayed(scores)(seed) for seed in [0, 1, 2, 3] * 3)
    assert all((again == alone[i % 4]).all() for i, again in enumerate(together))
    assert torch.equal(torch.get_rng_state(), state)


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
        device="cpu", seed=0,
    )  # fmt: skip
    network = DOCIDSNetwork.without_memory({"n_columns": n_columns, "n_classes": 20, "batch_norm": batch_norm})
    initialize(network, seed=0)
    net = make_net(network, WeightedLosses(descriptiveness=1.0, compactness=0.1, reconstruction=10.0), settings)
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
