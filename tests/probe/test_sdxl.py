"""Stable Diffusion XL, loaded, drawn and recorded: two text encoders, zeros in place of a missing negative prompt."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import probe
from probe import compat, fingerprint, generate, load, open_run, record, samples, sites
from probe._branches import Layout
from probe.errors import AmbiguousBatch, BadInput, HeaderMismatch, StoreDamaged
from probe.testing import tiny_pipeline
from tests.oracles.recording import activations
from tests.oracles.reduce import reduce_rows
from tests.probe.measuring import Colours, ScaledWeight, small_world

ENCODERS = ("text_encoder", "text_encoder_2")
SMALL = {"steps": 2, "batch_size": 2, "progress": False, "images": False}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sdxl")


@pytest.fixture
def encoding(pipe):
    """The same networks in a pipeline that encodes an empty negative prompt."""
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    other = type(pipe)(**parts, force_zeros_for_empty_prompt=False, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    return other


def hooks(pipe) -> int:
    modules = [m for p in pipe.components.values() if isinstance(p, torch.nn.Module) for m in p.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def mlp_norms(pipe, component: str, text: str) -> list[float]:
    """Norms over tokens of every MLP neuron of one encoder on one text, by a call of the encoder itself."""
    encoder, tokenizer = getattr(pipe, component), getattr(pipe, component.replace("text_encoder", "tokenizer"))
    kept = []
    chosen = sites(pipe, f"{component}.*")
    handles = [s.resolve(pipe).register_forward_pre_hook(lambda _m, args: kept.append(args[0][0])) for s in chosen]
    ids = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        encoder(ids)
    for handle in handles:
        handle.remove()
    return [value for rows in kept for value in reduce_rows("norm", rows.tolist())]


# --- loading and drawing ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    return compat.save_pipeline(pipe, tmp_path_factory.mktemp("models") / "xl")


def test_a_saved_pipeline_loads_as_it_was(pipe, folder, monkeypatch):
    import diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl as module

    monkeypatch.setattr(module, "is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(module, "StableDiffusionXLWatermarker", object, raising=False)
    again = load(folder)
    assert type(again) is type(pipe)
    assert set(fingerprint(again).architecture) == {*ENCODERS, "unet", "vae"}
    assert fingerprint(again).to_json() == fingerprint(pipe).to_json()
    assert again.config.force_zeros_for_empty_prompt
    assert again.watermark is None  # pictures must not depend on which packages are installed
    text = "a church"
    for name in ("tokenizer", "tokenizer_2"):
        options = {"padding": "max_length"}
        assert getattr(again, name)(text, **options).input_ids == getattr(pipe, name)(text, **options).input_ids
    table = samples(["a church", "b"])
    assert np.array_equal(*(generate(p, table, steps=2, progress=False) for p in (again, pipe)))


def test_weights_of_the_second_encoder_are_checked_too(folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    copied = shutil.copytree(folder, tmp_path / "xl")
    file = copied / "text_encoder_2" / "model.safetensors"
    tensors = load_file(file)
    del tensors["text_projection.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(StoreDamaged, match=r"text_encoder_2: 1 tensors: text_projection\.weight"):
        load(copied)


def test_each_sample_depends_on_its_own_seed_only(pipe):
    table = samples(["a church", "a", "two cats", "", "b"], [3, 4, 5, 6, 7])
    one, two, all_ = (generate(pipe, table, steps=2, batch_size=n, progress=False) for n in (1, 2, 5))
    for other in (two, all_):
        assert np.abs(one.astype(int) - other).max() <= 1
    assert np.abs(one[0].astype(int) - one[1]).max() > 20
    generators = [torch.Generator().manual_seed(seed) for seed in table["seed"]]
    theirs = pipe(table["prompt"].tolist(), num_inference_steps=2, guidance_scale=7.5, generator=generators)
    pictures = np.stack([np.asarray(image) for image in theirs.images])
    assert np.array_equal(all_, pictures)


def test_a_negative_prompt_changes_the_picture_and_an_empty_one_is_none(pipe, encoding):
    def picture(chosen, negative):
        return generate(chosen, samples(["a church"], negative_prompt=negative), steps=2, progress=False).tobytes()

    none, empty, some = (picture(pipe, negative) for negative in (None, "", "a cat"))
    assert none == empty != some
    assert picture(encoding, None) not in (none, some)
    assert picture(encoding, "a cat") == some


@pytest.mark.parametrize(
    ("negative", "guidance", "zeros", "branches"),
    [
        (None, 7.5, True, ["cond"]),
        ("a cat", 7.5, True, ["cond", "uncond"]),
        (None, 7.5, False, ["cond", "uncond"]),
        ("a cat", 1.0, True, ["cond"]),
        (None, 0.5, False, ["cond"]),
    ],
)
def test_calls_of_the_encoders(pipe, encoding, negative, guidance, zeros, branches):
    """Both encoders for cond first; for uncond only where there is a text to encode."""
    calls = []
    table = samples(["a", "b"], negative_prompt=negative)
    options = {"steps": 2, "guidance": guidance, "progress": False, "on_call": calls.append}
    generate(pipe if zeros else encoding, table, **options)
    told = [(call.component, call.layout) for call in calls]
    of_unet = Layout(2, ("uncond", "cond") if guidance > 1 else ("cond",))
    expected = [(name, Layout(2, (branch,))) for branch in branches for name in ENCODERS]
    assert told == [*expected, ("unet", of_unet), ("unet", of_unet)]


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # diffusers 0.42 calls its own method
def test_the_vae_keeps_its_dtype_when_decoding_fails():
    """SDXL decodes half precision in float32 and casts back afterwards, which an error would skip."""
    half = tiny_pipeline("sdxl")
    with compat.quiet_libraries():
        half.vae.to(torch.float16)
    before = fingerprint(half).component("vae")
    seen = []

    def fail(module, _args):
        seen.append(next(module.parameters()).dtype)
        raise ZeroDivisionError

    handle = half.vae.decoder.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        generate(half, samples(["a"]), steps=1, progress=False)
    handle.remove()
    assert seen == [torch.float32]
    assert half.vae.dtype == torch.float16
    assert fingerprint(half).component("vae") == before


# --- recording --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", [None, "a cat"])
def test_unet_numbers_equal_one_prompt_at_a_time(pipe, tmp_path, negative):
    prompts, seeds = ["a church", "b", "two cats"], [5, 6, 7]
    options = {"reduce": "norm", "seeds": seeds, "negative_prompt": negative}
    ds = record(pipe, prompts, out=tmp_path / "run", **SMALL, **options).open()
    assert ds["norm"].shape == (3, 2, 2, sum(s.width for s in sites(pipe)))
    for s, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        kept = activations(pipe, [site.module for site in sites(pipe)], prompt, seed, 2, 7.5, negative or "")
        for site, part in zip(sites(pipe), probe.by_site(ds).values(), strict=True):
            for step in range(2):
                wanted = kept[site.module][step].norm(dim=1)  # (b k n) -> (b n): uncond, cond
                found = part["norm"].isel(sample=s, step=step).values
                np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-6)


def test_text_encoders_and_what_they_never_see(pipe, encoding, tmp_path):
    """With and without negative prompts in one run; where nothing is encoded the numbers are NaN, not zero."""
    table = {"prompt": ["a church", "b", "c", "d"], "negative_prompt": ["", "a cat", "two", None]}
    run = record(pipe, table, out=tmp_path / "run", sites=["mlp", "ffn"], reduce="norm", **SMALL)
    assert run.complete
    assert run.groups == ["text_encoder", "text_encoder_2", "unet"]
    assert run.identity["empty_prompt"] == "zeros"
    assert np.isfinite(run.open("unet")["norm"].values).all()
    for component in ENCODERS:
        uncond, cond = run.open(component)["norm"].values.transpose(1, 0, 2)
        assert np.isnan(uncond[[0, 3]]).all()
        for row, text in [(cond[0], "a church"), (cond[1], "b"), (uncond[1], "a cat"), (uncond[2], "two")]:
            np.testing.assert_allclose(row, mlp_norms(pipe, component, text), rtol=2e-4, atol=1e-6)
    assert probe.verify(run.path) == []

    run = record(encoding, ["a"], out=tmp_path / "encoding", sites="mlp", reduce="norm", **SMALL)
    assert run.identity["empty_prompt"] == "encoded"
    for component in ENCODERS:
        uncond, cond = run.open(component)["norm"].values[0]
        np.testing.assert_allclose(uncond, mlp_norms(pipe, component, ""), rtol=2e-4, atol=1e-6)
        np.testing.assert_allclose(cond, mlp_norms(pipe, component, "a"), rtol=2e-4, atol=1e-6)


def test_unguided_text_and_unet_have_one_branch(pipe, tmp_path):
    run = record(pipe, ["a"], out=tmp_path / "run", sites=["mlp", "ffn"], guidance=0.0, **SMALL)
    for group in run.groups:
        ds = run.open(group)
        assert ds["branch"].values.tolist() == ["cond"]
        assert np.isfinite(ds["unit_norm"].values).all()


def test_scores_leave_out_what_was_not_encoded(pipe, tmp_path):
    runs = [
        record(pipe, prompts, out=tmp_path / prompts[0], sites="mlp", **SMALL)
        for prompts in (["church", "a church"], ["house", "a house"])
    ]
    both, cond = (probe.score(*runs, group="text_encoder_2", branches=branches) for branches in ("both", "cond"))
    assert both.dataset.sizes["neuron"] == 2 * 96
    assert np.isfinite(both.dataset["score"].values).all()
    np.testing.assert_array_equal(both.dataset["target"].values, cond.dataset["target"].values)


def test_zeros_and_encoded_empty_prompts_are_two_recordings(pipe, encoding, tmp_path):
    run = record(pipe, ["a"], out=tmp_path / "run", **SMALL)
    with pytest.raises(HeaderMismatch, match=r"empty_prompt differs.*'encoded'.*'zeros'"):
        record(encoding, ["a"], out=run.path, **SMALL)
    other = record(encoding, ["a"], out=tmp_path / "other", **SMALL)
    with pytest.raises(HeaderMismatch, match="empty_prompt differs"):
        probe.score(run, other)
    plain = record(tiny_pipeline(), ["a"], out=tmp_path / "sd15", **SMALL)
    assert "empty_prompt" not in plain.identity  # runs of earlier versions resume


def test_a_run_of_the_published_topology(tmp_path):
    """70 blocks and 44 text layers in order, each with the token rows of its level."""
    pipe = tiny_pipeline("sdxl", topology="published")
    run = record(pipe, ["a church"], out=tmp_path / "run", sites=["ffn", "mlp"], **SMALL | {"steps": 1})
    rows = [row["rows"] for row in json.loads(run.open().attrs["sites"])]
    assert rows == [16] * 4 + [4] * (20 + 10 + 30) + [16] * 6
    assert run.open().sizes["neuron"] == 332_800 // 32
    assert [len(probe.by_site(run.open(name))) for name in ENCODERS] == [12, 32]
    assert np.isfinite(run.open()["unit_norm"].values).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers 0.42 with numpy 2
def test_the_scheduler_of_sdxl_has_fractional_timesteps(tmp_path):
    from diffusers import EulerDiscreteScheduler

    pipe = tiny_pipeline("sdxl")
    config = dict(pipe.scheduler.config) | {"timestep_spacing": "linspace"}
    pipe.scheduler = EulerDiscreteScheduler.from_config(config)
    ds = record(pipe, ["a"], out=tmp_path / "run", **SMALL | {"steps": 5}).open()
    np.testing.assert_allclose(ds["timestep"].values, [999, 749.25, 499.5, 249.75, 0])


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_bits(pipe, tmp_path):
    table = {"prompt": [f"prompt {i}" for i in range(10)], "negative_prompt": ["x"] * 3 + [""] * 5 + ["x", ""]}
    chosen = ["unet.mid_block.*.ffn", "mlp"]
    whole = record(pipe, table, out=tmp_path / "whole", sites=chosen, **SMALL | {"steps": 1})

    def stop(done, total):
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(pipe, table, out=tmp_path / "run", sites=chosen, **SMALL | {"steps": 1, "progress": stop})
    run = record(pipe, table, out=tmp_path / "run", sites=chosen, **SMALL | {"steps": 1})
    assert run.complete
    for group in run.groups:
        for name in ("unit_norm", "absmean"):
            assert open_run(run, group)[name].values.tobytes() == open_run(whole, group)[name].values.tobytes()


def test_an_evaluation(pipe, encoding, tmp_path):
    def measure(chosen):
        options = {"world": small_world(), "judge": Colours(), "metrics": ("rate",), "resamples": 50, "steps": 1}
        edits = {"scaled": ScaledWeight(0.3)}
        return probe.evaluate(chosen, edits, ["church"], out=tmp_path / "result", progress=False, **options)

    table = measure(pipe)
    assert table["n"].tolist() == [6]
    assert np.isfinite(table["original"]).all()
    with pytest.raises(HeaderMismatch, match="empty_prompt"):
        measure(encoding)


# --- branches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_several_images_per_prompt_in_a_call_that_is_not_ours(kind, guidance, tmp_path):
    """Rows are branch, then prompt, then image: the samples that seeds_per_prompt makes, in their order."""
    pipe = tiny_pipeline(kind)
    prompts, each = ["a church", "two cats"], 3
    options = {"seeds_per_prompt": each, "seeds": 5, "guidance": guidance, "reduce": "norm"}
    ds = record(pipe, prompts, out=tmp_path / "run", **SMALL | options | {"batch_size": 6}).open()
    assert ds["seed"].values.tolist() == [5, 6, 7] * 2
    site = sites(pipe)[1]
    generators = [torch.Generator().manual_seed(seed) for seed in ds["seed"].values.tolist()]
    with probe.Trace(pipe.unet, site.module, retain_input=True, keep="all") as trace:
        pipe(
            prompts,
            num_images_per_prompt=each,
            generator=generators,
            num_inference_steps=2,
            guidance_scale=guidance,
            output_type="latent",
        )
    layout = probe.layout_of(pipe, samples=len(prompts) * each)
    assert layout.branches == (("uncond", "cond") if guidance > 1 else ("cond",))
    for step, rows in enumerate(trace.inputs):
        wanted = layout.split(rows).norm(dim=2)  # (b s k n) -> (b s n)
        found = probe.by_site(ds)[site.name]["norm"].isel(step=step).values.swapaxes(0, 1)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    with pytest.raises(AmbiguousBatch, match=rf"given: {layout.rows} rows; expected: 2 samples x"):
        probe.layout_of(pipe, samples=len(prompts)).split(rows)


def test_a_loop_without_a_pipeline_call_says_its_branches(pipe):
    """cond alone, three samples: from the rows it could as well be one sample of three-way guidance."""
    inputs = compat.unet_inputs(pipe.unet.config, samples=3)
    site = sites(pipe)[0]
    with torch.no_grad(), probe.Trace(pipe.unet, site.module, retain_input=True) as trace:
        pipe.unet(**inputs)
    split = probe.layout_of(pipe, samples=3, branches=["cond"]).split(trace.input)
    assert split.shape == (1, 3, *trace.input.shape[1:])
    assert probe.layout_of(pipe, samples=3, branches="cond") == Layout(3, ("cond",))
    with pytest.raises(BadInput, match="distinct names"):
        probe.layout_of(pipe, samples=3, branches=["cond", "cond"])
    with pytest.raises(BadInput, match="at least one sample"):
        probe.layout_of(pipe, samples=0, branches=["cond"])


@pytest.mark.parametrize(("part", "expected"), [("unet", 4), ("text_encoder_2", 2)])
def test_a_call_with_other_rows_has_its_three_numbers_named(pipe, tmp_path, part, expected):
    def grow(_module, args, kwargs):
        return (torch.cat([args[0], args[0][:1]]), *args[1:]), kwargs

    handle = getattr(pipe, part).register_forward_pre_hook(grow, with_kwargs=True)
    before = hooks(pipe)
    branches = r"2 branches \(uncond, cond\)" if part == "unet" else r"1 branches \(cond\)"
    try:
        with pytest.raises(AmbiguousBatch, match=rf"given: {expected + 1} rows; expected: 2 samples x {branches}"):
            record(pipe, ["a", "b"], out=tmp_path / "run", sites=["ffn", "mlp"], **SMALL)
        assert hooks(pipe) == before
    finally:
        handle.remove()
