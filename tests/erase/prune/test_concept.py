from __future__ import annotations

import json
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import probe
from erase import concept_prune, load_edit, masks
from erase._changes import Delta, Mask
from probe.errors import BadInput, HeaderMismatch, UnknownName, WrongModel
from probe.testing import tiny_pipeline
from tests.erase.prune.maps import EARLY, TIMESTEPS, norms, wanda_map
from tests.erase.snapshots import parameter, snapshot
from tests.oracles.masks import concept_mask

RATIO = 0.05  # 6 of 128 units, 12 of 256


def on_the_grid(pipe):
    """Weights on a coarse grid: products are exact in float32, and tie."""
    with torch.no_grad():
        for site in probe.sites(pipe):
            weight = site.resolve(pipe).weight
            weight.copy_((weight * 64).round() / 16)
    return pipe


@pytest.fixture(scope="module")
def grid():
    return on_the_grid(tiny_pipeline())


def masks_of(edit):
    return {change.param: change.dense() for change in edit.changes}


def by_layer(pipe, values):
    """Split (t n) over the sites: parameter -> list of lists."""
    parts, start = {}, 0
    for site in probe.sites(pipe):
        parts[f"{site.component}.{site.module}.weight"] = values[:, start : start + site.width].tolist()
        start += site.width
    return parts


@pytest.mark.parametrize("vote", [0.0, 0.5])
@pytest.mark.parametrize("window", [(999, 821), (860, 700), (941, 941)])
def test_masks_equal_the_brute_force_twin(grid, window, vote):
    target, reference = norms(grid, len(EARLY))
    edit = concept_prune(grid, wanda_map(grid, target, reference, EARLY), skill_ratio=RATIO, window=window, vote=vote)
    targets, references = by_layer(grid, target), by_layer(grid, reference)
    found = masks_of(edit)
    assert list(found) == sorted(targets)
    for param, mask in found.items():
        weight = parameter(grid, param).tolist()
        wanted = concept_mask(weight, targets[param], references[param], EARLY, RATIO, window, vote)
        assert mask.tolist() == wanted


def test_the_pipeline_is_read_and_not_changed(pipe):
    before = snapshot(pipe)
    edit = concept_prune(pipe, wanda_map(pipe, *norms(pipe, 10), TIMESTEPS), skill_ratio=RATIO)
    assert snapshot(pipe) == before
    biases = {name: p.clone() for name, p in pipe.unet.named_parameters() if name.endswith("bias")}
    with edit.applied(pipe):
        assert all(torch.equal(p, dict(pipe.unet.named_parameters())[name]) for name, p in biases.items())
        for param, mask in masks_of(edit).items():
            weight = parameter(pipe, param)
            assert not weight[mask].any()
            assert weight[~mask].all()


def test_target_equal_to_reference_gives_an_empty_mask(pipe):
    target, _ = norms(pipe, 10)
    edit = concept_prune(pipe, wanda_map(pipe, target, target, TIMESTEPS), skill_ratio=1.0, window=None)
    assert edit.density == 0
    assert edit.report["density"] == 0
    with edit.applied(pipe):
        pass


def test_the_default_window_is_the_first_steps_of_the_paper(pipe):
    nm = wanda_map(pipe, *norms(pipe, 7), EARLY)
    edit = concept_prune(pipe, nm, skill_ratio=RATIO)
    assert edit.report["timesteps"] == [(t, t) for t in EARLY[:5]]
    assert edit.options["window"] == [999, 821]


def test_first_steps_is_sugar_for_a_window(pipe):
    nm = wanda_map(pipe, *norms(pipe, 7), EARLY)
    sugar = concept_prune(pipe, nm, skill_ratio=RATIO, first_steps=3)
    plain = concept_prune(pipe, nm, skill_ratio=RATIO, window=(981, 901))
    assert sugar.id == plain.id
    assert sugar.options["window"] == [981, 901]
    with pytest.raises(BadInput, match="1 to 7"):
        concept_prune(pipe, nm, skill_ratio=RATIO, first_steps=8)
    with pytest.raises(BadInput, match="twice"):
        concept_prune(pipe, nm, skill_ratio=RATIO, first_steps=2, window=(981, 901))


