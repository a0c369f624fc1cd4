"""Which weights of the UNet are trained: groups by name, sites, patterns, or the neurons that a map selects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probe import NeuronMap, Site
from probe import sites as sites_of
from probe._paths import finding
from probe.errors import BadInput, nearest
from probe.provenance import fingerprint


@dataclass(frozen=True)
class Part:
    """A parameter of the UNet, whole, or some of its rows (``dim`` 0) or columns (``dim`` 1), by ``index``.

    ``param`` is canonical: ``unet.<path>``.
    """

    param: str
    dim: int | None = None
    index: tuple[int, ...] = ()

    def of(self, tensor: Tensor) -> Tensor:
        """This part of a tensor of the parameter's shape, as a copy."""
        return tensor.clone() if self.dim is None else tensor.index_select(self.dim, self._index(tensor))

    def put(self, whole: Tensor, values: Tensor) -> Tensor:
        """``whole`` with ``values`` in this part; gradients flow to both."""
        return values if self.dim is None else whole.index_copy(self.dim, self._index(whole), values)

    def _index(self, tensor: Tensor) -> Tensor:
        return torch.tensor(self.index, device=tensor.device)

    def to_json(self) -> Any:
        """What an identity keeps: the name, or the name and the rows or columns."""
        return self.param if self.dim is None else [self.param, ("rows", "columns")[self.dim], list(self.index)]


# --- Groups -----------------------------------------------------------------------------------------------------------

Test = Callable[[str, nn.Module], bool]


def _in(*words: str) -> Test:
    return lambda name, _owner: any(word in name for word in words)


def _all_but_cross_attention(name: str, _owner: nn.Module) -> bool:
    left_out = ("conv_norm_out.", "conv_out.", "time_embedding.", "time_proj.")
    return "attn2." not in name and not name.startswith(left_out)


def _released_u(name: str, owner: nn.Module) -> bool:
    return isinstance(owner, nn.Linear | nn.Conv2d) and "attn2." not in name


def _released_u_of_sdxl(name: str, owner: nn.Module) -> bool:
    return _released_u(name, owner) and "block" in name and "emb" not in name


#: Group -> whether a parameter (its path in the UNet, and the module that holds it) belongs to it.
GROUPS: dict[str, Test] = {
    "x": _in("attn2."),
    "x-strict": _in("attn2.to_k.", "attn2.to_v."),
    "u": _all_but_cross_attention,
    "u-release": _released_u,
    "self": _in("attn1."),
    "attn": _in("attn1.", "attn2."),
    "full": lambda _name, _owner: True,
}


def opened(train: Any) -> Any:
    """``train`` with a saved neuron map read: its path, or ``"emoji/<name>"``. Anything else as it is."""
    if isinstance(train, str) and (train in GROUPS or not finding(train, "neuron_map").exists()):
        return train
    return NeuronMap.load(train) if isinstance(train, str | Path) else train


def parts_of(pipe: Any, train: str | Sequence[str] | NeuronMap, *, weights_only: bool = False) -> list[Part]:
    """The parts that ``train`` names, each parameter once, in the order of the UNet's parameters.

    Args:
        pipe: the pipeline.
        train: a group of `GROUPS`; a kind of site (``ffn``); a glob over parameter names (``*.attn2.to_v.weight``, with
            or without ``unet.``) or over site names (``unet.mid_block.*.ffn``); a list of these; or a neuron map, whose
            selected units alone are trained: their outgoing weights (sites ``ffn``), or the rows that make them
            (``xattn.k, v, out``).
        weights_only: leave out biases and normalisation.

    Raises `BadInput` listing what would have matched where nothing does, `WrongModel` for a map of another model.
    """
    if isinstance(train, NeuronMap):
        return _parts_of_map(pipe, train)
    named = dict(_parameters(pipe.unet))
    wanted: set[str] = set()
    for pattern in [train] if isinstance(train, str) else train:
        found = _matching(pipe, named, pattern)
        if weights_only:
            found = {name for name in found if pipe.unet.get_parameter(name).ndim > 1}
        if not found:
            raise _nothing(pattern, named)
        wanted |= found
    return [Part(f"unet.{name}") for name in named if name in wanted]


def _parameters(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path of every parameter, and the module that holds it."""
    for path, module in unet.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            yield (f"{path}.{leaf}" if path else leaf), module


def _matching(pipe: Any, named: dict[str, nn.Module], pattern: str) -> set[str]:
    if pattern in GROUPS:
        test = GROUPS[pattern]
        if pattern == "u-release" and pipe.unet.config.addition_embed_type is not None:
            test = _released_u_of_sdxl
        return {name for name, owner in named.items() if test(name, owner)}
    found = {name for name in named if fnmatchcase(name, pattern) or fnmatchcase(f"unet.{name}", pattern)}
    for site in sites_of(pipe, ["unet.*"]):
        if pattern == site.kind or fnmatchcase(site.name, pattern):
            found |= {f"{module}.{leaf}" for module in _modules(site) for leaf in ("weight", "bias")} & named.keys()
    return found


def _modules(site: Site) -> list[str]:
    """Paths of the Linears that a site's units come from, or (``ffn``) go into."""
    if site.kind == "xattn.prob":
        return [f"{site.module}.to_q", f"{site.module}.to_k"]
    return [f"{site.module}.to_out.0"] if site.kind == "xattn.out" else [site.module]


def _nothing(pattern: str, named: dict[str, nn.Module]) -> BadInput:
    sizes = [f"{name} ({sum(test(n, owner) for n, owner in named.items())})" for name, test in GROUPS.items()]
    return BadInput(
        "no parameter of the UNet matches",
        given=repr(pattern),
        expected=f"a group with its number of parameters: {', '.join(sizes)}; a kind of site (ffn, xattn.k, ...);"
        " or a glob over parameters such as"
        f" {next((name for name in named if 'attn2' in name), next(iter(named)))}, or over site names",
        nearest=nearest(pattern.removeprefix("esd-"), [*GROUPS, *named]),
    )


# --- Neuron maps ------------------------------------------------------------------------------------------------------


def _parts_of_map(pipe: Any, nm: NeuronMap) -> list[Part]:
    fingerprint(pipe).check(nm.provenance["identity"]["model"], "the neuron map")
    chosen = nm.selected("any")
    parts = []
    for site, start, stop in zip(nm.sites, nm.offsets, nm.offsets[1:], strict=False):
        units = np.flatnonzero(chosen[start:stop])
        if not len(units):
            continue
        if site.component != "unet" or site.kind == "xattn.prob":
            expected = "sites ffn, xattn.k, xattn.v or xattn.out of the UNet"
            raise BadInput("the units of a site have no weights to train", given=site.name, expected=expected)
        site.resolve(pipe)
        index = tuple(int(unit) for unit in units)
        (module,) = _modules(site)
        parts.append(Part(f"unet.{module}.weight", 1 if site.io == "input" else 0, index))
    if not parts:
        raise BadInput("the neuron map selects no unit", fix="nm.select(top=50) first")
    return parts
