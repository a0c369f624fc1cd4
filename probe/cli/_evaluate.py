"""probe evaluate: edits beside the unedited model, on the same samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from probe._terminal import Task, command, from_signature
from probe.cli._app import app
from probe.errors import BadInput

if TYPE_CHECKING:
    from erase import Edit

SHOWN = ["edit", "concept", "split", "metric", "value", "ci_low", "ci_high", "n", "original", "difference"]

_OPTIONS = from_signature("probe._evaluate:evaluate", leave_out=("out", "world", "progress", "force"))


@command(app, "evaluate", options=_OPTIONS, model=True, out=True)
def evaluate(
    task: Task,
    edits: Annotated[list[str], typer.Argument(metavar="EDIT...", help="saved edits, as a folder or name=folder")],
    concept: Annotated[list[str], typer.Option(help="concept to look for; repeat for several")],
    world: Annotated[str, typer.Option(help="where concepts come from: emoji, a folder or a YAML file")] = "emoji",
) -> None:
    """Measure edits: what is still shown, what else is lost, what breaks. Repeat the command to resume."""
    import probe

    if task.dry_run:
        return task.plan(edits=edits, concept=concept, world=world)
    loaded = _load(edits)
    table = probe.evaluate(
        None if task.config.get("rejudge") else task.pipeline(),
        loaded,
        concept,
        world=probe.concepts(world),
        out=task.out,
        progress=task.progress,
        force=task.force,
        **task.config,
    )
    return task.result({"result": task.out, "cells": table}, table[SHOWN], f"saved to {task.out}")


def _load(edits: list[str]) -> dict[str, Edit]:
    """Name -> edit; the edit's own name where the command line gives none."""
    from erase import load_edit

    found: dict[str, Edit] = {}
    for text in edits:
        name, _, path = text.rpartition("=")
        edit = load_edit(path)
        if (name or edit.name) in found:
            raise BadInput("two edits of one name", given=name or edit.name, fix=f"name={path}")
        found[name or edit.name] = edit
    return found
