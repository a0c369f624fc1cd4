"""What an explorer shows: runs and maps, opened when first asked for. What is chosen is kept elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probe import _axis
from probe._kinds import absent
from probe._neuron_map import NeuronMap
from probe._places import is_url
from probe._recorded import SAMPLING
from probe._run import Run, open_run
from probe._samples import COLUMNS
from probe.errors import BadInput, UnknownName, WorkbenchError, WrongModel, nearest, unknown_name
from probe.plots import short_site
from probe.scores import Selectivity, score, selectivity

#: Scores that an explorer can make from runs alone, with the options that keep it quick; pairs need a reference run.
UNPAIRED: dict[str, dict[str, Any]] = {"wanda": {"branches": "cond"}, "auroc": {"intervals": 0}}
PAIRED: dict[str, dict[str, Any]] = {**UNPAIRED, "contrast": {}, "linear": {}}

#: The reducer that a score reads, where it is not absmean.
_READS = {"wanda": "unit_norm"}

#: The numbers a neuron may be shown by, the first that a run has: reducer -> in words, over the tokens of a picture.
QUANTITIES = {
    "absmean": "mean |activation| over the image",
    "mean": "mean activation over the image",
    "norm": "norm of activations over the image",
    "unit_norm": "norm over the image of activations whose tokens have length 1",
    "max": "largest activation in the image",
}

#: What stands for a run's samples that name no concept.
UNNAMED = "concept"


@dataclass
class Side:
    """Samples of one run, opened: ``ds`` as `probe.open_run` gives it, ``images`` (s y x 3) where there are any."""

    ds: xr.Dataset
    images: np.ndarray | None

    @property
    def table(self) -> pd.DataFrame:
        """The sample table."""
        return pd.DataFrame({name: self.ds[name].values for name in COLUMNS if name in self.ds.coords})

    def where(self, keep: np.ndarray) -> Side:
        """Some of the samples: (s,) bool."""
        places = np.flatnonzero(keep)
        return Side(self.ds.isel(sample=places), None if self.images is None else self.images[places])


@dataclass
class Material:
    """Concepts, the maps made for them, and the runs behind them.

    - ``runs``: concept -> what was recorded of it; a run that holds several concepts stands under each of them
    - ``references``: concept -> a run without it; absent, a concept is compared with the others of its run
    - ``given``: concept -> method -> a map that was made before
    """

    runs: Mapping[str, Any]
    references: Mapping[str, Any]
    given: Mapping[str, Mapping[str, NeuronMap]]
    table: Selectivity | None = None
    _opened: dict[int, tuple[Any, Side]] = field(default_factory=dict, repr=False)
    _made: dict[tuple[str, str], NeuronMap] = field(default_factory=dict, repr=False)
    _tables: dict[int, Selectivity] = field(default_factory=dict, repr=False)
    _columns: dict[tuple[str, str, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def concepts(self) -> list[str]:
        """Names, those with maps first."""
        return list(dict.fromkeys([*self.given, *self.runs]))

    def check_concept(self, name: str) -> None:
        """Raise `UnknownName` for a concept of which there is neither a map nor a run."""
        if name not in self.concepts:
            error = unknown_name("concept of the explorer", name, self.concepts)
            fix = f"record it (probe record --concept {name!r} --out RUN), then explore that run"
            raise type(error)(error.what, given=error.given, expected=error.expected, nearest=error.nearest, fix=fix)

    def methods(self, concept: str) -> list[str]:
        """Maps that were given for a concept, then the scores that can be made from its runs.

        Raises `BadInput` where there is neither, and what opening a run raises.
        """
        self.check_concept(concept)
        given, made = list(self.given.get(concept, {})), []
        if concept in self.runs:
            ds = self.side(self.runs[concept]).ds
            offered = PAIRED if concept in self.references else UNPAIRED
            made = [name for name in offered if _READS.get(name, "absmean") in ds]
            if not given and not made:
                fix = 'record with reduce=("unit_norm", "absmean")'
                raise BadInput("no score can be made from the run", given=", ".join(map(str, ds.data_vars)), fix=fix)
        return list(dict.fromkeys([*given, *made]))

    def finding(self, concept: str, method: str) -> NeuronMap:
        """The map of a concept by a method: the one given, or made now and kept.

        Raises `UnknownName` for a method that cannot be had here, and what the score raises.
        """
        if method not in self.methods(concept):
            raise unknown_name(f"method for {concept!r}", method, self.methods(concept))
        if method in self.given.get(concept, {}):
            return self.given[concept][method]
        if (concept, method) not in self._made:
            target, reference = self.sides(concept)
            self._made[concept, method] = score(target.ds, reference.ds, method=method, **PAIRED[method])
        return self._made[concept, method]

    def sides(self, concept: str) -> tuple[Side, Side]:
        """Samples of a concept, and what they are compared with.

        Raises `BadInput` where nothing was recorded of it, or nothing to compare with, and what opening a run raises.
        """
        self.check_concept(concept)
        if concept not in self.runs:
            fix = "explore(map, run=..., reference=...)"
            raise BadInput("a neuron map holds scores, not activations or pictures", given=concept, fix=fix)
        whole = self.side(self.runs[concept])
        names = _concepts_of(whole.ds)
        own = names == concept if (names == concept).any() else np.ones(len(names), bool)
        if concept in self.references:
            other = self.side(self.references[concept])
            theirs = _concepts_of(other.ds) == concept  # a reference run of several concepts names whose it is
            return whole.where(own), other.where(theirs) if theirs.any() else other
        if own.all():
            fix = (
                "give reference=, a run of the same prompts without the concept, or record several concepts in one run"
            )
            raise BadInput("there is nothing to compare the concept with", given=concept, fix=fix)
        return whole.where(own), whole.where(~own)

    def side(self, run: Any) -> Side:
        """A run, opened once."""
        if id(run) not in self._opened:
            self._opened[id(run)] = (run, _open(run))  # the run is held, so that no other takes its id
        return self._opened[id(run)][1]

    def curves(self, concept: str, site: str, unit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Timesteps (t,), and one neuron's activation in the conditional branch, (s t) of either side."""
        key = (concept, site, unit)
        target, reference = self.sides(concept)
        if key not in self._columns:
            self._columns[key] = (_column(target.ds, site, unit), _column(reference.ds, site, unit))
        return (np.asarray(target.ds["timestep"].values, np.float64), *self._columns[key])

    def selectivity(self, concept: str) -> Selectivity:
        """The table that was given, or that of the concept's run. Raises as `probe.selectivity`."""
        if self.table is not None:
            return self.table
        if concept not in self.runs:
            fix = "explore(map, run=RUN), or selectivity=probe.selectivity(RUN)"
            raise BadInput("there is no run to tell what else a neuron is for", given=concept, fix=fix)
        run = self.runs[concept]
        if id(run) not in self._tables:
            ds = self.side(run).ds
            self._tables[id(run)] = selectivity(ds, reducer=reducer_of(ds))
        return self._tables[id(run)]

    def sampling(self, concept: str) -> dict[str, Any]:
        """How the concept's samples were drawn: steps, guidance, height, width, batch size."""
        identity = provenance_of(self.sides(concept)[0].ds)["identity"]
        if missing := [key for key in SAMPLING if key not in identity]:
            raise BadInput("the run does not say how it was drawn", given=f"without {missing[0]}")
        height, width = identity["size"]
        return {"steps": int(identity["steps"]), "guidance": float(identity["guidance"])} | {
            "height": int(height),
            "width": int(width),
            "batch_size": int(identity["batch_size"]),
        }


