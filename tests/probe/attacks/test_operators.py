"""Genetic operators and the ranking of greedy coordinate gradient, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from probe.attacks import _gcg as gcg
from probe.attacks import _genetic as genetic
from tests.oracles import attacks as oracle


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_survivors_are_those_of_the_lowest_losses_best_first():
    population = torch.arange(12).reshape(6, 2)
    kept, losses = genetic.survivors(population, torch.tensor([3.0, 1.0, 2.0, 0.5, 9.0, 1.0]), 3)
    assert kept[:, 0].tolist() == [6, 2, 10]
    assert losses.tolist() == [0.5, 1.0, 1.0]


def test_children_are_cut_at_one_point_and_come_in_exchanged_pairs():
    population = torch.arange(8)[:, None] * 100 + torch.arange(5)
    children = genetic.crossed(population, 1.0, rng())
    assert children.shape == (16, 5)
    for i, (a, b) in enumerate(children.reshape(8, 2, 5)):
        parents = {int(token) // 100 for token in torch.cat([a, b])}
        assert i in parents
        assert len(parents) <= 2
        assert [int(x) % 100 for x in a] == list(range(5))
        own = [int(x) // 100 == i for x in a]
        assert own[0]
        assert sum(x != y for x, y in itertools.pairwise(own)) <= 1  # one cut
        assert sorted(torch.stack([a, b], 1).flatten().tolist()) == sorted(
            torch.stack([population[p] for p in ([i] * 2 if len(parents) == 1 else list(parents))]).flatten().tolist()
        )
    assert len(genetic.crossed(population, 0.0, rng())) == 0
    assert len(genetic.crossed(population[:, :1], 1.0, rng())) == 0


def test_a_mutation_changes_one_position_to_an_allowed_token_and_never_the_original():
    population, allowed = torch.zeros(50, 6, dtype=torch.long), torch.tensor([7, 8])
    before = population.clone()
    found = genetic.mutated(population, 1.0, allowed, rng())
    assert torch.equal(population, before)
    assert ((found != 0).sum(1) == 1).all()
    assert set(found.unique().tolist()) == {0, 7, 8}
    assert torch.equal(genetic.mutated(population, 0.0, allowed, rng()), before)
    share = (genetic.mutated(torch.zeros(4000, 6, dtype=torch.long), 0.25, allowed, rng(1)) != 0).any(1).float().mean()
    assert abs(float(share) - 0.25) < 0.03


@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_ranked_as_one_by_one_and_only_allowed_ones(seed):
    numbers = np.random.default_rng(seed)
    gradient = numbers.normal(size=(3, 17))
    allowed = np.sort(numbers.choice(17, 9, replace=False))
    mask = torch.zeros(17, dtype=torch.bool)
    mask[allowed] = True
    found = gcg.ranked_tokens(torch.from_numpy(gradient), mask, 5)
    assert found.tolist() == oracle.best_swaps(gradient, [0] * 3, allowed.tolist(), 5)
    assert gcg.ranked_tokens(torch.from_numpy(gradient), mask, 99).shape == (3, 9)


def test_candidates_differ_in_one_position_each_spread_evenly():
    ids, ranked = torch.tensor([1, 2, 3, 4]), torch.tensor([[10, 11], [20, 21], [30, 31], [40, 41]])
    found = gcg.swaps(ids, ranked, 12, rng())
    changed = found != ids
    assert (changed.sum(1) == 1).all()
    assert changed.sum(0).tolist() == [3, 3, 3, 3]
    assert all(int(row[at]) in ranked[at] for row, at in zip(found, changed.int().argmax(1), strict=True))
