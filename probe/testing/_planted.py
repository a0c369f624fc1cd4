"""Runs of which the truth is known: what a recording would hold if chosen neurons carried a concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probe import _axis, provenance
from probe._samples import digest, samples
from probe._sites import Site, sites
from probe.errors import BadInput
from probe.testing._pipelines import tiny_pipeline

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from diffusers import StableDiffusionPipeline

TIMESTEPS = (801, 501, 201)
CAUSAL, TWINS, DECOYS = 20, 5, 20


class Truth:
    """What is known of planted neurons, from ``causal`` (n,), ``twins`` (pair 2) and ``decoys`` (n,): their places."""

    causal: np.ndarray
    twins: np.ndarray
    decoys: np.ndarray

    @property
    def carrying(self) -> np.ndarray:
        """Places of causal neurons and their copies."""
        return np.sort(np.concatenate([self.causal, self.twins[:, 1]]))

    @property
    def responding(self) -> np.ndarray:
        """Places of all neurons that rise with the concept, decoys among them."""
        return np.sort(np.concatenate([self.carrying, self.decoys]))


@dataclass(frozen=True)
class Planted(Truth):
    """Target and reference runs in which some neurons carry a concept, and which these are.

    - ``pipe``: the tiny pipeline that the runs name; the outgoing weights of the decoys are zero in it
    - ``target``, ``reference``: datasets as `probe.open_run` gives them, with ``absmean`` and ``unit_norm``
    - ``causal`` (20,): places on the neuron axis of those that carry it; ``twins`` (5 2): the first five of them, each
      with the neuron that copies it; ``decoys`` (20,): neurons that fire as strongly and pass nothing on
    - ``effect``: by how many standard deviations of a sample they rise with the concept
    """

    pipe: StableDiffusionPipeline
    target: xr.Dataset
    reference: xr.Dataset
    causal: np.ndarray
    twins: np.ndarray
    decoys: np.ndarray
    effect: float


def planted_runs(effect: float = 2.0, *, pairs: int = 100, seed: int = 0) -> Planted:
    """Runs with 20 causal neurons, copies of five of them, and 20 decoys, among 640 neurons of a tiny pipeline.

    A sample's window mean at neuron j is normal with sd sigma_j around a level of its own; with the concept, in the
    conditional branch, the level is higher by ``effect`` sigma_j. By themselves such neurons have an AUROC of
    Phi(effect / sqrt 2) and a contrast of effect / sqrt 2.
    """
    if pairs < 1 or not effect >= 0:
        raise BadInput("nothing can be planted", given=f"effect={effect}, pairs={pairs}")
    pipe, rng = tiny_pipeline(seed=seed), np.random.default_rng(seed)
    found = sites(pipe, "ffn")
    n = sum(site.width for site in found)
    chosen = rng.permutation(n)[: CAUSAL + TWINS + DECOYS]
    causal, copies, decoys = np.split(chosen, [CAUSAL, CAUSAL + TWINS])
    twins = np.stack([causal[:TWINS], copies], axis=1)
    fan_out = _silence(pipe, found, decoys)
    sigma = rng.uniform(0.5, 1.0, n)
    rise = np.zeros(n)
    rise[chosen] = effect * sigma[chosen]
    identity = _identity(pipe, found)

    def run(concept: str, shift: np.ndarray) -> xr.Dataset:
        table = samples([f"a {concept} number {i}" for i in range(pairs)], concept=concept)
        values = 10 + sigma * rng.standard_normal((pairs, 2, n)) + np.stack([np.zeros(n), shift])
        values[..., twins[:, 1]] = values[..., twins[:, 0]]
        absmean = np.repeat(values[:, :, None].astype(np.float32), len(TIMESTEPS), axis=2)
        arrays = {"absmean": absmean, "unit_norm": absmean / 20}
        return dataset_of(arrays, table, found, identity, timesteps=TIMESTEPS, fan_out=fan_out)

    return Planted(pipe, run("church", rise), run("house", np.zeros(n)), causal, twins, decoys, effect)


def dataset_of(
    arrays: Mapping[str, np.ndarray],
    table: pd.DataFrame,
    found: Sequence[Site],
    identity: Mapping[str, Any],
    *,
    timesteps: Sequence[float],
    fan_out: np.ndarray | None = None,
    shown: np.ndarray | None = None,
) -> xr.Dataset:
    """What `probe.open_run` would give of a run with these values (s b t n), reducer by reducer.

    ``identity`` needs what scores compare (see `made_up_identity`); the branches are those it names.
    """
    import xarray as xr

    n = _axis.offsets(found)[-1]
    coords: dict[str, Any] = {str(name): ("sample", column.to_numpy()) for name, column in table.items()}
    coords["shown"] = ("sample", np.full(len(table), np.nan, np.float32) if shown is None else np.float32(shown))
    coords |= {"branch": ("branch", np.array(identity["branches"], object)), "timestep": ("step", np.array(timesteps))}
    coords |= {
        **_axis.coordinates(found),
        "fan_out": ("neuron", np.ones(n, np.float32) if fan_out is None else fan_out),
    }
    stamped = provenance.stamp({**identity, "reducers": list(arrays), "samples": digest(table)})
    return xr.Dataset(
        {name: (("sample", "branch", "step", "neuron"), values) for name, values in arrays.items()},
        coords=coords,
        attrs={
            "sites": _axis.describe(found, rows=[16] * len(found)),
            "provenance": provenance.canonical_json(stamped),
        },
    )


def made_up_identity(found: Sequence[Site], model: Mapping[str, Any], branches: Sequence[str]) -> dict[str, Any]:
    """The identity of a run that nobody recorded; ``model`` as `probe.fingerprint` gives it in JSON."""
    return {
        "components": sorted({site.component for site in found}),
        "sites": [site.name for site in found],
        "steps": len(TIMESTEPS),
        "guidance": 7.5,
        "branches": list(branches),
        "size": [16, 16],
        "batch_size": 8,
        "images": False,
        "detector": None,
        "scheduler": {"name": "made up"},
        "lineage": [],
        "model": dict(model),
        "context": {},
    }


def _identity(pipe: Any, found: Sequence[Site]) -> dict[str, Any]:
    return made_up_identity(found, provenance.fingerprint(pipe).to_json(["unet"]), ("uncond", "cond"))


def _silence(pipe: Any, found: Sequence[Site], places: np.ndarray) -> np.ndarray:
    """Set the outgoing weights of neurons to zero; (n,) norms of all outgoing weights afterwards."""
    import torch

    norms = []
    for site, start in zip(found, _axis.offsets(found), strict=False):
        weight: Any = site.resolve(pipe).weight
        inside = places[(places >= start) & (places < start + site.width)] - start
        with torch.no_grad():
            weight[:, torch.from_numpy(inside)] = 0
        norms.append(weight.detach().norm(dim=0).numpy())
    return np.concatenate(norms).astype(np.float32)
