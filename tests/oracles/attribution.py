"""Slow twins of gradient and causal: plain calls of the networks, finite differences, loops over samples."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def scaled_unit(module: torch.nn.Module, unit: int, factor: float, row: int):
    """One unit of a Linear's input times a factor, in one row of the batch."""

    def hook(_module, args):
        x = args[0].clone()
        x[row, :, unit] *= factor
        return (x,)

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def noise_at(pipe, x, timestep, text, added=None):
    """epsilon of one prompt at x, whatever the UNet predicts."""
    options = {} if added is None else {"added_cond_kwargs": added}
    prediction = pipe.unet(x, timestep, encoder_hidden_states=text, **options).sample
    a_bar = pipe.scheduler.alphas_cumprod[int(timestep)].double()
    if pipe.scheduler.config.prediction_type == "v_prediction":
        return a_bar.sqrt() * prediction + (1 - a_bar).sqrt() * x
    return prediction


def encoded(pipe, prompt, guided):
    """(text, added) of a prompt: one row, or uncond and cond."""
    found = pipe.encode_prompt(
        prompt=prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=guided, negative_prompt=None
    )
    text = torch.cat([found[1], found[0]]) if guided else found[0]
    if len(found) == 2:
        return text, None
    side = float(pipe.unet.config.sample_size * pipe.vae_scale_factor)
    ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=text.dtype).repeat(len(text), 1)
    pooled = torch.cat([found[3], found[2]]) if guided else found[2]
    return text, {"text_embeds": pooled, "time_ids": ids}


def noise_difference(pipe, x, timestep, prompt, reference, change=None):
    """Mean squared difference of epsilon between two prompts at the same x; ``change`` is in force for the first."""
    with torch.no_grad():
        fixed = noise_at(pipe, x, timestep, *encoded(pipe, reference, False))
        text = encoded(pipe, prompt, False)
        if change is None:
            own = noise_at(pipe, x, timestep, *text)
        else:
            with change:
                own = noise_at(pipe, x, timestep, *text)
    return float((own - fixed).square().mean())


def judged_x_0(pipe, x, timestep, prompt, guidance, judge, change):
    """The judge's number for the picture of the guided prediction; ``change`` is in force for the one call."""
    with torch.no_grad():
        text, added = encoded(pipe, prompt, True)
        with change:
            uncond, cond = noise_at(pipe, x.repeat(2, 1, 1, 1), timestep, text, added).chunk(2)
        noise = uncond + guidance * (cond - uncond)
        a_bar = pipe.scheduler.alphas_cumprod[int(timestep)].double()
        x_0 = (x - (1 - a_bar).sqrt() * noise) / a_bar.sqrt()
        image = (pipe.vae.decode(x_0 / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        return float(judge(image)[0])


def derivative(number, h: float = 1e-4) -> float:
    """Central difference of ``number(factor)`` at factor 1: sum over tokens of a dL/da, as the unit is scaled."""
    return (number(1 + h) - number(1 - h)) / (2 * h)


def paired_change(before, after, prompts, resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean of before - after and the 95% limits from drawing whole prompts."""
    kept = [(b - a, p) for b, a, p in zip(before, after, prompts, strict=True) if b == b and a == a]
    names = list(dict.fromkeys(p for _, p in kept))
    groups = [[d for d, p in kept if p == name] for name in names]
    rng = np.random.default_rng(seed)
    means = []
    for draw in rng.integers(0, len(groups), size=(resamples, len(groups))):
        values = [d for g in draw for d in groups[g]]
        means.append(sum(values) / len(values))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([d for d, _ in kept])), float(low), float(high)
