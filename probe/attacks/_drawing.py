"""Pictures of attacked prompts, whatever carries the attack: words, an embedding, latents, or changed weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probe import compat, guidance
from probe._generate import generate, sampling
from probe.attacks._speaking import Spoken, standing_in
from probe.errors import BadInput, unknown_name
from probe.scores._objectives import pictures


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn: as `probe.generate` is told; ``size`` (height, width) in pixels."""

    steps: int
    guidance: float
    size: tuple[int, int]
    batch_size: int = 8

    def to_json(self) -> dict[str, Any]:
        """What decides a picture."""
        return {"steps": self.steps, "guidance": self.guidance, "size": list(self.size)}


@dataclass(frozen=True, eq=False)
class Carried:
    """One attacked prompt: the carrier, and what it carries.

    - ``tokens``, ``embedding``: ``spoken`` stands in for the prompt
    - ``latents``: ``tensors["x_T"]`` (c y x), drawn by DDIM under the null text, without guidance
    - ``start``: the prompt itself, from the original's x_t after the share ``at`` of its steps
    - ``weights``: the prompt itself, with ``tensors`` (canonical parameter -> difference) on the UNet's weights
    """

    carrier: str
    prompt: str = ""
    spoken: Spoken | None = None
    at: float = 0.0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Text that names it in a table of images; equal for what draws equal pictures."""
        if self.spoken is not None:
            return self.spoken.key
        from probe.attacks._set import tensors_key

        text = repr((self.carrier, self.prompt, self.at, tensors_key(self.tensors) if self.tensors else ""))
        return f"attack {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def draw(
    pipe: Any,
    edit: Any,
    carried: Sequence[Carried],
    seeds: Sequence[int],
    scales: Sequence[float],
    drawing: Drawing,
    on_batch: Callable[[Sequence[int], np.ndarray], object] | None = None,
) -> np.ndarray:
    """Images uint8 (s y x rgb), one for each carried prompt, drawn on the edited pipeline, which must not be in force.

    ``on_batch`` is told (positions, images) as they come. Results do not depend on the order or on batches.
    """
    images = np.zeros((len(carried), *drawing.size, 3), np.uint8)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, one in enumerate(carried):
        # a pipeline call shares its guidance; x_t of another share, or other weights, are another call
        special = one.at if one.carrier == "start" else one.key if one.carrier == "weights" else ""
        kind = "tokens" if one.spoken is not None else one.carrier
        groups.setdefault((kind, special, scales[i]), []).append(i)
    for (kind, _, scale), all_places in groups.items():
        for start in range(0, len(all_places), drawing.batch_size):
            places = all_places[start : start + drawing.batch_size]
            part, own = [carried[i] for i in places], [seeds[i] for i in places]
            images[places] = _HOW[kind](pipe, edit, part, own, scale, drawing)
            if on_batch is not None:
                on_batch(places, images[places])
    return images


def in_force(pipe: Any, edit: Any) -> AbstractContextManager[Any]:
    """The edit in force, or nothing for None."""
    found: AbstractContextManager[Any] = nullcontext() if edit is None else edit.applied(pipe)
    return found


def latents_of(pipe: Any, images: np.ndarray) -> Tensor:
    """x_0 as the sampler holds it, of pictures uint8 (s y x rgb): the VAE's mean, scaled; (s c y x)."""
    vae = pipe.vae
    pixels = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with sampling(pipe), torch.no_grad():
        if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
            vae.to(torch.float32)
        z = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
        mean, std = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is not None and std is not None:
            z = (z - z.new_tensor(mean).view(1, -1, 1, 1)) / z.new_tensor(std).view(1, -1, 1, 1)
    found: Tensor = (z * vae.config.scaling_factor).to(pipe.unet.dtype)
    return found


def _speaking(
    pipe: Any, edit: Any, part: Sequence[Carried], seeds: Sequence[int], scale: float, drawing: Drawing
) -> np.ndarray:
    spoken = {one.key: one.spoken for one in part if one.spoken is not None}
    with in_force(pipe, edit), standing_in(pipe, spoken):
        return _generate(pipe, [one.key for one in part], seeds, scale, drawing)


def _with_weights(
    pipe: Any, edit: Any, part: Sequence[Carried], seeds: Sequence[int], scale: float, drawing: Drawing
) -> np.ndarray:
    with in_force(pipe, edit), moved_weights(pipe, part[0].tensors):
        return _generate(pipe, [one.prompt for one in part], seeds, scale, drawing)


