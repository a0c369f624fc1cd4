"""ConceptPrune: zero the weights that respond to a concept more than to its reference (arXiv 2405.19237, ICLR 2025)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from erase import masks
from erase._changes import Change, Delta, Mask
from erase._edit import Edit, make_edit
from erase.prune._keep import Keep
from erase.prune._layers import Layer, layers_of, map_of, report, stream
from probe import NeuronMap
from probe._options import validated
from probe.errors import BadInput


@validated
def concept_prune(
    pipe: Any,
    nm: NeuronMap | str | Path | Sequence[NeuronMap | str | Path],
    *,
    skill_ratio: float = 0.01,
    window: tuple[float, float] | None = (999, 821),
    first_steps: int | None = None,
    keep: Any = None,
    scope: Literal["row", "global"] = "row",
    margin: float = 0.0,
    vote: float = 0.0,
    reference_topk: Literal["ignored", "excluded"] = "ignored",
    precision: Literal["float32", "float16"] = "float32",
    fill_std: float = 0.0,
    seed: int = 0,
    name: str | None = None,
) -> Edit:
    """The weights that are skilled for the concept of a ``wanda`` map, set to zero.

    Per step t and layer, with W (o n) the outgoing Linear of the feed-forward, n_target and n_reference the map's norms
    and k = int(``skill_ratio`` * n):

        S[i, j] = |W[i, j]| * n_target[j]                                 (Wanda score)
        M_t[i, j] = S[i, j] in the k largest of row i, and n_target[j] > n_reference[j]
        U[i, j] = sum over steps in the window of M_t[i, j] > ``vote`` * number of steps
        W'[i, j] = 0 where U[i, j]; biases stay

    With the defaults this is the published rule: top-k per output row, strict inequality, union over the first steps.
    It is computed in float32 with the pipeline's own weights, from a map that may come from disk.

    Args:
        pipe: the pipeline that the map was made on. It is read, not changed.
        nm: a map made by the score ``wanda``; whether it counted one branch or both, and means or sums, was decided
            there (``branches``, ``normalise``); or its path. Its selection is not read. Of several maps, a concept
            each, the masks are joined by OR.
        skill_ratio: k in (0, 1]; the paper uses 0.01 to 0.02.
        window: steps that count, as (first, last) timesteps of the scheduler, both included; None means all. The
            default is what the paper's first 10 of 50 PNDM steps cover, and 5 of 30 DDIM steps.
        first_steps: the same by number of steps; resolved to a window.
        keep: what must survive. A neuron map: its selected units are never masked. A run of protected prompts (a path,
            `probe.Run` or dataset): a unit is spared at every step where its norm there exceeds the target's (ours).
        scope: ``"global"`` takes the int(k * weights) largest of the layer together (ours).
        margin: ask for n_target > (1 + margin) * n_reference (ours).
        vote: in [0, 1), strict; 0 is the union, 0.5 a majority (``select_ratio`` of the released code).
        reference_topk: ``"excluded"`` spares what is in the top-k of the reference too; the released code computes that
            top-k and ignores it.
        precision: ``"float16"`` reproduces the released arithmetic, in which products tie.
        fill_std: fill with normal noise of this many standard deviations of the layer's weights instead of zeros, whose
            places tell which weights carried the concept (defence against "Roots Beneath the Cut"; ours as an option).
        seed: of that noise.
        name: ``concept_prune`` by default.

    Returns an edit of masks (deltas with ``fill_std``). Its ``report`` has the density per layer and in all, and the
    share of output rows that select a unit.

    Raises `BadInput` for a skill ratio that selects nothing in some layer (naming the smallest that does), a window
    without steps (listing those there are), a map without norms; `WrongModel` for a map of another model.
    """
    _in_range(skill_ratio=(skill_ratio, 0 < skill_ratio <= 1, "in (0, 1]"), vote=(vote, 0 <= vote < 1, "in [0, 1)"))
    _in_range(margin=(margin, 0 <= margin < math.inf, ">= 0"), fill_std=(fill_std, 0 <= fill_std < math.inf, ">= 0"))
    several: Iterable[Any] = nm if isinstance(nm, Iterable) and not isinstance(nm, str) else [nm]
    maps = [map_of(one) for one in several]
    if not maps:
        raise BadInput("there is no neuron map to prune from", fix="give at least one")
    rule = Rule(skill_ratio, scope, margin, vote, reference_topk == "excluded", precision == "float16")
    parts = [masks_of(pipe, one, rule, steps_in(one, window, first_steps)[1], keep) for one in maps]
    resolved, steps = steps_in(maps[0], window, first_steps)
    found: dict[str, Tensor] = {}
    weights = {}
    for layer, mask in (pair for part in parts for pair in part.layers):
        found[layer.param] = found[layer.param] | mask if layer.param in found else mask
        weights[layer.param] = layer.weight
    options = {
        "skill_ratio": skill_ratio,
        "window": resolved,
        "scope": scope,
        "margin": margin,
        "vote": vote,
        "reference_topk": reference_topk,
        "precision": precision,
        "fill_std": fill_std,
        "seed": seed if fill_std else None,
    }
    timesteps = [maps[0].windows[t] for t in steps]
    per_row = {layer.param: count for part in parts for (layer, _), count in zip(part.layers, part.counts, strict=True)}
    one = len(maps) == 1
    more = {} if one else {"concepts": {m.id: report(dict(part.named)) for m, part in zip(maps, parts, strict=True)}}
    return make_edit(
        pipe,
        [_change(param, weights[param], mask, fill_std, seed) for param, mask in found.items()],
        name=name or "concept_prune",
        method="concept_prune",
        options=options,
        inputs={"map": maps[0].id if one else [m.id for m in maps], "keep": parts[0].kept.source},
        report=report(
            found, steps=len(steps), timesteps=timesteps, per_row=per_row if scope == "row" else None, **more
        ),
    )


@dataclass(frozen=True)
class Rule:
    """Which weights are skilled: see `concept_prune`."""

    skill_ratio: float
    scope: str = "row"
    margin: float = 0.0
    vote: float = 0.0
    exclude_reference_topk: bool = False
    by_products: bool = False

    def at(self, layer: Layer, count: int, target: Tensor, reference: Tensor) -> Tensor:
        """The skilled weights (o n) of a layer at one step."""
        rule = masks.skilled_by_products if self.by_products else masks.skilled
        return rule(
            layer.weight,
            target,
            reference,
            count,
            scope=self.scope,
            margin=self.margin,
            exclude_reference_topk=self.exclude_reference_topk,
        )


@dataclass(frozen=True)
class Masks:
    """The masks (o n) of one map, and how many weights the skill ratio selects in each layer."""

    layers: list[tuple[Layer, Tensor]]
    counts: list[int]
    kept: Keep

    @property
    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Parameter and mask."""
        return ((layer.param, mask) for layer, mask in self.layers)


