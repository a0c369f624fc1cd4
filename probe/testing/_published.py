"""What published models are made of, as facts: configs of their UNets and text encoders, and these on meta tensors.

Only what decides the architecture is listed; everything else is at the libraries' defaults. A meta tensor has a shape
and no values, so SDXL's 2.6 billion UNet parameters cost nothing here.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

from probe import compat
from probe.errors import unknown_name

_SD_BLOCKS = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}

#: OpenAI's CLIP ViT-L/14, the encoder of SD 1.x and SDXL's first.
_CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}

#: kind -> component -> the arguments of its config. SD 2.1 is the 768-pixel model, which predicts v.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        # a key that holds the *number* of heads in every SD, whatever its name says
        "unet": {**_SD_BLOCKS, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        "text_encoder": _CLIP_L,
    },
    "sd21": {
        "unet": {
            **_SD_BLOCKS,
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        # OpenCLIP ViT-H/14 less its last layer
        "text_encoder": {
            **_CLIP_L,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "hidden_act": "gelu",
            "projection_dim": 512,
        },
    },
    "sdxl": {
        "unet": {
            "sample_size": 128,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (320, 640, 1280),
            "layers_per_block": 2,
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,  # the two encoders side by side: 768 + 1280
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,  # pooled text, 1280, and six numbers of 256 each
        },
        "text_encoder": _CLIP_L,
        # OpenCLIP ViT-bigG/14
        "text_encoder_2": {
            **_CLIP_L,
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "hidden_act": "gelu",
            "projection_dim": 1280,
        },
    },
}


def published_config(kind: str, component: str = "unet") -> dict[str, Any]:
    """The arguments that describe a component of a published model: a copy that may be changed.

    ``kind`` is ``"sd15"``, ``"sd21"`` (768 pixels) or ``"sdxl"`` (base); ``component`` is ``unet``, ``text_encoder`` or
    ``text_encoder_2``. For `UNet2DConditionModel` and `CLIPTextConfig`. Raises `UnknownName`.
    """
    if kind not in PUBLISHED:
        raise unknown_name("published model", kind, PUBLISHED)
    if component not in PUBLISHED[kind]:
        raise unknown_name(f"component of {kind}", component, PUBLISHED[kind])
    return copy.deepcopy(PUBLISHED[kind][component])


def meta_pipeline(kind: str = "sd15") -> SimpleNamespace:
    """The UNet and text encoders of a published model at full size on meta tensors: shapes and names, no values.

    Enough for `probe.sites` and whatever else asks a pipeline for its components only; it cannot be called.
    """
    import torch

    with compat.quiet_libraries():
        from diffusers import UNet2DConditionModel

    names = PUBLISHED[kind] if kind in PUBLISHED else published_config(kind)  # which raises
    with torch.device("meta"):
        parts = {name: text_encoder(name, **published_config(kind, name)) for name in names if name != "unet"}
        unet: Any = UNet2DConditionModel(**published_config(kind))
    return SimpleNamespace(**parts, unet=unet.eval())


def text_encoder(component: str, **config: Any) -> Any:
    """A CLIP text encoder with random weights; SDXL's second one also projects its pooled output."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    model: Any = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
    return model(CLIPTextConfig(**config)).eval()
