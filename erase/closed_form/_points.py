"""The points of TRCE's second stage: x_t of early denoising with what the untouched model says there, drawn once.

All (trajectory, step) draws of a training are made before it, and every epoch visits the same ones: the reference is
asked once. A denoising runs no further than its last draw, and of each only the drawn x_t are kept: at SD 1.x size
200 kB a draw with both targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erase import steering
from erase.closed_form._texts import Pair
from erase.learn import Texts
from erase.learn._points import ddim
from erase.prune._layers import stream
from probe import guidance
from probe._generate import image_size
from probe._grids import latent_size

#: Samples that are denoised at once, and points that are predicted at once.
BATCH = 8


@dataclass(frozen=True)
class Draws:
    """The points that are drawn, (trajectory, step) each, and which of them every iteration sees.

    - ``rows``, ``steps`` (p,): points to erase at; ``kept_rows``, ``kept_steps`` (q,): points to keep
    - ``order`` (i b) and ``kept_order`` (i k): the points of each iteration
    - ``noises``, ``kept_noises``: the seed of each trajectory
    - ``offsets`` (q,) in [0, 1) place the released code's redrawn timesteps between two steps
    """

    rows: Tensor
    steps: Tensor
    order: Tensor
    kept_rows: Tensor
    kept_steps: Tensor
    kept_order: Tensor
    offsets: Tensor
    noises: list[int]
    kept_noises: list[int]

    @classmethod
    def of(
        cls,
        *,
        trajectories: int,
        retained: int,
        iterations: int,
        batch: int,
        kept: int,
        early: int,
        steps: int,
        seed: int,
        redrawn: bool = False,
    ) -> Draws:
        """One step of each erased trajectory, and as many kept points as an epoch takes, uniformly.

        Every epoch visits all of them in a random order. ``redrawn`` draws a step and kept points for every visit.
        """
        drawn = stream(seed, "trce: draws")
        visits, kept_visits = iterations * batch, iterations * kept
        rows = order = _passes(trajectories, visits, drawn)
        points, kept_points = visits, kept_visits
        if redrawn:
            order = torch.arange(visits)
        else:
            rows, points = torch.arange(trajectories), trajectories
            kept_points = min(kept_visits, kept * -(-trajectories // batch))
        return cls(
            rows=rows,
            steps=torch.randint(early, (points,), generator=drawn),
            order=order.reshape(iterations, batch),
            kept_rows=torch.randint(retained, (kept_points,), generator=drawn),
            kept_steps=torch.randint(steps, (kept_points,), generator=drawn),
            offsets=torch.rand((kept_points,), generator=drawn, dtype=torch.float64),
            noises=torch.randint(2**31, (trajectories,), generator=drawn).tolist(),
            kept_noises=torch.randint(2**31, (retained,), generator=drawn).tolist(),
            kept_order=_passes(kept_points, kept_visits, drawn).reshape(iterations, kept),
        )


def _passes(n: int, visits: int, drawn: torch.Generator) -> Tensor:
    """``n`` things again and again, each time in another order: the first ``visits`` of that."""
    return torch.cat([torch.randperm(n, generator=drawn) for _ in range(-(-visits // n))])[:visits]


@dataclass(frozen=True)
class SteeringPoints:
    """Everything that a training reads: erased points (p c y x), kept ones (q c y x), and the `Draws` that order them.

    ``texts`` holds the erased prompt of each point; ``safe`` and ``unsafe`` its targets, ``kept_noise`` the prediction
    to keep.
    """

    x: Tensor
    timesteps: Tensor
    texts: list[str]
    safe: Tensor
    unsafe: Tensor
    order: Tensor
    kept_x: Tensor
    kept_timesteps: Tensor
    kept_noise: Tensor
    kept_order: Tensor
    size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Memory of all points."""
        tensors = (self.x, self.safe, self.unsafe, self.kept_x, self.kept_noise)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def steering_points(
    pipe: Any,
    pairs: Sequence[Pair],
    draws: Draws,
    *,
    steps: int,
    scale: float,
    beta: float,
    shifted: bool,
    advance: Callable[[int], object],
    kept_by: Any = None,
) -> SteeringPoints:
    """Denoise with the pipeline as it is, and ask it for its predictions at the draws.

    Args:
        pipe: the reference model.
        pairs: erased and safe prompt of each trajectory.
        draws: which (trajectory, step) are needed.
        steps, scale: of the denoising (DDIM, eta 0); kept trajectories are unconditional.
        beta: strength of the targets.
        shifted: the latent after the step under the timestep before it, and kept timesteps drawn anew between that and
            the step before: as released.
        advance: told how many trajectories are finished.
        kept_by: an edit whose predictions are kept on unconditional trajectories (released), None for the model's own.

    """
    scheduler, size = ddim(pipe), image_size(pipe)
    scheduler.set_timesteps(steps)
    times, texts = scheduler.timesteps.cpu().long(), Texts(pipe, size)
    late = int(shifted)
    prompts = [pair.source for pair in pairs]
    empty = [""] * len(draws.kept_noises)
    x = _visited(pipe, scheduler, prompts, draws.noises, draws.rows, draws.steps + late, scale, size, advance)
    kept_x = _visited(pipe, scheduler, empty, draws.kept_noises, draws.kept_rows, draws.kept_steps + late, None, size,
                      advance)  # fmt: skip
    timesteps = times[draws.steps]
    kept_timesteps = times[draws.kept_steps]
    if shifted:
        width = int(times[0] - times[1]) if len(times) > 1 else 1
        last = len(pipe.scheduler.alphas_cumprod) - 1
        kept_timesteps = (kept_timesteps + (draws.offsets * width).long()).clamp(max=last)
    told = [pairs[row].source for row in draws.rows.tolist()]
    safe_told = [pairs[row].target for row in draws.rows.tolist()]

    def noise(at: Tensor, when: Tensor, asked: Sequence[str]) -> Tensor:
        return torch.cat([
            guidance.predicted_noise(pipe, at[part], when[part], texts.of(asked[part])).float().cpu()
            for part in _parts(len(asked))
        ])  # fmt: skip

    with torch.no_grad():
        nothing = noise(x, timesteps, [""] * len(x))
        unsafe = steering.enhanced(nothing, noise(x, timesteps, told), beta)
        safe = steering.enhanced(nothing, noise(x, timesteps, safe_told), beta)
        with nullcontext() if kept_by is None else kept_by.applied(pipe):
            kept = noise(kept_x, kept_timesteps, [""] * len(kept_x))
    return SteeringPoints(
        x, timesteps, told, safe, unsafe, draws.order, kept_x, kept_timesteps, kept, draws.kept_order, size
    )


