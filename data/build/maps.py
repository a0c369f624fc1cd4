"""The committed neuron maps: `data/maps/<concept>-auroc/`, of the embedded model as it is released.

    python -m data.build.maps               # all that are not there; two minutes each, gone on with when cut off
    python -m data.build.maps --dry-run     # only names them
    python -m data.build.maps --only church # maps whose name holds this

Each compares 40 tuning prompts of the concept with as many references (docs/methods/scores.md). Recordings are kept
under ``--work``, where ConceptPrune's masks (`data/build/edits.py`) find them too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import probe
from data.build.settings import HEADLINE
from probe._paths import data_dir

#: The score that says most about a neuron in least room: one number over all steps, with its interval.
METHOD = "auroc"


def jobs() -> Iterator[tuple[str, str]]:
    """Each map's name and its concept."""
    for concept in HEADLINE:
        yield f"{concept}-{METHOD}", concept


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=data_dir() / "maps")
    parser.add_argument("--work", type=Path, default=Path("runs/edits"))
    parser.add_argument("--only", default="", help="maps whose name holds this")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(arguments)
    chosen = [(key, name) for key, name in jobs() if given.only in key and not (given.out / key).is_dir()]
    print(f"maps to make: {', '.join(key for key, _ in chosen) or 'none'}; about {2 * len(chosen)} minutes", flush=True)
    if given.dry_run or not chosen:
        return 0
    pipe, world = probe.load("emoji"), probe.concepts("emoji")
    for key, name in chosen:
        found = probe.score(*recordings(world[name], pipe, given.work), method=METHOD, branches="cond")
        found.save(given.out / key)
        print(f"{key}: {found!r}", flush=True)
    return 0


def recordings(
    concept: Any,
    pipe: Any,
    work: Path,
    references: str = "paper",
    *,
    prompts: int = 40,
    batch_size: int = 20,
    steps: int = 30,
) -> list[Any]:
    """Runs of a concept's tuning prompts and of their references: those of that name, else the first that are there."""
    form = references if references in concept.references else next(iter(concept.references))
    sides = {concept.name: concept.prompts["explicit"], f"{concept.name}-{form}": concept.references[form]}
    common: dict[str, Any] = {"batch_size": batch_size, "steps": steps, "images": False}
    return [
        probe.record(pipe, list(side)[:prompts], out=work / name.replace(" ", "_"), **common)
        for name, side in sides.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
