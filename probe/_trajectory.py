"""Trajectories on disk: the latents of denoising runs, stored once for whatever needs x_t. A store like a run's."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probe._chunks import readable_size
from probe._run import Incomplete, opened_group
from probe._samples import COLUMNS
from probe._store import TrajectoryStore


class Trajectory:
    """The latents of denoising runs on disk, finished or not.

    ``path``; ``id`` and ``identity`` (what decides its numbers); ``info`` (versions, date); ``samples``. `open` gives
    the arrays. Raises `BadInput` or `StoreDamaged` where there is no trajectory.
    """

    def __init__(self, path: str | Path) -> None:
        store = TrajectoryStore(path)
        self.path = store.path
        self.id, self.identity, self.info, self.groups = store.id, store.identity, store.info, store.groups
        self.n_samples = store.n_samples

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The sample table."""
        with opened_group(TrajectoryStore(self.path), "latents", "nan") as ds:
            return pd.DataFrame({name: ds[name].values for name in (*COLUMNS, "shown") if name in ds.coords})

    @property
    def nonfinite(self) -> list[dict[str, Any]]:
        """Where NaN or infinity was stored: dicts of group, arrays, steps and samples."""
        return TrajectoryStore(self.path).nonfinite

    @property
    def done(self) -> int:
        """Number of samples stored so far."""
        store = TrajectoryStore(self.path)
        return sum(rows.stop - rows.start for rows in map(store.rows, np.flatnonzero(store.done).tolist()))

    @property
    def complete(self) -> bool:
        """Whether every sample is stored."""
        return self.done == self.n_samples

    def open(self, incomplete: Incomplete = "error") -> xr.Dataset:
        """The arrays as a lazy dataset; ``incomplete`` as in `probe.open_run`.

        - ``latents`` (sample, step, c, y, x): x_t as the sampler held it before UNet call ``step``; the UNet reads it
          times ``input_scale`` (step)
        - ``final`` (sample, c, y, x): what the last step made, not yet divided by the VAE's scale
        - ``noise_pred`` (sample, branch, step, c, y, x), where it was kept: the UNet's prediction, before guidance
        """
        store = TrajectoryStore(self.path)
        parts = [
            opened_group(store, group, incomplete)
            for group in ("latents", "final", "noise_pred")
            if group in store.groups
        ]
        merged = xr.merge(parts, combine_attrs="override", compat="override", join="exact")
        return merged.drop_vars("shown").assign_attrs(provenance=parts[0].attrs["provenance"])

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The timestep of every UNet call, (t,)."""
        return np.asarray(self._coordinate("timestep"))

    @cached_property
    def input_scales(self) -> np.ndarray:
        """By what the UNet's input was x_t multiplied at every call, (t,)."""
        return np.asarray(self._coordinate("input_scale"))

    def latents(self, rows: slice) -> np.ndarray:
        """x_t of some samples at every step, (s t c y x) float32. `BadInput` where they are not stored yet."""
        # zarr, because the choice of codecs is one for all threads: another may be writing a run just now
        with opened_group(TrajectoryStore(self.path), "latents", "error", codecs="zarr") as ds:
            return np.asarray(ds["latents"][rows].values, np.float32)

    def _coordinate(self, name: str) -> np.ndarray:
        with opened_group(TrajectoryStore(self.path), "latents", "nan") as ds:
            return np.asarray(ds[name].values)

    def __repr__(self) -> str:
        size = readable_size(sum(TrajectoryStore(self.path).place.sizes().values()))
        steps = self.identity["steps"]
        return f"<Trajectory {self.id} at {self.path}: {self.done} of {self.n_samples} samples, {steps} steps, {size}>"
