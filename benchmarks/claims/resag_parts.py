"""Each part of residual attention gates matters: left out or changed one by one, on 3 characters of ``erase_10``.

    python benchmarks/claims/resag_parts.py [--variants whole "no gate" ...] [--out runs/claims/resag]

Every variant learns the same characters apart and is merged; what it erases and what ``preserve_test`` loses stand
beside the whole method's. "linear only" is `erase.low_rank`; "anchors from everything" may also read ``preserve_test``,
which no method may: it says what the choice of anchors could give at most. Writes ``resag_parts.csv`` and ``.png``.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from models import drawing, own
from resag_common import COLOURS, SETTINGS, arguments, kept, measured, of_images, one_by_one

import erase
import probe

IMAGES = {"explicit": 30, "preserve_test": 200, "preserve_fit": 24}
CONCEPTS = ("cowboy", "mage", "ninja")
RANKS, ADVERSARIES = (1, 4, 16), (1, 8, 32)

#: Variant -> options of `erase.resag` that differ from those of the whole method.
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "no gate": {"gate": "open"},
    "no anchors": {"anchor_weight": 0.0},
    "anchor weight / 10": {"anchor_weight": SETTINGS["anchor_weight"] / 10},
    "anchor weight x 10": {"anchor_weight": SETTINGS["anchor_weight"] * 10},
    "no mixing": {"mix": False},
    "no noise": {"noise": 0.0},
    "no adversary": {"adversaries": 0},
    "all adversaries": {"keep_adversaries": "all"},
    "tied key": {"key_mode": "tied"},
    **{f"rank {rank}": {"rank": rank} for rank in RANKS if rank != SETTINGS["rank"]},
    **{f"{n} adversaries": {"adversaries": n} for n in ADVERSARIES if n != SETTINGS["adversaries"]},
    "gates above 0.6": {"threshold": 0.6},
    "linear only": {},
    "anchors from everything": {},
}


def main() -> None:
    parser = arguments(__doc__, "resag_parts", IMAGES)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pipe, tables = drawing(args.dtype), []
    for variant in args.variants:
        edit = made(variant, args)
        table = measured(pipe, {f"{variant} {edit.id[:6]}": edit}, args.concepts, args.out / "parts", of_images(args))
        parts = edit.report.get("parts", {variant: edit.report})  # a stack of one is that one
        reports = [one for part in parts.values() for one in part["concepts"].values()]
        said = {key: sum(r[key] for r in reports) / len(reports) for key in ("reached", "kept")}
        tables.append(table.assign(variant=variant, **said))
        done = pd.concat(tables, ignore_index=True)
        done.round(4).to_csv(args.csv, index=False, lineterminator="\n")
    draw(done, args.csv.with_suffix(".png"))


def made(variant: str, args: Any) -> Any:
    """The characters of one variant in one edit."""
    name = f"{variant}-{len(args.concepts)}"
    if variant == "linear only":
        return erase.stack(*one_by_one("low_rank", args.concepts, args.seed, args.out), name=name)
    if variant != "anchors from everything":
        return erase.stack(*one_by_one("resag", args.concepts, args.seed, args.out, **VARIANTS[variant]), name=name)
    world = probe.concepts("emoji")
    every = [
        world[n] for split in ("preserve_fit", "preserve_test") for n in world.lists[split] if n not in args.concepts
    ]

    def make(concept: str) -> Any:
        return erase.resag(
            own(), world[concept], preserve=every, nearest=None, seed=args.seed, progress=False, **SETTINGS
        )

    parts = [kept(f"resag-{c}-{args.seed}-everything", lambda c=c: make(c), args.out) for c in args.concepts]
    return erase.stack(*parts, name=name)


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
