"""From what a caller asks to keep to the groups of a run: names resolved, everything checked before the first image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from probe._kept import Kept, Mapped, Probabilities, Projections, Reduced
from probe._neuron_map import NeuronMap
from probe._reduce import Reducer, reducer
from probe._sites import Site
from probe._sites import sites as find_sites
from probe.errors import BadInput, unknown_name

Maps = Mapping[str, Any] | NeuronMap | None

#: Kinds of site whose activations can be mapped whole.
_MAPPED = ("ffn", "xattn.out", "mlp")


def selection(
    pipe: Any,
    *,
    sites: str | Sequence[str],
    reduce: str | Sequence[str],
    topk: int,
    maps: Maps,
    heads: Sequence[int] | None,
    tokens: Sequence[int | str] | None,
) -> tuple[Kept, ...]:
    """The groups of a run, see `probe.record` for the arguments. Raises `BadInput` and `UnknownName`."""
    chosen = find_sites(pipe, sites)
    kept: list[Kept] = [
        *_reduced(chosen, [reducer(name, topk=topk) for name in _names(reduce)]),
        *(Projections(name[-1], own) for name in ("xattn.k", "xattn.v") if (own := _of(chosen, name))),
        *_probabilities(pipe, _of(chosen, "xattn.prob"), heads, tokens),
        *_mapped(pipe, maps),
    ]
    return tuple(kept)


def _of(sites: Sequence[Site], kind: str) -> list[Site]:
    return [site for site in sites if site.kind == kind]


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))


def _reduced(sites: Sequence[Site], reducers: Sequence[Reducer]) -> list[Reduced]:
    groups: dict[str, list[Site]] = {}
    for site in sites:
        if name := {"ffn": "unet", "xattn.out": "xattn_out", "mlp": site.component}.get(site.kind):
            groups.setdefault(name, []).append(site)
    if groups and not reducers:
        raise BadInput("record needs at least one reducer", fix="leave reduce= out for the default")
    return [Reduced(name, own, reducers) for name, own in groups.items()]


def _probabilities(
    pipe: Any, sites: Sequence[Site], heads: Sequence[int] | None, tokens: Sequence[int | str] | None
) -> list[Probabilities]:
    for name, given in (("heads", heads), ("tokens", tokens)):
        if given is not None and not sites:
            fix = f"add xattn.prob to sites=, or leave {name}= out"
            raise BadInput(f"{name}= chooses from attention probabilities, and none are kept", given=given, fix=fix)
        if given is not None and (len(given) == 0 or len(set(given)) != len(given)):
            raise BadInput(f"{name}= is a list of different ones, or left out for all", given=list(given))
    length = pipe.tokenizer.model_max_length
    for token in tokens or ():
        if isinstance(token, int) and not 0 <= token < length:
            raise BadInput(
                "there is no such token", given=token, expected=f"0 to {length - 1}, or a word of the prompts"
            )
        if isinstance(token, str) and not token.strip():
            raise BadInput("a word is not empty", given=repr(token))
    for site in sites:
        if beyond := [head for head in heads or () if not 0 <= head < site.width]:
            raise BadInput(f"{site.name} has no such head", given=beyond[0], expected=f"0 to {site.width - 1}")
    every = tuple(range(length)) if tokens is None else tuple(tokens)
    return [Probabilities(site, tuple(range(site.width)) if heads is None else tuple(heads), every) for site in sites]


def _mapped(pipe: Any, maps: Maps) -> list[Mapped]:
    if maps is None:
        return []
    if isinstance(maps, NeuronMap):
        selected, offsets = maps.selected(), maps.offsets
        parts = zip(maps.sites, offsets, offsets[1:], strict=False)
        maps = {site.name: found for site, a, b in parts if (found := selected[a:b].nonzero()[0].tolist())}
    units: dict[Site, set[int] | None] = {}
    for pattern, given in maps.items():
        sites = find_sites(pipe, pattern)
        wanted = _units(given)
        for site in sites:
            _check_units(site, wanted)
            before = units.get(site, set())
            units[site] = None if wanted is None or before is None else before | wanted
    order = [site for site in find_sites(pipe, "*") if site in units]
    return [Mapped(site, None if (own := units[site]) is None else tuple(sorted(own))) for site in order]


def _units(given: Any) -> set[int] | None:
    """Positions in a site, or None for all of them."""
    if isinstance(given, str):
        if given != "full":
            raise unknown_name("way to map a site", given, ("full",))
        return None
    listed = list(given) if isinstance(given, Iterable) else [given]
    if not listed or not all(isinstance(unit, int) for unit in listed):
        raise BadInput("a site is mapped with a list of its units, or full", given=repr(given))
    return set(listed)


def _check_units(site: Site, units: set[int] | None) -> None:
    if site.kind not in _MAPPED:
        fix = "sites= with heads= and tokens=" if site.kind == "xattn.prob" else f"sites={site.kind!r}"
        raise BadInput("sites of this kind are kept otherwise", given=site.name, expected=", ".join(_MAPPED), fix=fix)
    if units and (beyond := [unit for unit in sorted(units) if not 0 <= unit < site.width]):
        raise BadInput(f"{site.name} has no such unit", given=beyond[0], expected=f"0 to {site.width - 1}")
