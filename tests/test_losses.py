"""The three losses against their definitions."""

import math

import naive
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sklearn_docids._network.losses import compactness_loss, descriptiveness_loss, reconstruction_loss

SCORES = arrays(
    np.float64, st.tuples(st.integers(2, 12), st.integers(1, 8)), elements=st.floats(-100, 100, allow_subnormal=False)
)


@settings(deadline=None)
@given(SCORES)
def test_compactness_is_its_leave_one_out_definition(h):
    assert float(compactness_loss(torch.from_numpy(h))) == pytest.approx(naive.compactness(h), rel=1e-12, abs=1e-12)


@settings(deadline=None)
@given(SCORES)
def test_compactness_has_the_gradient_of_its_definition(h):
    n, k = h.shape
    rows = torch.from_numpy(h).requires_grad_()
    compactness_loss(rows).backward()
    assert rows.grad.numpy() == pytest.approx(2 * n / (k * (n - 1) ** 2) * (h - h.mean(axis=0)), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(SCORES, st.floats(-10, 10))
def test_compactness_is_shift_invariant_quadratic_and_zero_for_equal_rows(h, c):
    loss = float(compactness_loss(torch.from_numpy(h)))
    assert loss >= 0
    assert float(compactness_loss(torch.from_numpy(h + c))) == pytest.approx(loss, rel=1e-9, abs=1e-9)
    assert float(compactness_loss(torch.from_numpy(h * c))) == pytest.approx(loss * c * c, rel=1e-9, abs=1e-9)
    assert float(compactness_loss(torch.from_numpy(np.repeat(h[:1], 5, axis=0)))) == pytest.approx(0, abs=1e-18)


def test_compactness_of_two_rows_is_their_squared_distance_per_class():
    assert float(compactness_loss(torch.tensor([[1.0, 5.0], [4.0, 1.0]]))) == 25 / 2


@pytest.mark.parametrize("n", [0, 1])
def test_compactness_needs_two_rows(n):
    with pytest.raises(ValueError, match=f"at least 2 rows, got {n}"):
        compactness_loss(torch.zeros(n, 3))


def test_descriptiveness_is_cross_entropy():
    scores, labels = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]), torch.tensor([1, 0])
    expected = -np.mean(
        [math.log(math.exp(2) / sum(map(math.exp, (1, 2, 0.5)))), math.log(1 / sum(map(math.exp, (0, -1, 3))))]
    )
    assert float(descriptiveness_loss(scores, labels)) == pytest.approx(expected, rel=1e-6)


def test_reconstruction_is_the_mean_over_rows_and_features():
    assert float(reconstruction_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]))) == 2.5
