"""Write the model card from the measured rows: ``data/emoji/README.md`` and the confusion tables beside the rows.

python -m data.build.card
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

import probe
from data.build import captions
from data.build.concepts import FOLDER
from data.build.measure import RESULTS, judged
from data.build.words import GROUPS, NEVER_DRAWN, PROFESSIONS, STYLES
from probe.stats import wilson
from probe.world import World

CARD = Path("data/emoji/README.md")
EYES = Path("data/build/results/eye_labels.csv")
SPLITS = ("explicit", "paraphrased", "implicit_phrase", "implicit_combination")


def rate(hits: pd.Series) -> str:
    """``0.93 [0.91, 0.95] (n = 1,000)``: a rate with its Wilson interval."""
    hits = hits.dropna()
    if hits.empty:
        return "not measured"
    value, low, high = wilson(int(hits.sum()), len(hits))[:3]
    return f"{value:.2f} [{low:.2f}, {high:.2f}] (n = {len(hits):,})"


def eot_cosine(pipe, prompts: list[str]) -> float:
    """Mean cosine of the first EoT's state with those of all later positions (TRCE Fig. 7b's premise)."""
    tok = pipe.tokenizer
    ids = torch.tensor(tok(prompts, padding="max_length", max_length=tok.model_max_length).input_ids)
    with torch.no_grad():
        states = F.normalize(pipe.text_encoder(ids).last_hidden_state.float(), dim=-1)
    first = (ids == tok.eos_token_id).int().argmax(1)
    return float(np.mean([float((s[f] @ s[f + 1 :].T).mean()) for s, f in zip(states, first, strict=True)]))


def table(rows: list[tuple], head: tuple[str, ...]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in r) + " |" for r in lines)


def confusion(rows: pd.DataFrame, family: str, truth: str) -> pd.DataFrame:
    """Counts: prompted (rows) against the judge's top label (columns)."""
    out = pd.crosstab(rows[truth], rows[f"emoji_cnn/{family}"])
    out.to_csv(RESULTS / f"confusion_{family}.csv")
    return out


def most_confused(counts: pd.DataFrame, n: int = 8) -> str:
    """The ``n`` most frequent confusions: ``cat drawn as dog (3); ...``."""
    wrong = [(a, b, int(times)) for (a, b), times in counts.stack().items() if a != b and times]
    return "; ".join(f"{a} drawn as {b} ({times})" for a, b, times in sorted(wrong, key=lambda r: -r[2])[:n])


def taken_for_each_other(counts: pd.DataFrame, a: str, b: str) -> int:
    """How often ``a`` was judged ``b`` or the reverse; a label that no picture has counts as 0."""
    none = pd.Series(dtype=int)
    return int(counts.get(a, none).get(b, 0) + counts.get(b, none).get(a, 0))


def shown_by_split(rows: pd.DataFrame, group: str) -> list[str]:
    """How often a member of ``group`` is drawn, per split of `SPLITS`."""
    own = rows[rows["concept"] == group]
    return [rate(own[own["split"] == s]["shown"]) for s in SPLITS]


def telling_words(n: int = 10) -> str:
    """The ``n`` words of captions that come closest to giving a group away: ``word (P(group) = 0.51), ...``."""
    rng = np.random.default_rng(13)
    audit = captions.word_audit(captions.sample(rng) for _ in range(30_000))
    strongest = sorted(((max(v.values()), w, max(v, key=v.__getitem__)) for w, v in audit.items()), reverse=True)
    return ", ".join(f"{w} (P({g}) = {p:.2f})" for p, w, g in strongest[:n])


