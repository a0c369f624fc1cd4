"""ConceptPrune on the embedded model over skill ratio, window and branches: how much goes, and how much goes with it.

    python benchmarks/claims/concept_prune_sweep.py [--concept church] [--out runs/claims/concept_prune_sweep]

Tuning prompts only, one seed set; settings are chosen by what ``preserve_fit`` loses, and ``preserve_test`` is shown
beside it. Every image is kept in ``--out``, so the sweep resumes. Writes ``concept_prune_sweep.csv`` and ``.png``
beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import erase
import probe
from probe.cli._demo_steps import protected_prompts

HERE = Path(__file__).resolve().parent
SKILL_RATIOS = (0.01, 0.03, 0.08, 0.15, 0.3)
FIRST_STEPS = (5, 10, 16, 23, 30)  # of 30
LATE = ((490, 1),)  # the second half, by timestep
BRANCHES = ("both", "cond")
IMAGES = {"explicit": 30, "preserve_fit": 30, "preserve_test": 30}
STEPS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concept", default="church")
    parser.add_argument("--out", type=Path, default=Path("runs/claims/concept_prune_sweep"))
    args = parser.parse_args()
    pipe, world = probe.load("emoji"), probe.concepts("emoji")
    concept = world[args.concept]
    common = {"batch_size": 20, "steps": STEPS}
    target = probe.record(pipe, list(concept.prompts["explicit"]), out=args.out / "run", **common)
    reference = probe.record(pipe, list(concept.references["neighbour"]), out=args.out / "reference", **common)
    keep = probe.record(pipe, protected_prompts(concept, world, 40), out=args.out / "protected", **common)

    edits, settings = {}, {}
    for branches in BRANCHES:
        nm = probe.score(target, reference, method="wanda", branches=branches)
        times = [float(t) for t in nm.dataset["t_max"].values]
        windows = {f"first {n}": (times[0], times[n - 1]) for n in FIRST_STEPS} | {
            f"t {a}-{b}": (a, b) for a, b in LATE
        }
        for label, window in windows.items():
            for ratio in SKILL_RATIOS:
                for kept in (None, keep) if label == "first 16" else (None,):
                    name = f"{branches}, {label}, {ratio}" + (", keep" if kept else "")
                    edits[name] = erase.concept_prune(pipe, nm, skill_ratio=ratio, window=window, keep=kept)
                    settings[name] = {"branches": branches, "window": label, "skill_ratio": ratio, "keep": bool(kept),
                                      "setting": f"{branches}, {label}" + (", keep" if kept else ""),
                                      "density": edits[name].density}  # fmt: skip
    table = probe.evaluate(pipe, edits, [concept], world=world, splits=tuple(IMAGES), n_prompts=IMAGES,
                           prompts_from="tune", seed_sets=(1,), metrics=("rate", "broken"), batch_size=30,
                           out=args.out / "result")  # fmt: skip
    table = table[table["split"].isin(IMAGES)].join(pd.DataFrame(settings).T, on="edit")
    table.round(4).to_csv(HERE / "concept_prune_sweep.csv", index=False)
    draw(table, concept.name)


def draw(table: pd.DataFrame, concept: str) -> None:
    figure = Figure(figsize=(12, 5))
    for ax, branches in zip(figure.subplots(1, 2), BRANCHES, strict=True):
        probe.plot_tradeoff(table[table["branches"] == branches], concept=concept, label="skill_ratio", group="window",
                            bars=(0.10, 0.10), title=f"branches: {branches}", ax=ax)  # fmt: skip
    figure.savefig(HERE / "concept_prune_sweep.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
