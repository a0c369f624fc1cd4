"""Images for a table of samples: independent of batching, honest about branches, and nothing left changed."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest

from probe._announce import Call
from probe._generate import generate, image_size, timesteps
from probe.errors import AmbiguousBatch, BadInput
from probe.testing import tiny_pipeline

# diffusers 0.42 hands tensors to numpy 2 without the copy keyword in some schedulers
numpy_copy = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def table(*prompts: str, **columns) -> pd.DataFrame:
    return pd.DataFrame({"prompt": list(prompts), "seed": range(len(prompts)), **columns})


def state(pipe) -> dict:
    modules = [m for part in (pipe.unet, pipe.vae, pipe.text_encoder) for m in part.modules()]
    return {
        "scheduler": pipe.scheduler,
        "scheduler_state": {k: repr(v) for k, v in vars(pipe.scheduler).items()},
        "training": [m.training for m in modules],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "bar": copy.copy(vars(pipe).get("_progress_bar_config")),
        "requires_grad": [p.requires_grad for m in modules for p in m.parameters()],
        "config": dict(pipe.config),
    }


def test_images_do_not_depend_on_the_batch_size(pipe):
    samples = table("a church", "a", "two cats, in the snow", "", "b")
    one, two, all_ = (generate(pipe, samples, steps=3, batch_size=n, progress=False) for n in (1, 2, 5))
    assert one.shape == (5, 16, 16, 3)
    assert one.dtype == np.uint8
    for other in (two, all_):
        assert np.abs(one.astype(int) - other).max() <= 1
    assert np.abs(one[0].astype(int) - one[1]).max() > 20, "samples must differ for the comparison to mean anything"


def test_images_equal_a_plain_pipeline_call_with_the_same_generator(pipe):
    import torch

    ours = generate(pipe, table("a church", "b"), steps=3, progress=False)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    theirs = pipe(["a church", "b"], num_inference_steps=3, generator=generators, output_type="np").images
    assert np.array_equal(ours, (theirs * 255).round().astype(np.uint8))


@numpy_copy
def test_noise_of_an_ancestral_scheduler_is_each_samples_own(pipe):
    from diffusers import EulerAncestralDiscreteScheduler

    before = pipe.scheduler
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(before.config)
    try:
        samples = table("a", "b", "c")
        one, all_ = (generate(pipe, samples, steps=3, batch_size=n, progress=False) for n in (1, 3))
    finally:
        pipe.scheduler = before
    assert np.abs(one.astype(int) - all_).max() <= 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_as_before(pipe, fails):
    pipe.unet.mid_block.train()
    before = state(pipe)

    def on_call(call):
        if fails and call.step == 1:
            raise ZeroDivisionError

    try:
        generate(pipe, table("a"), steps=2, progress=False, on_call=on_call)
    except ZeroDivisionError:
        assert fails
    after = state(pipe)
    pipe.unet.eval()
    assert after == before
    assert after["scheduler"] is before["scheduler"]


def test_dropout_of_a_training_module_is_off_during_the_call(pipe):
    from diffusers.models.attention import BasicTransformerBlock

    dropouts = [b.ff.net[1] for b in pipe.unet.modules() if isinstance(b, BasicTransformerBlock)]
    plain = generate(pipe, table("a"), steps=2, progress=False)
    for dropout in dropouts:
        dropout.p = 0.9
    pipe.unet.train()
    try:
        assert np.array_equal(generate(pipe, table("a"), steps=2, progress=False), plain)
    finally:
        pipe.unet.eval()
        for dropout in dropouts:
            dropout.p = 0.0


def test_every_network_call_is_announced_before_it_happens(pipe):
    calls: list[Call] = []
    batches: list[tuple[range, np.ndarray]] = []
    seen_inside: list[int] = []
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda _m, _a: seen_inside.append(calls[-1].step))
    images = generate(
        pipe,
        table("a", "b", "c"),
        steps=4,
        batch_size=2,
        progress=False,
        on_call=calls.append,
        on_batch=lambda rows, part: batches.append((rows, part.copy())),
    )
    hook.remove()
    assert [(c.component, c.samples, c.layout.branches) for c in calls if c.component == "text_encoder"] == [
        ("text_encoder", range(0, 2), ("cond",)),
        ("text_encoder", range(0, 2), ("uncond",)),
        ("text_encoder", range(2, 3), ("cond",)),
        ("text_encoder", range(2, 3), ("uncond",)),
    ]
    unet = [c for c in calls if c.component == "unet"]
    assert [c.step for c in unet] == [0, 1, 2, 3] * 2 == seen_inside
    assert [c.timestep for c in unet] == list(timesteps(pipe, 4)) * 2
    assert [c.layout.rows for c in unet] == [4] * 4 + [2] * 4
    assert all(c.layout.branches == ("uncond", "cond") for c in unet)
    assert [rows for rows, _ in batches] == [range(0, 2), range(2, 3)]
    assert np.array_equal(np.concatenate([part for _, part in batches]), images)


def test_branches_are_uncond_then_cond(pipe):
    """The cond half must move with the prompt, the uncond half with the negative prompt."""
    rows = {}

    def record(name, samples):
        layouts = []
        kept = []
        hook = pipe.unet.register_forward_pre_hook(
            lambda _m, _a, kw: kept.append(kw["encoder_hidden_states"].clone()), with_kwargs=True
        )
        generate(pipe, samples, steps=1, progress=False, on_call=layouts.append)
        hook.remove()
        rows[name] = layouts[-1].layout.split(kept[0])

    record("plain", table("a", "b"))
    record("prompt", table("x", "b"))
    record("negative", table("a", "b", negative_prompt=["y", "z"]))
    uncond, cond = 0, 1
    assert (rows["plain"][uncond] == rows["prompt"][uncond]).all()
    assert (rows["plain"][cond, 1] == rows["prompt"][cond, 1]).all()
    assert (rows["plain"][cond, 0] != rows["prompt"][cond, 0]).any()
    assert (rows["plain"][cond] == rows["negative"][cond]).all()
    assert (rows["plain"][uncond] != rows["negative"][uncond]).any()


def test_unguided_calls_have_one_branch_and_one_text_call(pipe):
    calls = []
    generate(pipe, table("a", "b"), steps=1, guidance=1.0, progress=False, on_call=calls.append)
    assert [(c.component, c.layout.branches, c.layout.rows) for c in calls] == [
        ("text_encoder", ("cond",), 2),
        ("unet", ("cond",), 2),
    ]


def test_the_layout_is_read_inside_the_call_not_left_from_the_last_one(pipe):
    calls = []
    for guidance in (1.0, 7.5, 1.0):
        generate(pipe, table("a"), steps=1, guidance=guidance, progress=False, on_call=calls.append)
    assert [c.layout.rows for c in calls if c.component == "unet"] == [1, 2, 1]


def test_a_call_with_other_rows_is_ambiguous(pipe):
    """From the second step on, three rows for one guided sample."""
    import torch

    calls = []

    def grow(_module, args, kwargs):
        if not any(call.component == "unet" for call in calls):
            return None
        text = kwargs["encoder_hidden_states"]
        return (torch.cat([args[0], args[0][:1]]), *args[1:]), kwargs | {
            "encoder_hidden_states": torch.cat([text, text[:1]])
        }

    hook = pipe.unet.register_forward_pre_hook(grow, with_kwargs=True)
    try:
        with pytest.raises(AmbiguousBatch, match=r"given: 3 rows; expected: 1 samples x 2 branches"):
            generate(pipe, table("a"), steps=2, progress=False, on_call=calls.append)
    finally:
        hook.remove()
    assert calls[-1].step == 0


def test_guidance_and_negative_prompts_of_single_samples(pipe):
    samples = table("a", "a", "a", negative_prompt=[None, None, "b"], guidance=[np.nan, 3.0, 3.0])
    samples["seed"] = 5
    batches = []
    images = generate(pipe, samples, steps=2, progress=False, on_batch=lambda rows, _: batches.append(rows))
    assert batches == [range(0, 1), range(1, 2), range(2, 3)]
    alone = [
        generate(pipe, table("a", seed=[5]), steps=2, progress=False, guidance=7.5),
        generate(pipe, table("a", seed=[5]), steps=2, progress=False, guidance=3.0),
        generate(pipe, table("a", seed=[5], negative_prompt=["b"]), steps=2, progress=False, guidance=3.0),
    ]
    assert np.array_equal(images, np.concatenate(alone))
    assert len({image.tobytes() for image in images}) == 3


def test_progress_as_a_function(pipe):
    seen = []
    generate(pipe, table("a", "b", "c"), steps=1, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]


def test_without_decoding_the_vae_is_not_called(pipe):
    calls = []
    hook = pipe.vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    images = generate(pipe, table("a", "b"), steps=1, decode=False, progress=False)
    hook.remove()
    assert images.shape == (2, 0, 0, 3)
    assert calls == []


def test_other_sizes(pipe):
    assert generate(pipe, table("a"), steps=1, height=24, width=32, progress=False).shape == (1, 24, 32, 3)
    assert image_size(pipe) == (16, 16)


@numpy_copy
@pytest.mark.parametrize(
    ("name", "steps", "calls"), [("PNDMScheduler", 4, 5), ("HeunDiscreteScheduler", 4, 7), ("DDIMScheduler", 4, 4)]
)
def test_timesteps_count_the_calls(pipe, name, steps, calls):
    import diffusers

    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, name).from_config(before.config, skip_prk_steps=True)
    seen = []
    try:
        expected = timesteps(pipe, steps)
        generate(pipe, table("a"), steps=steps, progress=False, on_call=seen.append)
    finally:
        pipe.scheduler = before
    assert len(expected) == calls
    assert [c.timestep for c in seen if c.component == "unet"] == list(expected)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (table(), {}, "no samples"),
        (pd.DataFrame({"promt": ["a"], "seed": [0]}), {}, "lacks a column; given: prompt; nearest: promt"),
        (table("a", seed=[-1]), {}, "non-negative"),
        (table("a"), {"height": 20}, "height does not fit the model; given: 20; expected: a multiple of 8"),
        (table("a"), {"steps": 0}, "steps must be at least 1"),
        (table("a"), {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_input(pipe, samples, options, message):
    with pytest.raises(BadInput, match=message):
        generate(pipe, samples, progress=False, **options)


def test_images_with_nan_are_black_and_counted_in_the_log(pipe, caplog):
    import torch

    def spoil(_module, _args, output):
        output = output.clone()
        output[0] = torch.nan
        return output

    hook = pipe.vae.decoder.register_forward_hook(spoil)
    images = generate(pipe, table("a", "b"), steps=1, progress=False)
    hook.remove()
    assert (images[0] == 0).all()
    assert (images[1] != 0).any()
    assert "1 of 2 images" in caplog.text


def test_a_prompt_that_is_cut_is_told_of_once(pipe, caplog, capsys):
    long = "a church " * 40
    assert generate(pipe, table(long, long, "a hill"), steps=1, batch_size=1, progress=False).shape[0] == 3
    assert [record.name for record in caplog.records] == ["probe._generate"]
    assert "1 prompts have more than the 32 tokens" in caplog.text
    assert capsys.readouterr().err == ""
