"""probe concepts: which there are, and what one of them holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe._terminal import Task, command
from probe.cli._app import app

if TYPE_CHECKING:
    from probe import Concept


@command(app, "concepts")
def concepts(
    task: Task,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="one of them, in full; all unless given")] = None,
    world: Annotated[str, typer.Option(help="where concepts come from: emoji, a folder or a YAML file")] = "emoji",
) -> None:
    """List the concepts of a world with the numbers of their prompts; with a name, say what that one holds."""
    import probe

    known = probe.concepts(world)
    if name is not None:
        return _one(task, known[name])
    import pandas as pd

    found = [_summary(concept) for concept in known.values()]
    rows = [{**one, "prompts": _counts(one["prompts"]), "test": _counts(one["test"])} for one in found]
    lists = {key: list(names) for key, names in known.lists.items()}
    text = f"{len(found)} concepts; lists: {_counts({key: len(names) for key, names in lists.items()})}"
    return task.result({"world": world, "concepts": found, "lists": lists}, pd.DataFrame(rows), text)


def _one(task: Task, concept: Concept) -> None:
    texts: dict[str, Mapping[str, Sequence[str]]] = {
        "prompts": concept.prompts,
        "test": concept.test,
        "references": concept.references,
    }
    document: dict[str, Any] = {
        **_summary(concept),
        **{key: {split: list(listed) for split, listed in found.items()} for key, found in texts.items()},
        "anchor": concept.anchor,
        "neighbours": list(concept.neighbours),
        "members": list(concept.members),
        "surface_forms": list(concept.surface_forms),
        "detector": concept.detector,
    }
    lines = [f"{concept.name}: {concept.kind}"]
    for key, found in texts.items():
        lines += [f"{key} {split}: {len(listed)}, such as {listed[0]!r}" for split, listed in found.items() if listed]
    for key in ("anchor", "neighbours", "members", "surface_forms", "detector"):
        value = document[key]
        shown = ", ".join(value) if isinstance(value, list) else value
        lines.append(f"{key.replace('_', ' ')}: {shown or 'none'}")
    return task.result(document, "\n".join(lines))


def _summary(concept: Concept) -> dict[str, Any]:
    """Name, kind, and how many texts each split has."""
    sizes = {
        key: {split: len(listed) for split, listed in texts.items()}
        for key, texts in (("prompts", concept.prompts), ("test", concept.test))
    }
    return {"name": concept.name, "kind": concept.kind, **sizes}


def _counts(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sizes.items()) or "none"
