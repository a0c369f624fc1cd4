"""The algebra of x_t and guidance against its definitions, and the one UNet call against a pipeline's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import guidance
from probe._generate import timesteps
from probe.errors import BadInput, UnknownName
from probe.testing import tiny_pipeline

SEEDS, BARS = st.integers(0, 2**31), st.floats(0.01, 0.99)


def draws(seed, *names):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in names]


@given(seed=SEEDS, bar=BARS)
@settings(max_examples=25, deadline=None)
def test_every_prediction_of_the_same_noise_is_the_same_noise(seed, bar):
    x_0, noise = draws(seed, "x_0", "noise")
    x_t = guidance.noised(x_0, noise, bar)
    a, b = bar**0.5, (1 - bar) ** 0.5
    torch.testing.assert_close(x_t, a * x_0 + b * noise)
    velocity = a * noise - b * x_0  # Salimans and Ho, appendix D
    for prediction, kind in ((noise, "epsilon"), (velocity, "v_prediction"), (x_0, "sample")):
        torch.testing.assert_close(guidance.epsilon(prediction, x_t, bar, kind), noise)
    torch.testing.assert_close(guidance.clean(noise, x_t, bar), x_0)
    torch.testing.assert_close(guidance.velocity(noise, x_t, bar), velocity)


def test_an_own_coefficient_for_each_sample():
    x_0, noise = draws(1, "x_0", "noise")
    bars = torch.tensor([0.25, 0.81], dtype=torch.float64).reshape(2, 1, 1, 1)
    both = guidance.noised(x_0, noise, bars)
    for i, bar in enumerate((0.25, 0.81)):
        torch.testing.assert_close(both[i], guidance.noised(x_0, noise, bar)[i])


@given(seed=SEEDS, scale=st.floats(0, 20))
@settings(max_examples=25, deadline=None)
def test_guidance_is_linear_between_its_branches_and_commutes_with_the_change_to_epsilon(seed, scale):
    uncond, cond, x_t = draws(seed, "uncond", "cond", "x_t")
    torch.testing.assert_close(guidance.guided(uncond, cond, 0.0), uncond)
    torch.testing.assert_close(guidance.guided(uncond, cond, 1.0), cond)
    together = guidance.epsilon(guidance.guided(uncond, cond, scale), x_t, 0.3, "v_prediction")
    apart = [guidance.epsilon(branch, x_t, 0.3, "v_prediction") for branch in (uncond, cond)]
    torch.testing.assert_close(together, guidance.guided(*apart, scale))
    stacked = torch.stack([uncond, cond])
    torch.testing.assert_close(guidance.combined(stacked, scale), guidance.guided(uncond, cond, scale))
    assert guidance.combined(stacked[1:], scale) is not uncond
    torch.testing.assert_close(guidance.combined(stacked[1:], scale), cond)


def test_alpha_bar_and_prediction_type_are_the_schedulers():
    pipe = tiny_pipeline("sd21")
    assert guidance.prediction_type(pipe) == "v_prediction"
    x_0, noise = (x.float() for x in draws(3, "x_0", "noise"))
    theirs = pipe.scheduler.add_noise(x_0, noise, torch.tensor([301, 301]))
    torch.testing.assert_close(guidance.noised(x_0, noise, guidance.alpha_bar(pipe, 301)), theirs)
    for wrong in (-1, 1000):
        with pytest.raises(BadInput, match="0 to 999"):
            guidance.alpha_bar(pipe, wrong)
    with pytest.raises(UnknownName, match="v_prediction"):
        guidance.epsilon(noise, x_0, 0.5, "v_predicton")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers 0.42 with numpy 2
@pytest.mark.parametrize("kind", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_scales_are_those_of_a_run(kind):
    pipe = tiny_pipeline()
    options = {"skip_prk_steps": True} if kind is PNDMScheduler else {}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
    before = repr(vars(pipe.scheduler))
    found = guidance.input_scales(pipe, 4)
    assert repr(vars(pipe.scheduler)) == before
    scheduler, wanted = copy.deepcopy(pipe.scheduler), []
    scheduler.set_timesteps(4)
    latents = torch.full((1, 4, 2, 2), 3.0)
    for timestep in scheduler.timesteps:
        wanted.append(float((scheduler.scale_model_input(latents, timestep) / latents).mean()))
        latents = scheduler.step(torch.ones_like(latents), timestep, latents).prev_sample
    assert len(found) == len(timesteps(pipe, 4))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert (found == 1).all() == (kind in (DDIMScheduler, PNDMScheduler))


@pytest.mark.parametrize(
    ("kind", "scale", "negative"),
    [
        ("sd15", 7.5, ["blue", "red"]),
        ("sd21", 7.5, ["blue", "red"]),
        ("sd15", 1.0, None),
        ("sdxl", 7.5, ["blue", "red"]),
        ("sdxl", 7.5, None),  # zeros, and no encoder runs
        ("sdxl", 1.0, None),
    ],
)
def test_a_prediction_is_what_the_pipeline_asks_of_its_unet(kind, scale, negative):
    pipe, seen = tiny_pipeline(kind), []
    handle = pipe.unet.register_forward_hook(
        lambda _m, args, kwargs, output: seen.append((args[0], args[1], output[0])), with_kwargs=True
    )
    prompts = ["a church", "two cats"]
    try:
        generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
        options: dict = {"generator": generators, "output_type": "latent", "negative_prompt": negative}
        pipe(prompts, num_inference_steps=2, guidance_scale=scale, **options)
    finally:
        handle.remove()
    told = guidance.condition(pipe, prompts, negative=negative, guidance=scale)
    assert told.branches == (("uncond", "cond") if scale > 1 else ("cond",))
    for rows, timestep, output in seen:
        with torch.no_grad():
            found = guidance.predict(pipe, rows[-2:], timestep, told)
        assert found.shape[:2] == (len(told.branches), 2)
        torch.testing.assert_close(found.flatten(0, 1), output)
