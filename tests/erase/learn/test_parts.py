from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import erase
import probe
from erase.learn import GROUPS, Part, Weights, parts_of
from probe import NeuronMap
from probe.errors import BadInput, WrongModel
from probe.testing import tiny_pipeline
from tests.erase.learn.kit import FEW
from tests.erase.snapshots import FF, KEY, edit_of, parameter, random_delta, random_mask, snapshot


def names(pipe, train, **options):
    return [part.param.removeprefix("unet.") for part in parts_of(pipe, train, **options)]


def selecting(pipe, sites, units):
    """A map whose selection is those units of every site."""
    found = probe.sites(pipe, sites)
    chosen = np.concatenate([np.isin(np.arange(site.width), units) for site in found])
    return NeuronMap.build(
        method="contrast",
        score=chosen[None].astype(np.float32),
        windows=[(999, 0)],
        sites=found,
        identity={"model": probe.fingerprint(pipe).to_json(["unet"])},
        selected=chosen[None],
    )


# --- Groups -----------------------------------------------------------------------------------------------------------


def test_groups_are_those_of_the_papers(pipe):
    every = [name for name, _ in pipe.unet.named_parameters()]
    cross = [name for name in every if "attn2" in name]
    assert names(pipe, "x") == cross
    assert names(pipe, "x-strict") == [name for name in cross if ".to_k." in name or ".to_v." in name]
    assert names(pipe, "self") == [name for name in every if "attn1" in name]
    assert names(pipe, "full") == every
    assert set(names(pipe, "attn")) == set(names(pipe, "x")) | set(names(pipe, "self"))


def test_u_is_all_but_cross_attention_the_output_and_the_time(pipe):
    found = set(names(pipe, "u"))
    left_out = {name for name, _ in pipe.unet.named_parameters()} - found
    assert {name.split(".")[0] for name in left_out if "attn2" not in name} == {
        "time_embedding",
        "conv_norm_out",
        "conv_out",
    }
    assert any("norm" in name for name in found), "norms are trained, as in the paper's code"


def test_u_of_the_newer_release_has_linears_and_convolutions_only(pipe):
    found = set(names(pipe, "u-release"))
    assert any(name.startswith("time_embedding") for name in found)
    assert any(name.startswith("conv_out") for name in found)
    owners = {type(pipe.unet.get_submodule(name.rpartition(".")[0])) for name in found}
    assert all(issubclass(owner, nn.Linear | nn.Conv2d) for owner in owners)
    xl = set(names(tiny_pipeline("sdxl"), "u-release"))
    assert xl
    assert all("block" in name and "emb" not in name for name in xl)


def test_patterns_sites_and_lists(pipe):
    assert names(pipe, "*.attn2.to_v.weight") == names(pipe, ["unet.*.attn2.to_v.weight"]) == names(pipe, "xattn.v")
    mid = names(pipe, "unet.mid_block.*.ffn")
    assert mid == [FF.removeprefix("unet."), FF.removeprefix("unet.").replace("weight", "bias")]
    assert names(pipe, "unet.mid_block.*.ffn", weights_only=True) == mid[:1]
    assert set(names(pipe, ["self", "x"])) == set(names(pipe, "attn"))
    assert all(".to_q." in name or ".to_k." in name for name in names(pipe, "xattn.prob"))
    assert all(".to_out.0." in name for name in names(pipe, "xattn.out"))


def test_nothing_matched_lists_what_would_have(pipe):
    with pytest.raises(BadInput, match="esd-x") as raised:
        parts_of(pipe, "esd-x")
    assert all(f"{group} (" in raised.value.message for group in GROUPS)
    assert "x" in raised.value.nearest
    with pytest.raises(BadInput, match="no parameter"):
        parts_of(pipe, "*.norm1.weight", weights_only=True)


# --- Neuron maps ------------------------------------------------------------------------------------------------------


