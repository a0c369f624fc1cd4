"""The two judges, trained on renders; `data.build.measure` sets their thresholds on generated pictures.

python -m data.build.judges none     # needs a UNet, part-trained is enough: outputs cut off early, damaged weights
python -m data.build.judges redrawn  # needs the UNet: renders that the generator has gone over, labels kept
python -m data.build.judges cnn      # needs the VAE, `none` and `redrawn`
python -m data.build.judges nearest  # needs judge_clip and `redrawn`
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from data.build.captions import Example, all_labels, things
from data.build.clip import RUNS, worsen
from data.build.grammar import BACKGROUNDS
from data.build.pictures import draw
from data.build.training import Trainer, ema_weights
from data.build.words import PROFESSIONS, STYLES
from probe.detect._emoji import JudgeCNN, clip_features, families, to_pixels

FOLDER = Path("data/emoji/judges")
WIDTHS, BATCH, ITERATIONS = (32, 64, 128, 160), 96, 3000
NONE_FILE = RUNS / "none_images.safetensors"
REDRAWN_FILE = RUNS / "redrawn_images.safetensors"
REDRAWN = 620 * 6
FALSE_POSITIVES = 0.005
CALLED_NONE = 0.005  # share of redrawn renders that the nearest judge may call none
log = logging.getLogger(__name__)


def labels() -> list[str]:
    """The judges' labels in order: objects, characters, professions, none; styles; genders."""
    return [
        *(f"object/{t}" for t in things()),
        "object/none",
        *(f"style/{s}" for s in STYLES),
        "gender/man",
        "gender/woman",
    ]


def columns_of(label: str, style: str) -> tuple[int, int, int]:
    """Index within each family (object, style, gender) of a drawing; gender is -1 unless it is a profession."""
    gender, _, profession = label.partition(" ")
    thing, g = (profession, ("man", "woman").index(gender)) if profession in PROFESSIONS else (label, -1)
    return things().index(thing), list(STYLES).index(style), g


def drawn_pairs(n: int) -> list[tuple[str, str]]:
    """(drawing, style) of ``n`` renders in a row, every pair equally often."""
    pairs = [(a, s) for a in all_labels() for s in STYLES]
    return [pairs[i % len(pairs)] for i in range(n)]


