"""Reading runs: `Run`, the lazy dataset of one group, and the check of every stored byte."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Hashable, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from probe import _axis
from probe._checks import BadChunk
from probe._codecs import Codecs, decoding
from probe._headers import AGAIN
from probe._places import Folder
from probe._run_page import page
from probe._samples import COLUMNS
from probe._sites import Site
from probe._store import RunStore, store_at
from probe.errors import BadInput, MissingExtra, StoreDamaged, unknown_name

#: What a run stores of a site besides what a `Site` has.
_STORED = ("group", "offset", "rows")

Incomplete = Literal["error", "drop", "nan"]

#: As xarray has it: None reads when values are asked for, anything else makes dask arrays.
Chunks = dict[str, int] | Literal["auto"] | None


class Run:
    """A recording on disk, finished or not.

    ``path``; ``id`` and ``identity`` (what decides its numbers); ``info`` (versions, date; ``nonfinite`` where NaN or
    infinity was recorded); ``groups``; ``samples``; ``rechunked`` (None, or what it was rechunked by). `open` gives a
    group as a dataset. Raises `BadInput` or `StoreDamaged` where there is no run.
    """

    def __init__(self, path: str | Path) -> None:
        store = RunStore(path)
        self.path = store.path
        self.name = store.place.name
        self.id, self.identity, self.groups = store.id, store.identity, store.groups
        self.n_samples, self.unit, self.rechunked = store.n_samples, store.unit, store.rechunked

    @property
    def info(self) -> dict[str, Any]:
        """The circumstances of the recording; ``nonfinite`` lists the sites and steps of NaN and infinity."""
        store = RunStore(self.path)
        found = store.nonfinite
        return {**store.info, **({"nonfinite": found} if found else {})}

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
        with _dataset(RunStore(self.path), self.groups[0]) as ds:
            frame = pd.DataFrame({name: ds[name].values for name in (*COLUMNS, "shown") if name in ds.coords})
        return frame.head(self.n_samples)

    def open(self, group: str = "unet", incomplete: Incomplete = "error", **options: Any) -> xr.Dataset:
        """See `probe.open_run`."""
        return open_run(self.path, group, incomplete, **options)

    def arrays(self) -> list[dict[str, Any]]:
        """What is stored: one dict an array with ``name``, ``dims``, ``shape``, ``chunk``, ``dtype``, ``bytes``."""
        store = RunStore(self.path)
        sizes = store.place.sizes()
        found = []
        with store.reading():
            for group in store.groups:
                for name, array in sorted(store.root[group].arrays()):
                    dims = array.metadata.dimension_names
                    if dims[0] == "sample" and len(dims) > 1:
                        start = f"{group}/{name}/"
                        stored = sum(size for key, size in sizes.items() if key.startswith(start))
                        shape = {"shape": list(array.shape), "chunk": list(array.chunks), "dtype": str(array.dtype)}
                        found.append({"name": f"{group}/{name}", "dims": list(dims), **shape, "bytes": stored})
        return found

    def __repr__(self) -> str:
        return f"<Run {self.id} at {self.path}: {self.done} of {self.n_samples} samples, {', '.join(self.groups)}>"

    def _repr_html_(self) -> str:
        store = RunStore(self.path)
        rows = [row for group in store.groups for row in stored_sites(store, group)]
        sites = list({row["name"]: row for row in rows}.values())  # a site may be reduced and mapped
        size = sum(store.place.sizes().values())
        return page(store, store.done, sites=sites, size=size, nonfinite=store.nonfinite)


def open_run(
    path: str | Path | Run,
    group: str = "unet",
    incomplete: Incomplete = "error",
    *,
    chunks: Chunks = None,
    codecs: Codecs = "auto",
) -> xr.Dataset:
    """A group of a run as a lazy `xarray.Dataset`; nothing but coordinates is read until values are asked for.

    - ``unet``: one float32 variable per reducer, (sample, branch, step, neuron), with coordinates ``site``, ``unit``,
      ``fan_out`` (neuron), ``timestep`` (step), ``branch``, and the sample table; `probe.by_site` gives the views of
      sites
    - ``text_encoder``: the same without steps; ``images``: uint8 (sample, y, x, rgb)
    - ``maps/<NNN-site>``: ``map`` or ``full`` (sample, branch, step, neuron, y, x), or ``prob`` (sample, branch, step,
      head, y, x, token), with coordinates ``unit``, ``head``, ``token``, ``word``
    - ``xattn_k``, ``xattn_v``: ``k`` and ``v`` (sample, branch, token, neuron)
    - ``latents``: ``latents`` and ``guided`` (sample, step, c, y, x)

    ``path`` may be a URL. ``chunks="auto"`` or ``{}`` (as stored) gives dask arrays, for runs larger than memory
    (extra ``scale``). ``codecs`` says what decodes: zarr, zarrs (extra ``fast``), or zarrs where it is installed.

    ``attrs["sites"]`` is a JSON list of the sites with ``offset`` and ``rows`` (token rows of one call);
    ``attrs["provenance"]`` is JSON. Of a run that is not finished, ``incomplete="drop"`` leaves out the samples that
    are not done; ``"nan"`` keeps them, as NaN where nothing was written, and adds the sample coordinate ``done``.

    Raises `BadInput` for an unfinished run with ``"error"``, `UnknownName` for a group it does not hold, `StoreDamaged`
    naming the chunks that are missing.
    """
    store = RunStore(path.path if isinstance(path, Run) else path)
    ds = opened_group(store, group, incomplete, chunks=chunks, codecs=codecs)
    return ds.assign_attrs(sites=json.dumps(stored_sites(store, group)), provenance=ds.attrs["provenance"])


def opened_group(
    store: RunStore, group: str, incomplete: Incomplete, *, chunks: Chunks = None, codecs: Codecs = "auto"
) -> xr.Dataset:
    """A group of any store as `open_run` gives it, without ``attrs["sites"]``."""
    if incomplete not in ("error", "drop", "nan"):
        raise unknown_name(f"way to open an incomplete {store.kind}", incomplete, ("error", "drop", "nan"))
    if codecs not in ("auto", "zarr", "zarrs"):
        raise unknown_name("codec pipeline", codecs, ("auto", "zarr", "zarrs"))
    if group not in store.groups:
        raise unknown_name(f"group of the {store.kind}", group, store.groups)
    mask = _sample_mask(store)
    if incomplete == "error" and not mask.all():
        raise BadInput(
            f"the {store.kind} is not finished",
            given=f"{int(mask.sum())} of {len(mask)} samples at {store.path}",
            fix="repeat the call that made it, which resumes it, or open with incomplete='drop' or 'nan'",
        )
    if missing := store.missing():
        raise damage(store, missing)
    store.check_coordinates()
    if any(length != store.n_samples for length in store.lengths(group)):
        fix = "repeat the call with extend=True, which finishes it"
        raise StoreDamaged(f"an extension of the {store.kind} was interrupted", given=str(store.path), fix=fix)
    try:
        # of a chunk that is not compressed zarr cuts a neuron faster than zarrs does
        with decoding(codecs, faster=isinstance(store.place, Folder) and store.rechunked is None):
            ds = _dataset(store, group, chunks)
    except StoreDamaged:
        if bad := store.damaged():  # a coordinate of samples: it can be made again
            raise damage(store, bad) from None
        raise
    ds.attrs = {"provenance": json.dumps(_provenance(store))}
    if incomplete == "drop":
        ds = ds.isel(sample=np.flatnonzero(mask))
    elif incomplete == "nan":
        ds = ds.assign_coords(done=("sample", mask))
    return ds


def verify(path: Any, *, repair: bool = False) -> list[BadChunk]:
    """Read every chunk that is marked as done; those that are missing or cannot be decoded, with sites and samples.

    ``path`` is a run or trajectory: folder, URL or object. With ``repair`` bad units are marked as not done, and the
    same call that made them makes them again. Raises `StoreDamaged` for what belongs to no unit and cannot be made
    again: headers and coordinates; `BadInput` where a rechunked copy is to be repaired.
    """
    store = store_at(path if isinstance(path, str | Path) else path.path)
    bad = store.damaged()
    if repair and bad:
        if store.rechunked is not None:
            fix = "rechunk the run again that it came from"
            raise BadInput("a rechunked copy cannot be repaired", given=f"{len(bad)} bad chunks: {bad[0]}", fix=fix)
        with store.locked():
            store.forget(chunk.unit for chunk in bad)
    if not bad:
        store.check_coordinates()
        for group in store.groups:
            stored_sites(store, group)
            _dataset(store, group).close()
    return bad


def damage(store: RunStore, chunks: Sequence[BadChunk]) -> StoreDamaged:
    """The error that names damaged chunks of a run."""
    return StoreDamaged(
        f"{len(chunks)} chunks of the {store.kind} are missing or damaged",
        given=f"{store.path}: {', '.join(map(str, chunks[:3]))}{', ...' if len(chunks) > 3 else ''}",
        fix=f"verify the {store.kind} with repair=True, then the call that made it makes them again",
    )


def stored_sites(store: RunStore, group: str) -> list[dict[str, Any]]:
    """The sites of a group, in order of execution, with offset and token rows."""
    with store.reading():
        columns = {name: array[:].tolist() for name, array in sorted(store.root["sites"].arrays())}
        if absent := [name for name in (*(f.name for f in fields(Site)), *_STORED) if name not in columns]:
            raise _absent(store, f"sites/{absent[0]}")
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [row for row in rows if row["group"] == group]


def _dataset(store: RunStore, group: str, chunks: Chunks = None) -> xr.Dataset:
    if chunks is not None and importlib.util.find_spec("dask") is None:
        fix = "pip install 'neuron-workbench[scale]'"
        raise MissingExtra("dask is not installed", given=f"chunks={chunks!r}", fix=fix)
    with store.reading():
        return _opened(store, group, chunks)


def _opened(store: RunStore, group: str, chunks: Chunks) -> xr.Dataset:
    options: dict[str, Any] = {"consolidated": False, "cache": False, "zarr_format": 3}
    options["chunks"] = {} if chunks == "auto" else chunks  # of text dask cannot tell how large a chunk would be
    ds = xr.open_dataset(store.place.store(), engine="zarr", group=group, **options)
    named = str(store.root[group].attrs["coordinates"]).split()
    if absent := [name for name in named if name not in ds.coords]:
        raise _absent(store, ", ".join(absent))
    coords = {}
    for name in sorted(ds.coords, key=_place):  # zarr lists members in any order
        coordinate = ds.coords[name]
        text = coordinate.dtype.kind not in "iufb"  # objects, not numpy's StringDType: pandas and plots know them
        loaded = coordinate.variable.load()
        coords[name] = loaded.astype(object) if text else loaded
    variables = {name: ds[name].variable for name in sorted(ds.data_vars, key=str)}
    if chunks == "auto":
        variables = {name: variable.chunk("auto") for name, variable in variables.items()}
    ordered = xr.Dataset(variables, coords=coords, attrs=ds.attrs)
    ordered.set_close(ds.close)
    return ordered


def _absent(store: RunStore, arrays: str) -> StoreDamaged:
    return StoreDamaged(f"arrays of the {store.kind} are missing", given=f"{store.path}: {arrays}", fix=AGAIN)


def _place(name: Hashable) -> int:
    order = (*COLUMNS, "shown", "branch", "timestep", "site", "unit", "fan_out")
    return order.index(str(name)) if name in order else len(order)


def _sample_mask(store: RunStore) -> np.ndarray:
    return np.repeat(store.done, store.unit)[: store.n_samples]


def _provenance(store: RunStore) -> dict[str, Any]:
    return {"identity": store.identity, "info": store.info, "id": store.id}


by_site = _axis.by_site
