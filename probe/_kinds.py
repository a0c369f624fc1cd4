"""What a path holds, from its header alone; and what to say where it holds nothing."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from probe import formats
from probe.errors import BadInput, StoreDamaged, nearest

#: How a file of each kind comes to be.
MADE_BY = {
    "run": "probe record --concept church --out RUN",
    "trajectory": "probe trajectories --concept church --out TRAJECTORY",
    "neuron_map": "probe score TARGET REFERENCE --out MAP",
    "selectivity": "probe selectivity RUN --out TABLE",
    "edit": "erase concept-prune MAP --out EDIT, or another command of erase",
    "attack_set": "probe attack church --out SET",
}

_LOOKED_AT = 200  # entries of a folder


def kind_at(path: Path) -> str | None:
    """The kind of workbench file at ``path``, as its header says; None for anything else."""
    try:
        for name, attributes in (
            ("zarr.json", "attributes"),
            ("edit.json", None),
            ("header.json", None),
            ("training.json", None),
        ):
            if (path / name).is_file():
                found = json.loads((path / name).read_text(encoding="utf-8"))
                return formats.kind_of(found.get(attributes, {}) if attributes else found)
        if (path / "attack.jsonl").is_file():
            with (path / "attack.jsonl").open(encoding="utf-8") as file:
                return formats.kind_of(json.loads(file.readline()))
        if path.is_file() and path.name.endswith(".zarr.zip"):
            with zipfile.ZipFile(path) as archive:
                return formats.kind_of(json.loads(archive.read("zarr.json"))["attributes"])
    except (ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        fix = "copy it again, or make it again"
        raise StoreDamaged("the header cannot be read", given=f"{path}: {error}", fix=fix) from None
    return None


def near(path: Path, kinds: tuple[str, ...]) -> list[str]:
    """Files of these kinds in the folder in which ``path`` would lie, the nearest names first; three at most."""
    found = [str(entry) for entry in _entries(path.parent) if _is(entry, kinds)]
    return list(nearest(str(path), found)) or found[:3]


def absent(path: str | Path, *kinds: str) -> BadInput:
    """The error for a path at which there is nothing: what lies near it, and how such a file is made."""
    words = " or ".join(kind.replace("_", " ") for kind in kinds)
    close = [] if "://" in str(path) else near(Path(path), kinds)
    return BadInput(f"there is no {words} here", given=str(path), nearest=close, fix=to_make(kinds[0]))


def to_make(kind: str) -> str:
    """What to do where a file of this kind is missing."""
    return f"check the path, or make one: {MADE_BY[kind]}"


def _entries(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))[:_LOOKED_AT]
    except OSError:
        return
    yield from (folder / name for name in names if not name.startswith("."))


def _is(path: Path, kinds: tuple[str, ...]) -> bool:
    try:
        return kind_at(path) in kinds
    except (StoreDamaged, OSError):
        return False
