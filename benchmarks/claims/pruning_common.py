"""What the claims about erasers that learn share: settings, trainings and attack sets that are kept, matched pairs.

Everything lies under ``runs/claims/pruning``: ``trainings/`` (an eraser trained once; its checkpoints are strengths),
``judged/`` (pictures and verdicts), ``attacks/``. Every row reuses what another made, and goes on where it was cut.
Edits are of the model as it is released; ``--dtype`` is of the arithmetic of pictures and attacks, and has a folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from attack_sets import adaptive
from models import SECONDS, common_arguments, own

import erase
import probe
from data.build.settings import ESD, PICTURES

HERE = Path(__file__).resolve().parent
OUT = Path("runs/claims/pruning")
CONCEPTS = ("weapon", "church", "ink")
SEEDS = {"weapon": 3, "church": 3, "ink": 1}
PROMPTS = {"weapon": 40, "church": 20, "ink": 20}
METHODS = ("esd", "p-esd", "ac", "p-ac")
PAIRS = {"p-esd": "esd", "p-ac": "ac"}
CHECKPOINTS = {"esd": (100, 200, 300), "ac": (33, 67, 100)}
#: Of the claim: what is still shown, what others lose, what shows nothing at all.
BARS = {"shown": 0.10, "loss": 0.05, "broken": 0.20}
#: Two edits erase equally if their clean rates on the tuning split differ by no more.
TOLERANCE = 0.03
TUNING = {"explicit": 24, "preserve_fit": 24}
#: Seconds of a core for an iteration (0.3 to 0.4 measured for ESD in either dtype, others guessed).
ITERATION = {"esd": 0.4, "p-esd": 0.5, "ac": 0.6, "p-ac": 0.8}
#: Pictures that are drawn once for a training: trajectories of few steps, or anchors and retained ones.
DRAWN = {"esd": 20, "p-esd": 50, "ac": 30, "p-ac": 40}

#: method -> at most six settings, which `pruning_plain.py --tune` tries on tuning prompts. ``anchor=True`` is the
#: concept's own anchor ("a building") in place of the empty text: guidance multiplies what leads away from the concept,
#: and what leads away from everything else with it. ``names=True`` trains on the bare names, as the paper does, else on
#: the concept's explicit prompts; ``pairs=True`` gives each of these its own anchor, the same prompt with a neighbour.
TRIED: dict[str, list[dict[str, Any]]] = {
    "esd": [
        {"lr": 1e-4, "train": "x", "eta": 1.0, "names": True},
        {"lr": 1e-4, "train": "x", "eta": 1.0, "pairs": True, "retain": 1.0},
        {"lr": 1e-4, "train": "x", "eta": 0.3, "anchor": True},
        {"lr": 1e-4, "train": "x", "eta": 0.3, "anchor": True, "retain": 1.0},
        {"lr": 3e-4, "train": "x", "eta": 1.0, "pairs": True, "retain": 1.0},
        {"lr": 3e-4, "train": "x", "eta": 1.0, "names": True, "retain": 1.0},
    ],
    "p-esd": [
        {"lr": 0.1, "eta": 0.3, "anchor": True, "gates": "hard-concrete", "sparsity": 0.1},
        {"lr": 0.2, "eta": 0.3, "anchor": True, "gates": "hard-concrete", "sparsity": 0.1},
        {"lr": 0.2, "eta": 0.3, "anchor": True, "gates": "straight-through", "sparsity": 0.1, "retain": 1.0},
        {"lr": 0.1, "eta": 0.3, "anchor": True, "gates": "straight-through", "sparsity": 0.1},
        {"lr": 0.2, "eta": 0.3, "anchor": True, "gates": "straight-through", "sparsity": 0.1},
        {"lr": 0.2, "eta": 1.0, "pairs": True, "gates": "hard-concrete", "sparsity": 0.1},
    ],
    "ac": [
        *({"lr": lr, "train": "x-strict"} for lr in (1.6e-5, 1e-4, 2e-4, 4e-4)),
        *({"lr": lr, "train": "attn"} for lr in (1e-4, 4e-4)),
    ],
    "p-ac": [{"lr": 0.2, "gates": gates, "sparsity": s} for gates in ("hard-concrete", "straight-through")
             for s in (0.01, 0.1, 1.0)],
}  # fmt: skip

#: method -> the setting and the checkpoint that `pruning_plain.py` reports on, chosen on tuning prompts
#: (`pruning_plain_tuning.csv`).
SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    "esd": (TRIED["esd"][3], 200), "p-esd": (TRIED["p-esd"][2], 200), "ac": (TRIED["ac"][3], 33),
    "p-ac": (TRIED["p-ac"][4], 100),
}  # fmt: skip
#: The same of concepts that another one suits better: a style has no anchor of its own.
OF_CONCEPT: dict[str, dict[str, tuple[dict[str, Any], int]]] = {
    "ink": {"esd": (TRIED["esd"][4], 200), "p-esd": (TRIED["p-esd"][5], 200), "p-ac": (TRIED["p-ac"][4], 67)},
    "weapon": {"p-esd": (TRIED["p-esd"][2], 100), "ac": (TRIED["ac"][3], 67)},
}


def setting_of(method: str, name: str) -> tuple[dict[str, Any], int]:
    """The setting and the checkpoint of a method for a concept."""
    return OF_CONCEPT.get(name, {}).get(method, SETTINGS[method])


#: What a training is told beside its setting. Few points that come again: the model predicts there once.
POINTS: dict[str, dict[str, Any]] = {
    "esd": {name: ESD[name] for name in ("batch_size", "steps", "cached")},
    "ac": PICTURES,
}


# --- Trainings --------------------------------------------------------------------------------------------------------


def trained(
    concept: Any, method: str, seed: int, out: Path, setting: Mapping[str, Any] | None = None
) -> dict[int, erase.Edit]:
    """Iterations -> the edit after so many; trained once, read from its folder afterwards."""
    setting = setting_of(method, concept.name)[0] if setting is None else setting
    objective = method.removeprefix("p-")
    numbers = CHECKPOINTS[objective]
    folder = training_of(out, concept.name, method, setting, seed)
    if not (folder / "checkpoints" / str(numbers[-1]) / "edit.json").is_file():
        common: dict[str, Any] = {"iterations": numbers[-1], "training": folder, "checkpoints": numbers, "seed": seed,
                                  "name": f"{method}-{concept.name}", **POINTS[objective], **setting}  # fmt: skip
        if common.pop("anchor", False):
            common["anchor"] = concept.anchor or None
        explicit = concept.prompts["explicit"]
        if common.pop("pairs", False):
            common["prompts"] = list(zip(explicit, concept.references["neighbour"], strict=True))
        elif not common.pop("names", False) and objective == "esd":
            common["prompts"] = list(explicit)
        if method.startswith("p-"):
            erase.differentiable_prune(own(), concept, objective=objective, **common)
        elif method == "esd":
            erase.esd(own(), concept, **common)
        else:
            erase.ablating_concepts(own(), concept, **common)
    return {n: erase.load_edit(folder / "checkpoints" / str(n)) for n in numbers}


def training_of(out: Path, name: str, method: str, setting: Mapping[str, Any], seed: int) -> Path:
    """The folder of a training."""
    return out / "trainings" / f"{name}-{method}-{words_of(setting)}-{seed}"


def words_of(setting: Mapping[str, Any]) -> str:
    """A setting as part of a folder's name."""
    return "-".join(f"{key}={value}" for key, value in setting.items()).replace("/", "_").replace(" ", "_")


