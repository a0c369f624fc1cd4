from __future__ import annotations

import pytest
import torch

from erase import concept_prune, control_mask
from probe.errors import BadInput, UnknownName, WrongModel
from probe.testing import tiny_pipeline
from tests.erase.prune.maps import EARLY, norms, wanda_map
from tests.erase.snapshots import FF, edit_of, parameter, random_delta, random_mask


@pytest.fixture
def pruned(pipe):
    return concept_prune(pipe, wanda_map(pipe, *norms(pipe, 3), EARLY[:3]), skill_ratio=0.1)


@pytest.mark.parametrize("kind", ["random", "magnitude"])
def test_controls_have_the_density_of_every_row_elsewhere(pipe, pruned, kind):
    control = control_mask(pruned, pipe, kind=kind)
    assert control.params == pruned.params
    assert control.density == pruned.density == control.report["density"]
    for one, other in zip(pruned.changes, control.changes, strict=True):
        assert torch.equal(one.dense().sum(1), other.dense().sum(1))
        assert not torch.equal(one.dense(), other.dense())
    with control.applied(pipe):
        pass
    assert control.name == f"concept_prune-{kind}"
    assert control.provenance["identity"]["inputs"] == {"edit": pruned.id}


def test_magnitude_takes_the_largest_weights_of_the_unedited_model(pipe, pruned):
    control = control_mask(pruned, pipe, kind="magnitude")
    with pruned.applied(pipe):  # the zeros in force must not decide
        assert control_mask(pruned, pipe, kind="magnitude").id == control.id
    row = int(control.changes[0].dense().sum(1).argmax())
    mask, weight = control.changes[0].dense()[row], parameter(pipe, control.params[0])[row].abs()
    assert weight[mask].min() >= weight[~mask].max()


def test_random_controls_need_no_pipeline_and_follow_their_seed(pruned):
    first, same, second = (control_mask(pruned, seed=seed) for seed in (0, 0, 1))
    assert first.id == same.id != second.id
    assert [c.bits.tolist() for c in first.changes] == [c.bits.tolist() for c in same.changes]


def test_a_layer_draws_the_same_whatever_the_others(pipe):
    alone = edit_of(pipe, random_mask(pipe, FF))
    other = edit_of(pipe, random_mask(pipe, "unet.conv_in.weight"), random_mask(pipe, FF))
    both = {c.param: c.bits.tolist() for c in control_mask(other).changes}
    assert both[FF] == control_mask(alone).changes[0].bits.tolist()


def test_bad_input(pipe, pruned):
    with pytest.raises(BadInput, match="only masks"):
        control_mask(edit_of(pipe, random_delta(pipe, FF)))
    with pytest.raises(BadInput, match="needs the weights"):
        control_mask(pruned, kind="magnitude")
    with pytest.raises(UnknownName, match="nearest: random"):
        control_mask(pruned, kind="randon")
    with pytest.raises(WrongModel):
        control_mask(pruned, tiny_pipeline(seed=1), kind="magnitude")
