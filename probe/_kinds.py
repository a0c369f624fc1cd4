"""What a path holds, from its header alone."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from probe import formats
from probe.errors import StoreDamaged


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
