"""Names of the tensors of Stable Diffusion 1.x in CompVis' layout, listed by walking its constructors.

Written from the structure of latent-diffusion's UNetModel, Encoder and Decoder, block by block, without any rule that
turns one naming into another. Counted: 686 tensors of the UNet, 248 of the VAE, 196 of the text encoder.
"""

from __future__ import annotations


def _both(*names: str) -> list[str]:
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


def _resblock(at: str, changes_width: bool) -> list[str]:
    names = _both(
        f"{at}.in_layers.0", f"{at}.in_layers.2", f"{at}.emb_layers.1", f"{at}.out_layers.0", f"{at}.out_layers.3"
    )
    return names + (_both(f"{at}.skip_connection") if changes_width else [])


def _transformer(at: str) -> list[str]:
    block = f"{at}.transformer_blocks.0"
    names = _both(f"{at}.norm", f"{at}.proj_in", f"{at}.proj_out", *(f"{block}.norm{i}" for i in (1, 2, 3)))
    for attention in ("attn1", "attn2"):
        names += [f"{block}.{attention}.to_{part}.weight" for part in "qkv"]
        names += _both(f"{block}.{attention}.to_out.0")
    return names + _both(f"{block}.ff.net.0.proj", f"{block}.ff.net.2")


def unet(
    channels: int = 320,
    multiples: tuple[int, ...] = (1, 2, 4, 4),
    res_blocks: int = 2,
    attention: tuple[int, ...] = (1, 2, 4),
) -> set[str]:
    """UNetModel: ``attention`` are the down-sampling factors at which a transformer follows a resblock."""
    names = _both("time_embed.0", "time_embed.2", "input_blocks.0.0")
    skips, width, factor, block = [channels], channels, 1, 1
    for level, multiple in enumerate(multiples):
        for _ in range(res_blocks):
            names += _resblock(f"input_blocks.{block}.0", width != multiple * channels)
            width = multiple * channels
            if factor in attention:
                names += _transformer(f"input_blocks.{block}.1")
            skips.append(width)
            block += 1
        if level != len(multiples) - 1:
            names += _both(f"input_blocks.{block}.0.op")
            skips.append(width)
            block, factor = block + 1, 2 * factor
    names += _resblock("middle_block.0", False) + _transformer("middle_block.1") + _resblock("middle_block.2", False)
    block = 0
    for level, multiple in reversed(list(enumerate(multiples))):
        for i in range(res_blocks + 1):
            names += _resblock(f"output_blocks.{block}.0", True)
            skips.pop()
            width = multiple * channels
            place = 1
            if factor in attention:
                names += _transformer(f"output_blocks.{block}.1")
                place = 2
            if level and i == res_blocks:
                names += _both(f"output_blocks.{block}.{place}.conv")
                factor //= 2
            block += 1
    return {f"model.diffusion_model.{name}" for name in [*names, *_both("out.0", "out.2")]}


def vae(channels: int = 128, multiples: tuple[int, ...] = (1, 2, 4, 4), res_blocks: int = 2) -> set[str]:
    """AutoencoderKL."""

    def resnet(at: str, before: int, after: int) -> list[str]:
        names = _both(f"{at}.norm1", f"{at}.conv1", f"{at}.norm2", f"{at}.conv2")
        return names + (_both(f"{at}.nin_shortcut") if before != after else [])

    def middle(side: str) -> list[str]:
        attention = [f"{side}.mid.attn_1.{part}" for part in ("norm", "q", "k", "v", "proj_out")]
        return [*resnet(f"{side}.mid.block_1", 1, 1), *_both(*attention), *resnet(f"{side}.mid.block_2", 1, 1)]

    names = _both("quant_conv", "post_quant_conv")
    for side in ("encoder", "decoder"):
        names += _both(f"{side}.conv_in", f"{side}.norm_out", f"{side}.conv_out") + middle(side)
    width = channels
    for level, multiple in enumerate(multiples):
        for i in range(res_blocks):
            names += resnet(f"encoder.down.{level}.block.{i}", width, multiple * channels)
            width = multiple * channels
        if level != len(multiples) - 1:
            names += _both(f"encoder.down.{level}.downsample.conv")
    for level, multiple in reversed(list(enumerate(multiples))):
        for i in range(res_blocks + 1):
            names += resnet(f"decoder.up.{level}.block.{i}", width, multiple * channels)
            width = multiple * channels
        if level:
            names += _both(f"decoder.up.{level}.upsample.conv")
    return {f"first_stage_model.{name}" for name in names}


def text_encoder(layers: int = 12) -> set[str]:
    """FrozenCLIPEmbedder, without the buffer of positions that newer libraries no longer store."""
    at = "cond_stage_model.transformer.text_model"
    names = [f"{at}.embeddings.token_embedding.weight", f"{at}.embeddings.position_embedding.weight"]
    for i in range(layers):
        layer = f"{at}.encoder.layers.{i}"
        parts = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj")
        names += _both(*(f"{layer}.{part}" for part in (*parts, "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2")))
    return {*names, *_both(f"{at}.final_layer_norm")}
