from __future__ import annotations

import numpy as np
import pytest
import torch

import erase
from erase import completion, concept_prune
from probe.errors import BadInput, WrongModel
from probe.testing import tiny_pipeline
from tests.erase.prune.maps import TIMESTEPS, norms, wanda_map
from tests.erase.snapshots import FF, edit_of, parameter, random_mask, snapshot


def low_rank(rows=30, columns=40, rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)


def test_soft_impute_completes_a_matrix_of_low_rank():
    weight = low_rank()
    missing = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.2
    guess = completion.soft_impute(weight.masked_fill(missing, 0), missing, 0.01, iterations=200)
    assert (guess[missing].sign() == weight[missing].sign()).float().mean() > 0.95
    assert float((guess - weight)[missing].norm() / weight[missing].norm()) < 0.25


def test_its_step_is_the_definition():
    weight = low_rank(6, 5, rank=3)
    missing = torch.zeros(6, 5, dtype=torch.bool)
    missing[0, 0] = missing[3, 2] = True
    known = np.where(missing, 0, weight.numpy())
    u, s, v = np.linalg.svd(known, full_matrices=False)
    expected = (u * np.maximum(s - 0.1 * s[0], 0)) @ v
    found = completion.soft_impute(weight, missing, 0.1, iterations=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_confident_guesses_get_the_largest_weight_of_their_neuron():
    weight = torch.tensor([[0.0, 2.0], [-3.0, 0.0], [1.0, 1.0]])
    missing = weight == 0
    guess = torch.tensor([[-0.5, 9.0], [9.0, 0.1], [9.0, 9.0]])
    assert completion.revived(weight, missing, guess, 1.0).tolist() == [[-3, 2], [-3, 2], [1, 1]]
    assert completion.revived(weight, missing, guess, 0.5).tolist() == [[-3, 2], [-3, 0], [1, 1]]


@pytest.fixture
def edit(pipe):
    return concept_prune(pipe, wanda_map(pipe, *norms(pipe, 10), TIMESTEPS), skill_ratio=0.05, name="church")


def test_zeros_show_every_pruned_weight(pipe, edit):
    before = snapshot(pipe)
    found = erase.audit(edit, pipe, iterations=3, progress=False)
    assert snapshot(pipe) == before
    whole = found.table.iloc[-1]
    assert whole["param"] == "all"
    assert whole["zeros"] == whole["changed"] == edit.report["masked"]
    assert whole["found"] == 1
    assert whole["low"] <= whole["signs_right"] <= whole["high"]
    assert len(found.table) == len(edit.changes) + 1
    assert whole["weights"] == found.table["weights"][:-1].sum()


def test_weights_of_low_rank_give_their_signs_away_and_random_ones_do_not(own_pipe):
    weight = parameter(own_pipe, FF)
    mask = random_mask(own_pipe, FF, share=0.1)
    rights = []
    for values in (low_rank(*weight.shape), torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))):
        with torch.no_grad():
            weight.copy_(values)
        found = erase.audit(edit_of(own_pipe, mask), own_pipe, iterations=20, progress=False)
        rights.append(found.table.iloc[0])
    assert rights[0]["signs_right"] > 0.9
    assert rights[0]["confident_right"] >= rights[0]["signs_right"]
    assert rights[1]["low"] < 0.5 < rights[1]["high"] or abs(rights[1]["signs_right"] - 0.5) < 0.03


def test_revived_weights_are_an_edit_of_the_original_model(pipe, edit):
    found = erase.audit(edit, pipe, iterations=3, progress=False, confident=1.0)
    mask = {change.param: change.dense() for change in edit.changes}
    with found.revived.applied(pipe):
        revived = {param: parameter(pipe, param).clone() for param in mask}
    for param, flags in mask.items():
        original = parameter(pipe, param)
        assert torch.allclose(revived[param][~flags], original[~flags], atol=1e-6)
        assert not torch.allclose(revived[param][flags], original[flags], atol=1e-3)
        assert (revived[param][flags] != 0).float().mean() > 0.9
    assert found.revived.name == "church-revived"


def test_a_convolution_is_a_matrix_of_its_outputs(pipe):
    mask = random_mask(pipe, "unet.conv_in.weight")
    found = erase.audit(edit_of(pipe, mask), pipe, iterations=3, progress=False)
    assert found.table["zeros"][0] == mask.dense().sum()
    with found.revived.applied(pipe):
        assert (parameter(pipe, "unet.conv_in.weight") != 0).float().mean() > 0.75


def test_noise_in_place_of_zeros_leaves_nothing_to_see(pipe):
    nm = wanda_map(pipe, *norms(pipe, 10), TIMESTEPS)
    found = erase.audit(concept_prune(pipe, nm, skill_ratio=0.05, fill_std=1.0), pipe, progress=False)
    assert found.revived is None
    whole = found.table.iloc[-1]
    assert whole["zeros"] == 0
    assert whole["found"] == 0
    assert np.isnan(whole["signs_right"])


def test_bad_input(pipe, edit):
    with pytest.raises(WrongModel):
        erase.audit(edit, tiny_pipeline(seed=9), progress=False)
    for options in ({"confident": 0.0}, {"held_out": 1.0}, {"iterations": 0}):
        with pytest.raises(BadInput):
            erase.audit(edit, pipe, progress=False, **options)
    with pytest.raises(BadInput, match="no matrix"):
        erase.audit(edit_of(pipe, random_mask(pipe, "unet.conv_in.bias")), pipe, progress=False)
