"""What commands that erase concepts share: names become concepts, and an eraser that learns is run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from erase.cli._prune import save
from probe._terminal import Task

World = Annotated[str, typer.Option(help="where concepts come from: emoji, a folder or a YAML file")]
Preserve = Annotated[list[str] | None, typer.Option(help="what must stay, as CONCEPT; repeat for several")]


def named(names: Iterable[str], known: Any) -> list[Any]:
    """Concepts of a world by name; any other text stays a text."""
    return [known[name] if name in known else name for name in names]  # noqa: SIM401 - UnknownName is no KeyError


def of_world(names: Iterable[str], world: str) -> list[Any]:
    """The same, of the world that ``--world`` names."""
    import probe

    return named(names, probe.concepts(world))


def with_preserved(config: dict[str, Any], preserve: list[str] | None, world: str) -> dict[str, Any]:
    """The options, with what ``--preserve`` names."""
    return dict(config) if preserve is None else {**config, "preserve": of_world(preserve, world)}


def learned(task: Task, method: str, concepts: list[str], world: str, config: dict[str, Any]) -> None:
    """Runs an eraser that learns, saves its edit and reports it."""
    import erase
    from probe._files import check_free

    # before the work, not after; with a training folder nothing is lost, and the same edit may be there
    again = task.force or "training" in config
    check_free(task.out, "edit", ours=(task.out / "edit.json").is_file(), force=again)
    items, pipe = of_world(concepts, world), task.pipeline()
    return save(task, getattr(erase, method)(pipe, items, progress=task.progress, force=task.force, **config))
