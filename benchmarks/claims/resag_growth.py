"""Growth: 1, 5, 10 and 20 concepts erased by merged gates: erased, remaining, time, size, and what drawing costs.

    python benchmarks/claims/resag_growth.py [--counts 1 5 10 20] [--out runs/claims/resag]

Concepts are those of ``erase_20``, which begins with those of ``erase_10``; each is learned once, apart. What drawing
costs is the time of a pipeline call with the gates over one without, in turn. Writes ``resag_growth.csv`` and ``.png``.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from models import drawing, own
from resag_common import COLOURS, arguments, measured, of_images, one_by_one, seconds

import erase
import probe

IMAGES = {"explicit": 60, "preserve_test": 200, "preserve_fit": 40}
COUNTS = (1, 5, 10, 20)


def main() -> None:
    parser = arguments(__doc__, "resag_growth", IMAGES)
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=5, help="pairs of pipeline calls that are timed")
    args = parser.parse_args()
    pipe, world = drawing(args.dtype), probe.concepts("emoji")
    own().set_progress_bar_config(disable=True)
    every, rows = list(world.lists["erase_20"]), []
    for count in [c for c in args.counts if c <= len(every)]:
        names = every[:count]
        edit = erase.stack(*one_by_one("resag", names, args.seed, args.out), name=f"resag-{count}")
        table = measured(pipe, {f"{count} {edit.id[:6]}": edit}, names, args.out / "growth", of_images(args))
        spent = sum(seconds(f"resag-{name}-{args.seed}", args.out) for name in names)
        cost = cost_of_drawing(own(), edit, args.calls)
        rows.append(table.assign(concepts=count, seconds=spent, megabytes=edit.nbytes / 1e6, drawing=cost))
        pd.concat(rows).round(4).to_csv(args.csv, index=False, lineterminator="\n")
    draw(pd.concat(rows), args.csv.with_suffix(".png"))


def cost_of_drawing(pipe: Any, edit: Any, pairs: int) -> float:
    """Median over pairs of seconds with the edit over seconds without; the first pair is not counted."""
    taken = np.zeros((pairs + 1, 2))

    def call() -> float:
        generator, start = torch.Generator().manual_seed(0), time.perf_counter()
        pipe("a drawing of a house", num_inference_steps=30, generator=generator, output_type="latent")
        return time.perf_counter() - start

    for pair in range(pairs + 1):
        for which in (pair % 2, 1 - pair % 2):
            if which:
                taken[pair, 1] = call()
            else:
                with edit.applied(pipe):
                    taken[pair, 0] = call()
    return float(np.median(taken[1:, 0] / taken[1:, 1]))


def draw(table: pd.DataFrame, path: Any) -> None:
    figure = Figure(figsize=(9, 3.2))
    shown, cost = figure.subplots(1, 2)
    for colour, value, low, high, name in (
        (COLOURS[0], "shown", "low", "high", "erased, still shown"),
        (COLOURS[1], "preserve_test_loss", "preserve_test_low", "preserve_test_high", "preserve_test lost"),
    ):
        reach = [table[value] - table[low], table[high] - table[value]]
        shown.errorbar(table["concepts"], table[value], reach, marker="o", color=colour, elinewidth=0.7, label=name)
    shown.legend(frameon=False, fontsize=8)
    cost.plot(table["concepts"], table["drawing"], marker="o", color=COLOURS[2])
    cost.set_ylabel("time of a call over the unedited one's")
    for axis in (shown, cost):
        axis.set_xlabel("concepts erased")
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
