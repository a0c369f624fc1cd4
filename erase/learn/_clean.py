"""Pictures of the model as latents x_0, drawn once; training adds noise to them at any timestep.

Shapes: s sample, c channel, y x space.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erase.learn._points import ddim, denoising_by
from erase.prune._layers import stream
from probe import guidance, trajectories
from probe._generate import image_size


@dataclass(frozen=True)
class Noised:
    """``x`` (s c y x) = q(x_0, t) with ``noise``; ``timesteps`` (s,); ``which`` prompt each sample was drawn from."""

    x: Tensor
    timesteps: Tensor
    noise: Tensor
    which: list[int]


class Pictures:
    """The model's own pictures of some prompts, drawn in turn, each with its own noise, until there are ``n``.

    Their latents are the sampler's, not the VAE's of a decoded image, which would add the VAE's error.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        *,
        n: int,
        steps: int,
        scale: float,
        seed: int,
        folder: Path | None,
        what: str = "anchors",
        progress: bool = False,
    ) -> None:
        n = max(n, len(prompts))
        seeds = torch.randint(2**31, (n,), generator=stream(seed, f"{what}: noise")).tolist()
        self._pipe, self._seed, self._what = pipe, seed, what
        self.which = [i % len(prompts) for i in range(n)]
        self.size = image_size(pipe)
        with tempfile.TemporaryDirectory() as temporary, denoising_by(pipe, ddim(pipe)):
            drawn = trajectories(
                pipe,
                [prompts[i] for i in self.which],
                seeds=seeds,
                out=Path(temporary) / what if folder is None else folder / what,
                steps=steps,
                guidance=scale,
                stored_as="float32",
                progress=progress,
            )
            with drawn.open() as ds:
                self.x_0 = torch.from_numpy(np.asarray(ds["final"].values, np.float32))

    def batch(self, iteration: int, n: int) -> Noised:
        """``n`` pictures at timesteps and with noise that the iteration decides."""
        drawn = stream(self._seed, f"{self._what}: iteration {iteration}")
        known = self._pipe.scheduler.alphas_cumprod.float().cpu()
        rows = torch.randint(len(self.x_0), (n,), generator=drawn)
        timesteps = torch.randint(len(known), (n,), generator=drawn)
        noise = torch.randn(self.x_0[rows].shape, generator=drawn)
        x = guidance.noised(self.x_0[rows], noise, known[timesteps].reshape(-1, 1, 1, 1))
        return Noised(x, timesteps, noise, [self.which[row] for row in rows.tolist()])
