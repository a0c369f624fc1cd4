"""The committed edits: `data/edits/<concept>-<eraser>/`, each made on the embedded model as it is released.

    python -m data.build.edits               # all that are not there; minutes each, gone on with when cut off
    python -m data.build.edits --dry-run     # only names them
    python -m data.build.edits --only church # edits whose name holds this

Settings were chosen on tuning prompts by the scripts in `benchmarks/claims`. Trainings lie under `--work`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import probe
from probe._paths import data_dir

HEADLINE = ("church", "ink", "weapon")
#: Of `benchmarks/claims/pruning_plain.py --tune`; kept at a rank that leaves room for all findings in 10 MB.
ESD: dict[str, Any] = {"lr": 1e-4, "train": "x", "eta": 0.3, "retain": 1.0, "iterations": 200,
                       "batch_size": 4, "steps": 15, "cached": 40}  # fmt: skip
#: A style gives way to another one, prompt by prompt.
ESD_OF_STYLES = ESD | {"lr": 3e-4, "eta": 1.0}
RANK = 12
#: Of `benchmarks/claims/concept_prune_sweep.py`.
CONCEPT_PRUNE: dict[str, Any] = {"skill_ratio": 0.15, "window": (490, 1)}


@dataclass(frozen=True)
class Job:
    """One edit: its eraser and the concepts it erases."""

    name: str
    concepts: tuple[str, ...]
    eraser: str

    @property
    def key(self) -> str:
        return f"{self.name}-{self.eraser}"


def jobs(world: Any) -> Iterator[Job]:
    """White-box attack sets are made against ESD edits, so there is one of everything that is attacked."""
    groups = [name for name in world.lists["groups"] if name not in HEADLINE]
    for name in (*HEADLINE, *groups):
        yield Job(name, (name,), "esd")
    yield Job("erase_10", tuple(world.lists["erase_10"]), "esd")
    for name in HEADLINE:
        yield Job(name, (name,), "concept_prune")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=data_dir() / "edits")
    parser.add_argument("--work", type=Path, default=Path("runs/edits"))
    parser.add_argument("--only", default="", help="edits whose name holds this")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    pipe, world = probe.load("emoji"), probe.concepts("emoji")
    chosen = [job for job in jobs(world) if given.only in job.key and not (given.out / job.key).is_dir()]
    names = ", ".join(job.key for job in chosen) or "none"
    print(f"edits to make: {names}; about {3 * len(chosen)} minutes", flush=True)
    for job in [] if given.dry_run else chosen:
        edit = made(pipe, world, job, given.work)
        edit.save_pretrained(given.out / job.key)
        print(f"{job.key}: {edit.nbytes / 1e6:.2f} MB", flush=True)
    return 0


def made(pipe: Any, world: Any, job: Job, work: Path) -> Any:
    """The edit of a job."""
    import erase

    concepts = [world[name] for name in job.concepts]
    if job.eraser == "esd":
        whole = erase.esd(pipe, concepts, training=work / job.key, name=job.key, **told(concepts))
        return erase.truncated(whole, RANK, name=job.key)
    (concept,) = concepts
    form = "paper" if "paper" in concept.references else next(iter(concept.references))
    sides = {"target": concept.prompts["explicit"], "reference": concept.references[form]}
    runs = [
        probe.record(pipe, list(prompts)[:40], out=work / f"{job.name}-{side}", batch_size=20, images=False)
        for side, prompts in sides.items()
    ]
    found = probe.score(*runs, method="wanda", branches="cond")
    return erase.concept_prune(pipe, found, name=job.key, **CONCEPT_PRUNE)


def told(concepts: list[Any]) -> dict[str, Any]:
    """What ESD is told of concepts: the prompts it learns, what is drawn instead, and its numbers."""
    if concepts[0].kind == "style":
        (style,) = concepts
        pairs = zip(style.prompts["explicit"], style.references["neighbour"], strict=True)
        return {"prompts": list(pairs), **ESD_OF_STYLES}
    each = None if len(concepts) == 1 else 8
    anchors = {concept.anchor for concept in concepts}
    return {
        "prompts": [prompt for concept in concepts for prompt in concept.prompts["explicit"][:each]],
        "anchor": (anchors.pop() or None) if len(anchors) == 1 else None,
        **ESD,
    }


if __name__ == "__main__":
    sys.exit(main())
