"""erase esd, ablating-concepts and differentiable-prune: edits that are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from erase.cli._app import app
from erase.cli._prune import save
from probe._terminal import Task, command, from_signature

_LEFT_OUT = ("progress", "force", "preserve")
_VERBATIM = ("anchor", "erase_from", "trajectory", "training", "name")

_Concepts = Annotated[
    list[str], typer.Argument(metavar="CONCEPT...", help="concepts of the world by name, or texts as they are")
]
_Preserve = Annotated[list[str] | None, typer.Option(help="what must stay, as CONCEPT; repeat for several")]
_World = Annotated[str, typer.Option(help="where concepts come from: emoji, a folder or a YAML file")]


def _options(target: str) -> list[Any]:
    return from_signature(target, leave_out=_LEFT_OUT, verbatim=_VERBATIM)


_Top = Annotated[
    int | None, typer.Option(help="of a map in --train: this many of the highest units, not its selection")
]
_Quantile = Annotated[float | None, typer.Option(help="of a map in --train: units from this quantile on")]


@command(app, "esd", options=_options("erase.learn._esd:esd"), model=True, out=True)
def esd(
    task: Task,
    concept: _Concepts,
    preserve: _Preserve = None,
    world: _World = "emoji",
    top: _Top = None,
    quantile: _Quantile = None,
) -> None:
    """ESD: train the UNet to predict what leads away from a concept. With --training the same command goes on."""
    return _learn(task, "esd", concept, preserve, world, top, quantile)


@command(app, "ablating-concepts", options=_options("erase.learn._ac:ablating_concepts"), model=True, out=True)
def ablating_concepts(
    task: Task,
    concept: _Concepts,
    preserve: _Preserve = None,
    world: _World = "emoji",
    top: _Top = None,
    quantile: _Quantile = None,
) -> None:
    """Ablating Concepts: train the UNet to draw the anchor where the concept is asked for."""
    return _learn(task, "ablating_concepts", concept, preserve, world, top, quantile)


@command(app, "differentiable-prune", options=_options("erase.learn._prune:differentiable_prune"), model=True, out=True)
def differentiable_prune(
    task: Task,
    concept: _Concepts,
    preserve: _Preserve = None,
    world: _World = "emoji",
    top: _Top = None,
    quantile: _Quantile = None,
) -> None:
    """P-ESD and P-AC: learn which weights to prune with the loss of ESD or of Ablating Concepts."""
    return _learn(task, "differentiable_prune", concept, preserve, world, top, quantile)


def _learn(
    task: Task,
    method: str,
    concept: list[str],
    preserve: list[str] | None,
    world: str,
    top: int | None,
    quantile: float | None,
) -> None:
    import erase
    from probe._files import check_free

    if task.dry_run:
        return task.plan(concept=concept, preserve=preserve, world=world, top=top, quantile=quantile)
    config = dict(task.config)
    if preserve is not None:
        config["preserve"] = _concepts(preserve, world)
    if (chosen := _map(config.get("train"), top, quantile)) is not None:
        config["train"] = chosen
    # before the work, not after; with a training folder nothing is lost, and the same edit may be there
    again = task.force or "training" in config
    check_free(task.out, "edit", ours=(task.out / "edit.json").is_file(), force=again)
    items, pipe = _concepts(concept, world), task.pipeline()
    edit = getattr(erase, method)(pipe, items, progress=task.progress, force=task.force, **config)
    return save(task, edit)


def _map(train: Any, top: int | None, quantile: float | None) -> Any:
    """The map that ``--train`` names, with its selection or that of ``--top`` or ``--quantile``; None for no map."""
    from probe import NeuronMap
    from probe.errors import BadInput

    choice = top is not None or quantile is not None
    if not isinstance(train, str) or not Path(train).exists():
        if choice:
            raise BadInput("--top and --quantile choose units of a map", given=f"--train {train}", fix="--train MAP")
        return None
    found = NeuronMap.load(train)
    return found.select(top=top, quantile=quantile) if choice else found


def _concepts(given: list[str], world: str) -> list[Any]:
    """Concepts of the world where it knows the name, else the texts."""
    from probe import concepts

    known = concepts(world)
    return [known[name] if name in known else name for name in given]  # noqa: SIM401 - a World raises UnknownName
