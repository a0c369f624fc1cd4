"""What a recording holds, that nothing else decides it, and that it can be stopped and go on with the same bits."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import PNDMScheduler

from probe._record import by_site, open_run, record, verify
from probe._run import Run
from probe._sites import sites
from probe._store import RunStore
from probe.errors import BadInput, HeaderMismatch, NeverFired, StoreDamaged, UnknownName, WorkbenchError
from probe.testing import tiny_pipeline
from tests.oracles.recording import activations, fan_out
from tests.oracles.reduce import reduce_rows
from tests.probe.conftest import GUIDANCE, STEPS, TARGET

SMALL = {"steps": 2, "batch_size": 2, "progress": False, "images": False}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def hooks(pipe) -> int:
    modules = [m for part in (pipe.unet, pipe.text_encoder, pipe.vae) for m in part.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def same_bits(a, b, group="unet"):
    """Every stored value of two runs, compared as bytes (NaN equals NaN)."""
    ours, theirs = open_run(a, group), open_run(b, group)
    for name in ours.variables:
        if ours[name].dtype.kind in "fiu":
            assert ours[name].values.tobytes() == theirs[name].values.tobytes(), name
        else:
            assert ours[name].values.tolist() == theirs[name].values.tolist(), name


# --- what is recorded ---


@pytest.mark.parametrize("name", ["unit_norm", "absmean"])
def test_stored_numbers_equal_one_prompt_at_a_time_with_every_activation_kept(recorded, name):
    ds = recorded.target.open()
    chosen = sites(recorded.pipe)
    for s, (prompt, seed) in enumerate(zip(TARGET, recorded.options["seeds"], strict=True)):
        kept = activations(recorded.pipe, [site.module for site in chosen], prompt, seed, STEPS, GUIDANCE)
        for site, part in zip(chosen, by_site(ds).values(), strict=True):
            for step in range(STEPS):
                for b in range(2):  # uncond, cond
                    wanted = reduce_rows(name, kept[site.module][step][b].tolist())
                    found = part[name].isel(sample=s, branch=b, step=step).values
                    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-6)


def test_axes_and_coordinates(recorded):
    ds = recorded.target.open()
    assert ds["unit_norm"].dims == ("sample", "branch", "step", "neuron")
    assert ds["unit_norm"].dtype == np.float32
    assert ds["branch"].values.tolist() == ["uncond", "cond"]
    assert ds["timestep"].values.tolist() == [501, 1]
    assert ds["prompt"].values.tolist() == TARGET
    assert ds["seed"].values.tolist() == [5, 6, 7]
    assert np.isnan(ds["shown"].values).all()
    described = json.loads(ds.attrs["sites"])
    assert [row["name"] for row in described] == [site.name for site in sites(recorded.pipe)]
    assert [row["offset"] for row in described] == [0, 128, 384, 512]
    assert [row["rows"] for row in described] == [64, 16, 64, 64]


def test_views_of_sites_come_in_order_of_execution_also_after_a_selection(recorded):
    ds = recorded.target.open()
    assert list(by_site(ds)) == [site.name for site in sites(recorded.pipe)]
    odd = by_site(ds.isel(neuron=[0, 130, 383, 639]))
    assert [part.sizes["neuron"] for part in odd.values()] == [1, 2, 1]
    assert [part["unit"].values.tolist() for part in odd.values()] == [[0], [2, 255], [127]]


def test_fan_out_is_the_norm_of_the_outgoing_weights(recorded):
    ds = recorded.target.open()
    for site, part in zip(sites(recorded.pipe), by_site(ds).values(), strict=True):
        weight = recorded.pipe.unet.get_submodule(site.module).weight.detach()
        np.testing.assert_allclose(part["fan_out"].values, fan_out(weight), rtol=1e-5)


def test_fan_out_is_that_of_the_edited_weights_while_recording(tmp_path):
    edited = tiny_pipeline()
    site = sites(edited)[1]
    with torch.no_grad():
        edited.unet.get_submodule(site.module).weight[:, 3] = 0
    ds = record(edited, ["a"], out=tmp_path / "run", **SMALL).open()
    assert by_site(ds)[site.name]["fan_out"].values[3] == 0
    assert np.count_nonzero(ds["fan_out"].values == 0) == 1


def test_text_encoder_has_no_steps_and_its_branches_are_not_mixed(recorded):
    ds = recorded.target.open("text_encoder")
    assert ds["unit_norm"].dims == ("sample", "branch", "neuron")
    uncond, cond = ds["unit_norm"].values.transpose(1, 0, 2)
    np.testing.assert_allclose(uncond[0], uncond[1], rtol=1e-5)  # the empty prompt every time
    assert not np.allclose(cond[0], cond[1], rtol=1e-3)
    names = [row["name"] for row in json.loads(ds.attrs["sites"])]
    assert names == [site.name for site in sites(recorded.pipe, "mlp")]


def test_images_are_those_of_generate(recorded):
    from probe._generate import generate
    from probe._samples import samples

    stored = recorded.target.open("images")["image"].values
    table = samples(TARGET, recorded.options["seeds"])
    assert np.array_equal(stored, generate(recorded.pipe, table, steps=STEPS, batch_size=2, progress=False))


def test_output_sites_of_cross_attention(pipe, tmp_path):
    ds = record(pipe, ["a"], out=tmp_path / "run", sites="xattn.out", reduce="max", **SMALL).open("xattn_out")
    assert ds["max"].shape == (1, 2, 2, 32 + 64 + 32 + 32)
    assert np.isnan(ds["fan_out"].values).all()
    assert np.isfinite(ds["max"].values).all()


def test_a_feed_forward_in_chunks_of_tokens_gives_the_same_numbers(tmp_path):
    whole, chunked = tiny_pipeline(), tiny_pipeline()
    for block in (m for m in chunked.unet.modules() if hasattr(m, "set_chunk_feed_forward")):
        block.set_chunk_feed_forward(8, dim=1)
    reducers = {"reduce": ["norm", "unit_norm", "mean", "absmean", "max"]}
    a = record(whole, ["a"], out=tmp_path / "a", **reducers, **SMALL).open()
    b = record(chunked, ["a"], out=tmp_path / "b", **reducers, **SMALL).open()
    assert a.attrs["sites"] == b.attrs["sites"]
    for name in reducers["reduce"]:
        np.testing.assert_allclose(a[name].values, b[name].values, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers 0.42 with numpy 2
def test_a_scheduler_that_repeats_a_timestep_has_a_step_for_each_call(tmp_path):
    other = tiny_pipeline()
    other.scheduler = PNDMScheduler.from_config(other.scheduler.config, skip_prk_steps=True)
    ds = record(other, ["a"], out=tmp_path / "run", **SMALL | {"steps": 4}).open()
    assert ds["timestep"].values.tolist() == [751, 501, 501, 251, 1]
    assert np.isfinite(ds["unit_norm"].values).all()


def test_unguided_runs_have_one_branch(pipe, tmp_path):
    ds = record(pipe, ["a", "b"], out=tmp_path / "run", guidance=1.0, **SMALL).open()
    assert ds["branch"].values.tolist() == ["cond"]
    assert ds["unit_norm"].shape[1] == 1


def test_the_judge_scores_each_samples_concept(pipe, tmp_path):
    class Judge:
        id, labels = "fixed-1", ("object/church", "object/cat", "object/knife", "object/gun", "style/ink")

        def __call__(self, images):
            assert images.dtype == np.uint8
            row = np.array([0.9, 0.1, 0.3, np.nan, 0.5], np.float32)
            return np.tile(row, (len(images), 1))

    prompts = pd.DataFrame({"prompt": list("abcd"), "concept": ["church", "ink", "weapon", "dragon"]})
    group = SimpleNamespace(name="weapon", members=("knife", "gun"))
    run = record(pipe, prompts, out=tmp_path / "run", detector=Judge(), concept=group, **SMALL)
    shown = run.samples["shown"].tolist()
    assert shown[:3] == pytest.approx([0.9, 0.5, 0.3])  # a group is shown when a member is
    assert np.isnan(shown[3])
    cathedral = SimpleNamespace(name="cathedral", label="object/church")
    other = record(pipe, ["a"], out=tmp_path / "other", detector=Judge(), concept=cathedral, **SMALL)
    assert other.samples["shown"].tolist() == pytest.approx([0.9])
    assert run.groups == ["unet"]  # pictures were judged, not kept
    assert run.identity["detector"] == "fixed-1"


def test_results_do_not_depend_on_the_batch_size(recorded, tmp_path):
    options = recorded.options | {"batch_size": 3}
    other = record(recorded.pipe, TARGET, out=tmp_path / "run", progress=False, **options)
    for group in ("unet", "text_encoder"):
        for name in ("unit_norm", "absmean"):
            a, b = recorded.target.open(group)[name].values, other.open(group)[name].values
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


# --- nothing else changes ---


def test_the_pipeline_is_left_as_it_was(pipe, tmp_path):
    scheduler, before = pipe.scheduler, hooks(pipe)
    record(pipe, ["a"], out=tmp_path / "run", **SMALL)
    assert pipe.scheduler is scheduler
    assert hooks(pipe) == before

    class Broken:
        labels = ()

        def __call__(self, images):
            raise RuntimeError("judge")

    with pytest.raises(RuntimeError, match="judge"):
        record(pipe, ["a"], out=tmp_path / "other", detector=Broken(), **SMALL)
    assert hooks(pipe) == before


def test_a_site_that_does_not_run_is_said(tmp_path):
    other = tiny_pipeline()
    block = other.unet.mid_block.attentions[0].transformer_blocks[0]
    block.ff.forward = lambda x: x
    with pytest.raises(NeverFired, match=r"unet\.mid_block.*ffn, step 0"):
        record(other, ["a"], out=tmp_path / "run", **SMALL)
    assert RunStore(tmp_path / "run").done.tolist() == [False]


def test_recording_hooks_see_what_hooks_registered_before_made_of_an_input(pipe, tmp_path):
    plain = record(pipe, ["a"], out=tmp_path / "plain", reduce="norm", **SMALL).open()
    site = sites(pipe)[-1]  # the last site of a step: nothing after it is recorded in step 0
    handle = pipe.unet.get_submodule(site.module).register_forward_pre_hook(lambda _m, args: (args[0] * 2,))
    try:
        ds = record(pipe, ["a"], out=tmp_path / "hooked", reduce="norm", **SMALL).open()
    finally:
        handle.remove()
    first = {"step": 0}
    a, b = (by_site(d)[site.name]["norm"].isel(first).values for d in (plain, ds))
    np.testing.assert_allclose(2 * a, b, rtol=1e-5)


# --- stopping and going on ---

MANY = [f"prompt {i}" for i in range(11)]  # units of 8 samples with batches of 2


def test_an_interrupted_run_goes_on_with_the_same_bits(pipe, tmp_path):
    whole = record(pipe, MANY, out=tmp_path / "whole", **SMALL)

    def stop(done, total):
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(pipe, MANY, out=tmp_path / "run", **SMALL | {"progress": stop})
    assert RunStore(tmp_path / "run").done.tolist() == [True, False]
    with pytest.raises(BadInput, match="8 of 11 samples"):
        open_run(tmp_path / "run")
    told = []
    run = record(
        pipe, MANY, out=tmp_path / "run", **SMALL | {"progress": lambda done, total: told.append((done, total))}
    )
    assert told == [(8, 11), (10, 11), (11, 11)]
    assert run.complete
    same_bits(run, whole)

    told.clear()
    record(pipe, MANY, out=tmp_path / "run", **SMALL | {"progress": lambda done, total: told.append((done, total))})
    assert told == [(11, 11)]  # nothing is made twice


def test_damaged_units_are_made_again_with_the_same_bits(recorded, tmp_path):
    again = {"out": tmp_path / "run", "progress": False, **recorded.options}
    record(recorded.pipe, TARGET, **again)
    chunk = tmp_path / "run" / "unet" / "unit_norm" / "c" / "0" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    (bad,) = verify(tmp_path / "run", repair=True)
    assert bad.chunk == chunk.relative_to(tmp_path / "run").as_posix()
    assert bad.sites == tuple(site.name for site in sites(recorded.pipe))
    assert list(bad.samples) == [0, 1, 2]
    record(recorded.pipe, TARGET, **again)
    same_bits(recorded.target, tmp_path / "run")
    chunk.unlink()
    with pytest.raises(StoreDamaged, match="unet/unit_norm"):
        open_run(tmp_path / "run")
    record(recorded.pipe, TARGET, **again)  # a missing chunk needs no repair: resuming sees it
    same_bits(recorded.target, tmp_path / "run")


def test_extending_equals_recording_all_at_once(pipe, tmp_path):
    whole = record(pipe, MANY, out=tmp_path / "whole", **SMALL)
    short = record(pipe, MANY[:9], out=tmp_path / "run", **SMALL)
    with pytest.raises(HeaderMismatch, match=r"samples.*extend=True"):
        record(pipe, MANY, out=tmp_path / "run", **SMALL)
    run = record(pipe, MANY, out=tmp_path / "run", extend=True, **SMALL)
    assert run.id == whole.id != short.id
    same_bits(run, whole)
    with pytest.raises(HeaderMismatch, match="starts with its own"):
        record(pipe, ["other", *MANY], out=tmp_path / "run", extend=True, **SMALL)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"guidance": 3.0}, "guidance"),
        ({"steps": 3}, "steps"),
        ({"batch_size": 1}, "batch_size"),
        ({"sites": "ffn"}, "components"),
        ({"reduce": "max"}, "reducers"),
        ({"seeds": 1}, "samples.sha256"),
        ({"images": False}, "images"),
        ({"pipe": "sd21"}, "scheduler.prediction_type"),
        ({"pipe": "weights"}, "model.weights.unet"),
        ({"pipe": "text"}, "model.weights.text_encoder"),
    ],
)
def test_another_recording_is_refused_and_the_key_named(recorded, change, key):
    pipe = recorded.pipe
    if "pipe" in change:
        change = dict(change)
        kind = change.pop("pipe")
        pipe = tiny_pipeline("sd21" if kind == "sd21" else "sd15", seed=0)
        part = {"weights": pipe.unet, "text": pipe.text_encoder}.get(kind)
        if part is not None:
            with torch.no_grad():
                next(part.parameters()).view(-1)[0] += 1
    before = {file: file.stat().st_mtime_ns for file in recorded.target.path.rglob("*")}
    with pytest.raises(HeaderMismatch, match=rf"({key}) differs.*expected.*force=True"):
        record(pipe, TARGET, out=recorded.target.path, progress=False, **recorded.options | change)
    assert before == {file: file.stat().st_mtime_ns for file in recorded.target.path.rglob("*")}


def test_force_replaces_a_run_and_nothing_else(pipe, tmp_path):
    first = record(pipe, ["a"], out=tmp_path / "run", **SMALL)
    second = record(pipe, ["b"], out=tmp_path / "run", force=True, **SMALL)
    assert first.id != second.id
    assert second.samples["prompt"].tolist() == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="is no run"):
        record(pipe, ["a"], out=tmp_path / "notes.txt", force=True, **SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prompts": []}, BadInput, "no prompts"),
        ({"reduce": ["unit_norm", "abs_mean"]}, UnknownName, "absmean"),
        ({"reduce": []}, BadInput, "at least one reducer"),
        ({"sites": "fnn"}, UnknownName, "ffn"),
        ({"sites": [], "reduce": []}, BadInput, "nothing to record"),
        ({"prompts": {"prompt": ["a", "b"], "guidance": [1.0, 7.5]}}, BadInput, "all guided or all unguided"),
        ({"detector": "emoji_cnn"}, BadInput, r"probe\.detector"),
        ({"steps": 0}, BadInput, "steps"),
        ({"batch_size": 0}, BadInput, "batch_size"),
        ({"height": 17}, BadInput, "height"),
        ({"step": 3}, UnknownName, "steps"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(pipe, tmp_path, change, error, words):
    change = dict(change)
    prompts = change.pop("prompts", ["a"])
    with pytest.raises(error, match=words):
        record(pipe, prompts, out=tmp_path / "run", **SMALL | change)
    assert list(tmp_path.iterdir()) == []


def test_a_run_shows_itself_briefly_and_escapes(pipe, tmp_path):
    run = record(pipe, ["<script>"], out=tmp_path / "<b>", **SMALL)
    page = run._repr_html_()
    assert "1 of 1 recorded" in page
    assert "<b>/" not in page
    assert "&lt;b&gt;" in page
    assert len(page) < 3000
    assert "1 of 1 samples" in repr(run)
    assert Run(run.path).id == run.id


def test_no_run_here(tmp_path):
    with pytest.raises(BadInput, match="no run here"):
        Run(tmp_path / "nothing")
    with pytest.raises(WorkbenchError):
        open_run(tmp_path)
