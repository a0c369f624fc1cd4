"""Where a pipeline's activations can be read: named places, found by class, listed in order of execution."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from probe import compat
from probe.errors import BadInput, UnknownName, WrongModel, nearest

if TYPE_CHECKING:
    from torch import nn

#: Kinds of site, in the order in which one transformer block reaches them.
KINDS = ("xattn.k", "xattn.v", "xattn.prob", "xattn.out", "mlp", "ffn")

COMPONENTS = ("text_encoder", "text_encoder_2", "unet")


@dataclass(frozen=True)
class Site:
    """One addressable place of activations.

    - ``name``: ``<component>.<block path>.<kind>``, the same on every library version
    - ``kind``: ``ffn``: what enters the last Linear of a UNet feed-forward (post-gate neurons); ``mlp``: the same in a
      text encoder; ``xattn.k``, ``xattn.v``, ``xattn.out``: outputs of a cross-attention's Linears; ``xattn.prob``:
      its attention probabilities, one unit a head
    - ``component``: attribute of the pipeline; ``module``: where to hook inside it, on *this* library version
    - ``io``: ``"input"``, ``"output"`` or, where no hook sees it, ``"processor"``
    - ``width``: number of units; ``order``: position in execution among the component's sites of this kind
    """

    name: str
    kind: str
    component: str
    module: str
    io: str
    width: int
    order: int

    def resolve(self, pipe: Any) -> nn.Module:
        """The module to hook in ``pipe``; `WrongModel` when it has none of that name and width."""
        try:
            module: nn.Module = getattr(pipe, self.component).get_submodule(self.module)
        except AttributeError:
            raise WrongModel("the pipeline has no such site", given=self.name) from None
        if self.io == "input" and getattr(module, "in_features", self.width) != self.width:
            found = f"{module.in_features} units"
            raise WrongModel(f"site {self.name} has another width", given=found, expected=f"{self.width} units")
        return module

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Site:
        """The site of a dict made by `to_json`; further keys (a store adds offset and rows) are ignored."""
        return cls(**{f.name: value[f.name] for f in fields(cls)})


def sites(pipe: Any, select: str | Sequence[str] = "ffn") -> list[Site]:
    """The sites of a pipeline that ``select`` names, each once, in order of execution (text encoders, then UNet).

    Args:
        pipe: a pipeline with ``unet`` and ``text_encoder``.
        select: a kind (``"ffn"``), a glob over the whole name (``"unet.mid_block.*"``), a name, or a list of these.

    Raises `UnknownName` with the nearest kinds and names when a part of ``select`` matches nothing, and `BadInput` for
    what is no pipeline or is compiled.
    """
    every = _all_sites(pipe)
    chosen: set[str] = set()
    for pattern in [select] if isinstance(select, str) else select:
        matches = {site.name for site in every if pattern == site.kind or fnmatchcase(site.name, pattern)}
        if not matches:
            kinds = dict.fromkeys(site.kind for site in every)
            raise UnknownName(
                "unknown site",
                given=repr(pattern),
                expected=f"a kind ({', '.join(kinds)}), one of {len(every)} site names, or a glob over whole names",
                nearest=nearest(pattern, [*kinds, *(site.name for site in every)]),
            )
        chosen |= matches
    return [site for site in every if site.name in chosen]


def _all_sites(pipe: Any) -> list[Site]:
    present = [name for name in COMPONENTS if getattr(pipe, name, None) is not None]
    if "unet" not in present:
        raise BadInput("sites are found in a pipeline with a UNet", given=type(pipe).__name__)
    found: list[Site] = []
    for name in present:
        component = getattr(pipe, name)
        compat.refuse_compiled(component, name)
        places = _unet_places(component) if name == "unet" else _text_places(component)
        orders = dict.fromkeys(KINDS, 0)
        for block, kind, module, io, width in places:
            path = compat.canonical_name(name, block)
            found.append(Site(f"{name}.{path}.{kind}", kind, name, module, io, width, orders[kind]))
            orders[kind] += 1
    return found


_Place = tuple[str, str, str, str, int]  # block, kind, module, io, width


def _unet_places(unet: nn.Module) -> Iterator[_Place]:
    from diffusers.models.attention import BasicTransformerBlock

    blocks = {name: m for name, m in unet.named_modules() if isinstance(m, BasicTransformerBlock)}
    for name in _execution_order(unet, set(blocks)):
        block: Any = blocks[name]
        if (attention := getattr(block, "attn2", None)) is not None:
            yield name, "xattn.k", f"{name}.attn2.to_k", "output", attention.to_k.out_features
            yield name, "xattn.v", f"{name}.attn2.to_v", "output", attention.to_v.out_features
            yield name, "xattn.prob", f"{name}.attn2", "processor", attention.heads
            yield name, "xattn.out", f"{name}.attn2", "output", attention.to_out[0].out_features
        # the last child with in_features: a final Dropout may follow it, and an adapter may have wrapped the Linear
        index, linear = [(i, m) for i, m in enumerate(block.ff.net) if hasattr(m, "in_features")][-1]
        yield name, "ffn", f"{name}.ff.net.{index}", "input", linear.in_features


def _text_places(encoder: nn.Module) -> Iterator[_Place]:
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    layers = {name: m for name, m in encoder.named_modules() if isinstance(m, CLIPEncoderLayer)}
    for name in sorted(layers, key=_natural):  # a stack: its numbers are its order of execution
        layer: Any = layers[name]
        yield name, "mlp", f"{name}.mlp.fc2", "input", layer.mlp.fc2.in_features


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"\.", name)]


def _execution_order(unet: Any, blocks: set[str]) -> tuple[str, ...]:
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    unet_class: Any = type(unet)
    order = _meta_order(unet_class, json.dumps(config, sort_keys=True, default=str))
    if set(order) != blocks:
        raise WrongModel(
            "the UNet's transformer blocks differ from those its config describes",
            given=", ".join(sorted(blocks ^ set(order))[:3]),
            fix="load the UNet without changing its blocks",
        )
    return order


@lru_cache(maxsize=8)
def _meta_order(unet_class: Any, config: str) -> tuple[str, ...]:
    """Names of the transformer blocks as one forward reaches them.

    The forward runs on a twin made of meta tensors: it costs no memory, and no hook of the caller's UNet fires.
    Registration order would be down, up, mid.
    """
    import torch
    from diffusers.models.attention import BasicTransformerBlock

    with torch.device("meta"):
        twin: Any = unet_class.from_config(json.loads(config)).eval()
    seen: dict[str, None] = {}
    for name, module in twin.named_modules():
        if isinstance(module, BasicTransformerBlock):
            module.register_forward_pre_hook(lambda _module, _args, name=name: seen.setdefault(name))
    with torch.no_grad():
        twin(**compat.unet_inputs(twin.config, device="meta"))
    return tuple(seen)
