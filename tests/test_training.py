"""Paired mini-batches, the composite loss, and what training leaves untouched."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sklearn_docids import DOCIDSDetector
from sklearn_docids._network import PairOutput
from sklearn_docids._training import CompositeLoss, PairedBatches, PairedFlows, batch_bounds


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