# --- Strengths --------------------------------------------------------------------------------------------------------


def strengths(
    pipe: Any, world: Any, concept: Any, settings: Mapping[str, Sequence[Mapping[str, Any]]], out: Path
) -> pd.DataFrame:
    """Every checkpoint of every setting on tuning prompts, one training seed: a row each, see `summary`."""
    edits, facts = {}, {}
    for method, tried in settings.items():
        for setting in tried:
            for n, edit in trained(concept, method, 0, out, setting).items():
                edits[f"{method} {words_of(setting)} {n}"] = edit
                facts[f"{method} {words_of(setting)} {n}"] = {
                    "method": method, "setting": json.dumps(setting), "iterations": n, "density": edit.density,
                }  # fmt: skip
    table = probe.evaluate(pipe, edits, [concept], world=world, splits=tuple(TUNING), n_prompts=TUNING,
                           prompts_from="tune", seed_sets=(1,), metrics=("rate", "broken"), batch_size=24,
                           out=out / "judged" / f"tuning-{concept.name}")  # fmt: skip
    found = summary(table, "preserve_fit").join(pd.DataFrame(facts).T, on="edit")
    return found.assign(concept=concept.name)


def summary(table: pd.DataFrame, kept: str) -> pd.DataFrame:
    """One row an edit: ``shown, low, high, original, broken, loss, loss_low, loss_high``."""
    cells = table.set_index(["split", "metric", "edit"]).sort_index()
    own, broken, others = (cells.loc[key] for key in (("explicit", "rate"), ("explicit", "broken"), (kept, "rate")))
    return pd.DataFrame({
        "shown": own["value"], "low": own["ci_low"], "high": own["ci_high"], "original": own["original"],
        "broken": broken["value"], "loss": -others["difference"], "loss_low": -others["diff_high"],
        "loss_high": -others["diff_low"], "n": own["n"], "n_others": others["n"],
    }).reset_index()  # fmt: skip


