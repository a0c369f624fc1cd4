"""From a neuron map to the weights that its units feed: one `Layer` a site, in order of execution."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase import masks
from erase._places import locate
from probe import NeuronMap, Site, compat
from probe.errors import BadInput, WrongModel
from probe.provenance import fingerprint


@dataclass(frozen=True)
class Layer:
    """The outgoing Linear of a site: its canonical weight name, its weights (o n), and its units on the neuron axis."""

    site: Site
    param: str
    weight: Tensor
    units: slice


def map_of(nm: Any) -> NeuronMap:
    """A neuron map, or the one saved at a path. Raises `BadInput` for anything else, and as `NeuronMap.load`."""
    if isinstance(nm, str | Path):
        return NeuronMap.load(nm)
    if not isinstance(nm, NeuronMap):
        fix = "probe.score(target, reference) makes a map"
        raise BadInput("this is no neuron map", given=type(nm).__name__, expected="a NeuronMap or its path", fix=fix)
    return nm


def layers_of(pipe: Any, nm: NeuronMap) -> list[Layer]:
    """The layers behind the sites of a map, with the pipeline's own weights in float32 on the CPU.

    Raises `WrongModel` naming the key if the map was made on another model, or the site that ``pipe`` does not have;
    `BadInput` for a site whose units feed no Linear.
    """
    fingerprint(pipe).check(nm.provenance["identity"]["model"], "the neuron map")
    layers = []
    for site, start, stop in zip(nm.sites, nm.offsets, nm.offsets[1:], strict=False):
        if site.io != "input":
            raise BadInput(
                "only units that enter a Linear can be pruned",
                given=f"site {site.name}, the {site.io} of {site.module}",
                expected="sites of kind ffn or mlp",
            )
        param = f"{site.component}.{compat.canonical_name(site.component, site.module)}.weight"
        weight = locate(pipe, param).tensor.detach().float().cpu()
        if weight.ndim != 2 or weight.shape[1] != site.width:
            raise WrongModel(
                "a site of the map has another width here", given=f"{param} {list(weight.shape)}", expected=site.width
            )
        layers.append(Layer(site, param, weight, slice(start, stop)))
    return layers


def layer_report(mask: Tensor) -> dict[str, Any]:
    """What a mask (o n) does to its layer, as JSON values.

    ``row_share`` summarises, over the units that lose any weight, the share of output rows that select the unit.
    """
    share = mask.float().mean(dim=0)
    share = share[share > 0]
    summary = {
        "units": len(share),
        "mean": float(share.mean()) if len(share) else 0.0,
        "median": float(share.median()) if len(share) else 0.0,
        "max": float(share.max()) if len(share) else 0.0,
        "all_rows": int((share == 1).sum()),
    }
    return {"density": masks.density(mask), "masked": int(mask.sum()), "weights": mask.numel(), "row_share": summary}


def report(layers: Mapping[str, Tensor], **more: Any) -> dict[str, Any]:
    """Densities per layer and in all, beside whatever ``more`` an eraser measured; ``layers``: parameter -> mask."""
    rows = {param: layer_report(mask) for param, mask in layers.items()}
    masked, weights = (sum(row[key] for row in rows.values()) for key in ("masked", "weights"))
    return {"density": masked / max(weights, 1), "masked": masked, "weights": weights, "layers": rows, **more}


def stream(seed: int, param: str) -> torch.Generator:
    """Random numbers of one layer: they do not depend on which other layers take part."""
    word = hashlib.sha256(f"{seed}|{param}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(word, "little") >> 1)
