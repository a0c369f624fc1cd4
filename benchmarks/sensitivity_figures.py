"""The figures of sensitivity for church, weapon and ink, from committed edits and attack sets.

    python -m benchmarks.sensitivity_figures                # says how long, then draws; gone on with when cut off
    python -m benchmarks.sensitivity_figures --dry-run      # only says how long
    python -m benchmarks.sensitivity_figures --rebuild      # makes missing edits and attack sets first; says how long
    python -m benchmarks.sensitivity_figures --only church --prompts 2 --select 4 --steps 4   # small

Reads `data/edits/<concept>-<eraser>` and `data/attacks/<concept>-unlearn_diff-banned`, a transfer set made against ESD,
whose prompts are judged anew on every other edit. What is not there is named and left out, and so is an edit that shows
all prompts without an attack; where no attack succeeds ratios are NaN. Recordings and maps go to `--work`, figures
and their numbers (`ratios.csv`) to `--out`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

import probe
from probe._paths import data_dir
from probe._relighting import generations
from probe.attacks import AttackSet
from probe.cli._figures import FIGURES
from probe.errors import BadInput

CONCEPTS, ERASERS = ("church", "weapon", "ink"), {"esd": "ESD", "concept_prune": "ConceptPrune"}
OPTIONS = {"title": None, "neuron": None, "sample": 0, "rows": 4, "columns": 8}
BATCH = 20


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/claims/sensitivity"))
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
    jobs = [(name, eraser) for name in CONCEPTS if given.only in name for eraser in ERASERS]
    making = missing(pipe, world, given, jobs) if given.rebuild else {}
    if not given.rebuild:
        jobs = [job for job in jobs if there(given, *job)]
    runs = generations(given.prompts, given.select) * len(jobs)
    own = minutes(pipe, given.steps, runs)
    for key, duration in making.items():
        print(f"{key} is to be made, about {duration:.0f} minutes")
    print(f"{len(jobs)} sensitivities, at most {runs} generations, about {own:.0f} minutes")
    print(f"together about {own + sum(making.values()):.0f} minutes", flush=True)
    if given.dry_run:
        return 0
    if not rebuilt(given, making):
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for name, eraser in jobs:
        if (nm := measured(pipe, world[name], name, eraser, given)) is not None:
            found.setdefault(name, {})[ERASERS[eraser]] = nm
    for name, maps in found.items():
        draw(name, maps, given)
    ratios(found).round(4).to_csv(given.out / "ratios.csv", index=False, lineterminator="\n")
    return 0


def measured(pipe: Any, concept: Any, name: str, eraser: str, given: Any) -> Any:
    """The sensitivity of one edit, kept as a map; None where no prompt is left to measure."""
    from erase import load_edit

    attacks = AttackSet.load(given.attacks / attack_key(name)).first(given.prompts)
    try:
        nm = probe.sensitivity(
            pipe,
            load_edit(given.edits / f"{name}-{eraser}"),
            adversarial=attacks,
            concept=concept,
            out=given.work / f"{name}-{eraser}",
            n_select=given.select,
            steps=given.steps,
            overlays=3,
            batch_size=BATCH,
        )
    except BadInput as error:
        print(f"left out {name} under {ERASERS[eraser]}: {error}", file=sys.stderr)
        return None
    nm.save(given.work / f"{name}-{eraser}.zarr.zip", force=True)
    none = "" if nm.report["attacked"]["succeeded"] else "; no attack succeeded, so the concept's ratio is NaN"
    print(f"{name} {eraser}: {nm.report}{none}", flush=True)
    return nm


def ratios(found: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Every ratio with its interval, and how many attacked prompts were measured and how many succeeded."""
    rows = []
    for name, maps in found.items():
        for eraser, nm in maps.items():
            table = nm.dataset[["ratio", "ratio_low", "ratio_high", "ratio_n"]].to_dataframe().reset_index()
            counts = {key: nm.report["attacked"][key] for key in ("prompts", "measured", "succeeded")}
            rows.append(table.assign(concept=name, eraser=eraser, **counts))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


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
        kinds = ("original", "plain", "adversarial") if nm.report["attacked"]["succeeded"] else ("original", "plain")
        files = [f"{kind}={work / f'own-{kind}'}" for kind in kinds]
        shown = {**OPTIONS, "sample": sample_of(nm, work / "own-original"), "title": f"{name}, {words}"}
        save(FIGURES["relit"].draw(files, shown), f"{eraser}-relit")


def sample_of(nm: Any, original: Path) -> int:
    """The first sample of the original's run whose attack succeeded, else the first."""
    succeeded = nm.dataset["measured"].values & (nm.dataset["success"].values == 1)
    pairs = probe.Run(original).samples["pair"].tolist()
    return next((i for i, pair in enumerate(pairs) if succeeded[pair]), 0)


def there(given: Any, name: str, eraser: str) -> bool:
    missing = [
        path for path in (given.edits / f"{name}-{eraser}", given.attacks / attack_key(name)) if not path.is_dir()
    ]
    for path in missing:
        print(f"left out {name} under {ERASERS[eraser]}: there is no {path}", file=sys.stderr)
    return not missing


def minutes(pipe: Any, steps: int, runs: int) -> float:
    """From one batch of as many as are recorded together, drawn now."""
    table = probe.samples(["a church"] * BATCH, seeds=list(range(BATCH)))
    probe.generate(pipe, table, steps=1, batch_size=BATCH, progress=False)
    start = time.perf_counter()
    probe.generate(pipe, table, steps=6, batch_size=BATCH, progress=False)
    return (time.perf_counter() - start) / 6 * steps / BATCH * runs / 60


def missing(pipe: Any, world: Any, given: Any, jobs: list[tuple[str, str]]) -> dict[str, float]:
    """What is to be made first, edits before the attacks on them, and how many minutes each takes."""
    from data.build import attacks, edits

    found = {
        f"{name}-{eraser}": edits.MINUTES for name, eraser in jobs if not (given.edits / f"{name}-{eraser}").is_dir()
    }
    keys = {attack_key(name) for name, _ in jobs}
    for job in attacks.jobs(world):
        if job.key in keys and (left := job.prompts - finished(given.attacks / job.key)):
            found[job.key] = attacks.total_minutes(pipe, [job], False) * left / job.prompts
    return found


def finished(path: Path) -> int:
    """How many prompts of an attack set are searched to the end."""
    return sum(row.finished for row in AttackSet.load(path)) if path.is_dir() else 0


def rebuilt(given: Any, making: dict[str, float]) -> bool:
    """Makes them; what was cut off is gone on with."""
    from data.build import attacks, edits

    for key in making:
        if key.rpartition("-")[2] in ERASERS:
            edits.main(["--only", key, "--out", str(given.edits)])
        elif attacks.main(["--only", key, "--out", str(given.attacks), "--edits", str(given.edits)]):
            return False
    return True


def attack_key(name: str) -> str:
    return f"{name}-unlearn_diff-banned"


if __name__ == "__main__":
    sys.exit(main())
