"""erase generate: images of the edited model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer

from erase.cli._app import app
from probe._terminal import Task, check_folder, command, draw_into_folder, from_signature

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

    if task.dry_run:
        return task.plan(edit=edit, prompt=prompt, seed=seed, seeds_per_prompt=seeds_per_prompt, beside=beside)
    check_folder(task)
    loaded, pipe = erase.load_edit(edit), task.pipeline()
    samples = probe.samples(prompt, seed, seeds_per_prompt=seeds_per_prompt)
    states: dict[str, AbstractContextManager[Any]] = {"": loaded.applied(pipe)}
    if beside:
        states["-original"] = nullcontext()
    files = draw_into_folder(task, pipe, samples, states, **task.config)
    document = {"folder": task.out, "edit": loaded.id, "files": files}
    return task.result(document, "\n".join(str(task.out / file) for file in files))
