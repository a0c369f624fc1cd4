from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erase import masks
from probe.errors import BadInput
from tests.oracles.masks import packed, skilled_at_one_step

seeds = st.integers(0, 2**31)
sizes = st.tuples(st.integers(1, 6), st.integers(1, 24))
ratios = st.floats(0.05, 1.0)


def layer(seed, o, n):
    """Weights and norms on a coarse grid, so that float32 products are exact and often tie; some are zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-32, 33, (o, n), generator=generator) / 16
    weight[torch.rand(o, n, generator=generator) < 0.1] = -0.0
    target, reference = torch.randint(0, 17, (2, n), generator=generator) / 16
    return weight, target, reference


@given(seeds, sizes, ratios)
@settings(deadline=None, max_examples=40)
def test_skilled_weights_equal_the_brute_force_twin(seed, size, ratio):
    weight, target, reference = layer(seed, *size)
    found = masks.skilled(weight, target, reference, masks.selected(ratio, size[1]))
    assert found.tolist() == skilled_at_one_step(weight.tolist(), target.tolist(), reference.tolist(), ratio)


@given(seeds, sizes, ratios)
@settings(deadline=None, max_examples=40)
def test_rows_are_bounded_and_equal_runs_mask_nothing(seed, size, ratio):
    weight, target, reference = layer(seed, *size)
    k = masks.selected(ratio, size[1])
    assert masks.skilled(weight, target, reference, k).sum(dim=1).max() <= k
    assert not masks.skilled(weight, target, target, k).any()
    assert not masks.skilled_by_products(weight, target, target, k).any()


@given(seeds, sizes)
@settings(deadline=None, max_examples=40)
def test_more_k_keeps_what_less_k_selected(seed, size):
    weight, target, reference = layer(seed, *size)
    every = [masks.skilled(weight, target, reference, k) for k in range(size[1] + 2)]
    assert not every[0].any()
    for less, more in itertools.pairwise(every):
        assert not (less & ~more).any()
    assert torch.equal(every[-1], (target > reference) & (weight != 0))


@given(seeds, st.integers(1, 6), st.integers(2, 24), st.integers(1, 24))
@settings(deadline=None, max_examples=40)
def test_permuting_hidden_units_permutes_columns(seed, o, n, k):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(o, n, generator=generator, dtype=torch.float64)  # ties would go by position
    target, reference = torch.rand(2, n, generator=generator, dtype=torch.float64)
    order = torch.randperm(n, generator=generator)
    found = masks.skilled(weight[:, order], target[order], reference[order], k)
    assert torch.equal(found, masks.skilled(weight, target, reference, k)[:, order])


def test_global_scope_ranks_the_weights_of_a_layer_together():
    weight = torch.tensor([[5.0, 4.0, 3.0], [2.0, 1.0, 0.5]])
    target, reference = torch.ones(3), torch.zeros(3)
    found = masks.skilled(weight, target, reference, 3, scope="global")
    assert found.tolist() == [[True] * 3, [False] * 3]


def test_margin_and_reference_topk_take_away():
    weight, target = torch.ones(1, 4), torch.tensor([1.0, 1.0, 1.0, 0.1])
    reference = torch.tensor([0.95, 0.5, 0.0, 0.0])
    assert masks.skilled(weight, target, reference, 3).tolist() == [[True, True, True, False]]
    assert masks.skilled(weight, target, reference, 3, margin=0.1).tolist() == [[False, True, True, False]]
    found = masks.skilled(weight, target, reference, 2, exclude_reference_topk=True)
    assert found.tolist() == [[False, False, False, False]]  # the reference's two largest are the target's two first


def test_half_precision_products_tie_where_the_gate_does_not():
    weight = torch.tensor([[1.0, 1.0]])
    target, reference = torch.tensor([0.50001, 1.0]), torch.tensor([0.5, 0.5])
    assert masks.skilled(weight, target, reference, 2).tolist() == [[True, True]]
    assert masks.skilled_by_products(weight, target, reference, 2).tolist() == [[False, True]]


def test_row_topk_prefers_low_columns_and_never_nan():
    score = torch.tensor([[1.0, 2.0, 2.0, 2.0], [math.nan, 0.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    found = masks.row_topk(score, 2)
    assert found.tolist() == [[False, True, True, False], [False, True, True, False], [True, True, False, False]]


def test_votes_are_strict():
    votes = torch.tensor([[0, 1, 2, 3, 4]])
    assert masks.vote(votes, 4).tolist() == [[False, True, True, True, True]]
    assert masks.vote(votes, 4, 0.5).tolist() == [[False, False, False, True, True]]
    assert masks.vote(votes, 4, 0.99).tolist() == [[False, False, False, False, True]]
    assert not masks.vote(votes, 4, 1.0).any()


@pytest.mark.parametrize("width", range(1, 400, 7))
def test_the_smallest_ratio_selects_and_the_next_lower_does_not(width):
    ratio = masks.smallest_ratio([width, 512])
    assert all(masks.selected(ratio, w) >= 1 for w in (width, 512))
    assert min(masks.selected(math.nextafter(ratio, 0), w) for w in (width, 512)) < 1


def test_counts_are_truncated_as_in_the_paper():
    assert [masks.selected(0.01, 4 * c) for c in (320, 640, 1280)] == [12, 25, 51]
    assert [masks.selected(0.02, 4 * c) for c in (320, 640, 1280)] == [25, 51, 102]


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packing_is_little_endian_and_returns(flags):
    mask = torch.tensor(flags)
    bits = masks.pack(mask)
    assert bytes(bits.tolist()) == packed(flags)
    assert torch.equal(masks.unpack(bits, mask.shape), mask)


def test_packing_is_row_major():
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 0] = True  # flag 5
    assert masks.pack(mask.T.contiguous().T).tolist() == [32, 0]


def test_unpacking_refuses_bits_of_another_shape():
    bits = masks.pack(torch.ones(10, dtype=torch.bool))
    with pytest.raises(BadInput, match="do not fit"):
        masks.unpack(bits, (17,))
    with pytest.raises(BadInput, match="beyond the last"):
        masks.unpack(bits, (9,))


@given(seeds, st.integers(1, 6), st.integers(1, 20))
@settings(deadline=None, max_examples=40)
def test_controls_keep_the_count_of_every_row(seed, o, n):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(o, n, generator=generator) < 0.3
    weight = torch.randn(o, n, generator=generator)
    random, large = masks.random_like(mask, generator), masks.magnitude_like(mask, weight)
    assert torch.equal(random.sum(1), mask.sum(1))
    assert torch.equal(large.sum(1), mask.sum(1))
    for row in range(o):
        inside, outside = weight[row, large[row]].abs(), weight[row, ~large[row]].abs()
        assert not len(inside) or not len(outside) or inside.min() >= outside.max()


def test_random_control_is_uniform_over_columns():
    mask = torch.zeros(4000, 10, dtype=torch.bool)
    mask[:, :3] = True
    share = masks.random_like(mask, torch.Generator().manual_seed(0)).float().mean(0)
    assert (share - 0.3).abs().max() < 0.03


def test_controls_work_on_convolutions():
    mask = torch.zeros(2, 3, 3, 3, dtype=torch.bool)
    mask[0, 0] = True
    found = masks.magnitude_like(mask, torch.arange(54.0).reshape(2, 3, 3, 3))
    assert found.flatten(1).sum(1).tolist() == [9, 0]
    assert found[0, 2].all()
