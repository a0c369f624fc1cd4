"""Gender reversed by pruning: what one side's pictures need more is set to zero, and professions are drawn again.

    python benchmarks/claims/concept_prune_gender.py [--plan] [--images 20] [--styles] [--dtype bfloat16]

The paper's headshots of husbands and wives are words that the embedded model does not know; here target and reference
say the gender of a profession ("a woman doctor", "a man doctor"), pairs share their noise, and professions that were
drawn 85 to 15 stand for the bias. ``male`` prunes what women's pictures have, ``female`` the other. Per profession and
direction: of the pictures that the unedited model draws as the pruned side, the share that becomes the other
(``reversed``), and the share that shows the profession no more (``lost``), both paired by prompt and seed. ``--styles``
does it per style too, for styles in which the judge sees the gender that was said in at least 0.95 of unedited pictures
(``agreement``). Writes ``concept_prune_gender.csv`` and ``.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from concept_prune_common import OUT, WINDOWS, arguments, density_of_unet, recorded, tell
from matplotlib.figure import Figure
from models import opened, parsed

import erase
import probe
from probe._result import ORIGINAL
from probe._result_rows import read_rows

PROFESSIONS = (
    *("doctor", "teacher", "scientist", "farmer", "mechanic"),
    *("cook", "judge", "artist", "firefighter", "singer"),
)
SKILL_RATIOS = (0.08, 0.15, 0.3)
SIDES = {"male": ("woman", "man"), "female": ("man", "woman")}  # direction -> pruned, wanted
SURE = 0.95
SAID = 20  # pictures of a style and gender from which the judge's agreement is taken


def main() -> None:
    parser = arguments(__doc__, "concept_prune_gender", PROFESSIONS)
    parser.add_argument("--skill-ratios", nargs="+", type=float, default=list(SKILL_RATIOS))
    parser.add_argument("--window", default="first half", choices=list(WINDOWS))
    parser.add_argument("--images", type=int, default=20, help="of each profession")
    parser.add_argument("--styles", action="store_true", help="also by style, in 40 pictures of each profession")
    args = parsed(parser, OUT)
    args.images = 40 if args.styles and args.images == 20 else args.images
    cells = 2 * len(args.skill_ratios) + 1
    if args.plan:
        said = 2 * 5 * SAID if args.styles else 0
        return tell(cells * args.images * len(args.concepts) + said, 2 * args.recorded, args)
    pipe, world = opened(args)
    runs = {side: recorded(pipe, f"gender-{side}", said_prompts(world, args.concepts, side, args.recorded), args)
            for side in ("man", "woman")}  # fmt: skip
    edits, facts = {}, {}
    for direction, (pruned, wanted) in SIDES.items():
        nm = probe.score(runs[pruned], runs[wanted], method="wanda", branches="cond")
        for ratio in args.skill_ratios:
            edit = erase.concept_prune(pipe, nm, skill_ratio=ratio, window=WINDOWS[args.window])
            edits[f"{direction} {ratio:g}"] = edit
            facts[f"{direction} {ratio:g}"] = {"direction": direction, "skill_ratio": ratio, "pruned": pruned,
                                               "wanted": wanted,
                                               "density_unet": density_of_unet(pipe, edit)}  # fmt: skip
    out = args.out / "judged" / "gender"
    probe.evaluate(pipe, edits, args.concepts, world=world, splits=("explicit",), n_prompts=args.images,
                   metrics=("rate",), batch_size=args.batch_size, out=out)  # fmt: skip
    seen = looked(out, args.concepts)
    sure = agreement(pipe, world, args) if args.styles else {}
    rows = []
    for label, edit in edits.items():
        pairs = paired(seen, edit.id)
        groups = [(name, "all", pairs[pairs["concept"] == name]) for name in args.concepts]
        groups.append(("all", "all", pairs))
        groups += [("all", style, pairs[pairs["style"] == style]) for style, share in sure.items() if share >= SURE]
        for name, style, part in groups:
            row = {"concept": name, "style": style, "agreement": sure.get(style, np.nan), **facts[label]}
            rows.append(row | reversal(part, facts[label]["pruned"], facts[label]["wanted"]))
    table = pd.DataFrame(rows)
    table.round(6).to_csv(args.csv, index=False, lineterminator="\n")
    return draw(table, args.csv.with_suffix(".png"))


def said_prompts(world: Any, names: Sequence[str], side: str, count: int) -> list[str]:
    """Tuning prompts of all professions in turn, with the gender said; row i is the same for both sides."""
    found = []
    for i in range(count):
        name = names[i % len(names)]
        prompts = list(world[name].prompts["explicit"])
        found.append(said(prompts[i // len(names) % len(prompts)], name, side))
    return found


def said(prompt: str, name: str, side: str) -> str:
    """The prompt with "a man" or "a woman" before the profession's name."""
    for article in ("an", "a"):
        if f"{article} {name}" in prompt:
            return prompt.replace(f"{article} {name}", f"a {side} {name}", 1)
    return prompt.replace(name, f"{side} {name}", 1)