def test_calls_that_share_a_timestep_count_as_steps_of_their_own(pipe):
    target, reference = norms(pipe, 3)
    nm = wanda_map(pipe, target, reference, [981, 961, 961])  # PNDM repeats its second timestep
    assert concept_prune(pipe, nm, skill_ratio=RATIO, first_steps=3).report["steps"] == 3
    with pytest.raises(BadInput, match="first_steps=3"):
        concept_prune(pipe, nm, skill_ratio=RATIO, first_steps=2)


@given(st.integers(0, 2**31), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(1, 10), st.integers(1, 10))
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_union_grows_with_k_and_with_the_window(pipe, seed, k_1, k_2, n_1, n_2):
    nm = wanda_map(pipe, *norms(pipe, 10, seed), TIMESTEPS)
    (k_1, k_2), (n_1, n_2) = sorted((k_1, k_2)), sorted((n_1, n_2))
    few = masks_of(concept_prune(pipe, nm, skill_ratio=k_1, first_steps=n_1))
    for more in (
        masks_of(concept_prune(pipe, nm, skill_ratio=k_2, first_steps=n_1)),
        masks_of(concept_prune(pipe, nm, skill_ratio=k_1, first_steps=n_2)),
    ):
        assert not any((few[param] & ~more[param]).any() for param in few)
    for mask in few.values():
        assert mask.sum(1).max() <= n_1 * masks.selected(k_1, mask.shape[1])


def test_permuting_hidden_units_permutes_columns(own_pipe):
    target, reference = norms(own_pipe, 2)
    sites = probe.sites(own_pipe)
    offsets = np.cumsum([0, *(site.width for site in sites)])
    kwargs = {"skill_ratio": RATIO, "window": None}
    plain = masks_of(concept_prune(own_pipe, wanda_map(own_pipe, target, reference, EARLY[:2]), **kwargs))
    orders = {}
    for site, a, b in zip(sites, offsets, offsets[1:], strict=False):
        order = torch.randperm(site.width, generator=torch.Generator().manual_seed(site.order))
        with torch.no_grad():
            linear = site.resolve(own_pipe)
            linear.weight.copy_(linear.weight[:, order].clone())
        target[:, a:b], reference[:, a:b] = target[:, a:b][:, order], reference[:, a:b][:, order]
        orders[f"unet.{site.module}.weight"] = order
    again = masks_of(concept_prune(own_pipe, wanda_map(own_pipe, target, reference, EARLY[:2]), **kwargs))
    for param, order in orders.items():
        assert torch.equal(again[param], plain[param][:, order])


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_option_changes_the_mask_and_the_id(grid):
    target, reference = norms(grid, 4)
    reference = np.minimum(reference, target - 0.04 * (target > 0.5))  # many units just above their reference
    target += np.float32(1e-4)
    nm = wanda_map(grid, target, reference, EARLY[:4])
    variants = [
        {},
        {"scope": "global"},
        {"margin": 0.05},
        {"vote": 0.5},
        {"reference_topk": "excluded"},
        {"window": (901, 861)},
        {"skill_ratio": 0.1},
    ]
    edits = [concept_prune(grid, nm, **{"skill_ratio": RATIO, **options}) for options in variants]
    bits = [b"".join(change.bits.numpy().tobytes() for change in edit.changes) for edit in edits]
    assert len(set(bits)) == len(variants)
    assert len({edit.id for edit in edits}) == len(variants)


def test_margin_and_excluded_topk_only_take_away_and_global_scope_counts_by_layer(pipe):
    nm = wanda_map(pipe, *norms(pipe, 2), EARLY[:2])
    plain = masks_of(concept_prune(pipe, nm, skill_ratio=RATIO, first_steps=1))
    for options in ({"margin": 0.2}, {"reference_topk": "excluded"}):
        less = masks_of(concept_prune(pipe, nm, skill_ratio=RATIO, first_steps=1, **options))
        assert not any((less[param] & ~plain[param]).any() for param in plain)
    for mask in masks_of(concept_prune(pipe, nm, skill_ratio=RATIO, first_steps=1, scope="global")).values():
        assert 0 < mask.sum() <= int(RATIO * mask.numel())


def test_half_precision_loses_what_rounds_to_a_tie(pipe):
    target, _ = norms(pipe, 1)
    target += 0.25
    nm = wanda_map(pipe, target, target * np.float32(1 - 1e-5), EARLY[:1])
    assert concept_prune(pipe, nm, skill_ratio=RATIO).density > 0.02
    assert concept_prune(pipe, nm, skill_ratio=RATIO, precision="float16").density < 0.01


