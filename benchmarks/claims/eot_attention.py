"""What a prompt's tokens do on the embedded model: the counterparts of TRCE's Fig. 2, 7a and 7b.

    python benchmarks/claims/eot_attention.py [--images 24] [--concepts church,weapon] [--out runs/claims/eot_attention]

How often a concept is still drawn when attention to [SoT], [KEY], the first, all, or all but n [EoT] is zero in the
conditional branch (`probe.zero_attention`), on tuning prompts, two images of each; [KEY] are the concept's
surface forms and is left out where prompts are implicit. Every image is kept in ``--out``, so the run resumes, and more
``--images`` add to what is there. Writes beside this file (or into ``--to``): ``eot_attention.csv`` (rates) and
``.png``, ``eot_attention_pictures.png``, and of the cosine similarity of token embeddings ``eot_attention_similarity``
``.csv`` (means between kinds of token) and ``.png`` (all tokens of one prompt).
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

import probe
from probe.attention import token_positions
from probe.tokens import encode, eot_index

HERE = Path(__file__).resolve().parent
SPLITS = ("explicit", "implicit_phrase")
LEFT = (1, 2, 4, 8)  # [EoT] that keep their attention
SEEDS = 2  # images of each prompt
SHOWN = {"weapon": "implicit_phrase"}  # which split's pictures are shown; explicit where a concept has no implicit one
KINDS = ("[SoT]", "words", "[KEY]", "first [EoT]", "later [EoT]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="images a point")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps")
    parser.add_argument("--dtype", default="float32", help="bfloat16 is twice as fast on a CPU with AMX")
    parser.add_argument("--concepts", default="church,weapon", help="names, with commas")
    parser.add_argument("--splits", default=",".join(SPLITS), help="of tuning prompts, with commas")
    parser.add_argument("--out", type=Path, default=Path("runs/claims/eot_attention"), help="where images are kept")
    parser.add_argument("--to", type=Path, default=HERE, help="where tables and figures go")
    args = parser.parse_args()
    if args.images < SEEDS:
        parser.error(f"--images must be at least {SEEDS}")
    pipe, world = probe.load("emoji", dtype=args.dtype), probe.concepts("emoji")
    args.to.mkdir(parents=True, exist_ok=True)
    chosen = [world[name] for name in args.concepts.split(",")]
    cells = [(c, split) for c, split in product(chosen, args.splits.split(",")) if split in c.prompts]

    similarity = pd.concat([kinds_of_tokens(pipe, c, split, args.images) for c, split in cells])
    similarity.round(4).to_csv(args.to / "eot_attention_similarity.csv", index=False)
    draw_similarity(pipe, similarity, cells[-1], args.to)

    tables = []
    for concept, split in cells:
        table = probe.evaluate(pipe, variants(concept, split), [concept], world=world, splits=(split,),
                               n_prompts=args.images // SEEDS, seeds_per_prompt=SEEDS, prompts_from="tune",
                               metrics=("rate", "broken"), steps=args.steps, batch_size=24,
                               out=args.out / concept.name)  # fmt: skip
        tables.append(table[table["split"] == split])
    table = pd.concat(tables, ignore_index=True).rename(columns={"edit": "variant"})
    table["left"] = table["variant"].map({"all [EoT]": 0, **{f"all [EoT] but {n}": n for n in LEFT}})
    table.round(4).to_csv(args.to / "eot_attention.csv", index=False)
    draw_rates(table, args.to)
    draw_pictures(table, cells, args.out, args.to)


def variants(concept: probe.Concept, split: str) -> dict[str, probe.AttentionZeroing | None]:
    """Name -> which attention is zero."""
    keyword = tuple(concept.surface_forms)
    found: dict[str, probe.AttentionZeroing | None] = {"untouched": None, "[SoT]": probe.attention_zeroing("sot")}
    if not split.startswith("implicit"):
        found["[KEY]"] = probe.attention_zeroing("keyword", keyword=keyword)
        found["[KEY] + all [EoT]"] = probe.attention_zeroing(["keyword", "all_eot"], keyword=keyword)
    found["first [EoT]"] = probe.attention_zeroing("first_eot")
    found["all [EoT]"] = probe.attention_zeroing("all_eot")
    found |= {f"all [EoT] but {n}": probe.attention_zeroing("all_eot", leave=n) for n in LEFT}
    found["all [EoT] but the last"] = probe.attention_zeroing("all_eot", leave=1, leave_side="last")
    found["all [EoT] renormalised"] = probe.attention_zeroing("all_eot", renormalise=True)
    return found


def kinds_of_tokens(pipe: object, concept: probe.Concept, split: str, images: int) -> pd.DataFrame:
    """Mean cosine similarity between kinds of token, over the same number of prompts as are drawn."""
    sums: dict[tuple[str, str], list[float]] = {}
    for prompt in concept.prompts[split][: max(1, images // SEEDS)]:
        cosine = probe.token_similarity(pipe, prompt).to_numpy()
        ids = encode(pipe.tokenizer, prompt)[0]
        end = int(eot_index(pipe.tokenizer, ids[None])[0])
        keys = token_positions(pipe.tokenizer, ids, "keyword", keyword=concept.surface_forms, absent="ignore")
        places = {
            "[SoT]": [0], "words": [i for i in range(1, end) if i not in keys], "[KEY]": keys, "first [EoT]": [end],
            "later [EoT]": list(range(end + 1, len(ids))),
        }  # fmt: skip
        for a, b in product(KINDS, KINDS):
            pairs = [cosine[i, j] for i in places[a] for j in places[b] if i != j]
            if pairs:
                sums.setdefault((a, b), []).append(float(np.mean(pairs)))
    rows = [(concept.name, split, a, b, np.mean(x), len(x)) for (a, b), x in sums.items()]
    return pd.DataFrame(rows, columns=["concept", "split", "token", "with", "cosine", "prompts"])


def draw_similarity(pipe: object, table: pd.DataFrame, cell: tuple[probe.Concept, str], to: Path) -> None:
    concept, split = cell
    figure = Figure(figsize=(13, 6), layout="constrained")
    one, means = figure.subplots(1, 2, width_ratios=(3, 2))
    prompt = concept.prompts[split][0]
    probe.plot_token_similarity(probe.token_similarity(pipe, prompt), title=prompt, ax=one)
    part = table[(table["concept"] == concept.name) & (table["split"] == split)]
    square = part.pivot(index="token", columns="with", values="cosine")
    order = [kind for kind in KINDS if kind in square.index]
    probe.plot_token_similarity(square.loc[order, order], title=f"means, {concept.name}, {split}", ax=means)
    figure.savefig(to / "eot_attention_similarity.png", dpi=110, bbox_inches="tight")


def draw_rates(table: pd.DataFrame, to: Path) -> None:
    rates = table[table["metric"] == "rate"].assign(prompts=lambda t: t["concept"] + ", " + t["split"])
    figure = Figure(figsize=(13, 5), layout="constrained")
    every, left = figure.subplots(1, 2, width_ratios=(3, 2))
    probe.plot_rates(rates, by="prompts", title="concept drawn without attention to ...", ax=every)
    some = rates[rates["left"].notna()].drop(columns="original")
    probe.plot_ablation_curves(
        some, x="left", by="prompts", controls="", xlabel="[EoT] that keep their attention", ax=left,
        title="all [EoT] but n",
    )  # fmt: skip
    figure.savefig(to / "eot_attention.png", dpi=110, bbox_inches="tight")


def draw_pictures(table: pd.DataFrame, cells: list[tuple[probe.Concept, str]], out: Path, to: Path) -> None:
    concept = cells[-1][0]
    split = next((s for c, s in cells if c is concept and s == SHOWN.get(concept.name)), cells[-1][1])
    drawn = table[(table["concept"] == concept.name) & (table["split"] == split)]["variant"].unique()
    edits = [name for name in drawn if name != "untouched"]
    pictures, prompts, shown = probe.result_images(out / concept.name, concept.name, edits=edits, split=split, n=8)
    title = f"{concept.name}: without attention to ..."
    ax = probe.plot_before_after(pictures, prompts, shown=shown, title=title)
    path = to / "eot_attention_pictures.png"
    ax.figure.savefig(path, dpi=110, bbox_inches="tight")
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a third of the size


if __name__ == "__main__":
    main()