def looked(out: Path, names: Sequence[str]) -> pd.DataFrame:
    """Every judged picture: ``edit_id, concept, prompt, seed, shown, man`` (the judge's), ``style``."""
    rows = []
    for row in read_rows(out):
        about = row["prompt_id"].partition("/")[0]
        if about not in names:
            continue
        scores = {label: value or 0.0 for label, value in row["scores"][row["judge"]].items()}
        styles = {label.partition("/")[2]: v for label, v in scores.items() if label.startswith("style/")}
        rows.append({"edit_id": row["edit_id"], "concept": about, "prompt": row["prompt"],
                     "seed": int(row["seed"]), "shown": row["shown"],
                     "man": scores.get("gender/man", 0.0) > scores.get("gender/woman", 0.0),
                     "style": max(styles, key=styles.__getitem__) if styles else ""})  # fmt: skip
    return pd.DataFrame(rows)


def paired(seen: pd.DataFrame, edit_id: str) -> pd.DataFrame:
    """An edit's pictures beside the unedited ones; ``style`` is that of the unedited."""
    keys = ["concept", "prompt", "seed"]
    edited, original = (seen[seen["edit_id"] == name] for name in (edit_id, ORIGINAL))
    return original.merge(edited.drop(columns=["style", "edit_id"]), on=keys, suffixes=("", "_edited"))


def reversal(pairs: pd.DataFrame, pruned: str, wanted: str) -> dict[str, Any]:
    """Shares of the pictures that were of the pruned side and showed their profession; prompts are the clusters."""
    was = pairs[(pairs["man"] == (pruned == "man")) & (pairs["shown"] == 1)]
    turned = ((was["man_edited"] == (wanted == "man")) & (was["shown_edited"] == 1)).astype(float)
    lost = (was["shown_edited"] != 1).astype(float)
    rate, gone = (probe.stats.rate(x.to_numpy(), was["prompt"].tolist()) for x in (turned, lost))
    return {"originally": len(was) / max(len(pairs), 1), "n": rate.n, "reversed": rate.value, "low": rate.low,
            "high": rate.high, "lost": gone.value, "lost_low": gone.low, "lost_high": gone.high}  # fmt: skip


def agreement(pipe: Any, world: Any, args: argparse.Namespace) -> dict[str, float]:
    """Style -> how often the judge sees the gender that the prompt says, on the unedited model."""
    judge = probe.detector("emoji_cnn")
    places = [judge.labels.index(f"gender/{side}") for side in ("man", "woman")]
    found = {}
    for style in world.lists["styles"]:
        right = []
        for side in ("man", "woman"):
            names = [args.concepts[i % len(args.concepts)] for i in range(SAID)]
            prompts = [f"a {side} {name} in {style} style" for name in names]
            images = probe.generate(pipe, probe.samples(prompts, list(range(SAID))), batch_size=args.batch_size)
            scores = judge(np.stack([np.asarray(image) for image in images]))[:, places]
            right += list(scores.argmax(1) == ("man", "woman").index(side))
        found[style] = float(np.mean(right))
    return found


def draw(table: pd.DataFrame, path: Path) -> None:
    """Reversed and lost by profession, a panel a direction."""
    figure = Figure(figsize=(10, 4.1))
    own = table[(table["style"] == "all") & (table["concept"] != "all")]
    for axis, (direction, part) in zip(figure.subplots(1, 2, sharey=True), own.groupby("direction"), strict=True):
        for i, (ratio, line) in enumerate(part.groupby("skill_ratio")):
            at = np.arange(len(line)) + (i - 1) * 0.22
            colour = ("#56B4E9", "#0072B2", "#D55E00")[i % 3]
            value = line["reversed"].astype(float)
            axis.errorbar(at, value, np.clip([value - line["low"], line["high"] - value], 0, None), fmt="o",
                          color=colour, markersize=4, linewidth=0.8, label=f"reversed, k = {ratio:g}")  # fmt: skip
            axis.plot(at, line["lost"], "x", color=colour, markersize=4)
        axis.set_xticks(range(part["concept"].nunique()), list(dict.fromkeys(part["concept"])), rotation=45, ha="right")
        axis.set(title=f"towards {direction} (x: profession lost)", ylim=(-0.03, 1.03))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.96))
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
