"""The projection onto the simplex against bisection, straight-through sampling, and PEZ's nearest tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from probe.attacks import _simplex as simplex
from tests.oracles import attacks as oracle

ROWS = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=st.floats(-5, 5, width=32))


@given(ROWS)
def test_a_projected_row_lies_on_the_simplex_and_stays_where_it_is(rows):
    p = simplex.project(torch.from_numpy(rows))
    assert (p >= 0).all()
    assert torch.allclose(p.sum(-1), torch.ones(len(p), dtype=p.dtype), atol=1e-6)
    assert torch.allclose(simplex.project(p), p, atol=1e-9)


@given(ROWS)
def test_the_exact_projection_is_what_bisection_finds(rows):
    found = simplex.project(torch.from_numpy(rows)).numpy()
    expected = np.stack([oracle.projected_by_bisection(row) for row in rows])
    assert np.allclose(found, expected, atol=1e-8)


def test_tokens_that_are_not_allowed_get_nothing_and_the_others_all_of_it():
    p = torch.tensor([[5.0, 0.2, 0.1, -3.0]])
    allowed = torch.tensor([[False, True, True, False]])
    found = simplex.project(p, allowed)
    assert found[0, [0, 3]].tolist() == [0, 0]
    assert np.allclose(found[0, [1, 2]], oracle.projected_by_bisection(np.array([0.2, 0.1])))


def test_sampling_follows_the_distribution_and_its_gradient_is_passed_through_clipped():
    p = torch.tensor([[0.7, 0.3, 0.0]]).repeat(4000, 1)
    ids = simplex.sampled(p, torch.Generator().manual_seed(0))
    counts = torch.bincount(ids, minlength=3) / len(ids)
    assert counts[2] == 0
    assert abs(float(counts[0]) - 0.7) < 0.03
    row = torch.tensor([[0.2, 0.8]], requires_grad=True)
    one_hot = simplex.straight_through(row, torch.tensor([1]))
    assert one_hot.tolist() == [[0.0, 1.0]]
    (one_hot * torch.tensor([[0.5, -7.0]])).sum().backward()
    assert row.grad.tolist() == [[0.5, -1.0]]


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_token_is_the_one_of_the_largest_cosine_among_the_allowed(seed):
    rng = np.random.default_rng(seed)
    table, e = rng.normal(size=(12, 5)), rng.normal(size=(4, 5))
    allowed = rng.random((4, 12)) < 0.6
    found = simplex.nearest_tokens(*map(torch.from_numpy, (e, table, allowed)))
    assert found.tolist() == [oracle.nearest_by_cosine(e[i], table, np.flatnonzero(allowed[i])) for i in range(4)]
