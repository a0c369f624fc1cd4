"""Everything about x_t and guided prediction that is not a pipeline's: pure algebra, and one call of the UNet.

Losses, attacks and recordings at fixed inputs call the UNet through `predict` and see epsilon through `epsilon`, so
that they need not know how a model was trained. This module and pipelines are the only callers of a UNet.

Shapes: s sample, b branch, c channel, y x space, k text token, d width of its embedding. In x_t = a x_0 + b eps with
a^2 + b^2 = 1, ``alpha_bar`` is a^2 (Ho et al., arXiv 2006.11239, eq. 4).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probe import compat
from probe.errors import BadInput, unknown_name

if TYPE_CHECKING:
    import numpy as np

Latents = Float[Tensor, "s c y x"]
Coefficient = float | Float[Tensor, "s 1 1 1"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
_TYPES = ("epsilon", "v_prediction", "sample")


# --- algebra ----------------------------------------------------------------------------------------------------------


def guided(uncond: Latents, cond: Latents, scale: float | int) -> Latents:
    """uncond + scale (cond - uncond): classifier-free guidance (Ho and Salimans, arXiv 2207.12598; scale = 1 + w)."""
    return uncond + scale * (cond - uncond)


def noised(x_0: Latents, noise: Latents, alpha_bar: Coefficient) -> Latents:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise."""
    return alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise


def epsilon(prediction: Latents, x_t: Latents, alpha_bar: Coefficient, kind: str) -> Latents:
    """The noise that a model's prediction at x_t speaks of, whatever it was trained to predict.

    - ``epsilon``: the prediction itself
    - ``v_prediction``: v = a eps - b x_0, so eps = a v + b x_t (Salimans and Ho, arXiv 2202.00512, appendix D)
    - ``sample``: the prediction is x_0, so eps = (x_t - a x_0) / b
    """
    a, b = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if kind == "epsilon":
        return prediction
    if kind == "v_prediction":
        return a * prediction + b * x_t
    if kind == "sample":
        return (x_t - a * prediction) / b
    raise unknown_name("prediction type", kind, _TYPES)


def clean(noise: Latents, x_t: Latents, alpha_bar: Coefficient) -> Latents:
    """x_0 = (x_t - sqrt(1 - alpha_bar) noise) / sqrt(alpha_bar): the image that a predicted noise speaks of."""
    return (x_t - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5


def velocity(noise: Latents, x_t: Latents, alpha_bar: Coefficient) -> Latents:
    """v = a eps - b x_0: the v_prediction that means this noise at x_t; the inverse of `epsilon`."""
    return alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * clean(noise, x_t, alpha_bar)


# --- what a scheduler says --------------------------------------------------------------------------------------------


def prediction_type(pipe: Any) -> str:
    """What the pipeline's UNet predicts: ``epsilon``, ``v_prediction`` or ``sample``."""
    return str(pipe.scheduler.config.get("prediction_type", "epsilon"))


def alpha_bar(pipe: Any, timestep: int) -> float:
    """alpha_bar at a timestep of training. `BadInput` outside 0 ... ``num_train_timesteps - 1``."""
    known = pipe.scheduler.alphas_cumprod
    if not 0 <= timestep < len(known):
        raise BadInput("there is no such timestep", given=timestep, expected=f"0 to {len(known) - 1}")
    return float(known[timestep])


def input_scales(pipe: Any, steps: int) -> np.ndarray:
    """By what a pipeline multiplies x_t before each UNet call of a run of ``steps``: (t,) float64.

    1 for schedulers that keep x_t itself (DDIM, PNDM), 1 / sqrt(sigma^2 + 1) for those that keep x_0 + sigma eps.
    Found by running a copy of the scheduler on one zero, since some schedulers count their steps.
    """
    import numpy as np

    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    own = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    scales = []
    for timestep in scheduler.timesteps:
        scales.append(float(scheduler.scale_model_input(one, timestep)))
        scheduler.step(zero, timestep, zero, **own)
    return np.array(scales)


# --- the UNet ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conditioning:
    """What a UNet is told besides x_t and t, for rows branch by branch: [uncond, cond], or [cond] alone.

    - ``text``: (rows k d); ``added``: SDXL's ``text_embeds`` (rows d) and ``time_ids`` (rows 6), else None
    - ``scale``: the guidance embedding of distilled models (rows d), else None
    """

    branches: tuple[str, ...]
    text: Float[Tensor, "rows k d"]
    added: dict[str, Tensor] | None = None
    scale: Tensor | None = None

    def part(self, branch: str) -> Conditioning:
        """The rows of one branch. `UnknownName` for one that is not there."""
        if branch not in self.branches:
            raise unknown_name("branch", branch, self.branches)
        size, at = len(self.text) // len(self.branches), self.branches.index(branch)
        rows = slice(at * size, (at + 1) * size)
        added = None if self.added is None else {name: value[rows] for name, value in self.added.items()}
        return Conditioning((branch,), self.text[rows], added, None if self.scale is None else self.scale[rows])


def condition(
    pipe: Any,
    prompts: Sequence[str],
    *,
    negative: Sequence[str] | None = None,
    guidance: float | int = 7.5,
    size: tuple[int, int] | None = None,
) -> Conditioning:
    """The conditioning that the pipeline's own call would make of these prompts, with gradients if they are on.

    ``guidance`` above 1 gives both branches (and a distilled model its embedding); ``size`` (height, width) in pixels
    is what SDXL is told of the image, its own by default.
    """
    distilled = pipe.unet.config.time_cond_proj_dim
    both = guidance > 1 and distilled is None
    negative_prompt = None if negative is None or not both else list(negative)
    device, n = pipe.unet.device, len(prompts)
    with compat.quiet_libraries():
        encoded = pipe.encode_prompt(
            prompt=list(prompts),
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=both,
            negative_prompt=negative_prompt,
        )
    cond, uncond, *pooled = encoded
    text = torch.cat([uncond, cond]) if both else cond
    added = None
    if pooled:
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        height, width = size or (side, side)
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=text.dtype, device=device)
        embeds = torch.cat([pooled[1], pooled[0]]) if both else pooled[0]
        added = {"text_embeds": embeds.to(device), "time_ids": ids.repeat(len(text), 1)}
    scale = None
    if distilled is not None:
        strength = torch.full((n,), guidance - 1.0)
        scale = pipe.get_guidance_scale_embedding(strength, embedding_dim=distilled).to(device, text.dtype)
    return Conditioning(("uncond", "cond") if both else ("cond",), text.to(device), added, scale)


