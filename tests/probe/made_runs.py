"""Datasets of runs made of numbers that a test chooses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from probe._samples import samples
from probe._sites import Site
from probe.testing import dataset_of, made_up_identity

MODEL = {"architecture": {"unet": "a"}, "weights": {"unet": "w"}, "dtype": "float32"}


def made_sites(*widths: int) -> list[Site]:
    """Sites of these widths."""
    return [Site(f"unet.block{i}.ffn", "ffn", "unet", f"block{i}.ff", "input", w, i) for i, w in enumerate(widths)]


def made_run(
    values: np.ndarray,
    widths: tuple[int, ...] | None = None,
    *,
    seeds_per_prompt: int = 1,
    timesteps: tuple[float, ...] = (801, 501, 201),
    reducer: str = "absmean",
    shown: np.ndarray | None = None,
    table: pd.DataFrame | None = None,
    branches: tuple[str, ...] = ("uncond", "cond"),
    **identity: object,
) -> xr.Dataset:
    """A run with these values: (s n), the same in every branch and step, or (s b t n)."""
    x = np.asarray(values, np.float32)
    if x.ndim == 2:
        x = np.broadcast_to(x[:, None, None], (len(x), len(branches), len(timesteps), x.shape[1]))
    found = made_sites(*(widths or (x.shape[-1],)))
    if table is None:
        prompts = [f"prompt {i}" for i in range(len(x) // seeds_per_prompt)]
        table = samples(prompts, seeds_per_prompt=seeds_per_prompt, concept="church")
    made = made_up_identity(found, MODEL, branches) | identity
    return dataset_of({reducer: x}, table, found, made, timesteps=timesteps, shown=shown)
