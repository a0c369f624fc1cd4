"""What a run keeps besides one number a neuron: maps, probabilities, keys and values, ranks, latents."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probe import guidance
from probe._grids import grid_of, latent_size
from probe._ragged import head_probabilities
from probe._rechunk import rechunk
from probe._record import open_run, record, verify
from probe._sites import sites
from probe._store import RunStore
from probe.errors import BadInput, NeverFired, UnknownName
from probe.testing import tiny_pipeline
from probe.tokens import spans
from tests.oracles.recording import activations, plain_attention
from tests.oracles.reduce import top_rows

PROMPTS = ["a church on a hill", "two churches", "a church, a church"]
STEPS, SIZE, SEEDS = 2, (24, 16), [5, 6, 7]  # latents 12 x 8: neither square nor the model's own
WORDS = [0, 3, "church"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """One run of a wide picture with everything that can be kept."""
    pipe = tiny_pipeline()
    middle, last = (site.name for site in sites(pipe)[1::2])
    options = {
        "sites": ["ffn", "xattn.prob", "xattn.k", "xattn.v"],
        "reduce": ["unit_norm", "topk", "count"],
        "topk": 3,
        "maps": {middle: [200, 3], last: "full", "text_encoder.*.0.mlp": [7]},
        "heads": [3, 1],
        "tokens": WORDS,
        "latents": True,
        "steps": STEPS,
        "seeds": SEEDS,
        "batch_size": 2,
        "height": SIZE[0],
        "width": SIZE[1],
        "images": False,
        "progress": False,
    }
    run = record(pipe, PROMPTS, out=tmp_path_factory.mktemp("kept") / "run", **options)
    return SimpleNamespace(pipe=pipe, run=run, options=options, middle=middle, last=last)


def by_hand(kept, sample, names):
    """Inputs of UNet modules for one sample by itself: module -> list over calls of (b k n)."""
    return activations(kept.pipe, names, PROMPTS[sample], SEEDS[sample], STEPS, 7.5, size=SIZE)


def test_groups_and_their_axes(kept):
    prob = [f"maps/{site.order:03d}-{site.name}" for site in sites(kept.pipe, "xattn.prob")]
    maps = [f"maps/001-{kept.middle}", f"maps/003-{kept.last}", "maps/000-text_encoder.text_model.encoder.layers.0.mlp"]
    assert kept.run.groups == sorted(["unet", "xattn_k", "xattn_v", "latents", *prob, *maps])
    ds = open_run(kept.run, f"maps/001-{kept.middle}")
    assert ds["map"].dims == ("sample", "branch", "step", "neuron", "y", "x")
    assert ds["map"].shape == (3, 2, STEPS, 2, 6, 4)
    assert ds["unit"].values.tolist() == [3, 200]
    assert ds["prompt"].values.tolist() == PROMPTS
    assert ds["timestep"].values.tolist() == [501, 1]
    assert open_run(kept.run, f"maps/003-{kept.last}")["full"].shape == (3, 2, STEPS, 128, 12, 8)
    probabilities = open_run(kept.run, prob[0])
    assert probabilities["prob"].dims == ("sample", "branch", "step", "head", "y", "x", "token")
    assert probabilities["head"].values.tolist() == [3, 1]
    assert probabilities["token"].values.tolist() == [0, 3, -1]
    assert probabilities["word"].values.tolist() == ["", "", "church"]
    keys = open_run(kept.run, "xattn_k")
    assert keys["k"].dims == ("sample", "branch", "token", "neuron")
    assert [row["name"] for row in json.loads(keys.attrs["sites"])] == [s.name for s in sites(kept.pipe, "xattn.k")]
    for group in kept.run.groups:
        for name, values in open_run(kept.run, group).data_vars.items():
            assert values.dtype == np.float32
            if name not in ("prob",):
                assert np.isfinite(values.values).all(), (group, name)
    assert verify(kept.run.path) == []
    assert "nonfinite" not in kept.run.info  # words that are not there are meant


def test_nan_is_reported_beside_nan_that_is_meant(kept, tmp_path):
    site = sites(kept.pipe, "xattn.prob")[0]
    query, calls = kept.pipe.unet.get_submodule(site.module).to_q, []

    def spoil(_module, _args, output):
        calls.append(output)
        if len(calls) == 2:  # the second step of the first batch; the first of its samples, cond
            output = output.clone()
            output[2] = torch.nan
        return output

    handle = query.register_forward_hook(spoil)
    try:
        run = record(kept.pipe, PROMPTS, out=tmp_path / "run", **kept.options | {"latents": False, "maps": None})
    finally:
        handle.remove()
    (entry,) = [entry for entry in run.info["nonfinite"] if entry["array"] == "prob" and entry["site"] == site.name]
    assert (entry["steps"], entry["samples"]) == ([1], [0])


def test_ranks_beyond_a_sites_rows_are_nan_and_nobody_is_told(kept, tmp_path):
    options = {"sites": "unet.mid_block*.ffn", "reduce": "topk", "topk": 20, "steps": 1, "progress": False}
    run = record(kept.pipe, ["a"], out=tmp_path / "run", images=False, **options)
    absent = np.isnan(run.open()["topk_value"].values).all((0, 1, 2, 4))
    assert absent.tolist() == [rank >= 16 for rank in range(20)]  # 4 x 4 rows
    assert "nonfinite" not in run.info


def test_a_rechunked_copy_holds_everything_that_was_kept(kept, tmp_path):
    copied = rechunk(kept.run, out=tmp_path / "copy", progress=False)
    assert copied.groups == kept.run.groups
    for group in copied.groups:
        ours, theirs = open_run(copied, group), open_run(kept.run, group)
        assert ours.attrs["sites"] == theirs.attrs["sites"]
        for name in theirs.data_vars:
            assert ours[name].values.tobytes() == theirs[name].values.tobytes(), (group, name)
    assert verify(copied) == []


def test_a_run_with_maps_shows_itself(kept):
    page = kept.run._repr_html_()
    assert "maps/000-" in page
    assert page.count("maps/") == 2  # the first and the last
    rows = {row["name"]: row for row in kept.run.arrays()}
    assert rows["unet/topk_value"]["shape"] == [3, 2, STEPS, 3, 640]


def test_maps_are_the_activations_on_the_grid_of_the_latents(kept):
    middle, last = (next(s for s in sites(kept.pipe) if s.name == name) for name in (kept.middle, kept.last))
    chosen, full = (open_run(kept.run, f"maps/{s.order:03d}-{s.name}") for s in (middle, last))
    for s in range(len(PROMPTS)):
        whole = by_hand(kept, s, [middle.module, last.module])
        for t in range(STEPS):
            for b in range(2):
                wanted = whole[middle.module][t][b][:, [3, 200]].T.reshape(2, 6, 4)
                np.testing.assert_allclose(chosen["map"].values[s, b, t], wanted, rtol=1e-3, atol=1e-5)
                wanted = whole[last.module][t][b].T.reshape(128, 12, 8)
                np.testing.assert_allclose(full["full"].values[s, b, t], wanted, rtol=1e-3, atol=1e-5)


def test_maps_of_a_text_encoder_lie_along_its_tokens(kept):
    ds = open_run(kept.run, "maps/000-text_encoder.text_model.encoder.layers.0.mlp")
    assert ds["map"].dims == ("sample", "branch", "neuron", "token")
    assert ds["map"].shape == (3, 2, 1, 32)
    uncond, cond = ds["map"].values[:, :, 0].transpose(1, 0, 2)
    np.testing.assert_allclose(uncond[0], uncond[1], rtol=1e-5)  # the empty prompt every time
    assert not np.allclose(cond[0], cond[1], rtol=1e-3)


def test_topk_and_count_of_a_run_equal_their_twins(kept):
    ds = open_run(kept.run)
    assert ds["topk_value"].dims == ("sample", "branch", "step", "rank", "neuron")
    assert set(ds.data_vars) == {"unit_norm", "count", "topk_value", "topk_index"}
    site, offset = sites(kept.pipe)[1], 128
    rows = by_hand(kept, 1, [site.module])[site.module][1][1]  # sample 1, step 1, cond
    at = {"sample": 1, "branch": 1, "step": 1, "neuron": slice(offset, offset + site.width)}
    part = ds.isel(at)
    wanted = top_rows(rows.tolist(), 3)
    for rank in range(3):
        np.testing.assert_allclose(part["topk_value"].values[rank], [p[0] for p in wanted[rank]], rtol=1e-3, atol=1e-6)
        found = part["topk_index"].values[rank].astype(int)
        np.testing.assert_allclose(rows[found, torch.arange(site.width)], [p[0] for p in wanted[rank]], rtol=1e-3)
    assert np.mean(part["count"].values == (rows > 0).sum(0).numpy()) > 0.99  # rounding may move an x across 0


# --- cross-attention ---


def test_probabilities_equal_those_of_an_attention_that_writes_them_out(kept):
    chosen = sites(kept.pipe, "xattn.prob")
    position = spans(kept.pipe.tokenizer, PROMPTS[2], "church")
    assert len(position) == 2
    for s in range(len(PROMPTS)):
        written, _ = plain_attention(
            kept.pipe, [site.module for site in chosen], PROMPTS[s], SEEDS[s], STEPS, 7.5, size=SIZE
        )
        for site in chosen:
            found = open_run(kept.run, f"maps/{site.order:03d}-{site.name}")["prob"].values[s]
            y, x = grid_of(kept.pipe, site, latent_size(kept.pipe, SIZE))
            for t in range(STEPS):
                every = written[site.module][t][:, [3, 1]].reshape(2, 2, y, x, -1)  # (b h y x k)
                np.testing.assert_allclose(found[:, t, ..., :2], every[..., [0, 3]], rtol=1e-3, atol=1e-6)
                assert np.isnan(found[0, t, ..., 2]).all()  # no word of the prompt is in the empty prompt
                where = [k for span in spans(kept.pipe.tokenizer, PROMPTS[s], "church") for k in span]
                if not where:
                    assert np.isnan(found[1, t, ..., 2]).all()
                else:
                    wanted = every[1][..., where].sum(-1)
                    np.testing.assert_allclose(found[1, t, ..., 2], wanted, rtol=1e-3, atol=1e-6)


def test_recording_probabilities_changes_nothing_of_the_attention(kept, tmp_path):
    pipe, site = kept.pipe, sites(kept.pipe, "xattn.prob")[1]
    processors = {name: id(processor) for name, processor in pipe.unet.attn_processors.items()}
    outputs = {}

    def watch(name):
        handle = pipe.unet.get_submodule(site.module).register_forward_hook(
            lambda _m, _a, output: outputs.setdefault(name, []).append(output.clone())
        )
        options = {"steps": 2, "images": False, "progress": False, "latents": True}
        chosen = {"sites": ["xattn.prob"]} if name == "with" else {"sites": []}
        try:
            return record(pipe, ["a church"], out=tmp_path / name, **chosen, **options)
        finally:
            handle.remove()

    with_, without = watch("with"), watch("without")
    assert all(torch.equal(a, b) for a, b in zip(outputs["with"], outputs["without"], strict=True))
    assert len(outputs["with"]) == 2
    for name in ("latents", "guided"):
        assert np.array_equal(with_.open("latents")[name].values, without.open("latents")[name].values)
    assert processors == {name: id(processor) for name, processor in pipe.unet.attn_processors.items()}
    every = with_.open(f"maps/001-{site.name}")["prob"]
    assert every.sizes["head"] == site.width
    np.testing.assert_allclose(every.sum("token"), 1, rtol=1e-5)


def test_probabilities_of_one_head_are_computed_in_float32():
    query, key = torch.full((1, 2, 4), 100.0, dtype=torch.float16), torch.zeros(1, 3, 4, dtype=torch.float16)
    key[0, 1] = 200.0  # q.k = 80,000: beyond float16
    found = head_probabilities(query, key, 0.5)
    assert found.dtype == torch.float32
    assert found[0].tolist() == [[0, 1, 0]] * 2
    mask = torch.zeros(1, 1, 3).masked_fill(torch.tensor([False, True, False]), -torch.inf)
    torch.testing.assert_close(head_probabilities(query, key, 0.5, mask)[0], torch.tensor([[0.5, 0, 0.5]] * 2))


def test_keys_and_values_are_projections_of_the_prompt(kept):
    told = guidance.condition(kept.pipe, PROMPTS)
    text = told.text.detach().unflatten(0, (2, 3))  # (b s k d)
    for kind, name in (("xattn.k", "k"), ("xattn.v", "v")):
        found = open_run(kept.run, f"xattn_{name}")[name].values
        weights = [kept.pipe.unet.get_submodule(site.module).weight.detach() for site in sites(kept.pipe, kind)]
        wanted = torch.cat([text @ weight.T for weight in weights], dim=-1).transpose(0, 1)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


# --- latents ---


def test_latents_are_those_of_the_sampler(kept):
    ds = open_run(kept.run, "latents")
    assert ds["latents"].dims == ("sample", "step", "c", "y", "x")
    for s, seed in enumerate(SEEDS):
        noise = torch.randn((4, 12, 8), generator=torch.Generator().manual_seed(seed))
        np.testing.assert_allclose(ds["latents"].values[s, 0], noise, rtol=1e-6)
    told = guidance.condition(kept.pipe, PROMPTS)
    with torch.no_grad():
        for t, timestep in enumerate(ds["timestep"].values):
            x_t = torch.from_numpy(ds["latents"].values[:, t])
            wanted = guidance.combined(guidance.predict(kept.pipe, x_t, float(timestep), told), 7.5)
            np.testing.assert_allclose(ds["guided"].values[:, t], wanted, rtol=1e-3, atol=1e-4)
        moved = kept.pipe.scheduler.__class__.from_config(kept.pipe.scheduler.config)
        moved.set_timesteps(STEPS)
        after = moved.step(
            torch.from_numpy(ds["guided"].values[:, 0]), 501, torch.from_numpy(ds["latents"].values[:, 0])
        )
    np.testing.assert_allclose(ds["latents"].values[:, 1], after.prev_sample, rtol=1e-4, atol=1e-5)


# --- everything else ---


def test_the_grid_of_odd_latents_is_measured(kept):
    middle, last = sites(kept.pipe)[1::2]
    assert [grid_of(kept.pipe, site, (13, 7)) for site in (middle, last)] == [(7, 4), (13, 7)]


def test_chunked_feed_forwards_fill_the_same_maps(kept, tmp_path):
    chunked = tiny_pipeline()
    for block in (m for m in chunked.unet.modules() if hasattr(m, "set_chunk_feed_forward")):
        block.set_chunk_feed_forward(8, dim=1)
    options = kept.options | {"sites": "ffn", "heads": None, "tokens": None, "maps": {kept.middle: [3]}}
    other = record(chunked, PROMPTS, out=tmp_path / "run", **options)
    wanted = open_run(kept.run, f"maps/001-{kept.middle}")["map"].values[:, :, :, :1]
    np.testing.assert_allclose(open_run(other, f"maps/001-{kept.middle}")["map"].values, wanted, rtol=1e-3, atol=1e-5)
    for name in ("topk_value", "count"):
        np.testing.assert_allclose(open_run(other)[name], open_run(kept.run)[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_with_maps_goes_on_with_the_same_bits(kept, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(kept.pipe, PROMPTS, out=tmp_path / "run", **kept.options | {"progress": stop})
    assert not RunStore(tmp_path / "run").done.any()
    modules = [*kept.pipe.unet.modules(), *kept.pipe.text_encoder.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    again = record(kept.pipe, PROMPTS, out=tmp_path / "run", **kept.options)
    assert again.id == kept.run.id
    for group in kept.run.groups:
        ours, theirs = open_run(again, group), open_run(kept.run, group)
        for name in ours.data_vars:
            assert ours[name].values.tobytes() == theirs[name].values.tobytes(), (group, name)


def test_a_map_that_its_site_does_not_fill_is_said(tmp_path):
    other = tiny_pipeline()
    other.unet.mid_block.attentions[0].transformer_blocks[0].ff.forward = lambda x: x
    with pytest.raises(NeverFired, match="0 token rows"):
        record(other, ["a"], out=tmp_path / "run", sites=[], maps={"unet.mid*.ffn": "full"}, steps=1, progress=False)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"maps": {"unet.mid_block*.fnn": "full"}}, UnknownName, "ffn"),
        ({"maps": {"unet.mid_block*.ffn": "ful"}}, UnknownName, "full"),
        ({"maps": {"unet.mid_block*.ffn": [256]}}, BadInput, "0 to 255"),
        ({"maps": {"unet.mid_block*.ffn": []}}, BadInput, "list of its units"),
        ({"maps": {"xattn.prob": "full"}}, BadInput, "heads= and tokens="),
        ({"heads": [1]}, BadInput, "add xattn.prob"),
        ({"sites": "xattn.prob", "heads": [4]}, BadInput, "0 to 3"),
        ({"sites": "xattn.prob", "tokens": [32]}, BadInput, "0 to 31"),
        ({"sites": "xattn.prob", "tokens": []}, BadInput, "left out for all"),
        ({"reduce": "topk", "topk": 0}, BadInput, "at least one"),
        ({"sites": []}, BadInput, "nothing to record"),
    ],
)
def test_what_cannot_be_kept_is_said_before_anything_is_written(kept, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        record(kept.pipe, ["a"], out=tmp_path / "run", steps=1, progress=False, images=False, **change)
    assert list(tmp_path.iterdir()) == []
