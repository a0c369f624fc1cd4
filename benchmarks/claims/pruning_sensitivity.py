"""Does pruning keep the concept's neurons from being lit again? Reactivation, ESD against P-ESD and AC against P-AC.

    python benchmarks/claims/pruning_sensitivity.py [--plan] [--concepts weapon ...] [--pairs p-esd p-ac]
        [--dtype bfloat16]

The edits and their adaptive attack sets are those of `pruning_attacked.py` (figure 5 of the P-ESD paper); run that row
first, or this one makes them. Every edit has its own most erased neurons, chosen on tuning prompts. Sensitivities are
kept under ``--out``, as maps that ``probe plot`` and erasers take. Writes ``pruning_sensitivity.csv`` (ratios by
group, x_t and quantity) and a figure a concept beside this file.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
from keeping import updated
from matplotlib.figure import Figure
from models import opened, parsed
from pruning_common import (
    OUT,
    PAIRS,
    PROMPTS,
    SEEDS,
    Contender,
    arguments,
    attacked,
    contenders,
    strengths_plan,
    tell,
    trainings_left,
)

import probe
from probe._relighting import generations

SELECTING = 20


def main() -> None:
    parser = arguments(__doc__, "pruning_sensitivity")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--prompts", type=int, help="attacked prompts; 40 of weapon and 20 of others by default")
    args = parsed(parser, OUT)
    if args.plan:
        return plan(args)
    pipe, world = opened(args)
    rows, maps = [], {}
    for one in contenders(pipe, world, args):
        nm = measured(pipe, world, one, args)
        maps[one.concept, one.method, one.seed] = nm
        rows.append(ratios(nm).assign(concept=one.concept, method=one.method, training_seed=one.seed,
                                      iterations=one.edit.options["iterations"], equal=one.match.equal))  # fmt: skip
        updated(pd.concat(rows, ignore_index=True), args.csv, ["concept", "method", "training_seed"])
    return draw(maps, args)


def plan(args: argparse.Namespace) -> None:
    """Pictures and minutes of a whole run; the attacks are counted by `pruning_attacked.py`."""
    methods = list(dict.fromkeys(m for pair in args.pairs for m in (PAIRS[pair], pair)))
    pictures = strengths_plan(methods, args)
    for name in args.concepts:
        n = args.prompts or PROMPTS.get(name, 20)
        seeds = min(args.seeds, SEEDS.get(name, args.seeds))
        pictures += len(methods) * seeds * generations(n, SELECTING)
    tell(pictures, trainings_left(methods, args), args)
    print("attacks are not counted here: pruning_attacked.py --baselines --plan")


def measured(pipe: Any, world: Any, one: Contender, args: argparse.Namespace) -> Any:
    """The sensitivity of one edit under its own adaptive attacks, kept as a map."""
    name = f"{one.concept}-{one.method}-{one.seed}-{one.edit.id[:8]}"
    file = args.out / "sensitivity" / f"{name}.zarr.zip"
    if file.is_file():
        return probe.NeuronMap.load(file)
    attack = attacked(pipe, one, world, args)
    nm = probe.sensitivity(pipe, one.edit, adversarial=attack, concept=world[one.concept], n_select=SELECTING,
                           batch_size=args.batch_size, out=args.out / "sensitivity" / "recordings" / name)  # fmt: skip
    nm.save(file)
    return nm


def ratios(nm: Any) -> pd.DataFrame:
    """One row a group, x_t and quantity: ``ratio, ratio_low, ratio_high, ratio_n``."""
    return nm.dataset[["ratio", "ratio_low", "ratio_high", "ratio_n"]].to_dataframe().reset_index()


def draw(maps: dict[Any, Any], args: argparse.Namespace) -> None:
    """A figure a concept with a panel a pair, first training seeds."""
    for name in args.concepts:
        figure = Figure(figsize=(7.2 * len(args.pairs), 3.4), layout="constrained")
        for axis, pair in zip(figure.subplots(1, len(args.pairs), squeeze=False)[0], args.pairs, strict=True):
            sides = {method: maps[name, method, 0] for method in (PAIRS[pair], pair)}
            probe.plot_sensitivity(sides, title=name, ax=axis)
        figure.savefig(args.csv.with_name(f"{args.csv.stem}_{name}.png"), dpi=110)


if __name__ == "__main__":
    main()
