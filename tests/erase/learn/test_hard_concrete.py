from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erase import hard_concrete as hc
from tests.oracles.erasers import hard_concrete as one_gate

ALPHAS = (-4.0, -1.0, 0.0, 2.0, 5.0)


def uniform(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)).clamp(1e-7, 1 - 1e-7)


@given(st.floats(-8, 8), st.floats(1e-4, 1 - 1e-4))
@settings(deadline=None, max_examples=50)
def test_a_gate_is_that_of_the_paper(log_alpha, u):
    assert float(hc.gates(torch.tensor([log_alpha]), torch.tensor([u]))) == pytest.approx(
        one_gate(log_alpha, u), abs=2e-5
    )


@pytest.mark.parametrize("log_alpha", ALPHAS)
def test_probabilities_agree_with_draws(log_alpha):
    n = 400_000
    drawn = hc.gates(torch.full((n,), log_alpha), uniform(n, seed=int(log_alpha * 10) % 97))
    alpha = torch.tensor([log_alpha])
    for share, expected in (
        ((drawn == 0).float().mean(), hc.closed_probability(alpha)),
        ((drawn == 1).float().mean(), hc.open_probability(alpha)),
    ):
        p = float(expected)
        assert float(share) == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5 + 1e-5)


def test_at_five_hardly_a_gate_is_not_open():
    five = torch.tensor([5.0])
    assert float(hc.closed_probability(five)) == pytest.approx(0.0014, abs=1e-4)
    assert 1 - float(hc.open_probability(five)) == pytest.approx(0.032, abs=1e-3)


@pytest.mark.parametrize("log_alpha", ALPHAS)
def test_the_sparse_form_leaves_out_only_open_gates(log_alpha):
    n = 5000
    learned = torch.full((n,), log_alpha, requires_grad=True)
    u = uniform(n)
    dense = hc.gates(learned, u)
    dense.sum().backward()
    at, values, slope = hc.drawn(learned.detach(), u)
    again, slopes = torch.ones(n), torch.zeros(n)
    again[at], slopes[at] = values, slope
    assert torch.allclose(again, dense.detach(), atol=1e-6)
    assert torch.allclose(slopes, learned.grad, atol=1e-5)
    assert (dense[at] < 1 + 1e-6).all()
    assert len(at) == pytest.approx(n * (1 - float(hc.open_probability(torch.tensor([log_alpha])))), abs=200)


def test_learning_over_a_gate_is_open_or_closed():
    assert hc.pruned(torch.tensor([-3.0, -0.01, 0.0, 0.01, 5.0])).tolist() == [True, True, True, False, False]


def test_straight_through_rounds_and_has_a_slope_everywhere():
    score = torch.tensor([-1.0, 0.0, 0.5, 5.0])
    at, values = hc.rounded(score)
    assert at.tolist() == [0, 1]
    assert values.tolist() == [0, 0]
    s = torch.sigmoid(score)
    assert torch.allclose(hc.straight_slope(score), s * (1 - s))
