"""Where the inputs of the UNet come from: the sampler, a stored trajectory, or images with noise on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from probe import guidance
from probe._announce import Call, Step, announced
from probe._generate import Batch, batches_of, generate, sampling

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Listeners:
    """Who is told while inputs pass: see `probe._generate.generate`; ``advance`` of the samples of each batch."""

    on_call: Callable[[Call], object]
    on_step: Callable[[Step], object] | None
    advance: Callable[[int], object]


@dataclass(frozen=True)
class Settings:
    """How samples are made or taken: the arguments of `probe.generate` that decide numbers; size (y, x) in pixels."""

    steps: int
    guidance: float
    batch_size: int
    size: tuple[int, int]


class Inputs(Protocol):
    """A source of (x_t, t): ``timesteps`` (t,) of the UNet's calls, and what an identity keeps of it."""

    @property
    def timesteps(self) -> np.ndarray:
        """The timestep at every UNet call, (t,)."""
        ...

    @property
    def identity(self) -> dict[str, Any] | None:
        """None for the sampler, which the rest of an identity describes."""
        ...

    @property
    def encodes(self) -> bool:
        """Whether the VAE has a say in the inputs."""
        ...

    def run(
        self, pipe: Any, table: pd.DataFrame, rows: slice, settings: Settings, tell: Listeners, decode: bool
    ) -> np.ndarray:
        """Make the calls for ``table``, the ``rows`` of all samples; uint8 images (s y x rgb), empty without any."""
        ...


@dataclass(frozen=True)
class Sampled:
    """The pipeline's own sampling: every sample starts from its own noise and goes all the way to an image."""

    timesteps: np.ndarray

    @property
    def identity(self) -> dict[str, Any] | None:
        """See `Inputs`."""
        return None

    @property
    def encodes(self) -> bool:
        """See `Inputs`."""
        return False

    def run(
        self, pipe: Any, table: pd.DataFrame, rows: slice, settings: Settings, tell: Listeners, decode: bool
    ) -> np.ndarray:
        """See `Inputs`."""
        return generate(
            pipe,
            table,
            steps=settings.steps,
            guidance=settings.guidance,
            batch_size=settings.batch_size,
            height=settings.size[0],
            width=settings.size[1],
            progress=False,
            on_call=tell.on_call,
            on_batch=lambda samples, _images: tell.advance(len(samples)),
            on_step=tell.on_step,
            decode=decode,
        )


@dataclass(frozen=True)
class Fixed:
    """One UNet call at each of fixed (x_t, t); nothing is drawn.

    ``latents`` gives x_t of a slice of all samples, (s t c y x) float32; the UNet reads it times ``scales`` (t,).
    """

    timesteps: np.ndarray
    scales: np.ndarray
    latents: Callable[[slice, pd.DataFrame], np.ndarray]
    identity: dict[str, Any] | None
    encodes: bool

    def run(
        self, pipe: Any, table: pd.DataFrame, rows: slice, settings: Settings, tell: Listeners, decode: bool
    ) -> np.ndarray:
        """See `Inputs`."""
        with sampling(pipe), torch.no_grad():
            for batch in batches_of(table, settings.guidance, settings.batch_size):
                self._batch(pipe, batch, table, rows, settings, tell)
                tell.advance(len(batch.rows))
        return np.zeros((len(table), 0, 0, 3), np.uint8)

    def _batch(
        self, pipe: Any, batch: Batch, table: pd.DataFrame, rows: slice, settings: Settings, tell: Listeners
    ) -> None:
        within = slice(batch.rows.start, batch.rows.stop)
        every = torch.from_numpy(
            self.latents(slice(rows.start + within.start, rows.start + within.stop), table.iloc[within])
        )
        distilled = pipe.unet.config.time_cond_proj_dim is not None
        branches = ("uncond", "cond") if batch.guidance > 1 and not distilled else ("cond",)
        with announced(pipe, batch.rows, tell.on_call, branches):
            told = guidance.condition(
                pipe, batch.prompts, negative=batch.negative, guidance=batch.guidance, size=settings.size
            )
            for step, timestep in enumerate(self.timesteps):
                x_t = every[:, step].to(pipe.unet.device, pipe.unet.dtype)
                scale = float(self.scales[step])
                prediction = guidance.predict(pipe, x_t if scale == 1 else x_t * scale, torch.tensor(timestep), told)
                if tell.on_step is not None:
                    combined = guidance.combined(prediction, batch.guidance)
                    tell.on_step(Step(batch.rows, step, float(timestep), x_t, combined, x_t))
