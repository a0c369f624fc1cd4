"""intervene and intervention: temporary changes of activations, from a finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from probe import _intervene as hooks
from probe import provenance
from probe._neuron_map import NeuronMap
from probe._options import validated
from probe._recorded import Recorded, recorded
from probe._sites import Site, sites
from probe.errors import BadInput

#: What two runs need for `mean` and `patch`: the signed mean over tokens.
REDUCER = "mean"


@dataclass(frozen=True, eq=False)
class Intervention:
    """A change of activations that holds inside ``with intervention.applied(pipe)``; made by `intervention`.

    It has the ``name``, ``id`` and ``differentiable`` of an edit, and `probe.evaluate` takes it like one. While it is
    in force, `probe.lineage` names it: a run recorded meanwhile says so.
    """

    name: str
    provenance: dict[str, Any]
    units: Mapping[str, tuple[int, ...]]
    source: Any = None
    model: Mapping[str, Any] | None = None
    differentiable: bool = True

    @property
    def id(self) -> str:
        """Hash of everything that decides what it does."""
        return str(self.provenance["id"])

    @property
    def options(self) -> dict[str, Any]:
        """Mode, value, window, branch and branches."""
        return dict(self.provenance["identity"]["options"])

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[Any]:
        """In force inside the with-block, which gets the pipeline; no hook is left behind it, however it ends.

        Raises `WrongModel` for a map of another model or a site that ``pipe`` lacks (while edits are in force only
        architectures are compared), `BadInput` for units outside their site; inside, `AmbiguousBatch` where rows of a
        call do not fit branches or source.
        """
        self._check(pipe)
        found = {site.name: site for site in sites(pipe, list(self.units))}
        options = self.options
        new = self._new_values(found)
        changes = [hooks.Change(found[name], units, new[name]) for name, units in self.units.items()]
        window = None if options["window"] is None else tuple(options["window"])
        if window is not None and any(change.site.component != "unet" for change in changes):
            raise BadInput("a text encoder has no timesteps", given=f"window={window}", fix="leave window= out")
        branches = None if options["branches"] is None else tuple(options["branches"])
        by_branch = options["mode"] in ("mean", "patch")
        holders = [getattr(pipe, name) for name in dict.fromkeys(change.site.component for change in changes)]
        with (
            hooks.named(holders, (self.id, self.name)),
            hooks.changing(
                pipe, changes, window=window, branch=options["branch"], by_branch=by_branch, branches=branches
            ),
        ):
            yield pipe

    def __repr__(self) -> str:
        count = sum(map(len, self.units.values()))
        return f"<Intervention {self.name!r} {self.id}: {count} units at {len(self.units)} sites>"

    def _check(self, pipe: Any) -> None:
        if self.model is not None:
            edited = bool(provenance.lineage(pipe))
            model = {**self.model, "weights": {}} if edited else self.model
            provenance.fingerprint(pipe).check(model, "the neuron map")

    def _new_values(self, found: Mapping[str, Site]) -> dict[str, hooks.NewValue]:
        mode, value = self.options["mode"], self.options["value"]
        if mode == "zero":
            return dict.fromkeys(self.units, hooks.zeros)
        if mode == "scale":
            return dict.fromkeys(self.units, hooks.scaled(value))
        return {name: _stored(self.source, found[name], units, mode) for name, units in self.units.items()}


@validated
def intervention(
    selection: Any,
    *,
    mode: Literal["zero", "mean", "scale", "patch"] = "zero",
    value: float | None = None,
    source: Any = None,
    window: tuple[float, float] | None = None,
    branch: Literal["cond", "uncond"] | None = None,
    branches: Sequence[str] | None = None,
    over: Literal["any", "all", "vote"] = "any",
    name: str | None = None,
) -> Intervention:
    """A change of activations as an object with ``name``, ``id`` and ``applied(pipe)``.

    What the chosen units hand to the Linear behind them becomes

    - ``zero``: 0
    - ``mean``: their mean over the samples of ``source``, at the nearest timestep and in the same branch
    - ``scale``: ``value`` times what it is
    - ``patch``: what ``source`` kept of them, sample by sample, at the nearest timestep and in the same branch. A
      source of one sample serves all; otherwise it has as many as each pipeline call, in the same order

    A run keeps one number for all tokens of a unit (its mean), so ``mean`` and ``patch`` give every token the same.

    Args:
        selection: a `NeuronMap` with a selection (or its path), or units by site name, ``{"unet.mid...ffn": [3, 17]}``.
        mode: see above.
        value: the factor of ``scale``.
        source: for ``mean`` and ``patch``, a run with the reducer ``mean`` of the sites: a path, `probe.Run` or
            dataset.
        window: only at timesteps (t_max, t_min), both included; None means always.
        branch: only in that branch of guidance; None means in all.
        branches: of the rows of UNet calls, for a loop that is no pipeline call: ``("uncond", "cond")``.
        over: how the selections of several windows are joined.
        name: the mode and the number of units by default.

    Raises `BadInput` for options that do not belong together and an empty selection.
    """
    units, model = _units(selection, over)
    _check_options(mode, value, source)
    identity = {
        "kind": "intervention",
        "units": {site: list(chosen) for site, chosen in units.items()},
        "options": {
            "mode": mode,
            "value": value,
            "window": None if window is None else list(window),
            "branch": branch,
            "branches": None if branches is None else list(branches),
        },
        "source": None if source is None else recorded(source, _group(next(iter(units))), REDUCER).reference_json(),
    }
    count = sum(map(len, units.values()))
    default = f"{mode}{'' if value is None else f' {value:g}'} of {count} neuron{'s' * (count != 1)}"
    return Intervention(name or default, provenance.stamp(identity), units, source, model)


def intervene(pipe: Any, selection: Any, **options: Any) -> AbstractContextManager[Any]:
    """Change activations of ``pipe`` inside a with-block, which gets the pipeline.

    >>> with probe.intervene(pipe, nm.select(top=20), mode="scale", value=2.0, branch="cond"):  # doctest: +SKIP
    ...     pipe("a church")

    See `intervention` for the options, and `Intervention.applied` for what is left behind: nothing.
    """
    return intervention(selection, **options).applied(pipe)


def _check_options(mode: str, value: float | None, source: Any) -> None:
    if (value is not None) != (mode == "scale"):
        raise BadInput("value= belongs to mode='scale'", given=f"mode={mode!r}, value={value}")
    if (source is not None) != (mode in ("mean", "patch")):
        given = f"mode={mode!r}, {'no source' if source is None else 'a source'}"
        fix = "probe record ... --reduce mean --out RUN, then source=RUN" if source is None else "leave source= out"
        raise BadInput("source= belongs to mode='mean' and mode='patch'", given=given, fix=fix)


def _units(selection: Any, over: Any) -> tuple[dict[str, tuple[int, ...]], Mapping[str, Any] | None]:
    """Units by site name, and the model (as JSON) that the selection was made on."""
    if isinstance(selection, str | Path):
        selection = NeuronMap.load(selection)
    if isinstance(selection, NeuronMap):
        chosen = selection.selected(over)
        places = zip(selection.sites, selection.offsets, selection.offsets[1:], strict=False)
        listed = {site.name: np.flatnonzero(chosen[start:stop]).tolist() for site, start, stop in places}
        model = selection.provenance["identity"]["model"]
    elif isinstance(selection, Mapping):
        listed = {str(site): sorted({int(unit) for unit in units}) for site, units in selection.items()}
        model = None
    else:
        expected = "a NeuronMap, its path, or units by site name"
        raise BadInput("a selection of neurons is needed", given=type(selection).__name__, expected=expected)
    found = {site: tuple(units) for site, units in listed.items() if units}
    if not found:
        raise BadInput("no neuron is selected", fix="nm.select(top=20) first")
    return found, model


def _group(site: str) -> str:
    """The group of a run that holds a site of this name."""
    component = site.partition(".")[0]
    return component if component.startswith("text_encoder") else "unet"


def _stored(source: Any, site: Site, units: Sequence[int], mode: str) -> hooks.Stored:
    """What a run kept of some units of a site."""
    run: Recorded = recorded(source, _group(site.name), REDUCER)
    names = [other.name for other in run.sites]
    if site.name not in names:
        fix = f"probe record ... --sites {site.name} --reduce {REDUCER} --out RUN"
        raise BadInput("the source run has no such site", given=site.name, fix=fix)
    start = sum(other.width for other in run.sites[: names.index(site.name)])
    values = run.ds[REDUCER].isel(neuron=start + np.asarray(units))
    stepped = "step" in values.dims
    values = values if stepped else values.expand_dims("step", axis=2)
    table = values.transpose("sample", "branch", "step", "neuron").values
    if mode == "mean":
        known = ~np.isnan(table)
        total = np.where(known, table, 0).sum(0, keepdims=True, dtype=np.float64)
        table = np.where(known.any(0, keepdims=True), total / np.maximum(known.sum(0, keepdims=True), 1), np.nan)
    if np.isnan(table).any():
        raise BadInput("the source run was not measured at these units", given=site.name, fix="finish its recording")
    timesteps = torch.from_numpy(np.array(run.ds["timestep"].values, np.float64)) if stepped else None
    branches = tuple(str(branch) for branch in run.ds["branch"].values)
    return hooks.Stored(torch.from_numpy(np.array(table, np.float32)), branches, timesteps)
