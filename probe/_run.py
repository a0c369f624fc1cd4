"""Reading runs: `Run`, the lazy dataset of one group, and the check of every stored byte."""

from __future__ import annotations

import html
import json
from collections.abc import Hashable, Iterable
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
import zarr

from probe import _axis
from probe._chunks import readable_size
from probe._samples import COLUMNS
from probe._sites import Site
from probe._store import AGAIN, RunStore, reading, store_at
from probe.errors import BadInput, StoreDamaged, unknown_name

#: What a run stores of a site besides what a `Site` has.
_STORED = ("group", "offset", "rows")

Incomplete = Literal["error", "drop", "nan"]


class Run:
    """A recording on disk, finished or not.

    ``path``; ``id`` and ``identity`` (what decides its numbers); ``info`` (versions, date); ``groups``; ``samples``.
    `open` gives a group as a dataset. Raises `BadInput` or `StoreDamaged` where there is no run.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        store = RunStore(self.path)
        self.id, self.identity, self.info, self.groups = store.id, store.identity, store.info, store.groups
        self.n_samples, self.unit = store.n_samples, store.unit

    @property
    def done(self) -> int:
        """Number of samples recorded so far."""
        store = RunStore(self.path)
        return int(_sample_mask(store).sum())

    @property
    def complete(self) -> bool:
        """Whether every sample is recorded."""
        return self.done == self.n_samples

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The sample table, with ``shown``: the judge's score of the concept, NaN without one."""
        with _dataset(self.path, self.groups[0]) as ds:
            frame = pd.DataFrame({name: ds[name].values for name in (*COLUMNS, "shown") if name in ds.coords})
        return frame.head(self.n_samples)

    def open(self, group: str = "unet", incomplete: Incomplete = "error") -> xr.Dataset:
        """See `probe.open_run`."""
        return open_run(self.path, group, incomplete)

    def __repr__(self) -> str:
        return f"<Run {self.id} at {self.path}: {self.done} of {self.n_samples} samples, {', '.join(self.groups)}>"

    def _repr_html_(self) -> str:
        identity, done = self.identity, self.done
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        rows = {
            "samples": f"{done} of {self.n_samples} recorded",
            "groups": ", ".join(name for name in self.groups if not name.startswith("maps/")),
            "reducers": ", ".join(identity["reducers"]),
            "sites": _listed(identity["sites"]),
            "maps": _listed(identity.get("maps", {})),
            "sampling": f"{identity['steps']} steps, guidance {identity['guidance']}, {identity['scheduler']['name']}",
            "edits": ", ".join(name for _, name in identity["lineage"]) or "none",
            "on disk": f"{readable_size(size)} at {self.path}",
        }
        cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items())
        bar = f"<progress value={done} max={self.n_samples}></progress>"
        return f"<b>Run {html.escape(self.id)}</b> {bar}<table>{cells}</table>"


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{len(listed)}, from {listed[0]} to {listed[-1]}" if listed else "none"


def open_run(path: str | Path | Run, group: str = "unet", incomplete: Incomplete = "error") -> xr.Dataset:
    """A group of a run as a lazy `xarray.Dataset`; nothing but coordinates is read until values are asked for.

    - ``unet``: one float32 variable per reducer, (sample, branch, step, neuron), with coordinates ``site``, ``unit``,
      ``fan_out`` (neuron), ``timestep`` (step), ``branch``, and the sample table; `probe.by_site` gives the views of
      sites
    - ``text_encoder``: the same without steps; ``images``: uint8 (sample, y, x, rgb)
    - ``maps/<NNN-site>``: ``map`` or ``full`` (sample, branch, step, neuron, y, x), or ``prob`` (sample, branch, step,
      head, y, x, token), with coordinates ``unit``, ``head``, ``token``, ``word``
    - ``xattn_k``, ``xattn_v``: ``k`` and ``v`` (sample, branch, token, neuron)
    - ``latents``: ``latents`` and ``guided`` (sample, step, c, y, x)

    ``attrs["sites"]`` is a JSON list of the sites with ``offset`` and ``rows`` (token rows of one call);
    ``attrs["provenance"]`` is JSON. Of a run that is not finished, ``incomplete="drop"`` leaves out the samples that
    are not done; ``"nan"`` keeps them, as NaN where nothing was written, and adds the sample coordinate ``done``.

    Raises `BadInput` for an unfinished run with ``"error"``, `UnknownName` for a group it does not hold, `StoreDamaged`
    naming the chunks that are missing.
    """
    store = RunStore(path.path if isinstance(path, Run) else Path(path))
    ds = opened_group(store, group, incomplete)
    return ds.assign_attrs(sites=json.dumps(stored_sites(store, group)), provenance=ds.attrs["provenance"])


