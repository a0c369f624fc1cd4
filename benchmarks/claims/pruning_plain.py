"""ESD, Ablating Concepts, P-ESD and P-AC on plain prompts: what is left of a concept, and what goes with it.

    python benchmarks/claims/pruning_plain.py [--concept church ...] [--seeds 3] [--out runs/claims/pruning] [--tune]

`--tune` runs the few settings of every method on one training seed and judges their checkpoints on tuning prompts;
without it the setting of SETTINGS (chosen that way) is trained with every seed and judged on test prompts. Trainings
and images are kept under `--out`, so both go on where they were cut off. Writes ``pruning_plain.csv`` (and
``pruning_plain_tuning.csv``) and a figure beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

import erase
import probe

HERE = Path(__file__).resolve().parent
CHECKPOINTS = {"esd": (75, 150, 300), "ac": (25, 50, 100)}
IMAGES = {"explicit": 24, "preserve_fit": 24}
TEST = {"church": 20, "ink": 20, "weapon": 40}
OTHERS = 40
FEW_PICTURES = {"pictures": 120, "batch_size": 8}

#: method -> at most six settings to try
TRIED: dict[str, list[dict[str, Any]]] = {
    "esd": [{"lr": lr, "train": train} for lr in (1e-5, 3e-5, 1e-4) for train in ("x", "u")],
    "p-esd": [{"lr": 0.1, "gates": gates, "sparsity": s} for gates in ("hard-concrete", "straight-through")
              for s in (0.01, 0.1, 1.0)],
    "ac": [{"lr": lr, "train": train} for lr in (1.6e-5, 1e-4, 4e-4) for train in ("x-strict", "attn")],
    "p-ac": [{"lr": 0.2, "gates": gates, "sparsity": s} for gates in ("hard-concrete", "straight-through")
             for s in (0.01, 0.1, 1.0)],
}  # fmt: skip

#: method -> the setting and the checkpoint that tuning prompts choose; the first that was tried until then
SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    name: (tried[0], CHECKPOINTS[name.removeprefix("p-")][-1]) for name, tried in TRIED.items()
}


def trained(
    pipe: Any, concept: Any, method: str, setting: dict[str, Any], seed: int, out: Path
) -> dict[int, erase.Edit]:
    """Iterations -> the edit after so many, trained once and read from its folder afterwards."""
    objective = method.removeprefix("p-")
    words = "-".join(f"{key}={value}" for key, value in setting.items()).replace("/", "_")
    folder = out / "trainings" / f"{concept.name}-{method}-{words}-{seed}"
    numbers = CHECKPOINTS[objective]
    common: dict[str, Any] = {"iterations": numbers[-1], "training": folder, "checkpoints": numbers, "seed": seed,
                              "name": f"{method}-{concept.name}", **setting}  # fmt: skip
    if objective == "esd":
        common |= {"prompts": list(concept.prompts["explicit"]), "batch_size": 4, "steps": 30}
    else:
        common |= FEW_PICTURES
    if not (folder / "checkpoints" / str(numbers[-1])).is_dir():
        if method.startswith("p-"):
            erase.differentiable_prune(pipe, concept, objective=objective, **common)
        elif method == "esd":
            erase.esd(pipe, concept, **common)
        else:
            erase.ablating_concepts(pipe, concept, **common)
    return {n: erase.load_edit(folder / "checkpoints" / str(n)) for n in numbers}


def tune(pipe: Any, world: probe.World, names: list[str], methods: list[str], out: Path) -> pd.DataFrame:
    """Every setting's checkpoints on tuning prompts, one training seed."""
    tables = []
    for name in names:
        edits, settings = {}, {}
        for method in methods:
            for setting in TRIED[method]:
                for n, edit in trained(pipe, world[name], method, setting, 0, out).items():
                    label = f"{method} {setting} {n}"
                    edits[label] = edit
                    settings[label] = {
                        "method": method,
                        "setting": str(setting),
                        "iterations": n,
                        "density": edit.density,
                    }
        table = probe.evaluate(pipe, edits, [world[name]], world=world, splits=tuple(IMAGES), n_prompts=IMAGES,
                               prompts_from="tune", seed_sets=(1,), metrics=("rate", "broken"), batch_size=24,
                               out=out / f"tuning-{name}")  # fmt: skip
        tables.append(table.join(pd.DataFrame(settings).T, on="edit"))
    return pd.concat(tables, ignore_index=True)


def report(pipe: Any, world: probe.World, names: list[str], methods: list[str], seeds: int, out: Path) -> pd.DataFrame:
    """The chosen settings with every training seed on test prompts."""
    tables = []
    for name in names:
        edits, which = {}, {}
        for method in methods:
            setting, n = SETTINGS[method]
            for seed in range(1 if name == "ink" else seeds):
                edits[f"{method} {seed}"] = trained(pipe, world[name], method, setting, seed, out)[n]
                which[f"{method} {seed}"] = {"method": method, "training_seed": seed}
        n_prompts = {"explicit": TEST.get(name, 20), "preserve_test": OTHERS}
        table = probe.evaluate(pipe, edits, [world[name]], world=world, splits=tuple(n_prompts), n_prompts=n_prompts,
                               metrics=("rate", "broken"), batch_size=20, out=out / f"result-{name}")  # fmt: skip
        tables.append(table.join(pd.DataFrame(which).T, on="edit"))
    return pd.concat(tables, ignore_index=True)


def draw(table: pd.DataFrame, names: list[str], file: Path) -> None:
    """What is left against what others lose, a panel a concept."""
    figure = Figure(figsize=(5 * len(names), 4.5))
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        probe.plot_tradeoff(table[table["concept"] == name], concept=name, label="edit", group="method",
                            bars=(0.10, 0.05), title=name, ax=ax)  # fmt: skip
    figure.savefig(file, dpi=110, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--concept", nargs="*", default=["weapon", "church", "ink"])
    parser.add_argument("--method", nargs="*", default=list(TRIED), choices=list(TRIED))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/claims/pruning"))
    parser.add_argument("--tune", action="store_true")
    args = parser.parse_args()
    pipe, world = probe.load("emoji"), probe.concepts("emoji")
    if args.tune:
        table = tune(pipe, world, args.concept, args.method, args.out)
        table.round(4).to_csv(HERE / "pruning_plain_tuning.csv", index=False)
        return
    table = report(pipe, world, args.concept, args.method, args.seeds, args.out)
    table.round(4).to_csv(HERE / "pruning_plain.csv", index=False)
    draw(table, args.concept, HERE / "pruning_plain.png")


if __name__ == "__main__":
    main()
