"""Where a training's x_t come from: trajectories sampled once, or a fresh partial denoising for every iteration.

Shapes: s sample, t step, c channel, y x space.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from erase.learn._student import Student
from erase.prune._layers import stream
from probe import Trajectory, compat, guidance, trajectories
from probe._generate import image_size
from probe._grids import latent_size
from probe._sources import stored
from probe.errors import BadInput

At = Literal["bin", "grid"]


@dataclass(frozen=True)
class Batch:
    """Points of an iteration: ``x`` (s c y x) as the UNet reads it, ``timesteps`` (s,), and each sample's prompt.

    ``keys`` name points that come again; None for fresh ones.
    """

    x: Tensor
    timesteps: Tensor
    texts: list[str]
    keys: list[tuple[int, int]] | None


class Points(Protocol):
    """A source of x_t."""

    @property
    def size(self) -> tuple[int, int]: ...

    def batch(self, iteration: int, student: Student) -> Batch: ...


class Cached:
    """Points of trajectories that the model drew once: any sample at any of its steps, uniformly.

    With ``at="bin"`` the timestep of a point is drawn once from those down to which its step denoises: from its own
    timestep to just below that of the step before; with ``"grid"`` it is its own.
    """

    def __init__(self, pipe: Any, trajectory: Trajectory, *, batch_size: int, at: At, seed: int, what: str) -> None:
        table, settings, fixed = stored(pipe, None, trajectory, batch_size)
        latents = trajectory.latents(slice(0, len(table))) * trajectory.input_scales[:, None, None, None]
        self.x = torch.from_numpy(np.asarray(latents, np.float32))
        self.texts, self.size, self.id = list(table["prompt"]), settings.size, trajectory.id
        self._seed, self._what, self._n = seed, what, batch_size
        low = np.clip(np.rint(fixed.timesteps), 0, _last(pipe)).astype(np.int64)
        drawn = stream(seed, f"{what}: timesteps")
        self.timesteps = torch.from_numpy(low).expand(len(table), -1)
        if at == "bin":
            width = torch.from_numpy(_above(low, _last(pipe)) - low)
            share = torch.rand(self.timesteps.shape, generator=drawn, dtype=torch.float64)
            self.timesteps = self.timesteps + (share * width).long()

    def batch(self, iteration: int, student: Student) -> Batch:
        """The points of an iteration; the same whoever asks, and how often."""
        drawn = stream(self._seed, f"{self._what}: iteration {iteration}")
        rows = torch.randint(len(self.x), (self._n,), generator=drawn)
        steps = torch.randint(self.x.shape[1], (self._n,), generator=drawn)
        keys = list(zip(rows.tolist(), steps.tolist(), strict=True))
        return Batch(self.x[rows, steps], self.timesteps[rows, steps], [self.texts[row] for row, _ in keys], keys)


class Fresh:
    """Points of a partial denoising of their own for every iteration, by the student or by the teacher (DDIM, eta 0).

    One step to stop at, drawn uniformly, for the samples of an iteration; timesteps as in `Cached`.
    """

    def __init__(
        self,
        pipe: Any,
        texts: Sequence[str],
        *,
        by: Literal["student", "teacher"],
        steps: int,
        scale: float,
        batch_size: int,
        at: At,
        seed: int,
    ) -> None:
        self._pipe, self._texts, self._by, self._scale = pipe, list(texts), by, scale
        self._n, self._at, self._seed = batch_size, at, seed
        self.size = image_size(pipe)
        self._scheduler = ddim(pipe)
        self._scheduler.set_timesteps(steps)

    def batch(self, iteration: int, student: Student) -> Batch:
        """Denoise from new noise to a random step."""
        drawn = stream(self._seed, f"fresh: iteration {iteration}")
        pipe, every = self._pipe, self._scheduler.timesteps
        stop = int(torch.randint(len(every), (1,), generator=drawn))
        which = torch.randint(len(self._texts), (self._n,), generator=drawn).tolist()
        texts = [self._texts[i] for i in which]
        shape = (self._n, pipe.unet.config.in_channels, *latent_size(pipe, self.size))
        x = torch.randn(shape, generator=drawn).to(pipe.unet.device)
        with torch.no_grad(), student.suspended() if self._by == "teacher" else nullcontext():
            told = guidance.condition(pipe, texts, guidance=self._scale, size=self.size)
            for timestep in every[:stop]:
                prediction = guidance.combined(guidance.predict(pipe, x, timestep, told), self._scale)
                x = self._scheduler.step(prediction.float(), timestep, x, eta=0.0).prev_sample
        low = every.cpu().numpy()
        width = (_above(low, _last(pipe)) - low)[stop] if self._at == "bin" else 1
        offsets = torch.randint(int(width), (self._n,), generator=drawn)
        return Batch(x, int(low[stop]) + offsets, texts, None)


# --- Trajectories -----------------------------------------------------------------------------------------------------


def cached(
    pipe: Any,
    texts: Sequence[str],
    *,
    samples: int,
    steps: int,
    scale: float,
    batch_size: int,
    at: At,
    seed: int,
    folder: Path | None,
    what: str = "x_t",
    progress: bool = False,
) -> Cached:
    """Points of ``samples`` DDIM trajectories of these texts, drawn now, or read from ``folder`` where they are.

    Samples go to the texts in turn, each with its own noise; there is at least one a text.
    """
    n = max(samples, len(texts))
    noise = torch.randint(2**31, (n,), generator=stream(seed, f"{what}: noise")).tolist()
    prompts = [texts[i % len(texts)] for i in range(n)]
    with tempfile.TemporaryDirectory() as temporary, denoising_by(pipe, ddim(pipe)):
        drawn = trajectories(
            pipe,
            prompts,
            seeds=noise,
            out=Path(temporary) / what if folder is None else folder / what,
            steps=steps,
            guidance=scale,
            stored_as="float32",
            progress=progress,
        )
        return Cached(pipe, drawn, batch_size=batch_size, at=at, seed=seed, what=what)


def given(pipe: Any, source: Any, *, batch_size: int, at: At, seed: int) -> Cached:
    """Points of a trajectory that somebody stored (a path or object). `BadInput` if nothing is there."""
    found = source if isinstance(source, Trajectory) else Trajectory(source)
    return Cached(pipe, found, batch_size=batch_size, at=at, seed=seed, what="x_t")


def ddim(pipe: Any) -> Any:
    """A DDIM scheduler with the noise schedule of the pipeline's own; latents are never clipped."""
    with compat.quiet_libraries():
        from diffusers import DDIMScheduler

        return DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, thresholding=False)


@contextmanager
def denoising_by(pipe: Any, scheduler: Any) -> Iterator[None]:
    """Another scheduler for the block."""
    before = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = before


def _last(pipe: Any) -> int:
    return len(pipe.scheduler.alphas_cumprod) - 1


def _above(low: np.ndarray, last: int) -> np.ndarray:
    """(t,) the first timestep above each bin: that of the step before, or the end of the schedule."""
    before = np.concatenate([[last + 1], low[:-1]])
    return np.maximum(before, low + 1)  # some schedulers repeat a timestep


def check_source(x_t: str, trajectory: Any) -> None:
    """`BadInput` where a trajectory is given and not to be used."""
    if trajectory is not None and x_t != "cached":
        raise BadInput("a trajectory is read with x_t='cached' only", given=f"x_t={x_t!r}", fix="leave one of them out")
