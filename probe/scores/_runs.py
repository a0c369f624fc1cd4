"""What scores read: one group of a run with its sites, token rows and identity, and values in blocks."""

from __future__ import annotations

import json
import logging
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
from probe.provenance import check_same

logger = logging.getLogger(__name__)

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

    def blocks(self, name: str, branches: Sequence[str] | None = None) -> Iterator[np.ndarray]:
        """The values (s b t n) of a variable, all samples in blocks; t has length 1 for a group without steps.

        Raises `StoreDamaged` naming the chunks when stored bytes cannot be decoded.
        """
        values = self.ds[name] if branches is None else self.ds[name].sel(branch=list(branches))
        if "step" not in values.dims:
            values = values.expand_dims("step", axis=2)
        values = values.transpose("sample", "branch", "step", "neuron")
        chunk = int((self.ds[name].encoding.get("chunks") or (1,))[0])
        per_sample = max(1, values.nbytes // max(1, self.n_samples))
        size = max(1, _BLOCK // (per_sample * chunk)) * chunk
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
        raise BadInput(f"the run has no {reducer}", given=given, fix=f'record with reduce=("{reducer}", ...)')
    if ds.sizes["sample"] == 0:
        raise BadInput("the run has no samples")
    if ds.sizes["neuron"] != _axis.offsets(sites)[-1]:
        raise BadInput("a score needs every neuron of the sites", given=f"{ds.sizes['neuron']} neurons")
    provenance = json.loads(ds.attrs["provenance"])
    return Recorded(ds, path, provenance["identity"], provenance["id"], sites)


def check_comparable(target: Recorded, reference: Recorded) -> None:
    """Raise `HeaderMismatch` naming the key in which two runs differ that must agree; warn about the batch size."""
    fix = "record both with the same model, edits, sites and sampling"
    check_same(target.comparable, reference.comparable, "target and reference runs cannot be compared", fix=fix)
    sizes = [run.identity["batch_size"] for run in (target, reference)]
    if sizes[0] != sizes[1]:
        logger.warning("the runs were recorded in batches of %d and %d; results agree to float tolerance", *sizes)
