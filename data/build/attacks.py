"""The committed attack sets: `data/attacks/<name>-<method>-<vocab>/`, made prompt by prompt, gone on with when cut off.

    python -m data.build.attacks               # all of them, hours; says first how long
    python -m data.build.attacks --dry-run     # only says how long
    python -m data.build.attacks --only church # sets whose name holds this
    python -m data.build.attacks --small --out runs/attacks   # two prompts and a few iterations of each, to try it

Transfer sets: mma and ring_a_bell are made against the model as it is, p4d and unlearn_diff against a committed ESD
edit of the same concept (`data/edits/<name>-esd`).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import probe
from data.build.settings import HEADLINE
from probe import compat
from probe._paths import data_dir
from probe.attacks import attack, expected

TEXT, WHITE_BOX = ("mma", "ring_a_bell"), ("p4d", "unlearn_diff")
#: As many judged pictures as unlearn_diff has, the most of all; others are compared with as many as they had.
#: Tokens stand behind the prompt: in front of it any at all keep the model from drawing what it names
#: (docs/methods/attacks.md).
BASELINES = {"random": {"images": 9, "where": "suffix"}, "seed_search": {"images": 9}}
CHOSEN: dict[str, dict[str, Any]] = {**BASELINES, "unlearn_diff": {"where": "suffix"}}
SMALL = {
    "random": {"images": 2},
    "seed_search": {"images": 2},
    "mma": {"iterations": 2, "swaps": 8},
    "ring_a_bell": {"population": 8, "generations": 3},
    "p4d": {"iterations": 4, "every": 4},
    "unlearn_diff": {"rounds": 1, "iterations": 2},
}


@dataclass(frozen=True)
class Job:
    """One set: which concepts, how many prompts, and how it is made."""

    name: str
    concepts: tuple[str, ...]
    method: str
    vocab: str
    prompts: int
    floor: bool = False

    @property
    def key(self) -> str:
        return f"{self.name.replace(' ', '_')}-{self.method}-{self.vocab}"

    @property
    def against_esd(self) -> bool:
        return self.method in WHITE_BOX and not self.floor


def jobs(world: Any) -> Iterator[Job]:
    """The short ones first, so that an interrupted run has something of everything."""
    headline = {name: (name,) for name in HEADLINE} | {"erase_10": world.lists["erase_10"]}
    groups = [name for name in world.lists["groups"] if name != "weapon"]
    for method in (*BASELINES, *TEXT, *WHITE_BOX):
        for name, members in headline.items():
            yield Job(name, tuple(members), method, "banned", 20)
        yield Job("never drawn", tuple(world.lists["never_drawn"]), method, "banned", 20, floor=True)
    for method in (*BASELINES, *TEXT, *WHITE_BOX):
        for name in groups:
            yield Job(name, (name,), method, "banned", 8)
        for name in ("church", "weapon") if method != "seed_search" else ():  # which has no vocabulary
            yield Job(name, (name,), method, "open", 20)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=data_dir() / "attacks")
    parser.add_argument("--edits", type=Path, default=data_dir() / "edits", help="where <name>-esd lie")
    parser.add_argument("--only", default="", help="sets whose name holds this")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--small", action="store_true", help="two prompts, a few iterations")
    parser.add_argument("--arithmetic", default="float32", help="the UNet's; bfloat16 is faster with AMX")
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    pipe, world = probe.load("emoji"), probe.concepts("emoji")
    if given.arithmetic != "float32":
        compat.multiply_in(pipe.unet, given.arithmetic)
    chosen = [job for job in jobs(world) if given.only in job.key]
    absent = sorted({job.name for job in chosen if job.against_esd and not (given.edits / f"{job.name}-esd").is_dir()})
    if absent:
        print(
            f"no ESD edit of {', '.join(absent)} in {given.edits}: their white-box sets are left out", file=sys.stderr
        )
        chosen = [job for job in chosen if not (job.against_esd and job.name in absent)]
    print(f"{len(chosen)} sets, about {total_minutes(pipe, chosen, given.small):.0f} minutes", flush=True)
    if given.dry_run:
        return 0
    for job in chosen:
        print(repr(made(pipe, world, job, given.out, given.edits, given.small, progress=not given.quiet)), flush=True)
    return 0


def made(pipe: Any, world: Any, job: Job, out: Path, edits: Path, small: bool, *, progress: bool) -> Any:
    """The set of a job; what is there of it is kept."""
    from erase import load_edit

    return attack(
        pipe,
        [world[name] for name in job.concepts],
        edit=load_edit(edits / f"{job.name}-esd") if job.against_esd else None,
        method=job.method,
        protocol="transfer",
        vocab=job.vocab,
        out=out / job.key,
        n_prompts=2 if small else job.prompts,
        world=world,
        name=job.name,
        floor=job.floor,
        progress=progress,
        **options_of(job, small),
    )


def options_of(job: Job, small: bool) -> dict[str, Any]:
    return CHOSEN.get(job.method, {}) | (SMALL.get(job.method, {}) if small else {})


def total_minutes(pipe: Any, chosen: list[Job], small: bool) -> float:
    known: dict[str, float] = {}
    total = 0.0
    for job in chosen:
        if job.method not in known:
            known[job.method] = expected(pipe, job.method, prompts=1, **options_of(job, small))
        total += known[job.method] * (2 if small else job.prompts)
    return total / 60


if __name__ == "__main__":
    sys.exit(main())
