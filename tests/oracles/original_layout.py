"""The tiny pipeline under the names that CompVis' latent-diffusion code gives its tensors, written from that code."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]

RESNET: Rules = [
    (r"(resnets\.\d)\.norm1", r"\1.in_layers.0"),
    (r"(resnets\.\d)\.conv1", r"\1.in_layers.2"),
    (r"(resnets\.\d)\.norm2", r"\1.out_layers.0"),
    (r"(resnets\.\d)\.conv2", r"\1.out_layers.3"),
    (r"\.time_emb_proj", ".emb_layers.1"),
    (r"\.conv_shortcut", ".skip_connection"),
]

#: Two levels with one resnet each (two on the way up): input blocks are conv, resnet, down, resnet.
UNET: Rules = [
    *RESNET,
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^down_blocks\.0\.resnets\.0", "input_blocks.1.0"),
    (r"^down_blocks\.0\.attentions\.0", "input_blocks.1.1"),
    (r"^down_blocks\.0\.downsamplers\.0\.conv", "input_blocks.2.0.op"),
    (r"^down_blocks\.1\.resnets\.0", "input_blocks.3.0"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.1\.attentions\.(\d)", lambda m: f"output_blocks.{2 + int(m[1])}.1"),
    (r"^up_blocks\.0\.upsamplers\.0", "output_blocks.1.1"),
]

VAE: Rules = [
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_(\w)", r"mid.attn_1.\1"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
]


def original_layout(pipe) -> dict[str, torch.Tensor]:
    """All tensors of a tiny SD 1.5-shaped pipeline as one checkpoint of the original code."""
    tensors = {"model.diffusion_model." + _renamed(k, UNET): v for k, v in pipe.unet.state_dict().items()}
    for key, tensor in pipe.vae.state_dict().items():
        name = _renamed(key, VAE)
        is_linear = "attn_1" in name and tensor.ndim == 2  # the original has convolutions of one pixel there
        tensors["first_stage_model." + name] = (tensor[:, :, None, None] if is_linear else tensor).contiguous()
    for key, tensor in pipe.text_encoder.state_dict().items():
        tensors["cond_stage_model.transformer.text_model." + key.removeprefix("text_model.")] = tensor
    return tensors


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
