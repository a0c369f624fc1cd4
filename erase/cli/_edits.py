"""erase info, stack and export: what to do with saved edits."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erase.cli._app import app
from erase.cli._prune import save
from probe._terminal import Task, command, from_signature

if TYPE_CHECKING:
    from erase import Edit

_CHECKPOINT = from_signature("erase._checkpoint:edit_from_checkpoint", verbatim=("name",))


@command(app, "info")
def info(
    task: Task, edits: Annotated[list[str], typer.Argument(metavar="EDIT...", help="one edit, or several to compare")]
) -> None:
    """Say what edits are; of several also what they share and whether they can hold together."""
    from erase import load_edit

    loaded = [load_edit(path) for path in edits]
    pairs = [_compare(a, b) for a, b in combinations(loaded, 2)]
    lines = [f"{repr(edit).strip('<>')}, {edit.density:.4%} of the touched weights masked" for edit in loaded]
    for pair in pairs:
        state = f"cannot hold together on {pair['conflict']}" if pair["conflict"] else "can hold together"
        overlap = "" if pair["jaccard"] is None else f", masks overlap by {pair['jaccard']:.3f} (Jaccard)"
        lines.append(f"{' and '.join(pair['edits'])}: {len(pair['shared'])} shared tensors{overlap}; {state}")
    task.result({"edits": [_describe(edit) for edit in loaded], "pairs": pairs}, *lines)


def _describe(edit: Edit) -> dict[str, Any]:
    return {
        "name": edit.name,
        "id": edit.id,
        "method": edit.method,
        "options": edit.options,
        "changes": [{"kind": change.kind, "param": change.param, "shape": change.shape} for change in edit.changes],
        "density": edit.density,
        "bytes": edit.nbytes,
        "parts": edit.parts,
        "base_edits": edit.base_edits,
        "provenance": edit.provenance,
    }


def _compare(a: Edit, b: Edit) -> dict[str, Any]:
    """Shared tensors, overlap of the masks (None where neither masks anything shared), the tensor of a conflict."""
    from erase._changes import Mask, conflict

    masks = [{c.param: c.dense() for c in edit.changes if isinstance(c, Mask)} for edit in (a, b)]
    both = sum(int((masks[0][param] & masks[1][param]).sum()) for param in masks[0].keys() & masks[1].keys())
    total = sum(int(mask.sum()) for mask in (*masks[0].values(), *masks[1].values())) - both
    return {
        "edits": [a.name, b.name],
        "shared": sorted(set(a.params) & set(b.params)),
        "jaccard": both / total if total else None,
        "conflict": conflict(a.changes, b.changes),
    }


@command(app, "stack", out=True)
def stack(
    task: Task,
    edits: Annotated[
        list[str], typer.Argument(metavar="EDIT...", help="edits, in the order in which they would be applied")
    ],
    name: Annotated[str | None, typer.Option(help="name of the stack; the joined names unless given")] = None,
) -> None:
    """Join edits into one."""
    import erase

    if task.dry_run:
        return task.plan(edits=edits, name=name)
    return save(task, erase.stack(*map(erase.load_edit, edits), name=name))


@command(app, "export", model=True, out=True)
def export(
    task: Task,
    edit: Annotated[str, typer.Argument(metavar="EDIT", help="a saved edit")],
    include_originals: Annotated[
        bool, typer.Option("--include-originals", help="keep what was overwritten: erase restore brings it back")
    ] = False,
    layout: Annotated[
        str, typer.Option(help="diffusers, or ldm: one .safetensors in the original layout of SD 1.x")
    ] = "diffusers",
) -> None:
    """Write the edited model as a plain diffusers folder, loaded again and compared before it takes its name."""
    import erase

    if task.dry_run:
        return task.plan(edit=edit, include_originals=include_originals, layout=layout)
    loaded = erase.load_edit(edit)
    loaded.export(task.pipeline(), task.out, include_originals=include_originals, layout=layout, force=task.force)
    return task.result({"model": task.out, "edit": loaded.id}, f"{task.out}: a pipeline with {loaded.name}, checked")


@command(app, "restore", out=True)
def restore(
    task: Task, model: Annotated[str, typer.Argument(metavar="MODEL", help="a folder exported with its originals")]
) -> None:
    """Write the model as it was before its edits, bit by bit, from an export that keeps its originals."""
    import erase

    if task.dry_run:
        return task.plan(model=model)
    erase.restore(model, task.out, force=task.force)
    return task.result({"model": task.out}, f"{task.out}: the weights that {model} was made from")


@command(app, "edit-from-checkpoint", options=_CHECKPOINT, model=True, out=True)
def edit_from_checkpoint(
    task: Task,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="a folder or .safetensors of an erased model")
    ],
) -> None:
    """Make an edit of what a published erased model changes in --model, the model it was made from."""
    import erase

    if task.dry_run:
        return task.plan(checkpoint=checkpoint)
    return save(task, erase.edit_from_checkpoint(task.pipeline(), checkpoint, **task.config))