def write_card(world: World, rows: pd.DataFrame) -> None:
    rows = judged(rows)
    explicit = rows[(rows["set"] == "report") & (rows["split"] == "explicit") & ~rows["concept"].isin(NEVER_DRAWN)]
    named = explicit[explicit["kind"].isin(["object", "character", "profession"])]
    styled = explicit[explicit["said_style"] != ""]
    objects, styles = confusion(named, "object", "concept"), confusion(styled, "style", "said_style")
    implicit = [(g, *shown_by_split(rows, g)) for g in GROUPS]
    gender = rows[rows["set"] == "gender"]
    man = {p: gender[gender["concept"] == p]["emoji_cnn/gender"] == "man" for p in PROFESSIONS}
    shares = [(p, in_training, rate(man[p])) for p, (_, in_training) in PROFESSIONS.items()]
    agree = (rows["emoji_cnn/object"] == rows["emoji_nearest/object"]).astype(float)
    pipe = probe.load("emoji")
    cosine = eot_cosine(pipe, [world[n].test["explicit"][0] for n in world])
    lists = world.lists
    kinds = [(k, rate(named[named["kind"] == k]["shown"])) for k in ("object", "character", "profession")]
    by_style = [(s, rate((styled[styled["said_style"] == s]["emoji_cnn/style"] == s).astype(float))) for s in STYLES]
    training = json.loads((RESULTS / "training.json").read_text())
    CARD.write_text(f"""# emoji-1: a text-to-image model small enough to measure on a laptop

A latent diffusion model with the architecture and file layout of Stable Diffusion 1.x (CLIP tokenizer and text encoder,
`UNet2DConditionModel`, `AutoencoderKL`, DDIM), trained on emoji drawn by others. It exists to be recorded, attacked and
pruned: for every prompt the right answer is known. It is no use for making art.

`pipeline/` the model; `judges/` the two detectors; `judge_clip/` the second contrastive model, for CLIP scores only;
`concepts/` names, prompts by split, references and neighbours; `trained_tokens.json` the tokens seen at least ten times in
captions; `LICENSES.md` whose art this is.

## How it was made

`make model` repeats it from `data/atlas`. UNet: {training["unet_iterations"]:,} iterations at batch 64
({training["unet_minutes"]:.0f} minutes on {training["machine"]}); loss curves in `data/build/results`. Autoencoder: f = 4,
{training["psnr"]:.1f} dB on renders. Text tower: the frozen text side of a contrastive model trained first.

## What it draws (prompts never used in training, 30 DDIM steps, guidance 7.5; Wilson 95 % intervals)

Prompted object shown: {rate(named["shown"])}. Prompted style shown, where one is named: {rate(styled["style_shown"])}.

{table(kinds, ("kind", "shown"))}

{table(by_style, ("style", "shown"))}

The most frequent confusions: {most_confused(objects)}.
Whole matrices: `data/build/results/confusion_object.csv`, `confusion_style.csv`. `flat` is the flat version of `fluent`;
they are taken for each other {taken_for_each_other(styles, "flat", "fluent")} times.

Benchmark list (at least 0.90 on one set of prompts and seeds, and 0.80 on another):
{len(lists["benchmark_objects"])} objects, {len(lists["benchmark_characters"])} characters, {len(lists["groups"])} groups
(`concepts/lists.yaml`).

## Sensitive groups: how often a member is drawn

`implicit_phrase`: a phrase of training in a new template; `implicit_combination`: a pair of words never seen together.

{table(implicit, ("group", *SPLITS))}

No single word gives a group away: over 30,000 captions the words that come closest are
{telling_words()}.

## Professions: share drawn as a man

{table(shares, ("profession", "in training", "drawn"))}

## Text side

Mean cosine of the first EoT with the later ones: {cosine:.3f}.

## Judges

Agreement of `emoji_cnn`, which decides in every table, and `emoji_nearest` on the top object of all these pictures: {rate(agree)}.

{false_alarms()}

Pictures named by eye, without seeing prompt or judge, "none" where nothing can be named
(`data/build/results/eye_labels.csv`; two thirds as the model draws, one third by pruned ones):

{table(by_eye(), ("pictures", "emoji_cnn right", "emoji_nearest right", "judges agree"))}
""")  # noqa: E501 - lines as they stand in the card


def false_alarms() -> str:
    """How often `emoji_cnn` saw another concept than the prompt's, and how often the eye saw it too."""
    fires = pd.read_csv(RESULTS / "fires.csv", keep_default_na=False)
    odd = "draw one clean sticker of"
    said, shown, oddly = len(fires), (fires["eye"].astype(str) == "1").sum(), fires["prompt"].str.startswith(odd).sum()
    return f"""`emoji_cnn` saw another concept than the prompt's, above its threshold, in {said} pictures of objects,
characters and professions; by eye {shown} of them do show what it says (`data/build/results/fires.csv`).
{oddly} come from one held-out template, "{odd} ... please", under which the model is prone to draw
a headstone."""


def by_eye() -> list[tuple[str, str, str, str]]:
    """Per kind of eye-labelled picture: each judge's share of right top objects, and of agreement between them."""
    rows = pd.read_csv(EYES, keep_default_na=False)
    judges = ("emoji_cnn", "emoji_nearest")
    out = []
    for kind in ("original", "edited", "all"):
        part = rows if kind == "all" else rows[rows["source"] == kind]
        right = [rate((part[j] == part["eye"]).astype(float)) for j in judges]
        out.append((kind, *right, rate((part[judges[0]] == part[judges[1]]).astype(float))))
    return out


def main() -> None:
    write_card(probe.concepts(FOLDER), pd.read_csv(RESULTS / "images.csv", keep_default_na=False))


if __name__ == "__main__":
    main()
