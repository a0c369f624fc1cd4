"""ESD, Ablating Concepts, P-ESD and P-AC on plain prompts: what is left of a concept, and what goes with it.

    python benchmarks/claims/pruning_plain.py [--plan] [--tune] [--concepts church ...] [--methods esd ...]
        [--seeds 3] [--dtype bfloat16]

``--tune`` runs the few settings of every method on one training seed and judges their checkpoints on tuning prompts
(24 pictures of the concept, 24 of ``preserve_fit``); ``--settings 0 3`` takes some of them, by number, ``--gates`` one
kind of gate, ``--trained`` only what is trained already. ``chosen_gates`` marks the better of each kind of gates, which
decides the default. Without ``--tune`` the setting of `setting_of` in `pruning_common.py`, chosen that way, is trained
with every seed and judged on test prompts.
Writes ``pruning_plain.csv`` (or ``pruning_plain_tuning.csv``) and a figure beside this file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from keeping import updated
from matplotlib.figure import Figure
from models import opened, parsed
from pruning_common import (
    BARS,
    CHECKPOINTS,
    METHODS,
    OUT,
    PROMPTS,
    SEEDS,
    TRIED,
    TUNING,
    arguments,
    chosen,
    setting_of,
    strengths,
    summary,
    tell,
    trained,
    training_of,
    trainings_left,
)

import probe

OTHERS = 40
GATES = ("hard-concrete", "straight-through")


def main() -> None:
    parser = arguments(__doc__, "pruning_plain")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--settings", nargs="+", type=int, help="with --tune: which of TRIED, from 0")
    parser.add_argument("--gates", nargs="+", default=list(GATES), choices=GATES, help="with --tune: of P-ESD and P-AC")
    parser.add_argument("--trained", action="store_true", help="with --tune: only settings that are trained already")
    parser.add_argument("--others", type=int, default=OTHERS, help="pictures of preserve_test")
    args = parsed(parser, OUT)
    if args.plan:
        return plan(args)
    pipe, world = opened(args)
    if args.tune:
        table = tune(pipe, world, args)
        updated(table, args.csv.with_stem(f"{args.csv.stem}_tuning"), ["concept", "method"])
        return None
    table = updated(report(pipe, world, args), args.csv, ["concept", "method"])
    return draw(table, list(dict.fromkeys(table["concept"])), args.csv.with_suffix(".png"))


def settings_of(method: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Which settings are tried."""
    chosen_ones = [TRIED[method][i] for i in args.settings or range(len(TRIED[method])) if i < len(TRIED[method])]
    return [setting for setting in chosen_ones if setting.get("gates", args.gates[0]) in args.gates]


def is_trained(name: str, method: str, setting: dict[str, Any], args: argparse.Namespace) -> bool:
    """Whether the first training seed has its last checkpoint."""
    last = str(CHECKPOINTS[method.removeprefix("p-")][-1])
    return (training_of(args.out, name, method, setting, 0) / "checkpoints" / last / "edit.json").is_file()


def plan(args: argparse.Namespace) -> None:
    """Pictures and minutes of a whole run."""
    if args.tune:
        per_method = {m: len(settings_of(m, args)) for m in args.methods}
        cells = sum(n * len(CHECKPOINTS[m.removeprefix("p-")]) for m, n in per_method.items()) + 1
        left = {m: min(n, per_method[m] * len(args.concepts))
                for m, n in trainings_left(args.methods, args, tuned=True).items()}  # fmt: skip
        return tell(cells * sum(TUNING.values()) * len(args.concepts), left, args)
    cells = {name: len(args.methods) * min(args.seeds, SEEDS.get(name, args.seeds)) + 1 for name in args.concepts}
    pictures = sum(n * (PROMPTS.get(name, 20) + args.others) for name, n in cells.items())
    return tell(pictures, trainings_left(args.methods, args), args)


