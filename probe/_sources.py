"""What a recording starts from: its samples, its settings and the inputs of the UNet, from the arguments of record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from probe._generate import image_size, timesteps
from probe._images import Images, noised_images
from probe._inputs import Fixed, Inputs, Sampled, Settings
from probe._samples import samples
from probe._trajectory import Trajectory
from probe.errors import BadInput, WrongModel

Start = tuple[pd.DataFrame, Settings, Inputs]


def sampled(pipe: Any, prompts: Any, settings: Settings, **sample_options: Any) -> Start:
    """Samples that the model draws."""
    if prompts is None:
        raise BadInput("there are no prompts", fix="give at least one prompt")
    return samples(prompts, **sample_options), settings, Sampled(timesteps(pipe, settings.steps))


def from_images(
    pipe: Any, prompts: Any, source: Any, at: Sequence[int] | None, settings: Settings, **sample_options: Any
) -> Start:
    """Samples that are images with noise on them; one prompt serves all, or there is one for each."""
    if not at:
        raise BadInput("images are noised to chosen timesteps", fix="timesteps=[1, 261, 521], for instance")
    images = Images.of(source, settings.size)
    if prompts is None or isinstance(prompts, str) or (isinstance(prompts, list | tuple) and len(prompts) == 1):
        one = prompts if isinstance(prompts, str) else "" if prompts is None else prompts[0]
        prompts = [one] * len(images.names)
    table = samples(prompts, **sample_options)
    crossed = sample_options.get("seeds_per_prompt") or 1
    if len(table) != crossed * len(images.names):
        given, fix = f"{len(table) // crossed} prompts, {len(images.names)} images", "give one prompt, or one an image"
        raise BadInput("prompts and images differ in number", given=given, fix=fix)
    index = np.arange(len(table)) // crossed
    table["source_image"] = pd.Series([images.names[i] for i in index], dtype=object)
    inputs = noised_images(pipe, images, index, at)
    return table, Settings(len(inputs.timesteps), settings.guidance, settings.batch_size, settings.size), inputs


def stored(pipe: Any, prompts: Any, source: Any, batch_size: int) -> Start:
    """Samples whose x_t are read from a trajectory, which also says steps, guidance and size.

    ``prompts`` None are the trajectory's own; others are as many, and row i is put to the x_t of row i.
    """
    trajectory = source if isinstance(source, Trajectory) else Trajectory(source)
    if not trajectory.complete:
        given = f"{trajectory.done} of {trajectory.n_samples} samples at {trajectory.path}"
        fix = "repeat the same trajectories call, which resumes it"
        raise BadInput("the trajectory is not finished", given=given, fix=fix)
    own = trajectory.samples.drop(columns="shown")
    table = own if prompts is None else samples(prompts)
    if len(table) != len(own):
        given = f"{len(table)} prompts, {len(own)} trajectories"
        raise BadInput("prompts and trajectories differ in number", given=given, fix="give none for the stored ones")
    table["seed"] = own["seed"]
    made = trajectory.identity
    size = (int(made["size"][0]), int(made["size"][1]))
    if image_size(pipe, *size) != size or pipe.unet.config.in_channels != _channels(trajectory):
        raise WrongModel("the trajectory's latents are not this model's", given=f"{_channels(trajectory)} channels")
    inputs = Fixed(
        trajectory.timesteps,
        trajectory.input_scales,
        lambda rows, _table: trajectory.latents(rows),
        {"kind": "trajectories", "id": trajectory.id},
        encodes=False,
    )
    return table, Settings(int(made["steps"]), float(made["guidance"]), batch_size, size), inputs


def _channels(trajectory: Trajectory) -> int:
    with trajectory.open() as ds:
        return int(ds.sizes["c"])