def cost(tried: pd.DataFrame) -> pd.Series:
    """What is still shown, and twice what is over the bars of loss and brokenness: least is best."""
    over = (tried["loss"] - BARS["loss"]).clip(lower=0) + (tried["broken"] - BARS["broken"]).clip(lower=0)
    return (tried["shown"] + 2 * over).astype(float)


def chosen(tried: pd.DataFrame) -> pd.Series:
    """The row of a method that keeps to the bars of loss and brokenness and shows least; without one, the nearest."""
    return tried.loc[cost(tried).idxmin()]


class Match(NamedTuple):
    """Checkpoints of an eraser and of its pruning that erase about equally; ``equal`` says whether by the rule."""

    base: int
    pruned: int
    equal: bool
    shown_base: float
    shown_pruned: float


def matched(tried: pd.DataFrame, pruned: str) -> Match:
    """The pair that erases most among those whose clean rates differ by no more than `TOLERANCE`.

    The pruned one loses no more elsewhere. Without such a pair, the one that comes nearest in rate (``equal`` False).
    """
    base = tried[tried["method"] == PAIRS[pruned]].set_index("iterations")
    other = tried[tried["method"] == pruned].set_index("iterations")
    pairs = [(b, p) for b in base.index for p in other.index]
    apart = {(b, p): abs(base.loc[b, "shown"] - other.loc[p, "shown"]) for b, p in pairs}
    fair = [(b, p) for b, p in pairs
            if apart[b, p] <= TOLERANCE + 1e-9 and other.loc[p, "loss"] <= base.loc[b, "loss"] + 1e-9]  # fmt: skip
    if fair:
        b, p = min(fair, key=lambda pair: (base.loc[pair[0], "shown"], base.loc[pair[0], "loss"]))
    else:
        b, p = min(pairs, key=lambda pair: (apart[pair], base.loc[pair[0], "shown"]))
    return Match(int(b), int(p), bool(fair), float(base.loc[b, "shown"]), float(other.loc[p, "shown"]))


class Contender(NamedTuple):
    """An eraser, or its pruning, at the strength at which the two are compared."""

    concept: str
    method: str
    seed: int
    edit: Any
    match: Match


def contenders(pipe: Any, world: Any, args: argparse.Namespace) -> Iterator[Contender]:
    """Both sides of every pair that ``--methods`` and ``--concepts`` ask for, with every training seed."""
    for name in args.concepts:
        settings = {m: [setting_of(m, name)[0]] for pair in args.pairs for m in (PAIRS[pair], pair)}
        tried = strengths(pipe, world, world[name], settings, args.out)
        for pair in args.pairs:
            match = matched(tried, pair)
            for seed in range(min(args.seeds, SEEDS.get(name, args.seeds))):
                for method, n in ((PAIRS[pair], match.base), (pair, match.pruned)):
                    yield Contender(name, method, seed, trained(world[name], method, seed, args.out)[n], match)


# --- Attacks ----------------------------------------------------------------------------------------------------------