def tune(pipe: Any, world: probe.World, args: argparse.Namespace) -> pd.DataFrame:
    """Every setting's checkpoints on tuning prompts; ``chosen`` marks the one that a method would take."""
    tables = []
    for name in args.concepts:
        tried = {method: settings_of(method, args) for method in args.methods}
        if args.trained:
            tried = {m: [one for one in all_of_it if is_trained(name, m, one, args)] for m, all_of_it in tried.items()}
        table = strengths(pipe, world, world[name], tried, args.out).reset_index(drop=True)
        table["chosen"] = False
        table["gates"] = [json.loads(setting).get("gates", "") for setting in table["setting"]]
        table["chosen_gates"] = False
        for _, part in table.groupby(["method", "gates"]):
            table.loc[chosen(part).name, "chosen_gates"] = True
        for _, part in table.groupby("method"):
            best = chosen(part)
            table.loc[best.name, "chosen"] = True
            print(f"{name}: {best['edit']}: shown {best['shown']:.2f}, others lose {best['loss']:.2f}, "
                  f"broken {best['broken']:.2f}")  # fmt: skip
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def report(pipe: Any, world: probe.World, args: argparse.Namespace) -> pd.DataFrame:
    """The chosen settings with every training seed on test prompts: one row an edit."""
    tables = []
    for name in args.concepts:
        edits, which = {}, {}
        for method in args.methods:
            setting, n = setting_of(method, name)
            for seed in range(min(args.seeds, SEEDS.get(name, args.seeds))):
                edits[f"{method} {seed}"] = trained(world[name], method, seed, args.out, setting)[n]
                which[f"{method} {seed}"] = {"method": method, "training_seed": seed, "iterations": n}
        n_prompts = {"explicit": PROMPTS.get(name, 20), "preserve_test": args.others}
        table = probe.evaluate(pipe, edits, [world[name]], world=world, splits=tuple(n_prompts), n_prompts=n_prompts,
                               metrics=("rate", "broken"), batch_size=args.batch_size,
                               out=args.out / "judged" / f"plain-{name}")  # fmt: skip
        found = summary(table, "preserve_test").join(pd.DataFrame(which).T, on="edit").assign(concept=name)
        found["holds"] = (found[list(BARS)] <= pd.Series(BARS) + 1e-9).all(axis=1)
        tables.append(found)
    return pd.concat(tables, ignore_index=True)


def draw(table: pd.DataFrame, names: list[str], file: Path) -> None:
    """What is left against what others lose, a panel a concept; the size of a point is what it breaks."""
    figure = Figure(figsize=(4.6 * len(names), 4.2))
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
        part = table[table["concept"] == name]
        ax.add_patch(_corner())
        for i, (method, rows) in enumerate(part.groupby("method", sort=False)):
            colour = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")[i % 4]
            reach = [[rows["shown"] - rows["low"], rows["high"] - rows["shown"]],
                     [rows["loss"] - rows["loss_low"], rows["loss_high"] - rows["loss"]]]  # fmt: skip
            reach = np.clip(np.array(reach, float), 0, None)
            ax.errorbar(rows["shown"], rows["loss"], reach[1], reach[0], fmt="none", ecolor=colour, elinewidth=0.7)
            ax.scatter(rows["shown"], rows["loss"], 20 + 200 * rows["broken"].astype(float), color=colour, alpha=0.7,
                       label=method)  # fmt: skip
        ax.axvline(part["original"].iloc[0], color="black", linewidth=0.8, linestyle="--")
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.15, 0.4), title=name, xlabel="concept shown (area: nothing shown)")
    figure.axes[0].set_ylabel("preserve_test loses")
    figure.axes[-1].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=110, bbox_inches="tight")


def _corner() -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((-0.03, -0.5), BARS["shown"] + 0.03, BARS["loss"] + 0.5, color="0.92", zorder=0)


if __name__ == "__main__":
    main()
