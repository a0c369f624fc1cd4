"""Where the data that comes with the workbench lies: in a checkout under ``data/``, in a wheel under ``probe/_data/``.

The only module that knows both places.
"""

from __future__ import annotations

import os
from pathlib import Path

from probe._kinds import to_make
from probe.errors import unknown_name

#: What may come along beside the embedded model: kind -> its folder in `data_dir`.
FINDINGS = {"neuron_map": "maps", "attack_set": "attacks", "edit": "edits"}

_PACKAGE = Path(__file__).resolve().parent


def data_dir() -> Path:
    """The folder that holds ``emoji/`` (and, in a checkout, ``maps/``, ``attacks/``, ``edits/``)."""
    packed = _PACKAGE / "_data"
    return packed if packed.is_dir() else _PACKAGE.parent / "data"


def emoji_dir() -> Path:
    """The embedded world: pipeline, judges, concepts."""
    return data_dir() / "emoji"


def finding(path: str | Path, *kinds: str) -> Path:
    """Where ``"emoji/<name>"`` lies, one of the maps, attack sets and edits that come along; any other path as it is.

    ``kinds``: which of `FINDINGS`, all of them unless given. Raises `UnknownName` with the names that there are.
    """
    owner, _, name = path.partition("/") if isinstance(path, str) else ("", "", "")
    if owner != "emoji" or not name or os.path.isdir(path):
        return Path(path)
    kinds = kinds or tuple(FINDINGS)
    known = {one.name: one for kind in kinds for one in sorted(data_dir().glob(f"{FINDINGS[kind]}/*/"))}
    if name not in known:
        what = " or ".join(kind.replace("_", " ") for kind in kinds)
        raise unknown_name(what, str(path), [f"emoji/{one}" for one in known], to_make(kinds[0]))
    return known[name]
