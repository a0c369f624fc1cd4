"""Do the neurons that a score puts first carry the concept? Silence the top k of each method, against random ones.

    python benchmarks/claims/ablation_curves.py [--plan] [--concepts church ink] [--out runs/claims/ablation_curves]

Per concept: maps from 40 tuning prompts and their neighbour references; then the top 10, 50 and 200 neurons of each
method take their mean over prompts of ``preserve_fit`` (top 50 also zero), and 24 test prompts of the concept and 36 of
``preserve_test`` are drawn and judged. Random neurons stand beside them, two draws of every size: from the same sites
as the methods' choices, each about as active on the concept's prompts as the neuron it stands for, and in nobody's top
as long as the site has such.
Neurons that a method does not put above 0 are not silenced, even if its top k holds them (a sparse probe has few);
``silenced`` counts the others. A method that scored fewer than k neurons has no such point.

Recordings, maps and every judged image are kept in ``--out``, so a killed run goes on. ``--plan`` says what is left,
``--rejudge`` measures what is there anew, when judges or metrics have changed.
Writes ``ablation_curves.csv`` and ``.png`` beside this file (``--csv`` for elsewhere): one row per concept, method, k,
mode, draw and split, with ``rate, low, high`` and the paired difference from the unedited model, and the same of the
judge's log-odds (``change``), which move where a rate stays at 1; ``moved`` is the distance of a picture from the
unedited one on the judge's features.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import probe
from probe.cli._demo_steps import protected_prompts
from probe.scores import score_names

HERE = Path(__file__).resolve().parent
CONCEPTS = ("church", "ink", "weapon", "ninja")
METHODS = ("wanda", "contrast", "auroc", "linear", "gradient", "causal")  # those that are registered
TOPS = (10, 50, 200)
ZEROED = 50  # this many are also set to zero
DRAWS = 2
SPLITS = ("explicit", "preserve_test")
METRICS = ("rate", "log_odds", "broken", "feature_distance")
SECONDS = 0.6  # a picture of 30 steps on one core
NEAREST = 5  # a random neuron is one of so many that are nearest in activation
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLUMNS = ["concept", "method", "k", "mode", "draw", "silenced", "split", "rate", "low", "high", "n", "n_failed",
           "original", "difference", "diff_low", "diff_high", "log_odds", "change", "change_low", "change_high",
           "moved", "moved_low", "moved_high", "broken"]  # fmt: skip


class Point(NamedTuple):
    """One set of neurons, silenced one way."""

    method: str
    k: int
    mode: str
    draw: int
    units: dict[str, list[int]]


def main() -> None:
    args = arguments()
    methods = [name for name in args.methods if name in score_names()]
    if args.plan:
        return plan(args, methods)
    pipe, world = probe.load("emoji", dtype=args.dtype), probe.concepts("emoji")
    tables = []
    for name in args.concepts:
        concept = world[name]
        target, reference, source = record(pipe, world, concept, args)
        maps = {method: scored_map(method, target, reference, pipe, concept, args.out / name) for method in methods}
        active = probe.open_run(target.path)["absmean"].mean(("sample", "branch", "step")).values
        chosen = points(maps, active, args.tops, args.draws)
        edits, facts = {}, {}
        for point in chosen:
            source_of = {"source": source} if point.mode == "mean" else {}
            change = probe.intervention(point.units, mode=point.mode, **source_of)
            # by its id too: another choice of neurons, from a method more or a changed score, is another row
            label = f"{name}: {point.method} {point.k} {point.mode} {point.draw} {change.id[:6]}"
            edits[label], facts[label] = change, point
        table = probe.evaluate(pipe, edits, [concept], world=world, splits=SPLITS, steps=args.steps,
                               n_prompts=dict(zip(SPLITS, args.images, strict=True)), metrics=METRICS,
                               batch_size=args.batch_size, rejudge=args.rejudge,
                               out=args.out / "result")  # fmt: skip
        tables.append(rows(table, name, facts))
        done = pd.concat(tables, ignore_index=True)[COLUMNS]
        done.round(4).to_csv(args.csv, index=False, lineterminator="\n")
        draw(done, args.csv.with_suffix(".png"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--tops", nargs="+", type=int, default=list(TOPS))
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--images", nargs=2, type=int, default=[24, 36], metavar=("CONCEPT", "PRESERVE"))
    parser.add_argument("--pairs", type=int, default=40, help="prompts to score with")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--dtype", default="float32", help="bfloat16 is twice as fast on a CPU with AMX")
    parser.add_argument("--out", type=Path, default=Path("runs/claims/ablation_curves"))
    parser.add_argument("--csv", type=Path, default=HERE / "ablation_curves.csv")
    parser.add_argument("--rejudge", action="store_true", help="measure the pictures that are there anew")
    parser.add_argument("--plan", action="store_true", help="say what there is to draw, and how long it takes")
    return parser.parse_args()


def plan(args: argparse.Namespace, methods: Sequence[str]) -> None:
    """Pictures and minutes of a whole run, less what is kept in ``--out``."""
    sets = (len(methods) + args.draws) * (len(args.tops) + (ZEROED in args.tops))
    judged = (sets + 1) * sum(args.images)
    total = len(args.concepts) * (judged + 3 * args.pairs)
    kept = sum(1 for _ in (args.out / "result" / "images").glob("*.png"))
    print(f"{len(args.concepts)} concepts x ({judged} judged + {3 * args.pairs} recorded) = {total} pictures, "
          f"{total * SECONDS * args.steps / 30 / 60:.0f} minutes at {SECONDS} s; {kept} judged ones are kept already; "
          f"methods: {', '.join(methods)}")  # fmt: skip
    if "causal" in methods:
        print("causal draws pictures of its own while it scores; these are not counted here")


def record(pipe: Any, world: Any, concept: Any, args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Runs of the concept, of its references, and of what else there is, whose means stand in for silenced neurons."""
    prompts = {
        "target": list(concept.prompts["explicit"])[: args.pairs],
        "reference": list(concept.references["neighbour"])[: args.pairs],
        "source": protected_prompts(concept, world, args.pairs)[: args.pairs],
    }
    target, reference, source = (
        probe.record(pipe, texts, out=args.out / concept.name / part, reduce=("unit_norm", "absmean", "mean"),
                     steps=args.steps, batch_size=args.batch_size, images=False)
        for part, texts in prompts.items()
    )  # fmt: skip
    return target, reference, source


