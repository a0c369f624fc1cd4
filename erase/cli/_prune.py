"""erase concept-prune, prune-neurons and control-mask: from a finding to an edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from erase.cli._app import app
from probe._terminal import Task, command, from_signature

if TYPE_CHECKING:
    from erase import Edit

_Maps = Annotated[
    list[str], typer.Argument(metavar="MAP...", help="neuron map, as probe score saved it; one a concept")
]
_Map = Annotated[str, typer.Argument(metavar="MAP", help="neuron map, as probe score saved it")]


def save(task: Task, edit: Edit) -> None:
    """Saves an edit to ``--out`` and reports it."""
    edit.save_pretrained(task.out, force=task.force)
    document = {
        "edit": task.out,
        "id": edit.id,
        "name": edit.name,
        "density": edit.density,
        "bytes": edit.nbytes,
        "report": edit.report,
    }
    task.result(
        document, repr(edit).strip("<>"), f"{edit.density:.4%} of the touched weights masked", f"saved to {task.out}"
    )


@command(app, "concept-prune", options=from_signature("erase.prune._concept:concept_prune"), model=True, out=True)
def concept_prune(task: Task, neuron_map: _Maps) -> None:
    """ConceptPrune: mask the weights that a wanda map finds skilled at the concept; of several maps, the union."""
    import erase
    from probe import NeuronMap

    if task.dry_run:
        return task.plan(map=neuron_map)
    config = dict(task.config)
    if config.get("keep") is not None:
        config["keep"] = _protected(config["keep"])
    maps = [NeuronMap.load(path) for path in neuron_map]
    return save(task, erase.concept_prune(task.pipeline(), maps if len(maps) > 1 else maps[0], **config))


def _protected(path: str) -> Any:
    """What ``--keep`` names: a run of protected prompts, or else a neuron map."""
    from pathlib import Path

    from probe import NeuronMap, Run

    return Run(path) if (Path(path) / "done").is_dir() else NeuronMap.load(path)


@command(app, "prune-neurons", options=from_signature("erase.prune._neurons:prune_neurons"), model=True, out=True)
def prune_neurons(
    task: Task,
    neuron_map: _Map,
    top: Annotated[int | None, typer.Option(help="select this many of the highest neurons first")] = None,
    quantile: Annotated[float | None, typer.Option(help="select the neurons from this quantile on first")] = None,
    fdr: Annotated[float | None, typer.Option(help="select the discoveries at this false discovery rate first")] = None,
) -> None:
    """Silence the neurons that a map selects: all their outgoing weights become zero."""
    import erase
    from probe import NeuronMap

    if task.dry_run:
        return task.plan(map=neuron_map, top=top, quantile=quantile, fdr=fdr)
    nm = NeuronMap.load(neuron_map)
    if any(choice is not None for choice in (top, quantile, fdr)):
        nm = nm.select(top=top, quantile=quantile, fdr=fdr)
    return save(task, erase.prune_neurons(task.pipeline(), nm, **task.config))


@command(app, "control-mask", options=from_signature("erase.prune._controls:control_mask"), model=True, out=True)
def control_mask(task: Task, edit: Annotated[str, typer.Argument(metavar="EDIT", help="the edit to imitate")]) -> None:
    """As many zeros per layer as an edit has, but elsewhere: what zeros alone would do."""
    import erase

    if task.dry_run:
        return task.plan(edit=edit)
    pipe = task.pipeline() if task.config.get("kind") == "magnitude" else None
    return save(task, erase.control_mask(erase.load_edit(edit), pipe, **task.config))


@command(
    app, "audit", options=from_signature("erase.prune._audit:audit", leave_out=("progress",)), model=True, out=True
)
def audit(task: Task, edit: Annotated[str, typer.Argument(metavar="EDIT", help="an edit of masks to attack")]) -> None:
    """Attack an edit by the places of its zeros alone: guess the signs that were there. Writes the revived edit."""
    import erase

    if task.dry_run:
        return task.plan(edit=edit)
    found = erase.audit(erase.load_edit(edit), task.pipeline(), progress=task.progress, **task.config)
    document: dict[str, Any] = {"table": found.table, "revived": None, "id": None}
    if found.revived is None:
        return task.result(
            document, repr(found).strip("<>"), found.table, "there is no zero to see: nothing is written"
        )
    found.revived.save_pretrained(task.out, force=task.force)
    document |= {"revived": task.out, "id": found.revived.id}
    return task.result(document, repr(found).strip("<>"), found.table, f"revived weights saved to {task.out}")
