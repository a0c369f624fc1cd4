"""What scores that run the model start from: samples, how they are drawn, and where their x_t come from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from probe import guidance, provenance
from probe._announce import Step
from probe._generate import Batch, batches_of, generate, image_size, timesteps
from probe._inputs import Fixed, Settings
from probe._plan import branches_of, model_identity, sampling_identity
from probe._recorded import SAMPLING
from probe._run import Run
from probe._samples import COLUMNS, digest, samples
from probe._sites import Site
from probe._sources import stored
from probe._store import TrajectoryStore, store_at
from probe._trajectory import Trajectory
from probe.errors import BadInput

_EXPECTED = "a run or trajectory (path or object), prompts, or a table of samples"


@dataclass(frozen=True)
class Given:
    """Samples that a score runs the model on.

    - ``table``: the samples; ``settings``: how they are drawn; ``origin``: what an identity keeps of their source
    - ``fixed``: stored x_t; None where the model draws the samples again
    """

    table: pd.DataFrame
    settings: Settings
    origin: dict[str, Any]
    fixed: Fixed | None

    def to_json(self) -> dict[str, Any]:
        """What a finding keeps of them."""
        return {**self.origin, "samples": digest(self.table)}

    def timesteps(self, pipe: Any) -> np.ndarray:
        """The timestep at every UNet call, (t,)."""
        return timesteps(pipe, self.settings.steps) if self.fixed is None else self.fixed.timesteps

    def scales(self, pipe: Any) -> np.ndarray:
        """By what x_t is multiplied before the UNet reads it, (t,)."""
        return guidance.input_scales(pipe, self.settings.steps) if self.fixed is None else self.fixed.scales

    def batches(self, pipe: Any, calls: Sequence[int]) -> Iterator[tuple[Batch, Tensor]]:
        """Samples in batches, each with its x_t at chosen calls: (s t c y x) float32, on the CPU."""
        for batch in batches_of(self.table, self.settings.guidance, self.settings.batch_size):
            rows = slice(batch.rows.start, batch.rows.stop)
            if self.fixed is not None:
                latents = self.fixed.latents(rows, self.table.iloc[rows])
                yield batch, torch.from_numpy(np.ascontiguousarray(latents[:, list(calls)]))
            else:
                yield batch, self._drawn(pipe, self.table.iloc[rows].reset_index(drop=True), calls)

    def _drawn(self, pipe: Any, table: pd.DataFrame, calls: Sequence[int]) -> Tensor:
        kept: dict[int, Tensor] = {}

        def keep(step: Step) -> None:
            if step.step in calls:
                kept[step.step] = step.latents.float().cpu()

        self.draw(pipe, table, on_step=keep, decode=False)
        return torch.stack([kept[call] for call in calls], dim=1)

    def draw(self, pipe: Any, table: pd.DataFrame, **options: Any) -> np.ndarray:
        """Images uint8 (s y x rgb) of some samples, drawn as these are."""
        height, width = self.settings.size
        return generate(
            pipe,
            table,
            steps=self.settings.steps,
            guidance=self.settings.guidance,
            batch_size=self.settings.batch_size,
            height=height,
            width=width,
            progress=False,
            **options,
        )


def given(pipe: Any, source: Any, *, steps: int, scale: float, batch_size: int) -> Given:
    """Samples from a run or a trajectory, drawn as these were, or from prompts, with ``steps`` and guidance ``scale``.

    `Given` may be given again, for another batch size. Raises `WrongModel` for a run of another model, `BadInput` for a
    run at fixed inputs and what holds no samples.
    """
    if isinstance(source, Given):
        return replace(source, settings=replace(source.settings, batch_size=batch_size))
    source = _opened(source)
    if isinstance(source, Trajectory):
        table, settings, inputs = stored(pipe, None, source, batch_size)
        assert isinstance(inputs, Fixed)
        return Given(table, settings, {"trajectory": source.id}, inputs)
    if isinstance(source, Run):
        return _of_run(pipe, source.samples, source.identity, source.id, batch_size)
    if isinstance(source, xr.Dataset):
        if "provenance" not in source.attrs:
            raise BadInput("the dataset does not say which run it is from", fix="open it with probe.open_run")
        made = json.loads(source.attrs["provenance"])
        return _of_run(pipe, table_of(source), made["identity"], made["id"], batch_size)
    if not isinstance(source, pd.DataFrame | Mapping | list | tuple):
        raise BadInput("a score that runs the model needs samples", given=type(source).__name__, expected=_EXPECTED)
    table = samples(source)
    branches_of(pipe, table, scale)
    return Given(table, Settings(steps, scale, batch_size, image_size(pipe)), {}, None)


def _opened(source: Any) -> Any:
    """The run or trajectory at a path; anything else as it is."""
    if not isinstance(source, str | Path):
        return source
    return Trajectory(source) if store_at(source).kind == TrajectoryStore.kind else Run(source)


def table_of(ds: xr.Dataset) -> pd.DataFrame:
    """The sample table of a run's group."""
    return pd.DataFrame({name: ds[name].values for name in COLUMNS if name in ds.coords})


def _of_run(pipe: Any, table: pd.DataFrame, identity: Mapping[str, Any], id_: str, batch_size: int) -> Given:
    if identity.get("inputs") is not None:
        fix = "give the trajectory itself, or prompts"
        raise BadInput("the run was recorded at fixed inputs, which cannot be drawn again", given=f"run {id_}", fix=fix)
    provenance.fingerprint(pipe).check(identity["model"], "the run")
    table = table[[name for name in COLUMNS if name in table]].reset_index(drop=True)
    height, width = identity["size"]
    settings = Settings(int(identity["steps"]), float(identity["guidance"]), batch_size, (int(height), int(width)))
    return Given(table, settings, {"run": id_}, None)


def prompts_of(source: Any) -> pd.DataFrame:
    """The sample table of a run, trajectory, dataset, or list or table of prompts."""
    source = _opened(source)
    if isinstance(source, Run | Trajectory):
        return source.samples[[name for name in COLUMNS if name in source.samples]]
    if isinstance(source, xr.Dataset):
        return table_of(source)
    if not isinstance(source, pd.DataFrame | Mapping | list | tuple):
        raise BadInput("reference prompts are needed", given=type(source).__name__, expected=_EXPECTED)
    return samples(source)


def identity_with(
    pipe: Any,
    found: Given,
    sites: Sequence[Site],
    *,
    method: str,
    options: Mapping[str, Any],
    reference: Mapping[str, Any] | None,
    judge: str | None,
) -> dict[str, Any]:
    """What the scores depend on where the model was run: as `probe.scores._runs.identity_of`, and the judge."""
    branches = branches_of(pipe, found.table, found.settings.guidance)
    components = sorted({site.component for site in sites})
    sampled = sampling_identity(found.settings, branches) | model_identity(pipe, components, vae=judge is not None)
    kept = (*SAMPLING, "lineage", "model", "context", "empty_prompt")
    return {
        "method": method,
        "options": dict(options),
        "target": found.to_json(),
        "reference": None if reference is None else dict(reference),
        "judge": judge,
        "sites": [site.name for site in sites],
        **{key: sampled[key] for key in kept if key in sampled},
    }
