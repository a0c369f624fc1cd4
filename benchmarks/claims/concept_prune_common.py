"""What the claims about ConceptPrune share: recordings and maps that are kept, and the command line.

`concept_prune_sweep.py` is older and stands by itself. Everything lies under ``runs/claims/concept_prune``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import SECONDS, common_arguments

import erase
import probe
from data.build import edits
from probe.cli._demo_steps import protected_prompts

HERE = Path(__file__).resolve().parent
OUT = Path("runs/claims/concept_prune")
STEPS = 30
#: Of 30 steps: the paper's timesteps (its first 10 of 50 PNDM calls), the first half, and the second.
WINDOWS = {"early": (999.0, 821.0), "first half": (999.0, 490.0), "late": (490.0, 1.0)}


def recorded(pipe: Any, name: str, prompts: Any, args: argparse.Namespace) -> probe.Run:
    """A run of some prompts, kept by name."""
    return probe.record(pipe, prompts, out=args.out / "runs" / name.replace(" ", "_"), batch_size=args.batch_size,
                        steps=STEPS, images=False)  # fmt: skip


def skill_map(pipe: Any, concept: Any, args: argparse.Namespace, references: str = "paper") -> probe.NeuronMap:
    """The wanda map of a concept's tuning prompts against its references; the conditional branch alone."""
    return edits.skill_map(concept, pipe, args.out / "runs", references, prompts=args.recorded,
                           batch_size=args.batch_size, steps=STEPS)  # fmt: skip


def protected(pipe: Any, concept: Any, world: Any, args: argparse.Namespace) -> probe.Run:
    """A run of prompts of what must survive, for ``keep=``."""
    return recorded(pipe, f"{concept.name}-protected", protected_prompts(concept, world, args.recorded), args)


def density_of_unet(pipe: Any, edit: erase.Edit) -> float:
    """Share of all weights of the UNet that an edit of masks sets to zero."""
    zeros = sum(int(change.dense().sum()) for change in edit.changes)
    return zeros / sum(p.numel() for p in pipe.unet.parameters())


def arguments(about: str | None, name: str, concepts: Sequence[str]) -> argparse.ArgumentParser:
    """What every row can be told."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--concepts", nargs="+", default=list(concepts))
    parser.add_argument("--recorded", type=int, default=40, help="prompts to find skilled neurons with")
    common_arguments(parser, OUT, HERE / f"{name}.csv")
    return parser


def tell(judged: int, recorded: int, args: argparse.Namespace) -> None:
    """Pictures and minutes of a row, and what is kept of it."""
    minutes = (judged + recorded) * SECONDS.get(args.dtype, SECONDS["float32"]) / 60
    kept = sum(1 for _ in args.out.glob("judged/*/images/*.png"))
    print(f"{judged} judged + {recorded} recorded pictures, about {minutes:.0f} minutes of a core in {args.dtype}; "
          f"{kept} judged ones are kept by rows of this folder")  # fmt: skip
