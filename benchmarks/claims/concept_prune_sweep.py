"""ConceptPrune on the embedded model over skill ratio, window and branches: how much goes, and how much goes with it.

    python benchmarks/claims/concept_prune_sweep.py [--concept castle] [--out runs/claims/concept_prune_sweep]

Tuning prompts only, one seed set; settings are chosen by what ``preserve_fit`` loses, and ``preserve_test`` is shown
beside it. References are of the demo's form; at its window the other form and ``keep=`` are tried too. Every image is
kept in ``--out``, so the sweep resumes. Writes ``concept_prune_sweep.csv`` and ``.png`` beside this file.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import erase
import probe
from probe.cli._demo_steps import CONCEPT, SETTINGS, protected_prompts

HERE = Path(__file__).resolve().parent
SKILL_RATIOS = (0.01, 0.03, 0.08, 0.15, 0.3)
FIRST_STEPS = (5, 10, 16, 23, 30)  # of 30
LATE = ((490, 1),)  # the second half, by timestep
COMPARED = "first 16"  # the window at which references and keep are compared
REFERENCES = ("paper", "neighbour")
BRANCHES = ("both", "cond")
IMAGES = {"explicit": 20, "preserve_fit": 20, "preserve_test": 20}
STEPS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concept", default=CONCEPT)
    parser.add_argument("--out", type=Path, default=Path("runs/claims/concept_prune_sweep"))
    parser.add_argument("--rejudge", action="store_true", help="judge the images in --out again, draw nothing")
    args = parser.parse_args()
    pipe, world = probe.load("emoji"), probe.concepts("emoji")
    concept = world[args.concept]

    def recorded(name: str, prompts: list[str]) -> probe.Run:
        return probe.record(pipe, prompts, out=args.out / name, batch_size=20, steps=STEPS)

    target = recorded("run", list(concept.prompts["explicit"]))
    references = {form: recorded(form, list(concept.references[form])) for form in REFERENCES}
    keep = recorded("protected", protected_prompts(concept, world, 40))

    edits, settings = {}, {}
    for branches, form in itertools.product(BRANCHES, REFERENCES):
        own = form == SETTINGS["references"]
        nm = probe.score(target, references[form], method="wanda", branches=branches)
        for label, window in windows(nm).items():
            compared = label == COMPARED
            for ratio, kept in itertools.product(SKILL_RATIOS if own or compared else (), (False, True)):
                if kept and not (own and compared):
                    continue
                curve = f"{label}{'' if own else f', {form} references'}{', keep' if kept else ''}"
                edit = erase.concept_prune(pipe, nm, skill_ratio=ratio, window=window, keep=keep if kept else None)
                edits[f"{branches}, {curve}, {ratio}"] = edit
                settings[f"{branches}, {curve}, {ratio}"] = {
                    "branches": branches, "references": form, "window": label, "keep": kept, "skill_ratio": ratio,
                    "curve": curve, "density": edit.density,
                }  # fmt: skip
    table = probe.evaluate(pipe, edits, [concept], world=world, splits=tuple(IMAGES), n_prompts=IMAGES,
                           prompts_from="tune", seed_sets=(1,), metrics=("rate", "broken"), batch_size=20,
                           out=args.out / "result", rejudge=args.rejudge)  # fmt: skip
    table = table[table["split"].isin(IMAGES)].join(pd.DataFrame(settings).T, on="edit")
    table.round(4).to_csv(HERE / "concept_prune_sweep.csv", index=False)
    draw(table, concept.name)


def windows(nm: probe.NeuronMap) -> dict[str, tuple[float, float]]:
    """Label -> (first timestep, last timestep)."""
    times = [float(t) for t in nm.dataset["t_max"].values]
    return {f"first {n}": (times[0], times[n - 1]) for n in FIRST_STEPS} | {f"t {a}-{b}": (a, b) for a, b in LATE}


def draw(table: pd.DataFrame, concept: str) -> None:
    figure = Figure(figsize=(12, 5))
    for ax, branches in zip(figure.subplots(1, 2), BRANCHES, strict=True):
        probe.plot_tradeoff(table[table["branches"] == branches], concept=concept, label="skill_ratio", group="curve",
                            bars=(0.10, 0.10), title=f"branches: {branches}", ax=ax)  # fmt: skip
    figure.savefig(HERE / "concept_prune_sweep.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
