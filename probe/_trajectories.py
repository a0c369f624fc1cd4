"""trajectories: the latents of denoising runs, sampled once and stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from probe import formats, guidance, provenance
from probe._chunks import Ragged, sample_chunk, unit_size
from probe._generate import Call, Step, image_size, timesteps
from probe._grids import latent_size
from probe._inputs import Listeners, Sampled, Settings
from probe._options import validated
from probe._plan import branches_of, model_identity, no_sites, sampling_identity
from probe._progress import progress_bar
from probe._record import open_or_create
from probe._recorder import Recorder
from probe._samples import digest, samples
from probe._store import Group, TrajectoryStore
from probe._trajectory import Trajectory
from probe.errors import BadInput
from probe.protocols import Progress

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


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
        out: the trajectory's folder.
        steps, guidance, batch_size, height, width: as in `probe.generate`.
        noise_pred: keep the UNet's prediction of every branch too.
        stored_as: float16 halves the store; float32 gives back the sampler's own numbers.
        progress: True, False or a function of (done, total) samples.
        force: replace the trajectory that is at ``out``.
        extend: allow a sample list that starts with the stored one.

    Raises `BadInput` for arguments that cannot work and for an ``out`` that is something else, `HeaderMismatch` naming
    the key in which a trajectory at ``out`` differs, `WorkbenchError` when the disk is full or another process writes.
    """
    table = samples(
        prompts, seeds, seeds_per_prompt=seeds_per_prompt, concept=concept, split=split, negative_prompt=negative_prompt
    )
    if batch_size < 1:
        raise BadInput("batch_size must be at least 1", given=batch_size)
    settings = Settings(steps, guidance, batch_size, image_size(pipe, height, width))
    plan = TrajectoryPlan(pipe, table, settings, noise_pred, stored_as)
    store = open_or_create(Path(out), plan, force=force, extend=extend)
    with store.locked(), progress_bar(progress, store.n_samples, "trajectories", unit="img") as advance:
        store.forget(store.missing())
        pending = [store.rows(int(unit)) for unit in np.flatnonzero(~store.done)]
        advance(store.n_samples - sum(rows.stop - rows.start for rows in pending))
        for rows in pending:
            store.write(rows.start // store.unit, _make(plan, rows, advance))
    return Trajectory(store.path)


@dataclass(frozen=True)
class TrajectoryPlan:
    """What will be stored; see `probe._plan.Plan`."""

    pipe: Any
    table: pd.DataFrame
    settings: Settings
    noise_pred: bool
    stored_as: str

    store = TrajectoryStore
    reader = Trajectory

    @property
    def branches(self) -> tuple[str, ...]:
        """See `probe._plan.branches_of`."""
        return branches_of(self.pipe, self.table, self.settings.guidance)

    @property
    def sizes(self) -> tuple[int, ...]:
        """(t, c, y, x) of one sample."""
        latent = latent_size(self.pipe, self.settings.size)
        return (len(timesteps(self.pipe, self.settings.steps)), self.pipe.unet.config.in_channels, *latent)

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return {
            "layout_version": formats.LAYOUT_VERSIONS["trajectory"],
            "noise_pred": self.noise_pred,
            "stored_as": self.stored_as,
            **sampling_identity(self.settings, self.branches),
            **model_identity(self.pipe, ["unet"], vae=False),
            "samples": digest(self.table),
        }

    def create(self, path: Path, *, replace: bool) -> TrajectoryStore:
        """Make the empty trajectory at ``path``."""
        unit = unit_size([Ragged((1, *self.sizes))], self.settings.batch_size)
        stamp = provenance.stamp(self.identity)
        return TrajectoryStore.create(
            path,
            identity=stamp["identity"],
            info=stamp["info"],
            id=stamp["id"],
            unit=unit,
            samples=self.table,
            sites=no_sites(),
            groups=self.groups(unit),
            replace=replace,
        )

    def groups(self, unit: int) -> list[Group]:
        """The groups on disk; their `Group.size` add up to what the store will take uncompressed."""
        stepped = {
            "timestep": ("step", timesteps(self.pipe, self.settings.steps)),
            "input_scale": ("step", guidance.input_scales(self.pipe, self.settings.steps)),
        }
        branch = {"branch": ("branch", np.array(self.branches, object))}
        found = [
            self._group("latents", ("step", "c", "y", "x"), self.sizes, unit, stepped),
            self._group("final", ("c", "y", "x"), self.sizes[1:], unit, {}),
        ]
        if self.noise_pred:
            axes, sizes = ("branch", "step", "c", "y", "x"), (len(self.branches), *self.sizes)
            found.append(self._group("noise_pred", axes, sizes, unit, branch))
        return found

    def _group(
        self,
        name: str,
        dims: tuple[str, ...],
        sizes: tuple[int, ...],
        unit: int,
        coords: Mapping[str, tuple[str, np.ndarray]],
    ) -> Group:
        extent = Ragged(sizes if dims[0] == "branch" else (1, *sizes))
        chunk = (sample_chunk(extent.row_bytes, unit), *extent.inner[len(extent.sizes) - len(sizes) :])
        return Group(name, (name,), self.stored_as, dims, sizes, chunk, coords)


class PredictionRecorder(Recorder):
    """Keeps the UNet's prediction of every branch: ``noise_pred`` (s b t c y x)."""

    def __init__(self, sizes: tuple[int, ...], branches: Sequence[str], timesteps: np.ndarray) -> None:
        super().__init__("unet", {"noise_pred": (len(branches), *sizes)}, branches, timesteps)

    def _hooks(self, pipe: Any) -> Iterator[RemovableHandle]:
        yield pipe.unet.register_forward_hook(self._hook)

    def _hook(self, _module: Any, _args: tuple[Any, ...], output: Any) -> None:
        assert self._call is not None
        prediction = output[0] if isinstance(output, tuple) else output.sample
        self._send(prediction.detach().float(), partial(self._place, self._buffers["noise_pred"], self._call))

    def _end(self, call: Call) -> None:
        """Everything was sent when the UNet returned."""


def _make(plan: TrajectoryPlan, rows: slice, advance: Any) -> dict[str, dict[str, np.ndarray]]:
    """Sample one unit: arrays by group and name."""
    table, every = plan.table.iloc[rows].reset_index(drop=True), timesteps(plan.pipe, plan.settings.steps)
    latents = np.full((len(table), *plan.sizes), np.nan, plan.stored_as)
    final = np.full((len(table), *plan.sizes[1:]), np.nan, plan.stored_as)

    def keep(step: Step) -> None:
        at = slice(step.samples.start, step.samples.stop)
        latents[at, step.step] = step.latents.float().cpu().numpy()
        if step.step == len(every) - 1:
            final[at] = step.after.float().cpu().numpy()

    recorder = PredictionRecorder(plan.sizes, plan.branches, every) if plan.noise_pred else None
    with ExitStack() as hooks, torch.no_grad():
        predictions = {} if recorder is None else hooks.enter_context(recorder.recording(plan.pipe, table))
        listeners = Listeners((lambda _call: None) if recorder is None else recorder.on_call, keep, advance)
        Sampled(every).run(plan.pipe, table, rows, plan.settings, listeners, decode=False)
    values = {"latents": {"latents": latents}, "final": {"final": final}}
    values |= {name: {name: array.astype(plan.stored_as)} for name, array in predictions.items()}
    for arrays in values.values():
        arrays["shown"] = np.full(len(table), np.nan, np.float32)
    return values
