"""Tiny pipelines of the real classes: everything is small, nothing is mocked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probe import compat
from probe.errors import unknown_name

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

POSITIONS = 32
TEXT_WIDTH = 32

#: What sets the tiny relatives of a published model apart: SD 2.x predicts v and projects by Linear, not convolution.
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": {},
        "text_encoder": {"hidden_act": "quick_gelu"},
        "scheduler": {"prediction_type": "epsilon"},
    },
    "sd21": {
        "unet": {"use_linear_projection": True},
        "text_encoder": {"hidden_act": "gelu"},
        "scheduler": {"prediction_type": "v_prediction"},
    },
}


def tiny_pipeline(kind: str = "sd15", seed: int = 0) -> StableDiffusionPipeline:
    """A `StableDiffusionPipeline` with random weights, equal for equal seeds, on the CPU in float32 and eval mode.

    - tokenizer: CLIP's 512 byte tokens, no merges, BOS and EoT last, 32 positions
    - text encoder: 2 layers, 32 wide, MLP 64
    - UNet: latents 4 x 8 x 8; four transformer blocks: down (8 x 8 tokens, FF 128), mid (4 x 4, FF 256), up twice
      (8 x 8, FF 128); so sites are ragged in width and in tokens, and execution order differs from registration order
    - VAE: factor 2, images 16 x 16; DDIM as in SD 1.x; no safety checker

    The global random state is left as it was. Raises `UnknownName` for a kind not in `KINDS`.
    """
    if kind not in KINDS:
        raise unknown_name("kind of tiny pipeline", kind, KINDS)
    import torch

    with compat.quiet_libraries():
        from diffusers import DDIMScheduler, StableDiffusionPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = compat.clip_tokenizer(model_max_length=POSITIONS)
        text_encoder = _text_encoder(len(tokenizer), **KINDS[kind]["text_encoder"])
        unet = _unet(**KINDS[kind]["unet"])
        vae = _vae()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **KINDS[kind]["scheduler"],
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _text_encoder(vocab_size: int, **options: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
        **options,
    )
    return CLIPTextModel(config).eval()


def _unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,  # in SD 1.x this key holds the number of heads
        cross_attention_dim=TEXT_WIDTH,
        **options,
    ).eval()


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    ).eval()