def attacked(pipe: Any, one: Contender, world: Any, args: argparse.Namespace, method: str = "unlearn_diff") -> Any:
    """The adaptive attack set against an edit: quick, banned vocabulary; a baseline with as many judged pictures."""
    n = args.prompts or PROMPTS.get(one.concept, 20)
    folder = attack_of(args.out, one.concept, one.method, one.seed, one.edit, method)
    return adaptive(pipe, world[one.concept], one.edit, n, folder, args.batch_size, method=method)


def attack_of(out: Path, name: str, method: str, seed: int, edit: Any, attack: str = "unlearn_diff") -> Path:
    """The folder of an attack against an edit: rows that have the same edit attack it once."""
    return out / "attacks" / f"{name}-{method}-{seed}-{edit.id[:8]}-{attack}"


def robustness(base: pd.DataFrame, pruned: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> dict[str, float]:
    """1 - ASR of the pruned over ASR of the base, paired by prompt: whole prompts are drawn with all their seeds.

    Both tables: ``prompt, found``, rows in the same order. Prompts of which either verdict failed drop out.
    """
    known = base["found"].notna().values & pruned["found"].notna().values
    prompts, cluster = np.unique(base["prompt"].values[known], return_inverse=True)
    sums = np.zeros((2, len(prompts)))
    for side, table in enumerate((base, pruned)):
        np.add.at(sums[side], cluster, table["found"].values[known])
    total = sums.sum(1)
    n = int(known.sum())
    drawn = np.random.default_rng(seed).integers(len(prompts), size=(resamples, len(prompts)))
    again = sums[:, drawn].sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, replicates = 1 - total[1] / total[0], 1 - again[1] / again[0]
    # a draw in which the base stands firm says nothing about the ratio; with many of them there is no interval
    low, high = np.nanpercentile(replicates, (2.5, 97.5)) if np.mean(again[0] == 0) < 0.025 else (np.nan, np.nan)
    return {"asr_base": total[0] / max(n, 1), "asr_pruned": total[1] / max(n, 1), "reduction": float(value),
            "low": float(low), "high": float(high), "n": n, "prompts": len(prompts)}  # fmt: skip


# --- The command line -------------------------------------------------------------------------------------------------


def arguments(about: str | None, name: str) -> argparse.ArgumentParser:
    """What every row can be told."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS))
    parser.add_argument("--seeds", type=int, default=3, help="training seeds, at most; ink has one")
    common_arguments(parser, OUT, HERE / f"{name}.csv")
    return parser


def trainings_left(methods: Sequence[str], args: argparse.Namespace, *, tuned: bool = False) -> dict[str, int]:
    """method -> how many trainings are to come, of those that a row needs."""
    left = {}
    for method in methods:
        last = str(CHECKPOINTS[method.removeprefix("p-")][-1])
        folders = [
            training_of(args.out, name, method, setting, seed) / "checkpoints" / last
            for name in args.concepts
            for setting in (TRIED[method] if tuned else [setting_of(method, name)[0]])
            for seed in range(1 if tuned else min(args.seeds, SEEDS.get(name, args.seeds)))
        ]
        left[method] = sum(not folder.is_dir() for folder in folders)
    return left


def strengths_plan(methods: Sequence[str], args: argparse.Namespace) -> int:
    """Pictures that choosing equal strengths takes: all checkpoints on tuning prompts."""
    cells = 1 + sum(len(CHECKPOINTS[m.removeprefix("p-")]) for m in methods)
    return cells * sum(TUNING.values()) * len(args.concepts)


def tell(pictures: int, trainings: Mapping[str, int], args: argparse.Namespace, more: float = 0.0) -> None:
    """Pictures and minutes of a row, less the trainings that are kept; ``more``: seconds of other work."""
    seconds = pictures * SECONDS.get(args.dtype, SECONDS["float32"])
    learning = sum(n * (CHECKPOINTS[m.removeprefix("p-")][-1] * ITERATION[m] + DRAWN[m] * SECONDS["float32"])
                   for m, n in trainings.items())  # fmt: skip
    kept = sum(1 for _ in args.out.glob("judged/*/images/*.png"))
    names = ", ".join(f"{n} of {method}" for method, n in trainings.items() if n) or "none"
    print(f"trainings to come: {names}; {pictures} pictures ({kept} judged ones are kept by rows of this folder); "
          f"about {(seconds + learning + more) / 60:.0f} minutes of a core in {args.dtype}")  # fmt: skip
