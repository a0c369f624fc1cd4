"""Which neurons a score that changes them one by one looks at."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from probe import _axis, provenance
from probe._choosing import over_windows
from probe._neuron_map import NeuronMap
from probe._sites import Site, sites
from probe.errors import BadInput, WorkbenchError, unknown_name

logger = logging.getLogger(__name__)

_EXPECTED = "neuron maps (objects or paths), units by site name, or None for the other methods' highest"


@dataclass(frozen=True)
class Candidates:
    """Places on the neuron axis of ``sites``, in the order in which they were nominated.

    ``by`` names who nominated how many: a method, a map's id, or ``named``. ``failed``: methods that could not.
    """

    sites: list[Site]
    places: list[int]
    by: dict[str, int]
    failed: dict[str, str]

    def unit(self, place: int) -> tuple[str, int]:
        """Site name and unit of a place."""
        ends = _axis.offsets(self.sites)
        at = int(np.searchsorted(ends, place, side="right")) - 1
        return self.sites[at].name, place - ends[at]


def chosen(
    pipe: Any, given: Any, *, from_each: int, most: int, nominate: Mapping[str, Callable[[], NeuronMap]]
) -> Candidates:
    """Candidates from what a caller gave, or by the methods of ``nominate`` where that is None.

    A map nominates its selection, or its ``from_each`` highest neurons without one. Maps take turns, best first, until
    there are ``most``; units given by name must be no more than that.

    Raises `BadInput` for too many units, none, or sites of several kinds, `UnknownName` for a site and `WrongModel` for
    a map that the pipeline does not have.
    """
    if given is None:
        return _by_methods(nominate, from_each, most)
    if isinstance(given, Mapping):
        return _named(pipe, given, most)
    listed = [given] if isinstance(given, str | Path | NeuronMap) else given
    if not isinstance(listed, Sequence) or not all(isinstance(one, str | Path | NeuronMap) for one in listed):
        raise BadInput("candidates are neurons", given=repr(given), expected=_EXPECTED)
    maps = [one if isinstance(one, NeuronMap) else NeuronMap.load(one) for one in listed]
    edited = bool(provenance.lineage(pipe))  # the weights are then others by design
    for nm in maps:
        model = nm.provenance["identity"]["model"]
        provenance.fingerprint(pipe).check({**model, "weights": {}} if edited else model, "the neuron map")
    return _taking_turns({nm.id: nm for nm in maps}, from_each, most, {})


def _by_methods(nominate: Mapping[str, Callable[[], NeuronMap]], from_each: int, most: int) -> Candidates:
    maps, failed = {}, {}
    for name, score in nominate.items():
        try:
            maps[name] = score()
        except WorkbenchError as error:
            logger.warning("%s nominates no candidates: %s", name, error)
            failed[name] = error.message
    if not maps:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        fix = "give candidates= (neuron maps, or units by site name)"
        raise BadInput("no other method could nominate candidates", given=reasons, fix=fix)
    return _taking_turns(maps, from_each, most, failed)


def _taking_turns(maps: Mapping[str, NeuronMap], from_each: int, most: int, failed: dict[str, str]) -> Candidates:
    if not maps:
        raise BadInput("there are no candidates", expected=_EXPECTED)
    first = next(iter(maps.values()))
    names = [site.name for site in first.sites]
    ranked = {}
    for name, nm in maps.items():
        if [site.name for site in nm.sites] != names:
            fix = "score the same sites with every method"
            raise BadInput("the candidates' maps hold different sites", given=f"{first!r}, {nm!r}", fix=fix)
        ranked[name] = _nominated(nm, from_each)
    by = dict.fromkeys(ranked, 0)
    places: dict[int, None] = {}
    for turn in zip_longest(*ranked.values()):
        for name, place in zip(ranked, turn, strict=True):
            if place is not None and place not in places and len(places) < most:
                places[place] = None
                by[name] += 1
    if not places:
        raise BadInput("the maps nominate no neuron", fix="nm.select(top=16), or another map")
    return Candidates(first.sites, list(places), by, failed)


def _nominated(nm: NeuronMap, count: int) -> list[int]:
    """Places of a map's selected neurons, or of its highest, best first; neurons without a score never."""
    score = over_windows(nm.dataset["score"].transpose("window", "neuron").values, "mean")
    order: Iterable[int] = (int(i) for i in np.argsort(-score, kind="stable"))
    if "selected" in nm.dataset:
        picked = nm.selected()
        return [place for place in order if picked[place]]
    return [place for place in order if np.isfinite(score[place])][:count]


def _named(pipe: Any, given: Mapping[Any, Any], most: int) -> Candidates:
    every = {site.name: site for site in sites(pipe, ["ffn", "mlp"])}
    for name in given:
        if name not in every:
            raise unknown_name("site", str(name), every)
    groups = {(every[name].component, every[name].kind) for name in given}
    if len(groups) != 1:
        kinds = ", ".join(f"{kind} of {component}" for component, kind in sorted(groups)) or "none"
        raise BadInput("candidates are neurons of one kind of site", given=kinds, fix="score each kind by itself")
    axis = [site for site in every.values() if (site.component, site.kind) in groups]
    starts = dict(zip([site.name for site in axis], _axis.offsets(axis), strict=False))
    places: dict[int, None] = {}
    for name, units in given.items():
        for unit in [units] if isinstance(units, int) else units:
            if not 0 <= int(unit) < every[name].width:
                expected = f"0 to {every[name].width - 1} at {name}"
                raise BadInput("a unit is outside its site", given=unit, expected=expected)
            places[starts[name] + int(unit)] = None
    if not 1 <= len(places) <= most:
        fix = f"most={len(places)}" if places else None
        raise BadInput("the number of candidates", given=len(places), expected=f"1 to {most}", fix=fix)
    return Candidates(axis, list(places), {"named": len(places)}, {})
