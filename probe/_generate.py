"""The one place that calls a pipeline: images for a table of samples, and word of every network call to who listens."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probe import compat, tokens
from probe._announce import Call, Step, announced, stepping
from probe._progress import progress_bar
from probe.errors import BadInput, nearest
from probe.protocols import Progress

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def generate(
    pipe: Any,
    samples: pd.DataFrame,
    *,
    steps: int = 30,
    guidance: float = 7.5,
    batch_size: int = 8,
    height: int | None = None,
    width: int | None = None,
    progress: Progress = True,
    on_call: Callable[[Call], object] | None = None,
    on_batch: Callable[[range, np.ndarray], object] | None = None,
    on_step: Callable[[Step], object] | None = None,
    decode: bool = True,
) -> np.ndarray:
    """Images of a table of samples: uint8 (s, y, x, rgb).

    Every sample draws its first latent, and whatever noise the scheduler asks for, from its own CPU generator in
    float32: results do not depend on batch size (to float tolerance), device or neighbours in the batch.

    Args:
        pipe: a Stable Diffusion pipeline, edited or not.
        samples: one row a sample: ``prompt``, ``seed`` and, where given, ``negative_prompt`` and ``guidance`` (missing
            values mean none and the argument). SDXL takes zeros, not the encoding of an empty text, where there is no
            negative prompt, as its ``force_zeros_for_empty_prompt`` says.
        steps: denoising steps asked of the scheduler; `timesteps` tells the UNet calls these make.
        guidance: classifier-free guidance scale; 1 or less generates unguided.
        batch_size: samples in one pipeline call. A change of guidance, or from none to some negative prompt, ends a
            batch early.
        height, width: pixels; the model's own size by default.
        progress: True, False or a function of (done, total) samples.
        on_call: told of every `Call` just before it, so that hooks inside know step, timestep and layout.
        on_batch: told (rows of the table, their images) after each batch.
        on_step: told of every `Step` just after it.
        decode: False skips the VAE; images are then (s, 0, 0, 3).

    The scheduler object, train/eval modes and the progress setting of the pipeline are as before afterwards, also after
    an error. Raises `BadInput` for a table or size that cannot work, and `AmbiguousBatch` when ``on_call`` is given and
    a call's rows are not samples x branches.
    """
    batches = list(batches_of(samples, guidance, _positive("batch_size", batch_size)))
    _positive("steps", steps)
    size = image_size(pipe, height, width)
    if getattr(pipe, "safety_checker", None) is not None:
        logger.warning("the safety checker of this pipeline blackens images; probe.load leaves it out")
    if getattr(pipe, "watermark", None) is not None:
        logger.warning("this pipeline puts a watermark into images; probe.load leaves it out")
    if cut := [text for text in _texts(batches) if tokens.is_cut(pipe.tokenizer, text)]:
        most = pipe.tokenizer.model_max_length
        logger.warning("%d prompts have more than the %d tokens that the model reads, as %r", len(cut), most, cut[0])
    images = np.zeros((len(samples), *(size if decode else (0, 0)), 3), np.uint8)
    total = len(samples)
    with sampling(pipe), progress_bar(progress, total, "images", unit="img") as advance:
        for batch in batches:
            with announced(pipe, batch.rows, on_call), stepping(pipe, batch.rows, on_step):
                images[batch.rows.start : batch.rows.stop] = _call(pipe, batch, steps, size, decode)
            if on_batch is not None:
                on_batch(batch.rows, images[batch.rows.start : batch.rows.stop])
            advance(len(batch.rows))
    return images


def timesteps(pipe: Any, steps: int) -> np.ndarray:
    """The scheduler's timestep at every UNet call of a run of ``steps``, in order: (t,).

    Longer than ``steps`` where the scheduler calls more often (PNDM: steps + 1, Heun: 2 steps - 1).
    """
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(_positive("steps", steps))
    values: np.ndarray = scheduler.timesteps.cpu().numpy()
    return values


def image_size(pipe: Any, height: int | None = None, width: int | None = None) -> tuple[int, int]:
    """Height and width in pixels of the images to be made; None is the model's own size. `BadInput` if impossible."""
    own = pipe.unet.config.sample_size
    own = (own, own) if isinstance(own, int) else tuple(own)
    multiple = np.lcm(8, pipe.vae_scale_factor).item()
    size = tuple(int(given or side * pipe.vae_scale_factor) for given, side in zip((height, width), own, strict=True))
    for name, value in zip(("height", "width"), size, strict=True):
        if value <= 0 or value % multiple:
            near = max(multiple, round(value / multiple) * multiple)
            raise BadInput(
                f"{name} does not fit the model", given=value, expected=f"a multiple of {multiple}", nearest=[str(near)]
            )
    return size[0], size[1]


