"""Growth: 1, 5, 10 and 20 concepts erased by merged gates: erased, remaining, time, size, and what drawing costs.

    python benchmarks/claims/resag_growth.py [--plan] [--counts 1 5 10 20] [--dtype bfloat16]

Concepts are those of ``erase_20``, which begins with those of ``erase_10``; each is learned once, apart. What drawing
costs is the time of a pipeline call with the gates over one without, in turn. Writes ``resag_growth.csv`` and ``.png``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from keeping import MAKING, tell, tell_kept
from matplotlib.figure import Figure
from models import opened, own, parsed
from resag_common import COLOURS, OUT, arguments, measured, one_by_one, seconds_of, write

import erase
import probe

IMAGES = {"explicit": 60, "preserve_test": 200, "preserve_fit": 40}
COUNTS = (1, 5, 10, 20)


def main() -> None:
    parser = arguments(__doc__, "resag_growth", IMAGES)
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=5, help="pairs of pipeline calls that are timed")
    args = parsed(parser, OUT)
    every = list(probe.concepts("emoji").lists["erase_20"])
    if impossible := [count for count in args.counts if not 1 <= count <= len(every)]:
        parser.error(f"erase_20 has {len(every)} concepts, not {impossible[0]}")
    if args.plan:
        return plan(args)
    pipe, _ = opened(args)
    own().set_progress_bar_config(disable=True)
    rows, table = [], pd.DataFrame()
    for count in args.counts:
        names = every[:count]
        edit = erase.stack(*one_by_one("resag", names, args.seed, args.out), name=f"resag-{count}")
        found = measured(pipe, {str(count): edit}, names, args.out / "judged" / "growth", args)
        spent = seconds_of("resag", names, args.seed, args.out)
        cost = cost_of_drawing(own(), edit, args.calls)
        rows.append(found.assign(concepts=count, seconds=spent, megabytes=edit.nbytes / 1e6, drawing=cost))
        table = write(rows, args.csv)
    return draw(table, args.csv.with_suffix(".png"))


def plan(args: argparse.Namespace) -> None:
    """Pictures and minutes of a whole run; a timed call is one picture."""
    pictures = 2 * len(args.counts) * (sum(args.images) + args.calls + 1)
    tell(f"{max(args.counts)} concepts", pictures, max(args.counts) * MAKING["resag"], args)
    tell_kept(args)


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
