"""Linear changes of keys and values cannot keep diverse remaining concepts, gates can: 10 characters at once.

    python benchmarks/claims/resag_remaining.py [--seeds 0 1 2] [--out runs/claims/resag]

The ten characters of ``erase_10`` are erased by resag, uce, trce_text, low_rank and spm (those that are there), each at
four strengths, each learning one at three training seeds. A linear method is compared with resag at that of its
strengths whose rate of erasure is nearest to resag's, if it is within 0.03: what it loses more on ``preserve_test`` is
paired, with concepts for clusters. Goes on where it was cut off. Writes ``resag_remaining.csv`` and ``.png``.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from models import drawing, own
from resag_common import COLOURS, STRENGTHS, arguments, compared, judged, kept, measured, of_images, one_by_one

import erase
import probe

IMAGES = {"explicit": 60, "preserve_test": 240, "preserve_fit": 72}
LEARNED, CLOSED = ("resag", "low_rank", "spm"), ("uce", "trce_text")
CHOSEN = 1.0  # of resag: the strength that it is compared at
NEAR = 0.03


def main() -> None:
    parser = arguments(__doc__, "resag_remaining", IMAGES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--concepts", nargs="+", default=None)
    parser.add_argument("--methods", nargs="+", default=[*LEARNED, *CLOSED])
    parser.add_argument("--strengths", nargs="+", type=float, default=list(STRENGTHS))
    args = parser.parse_args()
    pipe, world = drawing(args.dtype), probe.concepts("emoji")
    names = args.concepts or list(world.lists["erase_10"])
    rows = []
    for method in [m for m in args.methods if hasattr(erase, m)]:
        for seed in args.seeds if method in LEARNED else args.seeds[:1]:
            whole = made(method, names, seed, args)
            edits = {f"{method} {seed} {s:g}": erase.scaled(whole, s) for s in args.strengths}
            table = measured(pipe, edits, names, args.out / "remaining", of_images(args))
            facts = {"method": method, "seed": seed, "strength": list(args.strengths)}
            rows.append(table.assign(**facts, edit_id=[edit.id for edit in edits.values()]))
    table = matched(pd.concat(rows, ignore_index=True), judged(args.out / "remaining"), names)
    table.drop(columns=["edit_id"]).round(4).to_csv(args.csv, index=False, lineterminator="\n")
    draw(table, args.csv.with_suffix(".png"))


def made(method: str, names: list[str], seed: int, args: Any) -> Any:
    """All characters in one edit: learned apart and merged, or solved together."""
    if method in LEARNED:
        return erase.stack(*one_by_one(method, names, seed, args.out), name=f"{method}-{len(names)}")
    concepts = [probe.concepts("emoji")[name] for name in names]
    return kept(f"{method}-{len(names)}-{'+'.join(names)}", lambda: getattr(erase, method)(own(), concepts), args.out)


def matched(table: pd.DataFrame, rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """For each seed and method its strength nearest to resag's rate, and what it loses more there."""
    table = table.assign(loses_more=float("nan"), loses_more_low=float("nan"), loses_more_high=float("nan"))
    own = table[(table["method"] == "resag") & (table["strength"] == CHOSEN)].set_index("seed")
    for (_, seed), group in table[table["method"] != "resag"].groupby(["method", "seed"]):
        if seed not in own.index:
            continue
        gap = (group["shown"] - own.loc[seed, "shown"]).abs()
        if gap.min() > NEAR:
            continue
        at = gap.idxmin()
        more = compared(rows, own.loc[seed, "edit_id"], table.loc[at, "edit_id"], names)
        table.loc[at, ["loses_more", "loses_more_low", "loses_more_high"]] = -more.value, -more.high, -more.low
    return table


def draw(table: pd.DataFrame, path: Any) -> None:
    figure = Figure(figsize=(6.4, 4.8))
    axis = figure.subplots()
    for colour, (method, part) in zip(COLOURS, table.groupby("method", sort=False), strict=False):
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
