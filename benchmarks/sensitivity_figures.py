"""The figures of sensitivity for church, weapon and ink, from committed edits and attack sets.

    python -m benchmarks.sensitivity_figures                # says how long, then draws; gone on with when cut off
    python -m benchmarks.sensitivity_figures --dry-run      # only says how long
    python -m benchmarks.sensitivity_figures --rebuild      # makes edits and attack sets first; says how long
    python -m benchmarks.sensitivity_figures --only church --prompts 2 --select 4 --steps 4   # small

Reads `data/edits/<concept>-<eraser>` and `data/attacks/<concept>-unlearn_diff-banned`, a transfer set made against ESD.
What is not there is named and left out. Recordings and maps go to `--work`, figures to `--out`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

import probe
from probe._paths import data_dir
from probe.attacks import AttackSet
from probe.cli._figures import FIGURES

CONCEPTS, ERASERS = ("church", "weapon", "ink"), {"esd": "ESD", "concept_prune": "ConceptPrune"}
OPTIONS = {"title": None, "neuron": None, "sample": 0, "rows": 4, "columns": 8}
CONDITIONS = 6


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sensitivity/figures"))
    parser.add_argument("--work", type=Path, default=Path("runs/sensitivity"))
    parser.add_argument("--edits", type=Path, default=data_dir() / "edits")
    parser.add_argument("--attacks", type=Path, default=data_dir() / "attacks")
    parser.add_argument("--only", default="", help="concepts whose name holds this")
    parser.add_argument("--prompts", type=int, default=20, help="attacked prompts of each concept")
    parser.add_argument("--select", type=int, default=20, help="prompts that neurons are selected on")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rebuild", action="store_true", help="make edits and attack sets too")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    pipe, world = probe.load("emoji"), probe.concepts("emoji")
    concepts = [name for name in CONCEPTS if given.only in name]
    if given.rebuild and not rebuilt(given, concepts):
        return 2
    jobs = [(name, eraser) for name in concepts for eraser in ERASERS if there(given, name, eraser)]
    runs = generations(given.prompts, given.select) * len(jobs)
    print(
        f"{len(jobs)} sensitivities, {runs} generations, about {minutes(pipe, given.steps, runs):.0f} minutes",
        flush=True,
    )
    if given.dry_run:
        return 0
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for name, eraser in jobs:
        found.setdefault(name, {})[ERASERS[eraser]] = measured(pipe, world[name], name, eraser, given)
    for name, maps in found.items():
        draw(name, maps, given)
    return 0


def generations(prompts: int, select: int) -> int:
    """Denoising runs: both kinds of x_t in every condition, two trajectories, and selection on two models."""
    return prompts * (2 * CONDITIONS + 1) + 3 * select


def measured(pipe: Any, concept: Any, name: str, eraser: str, given: Any) -> Any:
    """The sensitivity of one edit, from its file where there is one."""
    from erase import load_edit

    attacks = AttackSet.load(given.attacks / f"{name}-unlearn_diff-banned").first(given.prompts)
    nm = probe.sensitivity(
        pipe,
        load_edit(given.edits / f"{name}-{eraser}"),
        adversarial=attacks,
        concept=concept,
        out=given.work / f"{name}-{eraser}",
        n_select=given.select,
        steps=given.steps,
        overlays=3,
        batch_size=20,
    )
    nm.save(given.work / f"{name}-{eraser}.zarr.zip", force=True)
    print(f"{name} {eraser}: {nm.report}", flush=True)
    return nm


def draw(name: str, maps: dict[str, Any], given: Any) -> None:
    """Figures 2, 3 and 5 of the paper's kind, and profiles over layers and steps."""
    from matplotlib import pyplot

    def save(ax: Any, what: str) -> None:
        ax.get_figure(root=True).savefig(given.out / f"{name}-{what}.png", dpi=150, bbox_inches="tight")
        pyplot.close("all")

    save(probe.plot_sensitivity(maps, title=name), "erasers")
    for eraser, words in ERASERS.items():
        if words not in maps:
            continue
        nm = maps[words]
        save(probe.plot_concept_neurons(nm, title=f"{name}, {words}"), f"{eraser}-neurons")
        save(probe.plot_sensitivity_profile(nm, "site", title=f"{name}, {words}"), f"{eraser}-layers")
        save(probe.plot_sensitivity_profile(nm, "step", title=f"{name}, {words}"), f"{eraser}-steps")
        work = given.work / f"{name}-{eraser}"
        files = [f"{kind}={work / f'own-{kind}'}" for kind in ("original", "plain", "adversarial")]
        files = [text for text in files if Path(text.partition("=")[2]).is_dir()]
        if len(files) > 1:
            sample = shared_sample(files)
            save(
                FIGURES["relit"].draw(files, {**OPTIONS, "sample": sample, "title": f"{name}, {words}"}),
                f"{eraser}-relit",
            )


def shared_sample(files: list[str]) -> int:
    """A sample of the first run that all the others have."""
    pairs = [probe.Run(text.partition("=")[2]).samples["pair"].tolist() for text in files]
    return next((i for i, pair in enumerate(pairs[0]) if all(pair in other for other in pairs[1:])), 0)


def there(given: Any, name: str, eraser: str) -> bool:
    missing = [
        path
        for path in (given.edits / f"{name}-{eraser}", given.attacks / f"{name}-unlearn_diff-banned")
        if not path.is_dir()
    ]
    for path in missing:
        print(f"left out {name} under {ERASERS[eraser]}: there is no {path}", file=sys.stderr)
    return not missing


def minutes(pipe: Any, steps: int, runs: int) -> float:
    """From one batch of four, drawn now."""
    table = probe.samples(["a church"] * 4, seeds=[0, 1, 2, 3])
    probe.generate(pipe, table, steps=1, progress=False)
    start = time.perf_counter()
    probe.generate(pipe, table, steps=4, progress=False)
    return (time.perf_counter() - start) / 4 * steps / 4 * runs / 60


def rebuilt(given: Any, concepts: list[str]) -> bool:
    """Edits and attack sets that are not there; both say first what there is to do, and how long it takes."""
    from data.build import attacks, edits

    for name in concepts:
        for eraser in ERASERS:
            edits.main(["--only", f"{name}-{eraser}", "--out", str(given.edits)])
        only = ["--only", f"{name}-unlearn_diff-banned", "--out", str(given.attacks), "--edits", str(given.edits)]
        if attacks.main(only):
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
