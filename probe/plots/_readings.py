"""One neuron's numbers out of a run, for the figures that show one neuron."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from probe._run import Run
from probe.errors import BadInput, unknown_name
from probe.scores._runs import recorded
from probe.scores._window import WindowMeans

Branches = Literal["cond", "uncond", "both"]


def values_of_neuron(
    run: Any,
    site: str,
    unit: int,
    *,
    reducer: str = "absmean",
    window: tuple[float, float] = (999.0, 0.0),
    branches: Branches = "cond",
) -> np.ndarray:
    """What a run stored of one neuron, averaged over a window of timesteps (t_max, t_min, both included): (s,).

    Raises:
        UnknownName: no such site in the run; carries the nearest.
        BadInput: no such unit, no such reducer, no step in the window.

    """
    component = site.partition(".")[0]
    part = recorded(run, component if component.startswith("text_encoder") else "unet", reducer)
    place, start = None, 0
    for found in part.sites:
        if found.name == site:
            _check_unit(unit, found.width)
            place = start + unit
        start += found.width
    if place is None:
        raise unknown_name("site of the run", site, [found.name for found in part.sites])
    means = WindowMeans.of(part, reducer, window, branches).read(slice(place, place + 1))
    return np.asarray(means[:, 0], np.float64)


def maps_of_neuron(
    run: Any,
    site: str,
    unit: int,
    *,
    window: tuple[float, float] = (999.0, 0.0),
    branch: str = "cond",
    mean: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Where in the image one neuron fires, from a run with maps of it: maps and the timesteps (t,) they are of.

    Maps are (s y x), averaged over the window; (s t y x) with ``mean=False``.

    Raises:
        BadInput: the run holds no maps of the site or unit (with the call that records them), no step in the window.

    """
    opened = run if isinstance(run, Run) else Run(run)
    group = next((name for name in opened.groups if name.startswith("maps/") and name.endswith(f"-{site}")), None)
    fix = f"probe record ... --maps '{{\"{site}\": [{unit}]}}' --out RUN"
    if group is None:
        raise BadInput("the run holds no maps of this site", given=site, fix=fix)
    ds = opened.open(group)
    name = next(variable for variable in ("map", "full") if variable in ds)
    if unit not in ds["unit"].values:
        raise BadInput("the run holds no map of this unit", given=unit, expected=_listed(ds["unit"].values), fix=fix)
    if "step" not in ds.dims:
        raise BadInput("a text encoder has no place in the image", given=site)
    if branch not in ds["branch"].values:
        raise unknown_name("branch of the run", branch, map(str, ds["branch"].values))
    times = ds["timestep"].values
    inside = np.flatnonzero((times <= window[0]) & (times >= window[1]))
    if not len(inside):
        raise BadInput(
            "no step of the run lies in the window", given=window, expected=f"around any of {_listed(times)}"
        )
    at = int(np.flatnonzero(ds["unit"].values == unit)[0])
    chosen = ds[name].sel(branch=branch).isel(neuron=at, step=inside).transpose("sample", "step", "y", "x").values
    return (chosen.mean(1) if mean else chosen), times[inside]


def _check_unit(unit: int, width: int) -> None:
    if not 0 <= unit < width:
        raise BadInput("a unit is outside its site", given=unit, expected=f"0 to {width - 1}")


def _listed(values: np.ndarray) -> str:
    shown = [f"{value:g}" for value in values[:12].tolist()]
    return ", ".join(shown) + (", ..." if len(values) > 12 else "")