def scored_map(method: str, target: Any, reference: Any, pipe: Any, concept: Any, folder: Path) -> Any:
    """A method's map, as an earlier call saved it for these recordings, or made and saved now."""
    path = folder / f"{method}-{target.id}-{reference.id}.zarr.zip"
    if path.exists():
        return probe.NeuronMap.load(path)
    more = {"log": folder / "causal.jsonl"} if method == "causal" else {}
    made = probe.score(target, reference, method=method, pipe=pipe, concept=concept, **more)
    made.save(path)
    return made


def points(maps: Mapping[str, Any], active: np.ndarray, tops: Sequence[int], draws: int) -> list[Point]:
    """Every set of neurons to silence: the top k of each method, and random ones of the same sizes."""
    first = next(iter(maps.values()))
    site = np.repeat(np.arange(len(first.sites)), [s.width for s in first.sites])
    best = {(name, k): top(nm, k) for name, nm in maps.items() for k in tops if scored(nm) >= k}
    taken = np.unique(np.concatenate(list(best.values())))
    sets = [(name, k, 0, neurons) for (name, k), neurons in best.items()]
    for k in sorted({k for _, k in best}):
        pool = np.concatenate([neurons for (_, size), neurons in best.items() if size == k])
        count = min(k, len(pool))
        sets += [("random", k, i, matched(pool, count, site, active, taken, seed=i)) for i in range(draws)]
    return [
        Point(name, k, mode, i, named(neurons, first, site))
        for name, k, i, neurons in sets
        if len(neurons)
        for mode in ("mean", *(("zero",) if k == ZEROED else ()))
    ]


def scored(nm: Any) -> int:
    """How many neurons have a score in every window."""
    return int(np.isfinite(nm.dataset["score"].transpose("window", "neuron").values).all(0).sum())


def top(nm: Any, k: int) -> np.ndarray:
    """The k highest neurons of a map, windows averaged, as far as they are above 0."""
    above = nm.dataset["score"].transpose("window", "neuron").values.mean(0) > 0
    return np.flatnonzero(nm.select(top=k).selected() & above)


def matched(
    pool: np.ndarray, k: int, site: np.ndarray, active: np.ndarray, taken: np.ndarray, *, seed: int
) -> np.ndarray:
    """k random neurons (k,): each of the site, and about the activation, of one drawn from ``pool``.

    None is ``taken`` as long as the site has others, and none is in ``pool``.
    """
    rng = np.random.default_rng([seed, k])
    outside = np.ones(len(site), dtype=bool)
    outside[pool] = False
    free = outside.copy()
    free[taken] = False
    level = np.log(np.maximum(active, 1e-12))
    found = []
    for model in rng.choice(pool, k, replace=False):
        there = np.flatnonzero(free & (site == site[model]))
        if len(there) == 0:
            there = np.flatnonzero(outside & (site == site[model]))
        if len(there) == 0:
            raise SystemExit(f"no neuron is left to match one of site {site[model]}: take fewer, or fewer methods")
        near = there[np.argsort(np.abs(level[there] - level[model]), kind="stable")[:NEAREST]]
        found.append(rng.choice(near))
        free[found[-1]] = outside[found[-1]] = False
    return np.sort(found)


