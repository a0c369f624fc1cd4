"""Edits that a claim makes once: each in a folder named by what it was made with, the model included.

So a changed setting never meets an old edit. `tell` is how a plan speaks, `updated` how a table grows by parts.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from models import SECONDS, own

import erase
from probe import provenance

#: Seconds of a core of one edit, by its eraser; closed forms take a few. Of a concept each, where they learn apart.
MAKING = {
    "esd": 150, "concept_prune": 50, "trce_trajectory": 200, "trce": 200, "resag": 90, "low_rank": 60, "spm": 200,
}  # fmt: skip


def name_of(label: str, options: Mapping[str, Any]) -> str:
    """A folder's name: the label, and a short hash of options and model."""
    made_with = {"model": _model(), "options": dict(options)}
    return f"{label.replace(' ', '_').replace('/', '_')}-{provenance.identity_id(made_with)[:8]}"


def kept(label: str, options: Mapping[str, Any], make: Callable[[Path], Any], out: Path) -> Any:
    """The edit of that label and these options: loaded if it was made before, else made and saved.

    ``make`` is told a folder for a training that goes on where it was cut off.
    """
    name = name_of(label, options)
    path = out / "edits" / name
    if (path / "edit.json").is_file():
        return erase.load_edit(path)
    start = time.perf_counter()
    edit = make(out / "trainings" / name)
    edit.save_pretrained(path)
    (path / "seconds.txt").write_text(f"{time.perf_counter() - start:.2f}\n")
    return edit


def seconds(label: str, options: Mapping[str, Any], out: Path) -> float:
    """How long it took to make the edit of that label and these options."""
    return float((out / "edits" / name_of(label, options) / "seconds.txt").read_text())


def updated(table: pd.DataFrame, path: Path, by: Sequence[str], digits: int = 4) -> pd.DataFrame:
    """The CSV at ``path`` with these rows in place of those that agree with one of them in ``by``; the rest stays."""
    if path.is_file():
        there = pd.read_csv(path)
        keys = pd.MultiIndex.from_frame(table[list(by)].astype(str))
        kept = there[~pd.MultiIndex.from_frame(there[list(by)].astype(str)).isin(keys)]
        table = pd.concat([kept, table], ignore_index=True) if len(kept) else table
    path.parent.mkdir(parents=True, exist_ok=True)
    table.round(digits).to_csv(path, index=False, lineterminator="\n")
    return table


def tell(what: str, pictures: int, making: float, args: argparse.Namespace) -> None:
    """Pictures and minutes of a whole row; ``making``: seconds of edits and searches."""
    minutes = (pictures * SECONDS.get(args.dtype, SECONDS["float32"]) + making) / 60
    print(f"{what}: at most {pictures} pictures, about {minutes:.0f} minutes of a core in {args.dtype}, "
          f"{making / 60:.0f} of them for edits and searches")  # fmt: skip


def tell_kept(args: argparse.Namespace) -> None:
    """What of it is there already."""
    pictures = sum(1 for _ in args.out.glob("judged/*/images/*.png"))
    edits = sum(1 for _ in args.out.glob("edits/*/edit.json"))
    print(f"{pictures} pictures and {edits} edits are kept in {args.out}")


@functools.cache
def _model() -> Any:
    return provenance.fingerprint(own()).to_json()