def render_pool(n: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """Pictures (n, 64, 64, 3) of single drawings and their columns (n, 3), every (label, style) equally often."""
    rng = np.random.default_rng(seed)
    images, targets = [], []
    for label, style in drawn_pairs(n):
        background = "white" if rng.random() < 0.6 else str(rng.choice(list(BACKGROUNDS)))
        images.append(draw(Example("", "name", frozenset(), None, label, None, style, background), rng))
        targets.append(columns_of(label, style))
    return np.stack(images), torch.tensor(targets)


@torch.no_grad()
def round_trip(images: np.ndarray, vae: AutoencoderKL) -> np.ndarray:
    """Pictures as the autoencoder gives them back: what a perfect generator would show."""
    out = [
        vae.decode(vae.encode(to_pixels(images[i : i + 64])).latent_dist.mean).sample for i in range(0, len(images), 64)
    ]
    return to_uint8(torch.cat(out))


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """float (n, 3, y, x) in -1..1 -> uint8 (n, y, x, 3)."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def spoil(x: torch.Tensor) -> torch.Tensor:
    """Pictures that show nothing: blends of two or three drawings, heavy blur, noise, shuffled patches."""
    n, kind = len(x), torch.randint(5, (len(x), 1, 1, 1))
    blend = (x + x[torch.randperm(n)]) / 2
    triple = (x + x[torch.randperm(n)] + x[torch.randperm(n)]) / 3
    blur = F.interpolate(F.avg_pool2d(x, 16), scale_factor=16, mode="bilinear")
    noise = 0.35 * x + 0.9 * F.interpolate(torch.randn(n, 3, 16, 16), scale_factor=4, mode="bilinear")
    patches = (
        x.unflatten(2, (4, 16))
        .unflatten(4, (4, 16))
        .transpose(2, 4)
        .flatten(4, 5)
        .flatten(2, 3)[:, :, torch.randperm(64)]
    )
    out = torch.where(kind == 0, blend, torch.where(kind == 1, triple, torch.where(kind == 2, blur, noise)))
    return torch.where(kind == 4, patches, out).clamp(-1, 1)


def train_cnn() -> None:
    images, targets = render_pool(620 * 20, 7)
    vae = AutoencoderKL.from_pretrained(RUNS / "vae").eval()
    soft = round_trip(images[: 620 * 10], vae)
    redrawn = load_file(REDRAWN_FILE)
    images = np.concatenate([images, soft, redrawn["images"].numpy()])
    targets = torch.cat([targets, targets[: len(soft)], redrawn["targets"]])
    generated = load_file(NONE_FILE)["images"].numpy()
    none = len(things())

    def loss(net: JudgeCNN, iteration: int) -> torch.Tensor:
        i = torch.randint(len(images), (BATCH,))
        x, y = to_pixels(images[i.numpy()]), targets[i].clone()
        shift = torch.randint(-3, 4, (2,)).tolist()
        x = worsen(torch.roll(x, shift, (2, 3)), 0.6)
        bad = torch.rand(BATCH) < 0.12
        x = torch.where(bad.view(-1, 1, 1, 1), spoil(x), x)
        j = torch.randint(len(generated), (BATCH // 12,))
        x[-len(j) :], bad[-len(j) :] = to_pixels(generated[j.numpy()]), True
        y[bad, 0], y[bad, 1:] = none, -1
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x)
        parts = [
            F.cross_entropy(o.float(), y[:, k], ignore_index=-1, label_smoothing=0.05)
            for k, o in enumerate(out.values())
            if (y[:, k] >= 0).any()
        ]
        return torch.stack(parts).sum()

    torch.manual_seed(8)
    net = JudgeCNN(families(labels()), WIDTHS).to(memory_format=torch.channels_last)
    trainer = Trainer("emoji_cnn", net, loss, RUNS, ITERATIONS, lr=1.5e-3, warmup=100, ema_decay=0.995)
    trainer.run()
    trainer.ema_into(net)
    save("emoji_cnn", {k: v.half() for k, v in net.state_dict().items()}, widths=WIDTHS)


def whitening(features: torch.Tensor, group: torch.Tensor, shrink: float = 0.01) -> torch.Tensor:
    """Map (d, d) under which features (n, d) of one group scatter equally in every direction.

    The Cholesky factor of the inverse scatter within groups, as in linear discriminant analysis, shrunk towards the
    identity: what varies among pictures of one drawing (place, size, background, blur) counts little.
    """
    means = torch.stack([features[group == i].mean(0) for i in range(int(group.max()) + 1)])
    spread = features - means[group]
    scatter = spread.T @ spread / len(spread)
    scatter += shrink * scatter.diagonal().mean() * torch.eye(len(scatter))
    return torch.linalg.cholesky(torch.linalg.inv(scatter))


def make_nearest() -> None:
    """Whitened features of clean, softened and redrawn renders in the second contrastive model; a mean per drawing."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(RUNS / "judge_clip").eval()

    def embed(images: np.ndarray) -> torch.Tensor:
        return torch.cat([clip_features(model, to_pixels(images[i : i + 256])) for i in range(0, len(images), 256)])

    images, targets = render_pool(620 * 6, 9)
    torch.manual_seed(10)
    soft, redrawn = to_uint8(worsen(to_pixels(images), 0.8)), load_file(REDRAWN_FILE)
    features = embed(np.concatenate([images, soft, redrawn["images"].numpy()]))
    drawings, group = torch.cat([targets, targets, redrawn["targets"]]).unique(dim=0, return_inverse=True)
    mean, whiten = features.mean(0), whitening(features, group)
    features = (features - mean) @ whiten
    centres = F.normalize(torch.stack([features[group == i].mean(0) for i in range(len(drawings))]), dim=-1)
    sizes = families(labels())
    offsets = torch.tensor([0, sizes["object"], sizes["object"] + sizes["style"]])
    best = (F.normalize(features[-len(redrawn["images"]) :], dim=-1) @ centres.T).amax(1)
    save("emoji_nearest", {"features": centres.half(), "mean": mean.half(), "whiten": whiten.half(),
                           "columns": torch.where(drawings >= 0, drawings + offsets, -1).to(torch.int32)},
         temperature=0.02, none_similarity=round(float(best.quantile(CALLED_NONE)), 4))  # fmt: skip


def save(name: str, tensors: dict[str, torch.Tensor], **settings) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, FOLDER / f"{name}.safetensors")
    data = {"labels": labels(), "thresholds": [0.5] * len(labels()), **settings}
    (FOLDER / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def latents_after(pipe: StableDiffusionPipeline, texts: list[str], last: int) -> torch.Tensor:
    """What the pipeline has after step ``last`` of 20."""
    latents = []

    def keep(pipe: StableDiffusionPipeline, step: int, t: torch.Tensor, values: dict) -> dict:
        if step == last:
            latents.append(values["latents"])
            pipe._interrupt = True
        return values

    pipe(texts, num_inference_steps=20, guidance_scale=7.5, output_type="latent", callback_on_step_end=keep)
    return latents[0]


@torch.no_grad()
def make_none(n: int = 960) -> None:
    """Pictures that an interrupted or damaged generator makes: cut off in the first quarter, or with 15 to 30 % of
    every weight matrix zeroed. Zeroing feed-forwards alone, even half of them, leaves pictures anyone recognises.
    """
    from data.build.unet import make_unet, pipeline
    from probe import concepts

    torch.manual_seed(11)
    world = concepts(Path("data/emoji/concepts"))
    prompts = [world[t].prompts["explicit"][k] for k in range(12) for t in world if world[t].kind != "style"]
    unet = make_unet().eval()
    original, _ = ema_weights(RUNS / "unet.state.safetensors")
    pipe, out = pipeline(unet), []
    pipe.set_progress_bar_config(disable=True)
    for batch in range(n // 60):
        unet.load_state_dict(original)
        damaged = batch % 2 == 1
        share = float(np.random.default_rng(batch).uniform(0.15, 0.3)) if damaged else 0.0
        for v in unet.state_dict().values():
            if v.ndim > 1:
                v[torch.rand(v.shape) < share] = 0
        latents = latents_after(pipe, prompts[batch * 60 : batch * 60 + 60], 19 if damaged else 1 + batch // 2 % 4)
        out.append(to_uint8(pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample))
        log.info("none %d/%d", len(out) * 60, n)
    save_file({"images": torch.from_numpy(np.concatenate(out))}, NONE_FILE)


@torch.no_grad()
def make_redrawn(n: int = REDRAWN, batch: int = 62) -> None:
    """Renders that the generator has gone over: noised to 20 to 50 % of the schedule and denoised under their name and
    style, in half of the batches with up to half of every feed-forward layer's columns zeroed.

    They look as the generator draws, whole or pruned, and still show what the render shows; nobody's guess is a label.
    """
    from diffusers import StableDiffusionImg2ImgPipeline

    from data.build.unet import make_unet, pipeline

    images, targets = render_pool(n, 12)
    texts = [f"{label} in {style} style" for label, style in drawn_pairs(n)]
    unet = make_unet().eval()
    original, _ = ema_weights(RUNS / "unet.state.safetensors")
    pipe = StableDiffusionImg2ImgPipeline(**pipeline(unet).components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    rng, out = np.random.default_rng(12), []
    order = rng.permutation(n)
    generator = torch.Generator().manual_seed(12)
    for start in range(0, n, batch):
        unet.load_state_dict(original)
        if start // batch % 2:
            share = rng.uniform(0.0, 0.5)
            for name, weight in unet.named_parameters():
                if name.endswith("ff.net.2.weight"):
                    weight[:, torch.rand(weight.shape[1], generator=generator) < share] = 0
        part = order[start : start + batch]
        redrawn = pipe(prompt=[texts[i] for i in part], image=(to_pixels(images[part]) + 1) / 2, guidance_scale=1.0,
                       num_inference_steps=20, strength=float(rng.uniform(0.2, 0.5)), generator=generator,
                       output_type="pt").images  # fmt: skip
        out.append(to_uint8(redrawn * 2 - 1))
        log.info("redrawn %d/%d", start + len(part), n)
    save_file({"images": torch.from_numpy(np.concatenate(out)), "targets": targets[order].contiguous()}, REDRAWN_FILE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cnn", "nearest", "none", "redrawn"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    {"cnn": train_cnn, "nearest": make_nearest, "none": make_none, "redrawn": make_redrawn}[args.what]()


if __name__ == "__main__":
    main()
