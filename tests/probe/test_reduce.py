from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import _reduce
from probe._reduce import Reducer, reducer, reducer_names, register_reducer, tiles
from probe.errors import BadInput, UnknownName
from tests.oracles.reduce import reduce_rows, top_rows

#: Reducers to one number a neuron.
SIMPLE = [name for name in reducer_names() if name != "topk"]

shapes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 7), st.integers(0, 2**31))


def activation(s, k, n, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(s, k, n, generator=generator)
    return torch.where(torch.rand(s, k, 1, generator=generator) < 0.2, 0, x).to(dtype)  # some token rows all zero


@pytest.mark.parametrize("name", SIMPLE)
@given(shape=shapes)
@settings(max_examples=25, deadline=None)
def test_reducers_equal_their_brute_force_twins(name, shape):
    x = activation(*shape)
    found = reducer(name)(x)
    wanted = torch.tensor([reduce_rows(name, rows) for rows in x.double().tolist()])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SIMPLE)
@given(shape=shapes, data=st.data())
@settings(max_examples=25, deadline=None)
def test_token_rows_in_two_calls_equal_one_call(name, shape, data):
    x = activation(*shape)
    cut = data.draw(st.integers(0, x.shape[1]))
    pieces = [piece for piece in (x[:, :cut], x[:, cut:]) if piece.shape[1]]
    r = reducer(name)
    state = r.start(pieces[0], 0)
    for piece in pieces[1:]:
        state = r.merge(state, r.start(piece, cut))
    torch.testing.assert_close(r.finish(state, x.shape[1])[0], r(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SIMPLE)
def test_a_large_activation_is_reduced_in_tiles_to_the_same_numbers(name, monkeypatch):
    x = activation(3, 50, 7, seed=9)
    whole = reducer(name)(x)
    monkeypatch.setattr(_reduce, "TILE", 3 * 7 * 4 * 8)
    parts = list(tiles(x))
    assert [part.shape[1] for _, part in parts] == [8, 8, 8, 8, 8, 8, 2]
    assert torch.equal(torch.cat([part for _, part in parts], dim=1), x)
    torch.testing.assert_close(reducer(name)(x), whole, rtol=1e-5, atol=1e-6)


def same_ranks(x, found, ranks):
    """Values as the twin has them; rows hold these values and are distinct (of equal ones either may be named)."""
    value, index = found
    for s, rows in enumerate(x.tolist()):
        for r, wanted in enumerate(top_rows(rows, ranks)):
            for n, pair in enumerate(wanted):
                if pair is None:
                    assert torch.isnan(value[s, r, n])
                    assert torch.isnan(index[s, r, n])
                else:
                    assert value[s, r, n].item() == pair[0] == rows[int(index[s, r, n])][n]
    kept = index[:, : min(ranks, x.shape[1])]
    assert all(len(set(column.tolist())) == kept.shape[1] for sample in kept for column in sample.T)


@given(shape=shapes, ranks=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_topk_equals_its_brute_force_twin(shape, ranks):
    x = activation(*shape)
    same_ranks(x, reducer("topk", topk=ranks)(x), ranks)


@given(shape=shapes, ranks=st.integers(1, 6), data=st.data())
@settings(max_examples=40, deadline=None)
def test_topk_merges_over_chunks_of_token_rows(shape, ranks, data):
    x = activation(*shape)
    cuts = sorted({0, x.shape[1], *data.draw(st.lists(st.integers(0, x.shape[1]), max_size=3))})
    r = reducer("topk", topk=ranks)
    states = [r.start(x[:, a:b], a) for a, b in pairwise(cuts)]
    state = states[0]
    for further in states[1:]:
        state = r.merge(state, further)
    same_ranks(x, r.finish(state, x.shape[1]), ranks)


def test_count_has_a_threshold_of_zero_which_zero_and_nan_do_not_pass():
    x = torch.tensor([[[1e-30], [0.0], [-0.0], [-1.0], [torch.nan], [torch.inf]]])
    assert reducer("count")(x).tolist() == [[2.0]]


def test_topk_keeps_at_least_one_row():
    with pytest.raises(BadInput, match="at least one"):
        reducer("topk", topk=0)


@pytest.mark.parametrize("name", SIMPLE)
def test_a_sample_does_not_depend_on_its_batch(name):
    x = activation(5, 64, 33, seed=1)
    alone = torch.cat([reducer(name)(row[None]) for row in x])
    torch.testing.assert_close(alone, reducer(name)(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SIMPLE)
def test_half_precision_is_summed_in_float32(name):
    x = torch.full((1, 4096, 3), 200.0, dtype=torch.float16)  # squares and sums pass fp16's 65,504
    found = reducer(name)(x)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, reducer(name)(x.float()))


def test_unit_norm_forgets_the_length_of_a_token_row_and_norm_does_not():
    x = activation(2, 8, 5, seed=2)
    scaled = x * torch.rand(2, 8, 1, generator=torch.Generator().manual_seed(3)).add(0.5)
    torch.testing.assert_close(reducer("unit_norm")(x), reducer("unit_norm")(scaled))
    assert not torch.allclose(reducer("norm")(x), reducer("norm")(scaled))


def test_squared_unit_norms_add_up_to_the_number_of_rows():
    x = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(reducer("unit_norm")(x).square().sum(1), torch.full((2,), 8.0))


def test_an_unknown_reducer_names_the_nearest():
    with pytest.raises(UnknownName) as error:
        reducer("abs_mean")
    assert "absmean" in error.value.nearest


def test_a_taken_name_is_refused():
    with pytest.raises(BadInput):
        register_reducer(Reducer("norm", torch.clone, torch.add, torch.add))
