"""erase resag and scaled: corrections that a prompt opens."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from erase.cli._app import app
from erase.cli._prune import save
from probe._terminal import Task, command, from_signature

_Concepts = Annotated[list[str], typer.Argument(metavar="CONCEPT...", help="names of concepts, or texts")]
_World = Annotated[str, typer.Option(help="where concepts come from: emoji, a folder or a YAML file")]


@command(
    app,
    "resag",
    options=from_signature("erase.gated._resag:resag", leave_out=("force", "progress")),
    model=True,
    out=True,
)
def resag(task: Task, concepts: _Concepts, world: _World = "emoji") -> None:
    """Residual attention gates (Concept Pinpoint Eraser): learned from texts alone, open for a concept's prompts."""
    import erase

    if task.dry_run:
        return task.plan(concepts=concepts, world=world)
    config = _known(task.config, world)
    found = erase.resag(task.pipeline(), _of_world(concepts, world), force=task.force, progress=task.progress, **config)
    return save(task, found)


@command(app, "scaled", out=True)
def scaled(
    task: Task,
    edit: Annotated[str, typer.Argument(metavar="EDIT", help="a saved edit of deltas or gates")],
    strength: Annotated[float, typer.Option(help="what it adds is multiplied by this")],
    name: Annotated[str | None, typer.Option(help="name of the edit; <its name>@<strength> unless given")] = None,
) -> None:
    """The same edit, stronger or weaker, without fitting it again."""
    import erase

    if task.dry_run:
        return task.plan(edit=edit, strength=strength, name=name)
    return save(task, erase.scaled(erase.load_edit(edit), strength, name=name))


def _known(config: dict[str, Any], world: str) -> dict[str, Any]:
    """Options with names of the world as its concepts."""
    if (preserve := config.get("preserve")) is None:
        return dict(config)
    return {**config, "preserve": _of_world([preserve] if isinstance(preserve, str) else preserve, world)}


def _of_world(names: list[str], world: str) -> list[Any]:
    """Concepts of the world by name; what it does not know is a text."""
    import probe

    known = probe.concepts(world)
    return [known[name] if name in known else name for name in names]  # noqa: SIM401 - its errors are no KeyError