@dataclass(frozen=True)
class Batch:
    """Consecutive samples of one pipeline call, and what they share."""

    rows: range
    prompts: list[str]
    negative: list[str] | None
    seeds: list[int]
    guidance: float


def batches_of(samples: pd.DataFrame, guidance: float, batch_size: int) -> Iterator[Batch]:
    """Consecutive samples that one pipeline call can make together."""
    if missing := [name for name in ("prompt", "seed") if name not in samples]:
        near = [match for name in missing for match in nearest(name, map(str, samples.columns))]
        raise BadInput("the table of samples lacks a column", given=", ".join(missing), nearest=near)
    if len(samples) == 0:
        raise BadInput("no samples to generate", fix="give at least one prompt")
    seeds = [int(seed) for seed in samples["seed"]]
    if bad := [seed for seed in seeds if not 0 <= seed < 2**63]:
        raise BadInput("a seed is a non-negative 64-bit integer", given=bad[0])
    prompts = [str(prompt) for prompt in samples["prompt"]]
    negative = [_text(value) for value in _column(samples, "negative_prompt")]
    scales = [guidance if value is None else float(value) for value in _column(samples, "guidance")]
    keys = [(scale, text is None) for scale, text in zip(scales, negative, strict=True)]
    start = 0
    for stop in range(1, len(keys) + 1):
        if stop < len(keys) and stop - start < batch_size and keys[stop] == keys[start]:
            continue
        rows = slice(start, stop)
        texts = [text for text in negative[rows] if text is not None]
        yield Batch(range(start, stop), prompts[rows], texts or None, seeds[rows], scales[start])
        start = stop


def _column(samples: pd.DataFrame, name: str) -> list[Any]:
    """A column with missing values as None; all None where the column is absent."""
    if name not in samples:
        return [None] * len(samples)
    column = samples[name]
    return [None if missing else value for value, missing in zip(column, column.isna(), strict=True)]


def _texts(batches: list[Batch]) -> list[str]:
    """Every text that is encoded, once, in order."""
    return list(dict.fromkeys(text for batch in batches for text in (*batch.prompts, *(batch.negative or ()))))


def _text(value: Any) -> str | None:
    # "" and None both mean no negative prompt; SDXL encodes them differently, so only one of them goes on
    return str(value) if value else None


def _call(pipe: Any, batch: Batch, steps: int, size: tuple[int, int], decode: bool) -> np.ndarray:
    import torch

    generators = [torch.Generator("cpu").manual_seed(seed) for seed in batch.seeds]
    shape = (pipe.unet.config.in_channels, *(side // pipe.vae_scale_factor for side in size))
    latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    with compat.quiet_libraries():  # they name the lost end of a long prompt in every batch; `generate` says it once
        result = pipe(
            prompt=batch.prompts,
            negative_prompt=batch.negative if batch.guidance > 1 else None,
            num_inference_steps=steps,
            guidance_scale=batch.guidance,
            generator=generators,
            latents=latents.to(pipe.unet.dtype),
            height=size[0],
            width=size[1],
            output_type="np" if decode else "latent",
        ).images
    if not decode:
        return np.zeros((len(batch.rows), 0, 0, 3), np.uint8)
    if failed := int((~np.isfinite(result)).any(axis=(1, 2, 3)).sum()):
        logger.warning("%d of %d images held NaN or infinity and are black there", failed, len(result))
        result = np.nan_to_num(result, nan=0.0, posinf=0.0, neginf=0.0)
    return (result * 255).round().astype(np.uint8)


@contextmanager
def sampling(pipe: Any) -> Iterator[None]:
    """A copy of the scheduler, eval mode and no inner bars for the block; everything as it was afterwards.

    SDXL also decodes in float32 and casts its VAE back, unless an error comes first.
    """
    import torch

    scheduler = pipe.scheduler
    modules = [m for part in pipe.components.values() if isinstance(part, torch.nn.Module) for m in part.modules()]
    training = [module for module in modules if module.training]
    bar = vars(pipe).get("_progress_bar_config")
    vae = getattr(pipe, "vae", None)
    vae_dtype = getattr(vae, "dtype", None)
    pipe.scheduler = copy.deepcopy(scheduler)
    for module in training:
        module.training = False
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.scheduler = scheduler
        if vae is not None and vae.dtype != vae_dtype:
            vae.to(vae_dtype)
        for module in training:
            module.training = True
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bar


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise BadInput(f"{name} must be at least 1", given=value)
    return value