def predict(
    pipe: Any, x: Latents, timestep: float | int | Tensor, conditioning: Conditioning
) -> Float[Tensor, "b s c y x"]:
    """The UNet's prediction for each branch at x as the UNet reads it: (s c y x) -> (b s c y x), gradients as set.

    ``x`` is x_t times the scheduler's scale (`input_scales`); for noised images x_t itself. ``timestep`` is one for all
    samples, or one for each (s,).
    """
    unet, branches = pipe.unet, len(conditioning.branches)
    rows = x.to(unet.device, unet.dtype).repeat(branches, 1, 1, 1)
    options: dict[str, Any] = {} if conditioning.scale is None else {"timestep_cond": conditioning.scale}
    if conditioning.added is not None:
        options["added_cond_kwargs"] = conditioning.added
    times = torch.as_tensor(timestep)
    times = times.to(rows.device).repeat(branches) if times.ndim else times
    found = unet(rows, times, encoder_hidden_states=conditioning.text, return_dict=False, **options)
    prediction: Tensor = found[0]
    return prediction.reshape(branches, -1, *prediction.shape[1:])


def predicted_noise(
    pipe: Any, x: Latents, timesteps: Int[Tensor, " s"], conditioning: Conditioning
) -> Float[Tensor, "s c y x"]:
    """epsilon(x, t, c) of each sample at its own timestep, float32, whatever the model was trained to predict.

    ``x`` as the UNet reads it (`predict`); ``conditioning`` has one branch.
    """
    prediction = predict(pipe, x, timesteps, conditioning)[0].float()
    known = pipe.scheduler.alphas_cumprod.to(prediction.device, torch.float32)
    share = known[timesteps.to(prediction.device)].reshape(-1, 1, 1, 1)
    return epsilon(prediction, x.to(prediction), share, prediction_type(pipe))


def combined(prediction: Float[Tensor, "b s c y x"], scale: float | int) -> Latents:
    """The one prediction that a scheduler is given: guided from both branches, or the only one."""
    return prediction[0] if len(prediction) == 1 else guided(prediction[0], prediction[1], scale)
