"""Versions of the files we write. Writers write the newest version, readers read all of them.

A version rises when a reader of the old one would misread the new; ``tests/formats/`` keeps one small file of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probe.errors import BadInput, StoreDamaged, unknown_name

LAYOUT_VERSIONS = {
    "run": 1,
    "trajectory": 1,
    "neuron_map": 1,
    "selectivity": 1,
    "edit": 1,
    "result": 2,
    "causal_log": 1,
    "training": 1,
    "originals": 1,
    "attack_set": 1,
}

_PREFIX = "neuron-workbench/"


def header(kind: str) -> dict[str, Any]:
    """The two keys that open every file of ours: ``format`` and ``layout_version``, the newest."""
    if kind not in LAYOUT_VERSIONS:
        raise unknown_name("kind of file", kind, LAYOUT_VERSIONS)
    return {"format": _PREFIX + kind, "layout_version": LAYOUT_VERSIONS[kind]}


def kind_of(found: Mapping[str, Any]) -> str | None:
    """The kind that a header names, or None where there is no header of ours."""
    name = found.get("format")
    return name.removeprefix(_PREFIX) if isinstance(name, str) and name.startswith(_PREFIX) else None


def check_header(found: Mapping[str, Any], kind: str, path: str | Path) -> int:
    """The layout version of a file of this kind.

    Raises `StoreDamaged` for what is no file of ours, `BadInput` for another kind or a version newer than this code.
    """
    if (other := kind_of(found)) is None:
        raise StoreDamaged("not a file of the workbench", given=str(path), expected=f"a {_words(kind)}")
    if other != kind:
        raise BadInput("another kind of file", given=f"{path} (a {_words(other)})", expected=f"a {_words(kind)}")
    version = found.get("layout_version")
    if not isinstance(version, int) or version < 1:
        raise StoreDamaged("the file has no layout version", given=str(path))
    if version > LAYOUT_VERSIONS[kind]:
        raise BadInput(
            "the file was written by a newer version of the workbench",
            given=f"{path}, layout {version}",
            expected=f"at most {LAYOUT_VERSIONS[kind]}",
            fix="upgrade neuron-workbench",
        )
    return version


def _words(kind: str) -> str:
    return kind.replace("_", " ")