def named(neurons: np.ndarray, nm: Any, site: np.ndarray) -> dict[str, list[int]]:
    """Units by site name."""
    return {nm.sites[i].name: (neurons[site[neurons] == i] - nm.offsets[i]).tolist() for i in np.unique(site[neurons])}


def rows(table: pd.DataFrame, concept: str, facts: Mapping[str, Point]) -> pd.DataFrame:
    """What is plotted: one row per set of neurons and split."""
    table = table[table["split"].isin(SPLITS)]
    found = table[table["metric"] == "rate"].rename(columns={"value": "rate", "ci_low": "low", "ci_high": "high"})
    other = table.set_index(["edit", "split"])
    odds = other[other["metric"] == "log_odds"].rename(
        columns={"value": "log_odds", "difference": "change", "diff_low": "change_low", "diff_high": "change_high"}
    )[["log_odds", "change", "change_low", "change_high"]]
    moved = other[other["metric"] == "feature_distance"].rename(
        columns={"value": "moved", "ci_low": "moved_low", "ci_high": "moved_high"}
    )[["moved", "moved_low", "moved_high"]]
    broken = other.loc[other["metric"] == "broken", "value"].rename("broken")
    found = (
        found.join(odds, on=["edit", "split"])
        .join(moved, on=["edit", "split"])
        .join(broken, on=["edit", "split"])
        .drop(columns=["concept"])
    )
    silenced = {label: sum(map(len, point.units.values())) for label, point in facts.items()}
    what = pd.DataFrame({label: {**p._asdict(), "silenced": silenced[label]} for label, p in facts.items()}).T
    what = what.drop(columns=["units"])
    return found.join(what, on="edit").assign(concept=concept)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Rows of axes: the concept by rate and log-odds, how far its pictures move, and what else must survive."""
    concepts = list(dict.fromkeys(table["concept"]))
    methods = [name for name in dict.fromkeys(table["method"]) if name != "random"]
    styles = {**{name: {"color": COLOURS[i % 6], "marker": "osD^vP"[i % 6]} for i, name in enumerate(methods)},
              "random": {"color": "0.55", "marker": "X", "linestyle": ":"}}  # fmt: skip
    panels = [
        ("explicit", ("rate", "low", "high"), "concept shown"),
        ("explicit", ("change", "change_low", "change_high"), "change of its log-odds"),
        ("explicit", ("moved", "moved_low", "moved_high"), "how far pictures move (1 - cosine)"),
        ("preserve_test", ("rate", "low", "high"), "preserve_test shown"),
    ]
    figure = Figure(figsize=(3.4 * len(concepts) + 1, 12))
    grid = figure.subplots(len(panels), len(concepts), sharex=True, sharey="row", squeeze=False)
    for column, concept in enumerate(concepts):
        for axis, (split, columns, label) in zip(grid[:, column], panels, strict=True):
            part = table[(table["concept"] == concept) & (table["split"] == split)]
            for place, (name, style) in enumerate(styles.items()):
                for number, (i, line) in enumerate(part[part["method"] == name].groupby("draw")):
                    shift = (1.07 ** (place - len(styles) / 2)) * 1.02**i
                    curve(axis, line, columns, shift, style, name if not number else None)
            axis.axhline(part["original"].iloc[0] if columns[0] == "rate" else 0, color="black", lw=0.8, ls="--")
            axis.set(xscale="log")
            axis.set_xticks(sorted(table["k"].unique()), [str(k) for k in sorted(table["k"].unique())])
            axis.minorticks_off()
            if columns[0] == "rate":
                axis.set_ylim(-0.03, 1.03)
            if column == 0:
                axis.set_ylabel(label)
        grid[0, column].set_title(concept)
        grid[-1, column].set_xlabel("neurons silenced (filled: mean, open: zero)", fontsize=8)
    grid[0, -1].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def curve(
    axis: Any, line: pd.DataFrame, columns: Sequence[str], shift: float, style: Mapping[str, Any], label: str | None
) -> None:
    """One method's values over k with intervals (``columns``: value, low, high); zeroed neurons as open markers."""
    value, low, high = columns
    for mode, extra in (("mean", {}), ("zero", {"markerfacecolor": "white", "linestyle": "none"})):
        part = line[line["mode"] == mode].sort_values("k")
        if len(part):
            reach = np.array([part[value] - part[low], part[high] - part[value]], dtype=float)
            x = part["k"].astype(float) * shift * (1.1 if mode == "zero" else 1)
            axis.errorbar(x, part[value], np.clip(reach, 0, None), markersize=5, linewidth=1.2, elinewidth=0.7,
                          label=label if mode == "mean" else None, **{**style, **extra})  # fmt: skip


if __name__ == "__main__":
    main()
