"""Where the data that comes with the workbench lies: in a checkout under ``data/``, in a wheel under ``probe/_data/``.

The only module that knows both places.
"""

from __future__ import annotations

import os
from pathlib import Path

from probe._kinds import to_make
from probe.errors import UnknownName, unknown_name

_PACKAGE = Path(__file__).resolve().parent


def data_dir() -> Path:
    """The folder that holds ``emoji/`` (and, in a checkout, ``maps/``, ``attacks/``, ``edits/``)."""
    packed = _PACKAGE / "_data"
    return packed if packed.is_dir() else _PACKAGE.parent / "data"


def emoji_dir() -> Path:
    """The embedded world: pipeline, judges, concepts."""
    return data_dir() / "emoji"


def committed(path: str | Path, folder: str, what: str, file: str) -> Path:
    """The folder at ``path``, or for ``"emoji/<name>"`` the one of that name in ``data/<folder>/``.

    Raises `UnknownName` with the names that are there (folders with that ``file``) where there is none.
    """
    given, kind = Path(path), what.replace(" ", "_")
    if os.path.isdir(given):
        return given
    ours = isinstance(path, str) and path.startswith("emoji/")
    home = data_dir() / folder if ours else given.parent
    found = {entry.name: entry for entry in home.iterdir() if (entry / file).is_file()} if os.path.isdir(home) else {}
    if ours and given.name in found and path == f"emoji/{given.name}":
        return found[given.name]
    known = [f"emoji/{name}" if ours else str(found[name]) for name in found]
    if not known:
        raise UnknownName(f"unknown {what}", given=repr(str(path)), expected=f"a folder with {file}", fix=to_make(kind))
    raise unknown_name(what, str(path), known)


def finding(path: str) -> Path:
    """Where ``"emoji/<name>"`` lies, be it a map, an attack set or an edit; any other path as it is."""
    owner, _, name = path.partition("/")
    places = [data_dir() / folder / name for folder in ("maps", "attacks", "edits")]
    return next((place for place in places if owner == "emoji" and name and place.is_dir()), Path(path))
