"""How many token rows a UNet site has, and on which grid of the image they lie, known before anything is drawn."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from probe import compat
from probe._sites import Site

Grid = tuple[int, int]


def latent_size(pipe: Any, size: Grid) -> Grid:
    """Height and width of the latents of images of that size in pixels."""
    return size[0] // pipe.vae_scale_factor, size[1] // pipe.vae_scale_factor


def grid_of(pipe: Any, site: Site, latent: Grid) -> Grid:
    """(y, x) of the token rows of a UNet site for latents of that size; the rows run over x first."""
    config = {k: v for k, v in pipe.unet.config.items() if not k.startswith("_")}
    unet_class: Any = type(pipe.unet)
    grids = _grids(unet_class, json.dumps(config, sort_keys=True, default=str), latent)
    return grids[site.module.split(".transformer_blocks.")[0]]


@lru_cache(maxsize=16)
def _grids(unet_class: Any, config: str, latent: Grid) -> dict[str, Grid]:
    """Spatial transformer -> the grid it works on, by one forward of a twin made of meta tensors.

    Measured and not computed: how a level halves an odd side is the UNet's business.
    """
    import torch
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    with torch.device("meta"):
        twin: Any = unet_class.from_config(json.loads(config)).eval()
    seen: dict[str, Grid] = {}

    def note(name: str, x: torch.Tensor) -> None:
        seen[name] = (x.shape[-2], x.shape[-1])

    for name, module in twin.named_modules():
        if isinstance(module, Transformer2DModel):
            module.register_forward_pre_hook(
                lambda _module, args, kwargs, name=name: note(name, args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
    inputs = compat.unet_inputs(twin.config, device="meta")
    inputs["sample"] = torch.zeros(1, twin.config.in_channels, *latent, device="meta")
    with torch.no_grad():
        twin(**inputs)
    return seen
