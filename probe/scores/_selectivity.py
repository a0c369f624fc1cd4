"""selectivity: what is this neuron for? Every concept of one recording against all the others, neuron by neuron."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from probe import _axis, formats, provenance
from probe._map_files import read_dataset, write_dataset
from probe._neuron_map import NeuronMap
from probe._options import validated
from probe.errors import BadInput, unknown_name
from probe.scores import _ranks as ranks
from probe.scores._runs import recorded, shared_identity
from probe.scores._shown import only_those_shown
from probe.scores._window import WindowMeans, measured, pieces_of


class Selectivity:
    """AUROC of every neuron for every concept of one recording, each against all the others.

    ``dataset`` has ``auroc`` (concept, neuron) float32, NaN where not measured, and the coordinates ``concept``,
    ``samples`` (concept), ``site, unit, fan_out`` (neuron). Weighted by pairs of samples, the AUROCs of a neuron over
    all concepts have the mean 1/2: a neuron that stands out for some concepts is below chance for others.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self.dataset = dataset
        self.sites = _axis.sites_of(dataset)

    @property
    def concepts(self) -> list[str]:
        """Names, in order of first appearance in the recording."""
        return [str(name) for name in self.dataset["concept"].values]

    @property
    def samples(self) -> dict[str, int]:
        """How many samples each concept has."""
        return dict(zip(self.concepts, map(int, self.dataset["samples"].values), strict=True))

    @property
    def provenance(self) -> dict[str, Any]:
        """``identity``, ``info`` and ``id``."""
        found: dict[str, Any] = json.loads(self.dataset.attrs["provenance"])
        return found

    @property
    def id(self) -> str:
        """Hash of the identity."""
        return str(self.provenance["id"])

    def neuron(self, site: str, unit: int) -> pd.Series:
        """What one neuron is for: its AUROC by concept, highest first. Raises `UnknownName` or `BadInput`."""
        names = [s.name for s in self.sites]
        if site not in names:
            raise unknown_name("site of the table", site, names)
        chosen = self.sites[names.index(site)]
        if not 0 <= unit < chosen.width:
            raise BadInput("a unit is outside its site", given=unit, expected=f"0 to {chosen.width - 1}")
        place = _axis.offsets(self.sites)[names.index(site)] + unit
        values = self.dataset["auroc"].isel(neuron=place).values
        return pd.Series(values, index=self.concepts, name=f"{site}[{unit}]").sort_values(ascending=False)

    def to_dataframe(self, threshold: float = 0.8) -> pd.DataFrame:
        """One row a neuron: site, unit, the concept it separates best, that AUROC, and for how many it reaches
        ``threshold``.
        """
        auroc = self.dataset["auroc"].values
        filled = np.where(np.isnan(auroc), -1, auroc)
        best = filled.argmax(0)
        sites = np.array([site.name for site in self.sites], object)
        return pd.DataFrame(
            {
                "site": sites[self.dataset["site"].values],
                "unit": self.dataset["unit"].values,
                "concept": np.array(self.concepts, object)[best],
                "auroc": np.take_along_axis(auroc, best[None], 0)[0],
                "concepts": (filled >= threshold).sum(0),
            }
        )

    def neuron_map(
        self, concepts: str | Sequence[str] | None = None, *, threshold: float = 0.8, at_least: int = 1
    ) -> NeuronMap:
        """A neuron map that selects the neurons with an AUROC >= ``threshold`` for ``at_least`` of these concepts.

        Its score is the largest AUROC among them; ``concepts=None`` means all. ``concept_prune(keep=...)`` spares the
        selected: ``keep=table.neuron_map(["castle", "tower"])``.

        Raises `UnknownName` for a concept that was not recorded, `BadInput` for numbers that make no sense.
        """
        chosen = self.concepts if concepts is None else [concepts] if isinstance(concepts, str) else list(concepts)
        if missing := [name for name in chosen if name not in self.concepts]:
            raise unknown_name("concept of the table", missing[0], self.concepts)
        if not 1 <= at_least <= len(chosen):
            raise BadInput("at_least is a number of these concepts", given=at_least, expected=f"1 to {len(chosen)}")
        if not 0 < threshold <= 1:
            raise BadInput("a threshold of AUROC lies in (0, 1]", given=threshold)
        auroc = self.dataset["auroc"].values[[self.concepts.index(name) for name in chosen]]
        filled = np.where(np.isnan(auroc), -1, auroc)
        score = np.where(np.isnan(auroc).all(0), np.nan, filled.max(0))
        identity = self.provenance["identity"]
        t_max, t_min = identity["options"]["window"]
        step = {"concepts": chosen, "threshold": threshold, "at_least": at_least}
        return NeuronMap.build(
            method="selectivity",
            score=score[None],
            windows=[(t_max, t_min)],
            sites=self.sites,
            identity={**identity, "selection": [{"of": self.id, **step}]},
            fan_out=self.dataset["fan_out"].values,
            selected=((filled >= threshold).sum(0) >= at_least)[None],
        )

    def generalists(self, *, threshold: float = 0.8, at_least: int = 3) -> NeuronMap:
        """Neurons that stand out for several concepts (ours): see `neuron_map`."""
        return self.neuron_map(threshold=threshold, at_least=at_least)

    def generalist_share(self, *, threshold: float = 0.8, at_least: int = 3) -> float:
        """Share of the measured neurons that are generalists."""
        nm = self.generalists(threshold=threshold, at_least=at_least)
        known = ~np.isnan(nm.dataset["score"].values[0])
        return float(nm.selected()[known].mean()) if known.any() else float("nan")

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a zarr folder, or one file when the name ends in ``.zarr.zip``; raises as `NeuronMap.save`."""
        path = Path(path)
        write_dataset(self.dataset.assign_attrs(formats.header("selectivity")), path, "selectivity", force=force)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Selectivity:
        """Read a saved table. Raises `BadInput` for no or another file, `StoreDamaged` for a torn one."""
        dataset = read_dataset(Path(path), "selectivity")
        for key in formats.header("selectivity"):
            del dataset.attrs[key]
        names = dataset["concept"].astype(object)
        return cls(dataset.assign_coords(concept=names))

    def __repr__(self) -> str:
        return f"<Selectivity {self.id}: {len(self.concepts)} concepts x {self.dataset.sizes['neuron']} neurons>"

    def _repr_html_(self) -> str:
        frame = self.to_dataframe()
        style: dict[str, Any] = {"index": False, "border": 0, "escape": True, "float_format": "{:.3g}".format}
        own = frame[frame["auroc"] >= 0.8].groupby("concept").size()
        counts = pd.DataFrame({"concept": self.concepts, "samples": self.dataset["samples"].values})
        counts["neurons from 0.8 on"] = counts["concept"].map(own).fillna(0).astype(int)
        best = frame.nlargest(5, "auroc").to_html(**style)
        title, listed = escape(repr(self).strip("<>")), counts.to_html(**style)
        return f"<b>{title}</b><details><summary>concepts</summary>{listed}</details>most selective{best}"


@validated
def selectivity(
    run: Any,
    *,
    window: tuple[float, float] = (999, 0),
    branches: Literal["cond", "both"] = "cond",
    reducer: str = "absmean",
    only_shown: bool | float = False,
    group: str = "unet",
) -> Selectivity:
    """AUROC of every neuron for every concept of a recording, one against the rest, ties counted half (ours).

    Samples are labelled by their coordinate ``concept``. Record them with a table of prompts that has this column.

    Args:
        run: a path, `probe.Run` or dataset, with the reducer.
        window: timesteps (t_max, t_min), both included, that are averaged.
        branches: the conditional branch, or the mean of both.
        reducer: what is compared; ``absmean`` is mean |x| over image tokens.
        only_shown: count only samples on which the judge saw their own concept: True for the judge's thresholds, or the
            score from which on it did.
        group: the group of the run; a text encoder's has no steps.

    Raises `BadInput` for fewer than two concepts, for a concept of a single sample, a window without steps and a run
    without the reducer; `StoreDamaged` for chunks that cannot be read.
    """
    source = only_those_shown(recorded(run, group, reducer), only_shown)
    means = WindowMeans.of(source, reducer, window, branches)
    names, label = _labels(means.coordinate("concept"))
    auroc = np.empty((len(names), source.n_neurons), np.float32)
    for piece in pieces_of(source.sites, source.n_samples):
        x = means.read(piece)
        known = measured(x)
        auroc[:, piece] = ranks.one_vs_rest(x[known], label[known], len(names))
    options = {
        "window": list(means.windows[0]),
        "branches": branches,
        "reducer": reducer,
        "only_shown": only_shown,
        "group": group,
    }
    identity = {
        "method": "selectivity",
        "options": options,
        "target": source.reference_json(),
        **shared_identity(source),
    }
    return Selectivity(
        xr.Dataset(
            {"auroc": (("concept", "neuron"), auroc)},
            coords={
                "concept": ("concept", np.array(names, object)),
                "samples": ("concept", np.bincount(label, minlength=len(names))),
                **_axis.coordinates(source.sites),
                "fan_out": ("neuron", source.fan_out),
            },
            attrs={
                "sites": _axis.describe(source.sites),
                "provenance": json.dumps(provenance.stamp(identity)),
            },
        )
    )


def _labels(concepts: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The concepts in order of first appearance, and each sample's place among them."""
    place: dict[str, int] = {}
    label = np.array([place.setdefault(str(name), len(place)) for name in concepts])
    names, counts = list(place), np.bincount(label)
    fix = "record a table of prompts with a column concept"
    if len(names) < 2:
        raise BadInput("selectivity needs several concepts", given=f"{len(names)}: {names[0]!r}", fix=fix)
    if alone := [name for name, count in zip(names, counts, strict=True) if count < 2]:
        raise BadInput("a concept needs at least two samples", given=alone[0], fix="record more prompts of it")
    return names, label