def test_noise_fills_the_same_places_and_nothing_else(pipe):
    nm = wanda_map(pipe, *norms(pipe, 2), EARLY[:2])
    zeros = concept_prune(pipe, nm, skill_ratio=0.3)
    filled = concept_prune(pipe, nm, skill_ratio=0.3, fill_std=0.5)
    assert {type(change) for change in filled.changes} == {Delta}
    assert filled.report["density"] == zeros.report["density"]
    before = {param: parameter(pipe, param).detach().clone() for param in zeros.params}
    with filled.applied(pipe):
        for param, mask in masks_of(zeros).items():
            now = parameter(pipe, param).detach()
            assert torch.equal(now[~mask], before[param][~mask])
            assert now[mask].std() == pytest.approx(0.5 * before[param].std().item(), rel=0.15)
    assert filled.id == concept_prune(pipe, nm, skill_ratio=0.3, fill_std=0.5).id
    assert filled.id != concept_prune(pipe, nm, skill_ratio=0.3, fill_std=0.5, seed=1).id


def test_text_encoders_are_pruned_over_their_one_window(pipe):
    target, reference = norms(pipe, 1, sites="mlp")
    found = wanda_map(pipe, target, reference, [0], sites="mlp")
    nm = probe.NeuronMap(found.dataset.assign_coords(t_max=("window", [999]), t_min=("window", [0])))
    with pytest.raises(BadInput, match=r"\(999, 0\).*window=None"):
        concept_prune(pipe, nm, skill_ratio=RATIO)
    edit = concept_prune(pipe, nm, skill_ratio=RATIO, window=None)
    assert [param.startswith("text_encoder.text_model.encoder.layers.") for param in edit.params] == [True, True]
    with edit.applied(pipe):
        assert not parameter(pipe, edit.params[0])[edit.changes[0].dense()].any()


# --- keep -------------------------------------------------------------------------------------------------------------


def test_selected_units_of_a_kept_map_are_never_masked(pipe):
    nm = wanda_map(pipe, *norms(pipe, 4), EARLY[:4])
    protected = wanda_map(pipe, *norms(pipe, 4, seed=5), EARLY[:4]).select(top=200)
    plain = concept_prune(pipe, nm, skill_ratio=RATIO)
    edit = concept_prune(pipe, nm, skill_ratio=RATIO, keep=protected)
    assert edit.provenance["identity"]["inputs"] == {"map": nm.id, "keep": protected.id}
    offset, spared = 0, protected.selected("any")
    for site in nm.sites:
        param = f"unet.{site.module}.weight"
        columns = torch.from_numpy(spared[offset : offset + site.width])
        assert torch.equal(masks_of(edit)[param], masks_of(plain)[param] & ~columns)
        offset += site.width
    with pytest.raises(BadInput, match="no selection"):
        concept_prune(pipe, nm, skill_ratio=RATIO, keep=nm)
    with pytest.raises(BadInput, match="no site"):
        concept_prune(
            pipe, nm, skill_ratio=RATIO, keep=wanda_map(pipe, *norms(pipe, 1, 0, "mlp"), [0], "mlp").select(top=1)
        )


def test_a_map_to_keep_may_come_from_disk_but_not_from_another_model(pipe, tmp_path):
    nm = wanda_map(pipe, *norms(pipe, 4), EARLY[:4])
    protected = wanda_map(pipe, *norms(pipe, 4, seed=5), EARLY[:4]).select(top=200)
    path = protected.save(tmp_path / "keep.zarr.zip")
    assert concept_prune(pipe, nm, keep=path).id == concept_prune(pipe, nm, keep=protected).id
    other = tiny_pipeline(seed=1)
    with pytest.raises(WrongModel, match="map to keep"):
        concept_prune(pipe, nm, keep=wanda_map(other, *norms(other, 4), EARLY[:4]).select(top=3))


# --- reports ----------------------------------------------------------------------------------------------------------