def test_a_map_gives_the_columns_or_rows_of_its_units(pipe):
    found = parts_of(pipe, selecting(pipe, "unet.mid_block.*.ffn", [1, 4]))
    assert found == [Part(FF, 1, (1, 4))]
    keys = parts_of(pipe, selecting(pipe, "unet.mid_block.*.xattn.k", [0]))
    assert keys == [Part(KEY, 0, (0,))]


def test_maps_that_cannot_be_trained_are_refused(pipe):
    with pytest.raises(BadInput, match="selects no unit"):
        parts_of(pipe, selecting(pipe, "ffn", []))
    with pytest.raises(BadInput, match="no weights to train"):
        parts_of(pipe, selecting(pipe, "unet.mid_block.*.xattn.prob", [0]))
    with pytest.raises(WrongModel, match="neuron map"):
        parts_of(pipe, selecting(tiny_pipeline(seed=3), "ffn", [0]))


def test_only_the_chosen_units_learn(pipe):
    nm = selecting(pipe, "unet.mid_block.*.ffn", [1, 4])
    edit = erase.esd(pipe, "church", train=nm, iterations=2, **FEW)
    (change,) = edit.changes
    delta = change.dense()
    touched = delta.abs().sum(0) > 0
    assert touched.nonzero().flatten().tolist() == [1, 4]
    assert edit.report["trained"] == 2 * delta.shape[0]
    assert isinstance(change.value, tuple), "few columns are stored as a pair"
    assert edit.provenance["identity"]["inputs"]["map"] == nm.id


def test_a_saved_map_is_named_by_its_path(pipe, tmp_path):
    nm = selecting(pipe, "unet.mid_block.*.ffn", [1, 4])
    path = nm.save(tmp_path / "units.zarr.zip")
    for train in (path, str(path)):
        edit = erase.esd(pipe, "church", train=train, iterations=1, **FEW)
        assert edit.provenance["identity"]["inputs"]["map"] == nm.id


# --- Weights as a student ---------------------------------------------------------------------------------------------


def test_weights_are_exchanged_and_put_back(pipe):
    before = snapshot(pipe)
    student = Weights(pipe, parts_of(pipe, "x"))
    original = parameter(pipe, KEY)

    def interrupted():
        with student.in_force(0):
            assert parameter(pipe, KEY) is student.leaves[KEY]
            with student.suspended():
                assert parameter(pipe, KEY).data_ptr() == original.data_ptr()
            assert parameter(pipe, KEY) is student.leaves[KEY]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert snapshot(pipe) == before
    assert all(torch.equal(change.dense(), torch.zeros(change.shape)) for change in student.changes())


def test_half_precision_weights_are_trained_in_float32():
    pipe = tiny_pipeline().to(torch.bfloat16)
    student = Weights(pipe, parts_of(pipe, "x"))
    assert {leaf.dtype for leaf in student.leaves.values()} == {torch.float32}
    edit = erase.esd(pipe, "church", iterations=2, **{**FEW, "lr": 1e-5})
    assert edit.options["precision"] == "bfloat16"
    sizes = torch.cat([change.dense().abs().flatten() for change in edit.changes])
    assert 0 < float(sizes.max()) < 1e-4, "steps that bfloat16 would round away"


def test_training_starts_from_edits_in_force_and_keeps_their_zeros(own_pipe):
    base = edit_of(own_pipe, random_delta(own_pipe, FF), random_mask(own_pipe, FF), name="base")
    with base.applied(own_pipe):
        edited = parameter(own_pipe, FF).clone()
        edit = erase.esd(own_pipe, "church", train=[FF], iterations=2, **FEW)
        assert torch.equal(parameter(own_pipe, FF), edited)
        with edit.applied(own_pipe):
            found = parameter(own_pipe, FF)
            assert torch.equal(found == 0, edited == 0)
            assert not torch.equal(found, edited)
    assert edit.base_edits == [(base.id, "base")]
