"""Names of tensors in the original Stable Diffusion layout (CompVis' latent-diffusion code), from diffusers' names.

Everything follows from the configs: which input or output block a level and a layer fall on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from probe.errors import BadInput

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}

_RESNET = (
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("time_emb_proj.", "emb_layers.1."),
    ("conv_shortcut.", "skip_connection."),
)
_OUTSIDE = (
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."),
    ("conv_in.", "input_blocks.0.0."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
)
_VAE_ATTENTION = (("group_norm.", "norm."), ("to_out.0.", "proj_out."), ("to_", ""))
_BLOCK = re.compile(r"(down|up|mid)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def original_names(component: str, names: Iterable[str], config: Any) -> dict[str, str]:
    """Canonical name -> name in the original layout, for all tensors of a component.

    ``component`` is ``unet``, ``vae`` or ``text_encoder`` (of SD 1.x). Raises `BadInput` for tensors that the layout
    has no name for.
    """
    if component not in PREFIXES:
        raise BadInput("the original layout has no such part", given=component, expected=", ".join(PREFIXES))
    rename = {"unet": _unet, "vae": _vae, "text_encoder": lambda name, _config: name}[component]
    found = {name: rename(name, config) for name in names}
    if unknown := [name for name, renamed in found.items() if renamed is None]:
        raise BadInput("the original layout has no name for a tensor", given=f"{component}.{unknown[0]}")
    return {name: PREFIXES[component] + str(renamed) for name, renamed in found.items()}


def original_shape(component: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor there: the VAE's attention has convolutions of one pixel where diffusers has Linears."""
    one_pixel = component == "vae" and ".attentions." in name and len(shape) == 2
    return (*shape, 1, 1) if one_pixel else shape


def _unet(name: str, config: Any) -> str | None:
    if (outside := _replaced(name, _OUTSIDE)) is not None:
        return outside
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    where, level, kind, layer, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    rest = _replaced(rest, _RESNET) or rest if kind == "resnets" else rest
    if where == "mid":
        return f"middle_block.{2 * layer if kind == 'resnets' else 2 * layer + 1}.{rest}"
    per_level = _layers(config)
    if where == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (per_level + 1)}.0.{rest.replace('conv.', 'op.')}"
        return f"input_blocks.{1 + level * (per_level + 1) + layer}.{int(kind == 'attentions')}.{rest}"
    block = level * (per_level + 1)
    if kind == "upsamplers":
        attends = "CrossAttn" in config["up_block_types"][level] or "Attn" in config["up_block_types"][level]
        return f"output_blocks.{block + per_level}.{2 if attends else 1}.{rest}"
    return f"output_blocks.{block + layer}.{int(kind == 'attentions')}.{rest}"


def _vae(name: str, config: Any) -> str | None:
    side, _, inner = name.partition(".")
    if side in ("quant_conv", "post_quant_conv"):
        return name
    inner = inner.replace("conv_norm_out.", "norm_out.")
    found = _BLOCK.fullmatch(inner)
    if found is None:
        return f"{side}.{inner}" if inner.startswith(("conv_in.", "conv_out.", "norm_out.")) else None
    where, level, kind, layer, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    rest = rest.replace("conv_shortcut.", "nin_shortcut.")
    if where == "mid":
        if kind == "resnets":
            return f"{side}.mid.block_{layer + 1}.{rest}"
        return f"{side}.mid.attn_{layer + 1}.{_replaced(rest, _VAE_ATTENTION) or rest}"
    if where == "up":
        level = len(config["block_out_channels"]) - 1 - level
    part = {"resnets": f"block.{layer}", "downsamplers": "downsample", "upsamplers": "upsample"}.get(kind)
    return None if part is None else f"{side}.{where}.{level}.{part}.{rest}"


def _replaced(name: str, rules: Iterable[tuple[str, str]]) -> str | None:
    """``name`` with the beginning that one of the rules knows exchanged; None where none does."""
    return next((new + name.removeprefix(old) for old, new in rules if name.startswith(old)), None)


def _layers(config: Any) -> int:
    layers = config["layers_per_block"]
    if not isinstance(layers, int):
        raise BadInput("the original layout has one number of layers for all levels", given=str(layers))
    return layers
