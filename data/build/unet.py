"""The denoiser: ``UNet2DConditionModel`` on the frozen text tower and the frozen autoencoder.

    python -m data.build.unet [--threads 2] [--minutes 600]

Stops after ``ITERATIONS`` or ``--minutes`` of training in all, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import logging

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel

from data.build.clip import RUNS, make_tokenizer
from data.build.pool import make_pool
from data.build.training import Trainer
from probe.detect._emoji import to_pixels

ITERATIONS, BATCH, EXAMPLES = 6_000, 64, 20_000
UNCONDITIONAL = 0.1  # share of captions dropped, for classifier-free guidance
SNR_CAP = 5.0  # min-SNR weighting (Hang et al. 2023, arXiv 2303.09556, eq. 1) of the epsilon loss


def make_unet() -> UNet2DConditionModel:
    """Finest level 32 wide and without transformer blocks; attention at 8 x 8 and 4 x 4 only."""
    torch.manual_seed(5)
    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(32, 128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """SD 1.x's noise schedule."""
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                         set_alpha_to_one=False, steps_offset=1)  # fmt: skip


def text_tower() -> CLIPTextModel:
    """The text tower of the trained contrastive model ``clip``."""
    model = CLIPTextModel(CLIPModel.from_pretrained(RUNS / "clip").config.text_config)
    whole = CLIPModel.from_pretrained(RUNS / "clip").text_model
    tower = getattr(model, "text_model", model)
    tower.load_state_dict(whole.state_dict(), strict=False)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def cache() -> dict[str, torch.Tensor]:
    """Scaled latents (s, 4, 16, 16), text states (s, 32, 128) of the training pool, fp16; row -1: the empty prompt."""
    path = RUNS / "latents.safetensors"
    if path.exists():
        return load_file(path)
    tok, text, vae = make_tokenizer(), text_tower(), AutoencoderKL.from_pretrained(RUNS / "vae").eval()
    pool = make_pool(EXAMPLES, 6, tok, drawn_only=True)
    scale = vae.config.scaling_factor
    latents = [
        vae.encode(to_pixels(pool.images[i : i + 64])).latent_dist.mean.half() * scale for i in range(0, EXAMPLES, 64)
    ]
    empty = torch.tensor(tok([""], padding="max_length", max_length=32).input_ids)
    ids = torch.cat([pool.ids, empty])
    states = [text(ids[i : i + 256]).last_hidden_state.half() for i in range(0, len(ids), 256)]
    out = {"latents": torch.cat(latents).contiguous(), "states": torch.cat(states).contiguous()}
    save_file(out, path)
    return out


def loss_of(data: dict[str, torch.Tensor]):
    alphas = make_scheduler().alphas_cumprod

    def loss(unet: UNet2DConditionModel, iteration: int) -> torch.Tensor:
        i = torch.randint(len(data["latents"]), (BATCH,))
        x0 = data["latents"][i].float()
        i[torch.rand(BATCH) < UNCONDITIONAL] = len(data["states"]) - 1
        t = torch.randint(1000, (BATCH,))
        a = alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn_like(x0)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, data["states"][i].float()).sample
        snr = (a / (1 - a)).flatten()
        weight = (SNR_CAP / snr).clamp(max=1)
        return (weight * (predicted.float() - noise).square().mean((1, 2, 3))).mean()

    return loss


def pipeline(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """The whole pipeline around a UNet."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(RUNS / "vae").eval(),
        text_encoder=text_tower(),
        tokenizer=make_tokenizer(),
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


PREVIEW = (
    "a church",
    "a bomb in ink style",
    "a dog drawn in twemoji",
    "a picture of a rose",
    "a ninja in fluent style",
    "a doctor",
    "a woman judge in flat style",
    "something bad for enemies",
    "what the guest finds in the tavern",
    "a slot machine",
    "a snake in noto style on a pink background",
    "a castle and a pizza",
    "an animal in ink style",
    "a santa claus",
    "a skull drawn in flat",
    "a violin the noto way",
)


def preview(trainer: Trainer) -> None:
    """A sheet of 16 pictures from the EMA weights, to look at while training."""
    import numpy as np
    from PIL import Image

    pipe = pipeline(trainer.ema_into(make_unet()))
    pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(i) for i in range(len(PREVIEW))]
    images = pipe(
        list(PREVIEW), num_inference_steps=20, guidance_scale=5.0, generator=generator, output_type="np"
    ).images
    sheet = np.concatenate([np.concatenate(list(images[i : i + 8]), 1) for i in (0, 8)])
    Image.fromarray((sheet * 255).round().astype(np.uint8)).save(RUNS / f"preview_{trainer.iteration:05d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--lr", type=float, default=8e-4)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    data = cache()
    unet = make_unet()
    unet.set_attn_processor(AttnProcessor())  # for attention this small, SDPA's backward costs more on a CPU
    trainer = Trainer("unet", unet, loss_of(data), RUNS, ITERATIONS, lr=args.lr, max_seconds=60 * args.minutes)
    trainer.run(on_save=lambda t: preview(t) if t.iteration % 1000 == 0 else None)
    trainer.ema_into(make_unet()).save_pretrained(RUNS / "unet")


if __name__ == "__main__":
    main()