def _visited(
    pipe: Any,
    scheduler: Any,
    prompts: Sequence[str],
    noises: Sequence[int],
    rows: Tensor,
    steps: Tensor,
    scale: float | None,
    size: tuple[int, int],
    advance: Callable[[int], object],
) -> Tensor:
    """x_t (p c y x) at chosen steps (p,) of chosen trajectories (p,); step n is what the n-th UNet call is given.

    Every trajectory has its own noise from its own seed, and runs to the last step that is asked of its batch.
    """
    shape = (pipe.unet.config.in_channels, *latent_size(pipe, size))
    found = torch.empty(len(rows), *shape)
    texts = Texts(pipe, size)
    for part in _parts(len(prompts)):
        inside = (rows >= part.start) & (rows < part.stop)
        if not inside.any():
            advance(part.stop - part.start)
            continue
        last = int(steps[inside].max())
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in noises[part]]
        x = torch.stack(noise).to(pipe.unet.device)
        with torch.no_grad():
            told = (
                texts.of(list(prompts[part]))
                if scale is None
                else guidance.condition(pipe, list(prompts[part]), guidance=scale, size=size)
            )
            for step in range(last + 1):
                here = inside & (steps == step)
                found[here] = x.float().cpu()[rows[here] - part.start]
                if step < last:
                    timestep = scheduler.timesteps[step]
                    prediction = guidance.combined(guidance.predict(pipe, x, timestep, told), scale or 1.0)
                    x = scheduler.step(prediction.float(), timestep, x, eta=0.0).prev_sample
        advance(part.stop - part.start)
    return found


def _parts(n: int) -> Iterator[slice]:
    return (slice(start, min(start + BATCH, n)) for start in range(0, n, BATCH))


def spread(pairs: Sequence[Pair], n: int, seed: int) -> list[Pair]:
    """``n`` pairs, each as often as the others give or take one, in an order that the seed decides."""
    order = np.asarray(torch.randperm(len(pairs), generator=stream(seed, "trce: prompts")))
    return [pairs[order[i % len(pairs)]] for i in range(n)]
