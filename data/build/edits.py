"""The committed edits: `data/edits/<concept>-<eraser>/`, each made on the embedded model as it is released.

    python -m data.build.edits               # all that are not there; minutes each, gone on with when cut off
    python -m data.build.edits --dry-run     # only names them
    python -m data.build.edits --only church # edits whose name holds this

Settings are those of `data/build/settings.py`. Trainings and recordings lie under `--work`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import probe
from data.build.maps import recordings
from data.build.settings import HEADLINE, options_of
from probe._paths import data_dir

#: One of each eraser for the headline concepts; those that solve or train whole matrices are kept at a rank that leaves
#: room for all findings in 10 MB.
ERASERS = (
    "esd", "p_esd", "ablating_concepts", "p_ac", "concept_prune", "uce", "mace", "trce_text", "resag",
)  # fmt: skip
LEARNED = ("esd", "p_esd", "ablating_concepts", "p_ac")
#: What one edit takes, roughly.
MINUTES = 3.0
RANK = {"esd": 12, "ablating_concepts": 8, "uce": 8, "mace": 8, "trce_text": 8}


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
    for eraser in ERASERS:
        for name in HEADLINE:
            yield Job(name, (name,), eraser)
    for name in groups:
        yield Job(name, (name,), "esd")
    yield Job("erase_10", tuple(world.lists["erase_10"]), "esd")


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
    print(f"edits to make: {names}; about {MINUTES * len(chosen):.0f} minutes", flush=True)
    for job in [] if given.dry_run else chosen:
        edit = made(pipe, world, job, given.work)
        edit.save_pretrained(given.out / job.key)
        print(f"{job.key}: {edit.nbytes / 1e6:.2f} MB", flush=True)
    return 0


def made(pipe: Any, world: Any, job: Job, work: Path) -> Any:
    """The edit of a job."""
    import erase

    concepts = [world[name] for name in job.concepts]
    options = options_of(job.eraser, concepts)
    if job.eraser == "concept_prune":
        return erase.concept_prune(pipe, skill_map(concepts[0], pipe, work), name=job.key, **options)
    if job.eraser in LEARNED:
        options |= {"training": work / job.key}
    eraser = erase.differentiable_prune if job.eraser in ("p_esd", "p_ac") else getattr(erase, job.eraser)
    whole = eraser(pipe, concepts, name=job.key, **options)
    return erase.truncated(whole, RANK[job.eraser], name=job.key) if job.eraser in RANK else whole


def skill_map(concept: Any, pipe: Any, work: Path, references: str = "paper", **recording: Any) -> Any:
    """The wanda map that ConceptPrune prunes by; ``recording`` as in `maps.recordings`."""
    return probe.score(*recordings(concept, pipe, work, references, **recording), method="wanda", branches="cond")


if __name__ == "__main__":
    sys.exit(main())
