"""How many weights does ConceptPrune need, and which window? Skill ratio x window, beside masks of equal density.

    python benchmarks/claims/concept_prune_density.py [--plan] [--concepts church weapon] [--images 50 50]
        [--dtype bfloat16]

Five skill ratios and three windows (the paper's, the first half, the second); of every mask a random and a magnitude
control with as many zeros in every row. 100 test pictures a cell: the concept's own, and ``preserve_test``. Settings
are not chosen here: the whole sweep is the result. ``density_unet`` is the share of all weights of the UNet (the paper
says 0.12 %), ``density`` that of the feed-forwards' last Linears. Writes ``concept_prune_density.csv`` and ``.png``.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from concept_prune_common import OUT, WINDOWS, arguments, density_of_unet, skill_map, tell
from keeping import updated
from matplotlib.figure import Figure
from models import opened, parsed

import erase
import probe

CONCEPTS = ("church", "weapon")
SKILL_RATIOS = (0.01, 0.03, 0.08, 0.15, 0.3)
KINDS = ("skilled", "random", "magnitude")
SPLITS = ("explicit", "preserve_test")
PAPER = 0.0012


def main() -> None:
    parser = arguments(__doc__, "concept_prune_density", CONCEPTS)
    parser.add_argument("--skill-ratios", nargs="+", type=float, default=list(SKILL_RATIOS))
    parser.add_argument("--windows", nargs="+", default=list(WINDOWS), choices=list(WINDOWS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--images", nargs=2, type=int, default=[50, 50], metavar=("CONCEPT", "PRESERVE"))
    args = parsed(parser, OUT)
    if args.plan:
        cells = len(args.skill_ratios) * len(args.windows) * len(args.kinds) + 1
        return tell(cells * sum(args.images) * len(args.concepts), 2 * args.recorded * len(args.concepts), args)
    pipe, world = opened(args)
    tables = []
    for name in args.concepts:
        nm = skill_map(pipe, world[name], args)
        edits, facts = {}, {}
        for window, ratio in itertools.product(args.windows, args.skill_ratios):
            mask = erase.concept_prune(pipe, nm, skill_ratio=ratio, window=WINDOWS[window])
            for kind in args.kinds:
                edit = mask if kind == "skilled" else erase.control_mask(mask, pipe, kind=kind)
                label = f"{kind}, {window}, {ratio:g}"
                edits[label] = edit
                facts[label] = {"kind": kind, "window": window, "skill_ratio": ratio, "density": edit.density,
                                "density_unet": density_of_unet(pipe, edit)}  # fmt: skip
        counts = dict(zip(SPLITS, args.images, strict=True))
        table = probe.evaluate(pipe, edits, [name], world=world, splits=SPLITS, n_prompts=counts,
                               metrics=("rate", "broken"), batch_size=args.batch_size,
                               out=args.out / "judged" / f"density-{name}")  # fmt: skip
        table = table[table["split"].isin(SPLITS)]
        tables.append(table.join(pd.DataFrame(facts).T, on="edit"))
        found = updated(pd.concat(tables, ignore_index=True), args.csv, ["concept"], digits=6)
        draw(found, args.csv.with_suffix(".png"))
    return None


def draw(table: pd.DataFrame, path: Path) -> None:
    """Rates over the density in the UNet: the concept's own above, what must survive below; a column a concept."""
    concepts = list(dict.fromkeys(table["concept"]))
    figure = Figure(figsize=(4.4 * len(concepts) + 1.5, 6.2))
    grid = figure.subplots(2, len(concepts), sharex=True, sharey="row", squeeze=False)
    colours = dict(zip(WINDOWS, ("#0072B2", "#009E73", "#D55E00"), strict=True))
    styles = {"skilled": ("o", "-"), "random": ("x", ":"), "magnitude": ("s", "--")}
    rates = table[table["metric"] == "rate"]
    for column, concept in enumerate(concepts):
        for axis, split in zip(grid[:, column], SPLITS, strict=True):
            part = rates[(rates["concept"] == concept) & (rates["split"] == split)]
            for (window, kind), line in part.groupby(["window", "kind"], sort=False):
                line = line.sort_values("skill_ratio")
                marker, style = styles[kind]
                x, y = line["density_unet"].astype(float) * 100, line["value"].astype(float)
                reach = np.clip(np.array([y - line["ci_low"], line["ci_high"] - y], float), 0, None)
                axis.errorbar(x, y, reach if kind == "skilled" else None, marker=marker, linestyle=style, markersize=4,
                              color=colours[window], linewidth=1, elinewidth=0.6,
                              label=f"{kind}, {window}")  # fmt: skip
            axis.axhline(part["original"].iloc[0], color="black", linewidth=0.8, linestyle="--")
            axis.axvline(PAPER * 100, color="0.7", linewidth=0.8)
            axis.set(xscale="log", ylim=(-0.03, 1.03), title=concept if split == SPLITS[0] else "")
    for axis, split in zip(grid[:, 0], SPLITS, strict=True):
        axis.set_ylabel(f"{split}: shown")
    for axis in grid[1]:
        axis.set_xlabel("weights of the UNet that are zero, %")
    grid[0, -1].legend(fontsize=7, frameon=False, bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
