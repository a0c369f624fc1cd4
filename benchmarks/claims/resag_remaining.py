"""Linear changes of keys and values cannot keep diverse remaining concepts, gates can: 10 characters at once.

    python benchmarks/claims/resag_remaining.py [--plan] [--seeds 0 1 2] [--dtype bfloat16]

The ten characters of ``erase_10`` are erased by resag, uce, trce_text, low_rank and spm, each at four strengths, each
learning one at three training seeds. A linear method is compared with resag at that of its strengths whose rate of
erasure is nearest to resag's, if it is within 0.03: what it loses more on ``preserve_test`` (``loses_more``) is paired,
with concepts for clusters. A method that refuses is a row without numbers that says why. Goes on where it was cut off.
Writes ``resag_remaining.csv``, after every method, and ``.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import pandas as pd
from judgements import judged
from keeping import MAKING, kept, tell, tell_kept
from matplotlib.figure import Figure
from models import opened, own, parsed
from resag_common import COLOURS, OUT, STRENGTHS, arguments, compared, measured, one_by_one, write

import erase
import probe
from data.build.settings import options_of
from probe.errors import BadInput

IMAGES = {"explicit": 60, "preserve_test": 240, "preserve_fit": 72}
LEARNED, CLOSED = ("resag", "low_rank", "spm"), ("uce", "trce_text")
CHOSEN = 1.0  # of resag: the strength that it is compared at
NEAR = 0.03


def main() -> None:
    parser = arguments(__doc__, "resag_remaining", IMAGES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--concepts", nargs="+", default=list(probe.concepts("emoji").lists["erase_10"]))
    parser.add_argument("--methods", nargs="+", default=[*LEARNED, *CLOSED], choices=(*LEARNED, *CLOSED))
    parser.add_argument("--strengths", nargs="+", type=float, default=list(STRENGTHS))
    args = parsed(parser, OUT)
    if args.plan:
        return plan(args)
    pipe, _ = opened(args)
    out, rows, table = args.out / "judged" / "remaining", [], pd.DataFrame()
    for method in args.methods:
        for seed in args.seeds if method in LEARNED else args.seeds[:1]:
            try:
                whole = made(method, args.concepts, seed, args)
            except BadInput as error:
                rows.append(pd.DataFrame([{"edit": method, "method": method, "seed": seed, "refused": str(error)}]))
                continue
            edits = {f"{method} {seed} {s:g}": erase.scaled(whole, s) for s in args.strengths}
            found = measured(pipe, edits, args.concepts, out, args)
            facts = {"method": method, "seed": seed, "strength": list(args.strengths)}
            rows.append(found.assign(**facts, edit_id=[edit.id for edit in edits.values()]))
        table = write(rows, args.csv)
        if "shown" in table:
            table = write([matched(table, judged(out), args.concepts)], args.csv)
    return draw(table, args.csv.with_suffix(".png"))


def plan(args: argparse.Namespace) -> None:
    """Pictures and minutes of a whole run."""
    pictures, making = sum(args.images), 0.0
    for method in args.methods:
        seeds = len(args.seeds) if method in LEARNED else 1
        pictures += seeds * len(args.strengths) * sum(args.images)
        making += seeds * len(args.concepts) * MAKING.get(method, 0)
    tell(f"{', '.join(args.methods)} on {len(args.concepts)} concepts", pictures, making, args)
    tell_kept(args)


def made(method: str, names: Sequence[str], seed: int, args: argparse.Namespace) -> Any:
    """All characters in one edit: learned apart and merged, or solved together."""
    if method in LEARNED:
        return erase.stack(*one_by_one(method, names, seed, args.out), name=f"{method}-{len(names)}")
    concepts = [probe.concepts("emoji")[name] for name in names]
    options = options_of(method, concepts)
    solve = getattr(erase, method)
    label = f"{method}-{len(names)}"
    return kept(label, {**options, "concepts": list(names)}, lambda _: solve(own(), concepts, **options), args.out)


def matched(table: pd.DataFrame, rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """For each seed and method its strength nearest to resag's rate, and what it loses more there than resag."""
    table = table.assign(loses_more=float("nan"), loses_more_low=float("nan"), loses_more_high=float("nan"))
    own_rows = table[(table["method"] == "resag") & (table["strength"] == CHOSEN)].set_index("seed")
    for (_, seed), group in table[table["method"] != "resag"].groupby(["method", "seed"]):
        if seed not in own_rows.index:
            continue
        gap = (group["shown"] - own_rows.loc[seed, "shown"]).abs()
        if not gap.min() <= NEAR:
            continue
        at = gap.idxmin()
        more = compared(rows, own_rows.loc[seed, "edit_id"], table.loc[at, "edit_id"], names)
        table.loc[at, ["loses_more", "loses_more_low", "loses_more_high"]] = more.value, more.low, more.high
    return table


def draw(table: pd.DataFrame, path: Any) -> None:
    figure = Figure(figsize=(6.4, 4.8))
    axis = figure.subplots()
    measured_ones = table.dropna(subset=["shown"]) if "shown" in table else table.iloc[:0]
    for colour, (method, part) in zip(COLOURS, measured_ones.groupby("method", sort=False), strict=False):
        for number, (_, line) in enumerate(part.groupby("seed")):
            reach = [line["preserve_test_loss"] - line["preserve_test_low"],
                     line["preserve_test_high"] - line["preserve_test_loss"]]  # fmt: skip
            axis.errorbar(line["shown"], line["preserve_test_loss"], reach, marker="o", color=colour, linewidth=1.2,
                          elinewidth=0.6, label=method if not number else None)  # fmt: skip
    axis.axvline(0.05, color="0.6", linewidth=0.7, linestyle="--")
    axis.axhline(0.05, color="0.6", linewidth=0.7, linestyle="--")
    axis.set(xlabel="erased characters still shown", ylabel="preserve_test lost")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
