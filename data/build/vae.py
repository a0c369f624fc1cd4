"""The autoencoder: 64 x 64 pixels to 16 x 16 x 4 latents (``AutoencoderKL``, f = 4).

python -m data.build.vae [--threads 1]
"""

from __future__ import annotations

import argparse
import logging

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from data.build.clip import RUNS, make_tokenizer
from data.build.pool import make_pool
from data.build.training import Trainer
from probe.detect._emoji import to_pixels

BATCH, ITERATIONS = 8, 2000

log = logging.getLogger(__name__)


def make_vae() -> AutoencoderKL:
    torch.manual_seed(3)
    return AutoencoderKL(
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
    )


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def loss_of(images):
    def loss(vae: AutoencoderKL, iteration: int) -> torch.Tensor:
        i = torch.randint(len(images), (BATCH,))
        x = to_pixels(images[i.numpy()]).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        y = y.float()
        kl = posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()
        edge = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))
        return F.l1_loss(y, x) + F.mse_loss(y, x) + edge + 1e-4 * kl.mean()

    return loss


def psnr(vae: AutoencoderKL, images) -> float:
    """Mean peak signal-to-noise ratio in dB of reconstructed pictures."""
    x = to_pixels(images)
    with torch.no_grad():
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    return float((10 * torch.log10(4 / (y - x).square().mean((1, 2, 3)))).mean())


def latent_scale(vae: AutoencoderKL, images) -> float:
    """SD's scaling factor: one over the standard deviation of the latents."""
    with torch.no_grad():
        return float(1 / vae.encode(to_pixels(images)).latent_dist.mean.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    pool = make_pool(12_000, 4, make_tokenizer(), drawn_only=True)
    vae = make_vae().to(memory_format=torch.channels_last)
    trainer = Trainer("vae", vae, loss_of(pool.images), RUNS, ITERATIONS, lr=1.5e-3, warmup=200)
    trainer.run()
    trainer.ema_into(vae)
    vae.register_to_config(scaling_factor=latent_scale(vae, pool.images[:1000]))
    log.info("psnr %.2f dB, scaling factor %.4f", psnr(vae, pool.images[:500]), vae.config.scaling_factor)
    vae.save_pretrained(RUNS / "vae")


if __name__ == "__main__":
    main()
