"""One group of a run, ready for arithmetic: its sites, token rows and identity, and its values in blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probe import _axis
from probe._run import Run, damage, open_run
from probe._samples import COLUMNS, digest
from probe._sites import Site
from probe._store import RunStore
from probe.errors import BadInput

_BLOCK = 64_000_000  # bytes of values held at once

#: How a run was sampled: two runs must agree in it before their numbers are compared. Batch size is only warned about.
SAMPLING = ("steps", "guidance", "branches", "size", "scheduler")


@dataclass(frozen=True)
class Recorded:
    """A group of a run, ready for a score; ``path`` is None for a dataset that the caller opened."""

    ds: xr.Dataset
    path: str | Path | None
    identity: dict[str, Any]
    run_id: str
    sites: list[Site]

    @property
    def n_samples(self) -> int:
        """Number of samples in the dataset."""
        return int(self.ds.sizes["sample"])

    @property
    def n_neurons(self) -> int:
        """Length of the neuron axis."""
        return int(self.ds.sizes["neuron"])

    @property
    def fan_out(self) -> np.ndarray:
        """(n,) norms of outgoing weights while recording."""
        return np.asarray(self.ds["fan_out"].values)

    @property
    def token_rows(self) -> np.ndarray:
        """(n,) token rows of one call at each neuron's site."""
        return np.repeat([row["rows"] for row in _axis.described(self.ds)], [site.width for site in self.sites])

    @property
    def windows(self) -> list[tuple[float, float]]:
        """(t_max, t_min): every step by itself; all of denoising for a group without steps."""
        if "step" not in self.ds.dims:
            return [(999, 0)]
        return [(t, t) for t in self.ds["timestep"].values.tolist()]

    def window_means(
        self, name: str, steps: slice | None, branches: Sequence[str] | None, neurons: slice
    ) -> np.ndarray:
        """(s n) float32: means over the given steps and branches of some neurons, samples read in blocks.

        NaN where any of these was not measured. ``steps`` is None for a group without steps.
        """
        values = self.ds[name].isel(neuron=neurons)
        values = values if branches is None else values.sel(branch=list(branches))
        values = values.expand_dims("step", axis=2) if steps is None else values.isel(step=steps)
        values = values.transpose("sample", "branch", "step", "neuron")
        found = np.empty((self.n_samples, values.sizes["neuron"]), np.float32)
        size = self._samples_at_once(name, values)
        for start in range(0, self.n_samples, size):
            block = self._read(values.isel(sample=slice(start, start + size)))
            found[start : start + size] = block.mean((1, 2), dtype=np.float32)
        return found

    def _samples_at_once(self, name: str, values: xr.DataArray) -> int:
        """Whole chunks of samples that together stay near `_BLOCK` bytes."""
        chunk = int((self.ds[name].encoding.get("chunks") or (1,))[0])
        per_sample = max(1, values.nbytes // max(1, self.n_samples))
        return max(1, _BLOCK // (per_sample * chunk)) * chunk

    def blocks(self, name: str, branches: Sequence[str] | None = None) -> Iterator[np.ndarray]:
        """The values (s b t n) of a variable, all samples in blocks; t has length 1 for a group without steps.

        Raises `StoreDamaged` naming the chunks when stored bytes cannot be decoded.
        """
        values = self.ds[name] if branches is None else self.ds[name].sel(branch=list(branches))
        if "step" not in values.dims:
            values = values.expand_dims("step", axis=2)
        values = values.transpose("sample", "branch", "step", "neuron")
        size = self._samples_at_once(name, values)
        for start in range(0, self.n_samples, size):
            yield self._read(values.isel(sample=slice(start, start + size)))

    def _read(self, values: xr.DataArray) -> np.ndarray:
        try:
            return np.asarray(values.values)
        except Exception as error:  # whatever a codec raises over torn bytes
            store = None if self.path is None else RunStore(self.path)
            if store is not None and (bad := store.damaged()):
                raise damage(store, bad) from error
            raise

    @property
    def model(self) -> dict[str, Any]:
        """The fingerprint (as JSON) of the components whose neurons these are."""
        recorded, components = self.identity["model"], {site.component for site in self.sites}
        return {
            part: {name: value for name, value in recorded[part].items() if name in components}
            for part in ("architecture", "weights")
        } | {"dtype": recorded["dtype"]}

    @property
    def comparable(self) -> dict[str, Any]:
        """What must be equal in another run before the two are compared: sites, sampling, edits and weights.

        The VAE is not among them: it draws what has been decided, and runs without images do not name it.
        """
        weights = {**self.identity["model"]["weights"], **self.identity["context"]}
        return {
            "sites": [site.name for site in self.sites],
            **{key: self.identity[key] for key in (*SAMPLING, "lineage")},
            "inputs": {k: v for k, v in self.identity.get("inputs", {}).items() if k not in ("id", "sha256")},
            **{key: self.identity[key] for key in ("empty_prompt",) if key in self.identity},  # SDXL has it
            "weights": {name: value for name, value in weights.items() if name != "vae"},
            "architecture": self.model["architecture"],
        }

    def reference_json(self) -> dict[str, Any]:
        """What a finding keeps of the run it came from: its id and the samples that were used."""
        table = pd.DataFrame({name: self.ds[name].values for name in COLUMNS if name in self.ds.coords})
        return {"run": self.run_id, "samples": digest(table)}


def recorded(source: Any, group: str, reducer: str) -> Recorded:
    """A run's group from a path, a `Run` or a dataset of `probe.open_run`.

    Raises `BadInput` where the reducer is missing, samples are none, or neurons were selected from the dataset.
    """
    if isinstance(source, xr.Dataset):
        ds, path = source, None
    elif isinstance(source, str | Path | Run):
        path = source.path if isinstance(source, Run) else source
        ds = open_run(path, group)
    else:
        raise BadInput(
            "a score reads runs", given=type(source).__name__, expected="a path, a Run or a dataset of open_run"
        )
    sites = _axis.sites_of(ds)
    if "provenance" not in ds.attrs:
        raise BadInput("the dataset does not say which run it is from", fix="open it with probe.open_run")
    if reducer not in ds:
        given = ", ".join(map(str, ds.data_vars)) or "none"
        raise BadInput(f"the run has no {reducer}", given=given, fix=recording_again(ds, reducer))
    if ds.sizes["sample"] == 0:
        raise BadInput("the run has no samples")
    if ds.sizes["neuron"] != _axis.offsets(sites)[-1]:
        raise BadInput("a score needs every neuron of the sites", given=f"{ds.sizes['neuron']} neurons")
    provenance = json.loads(ds.attrs["provenance"])
    return Recorded(ds, path, provenance["identity"], provenance["id"], sites)


def recording_again(ds: xr.Dataset, reducer: str) -> str:
    """The command that records the samples of a run's group with a further reducer."""
    identity = json.loads(ds.attrs["provenance"])["identity"]
    table = {name: list(dict.fromkeys(ds[name].values.tolist())) for name in ("concept", "split", "seed") if name in ds}
    named = [table.get(name, []) for name in ("concept", "split")]
    about = all(len(values) == 1 and values[0] for values in named)
    words = ["probe record", f"--concept {named[0][0]} --split {named[1][0]}" if about else "PROMPTS"]
    kinds = dict.fromkeys(site.kind for site in _axis.sites_of(ds))
    words.append(f"--sites {','.join(kinds)} --reduce {','.join([*map(str, ds.data_vars), reducer])}")
    words += [f"--{key} {identity[key]:g}" for key in ("steps", "guidance") if key in identity]
    words += [f"--seed {seed}" for seed in table.get("seed", []) if len(table["seed"]) == 1]
    return " ".join([*words, "--out RUN"])
