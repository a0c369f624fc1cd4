"""Tiny pipelines of the real classes: everything is small, nothing is mocked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from probe import compat
from probe.errors import unknown_name
from probe.testing._published import PUBLISHED, published_config, text_encoder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

POSITIONS = 32

#: The tiny relatives of published models, and what each of them says about its scheduler's predictions.
KINDS: dict[str, str] = {"sd15": "epsilon", "sd21": "v_prediction", "sdxl": "epsilon"}

Topology = Literal["tiny", "published"]
TOPOLOGIES: tuple[Topology, ...] = ("tiny", "published")


def tiny_pipeline(
    kind: str = "sd15", seed: int = 0, *, topology: Topology = "tiny"
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A Stable Diffusion pipeline with random weights, equal for equal seeds, on the CPU in float32 and eval mode.

    - ``"sd15"``; ``"sd21"`` predicts v and projects by Linear, not convolution; ``"sdxl"`` is a
      `StableDiffusionXLPipeline` with two text encoders, pooled text and sizes as further conditions, and zeros for a
      negative prompt that is not given
    - tokenizers: CLIP's 512 byte tokens, no merges, BOS and EoT last, 32 positions; SDXL's second one pads with "!"
    - VAE: factor 2, images 16 x 16; DDIM with the betas of SD; no safety checker, no watermark

    ``topology="tiny"``, milliseconds a forward:

    - text encoders: 2 layers, 32 wide, MLP 64; SDXL's second 48 wide, MLP 96, pooled to 24
    - UNet: latents 4 x 8 x 8. SD: four transformer blocks: down (8 x 8 tokens, FF 128), mid (4 x 4, FF 256), up twice
      (8 x 8, FF 128). SDXL: eleven: down (4 x 4, FF 128; then two at 2 x 2, FF 256), mid twice, up (2 x 2 four times,
      4 x 4 twice). So sites are ragged in width and in tokens, and execution order differs from registration order

    ``topology="published"``: the blocks, depth and heads of the published networks (16, 16 and 70 transformer blocks;
    12, 23 and 12 + 32 layers of text encoders) with few channels: 2 or more a head where those have 40 to 160.

    The global random state is left as it was. Raises `UnknownName` for a kind not in `KINDS`, and for a topology.
    """
    if kind not in KINDS:
        raise unknown_name("kind of tiny pipeline", kind, KINDS)
    if topology not in TOPOLOGIES:
        raise unknown_name("topology of tiny pipeline", str(topology), TOPOLOGIES)
    return assembled(kind, tiny_configs(kind) if topology == "tiny" else _narrowed(kind), seed)


def assembled(
    kind: str, configs: dict[str, dict[str, Any]], seed: int
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """The pipeline of a kind with networks of these configs, component by component; see `tiny_pipeline`."""
    import torch

    with compat.quiet_libraries():
        import diffusers

        pipeline = diffusers.StableDiffusionXLPipeline if kind == "sdxl" else diffusers.StableDiffusionPipeline
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = compat.clip_tokenizer(model_max_length=POSITIONS)
        parts: dict[str, Any] = {"tokenizer": tokenizer}
        for name in [name for name in configs if name != "unet"]:
            parts[name] = text_encoder(name, **_vocabulary(len(tokenizer)), **configs[name])
        unet: Any = diffusers.UNet2DConditionModel(**configs["unet"])
        vae = _vae()
    if kind == "sdxl":
        parts["tokenizer_2"] = compat.clip_tokenizer(model_max_length=POSITIONS)
        parts["tokenizer_2"].pad_token = compat.byte_symbols()[0]  # "!", id 0
        parts |= {"force_zeros_for_empty_prompt": True, "add_watermarker": False}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=KINDS[kind],
    )
    pipe: Any = pipeline(unet=unet.eval(), vae=vae, scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_configs(kind: str) -> dict[str, dict[str, Any]]:
    """Component -> config of the smallest relative that still has every part."""
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    first = {**text, "projection_dim": 32, "hidden_act": "gelu" if kind == "sd21" else "quick_gelu"}
    unet: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 4,
    }
    if kind != "sdxl":
        unet |= {
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "use_linear_projection": kind == "sd21",
        }
        return {"text_encoder": first, "unet": unet}
    second = {**text, "hidden_size": 48, "intermediate_size": 96, "projection_dim": 24, "hidden_act": "gelu"}
    published = published_config("sdxl")
    blocks = ("down_block_types", "up_block_types", "use_linear_projection", "addition_embed_type")
    unet |= {
        **{key: published[key] for key in blocks},
        "block_out_channels": (16, 32, 64),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 32 + 48,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
    }
    return {"text_encoder": first, "text_encoder_2": second, "unet": unet}


def _narrowed(kind: str) -> dict[str, dict[str, Any]]:
    """Component -> published config with two channels a head, and latents as small as its levels allow."""
    configs = {name: published_config(kind, name) for name in PUBLISHED[kind]}
    for config in (config for name, config in configs.items() if name != "unet"):
        width = 2 * config["num_attention_heads"]
        config |= {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
        del config["vocab_size"], config["max_position_embeddings"]
    widths = [config["hidden_size"] for name, config in configs.items() if name != "unet"]
    unet = configs["unet"]
    narrower = 20 if kind == "sd15" else 32  # 40 channels a head at the first level, or 64
    unet |= {
        "sample_size": 8,
        "block_out_channels": tuple(channels // narrower for channels in unet["block_out_channels"]),
        "norm_num_groups": 8 if kind == "sd15" else 5,
        "cross_attention_dim": sum(widths),
    }
    if kind == "sdxl":
        unet |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": widths[-1] + 6 * 8}
    return configs


def _vocabulary(size: int) -> dict[str, Any]:
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    return {"vocab_size": size, "max_position_embeddings": POSITIONS, **ids}


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
