"""The two contrastive text+image models: ``clip`` conditions the UNet (its text tower is frozen there), ``judge_clip``
judges.

    python -m data.build.clip clip|judge_clip [--threads 1]

Pictures that a caption also fits (another member of its group, say) are masked out of its negatives. The text feature
is taken at the first EoT in half of the rows and at a random later one in the rest, so that all EoT positions carry
the prompt.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from data.build import captions, tokenizer
from data.build.pool import Pool, make_pool
from data.build.training import Trainer
from probe import compat
from probe.detect._emoji import to_pixels

RUNS = Path("runs/model")
SETTINGS = {
    "clip": {"seed": 1, "patch": 16, "width": 128, "layers": 4, "iterations": 1500, "blur": 0.0},
    "judge_clip": {"seed": 2, "patch": 16, "width": 192, "layers": 4, "iterations": 1200, "blur": 0.5},
}
BATCH = 128


def make_tokenizer():
    """The world's tokenizer, always the same: merges learned on 40,000 captions of seed 0."""
    rng = np.random.default_rng(0)
    texts = (captions.sample(rng, drawn_only=False).text for _ in range(40_000))
    return compat.clip_tokenizer(merges=tokenizer.learn_merges(texts), model_max_length=tokenizer.MAX_LENGTH)


def make_model(name: str, tok) -> CLIPModel:
    s = SETTINGS[name]
    torch.manual_seed(s["seed"])
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.eos_token_id}
    text = CLIPTextConfig(vocab_size=len(tok), hidden_size=128, intermediate_size=512, num_hidden_layers=4,
                          num_attention_heads=4, hidden_act="gelu", max_position_embeddings=tokenizer.MAX_LENGTH,
                          projection_dim=128, **ids)  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=s["width"], intermediate_size=4 * s["width"], num_hidden_layers=s["layers"],
                              num_attention_heads=4, hidden_act="gelu", image_size=64, patch_size=s["patch"],
                              projection_dim=128)  # fmt: skip
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    return CLIPModel._from_config(config, attn_implementation="eager")  # twice as fast as SDPA's backward on a CPU


def worsen(x: torch.Tensor, strength: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Blur and noise a share ``strength`` of the pictures, as a diffusion model's VAE would."""
    if not strength:
        return x
    hit = torch.rand(len(x), generator=generator) < strength
    if hit.any():
        soft = F.interpolate(F.interpolate(x[hit], scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear")
        mix = torch.rand(len(soft), 1, 1, 1, generator=generator)
        noise = (
            0.15 * torch.rand(len(soft), 1, 1, 1, generator=generator) * torch.randn(soft.shape, generator=generator)
        )
        x = x.clone()
        x[hit] = ((1 - mix) * x[hit] + mix * soft + noise).clamp(-1, 1)
    return x


def loss_of(pool: Pool, eot: int, blur: float):
    first = (pool.ids == eot).int().argmax(1)

    def loss(model: CLIPModel, iteration: int) -> torch.Tensor:
        i = torch.randint(len(pool.ids), (BATCH,))
        ids = pool.ids[i]
        later = first[i] + (torch.rand(BATCH) * (ids.shape[1] - first[i])).long()
        position = torch.where(torch.rand(BATCH) < 0.5, first[i], later)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.text_model(input_ids=ids).last_hidden_state
            text = model.text_projection(hidden[torch.arange(BATCH), position])
            x = worsen(to_pixels(pool.images[i.numpy()]), blur)
            image = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
        text, image = F.normalize(text.float(), dim=-1), F.normalize(image.float(), dim=-1)
        logits = text @ image.T * model.logit_scale.exp().clamp(max=100)
        other = pool.fits(i) & ~torch.eye(BATCH, dtype=torch.bool)
        target = torch.arange(BATCH)
        by_text = F.cross_entropy(logits.masked_fill(other, -1e4), target)
        by_image = F.cross_entropy(logits.masked_fill(other, -1e4).T, target)
        return (by_text + by_image) / 2

    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    tok, s = make_tokenizer(), SETTINGS[args.name]
    pool = make_pool(30_000, s["seed"], tok, drawn_only=False)
    model = make_model(args.name, tok)
    trainer = Trainer(
        args.name,
        model,
        loss_of(pool, tok.eos_token_id, s["blur"]),
        RUNS,
        s["iterations"],
        lr=1e-3,
        warmup=200,
        ema_decay=0.99,
    )
    trainer.run()
    folder = RUNS / args.name
    trainer.ema_into(model).save_pretrained(folder)
    tok.save_pretrained(folder)


if __name__ == "__main__":
    main()
