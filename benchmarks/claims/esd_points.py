"""Does ESD learn the same from trajectories drawn once as from x_t that its student samples for every iteration?

    python benchmarks/claims/esd_points.py [--plan] [--concepts church ...] [--seeds 3] [--dtype bfloat16]

Both sides have the setting and the checkpoint of ``pruning_plain.py`` and differ in ``x_t`` alone. Each edit is judged
on test prompts and under ``unlearn_diff`` made against it (quick, banned words, rule ``fresh``); training seeds are
pooled, prompts are clusters. ``inside``: the rate with cached x_t lies in the interval of the rate with the student's.
Writes ``esd_points.csv`` and a figure beside this file.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
from attack_sets import adaptive, prompt_by_prompt
from judgements import rate
from keeping import updated
from matplotlib.figure import Figure
from models import opened, parsed
from pruning_attacked import BY_PROMPT
from pruning_common import (
    ITERATION,
    OUT,
    PROMPTS,
    SEEDS,
    arguments,
    attack_of,
    setting_of,
    tell,
    trained,
    trainings_left,
)

import probe

SOURCES = ("cached", "student")
WHAT = {"clean": "plain prompts", "found": "unlearn_diff"}


def main() -> None:
    parser = arguments(__doc__, "esd_points")
    parser.set_defaults(concepts=["church"])
    args = parsed(parser, OUT)
    if args.plan:
        return plan(args)
    pipe, world = opened(args)
    rows = []
    for name in args.concepts:
        found = {source: verdicts(pipe, world, name, source, args) for source in SOURCES}
        for what in WHAT:
            rates = {source: rate(table, what, "prompt") for source, table in found.items()}
            cached, student = (rates[source] for source in SOURCES)
            for source, one in rates.items():
                rows.append({"concept": name, "x_t": source, "what": what, "value": one.value, "low": one.low,
                             "high": one.high, "n": one.n, "n_failed": one.n_failed, "seeds": seeds_of(name, args),
                             "inside": bool(student.low - 1e-9 <= cached.value <= student.high + 1e-9)})  # fmt: skip
    table = updated(pd.DataFrame(rows), args.csv, ["concept"])
    return draw(table, args.csv.with_suffix(".png"))


def seeds_of(name: str, args: argparse.Namespace) -> int:
    """Training seeds of a concept."""
    return min(args.seeds, SEEDS.get(name, args.seeds))


def verdicts(pipe: Any, world: Any, name: str, source: str, args: argparse.Namespace) -> pd.DataFrame:
    """Verdicts prompt by prompt of all training seeds of one side."""
    setting, iterations = setting_of("esd", name)
    setting = setting if source == "cached" else {**setting, "x_t": source}
    parts, out = [], args.out / "judged" / f"points-{name}"
    for seed in range(seeds_of(name, args)):
        edit = trained(world[name], "esd", seed, args.out, setting)[iterations]
        folder = attack_of(args.out, name, "esd", seed, edit)
        found = adaptive(pipe, world[name], edit, PROMPTS.get(name, 20), folder, args.batch_size)
        probe.evaluate(pipe, {f"{source} {seed} {edit.id[:6]}": edit}, [name], world=world, attacks=[found],
                       attack_original=False, splits=("explicit",), n_prompts=len(found), metrics=("rate",),
                       batch_size=args.batch_size, out=out)  # fmt: skip
        parts.append(prompt_by_prompt(out, found, pipe, edit).assign(seed=seed))
    return pd.concat(parts, ignore_index=True)


def plan(args: argparse.Namespace) -> None:
    """Pictures and minutes of a whole run; an iteration at the student's own x_t takes about five times as long."""
    edits = {name: seeds_of(name, args) for name in args.concepts}
    pictures = sum(2 * n * PROMPTS.get(name, 20) * BY_PROMPT["unlearn_diff"] for name, n in edits.items())
    tell(pictures, trainings_left(["esd"], args), args, more=sum(edits.values()) * 200 * 5 * ITERATION["esd"])


def draw(table: pd.DataFrame, path: Any) -> None:
    """Rates of both sides with their intervals, plain and under attack."""
    names = list(dict.fromkeys(table["concept"]))
    figure = Figure(figsize=(3.4 * len(names), 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False, sharey=True)[0], names, strict=True):
        for i, (source, colour) in enumerate(zip(SOURCES, ("#0072B2", "#D55E00"), strict=True)):
            part = table[(table["concept"] == name) & (table["x_t"] == source)]
            places = np.arange(len(WHAT)) + 0.15 * (2 * i - 1)
            reach = np.clip([part["value"] - part["low"], part["high"] - part["value"]], 0, None)
            axis.errorbar(places, part["value"], yerr=reach, fmt="o", color=colour, label=f"x_t: {source}")
        axis.set_xticks(range(len(WHAT)), list(WHAT.values()))
        axis.set(title=f"{name} under ESD", xlim=(-0.5, len(WHAT) - 0.5), ylim=(-0.03, 1.03))
    figure.axes[0].set_ylabel("shown")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