def test_reports_add_up(pipe):
    nm = wanda_map(pipe, *norms(pipe, 3), EARLY[:3])
    edit = concept_prune(pipe, nm, skill_ratio=RATIO)
    report = edit.report
    assert report["density"] == pytest.approx(edit.density)
    assert report["masked"] == sum(int(mask.sum()) for mask in masks_of(edit).values())
    for param, mask in masks_of(edit).items():
        layer = report["layers"][param]
        share = mask.float().mean(0)
        assert layer["density"] == pytest.approx(mask.float().mean().item())
        assert layer["row_share"]["units"] == (share > 0).sum()
        assert layer["row_share"]["max"] == pytest.approx(share.max().item())
        assert report["per_row"][param] == int(RATIO * mask.shape[1])
    assert json.loads(json.dumps(edit.provenance))["report"]["steps"] == 3


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"skill_ratio": 0.0}, BadInput, r"in \(0, 1\]"),
        ({"skill_ratio": 1.5}, BadInput, r"in \(0, 1\]"),
        ({"skill_ratio": math.nan}, BadInput, r"in \(0, 1\]"),
        ({"skill_ratio": 0.001}, BadInput, "skill_ratio=0.0078125 is the smallest"),
        ({"skill_ratio": "much"}, BadInput, "skill_ratio"),
        ({"vote": 1.0}, BadInput, r"in \[0, 1\)"),
        ({"margin": -0.1}, BadInput, "margin"),
        ({"fill_std": math.inf}, BadInput, "fill_std"),
        ({"window": (700, 600)}, BadInput, "981, 941, 901"),
        ({"window": (821, 999)}, BadInput, "981, 941, 901"),
        ({"window": 5}, BadInput, "window"),
        ({"scope": "rows"}, UnknownName, "nearest: row"),
        ({"skil_ratio": 0.1}, UnknownName, "nearest: skill_ratio"),
        ({"keep": "no/such/run"}, BadInput, "no/such/run"),
    ],
)
def test_bad_options_say_what_would_do(pipe, options, error, message):
    nm = wanda_map(pipe, *norms(pipe, 3), EARLY[:3])
    with pytest.raises(error, match=message):
        concept_prune(pipe, nm, **{"skill_ratio": RATIO, **options})


def test_the_smallest_valid_ratio_is_valid(pipe):
    nm = wanda_map(pipe, *norms(pipe, 3), EARLY[:3])
    concept_prune(pipe, nm, skill_ratio=0.0078125)


def test_maps_without_norms_or_of_another_model_are_refused(pipe, caplog):
    target, reference = norms(pipe, 2)
    with pytest.raises(BadInput, match="a contrast map"):
        concept_prune(pipe, wanda_map(pipe, target, reference, EARLY[:2], method="contrast"))
    bare = probe.NeuronMap(wanda_map(pipe, target, reference, EARLY[:2]).dataset.drop_vars("reference"))
    with pytest.raises(BadInput, match="without reference"):
        concept_prune(pipe, bare)
    other = tiny_pipeline(seed=1)
    with pytest.raises(WrongModel, match="unet differs in weights"):
        concept_prune(pipe, wanda_map(other, target, reference, EARLY[:2]))
    other = tiny_pipeline("sd21")
    with pytest.raises(WrongModel, match="unet differs in architecture"):
        concept_prune(pipe, wanda_map(other, target, reference, EARLY[:2]))
    half = tiny_pipeline().to(torch.float16)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        concept_prune(half, wanda_map(pipe, target, reference, EARLY[:2]), skill_ratio=RATIO)
    assert len(caplog.records) == 1


# --- from recordings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a concept, its reference and prompts to protect, on one tiny pipeline."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("runs")
    prompts = {"target": ["a church", "an old church"], "reference": ["a house", "an old house"], "keep": ["a red cat"]}
    for name, texts in prompts.items():
        probe.record(pipe, texts, out=folder / name, reduce="unit_norm", steps=4, images=False, progress=False)
    return pipe, folder


@pytest.mark.parametrize("branches", ["both", "cond"])
def test_a_protected_run_spares_units_that_are_stronger_there(runs, branches):
    pipe, folder = runs
    nm = probe.score(folder / "target", folder / "reference", branches=branches)
    edit = concept_prune(pipe, nm, skill_ratio=0.1, window=None, keep=folder / "keep")
    ds = probe.open_run(folder / "keep")
    values = ds["unit_norm"].sel(branch=["cond"] if branches == "cond" else ["uncond", "cond"]).values.astype(float)
    assert values.shape[1] == (1 if branches == "cond" else 2)
    target, reference = (nm.dataset[name].values for name in ("target", "reference"))
    offset = 0
    for row in json.loads(ds.attrs["sites"]):
        units = slice(offset, offset := offset + row["width"])
        protected = np.sqrt((values[..., units] ** 2).mean((0, 1)) / row["rows"])  # (t n)
        weight = site_weight(pipe, row)
        wanted = torch.zeros(weight.shape, dtype=torch.bool)
        for t in range(len(target)):
            mask = masks.skilled(
                weight, torch.tensor(target[t, units]), torch.tensor(reference[t, units]), int(0.1 * row["width"])
            )
            wanted |= mask & ~torch.tensor(protected[t].astype(np.float32) > target[t, units])
        assert torch.equal(masks_of(edit)[f"unet.{row['module']}.weight"], wanted)
    assert edit.density < concept_prune(pipe, nm, skill_ratio=0.1, window=None).density
    assert edit.id == concept_prune(pipe, nm, skill_ratio=0.1, window=None, keep=probe.Run(folder / "keep")).id


