"""What `gradient` differentiates: a number for every sample, and the activations that it depends on.

Shapes: s sample, b branch, c channel, y x space, k token row, n neuron.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from probe import guidance
from probe._generate import Batch, sampling
from probe._sites import Site
from probe.errors import WorkbenchError
from probe.guidance import Latents
from probe.scores._judge import DifferentiableJudge

#: (x as the UNet reads it, timestep, sites) -> the samples' numbers (s,) and what entered each site, (rows k n)
AtOneCall = Callable[[Tensor, Tensor, Sequence[Site]], tuple[Tensor, list[Tensor]]]


class Objective(Protocol):
    """A number a sample that says how much of the concept there is."""

    def of(self, pipe: Any, batch: Batch, pairs: Sequence[Any]) -> AtOneCall:
        """The number of a batch's samples at one call; prompts are encoded now, without gradients."""
        ...


@dataclass(frozen=True)
class NoiseDifference:
    """mean over c, y, x of (eps(x_t, t, concept) - eps(x_t, t, reference))^2, the second held fixed.

    ``references``: pair -> reference prompt; ``size`` (y, x) in pixels.
    """

    references: Mapping[Any, str]
    size: tuple[int, int]

    def of(self, pipe: Any, batch: Batch, pairs: Sequence[Any]) -> AtOneCall:
        """See `Objective`. Only the cond branch is computed."""
        distilled = pipe.unet.config.time_cond_proj_dim is not None  # guidance is an input there
        scale = batch.guidance if distilled else 1.0
        prompts = [batch.prompts, [self.references[pair] for pair in pairs]]
        with torch.no_grad():
            told, other = (guidance.condition(pipe, each, guidance=scale, size=self.size) for each in prompts)

        def at(x: Tensor, timestep: Tensor, sites: Sequence[Site]) -> tuple[Tensor, list[Tensor]]:
            with torch.no_grad():
                reference = _noise(pipe, guidance.predict(pipe, x, timestep, other)[0], x, timestep)
            with capturing(pipe, sites) as kept:
                prediction = guidance.predict(pipe, x.requires_grad_(), timestep, told)[0]
            difference = _noise(pipe, prediction, x.detach(), timestep) - reference
            return difference.float().square().mean((1, 2, 3)), kept

        return at


@dataclass(frozen=True)
class SeenByJudge:
    """Log-odds of the likeliest of ``labels`` in the picture that the guided prediction at x_t speaks of (its x_0).

    ``both``: activations of the uncond branch count too; else that branch is computed without gradients.
    """

    judge: DifferentiableJudge
    labels: tuple[str, ...]
    size: tuple[int, int]
    both: bool

    def of(self, pipe: Any, batch: Batch, pairs: Sequence[Any]) -> AtOneCall:
        """See `Objective`."""
        with torch.no_grad():
            told = guidance.condition(
                pipe, batch.prompts, negative=batch.negative, guidance=batch.guidance, size=self.size
            )
        together = self.both or len(told.branches) == 1

        def at(x: Tensor, timestep: Tensor, sites: Sequence[Site]) -> tuple[Tensor, list[Tensor]]:
            before = None
            if not together:
                with torch.no_grad():
                    before = guidance.predict(pipe, x, timestep, told.part("uncond"))
            with capturing(pipe, sites) as kept:
                now = told if together else told.part("cond")
                prediction = guidance.predict(pipe, x.requires_grad_(), timestep, now)
            both = prediction if before is None else torch.cat([before, prediction])
            noise = _noise(pipe, guidance.combined(both, batch.guidance), x.detach(), timestep)
            x_0 = guidance.clean(noise, x.detach().to(noise), _alpha_bar(pipe, timestep))
            return self.judge.log_odds(pictures(pipe, x_0), self.labels).float().amax(1), kept

        return at


def attributed(number: Float[Tensor, " s"], kept: Sequence[Tensor], samples: int) -> list[Float[Tensor, "s n"]]:
    """Activation times gradient, summed over token rows and branches, of each site: sum_k a_kj dL/da_kj, (s n) a site.

    Samples do not depend on each other, so the gradient of their sum holds each one's. The sum is scaled up on its way
    back: half precision would lose what is small.
    """
    if not number.requires_grad:
        raise WorkbenchError("nothing of the model's output depends on the activations of these sites")
    scale = float(2**10)
    gradients = torch.autograd.grad(number.sum() * scale, list(kept), materialize_grads=True)
    products = [(a.detach().float() * g.float()).sum(1) / scale for a, g in zip(kept, gradients, strict=True)]
    return [product.reshape(-1, samples, product.shape[-1]).sum(0) for product in products]


def pictures(pipe: Any, x_0: Latents) -> Float[Tensor, "s 3 height width"]:
    """What the VAE makes of latents as the sampler holds them, in 0 to 1, as the pipeline would, with gradients."""
    vae = pipe.vae
    if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
        vae.to(torch.float32)  # `sampling` casts it back
    z = x_0.to(vae.device, vae.dtype) / vae.config.scaling_factor
    mean, std = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
    if mean is not None and std is not None:
        z = z * z.new_tensor(std).view(1, -1, 1, 1) + z.new_tensor(mean).view(1, -1, 1, 1)
    return (vae.decode(z, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)


@contextmanager
def capturing(pipe: Any, sites: Sequence[Site]) -> Iterator[list[Tensor]]:
    """The list of what enters each site in the one call inside the block, with its graph; hooks are gone afterwards.

    Hooks come last, so they see what edits and interventions have made of an activation.
    """
    kept: list[Any] = [None] * len(sites)

    def keep(at: int) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[at] = args[0] if args else next(iter(kwargs.values()))

        return hook

    with ExitStack() as hooks:
        for i, site in enumerate(sites):
            hooks.callback(site.resolve(pipe).register_forward_pre_hook(keep(i), with_kwargs=True).remove)
        yield kept


@contextmanager
def differentiating(pipe: Any) -> Iterator[None]:
    """Gradients on, parameters out of them, and the pipeline as for sampling; everything as it was afterwards."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    with sampling(pipe), torch.enable_grad():
        try:
            for parameter in learning:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)


def _alpha_bar(pipe: Any, timestep: Tensor) -> float:
    return guidance.alpha_bar(pipe, round(float(timestep)))  # some schedulers step between those of training


def _noise(pipe: Any, prediction: Latents, x: Latents, timestep: Tensor) -> Latents:
    """The noise that a prediction at x, as the UNet read it, speaks of."""
    return guidance.epsilon(prediction, x.to(prediction), _alpha_bar(pipe, timestep), guidance.prediction_type(pipe))
