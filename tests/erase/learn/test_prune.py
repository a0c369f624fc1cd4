from __future__ import annotations

import numpy as np
import pytest
import torch

import erase
import probe
from erase import masks
from erase._changes import Mask
from erase.learn import parts_of
from probe.errors import BadInput
from probe.testing import tiny_pipeline
from tests.erase.learn.kit import FEW, FEW_PICTURES
from tests.erase.learn.test_parts import selecting
from tests.erase.snapshots import FF, parameter, snapshot
from tests.probe.test_sensitivity import CHURCH, QUICK, attack_set, scaled_ff

KINDS = ("sd15", "sd21", "sdxl")
FEW_GATES = {**FEW, "retain": 0.0}


@pytest.fixture(scope="module", params=KINDS)
def any_pipe(request):
    pipe = tiny_pipeline(request.param)
    probe.generate(pipe, probe.samples(["a church"]), steps=1, progress=False)
    return pipe


@pytest.mark.parametrize("gates", ["hard-concrete", "straight-through"])
@pytest.mark.parametrize("unit", ["weight", "neuron"])
def test_an_iteration_of_p_esd_on_every_kind_of_model(any_pipe, gates, unit):
    before = snapshot(any_pipe)
    edit = erase.differentiable_prune(any_pipe, "church", iterations=1, gates=gates, unit=unit, **FEW_GATES)
    assert snapshot(any_pipe) == before
    assert all(isinstance(change, Mask) for change in edit.changes)
    assert edit.params == tuple(sorted(part.param for part in parts_of(any_pipe, "x", weights_only=True)))
    assert edit.report["density"] == 0, "one step does not close a gate that starts at 5"
    assert set(edit.report["losses"]) == {"iteration", "loss", "erase", "sparsity"}


def test_an_iteration_of_p_ac_on_every_kind_of_model(any_pipe):
    before = snapshot(any_pipe)
    edit = erase.differentiable_prune(
        any_pipe, "church", objective="ac", anchor="a building", iterations=1, retain=0.5, preserve=["a house"],
        cached=2, **FEW_PICTURES,
    )  # fmt: skip
    assert snapshot(any_pipe) == before
    assert set(edit.report["losses"]) == {"iteration", "loss", "erase", "sparsity", "retain"}
    assert edit.name == "p-ac"


@pytest.mark.parametrize("gates", ["hard-concrete", pytest.param("straight-through", marks=pytest.mark.slow)])
def test_weights_are_pruned_where_the_loss_wants_them_gone(pipe, gates):
    few = {**FEW_GATES, "lr": 0.5, "iterations": 30, "sparsity": 0.0, "gates": gates}
    edit = erase.differentiable_prune(pipe, "church", **few)
    assert 0 < edit.density < 1
    assert edit.density == pytest.approx(edit.report["density"])
    kept = erase.differentiable_prune(pipe, "church", **{**few, "sparsity": 1e3})
    assert kept.density < edit.density, "a larger weight of closed gates prunes less"
    before = snapshot(pipe)
    with edit.applied(pipe):
        for change in edit.changes:
            assert not parameter(pipe, change.param)[change.dense()].any()
    assert snapshot(pipe) == before


def test_masks_are_packed_bits(pipe, tmp_path):
    edit = erase.differentiable_prune(pipe, "church", iterations=1, **FEW_GATES)
    weights = sum(change.dense().numel() for change in edit.changes)
    assert edit.nbytes <= weights / 8 + len(edit.changes)
    assert erase.load_edit(edit.save_pretrained(tmp_path / "edit")).id == edit.id
    assert all(torch.equal(masks.unpack(c.bits, c.shape), c.dense()) for c in edit.changes)


def test_a_map_restricts_the_gates_to_its_units(pipe):
    nm = selecting(pipe, "unet.mid_block.*.ffn", [1, 4])
    edit = erase.differentiable_prune(
        pipe, "church", train=nm, unit="neuron", **{**FEW_GATES, "iterations": 3, "lr": 50.0, "sparsity": 0.0}
    )
    (change,) = edit.changes
    assert change.param == FF
    columns = change.dense().any(0).nonzero().flatten().tolist()
    assert set(columns) <= {1, 4}
    assert edit.provenance["identity"]["inputs"]["map"] == nm.id
    whole = change.dense().all(0)
    assert torch.equal(whole, change.dense().any(0)), "a neuron goes as a whole"


@pytest.mark.slow
def test_a_saved_sensitivity_decides_what_is_pruned_or_trained(pipe, tmp_path):
    edit = scaled_ff(pipe, 0.5)
    attacks = attack_set(pipe, edit_id=edit.id)
    found = probe.sensitivity(pipe, edit, adversarial=attacks, concept=CHURCH, n_select=2, share=0.02, **QUICK)
    found.save(tmp_path / "church.zarr.zip")
    nm = probe.NeuronMap.load(tmp_path / "church.zarr.zip")
    chosen = nm.selected("any")
    units = {
        f"unet.{site.module}.weight": set(np.flatnonzero(chosen[start:stop]).tolist())
        for site, start, stop in zip(nm.sites, nm.offsets, nm.offsets[1:], strict=False)
    }
    few = {**FEW, "train": nm, "iterations": 2}
    pruned = erase.differentiable_prune(pipe, "church", **{**few, "unit": "neuron", "lr": 50.0, "sparsity": 0.0,
                                                           "retain": 0.0})  # fmt: skip
    trained = erase.esd(pipe, "church", **few)
    touched = {c.param: set(c.dense().any(0).nonzero().flatten().tolist()) for c in trained.changes}
    assert touched == {param: own for param, own in units.items() if own}, "these columns moved, and no others"
    for change in pruned.changes:
        assert set(change.dense().any(0).nonzero().flatten().tolist()) <= units[change.param]
    assert {e.provenance["identity"]["inputs"]["map"] for e in (pruned, trained)} == {found.id}


def test_the_prediction_with_open_gates_is_the_models(pipe):
    edit = erase.differentiable_prune(
        pipe, "church", iterations=1, gates="straight-through", **{**FEW, "retain": 1.0, "preserve": ["a house"]}
    )
    assert edit.report["losses"]["retain"] == [0.0]


def test_a_text_alone_is_pruned_without_a_retain_term(pipe):
    edit = erase.differentiable_prune(pipe, "church", iterations=1, **FEW)
    assert edit.options["retain"] == 0
    assert "retain" not in edit.report["losses"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prior": 1.0}, "other objective"),
        ({"variant": "noise"}, "other objective"),
        ({"objective": "ac", "eta": 2.0, "anchor": "a house"}, "other objective"),
        ({"objective": "ac", "x_t": "student", "anchor": "a house"}, "other objective"),
        ({"objective": "ac"}, "no anchor"),
        ({"train": "*.norm1.*"}, "no parameter"),
        ({"init": float("nan")}, "init"),
        ({"sparsity": -1.0}, "sparsity"),
        ({"retain": 0.1}, "retain"),
    ],
)
def test_what_cannot_work_is_refused(pipe, options, said):
    with pytest.raises(BadInput, match=said):
        erase.differentiable_prune(pipe, "church", **{**FEW_GATES, **options})
