"""erase generate: images of the edited model."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erase.cli._app import app
from probe._terminal import Task, command, from_signature

if TYPE_CHECKING:
    import numpy as np

TABLE = "samples.csv"

_OPTIONS = from_signature(
    "probe._generate:generate", leave_out=("progress", "on_call", "on_batch", "on_step", "decode")
)


@command(app, "generate", options=_OPTIONS, model=True, out=True)
def generate(
    task: Task,
    edit: Annotated[str, typer.Argument(metavar="EDIT", help="a saved edit")],
    prompt: Annotated[list[str], typer.Option(help="what to draw; repeat for several")],
    seed: Annotated[int, typer.Option(help="seed of every image")] = 0,
    seeds_per_prompt: Annotated[int, typer.Option(help="images of each prompt: seed, seed + 1, ...")] = 1,
    beside: Annotated[bool, typer.Option("--beside", help="draw the same samples with the unedited model too")] = False,
) -> None:
    """Draw prompts with an edit in force, into a folder of PNG files with a table of samples."""
    import erase
    import probe
    from probe._files import check_free, written_whole

    if task.dry_run:
        return task.plan(edit=edit, prompt=prompt, seed=seed, seeds_per_prompt=seeds_per_prompt, beside=beside)
    check_free(task.out, "folder of images", ours=_holds_images(task.out), force=task.force)
    loaded, pipe = erase.load_edit(edit), task.pipeline()
    samples = probe.samples(prompt, seed, seeds_per_prompt=seeds_per_prompt)
    names = [
        f"{i:03}-{_slug(text)}-{s}" for i, (text, s) in enumerate(zip(samples["prompt"], samples["seed"], strict=True))
    ]
    with written_whole(task.out, replace=task.force) as folder:
        folder.mkdir()
        files = []
        states: dict[str, AbstractContextManager[Any]] = {"": loaded.applied(pipe)}
        if beside:
            states["-original"] = nullcontext()
        for suffix, state in states.items():
            with state:
                images = probe.generate(pipe, samples, progress=task.progress, **task.config)
            files += [_write(folder / f"{name}{suffix}.png", image) for name, image in zip(names, images, strict=True)]
        samples.assign(file=[f"{name}.png" for name in names]).to_csv(folder / TABLE, index=False)
    document = {"folder": task.out, "edit": loaded.id, "files": files}
    return task.result(document, "\n".join(str(task.out / file) for file in files))


def _holds_images(folder: Path) -> bool:
    """Whether this command could have written the folder: its table, and nothing besides it but PNG files."""
    return (folder / TABLE).is_file() and all(f.suffix == ".png" for f in folder.iterdir() if f.name != TABLE)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "image"


def _write(path: Path, image: np.ndarray) -> str:
    """One image (y, x, rgb) as PNG; its name."""
    from PIL import Image

    Image.fromarray(image).save(path)
    return path.name
