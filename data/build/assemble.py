"""Put the trained networks together in SD 1.x hub layout under ``data/emoji`` (fp16 safetensors).

python -m data.build.assemble
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from data.build import captions, concepts
from data.build.clip import RUNS, make_tokenizer
from data.build.unet import make_unet, pipeline
from probe import compat

EMOJI = Path("data/emoji")
MIN_COUNT = 10


def trained_tokens(n: int = 40_000) -> list[str]:
    """Tokens seen at least ten times in ``n`` captions: the default vocabulary of attacks (the rest are glitches)."""
    tok, rng = make_tokenizer(), np.random.default_rng(12)
    counts = Counter(t for _ in range(n) for t in tok.tokenize(captions.sample(rng).text))
    return sorted(t for t, c in counts.items() if c >= MIN_COUNT)


def main() -> None:
    unet = make_unet()
    unet.load_state_dict(load_file(RUNS / "unet" / "diffusion_pytorch_model.safetensors"))
    shutil.rmtree(EMOJI / "pipeline", ignore_errors=True)
    compat.save_pipeline(pipeline(unet), EMOJI / "pipeline", dtype=torch.float16)
    tok = make_tokenizer()
    judge = EMOJI / "judge_clip"
    shutil.rmtree(judge, ignore_errors=True)
    CLIPModel.from_pretrained(RUNS / "judge_clip").half().save_pretrained(judge)
    compat.save_tokenizer(tok, judge)
    (EMOJI / "trained_tokens.json").write_text(json.dumps(trained_tokens(), ensure_ascii=False) + "\n")
    concepts.main()
    weights = sum(p.stat().st_size for p in EMOJI.rglob("*.safetensors")) / 1e6
    print(f"weights: {weights:.1f} MB")


if __name__ == "__main__":
    main()
