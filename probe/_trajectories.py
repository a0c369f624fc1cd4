"""trajectories: the latents of denoising runs, sampled once and stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from probe._announce import Step
from probe._estimate import Estimate, check_size, estimate, with_defaults
from probe._filling import fill
from probe._generate import image_size
from probe._inputs import Listeners, Sampled, Settings
from probe._locks import Rank
from probe._opening import open_or_create
from probe._options import validated
from probe._places import place_of
from probe._samples import samples
from probe._trajectory import Trajectory
from probe._trajectory_plan import PredictionRecorder, TrajectoryPlan
from probe._writer import Unit
from probe.errors import BadInput
from probe.protocols import Progress


@validated
def trajectories(
    pipe: Any,
    prompts: Any,
    *,
    out: str | Path,
    steps: int = 30,
    seeds: int | Sequence[int] = 0,
    seeds_per_prompt: int | None = None,
    guidance: float = 7.5,
    negative_prompt: str | None = None,
    batch_size: int = 8,
    height: int | None = None,
    width: int | None = None,
    noise_pred: bool = False,
    stored_as: Literal["float16", "float32"] = "float16",
    concept: Any = None,
    split: str | None = None,
    max_gb: float = 100.0,
    durable: bool = False,
    progress: Progress = True,
    force: bool = False,
    extend: bool = False,
) -> Trajectory:
    """Store the latents that the model passes through while it draws these prompts, in the folder ``out``.

    What compares two models reads x_t from one store for both (`probe.record` with ``trajectories=``). Repeating the
    call resumes, as with `probe.record`.

    Args:
        pipe: a Stable Diffusion pipeline, edited or not; nothing of it is changed.
        prompts: strings, or a table of samples (see `probe.samples`, which also explains ``seeds``,
            ``seeds_per_prompt``, ``concept``, ``split`` and ``negative_prompt``).
        out: the trajectory's folder, or a URL as for `probe.record`.
        steps, guidance, batch_size, height, width: as in `probe.generate`.
        noise_pred: keep the UNet's prediction of every branch too.
        stored_as: float16 halves the store; float32 gives back the sampler's own numbers.
        max_gb, durable: as in `probe.record`, as are ranks of one launch.
        progress: True, False or a function of (done, total) samples.
        force: replace the trajectory that is at ``out``.
        extend: allow a sample list that starts with the stored one.

    Raises `BadInput` for arguments that cannot work and for an ``out`` that is something else, `HeaderMismatch` naming
    the key in which a trajectory at ``out`` differs, `WorkbenchError` when the disk is full or another process writes.
    """
    plan = _planned(
        pipe,
        prompts,
        steps=steps,
        seeds=seeds,
        seeds_per_prompt=seeds_per_prompt,
        guidance=guidance,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
        height=height,
        width=width,
        noise_pred=noise_pred,
        stored_as=stored_as,
        concept=concept,
        split=split,
    )
    place, rank = place_of(out), Rank.of_environment()
    check_size(plan, max_gb)
    store = open_or_create(place, plan, force=force, extend=extend, rank=rank)
    fill(store, partial(_make, plan), "trajectories", rank=rank, progress=progress, durable=durable)
    return Trajectory(store.path)


def dry_run(pipe: Any, prompts: Any, *, out: str | Path, **options: Any) -> Estimate:
    """What `trajectories` would do with these arguments; see `probe._record.dry_run`."""
    return estimate(_planned(pipe, prompts, **with_defaults(trajectories, _planned, options)), place_of(out))


def _planned(
    pipe: Any,
    prompts: Any,
    *,
    steps: int,
    seeds: int | Sequence[int],
    seeds_per_prompt: int | None,
    guidance: float,
    negative_prompt: str | None,
    batch_size: int,
    height: int | None,
    width: int | None,
    noise_pred: bool,
    stored_as: str,
    concept: Any,
    split: str | None,
) -> TrajectoryPlan:
    """Everything that is decided before the first sample."""
    table = samples(
        prompts, seeds, seeds_per_prompt=seeds_per_prompt, concept=concept, split=split, negative_prompt=negative_prompt
    )
    if batch_size < 1:
        raise BadInput("batch_size must be at least 1", given=batch_size)
    settings = Settings(steps, guidance, batch_size, image_size(pipe, height, width))
    return TrajectoryPlan(pipe, table, settings, noise_pred, stored_as)


def _make(plan: TrajectoryPlan, rows: slice, advance: Callable[[int], object]) -> Unit:
    """Sample one unit."""
    table, every = plan.table.iloc[rows].reset_index(drop=True), plan.timesteps
    latents = np.full((len(table), *plan.sizes), np.nan, plan.stored_as)
    final = np.full((len(table), *plan.sizes[1:]), np.nan, plan.stored_as)

    def keep(step: Step) -> None:
        at = slice(step.samples.start, step.samples.stop)
        latents[at, step.step] = step.latents.float().cpu().numpy()
        if step.step == len(every) - 1:
            final[at] = step.after.float().cpu().numpy()

    recorder = PredictionRecorder(plan.sizes, plan.branches, every) if plan.noise_pred else None
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinity, which the writer reports
        with ExitStack() as hooks, torch.no_grad():
            predictions = {} if recorder is None else hooks.enter_context(recorder.recording(plan.pipe, table))
            listeners = Listeners((lambda _call: None) if recorder is None else recorder.on_call, keep, advance)
            Sampled(every).run(plan.pipe, table, rows, plan.settings, listeners, decode=False)
        stored = {name: array.astype(plan.stored_as) for name, array in predictions.items()}
    values = {"latents": {"latents": latents}, "final": {"final": final}}
    values |= {name: {name: array} for name, array in stored.items()}
    for arrays in values.values():
        arrays["shown"] = np.full(len(table), np.nan, np.float32)
    return values, {}, {}
