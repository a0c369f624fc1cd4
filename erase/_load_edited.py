"""load_edited: a pipeline put together from a folder that `Edit.export` wrote beside an edit that is no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erase._saving import HEADER, load_edit
from probe._load import load
from probe.errors import BadInput

#: Where in an exported pipeline's folder the edit lies.
BESIDE = "edit"


def load_edited(folder: str | Path, *, device: str = "cpu", dtype: Any = None) -> Any:
    """The pipeline in ``folder`` with the edit of its ``edit/`` in force; ``edit.revert(pipe)`` takes it out again.

    Args:
        folder: as `Edit.export` wrote it for an edit of hooks: an unedited model in diffusers' layout, and the edit.
        device, dtype: as in `probe.load`.

    The edit is no part of the model's weights: whoever loads the folder by other means gets the unedited model.

    Raises `BadInput` for a folder without an edit, and as `probe.load`, `load_edit` and `Edit.apply`.
    """
    beside = Path(folder) / BESIDE
    if not (beside / HEADER).is_file():
        merged = (Path(folder) / "model_index.json").is_file()
        fix = "probe.load(folder): an exported edit of weights is part of the model" if merged else None
        raise BadInput("no edit lies beside the pipeline", given=str(folder), expected=f"{BESIDE}/{HEADER}", fix=fix)
    edit = load_edit(beside)
    pipe = load(folder, device=device, dtype=dtype)
    edit.apply(pipe)
    return pipe
