"""Five at once: the union of ConceptPrune's masks of five concepts, beside each mask alone.

    python benchmarks/claims/concept_prune_five.py [--plan] [--concepts ...] [--images 100 60] [--dtype bfloat16]

Five objects of ``benchmark_objects`` unless told otherwise. At every skill ratio: the union of the five masks, with and
without ``keep=`` (a run of protected prompts spares what they need more), a random mask of the union's density, and
each mask alone on its own concept. Test prompts; the concepts' pictures are pooled, and concepts are the clusters of
intervals. Writes ``concept_prune_five.csv`` and ``.png``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from concept_prune_common import OUT, WINDOWS, arguments, density_of_unet, protected, skill_map, tell
from matplotlib.figure import Figure
from models import opened, parsed
from resag_common import judged, summary

import erase
import probe

CONCEPTS = ("church", "airplane", "guitar", "cat", "bus")
SKILL_RATIOS = (0.08, 0.15, 0.3)
UNIONS = ("union", "union, keep", "random")


def main() -> None:
    parser = arguments(__doc__, "concept_prune_five", CONCEPTS)
    parser.add_argument("--skill-ratios", nargs="+", type=float, default=list(SKILL_RATIOS))
    parser.add_argument("--window", default="late", choices=list(WINDOWS))
    parser.add_argument("--images", nargs=2, type=int, default=[100, 60], metavar=("CONCEPTS", "PRESERVE"))
    args = parsed(parser, OUT)
    if args.plan:
        unions = len(args.skill_ratios) * len(UNIONS) + 1
        alone = len(args.skill_ratios) * args.images[0]
        return tell(unions * sum(args.images) + alone, 3 * args.recorded * len(args.concepts), args)
    pipe, world = opened(args)
    maps = {name: skill_map(pipe, world[name], args) for name in args.concepts}
    keep = protected(pipe, world[args.concepts[0]], world, args)
    out = args.out / "judged" / "five"
    common: dict[str, Any] = {"world": world, "metrics": ("rate", "broken"), "batch_size": args.batch_size, "out": out}
    each = max(1, args.images[0] // len(args.concepts))
    rows = []
    for ratio in args.skill_ratios:
        how = {"skill_ratio": ratio, "window": WINDOWS[args.window]}
        union = erase.concept_prune(pipe, list(maps.values()), **how)
        edits = {"union": union, "union, keep": erase.concept_prune(pipe, list(maps.values()), keep=keep, **how),
                 "random": erase.control_mask(union)}  # fmt: skip
        named = {f"{kind} {ratio:g}": edit for kind, edit in edits.items()}
        erased = {label: list(maps) for label in named}
        probe.evaluate(pipe, named, list(maps), splits=("explicit",), erased=erased, n_prompts=each, **common)
        table = probe.evaluate(pipe, named, [args.concepts[0]], splits=("preserve_test",), erased=erased,
                               n_prompts=args.images[1], **common)  # fmt: skip
        broken = table[table["metric"] == "broken"].set_index("edit")["value"]
        seen = judged(out)
        for kind, edit in edits.items():
            rows.append({"kind": kind, "skill_ratio": ratio, "density_unet": density_of_unet(pipe, edit),
                         **summary(seen, kind, edit.id, list(maps), world),
                         "preserve_broken": broken[f"{kind} {ratio:g}"]})  # fmt: skip
        for name, nm in maps.items():
            edit = erase.concept_prune(pipe, nm, **how)
            alone = probe.evaluate(pipe, {f"{name} {ratio:g}": edit}, [name], splits=("explicit",), n_prompts=each,
                                   **common)  # fmt: skip
            cell = alone[(alone["metric"] == "rate") & (alone["edit"] == f"{name} {ratio:g}")].iloc[0]
            rows.append({"kind": "alone", "edit": name, "skill_ratio": ratio, "shown": cell["value"],
                         "low": cell["ci_low"], "high": cell["ci_high"], "original": cell["original"],
                         "density_unet": density_of_unet(pipe, edit), "erased_n": cell["n"]})  # fmt: skip
        found = pd.DataFrame(rows).drop(columns=[c for c in rows[0] if c.startswith("preserve_fit")])
        found.round(6).to_csv(args.csv, index=False, lineterminator="\n")
        draw(found, args.csv.with_suffix(".png"))
    return None


def draw(table: pd.DataFrame, path: Path) -> None:
    """What is still shown, and what others lose, over the skill ratio."""
    figure = Figure(figsize=(9.5, 3.6))
    left, right = figure.subplots(1, 2)
    unions = table[table["kind"] != "alone"]
    for colour, (kind, line) in zip(("#0072B2", "#009E73", "0.55"), unions.groupby("kind", sort=False), strict=False):
        reach = np.clip([line["shown"] - line["low"], line["high"] - line["shown"]], 0, None)
        left.errorbar(line["skill_ratio"], line["shown"], reach, marker="o", color=colour, label=kind)
        reach = [line["preserve_test_loss"] - line["preserve_test_low"],
                 line["preserve_test_high"] - line["preserve_test_loss"]]  # fmt: skip
        right.errorbar(line["skill_ratio"], line["preserve_test_loss"], np.clip(reach, 0, None), marker="o",
                       color=colour, label=kind)  # fmt: skip
    alone = table[table["kind"] == "alone"].groupby("skill_ratio")["shown"].mean()
    left.plot(alone.index, alone, "k:", marker="x", label="each mask alone, mean")
    left.axhline(unions["original"].iloc[0], color="black", linewidth=0.8, linestyle="--")
    left.set(xlabel="skill ratio", ylabel="five concepts: shown", ylim=(-0.03, 1.03))
    right.set(xlabel="skill ratio", ylabel="preserve_test loses")
    left.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