def site_weight(pipe, row):
    return pipe.unet.get_submodule(row["module"]).weight.detach()


def test_a_protected_run_must_be_recorded_alike_and_compared_by_means(runs, tmp_path):
    pipe, folder = runs
    out = tmp_path / "other"
    probe.record(pipe, ["a cat"], out=out, reduce="unit_norm", steps=3, images=False, progress=False)
    nm = probe.score(folder / "target", folder / "reference")
    with pytest.raises(HeaderMismatch, match="steps"):
        concept_prune(pipe, nm, skill_ratio=0.1, window=None, keep=out)
    sums = probe.score(folder / "target", folder / "reference", normalise="sum")
    with pytest.raises(BadInput, match="root means"):
        concept_prune(pipe, sums, skill_ratio=0.1, window=None, keep=folder / "keep")
    one, other = (concept_prune(pipe, m, skill_ratio=0.1, window=None) for m in (nm, sums))
    assert [c.bits.tolist() for c in one.changes] == [c.bits.tolist() for c in other.changes]  # equal counts


def test_duplicated_references_change_nothing(runs, tmp_path):
    pipe, folder = runs
    texts = ["a house", "an old house"] * 2
    probe.record(pipe, texts, out=tmp_path / "twice", reduce="unit_norm", steps=4, images=False, progress=False)
    once, twice = (probe.score(folder / "target", path) for path in (folder / "reference", tmp_path / "twice"))
    edits = [concept_prune(pipe, nm, skill_ratio=0.1, window=None) for nm in (once, twice)]
    assert [c.bits.tolist() for c in edits[0].changes] == [c.bits.tolist() for c in edits[1].changes]


FRESH = """
import sys
import erase, probe
from probe.testing import tiny_pipeline

pipe = tiny_pipeline()
edit = erase.concept_prune(pipe, probe.NeuronMap.load(sys.argv[1]), skill_ratio=0.1, window=None)
edit.save_pretrained(sys.argv[2])
"""


@pytest.mark.slow
def test_pruning_from_a_saved_map_in_a_fresh_process(runs, tmp_path):
    pipe, folder = runs
    nm = probe.score(folder / "target", folder / "reference")
    nm.save(tmp_path / "map.zarr.zip")
    paths = [str(tmp_path / "map.zarr.zip"), str(tmp_path / "edit")]
    subprocess.run([sys.executable, "-W", "error", "-c", FRESH, *paths], check=True, capture_output=True)
    again, here = load_edit(tmp_path / "edit"), concept_prune(pipe, nm, skill_ratio=0.1, window=None)
    assert again.id == here.id
    assert here.density > 0
    assert all(isinstance(change, Mask) for change in again.changes)
    with again.applied(pipe):
        assert not parameter(pipe, again.params[0])[again.changes[0].dense()].any()


# --- Several concepts -------------------------------------------------------------------------------------------------


def test_several_maps_give_the_union_of_their_masks(pipe):
    maps = [wanda_map(pipe, *norms(pipe, 10, seed), TIMESTEPS) for seed in range(3)]
    single = [concept_prune(pipe, nm, skill_ratio=RATIO) for nm in maps]
    joint = concept_prune(pipe, maps, skill_ratio=RATIO)
    for param, mask in masks_of(joint).items():
        expected = masks_of(single[0])[param] | masks_of(single[1])[param] | masks_of(single[2])[param]
        assert torch.equal(mask, expected)
    assert joint.provenance["identity"]["inputs"]["map"] == [nm.id for nm in maps]
    each = joint.report["concepts"]
    assert [each[nm.id]["density"] for nm in maps] == [edit.report["density"] for edit in single]
    assert concept_prune(pipe, maps[:1], skill_ratio=RATIO).id == single[0].id
    with pytest.raises(BadInput, match="no neuron map"):
        concept_prune(pipe, [])