def material(source: Any, run: Any, reference: Any, table: Selectivity | None) -> Material:
    """What `probe.explore` was given, by concept.

    Raises `BadInput` for what is neither a run nor a map, `WrongModel` for a map and a run that are of two models, and
    what opening a run raises.
    """
    given: dict[str, dict[str, NeuronMap]] = {}
    runs: dict[str, Any] = {}
    if not isinstance(source, Mapping) or isinstance(source, xr.Dataset):
        source = {None: source}
    for name, one in source.items():
        for item in one if isinstance(one, list | tuple) else [one]:
            found = item if isinstance(item, NeuronMap) else _map_at(item)
            if found is not None:
                given.setdefault(name or UNNAMED, {})[found.method] = found
            else:
                runs |= dict.fromkeys([name] if name else _names(item), item)
    if run is not None:
        runs |= dict.fromkeys(given if len(given) == 1 else _names(run), run)
    if not given and not runs:
        raise BadInput("there is nothing to explore", given=repr(source), expected="a run or a neuron map")
    others = _references(reference, list(dict.fromkeys([*given, *runs])))
    made = Material(runs, others, given, table)
    for name in (name for name in given if name in runs):
        for nm in given[name].values():
            _check_model(nm, made.side(runs[name]))
    return made


def _check_model(nm: NeuronMap, side: Side) -> None:
    """Raise `WrongModel` unless a map and a run are of one model; of two dtypes only architectures are compared."""
    ours, theirs = nm.provenance["identity"]["model"], provenance_of(side.ds)["identity"]["model"]
    for part in ("architecture", "weights") if ours["dtype"] == theirs["dtype"] else ("architecture",):
        for name, expected in ours[part].items():
            if (recorded := theirs[part].get(name, expected)) != expected:
                raise WrongModel(
                    f"the neuron map and the run are of two models: {name} differs in {part}",
                    given=recorded[:16],
                    expected=expected[:16],
                    fix="give the run that the map was made from, or one of the same model",
                )


