"""A folder of PNG files with a table of samples: what commands that draw write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe._terminal._task import Task

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

TABLE = "samples.csv"


def draw_into_folder(
    task: Task, pipe: Any, samples: pd.DataFrame, states: Mapping[str, AbstractContextManager[Any]], **sampling: Any
) -> list[str]:
    """Draw the samples in every state of the pipeline; the names of the files, which end in the state's name.

    The folder is ``--out``, whole or not at all; one of pictures is replaced with ``--force``.
    """
    from probe._files import written_whole
    from probe._generate import generate

    names = [
        f"{i:03}-{_slug(text)}-{s}" for i, (text, s) in enumerate(zip(samples["prompt"], samples["seed"], strict=True))
    ]
    files = []
    with written_whole(task.out, replace=task.force) as folder:
        folder.mkdir()
        for suffix, state in states.items():
            with state:
                images = generate(pipe, samples, progress=task.progress, **sampling)
            files += [_write(folder / f"{name}{suffix}.png", image) for name, image in zip(names, images, strict=True)]
        samples.assign(file=[f"{name}.png" for name in names]).to_csv(folder / TABLE, index=False)
    return files


def check_folder(task: Task) -> None:
    """Refuse an ``--out`` that is there and not to be replaced, before anything is loaded."""
    from probe._files import check_free

    check_free(task.out, "folder of images", ours=_holds_images(task.out), force=task.force)


def _holds_images(folder: Path) -> bool:
    """Whether `draw_into_folder` could have written the folder: its table, and nothing besides it but PNG files."""
    return (folder / TABLE).is_file() and all(f.suffix == ".png" for f in folder.iterdir() if f.name != TABLE)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "image"


def _write(path: Path, image: np.ndarray) -> str:
    """One image (y, x, rgb) as PNG; its name."""
    from PIL import Image

    Image.fromarray(image).save(path)
    return path.name
