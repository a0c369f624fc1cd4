"""Where the data that comes with the workbench lies: in a checkout under ``data/``, in a wheel under ``probe/_data/``.

The only module that knows both places.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_dir() -> Path:
    """The folder that holds ``emoji/`` (and, in a checkout, ``maps/``, ``attacks/``, ``edits/``)."""
    packed = _PACKAGE / "_data"
    return packed if packed.is_dir() else _PACKAGE.parent / "data"


def emoji_dir() -> Path:
    """The embedded world: pipeline, judges, concepts."""
    return data_dir() / "emoji"