def _references(reference: Any, concepts: Sequence[str]) -> dict[str, Any]:
    if reference is None:
        return {}
    if isinstance(reference, Mapping) and not isinstance(reference, xr.Dataset):
        return dict(reference)
    return dict.fromkeys(concepts, reference)


def _names(run: Any) -> list[str]:
    """The concepts that a run holds, in order of appearance."""
    table = run if isinstance(run, xr.Dataset) else _run(run).samples
    values: Any = table["concept"].values if "concept" in table else ()
    return list(dict.fromkeys(str(value) or UNNAMED for value in values)) or [UNNAMED]


def _concepts_of(ds: xr.Dataset) -> np.ndarray:
    return np.array([str(name) or UNNAMED for name in ds["concept"].values], object)


def _map_at(item: Any) -> NeuronMap | None:
    """The map at a path; None for a run, of which `probe._run` says what is wrong with it."""
    if not isinstance(item, str | Path):
        return None
    try:
        return NeuronMap.load(item)
    except WorkbenchError:
        if str(item).endswith(".zarr.zip") or str(item).startswith("emoji/"):
            raise
        return None


def _open(run: Any) -> Side:
    if isinstance(run, xr.Dataset):
        return Side(run, None)
    opened = _run(run)
    if "unet" not in opened.groups:
        fix = "record the sites ffn"
        raise BadInput("the run has no neurons of the UNet", given=", ".join(opened.groups), fix=fix)
    pictures = open_run(opened, "images")["image"].values if "images" in opened.groups else None
    return Side(open_run(opened, "unet"), pictures)


def _run(run: Any) -> Run:
    if not isinstance(run, Run | str | Path):
        given = type(run).__name__
        raise BadInput("an explorer reads runs and neuron maps", given=given, expected="a path, a Run or a NeuronMap")
    if isinstance(run, Run):
        return run
    if not is_url(run) and not os.path.exists(run):
        raise absent(run, "run", "neuron_map")
    return Run(run)


def reducer_of(ds: xr.Dataset) -> str:
    """The number a neuron is shown by: absmean, or what the run has instead."""
    found = [name for name in QUANTITIES if name in ds]
    if not found:
        fix = 'record with reduce=("unit_norm", "absmean")'
        raise BadInput("the run has no number a neuron", given=", ".join(map(str, ds.data_vars)), fix=fix)
    return found[0]


def provenance_of(ds: xr.Dataset) -> dict[str, Any]:
    """Identity, info and id of the run behind a dataset."""
    found: dict[str, Any] = json.loads(ds.attrs["provenance"])
    return found


def site_named(names: Sequence[str], site: str) -> str:
    """The full name of a site, given so or as figures write it (``up 0.1``).

    Raises `UnknownName` with the short names there are, `BadInput` where several sites are written alike.
    """
    if site in names:
        return site
    found = [full for full in names if short_site(full) == site]
    if len(found) > 1:
        raise BadInput("several sites are written like this", given=site, expected="a full name", nearest=found)
    if not found:
        shorts = list(dict.fromkeys(map(short_site, names)))
        close = nearest(str(site), [*shorts, *names])
        raise UnknownName("unknown site", given=repr(site), expected=f"one of {', '.join(shorts)}", nearest=close)
    return found[0]


def place_of(ds: xr.Dataset, site: str, unit: int) -> int:
    """Where a neuron is on the axis of a run or map. Raises `UnknownName` or `BadInput`."""
    sites = _axis.sites_of(ds)
    names = [found.name for found in sites]
    place = names.index(site_named(names, site))
    width = sites[place].width
    if not 0 <= whole("unit", unit) < width:
        raise BadInput("a unit is outside its site", given=unit, expected=f"0 to {width - 1}")
    return _axis.offsets(sites)[place] + int(unit)


def whole(name: str, given: Any) -> int:
    """A whole number. Raises `BadInput` for anything else."""
    if isinstance(given, bool) or not isinstance(given, int | np.integer):
        raise BadInput(f"{name} is a whole number", given=repr(given), fix=f"{name}=3, for example")
    return int(given)


def positive(name: str, given: Any) -> int:
    """A whole number from 1 on. Raises `BadInput` for anything else."""
    if whole(name, given) < 1:
        raise BadInput(f"{name} is too small", given=given, expected="at least 1")
    return int(given)


def text(name: str, given: Any) -> str:
    """A text without blanks around it. Raises `BadInput` where there is none."""
    if not isinstance(given, str) or not given.strip():
        raise BadInput(f"there is no {name}", given=None if isinstance(given, str) else repr(given), fix="type one")
    return given.strip()


def _column(ds: xr.Dataset, site: str, unit: int) -> np.ndarray:
    """(s t) one neuron in the conditional branch."""
    values = ds[reducer_of(ds)].sel(branch="cond").isel(neuron=place_of(ds, site, unit))
    return np.asarray(values.transpose("sample", "step").values, np.float64)