def _from_start(
    pipe: Any, edit: Any, part: Sequence[Carried], seeds: Sequence[int], scale: float, drawing: Drawing
) -> np.ndarray:
    """The original draws the first steps, the edited model the others, under the same prompt.

    One scheduler and one generator a sample go through both: what they remember of the steps before is the original's.
    """
    prompts = [one.prompt for one in part]
    with sampling(pipe), torch.no_grad():
        pipe.scheduler.set_timesteps(drawing.steps, device=pipe.unet.device)
        times = pipe.scheduler.timesteps
        first = min(max(1, round(part[0].at * len(times))), len(times) - 1)
        generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        shape = (pipe.unet.config.in_channels, *(side // pipe.vae_scale_factor for side in drawing.size))
        x = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        x = x.to(pipe.unet.device, pipe.unet.dtype) * pipe.scheduler.init_noise_sigma
        x = _stepped(pipe, x, prompts, scale, times[:first], generators, drawing.size)
        with in_force(pipe, edit):
            x = _stepped(pipe, x, prompts, scale, times[first:], generators, drawing.size)
            return to_images(pictures(pipe, x))


def _resampled(
    pipe: Any, edit: Any, part: Sequence[Carried], seeds: Sequence[int], scale: float, drawing: Drawing
) -> np.ndarray:
    latents = torch.stack([one.tensors["x_T"] for one in part])
    with in_force(pipe, edit), sampling(pipe), torch.no_grad():
        told = guidance.condition(pipe, [""] * len(part), guidance=1.0, size=drawing.size)
        return to_images(pictures(pipe, ddim(pipe, latents, told, drawing.steps)))


_HOW = {"tokens": _speaking, "weights": _with_weights, "start": _from_start, "latents": _resampled}


def _generate(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], scale: float, drawing: Drawing) -> np.ndarray:
    height, width = drawing.size
    return generate(
        pipe,
        pd.DataFrame({"prompt": list(prompts), "seed": list(seeds)}),
        steps=drawing.steps,
        guidance=scale,
        batch_size=drawing.batch_size,
        height=height,
        width=width,
        progress=False,
    )


def to_images(light: Tensor) -> np.ndarray:
    """uint8 (s y x rgb) of light in 0 to 1, (s 3 y x)."""
    return np.asarray((light.float().permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8))


def _stepped(
    pipe: Any,
    x: Tensor,
    prompts: Sequence[str],
    scale: float,
    times: Tensor,
    generators: Sequence[torch.Generator],
    size: tuple[int, int],
) -> Tensor:
    """x_t after these calls of the pipeline's scheduler, from the state it is in; call inside `sampling`."""
    told = guidance.condition(pipe, prompts, guidance=scale, size=size)
    scheduler, more = pipe.scheduler, pipe.prepare_extra_step_kwargs(list(generators), 0.0)
    for timestep in times:
        prediction = guidance.predict(pipe, scheduler.scale_model_input(x, timestep), timestep, told)
        x = scheduler.step(guidance.combined(prediction, scale), timestep, x, **more, return_dict=False)[0]
    return x


# --- DDIM, for what runs it backwards ---------------------------------------------------------------------------------


def grid(pipe: Any, steps: int) -> list[int]:
    """Timesteps of a DDIM of so many steps, ascending: the "leading" spacing of SD's scheduler, offset 1."""
    total = len(pipe.scheduler.alphas_cumprod)
    if not 1 <= steps < total:
        raise BadInput("DDIM takes between 1 and all timesteps", given=steps, expected=f"1 to {total - 1}")
    return [int(i) + 1 for i in np.arange(steps) * (total // steps)]


def ddim_step(x: Tensor, noise: Tensor, now: float, then: float) -> Tensor:
    """x at alpha_bar ``then`` from x at alpha_bar ``now`` and its noise (Song et al., arXiv 2010.02502, eq. 12)."""
    return guidance.noised(guidance.clean(noise, x, now), noise, then)


def ddim(pipe: Any, x: Tensor, told: guidance.Conditioning, steps: int) -> Tensor:
    """x_0 from x_T by deterministic DDIM, without guidance."""
    times = grid(pipe, steps)[::-1]
    x = x.to(pipe.unet.device, pipe.unet.dtype)
    for t, before in zip(times, [*times[1:], 0], strict=True):
        now, then = guidance.alpha_bar(pipe, t), guidance.alpha_bar(pipe, before)
        x = ddim_step(x, noise_at(pipe, x, t, told), now, then)
    return x


def noise_at(pipe: Any, x: Tensor, timestep: int, told: guidance.Conditioning) -> Tensor:
    """The noise that the UNet predicts at x_t (s c y x), for a conditioning of one branch."""
    prediction = guidance.predict(pipe, x, torch.tensor(timestep), told)[0]
    kind = guidance.prediction_type(pipe)
    return guidance.epsilon(prediction, x.to(prediction), guidance.alpha_bar(pipe, timestep), kind)


# --- weights ----------------------------------------------------------------------------------------------------------


@contextmanager
def moved_weights(pipe: Any, differences: Mapping[str, Tensor]) -> Iterator[None]:
    """Differences added to the UNet's weights inside the block; the same bits as before afterwards."""
    parameters = dict(pipe.unet.named_parameters())
    chosen = {}
    for name in differences:
        live = compat.live_name(pipe.unet, name)
        if live not in parameters:
            raise unknown_name("parameter of the UNet", name, parameters)
        chosen[name] = parameters[live]
    before = {name: parameter.detach().clone() for name, parameter in chosen.items()}
    try:
        with torch.no_grad():
            for name, parameter in chosen.items():
                parameter.copy_((before[name].float() + differences[name].to(parameter.device)).to(parameter.dtype))
        yield
    finally:
        with torch.no_grad():
            for name, parameter in chosen.items():
                parameter.copy_(before[name])
