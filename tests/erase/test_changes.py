from __future__ import annotations

import math

import pytest
import torch

from erase._changes import Delta, Mask, Replace, combined, conflict, digest
from erase.masks import pack
from probe.errors import BadInput
from tests.erase.snapshots import raw

P = "unet.layer.weight"


def mask(rows):
    return Mask.of(P, torch.tensor(rows, dtype=torch.bool))


def test_masked_weights_become_positive_zero_whatever_they_were():
    weight = torch.tensor([[-0.0, math.nan, -math.inf, -3.0, 2.0]])
    found = combined(weight, [mask([[1, 1, 1, 1, 0]])])
    assert raw(found) == raw(torch.tensor([[0.0, 0.0, 0.0, 0.0, 2.0]]))
    assert raw(weight[:, :1]) == raw(torch.tensor([[-0.0]]))  # the argument is left alone


def test_unmasked_weights_keep_their_bits():
    weight = torch.tensor([[-0.0, math.nan, 1e-45]])
    assert raw(combined(weight, [mask([[0, 0, 0]])])) == raw(weight)


def test_deltas_are_summed_in_float32_and_rounded_once():
    weight = torch.tensor([1.0], dtype=torch.float16)
    half_ulp = Delta(P, torch.tensor([2.0**-11]))  # alone it is rounded away, twice in a row too
    assert combined(weight, [half_ulp]).item() == 1.0
    assert combined(weight, [half_ulp, half_ulp]).item() == 1 + 2.0**-10
    assert combined(weight, [half_ulp]).dtype == torch.float16


def test_masks_win_over_replacements_and_deltas():
    new = Replace(P, torch.tensor([[7.0, 8.0]]))
    add = Delta(P, torch.tensor([[1.0, 1.0]]))
    weight = torch.tensor([[1.0, 2.0]])
    assert combined(weight, [mask([[1, 0]]), new]).tolist() == [[0.0, 8.0]]
    assert combined(weight, [mask([[1, 0]]), add, mask([[0, 1]])]).tolist() == [[0.0, 0.0]]


def test_a_low_rank_pair_is_its_product_also_for_convolutions():
    up, down = torch.randn(4, 2), torch.randn(2, 27)
    delta = Delta(P, (up, down), (4, 3, 3, 3))
    assert torch.equal(delta.dense(), (up @ down).reshape(4, 3, 3, 3))
    assert Delta(P, (up, down)).shape == (4, 27)


def test_changes_own_their_tensors():
    value = torch.ones(2)
    delta, replace = Delta(P, value), Replace(P, value)
    value.zero_()
    assert delta.dense().tolist() == replace.value.tolist() == [1.0, 1.0]


def test_digests_tell_kind_name_shape_dtype_and_bytes():
    value = torch.zeros(4)
    variants = [
        Delta(P, value),
        Replace(P, value),
        Replace(P, value.half()),
        Replace(P, value.reshape(2, 2)),
        Replace(P, -value),
        Replace("unet.other.weight", value),
        Delta(P, (torch.zeros(2, 1), torch.zeros(1, 2))),
        Mask(P, pack(torch.zeros(4, dtype=torch.bool)), (4,)),
        Mask(P, pack(torch.zeros(4, dtype=torch.bool)), (2, 2)),
    ]
    assert len({digest(change) for change in variants}) == len(variants)
    assert digest(Delta(P, torch.zeros(4))) == digest(variants[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mask("conv_in", torch.zeros(1, dtype=torch.uint8), (8,)),
        lambda: Mask("unet..weight", torch.zeros(1, dtype=torch.uint8), (8,)),
        lambda: Mask(P, torch.zeros(3, dtype=torch.uint8), (8,)),
        lambda: Mask(P, torch.full((1,), 255, dtype=torch.uint8), (7,)),
        lambda: Delta(P, torch.zeros(3), (4,)),
        lambda: Delta(P, (torch.zeros(3, 2), torch.zeros(3, 3))),
        lambda: Delta(P, (torch.zeros(4, 2), torch.zeros(2, 9)), (4, 3, 3, 3)),
    ],
)
def test_what_does_not_fit_is_refused(make):
    with pytest.raises(BadInput):
        make()


def test_conflicts_are_two_replacements_or_a_replacement_beside_a_delta():
    new, add, off = Replace(P, torch.zeros(2)), Delta(P, torch.zeros(2)), mask([1, 0])
    other = Replace("unet.other.weight", torch.zeros(2))
    assert conflict([new], [new]) == conflict([new], [add]) == conflict([add], [off, new]) == P
    assert conflict([add, off], [add, off]) is None
    assert conflict([new], [off, other]) is None
