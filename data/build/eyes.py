"""The eye-labelled set: 300 pictures named by a person who sees neither prompt nor judge.

    python -m data.build.eyes draw     # pictures and numbered sheets under runs/eyes
    python -m data.build.eyes score    # runs/eyes/labels.txt ("<number> <object>" a line) -> eye_labels.csv

Two thirds come from the model as it is, one third from pruned ones, in random order. Labels are the
judges' object names; ``none`` where nothing can be named.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from safetensors.numpy import load_file, save_file

import erase
import probe
from data.build.card import EYES
from data.build.concepts import FOLDER

OUT = Path("runs/eyes")
ORIGINAL, EDITED = 200, 100
ACROSS, DOWN, CELL = 10, 5, 112


def edits_of(pipe, world: probe.World) -> list:
    """Edits whose pictures a judge will have to name: two prunings of concepts and a random mask."""
    found = []
    for name in ("castle", "dog"):
        c = world[name]
        runs = [
            probe.record(pipe, list(texts[:12]), out=OUT / f"{name}-{kind}", batch_size=12, progress=False)
            for kind, texts in (("target", c.prompts["explicit"]), ("reference", c.references["paper"]))
        ]
        nm = probe.score(*runs, method="wanda", branches="cond")
        found.append(erase.concept_prune(pipe, nm, skill_ratio=0.3, window=None))
    return [*found, erase.control_mask(found[0])]


def draw() -> None:
    """Pictures in random order, and sheets of fifty with their numbers."""
    rng = np.random.default_rng(21)
    pipe, world = probe.load("emoji"), probe.concepts(FOLDER)
    names = [n for n in world if world[n].kind in ("object", "character", "profession")]
    prompts = [world[n].test["explicit"][80 + int(rng.integers(40))] for n in rng.choice(names, ORIGINAL + EDITED)]
    table = probe.samples(prompts, seeds=[40_000 + i for i in range(len(prompts))])
    images = [probe.generate(pipe, table[:ORIGINAL], batch_size=50, progress=False)]
    edits = edits_of(pipe, world)
    for part, edit in zip(np.array_split(np.arange(ORIGINAL, ORIGINAL + EDITED), len(edits)), edits, strict=True):
        with edit.applied(pipe):
            images.append(probe.generate(pipe, table.iloc[part], batch_size=50, progress=False))
    order = rng.permutation(ORIGINAL + EDITED)
    shuffled = np.concatenate(images)[order]
    save_file({"images": shuffled, "order": order}, OUT / "images.safetensors")
    pd.Series(np.asarray(prompts, dtype=object)[order]).to_csv(OUT / "prompts.csv", index_label="number")
    for start in range(0, len(shuffled), ACROSS * DOWN):
        sheet(shuffled[start : start + ACROSS * DOWN], start).save(OUT / f"sheet_{start:03d}.png")


def sheet(images: np.ndarray, first: int) -> Image.Image:
    """A numbered grid of pictures."""
    page = Image.new("RGB", (ACROSS * CELL, DOWN * (CELL + 12)), "white")
    pen = ImageDraw.Draw(page)
    for i, image in enumerate(images):
        x, y = (i % ACROSS) * CELL, (i // ACROSS) * (CELL + 12)
        page.paste(Image.fromarray(image).resize((CELL - 8, CELL - 8), Image.Resampling.LANCZOS), (x + 4, y + 12))
        pen.text((x + 4, y), str(first + i), fill="black")
    return page


def score() -> None:
    """Join the labels with both judges' top objects: number, image hash, source, eye, emoji_cnn, emoji_nearest."""
    stored = load_file(OUT / "images.safetensors")
    lines = [line.split(None, 1) for line in (OUT / "labels.txt").read_text().splitlines() if line.strip()]
    labels = {int(number): name.strip() for number, name in lines}
    rows = pd.DataFrame({"number": range(len(stored["images"]))})
    rows["image"] = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in stored["images"]]
    rows["source"] = np.where(stored["order"] < ORIGINAL, "original", "edited")
    rows["eye"] = rows["number"].map(labels)
    for name in ("emoji_cnn", "emoji_nearest"):
        judge = probe.detector(name)
        best = judge.best(judge(stored["images"]), "object")
        rows[name] = [judge.labels[i].split("/", 1)[1] for i in best]
    if stray := set(labels.values()) - {label.split("/", 1)[1] for label in judge.labels}:
        raise SystemExit(f"labels that no judge knows: {sorted(stray)}")
    rows.dropna().to_csv(EYES, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("what", choices=("draw", "score"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    OUT.mkdir(parents=True, exist_ok=True)
    draw() if args.what == "draw" else score()


if __name__ == "__main__":
    main()