def opened_group(store: RunStore, group: str, incomplete: Incomplete) -> xr.Dataset:
    """A group of any store as `open_run` gives it, without ``attrs["sites"]``."""
    path = store.path
    if incomplete not in ("error", "drop", "nan"):
        raise unknown_name("way to open an incomplete run", incomplete, ("error", "drop", "nan"))
    if group not in store.groups:
        raise unknown_name("group of the run", group, store.groups)
    mask = _sample_mask(store)
    if incomplete == "error" and not mask.all():
        raise BadInput(
            "the run is not finished",
            given=f"{int(mask.sum())} of {len(mask)} samples at {path}",
            fix="repeat the same record call, which resumes it, or open with incomplete='drop' or 'nan'",
        )
    if missing := store.missing():
        raise damage(path, missing)
    if any(length != store.n_samples for length in store.lengths(group)):
        fix = "repeat record(..., extend=True), which finishes it"
        raise StoreDamaged("an extension of the run was interrupted", given=str(path), fix=fix)
    try:
        ds = _dataset(path, group)
    except StoreDamaged:
        if bad := store.damaged():  # a coordinate of samples: it can be made again
            raise damage(path, bad) from None
        raise
    ds.attrs = {"provenance": json.dumps(_provenance(store))}
    if incomplete == "drop":
        ds = ds.isel(sample=np.flatnonzero(mask))
    elif incomplete == "nan":
        ds = ds.assign_coords(done=("sample", mask))
    return ds


def verify(path: str | Path, *, repair: bool = False) -> list[str]:
    """Read every chunk of a run or trajectory that is marked as done; the names of those missing or not decodable.

    With ``repair`` their units are marked as not done, and the same call that made them makes them again. Raises
    `StoreDamaged` for what belongs to no unit and cannot be made again: headers and coordinates.
    """
    store = store_at(path)
    bad = store.damaged()
    if repair and bad:
        with store.locked():
            store.forget(bad)
    if not bad:
        for group in store.groups:
            stored_sites(store, group)
            _dataset(store.path, group).close()
    return [name for names in bad.values() for name in names]


def damage(path: Path, chunks: dict[int, list[str]]) -> StoreDamaged:
    """The error that names damaged chunks of a run."""
    names = [name for listed in chunks.values() for name in listed]
    return StoreDamaged(
        f"{len(names)} chunks of the run are missing or damaged",
        given=f"{path}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}",
        fix="verify the run with repair=True, then the same record call makes them again",
    )


def stored_sites(store: RunStore, group: str) -> list[dict[str, Any]]:
    """The sites of a group, in order of execution, with offset and token rows."""
    with reading(store.path):
        columns = {name: array[:].tolist() for name, array in sorted(store.root["sites"].arrays())}
        if absent := [name for name in (*(f.name for f in fields(Site)), *_STORED) if name not in columns]:
            raise StoreDamaged("arrays of the run are missing", given=f"{store.path}: sites/{absent[0]}", fix=AGAIN)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [row for row in rows if row["group"] == group]


def _dataset(path: Path, group: str) -> xr.Dataset:
    with reading(path):
        return _opened(path, group)


def _opened(path: Path, group: str) -> xr.Dataset:
    ds = xr.open_dataset(path, engine="zarr", group=group, consolidated=False, cache=False, zarr_format=3)
    named = str(zarr.open_group(path / group, mode="r", zarr_format=3).attrs["coordinates"]).split()
    if absent := [name for name in named if name not in ds.coords]:
        raise StoreDamaged("arrays of the run are missing", given=f"{path}: {', '.join(absent)}", fix=AGAIN)
    coords = {}
    for name in sorted(ds.coords, key=_place):  # zarr lists members in any order
        coordinate = ds.coords[name]
        text = coordinate.dtype.kind not in "iufb"  # objects, not numpy's StringDType: pandas and plots know them
        coords[name] = coordinate.variable.astype(object) if text else coordinate.variable.load()
    ordered = xr.Dataset(
        {name: ds[name].variable for name in sorted(ds.data_vars, key=str)}, coords=coords, attrs=ds.attrs
    )
    ordered.set_close(ds.close)
    return ordered


def _place(name: Hashable) -> int:
    order = (*COLUMNS, "shown", "branch", "timestep", "site", "unit", "fan_out")
    return order.index(str(name)) if name in order else len(order)


def _sample_mask(store: RunStore) -> np.ndarray:
    return np.repeat(store.done, store.unit)[: store.n_samples]


def _provenance(store: RunStore) -> dict[str, Any]:
    return {"identity": store.identity, "info": store.info, "id": store.id}


by_site = _axis.by_site
