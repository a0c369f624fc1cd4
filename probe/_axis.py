"""The neuron axis: all sites side by side in order of execution, and the way back to one site.

xarray cannot open one array per site where all share a dimension name, and a tree loses the order; so runs and neuron
maps have one axis ``neuron`` with coordinates ``site`` (position in the list of sites) and ``unit`` (position in the
site).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from probe._sites import Site
from probe.errors import BadInput

if TYPE_CHECKING:
    import xarray as xr


def offsets(sites: Sequence[Site]) -> list[int]:
    """Where each site starts on the neuron axis, and at the end the axis' length."""
    return list(accumulate((site.width for site in sites), initial=0))


def coordinates(sites: Sequence[Site]) -> dict[str, tuple[str, np.ndarray]]:
    """The coordinates ``site`` (int16) and ``unit`` (int32) of the axis, each as (dim, values)."""
    widths = [site.width for site in sites]
    site = np.repeat(np.arange(len(sites), dtype=np.int16), widths)
    unit = np.concatenate([np.arange(width, dtype=np.int32) for width in widths])
    return {"site": ("neuron", site), "unit": ("neuron", unit)}


def describe(sites: Sequence[Site], **columns: Sequence[Any]) -> str:
    """The JSON list kept in ``attrs["sites"]``: each site's fields, its offset, and further columns."""
    rows = [site.to_json() | {"offset": offset} for site, offset in zip(sites, offsets(sites)[:-1], strict=True)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return json.dumps(rows)


def described(ds: xr.Dataset | Mapping[str, Any]) -> list[dict[str, Any]]:
    """The list of `describe`, read back from a dataset (or its attributes)."""
    attributes: Any = getattr(ds, "attrs", ds)
    if "sites" not in attributes:
        raise BadInput("the dataset does not say which sites it holds", expected="attrs['sites'], as open_run gives it")
    found: list[dict[str, Any]] = json.loads(attributes["sites"])
    return found


def sites_of(ds: xr.Dataset) -> list[Site]:
    """The sites of a dataset, in order of execution."""
    return [Site.from_json(row) for row in described(ds)]


def by_site(ds: xr.Dataset) -> dict[str, xr.Dataset]:
    """A view of every site, in order of execution: name -> dataset with the site's units on ``neuron``.

    Works on what `probe.open_run` and `NeuronMap.dataset` give, also after a selection of neurons; sites without any
    neuron left are absent. Grouping by site *name* would sort them and lose the order.
    """
    which = ds["site"].values
    views = {}
    for i, row in enumerate(described(ds)):
        places = np.flatnonzero(which == i)
        if len(places):
            contiguous = places[-1] - places[0] + 1 == len(places)
            part = ds.isel(neuron=slice(places[0], places[-1] + 1) if contiguous else places)
            views[row["name"]] = part.assign_attrs(sites=json.dumps([row]), site=row["name"])
    return views
