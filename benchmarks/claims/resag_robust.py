"""Robust: what adversarial stages are worth under attacks, on ``erase_10`` and on three of its characters.

    python benchmarks/claims/resag_robust.py [--plan] [--prompts 20] [--no-adaptive] [--dtype bfloat16]

With and without adversarial stages: the four committed transfer sets of ``erase_10`` are drawn by both, and
``unlearn_diff`` (quick, banned words) searches against each on three characters, 20 prompts in all. Rates go by the
rule fresh, prompts are clusters; what goes without adversaries less what goes with them is paired by prompt (``more``).
Writes ``resag_robust.csv`` and ``.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from attack_sets import SEARCHED, SEARCHING, TRANSFER, UNEDITED, adaptive, pictures_of, rate_of, transfer, verdicts_of
from judgements import difference
from keeping import MAKING, tell, tell_kept
from matplotlib.figure import Figure
from models import opened, parsed
from resag_common import BESIDE, COLOURS, OUT, arguments, measured, one_by_one, write

import erase
import probe

IMAGES = {"explicit": 60, "preserve_test": 120, "preserve_fit": 24}
CONCEPTS = ("cowboy", "mage", "ninja")
PROMPTS = 20
WITH, WITHOUT = "with adversaries", "without"
VARIANTS: dict[str, dict[str, Any]] = {WITH: {}, WITHOUT: {"adversaries": 0}}


def main() -> None:
    parser = arguments(__doc__, "resag_robust", IMAGES)
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS), help="of the adaptive search, in erase_10")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of each transfer set, and searched for in all")
    parser.add_argument("--no-adaptive", action="store_true", help="transfer sets alone")
    parser.add_argument("--seed", type=int, default=0)
    args = parsed(parser, OUT)
    if args.plan:
        return plan(args)
    pipe, world = opened(args)
    every, committed = list(world.lists["erase_10"]), transfer("erase_10", args.prompts)
    rows: list[pd.DataFrame] = []
    seen: dict[str, dict[str, pd.DataFrame]] = {}
    for variant, options in VARIANTS.items():
        edit = erase.stack(*one_by_one("resag", every, args.seed, args.out, **options), name=f"resag {variant}")
        plain = measured(pipe, {variant: edit}, every, args.out / "judged" / "robust", args).iloc[0]
        rows.append(pd.DataFrame([{"variant": variant, "attack": "none", "value": plain["shown"], "low": plain["low"],
                                   "high": plain["high"], "n": plain["erased_n"], "original": plain["original"],
                                   **plain[[*BESIDE, "preserve_test_loss"]]}]))  # fmt: skip
        seen[variant] = {}
        for attack, (sets, concepts) in attacks(pipe, world, variant, edit, every, committed, args).items():
            verdicts, row = attacked(pipe, edit, sets, concepts, every, args)
            seen[variant][attack] = verdicts
            rows.append(pd.DataFrame([{"variant": variant, "attack": attack, **row}]))
            write(rows, args.csv)
    rows += [pd.DataFrame([compared(attack, seen[WITH][attack], seen[WITHOUT][attack])]) for attack in seen[WITH]]
    draw(write(rows, args.csv), args.csv.with_suffix(".png"))


def plan(args: argparse.Namespace) -> None:
    """Pictures and minutes of a whole run."""
    sets = len(TRANSFER) * args.prompts
    searched = 0 if args.no_adaptive else 2 * each(args) * len(args.concepts)
    pictures = 3 * sum(args.images) + 3 * pictures_of(sets) + 2 * pictures_of(searched)
    pictures += SEARCHED * searched
    learned = 2 * len(probe.concepts("emoji").lists["erase_10"])
    tell("with and without adversaries", pictures, learned * MAKING["resag"] + searched * SEARCHING, args)
    tell_kept(args)


def each(args: argparse.Namespace) -> int:
    """Prompts of each concept that the search takes."""
    return -(-args.prompts // len(args.concepts))


def attacks(
    pipe: Any,
    world: Mapping[str, Any],
    variant: str,
    edit: Any,
    every: Sequence[str],
    committed: Sequence[Any],
    args: argparse.Namespace,
) -> dict[str, tuple[list[Any], list[str]]]:
    """What a row is called -> its attack sets, and the concepts they are about."""
    found = {f"{one.method}, transfer": ([one], list(every)) for one in committed}
    found["pooled, transfer"] = (list(committed), list(every))
    if not args.no_adaptive:
        folder = args.out / "attacks"
        sets = [
            adaptive(pipe, world[name], edit, each(args), folder / f"{variant.replace(' ', '_')}-{name}-{edit.id[:8]}",
                     args.batch_size, seed=args.seed)
            for name in args.concepts
        ]  # fmt: skip
        found["unlearn_diff, adaptive"] = sets, list(args.concepts)
    return found


def attacked(
    pipe: Any, edit: Any, sets: Sequence[Any], concepts: Sequence[str], every: Sequence[str], args: argparse.Namespace
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Verdicts prompt by prompt under these sets, and the rate over all of them."""
    out, label = args.out / "judged" / "robust_attacked", f"{edit.name} {edit.id[:6]}"
    probe.evaluate(pipe, {label: edit}, list(concepts), attacks=sets, erased={label: list(every)},
                   splits=("explicit",), n_prompts=1, metrics=("rate",), batch_size=args.batch_size,
                   out=out)  # fmt: skip
    verdicts, unedited = (verdicts_of(out, sets, pipe, one) for one in (edit, UNEDITED))
    found = rate_of(verdicts)
    return verdicts, {"value": found.value, "low": found.low, "high": found.high, "n": found.n,
                      "original": unedited["found"].mean()}  # fmt: skip


def compared(attack: str, with_them: pd.DataFrame, without: pd.DataFrame) -> dict[str, Any]:
    """How much more often concepts come back without adversarial stages, paired by prompt."""
    keys = ["attack", "concept", "prompt"]
    pairs = with_them.merge(without, on=keys, suffixes=("", "_without"))
    more = difference(pairs, "found_without", "found", "prompt")
    return {"variant": "more without", "attack": attack, "value": more.value, "low": more.low, "high": more.high,
            "n": more.n}  # fmt: skip


def draw(table: pd.DataFrame, path: Any) -> None:
    table = table[table["variant"].isin(VARIANTS)]
    attacks = list(dict.fromkeys(table["attack"]))
    figure = Figure(figsize=(1.5 * len(attacks), 3.6))
    axis = figure.subplots()
    for number, (colour, (variant, part)) in enumerate(
        zip(COLOURS, table.groupby("variant", sort=False), strict=False)
    ):
        places = [attacks.index(name) + 0.2 * number for name in part["attack"]]
        axis.errorbar(places, part["value"], [part["value"] - part["low"], part["high"] - part["value"]], fmt="o",
                      color=colour, label=variant)  # fmt: skip
    axis.set_xticks(range(len(attacks)), [name.replace(", ", "\n") for name in attacks])
    axis.set(ylim=(-0.03, 1.03), ylabel="concept shown")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