def masks_of(pipe: Any, nm: NeuronMap, rule: Rule, steps: Sequence[int], keep: Any) -> Masks:
    """The masks of a map, joined over ``steps`` (positions of its windows)."""
    target, reference = norms(nm)
    layers = layers_of(pipe, nm)
    counts = _counts(layers, rule.skill_ratio, rule.scope)
    kept = Keep.of(keep, nm, pipe)
    found = []
    for layer in layers:
        votes = torch.zeros(layer.weight.shape, dtype=torch.int32)
        for t in steps:
            n_target, n_reference = target[t, layer.units], reference[t, layer.units]
            mask = rule.at(layer, counts[layer.param], n_target, n_reference)
            votes += mask & ~kept.spared(layer.site, t, n_target)
        found.append((layer, masks.vote(votes, len(steps), rule.vote)))
    return Masks(found, [counts[layer.param] for layer in layers], kept)


def norms(nm: NeuronMap) -> tuple[Tensor, Tensor]:
    """Target and reference norms, each (window, neuron), float32."""
    missing = [key for key in ("target", "reference") if key not in nm.dataset]
    if nm.method != "wanda" or missing:
        raise BadInput(
            "ConceptPrune needs the norms of a wanda map",
            given=f"a {nm.method} map" + (f" without {missing[0]}" if missing else ""),
            fix='probe.score(target, reference, method="wanda"), or erase.prune_neurons for any selection',
        )
    data = (nm.dataset[key].transpose("window", "neuron").values for key in ("target", "reference"))
    target, reference = (torch.from_numpy(np.array(values, np.float32)) for values in data)
    return target, reference


def steps_in(
    nm: NeuronMap, window: tuple[float, float] | None, first_steps: int | None
) -> tuple[list[float], list[int]]:
    """The window as timesteps, and the positions of the map's windows inside it."""
    times = nm.windows
    if first_steps is not None:
        if window not in (None, (999, 821)):
            raise BadInput("window and first_steps say the same thing twice", given=f"{window}, {first_steps}")
        if not 1 <= first_steps <= len(times):
            raise BadInput("first_steps", given=first_steps, expected=f"1 to {len(times)}, the steps of the map")
        window = max(t for t, _ in times[:first_steps]), min(t for _, t in times[:first_steps])
    elif window is None:
        window = max(t for t, _ in times), min(t for _, t in times)
    t_max, t_min = float(window[0]), float(window[1])
    inside = [i for i, (first, last) in enumerate(times) if t_min <= last and first <= t_max]
    if not inside:
        every = ", ".join(f"{first:g}" if first == last else f"({first:g}, {last:g})" for first, last in times)
        raise BadInput(
            "no step of the map lies in the window",
            given=f"window=({t_max:g}, {t_min:g})",
            expected=f"timesteps of the map: {every}",
            fix="window=(t_max, t_min) with both ends included, or window=None for all steps",
        )
    if first_steps is not None and len(inside) != first_steps:
        fix = f"first_steps={len(inside)}, or a window of timesteps"
        raise BadInput("first_steps parts calls with the same timestep", given=first_steps, fix=fix)
    return [t_max, t_min], inside


def _counts(layers: list[Layer], skill_ratio: float, scope: str) -> dict[str, int]:
    """Parameter -> number of weights that the skill ratio selects, per row or in the layer."""
    sizes = {layer.param: layer.weight.shape[1] if scope == "row" else layer.weight.numel() for layer in layers}
    counts = {param: masks.selected(skill_ratio, size) for param, size in sizes.items()}
    if empty := [param for param, count in counts.items() if count < 1]:
        smallest = masks.smallest_ratio(list(sizes.values()))
        raise BadInput(
            f"skill_ratio selects no weight of {empty[0]}",
            given=f"int({skill_ratio} * {sizes[empty[0]]}) = 0",
            expected=f"at least {smallest}",
            fix=f"skill_ratio={smallest} is the smallest that selects a weight in every layer",
        )
    return counts


def _change(param: str, weight: Tensor, mask: Tensor, fill_std: float, seed: int) -> Change:
    if not fill_std:
        return Mask.of(param, mask)
    noise = torch.randn(mask.shape, generator=stream(seed, param)) * (fill_std * weight.std())
    return Delta(param, torch.where(mask, noise - weight, 0))


def _in_range(**checks: tuple[float, bool, str]) -> None:
    for name, (value, good, expected) in checks.items():
        if not good:  # NaN among them
            raise BadInput(f"{name} is out of range", given=value, expected=expected)
