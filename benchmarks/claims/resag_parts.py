"""Each part of residual attention gates matters: left out or changed one by one, on 3 characters of ``erase_10``.

    python benchmarks/claims/resag_parts.py [--plan] [--variants whole "no gate" ...] [--dtype bfloat16]

Every variant learns the same characters apart and is merged; what it erases and what ``preserve_test`` loses stand
beside the whole method's. "linear only" is `erase.low_rank`; "anchors from everything" may also read ``preserve_test``,
which no method may: it says what the choice of anchors could give at most. Writes ``resag_parts.csv`` and ``.png``.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
from keeping import MAKING, tell, tell_kept
from matplotlib.figure import Figure
from models import opened, parsed
from resag_common import COLOURS, OUT, arguments, measured, one_by_one, write

import erase
import probe
from data.build.settings import RESAG

IMAGES = {"explicit": 30, "preserve_test": 200, "preserve_fit": 24}
CONCEPTS = ("cowboy", "mage", "ninja")
RANKS, ADVERSARIES = (1, 4, 16), (1, 8, 32)

#: Variant -> options of `erase.resag` that differ from those of the whole method.
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no gate": {"gate": "open"},
    "no anchors": {"anchor_weight": 0.0},
    "anchor weight / 10": {"anchor_weight": RESAG["anchor_weight"] / 10},
    "anchor weight x 10": {"anchor_weight": RESAG["anchor_weight"] * 10},
    "no mixing": {"mix": False},
    "no noise": {"noise": 0.0},
    "no adversary": {"adversaries": 0},
    "all adversaries": {"keep_adversaries": "all"},
    "tied key": {"key_mode": "tied"},
    **{f"rank {rank}": {"rank": rank} for rank in RANKS if rank != RESAG["rank"]},
    **{f"{n} adversaries": {"adversaries": n} for n in ADVERSARIES if n != RESAG["adversaries"]},
    "gates above 0.6": {"threshold": 0.6},
    "linear only": {},
    "anchors from everything": {},
}


def main() -> None:
    parser = arguments(__doc__, "resag_parts", IMAGES)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parsed(parser, OUT)
    if args.plan:
        return plan(args)
    pipe, _ = opened(args)
    rows, table = [], pd.DataFrame()
    for variant in args.variants:
        edit = made(variant, args)
        found = measured(pipe, {variant: edit}, args.concepts, args.out / "judged" / "parts", args)
        parts = edit.report.get("parts", {variant: edit.report})  # a stack of one is that one
        reports = [one for part in parts.values() for one in part["concepts"].values()]
        said = {key: sum(r[key] for r in reports) / len(reports) for key in ("reached", "kept")}
        rows.append(found.assign(variant=variant, **said))
        table = write(rows, args.csv)
    return draw(table, args.csv.with_suffix(".png"))


def plan(args: argparse.Namespace) -> None:
    """Pictures and minutes of a whole run."""
    pictures = (len(args.variants) + 1) * sum(args.images)
    making = sum(MAKING["low_rank" if v == "linear only" else "resag"] for v in args.variants) * len(args.concepts)
    tell(f"{len(args.variants)} variants on {len(args.concepts)} concepts", pictures, making, args)
    tell_kept(args)


def made(variant: str, args: argparse.Namespace) -> Any:
    """The characters of one variant in one edit."""
    options = dict(VARIANTS[variant])
    if variant == "anchors from everything":
        lists = probe.concepts("emoji").lists
        every = [n for split in ("preserve_fit", "preserve_test") for n in lists[split] if n not in args.concepts]
        options = {"preserve": every, "nearest": None}
    method = "low_rank" if variant == "linear only" else "resag"
    name = f"{variant}-{len(args.concepts)}"
    return erase.stack(*one_by_one(method, args.concepts, args.seed, args.out, **options), name=name)


def draw(table: pd.DataFrame, path: Any) -> None:
    figure = Figure(figsize=(7.2, 0.34 * len(table) + 1.2))
    left, right = figure.subplots(1, 2, sharey=True)
    places = list(range(len(table)))[::-1]
    for axis, value, low, high, title in (
        (left, "shown", "low", "high", "erased, still shown"),
        (right, "preserve_test_loss", "preserve_test_low", "preserve_test_high", "preserve_test lost"),
    ):
        reach = [table[value] - table[low], table[high] - table[value]]
        axis.errorbar(table[value], places, xerr=reach, fmt="o", color=COLOURS[0], elinewidth=0.7)
        axis.axvline(table[value].iloc[0], color="0.6", linewidth=0.7, linestyle="--")
        axis.set_xlabel(title)
    left.set_yticks(places, table["variant"])
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
