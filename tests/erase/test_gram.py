"""The linear algebra of closed-form erasers against slow twins and against what must be exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erase import updates
from erase.gram import System, change_of_output, most_alike, outer, ridged, strongest
from tests.oracles import closed_form as oracle


def rows(n, d, seed=0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditioned(d, condition, seed=0):
    """A random symmetric matrix (d d) of a given condition, largest eigenvalue 1."""
    basis, _ = torch.linalg.qr(rows(d, d, seed))
    values = torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)
    return (basis * values) @ basis.T


def problem(n=6, kept=40, d=12, seed=0, ridge=0.5):
    sources, targets, others = rows(n, d, seed), rows(n, d, seed + 1), rows(kept, d, seed + 2)
    weights = torch.linspace(0.5, 2.0, n, dtype=torch.float64)
    system = System(ridged(outer(sources, sources, weights) + 0.1 * outer(others, others), ridge))
    return sources, targets, others, weights, system


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_the_change_is_that_of_the_naive_solution(ridge):
    sources, targets, others, weights, system = problem(ridge=ridge)
    weight = rows(7, 12, 9)
    left, right = updates.ridge(sources, targets, weights, system)
    plain = weight.numpy()
    mapped = [(c, plain @ t, w) for c, t, w in zip(*map(torch.Tensor.numpy, (sources, targets, weights)), strict=True)]
    naive = oracle.ridge_solution(plain, mapped, [(r, 0.1) for r in others.numpy()], ridge)
    assert system.condition < 1e6
    np.testing.assert_allclose((weight + weight @ left @ right).numpy(), naive, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
def test_a_solution_is_exact_or_leaves_nothing_over(condition):
    matrix, numerator = conditioned(30, condition), rows(5, 30, 4)
    system = System(matrix)
    found = system.solve(numerator)
    assert system.condition == pytest.approx(condition, rel=1e-2)
    if condition <= 1e6:
        expected = torch.linalg.solve(matrix, numerator.T).T
        assert float((found - expected).norm() / expected.norm()) < 1e-8
    # the numerator of an erased model's system is W' A for a W' of ordinary size
    numerator = rows(5, 30, 4) @ matrix
    residual = system.solve(numerator) @ matrix - numerator
    assert float(residual.norm()) <= 1e-10 * float(numerator.norm())


@given(seed=st.integers(0, 2**20), n=st.integers(1, 20))
def test_targets_that_equal_their_sources_change_nothing(seed, n):
    sources, _, _, weights, system = problem(n=n, seed=seed % 1000)
    left, right = updates.ridge(sources, sources.clone(), weights, system)
    assert not (left @ right).any()


def test_rows_of_weight_zero_and_repeated_rows_count_as_their_weights_say():
    sources, targets, _, weights, system = problem()
    once = updates.ridge(sources, targets, weights, system)
    twice = updates.ridge(sources.repeat(2, 1), targets.repeat(2, 1), weights.repeat(2) / 2, system)
    torch.testing.assert_close(once[0] @ once[1], twice[0] @ twice[1])


def test_a_singular_system_is_recognised_and_solved_by_the_smallest_change():
    held = rows(4, 10, 1)
    system = System(outer(held, held))
    assert system.singular
    assert system.rank == 4
    assert system.condition == math.inf
    numerator = rows(3, 4, 2) @ held
    found = system.solve(numerator)
    torch.testing.assert_close(found @ system.matrix, numerator)
    _, _, free = torch.linalg.svd(held, full_matrices=True)
    assert float((found @ free[4:].T).abs().max()) < 1e-10  # what no row speaks of stays


def test_effective_rank_counts_equal_directions():
    assert System(torch.eye(7, dtype=torch.float64)).effective_rank == pytest.approx(7)
    one = torch.zeros(7, 7, dtype=torch.float64)
    one[0, 0] = 3
    assert System(one).effective_rank == pytest.approx(1)
    assert System(torch.zeros(3, 3, dtype=torch.float64)).effective_rank == 0


def test_change_of_output_is_the_ratio_of_norms_over_rows():
    weight, change, others = rows(5, 8, 1), rows(5, 8, 2, 0.1), rows(30, 8, 3)
    expected = float((others @ change.T).norm() / (others @ weight.T).norm())
    assert change_of_output(weight, change, outer(others, others)) == pytest.approx(expected)
    zero = torch.zeros_like(weight)
    assert change_of_output(zero, zero, outer(others, others)) == 0
    assert change_of_output(zero, change, outer(others, others)) == math.inf


def test_most_alike_finds_the_pair():
    some = rows(6, 9)
    some[4] = -2 * some[1] + 1e-3
    i, j, cosine = most_alike(some)
    assert (i, j) == (1, 4)
    assert cosine > 0.99


@pytest.mark.parametrize(("bound", "expected"), [(0.5, 0.5), (100.0, 10.0), (1e-9, 1e-3)])
def test_strongest_meets_the_bound_from_below(bound, expected):
    found = strongest(lambda strength: strength, bound, 1e-3, 10.0)
    assert found == pytest.approx(expected, rel=2e-3)
    assert found <= max(bound, 1e-3)


# --- update rules -----------------------------------------------------------------------------------------------------


def test_null_space_leaves_constraints_and_retained_rows_exactly_where_they_are():
    d = 16
    sources, targets, retained, held = rows(3, d, 1), rows(3, d, 2), rows(8, d, 3), rows(2, d, 4).T
    own, cross = outer(sources, sources), outer(targets, sources)
    free = updates.null_projector(outer(retained, retained) / 8, 1e-6)
    found = updates.null_space(cross, own, free, held, keep=1.0, slack=0.0)
    assert float((found @ held).norm()) < 1e-10 * float(found.norm() * held.norm())
    with_slack = updates.null_space(cross, own, free, held, keep=1.0, slack=0.5)
    assert float((with_slack @ held).norm()) > 1e-3
    # retained rows lie outside the free space, and rows of P pass nothing of them on
    assert float((free @ retained.T).norm()) < 1e-10


def test_null_space_without_constraints_is_speeds_first_formula():
    d = 10
    sources, targets = rows(3, d, 1), rows(3, d, 2)
    own, cross = outer(sources, sources), outer(targets, sources)
    whole = torch.eye(d, dtype=torch.float64)
    found = updates.null_space(cross, own, whole, torch.zeros(d, 1, dtype=torch.float64), keep=1.0, slack=0.0)
    torch.testing.assert_close(found, (cross - own) @ torch.linalg.inv(own + whole))


@pytest.mark.parametrize("transposed", [False, True])
def test_rotation_is_orthogonal_and_keeps_the_gram_of_the_weights(transposed):
    weight, erased, guide = rows(12, 6, 1), updates.span(rows(12, 2, 2)), updates.span(rows(12, 3, 3))
    found = updates.rotation(erased, guide, 0.1 * weight @ weight.T, transposed=transposed, proper=True)
    eye = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(found.T @ found, eye)
    assert float(torch.linalg.det(found)) == pytest.approx(1)
    turned = found @ weight
    torch.testing.assert_close(turned.T @ turned, weight.T @ weight)


@pytest.mark.parametrize("seed", range(4))
def test_the_rotation_is_the_papers_even_where_it_reflects(seed):
    """P = U V^T maximises tr(P^T M) over all orthogonal P: its trace is the sum of singular values."""
    erased, guide = updates.span(rows(3, 1, seed)), updates.span(rows(3, 1, seed + 10))
    kept = 0.1 * torch.eye(3, dtype=torch.float64)
    matrix = -(erased @ erased.T) @ (torch.eye(3, dtype=torch.float64) - guide @ guide.T) + kept
    found = updates.rotation(erased, guide, kept)
    assert float((found * matrix).sum()) == pytest.approx(float(torch.linalg.svdvals(matrix).sum()))
    assert float(torch.linalg.det(found)) == pytest.approx(float(torch.linalg.det(matrix).sign()))
    turned = updates.rotation(erased, guide, kept, proper=True)
    assert float(torch.linalg.det(turned)) == pytest.approx(1)
    if torch.linalg.det(matrix) < 0:
        assert not torch.allclose(found, turned)


def test_the_transposed_rotation_turns_erased_outputs_away_from_themselves():
    """What the derivation asks for: P g opposite to the part of g outside the wanted span."""
    erased, guide = updates.span(rows(12, 1, 2)), updates.span(rows(12, 1, 3))
    kept = 1e-3 * torch.eye(12, dtype=torch.float64)
    found = updates.rotation(erased, guide, kept, transposed=True)
    rest = erased - guide @ (guide.T @ erased)
    assert float(((found @ erased) * rest).sum()) < -0.9 * float(rest.norm())
    same = updates.rotation(erased, guide, kept, scale=0.0)
    torch.testing.assert_close(same, torch.eye(12, dtype=torch.float64))


def test_span_drops_dependent_and_empty_columns():
    columns = rows(8, 3)
    doubled = torch.cat([columns, columns @ rows(3, 2, 5), torch.zeros(8, 1, dtype=torch.float64)], dim=1)
    basis = updates.span(doubled)
    assert basis.shape == (8, 3)
    torch.testing.assert_close(basis @ (basis.T @ columns), columns)


def test_projector_takes_out_what_is_not_shared():
    basis, _ = torch.linalg.qr(rows(10, 10))
    forget, retain = basis[:2], basis[1:4]
    found = updates.projector(forget, retain, alpha=1e9)
    torch.testing.assert_close(forget[0] + forget[0] @ found.T, torch.zeros(10, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(forget[1] + forget[1] @ found.T, forget[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(retain[1] + retain[1] @ found.T, retain[1], atol=1e-6, rtol=0)
    alone = updates.projector(forget, None, alpha=1e9)
    assert float((forget + forget @ alone.T).abs().max()) < 1e-6


def weights_and_map(d=8, seed=0):
    weights = [rows(o, d, seed + o) for o in (5, 6, 7)]
    return weights, torch.eye(d, dtype=torch.float64) + 0.2 * rows(d, d, seed + 50)


def test_adversarial_rows_are_the_papers():
    weights, moved = weights_and_map()
    row = rows(2, 8, 7)
    found = updates.adversarial(row, moved, updates.squared(weights), penalty=0.1)
    edited = [(w @ moved).numpy() for w in weights]
    expected = [oracle.recovered(edited, [w.numpy() for w in weights], one, 0.1) for one in row.numpy()]
    np.testing.assert_allclose(found.numpy(), np.array(expected), rtol=1e-8)


@pytest.mark.parametrize("surrogate", ["zero", "output", "source", "both", "target"])
def test_without_penalty_an_unedited_model_gives_the_row_itself(surrogate):
    weights, _ = weights_and_map()
    row, eye = rows(3, 8, 7), torch.eye(8, dtype=torch.float64)
    found = updates.adversarial(row, eye, updates.squared(weights), penalty=0.0, surrogate=surrogate)
    torch.testing.assert_close(found, row)
    shrunk = updates.adversarial(row, eye, updates.squared(weights), penalty=0.5, surrogate="zero")
    assert float(shrunk.norm()) < float(row.norm())


@pytest.mark.parametrize("surrogate", ["zero", "output", "source", "both", "target"])
def test_adversarial_rows_minimise_what_they_should(surrogate):
    """At the solution the gradient of the objective of each regulariser is zero."""
    weights, moved = weights_and_map()
    row, goal, penalty = rows(1, 8, 7), rows(1, 8, 8), 0.3
    found = updates.adversarial(
        row, moved, updates.squared(weights), penalty=penalty, surrogate=surrogate, towards=goal
    )
    free = found.clone().requires_grad_()
    loss = sum(((free @ (w @ moved).T - row @ w.T) ** 2).sum() for w in weights)
    if surrogate == "zero":
        loss = loss + penalty * (free**2).sum()
    if surrogate == "target":
        loss = loss + penalty * ((free - goal) ** 2).sum()
    if surrogate in ("source", "both"):
        loss = loss + penalty * ((free - row) ** 2).sum()
    if surrogate in ("output", "both"):
        loss = loss + penalty * sum((((free - row) @ (w @ moved).T) ** 2).sum() for w in weights)
    loss.backward()
    assert float(free.grad.abs().max()) < 1e-9 * float(row.norm()) * 1e3
