"""Robust: what adversarial stages are worth under attacks, on ``erase_10`` and on three of its characters.

    python benchmarks/claims/resag_robust.py [--transfer data/attacks/erase_10] [--out runs/claims/resag]

With and without adversarial stages: the committed transfer set is drawn by both, and ``unlearn_diff`` (quick, banned
words) searches against each on three characters, 20 prompts in all. Needs `probe.attack`. Writes ``resag_robust.csv``
and ``.png``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from models import drawing
from resag_common import COLOURS, arguments, judged, measured, of_images, one_by_one

import erase
import probe

IMAGES = {"explicit": 60, "preserve_test": 120, "preserve_fit": 24}
CONCEPTS = ("cowboy", "mage", "ninja")
PROMPTS = 20
VARIANTS: dict[str, dict[str, Any]] = {"with adversaries": {}, "without": {"adversaries": 0}}


def main() -> None:
    parser = arguments(__doc__, "resag_robust", IMAGES)
    parser.add_argument("--transfer", type=Path, default=Path("data/attacks/erase_10"))
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS))
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not hasattr(probe, "attack"):
        raise SystemExit("this row needs probe.attack")
    pipe, world = drawing(args.dtype), probe.concepts("emoji")
    every = list(world.lists["erase_10"])
    rows = []
    for variant, options in VARIANTS.items():
        edit = erase.stack(*one_by_one("resag", every, args.seed, args.out, **options), name=f"resag {variant}")
        plain = measured(pipe, {f"{variant} {edit.id[:6]}": edit}, every, args.out / "robust", of_images(args)).iloc[0]
        rows.append({"variant": variant, "attack": "none", "value": plain["shown"], "low": plain["low"],
                     "high": plain["high"], "n": plain["erased_n"], "original": plain["original"]})  # fmt: skip
        rows += attacked(pipe, variant, edit, args)
        pd.DataFrame(rows).round(4).to_csv(args.csv, index=False, lineterminator="\n")
    draw(pd.DataFrame(rows), args.csv.with_suffix(".png"))


def attacked(pipe: Any, variant: str, edit: Any, args: Any) -> list[dict[str, Any]]:
    """Rates under the transfer set, if there is one, and under adaptive searches; all characters of each together."""
    world = probe.concepts("emoji")
    each = -(-args.prompts // len(args.concepts))
    sets = {
        name: probe.attack(pipe, world[name], edit=edit, method="unlearn_diff", protocol="adaptive", vocab="banned",
                           budget="quick", n_prompts=each, seed=args.seed, where="suffix",
                           out=args.out / "attacks" / f"{variant.replace(' ', '_')}-{name}")
        for name in args.concepts
    }  # fmt: skip
    found = [rate(pipe, variant, "unlearn_diff, adaptive", edit, sets, args)]
    if args.transfer.is_dir():
        stored = {path.name: probe.AttackSet.load(path) for path in sorted(args.transfer.iterdir()) if path.is_dir()}
        found.append(rate(pipe, variant, "transfer", edit, stored, args))
    return found


def rate(pipe: Any, variant: str, what: str, edit: Any, sets: dict[str, Any], args: Any) -> dict[str, Any]:
    """How often the concepts are shown under attack sets of each."""
    out = args.out / "robust_attacked" / f"{variant}-{what}".replace(" ", "_").replace(",", "")
    for name, attack in sets.items():
        probe.evaluate(
            pipe, {variant: edit}, [name], attacks=[attack], splits=("explicit",), metrics=("rate",), out=out
        )
    rows = judged(out)
    own = rows[rows["edit_id"] == edit.id]
    found = probe.stats.cluster_bootstrap(own["shown"], own["concept"], bounds=(0, 1))
    return {"variant": variant, "attack": what, "value": found.value, "low": found.low, "high": found.high,
            "n": found.n, "original": rows[rows["edit_id"] == "original"]["shown"].mean()}  # fmt: skip


def draw(table: pd.DataFrame, path: Any) -> None:
    figure = Figure(figsize=(5.6, 3.6))
    axis = figure.subplots()
    attacks = list(dict.fromkeys(table["attack"]))
    for number, (colour, (variant, part)) in enumerate(
        zip(COLOURS, table.groupby("variant", sort=False), strict=False)
    ):
        places = [attacks.index(name) + 0.2 * number for name in part["attack"]]
        axis.errorbar(places, part["value"], [part["value"] - part["low"], part["high"] - part["value"]], fmt="o",
                      color=colour, label=variant)  # fmt: skip
    axis.set_xticks(range(len(attacks)), attacks)
    axis.set(ylim=(-0.03, 1.03), ylabel="concept shown")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
