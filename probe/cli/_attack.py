"""probe attack and sensitivity: what brings a concept back, and which neurons it re-lights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe._terminal import Task, command, from_signature, from_signatures
from probe.cli._app import app

if TYPE_CHECKING:
    from probe.protocols import EditLike

_METHODS = {
    "unlearn_diff": "probe.attacks._unlearn_diff:unlearn_diff",
    "p4d": "probe.attacks._p4d:p4d",
    "ring_a_bell": "probe.attacks._ring_a_bell:ring_a_bell",
    "mma": "probe.attacks._mma:mma",
    "inversion": "probe.attacks._inversion:inversion",
    "tina": "probe.attacks._tina:tina",
    "completion": "probe.attacks._probes:completion",
    "relearn": "probe.attacks._probes:relearn",
    "random": "probe.attacks._baselines:random",
    "seed_search": "probe.attacks._baselines:seed_search",
}
_FRONT = from_signature(
    "probe.attacks._attack:attack",
    leave_out=("edit", "method", "out", "prompts", "world", "shares", "progress", "force"),
)
_OWN = [o for o in from_signatures(_METHODS, leave_out=("pairs",)) if o.name not in {f.name for f in _FRONT}]
_SHOWN = ["concept", "source", "prompt", "before", "success", "loss", "forwards", "backwards", "texts", "images"]


@command(app, "attack", options=[*_FRONT, *_OWN], model=True, out=True)
def attack(
    task: Task,
    concept: Annotated[list[str], typer.Option(help="what to bring back; repeat to pool several")],
    edit: Annotated[
        str | None, typer.Option(help="a saved edit that is attacked; the model as it is unless given")
    ] = None,
    method: Annotated[str, typer.Option(help=f"attack: {', '.join(_METHODS)}")] = "unlearn_diff",
    prompt: Annotated[list[str] | None, typer.Option(help="attack these prompts, not the concept's own")] = None,
    world: Annotated[str, typer.Option(help="where concepts come from: emoji, a folder or a YAML file")] = "emoji",
) -> None:
    """Search for what brings a concept back in spite of an edit. Repeat the command to go on where it stopped."""
    import probe

    if task.dry_run:
        return task.plan(concept=concept, edit=edit, method=method, prompt=prompt, world=world)
    known = probe.concepts(world)
    chosen = [known[name] for name in concept]
    found = probe.attack(
        task.pipeline(),
        chosen[0] if len(chosen) == 1 else chosen,
        edit=_edit(edit),
        method=method,
        out=task.out,
        prompts=prompt,
        world=known,
        progress=task.progress,
        force=task.force,
        **task.config,
    )
    table = found.table().reindex(columns=_SHOWN)
    document: dict[str, Any] = {"attack_set": task.out, "id": found.id, "success_rate": found.success_rate}
    return task.result({**document, "rows": found.table()}, repr(found).strip("<>"), table, f"saved to {task.out}")


@command(
    app,
    "sensitivity",
    options=from_signature(
        "probe._sensitivity:sensitivity", leave_out=("adversarial", "concept", "prompts", "out", "progress")
    ),
    model=True,
    out=True,
)
def sensitivity(
    task: Task,
    edit: Annotated[str, typer.Argument(metavar="EDIT", help="a saved edit")],
    attack_set: Annotated[str, typer.Argument(metavar="ATTACKS", help="an attack set with prompts, see probe attack")],
    neuron_map: Annotated[
        str | None, typer.Option("--map", help="a neuron map with the concept's neurons, made on other prompts")
    ] = None,
    concept: Annotated[
        list[str] | None, typer.Option(help="what the attacks are about; repeat for a set that pools several")
    ] = None,
    world: Annotated[str, typer.Option(help="where concepts come from: emoji, a folder or a YAML file")] = "emoji",
    recordings: Annotated[
        str | None, typer.Option(help="folder for the recordings, to go on after an interruption")
    ] = None,
) -> None:
    """Measure how far attacks re-light the neurons that an edit put out. Writes a neuron map with ratios."""
    import pandas as pd

    import probe

    if task.dry_run:
        return task.plan(edit=edit, attacks=attack_set, map=neuron_map, concept=concept)
    loaded, known = _edit(edit), probe.concepts(world)
    assert loaded is not None
    nm = probe.sensitivity(
        task.pipeline(),
        loaded,
        None if neuron_map is None else probe.NeuronMap.load(neuron_map),
        adversarial=attack_set,
        concept=[known[name] for name in concept or ()],
        out=recordings,
        progress=task.progress,
        **task.config,
    )
    nm.save(task.out, force=task.force)
    ds = nm.dataset
    rows = [
        {"x_t": str(xt), "quantity": str(quantity), "group": str(group)}
        | {
            name: float(ds[name].sel(xt=xt, quantity=quantity, group=group))
            for name in ("ratio", "ratio_low", "ratio_high")
        }
        for xt in ds["xt"].values
        for quantity in ds["quantity"].values
        for group in ds["group"].values
    ]
    table = pd.DataFrame(rows)
    return task.result(
        {"map": task.out, "id": nm.id, "ratios": table, "report": nm.report}, table, f"saved to {task.out}"
    )


def _edit(path: str | None) -> EditLike | None:
    if path is None:
        return None
    from erase import load_edit

    return load_edit(path)
