"""Put the trained networks together in SD 1.x hub layout under ``data/emoji`` (fp16 safetensors).

python -m data.build.assemble
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPModel

from data.build import captions, concepts
from data.build.clip import RUNS, make_tokenizer
from data.build.judges import render_pool
from data.build.unet import make_unet, pipeline
from data.build.vae import psnr
from probe import compat

EMOJI = Path("data/emoji")
RESULTS = Path("data/build/results")
MIN_COUNT = 10


def trained_tokens(n: int = 40_000) -> list[str]:
    """Tokens seen at least ten times in ``n`` captions: the default vocabulary of attacks (the rest are glitches)."""
    tok, rng = make_tokenizer(), np.random.default_rng(12)
    counts = Counter(t for _ in range(n) for t in tok.tokenize(captions.sample(rng).text))
    return sorted(t for t, c in counts.items() if c >= MIN_COUNT)


def training_facts() -> dict[str, float | int | str]:
    """What the card says of training, from the states under ``runs/model``; loss curves are copied beside it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for curve in RUNS.glob("*_loss.csv"):
        shutil.copy(curve, RESULTS)
    with safe_open(RUNS / "unet.state.safetensors", "pt") as f:
        state = json.loads(f.metadata()["state"])
    images, _ = render_pool(620, 14)
    vae = AutoencoderKL.from_pretrained(RUNS / "vae").eval()
    return {
        "unet_iterations": state["iteration"],
        "unet_minutes": round(state["seconds"] / 60),
        "machine": f"{os.cpu_count()} {platform.machine()} cores",
        "psnr": round(psnr(vae, images), 2),
    }


def main() -> None:
    (RESULTS / "training.json").write_text(json.dumps(training_facts(), indent=1) + "\n")
    unet = make_unet()
    unet.load_state_dict(load_file(RUNS / "unet" / "diffusion_pytorch_model.safetensors"))
    shutil.rmtree(EMOJI / "pipeline", ignore_errors=True)
    compat.save_pipeline(pipeline(unet), EMOJI / "pipeline", dtype=torch.float16)
    tok = make_tokenizer()
    judge = EMOJI / "judge_clip"
    shutil.rmtree(judge, ignore_errors=True)
    CLIPModel.from_pretrained(RUNS / "judge_clip").half().save_pretrained(judge)
    compat.save_tokenizer(tok, judge)
    half = [0.5] * 3  # pixels in -1..1
    preprocessor = {"image_processor_type": "CLIPImageProcessor", "image_mean": half, "image_std": half,
                    "size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}  # fmt: skip
    (judge / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    (EMOJI / "trained_tokens.json").write_text(json.dumps(trained_tokens(), ensure_ascii=False) + "\n")
    concepts.main()
    weights = sum(p.stat().st_size for p in EMOJI.rglob("*.safetensors")) / 1e6
    print(f"weights: {weights:.1f} MB")


if __name__ == "__main__":
    main()
