"""erase esd, ablating-concepts and differentiable-prune: edits that are learned."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from erase.cli._app import app
from erase.cli._erasing import Preserve, World, learned, with_preserved
from probe._terminal import Task, command, from_signature

_Concepts = Annotated[
    list[str], typer.Argument(metavar="CONCEPT...", help="concepts of the world by name, or texts as they are")
]
_Top = Annotated[
    int | None, typer.Option(help="of a map in --train: this many of the highest units, not its selection")
]
_Quantile = Annotated[float | None, typer.Option(help="of a map in --train: units from this quantile on")]


def _register(name: str, target: str, about: str) -> None:
    """A command for the eraser ``module:function``."""
    options = from_signature(
        target,
        leave_out=("progress", "force", "preserve"),
        verbatim=("anchor", "erase_from", "trajectory", "training", "name"),
    )

    def learn(
        task: Task,
        concept: _Concepts,
        preserve: Preserve = None,
        world: World = "emoji",
        top: _Top = None,
        quantile: _Quantile = None,
    ) -> None:
        if task.dry_run:
            return task.plan(concept=concept, preserve=preserve, world=world, top=top, quantile=quantile)
        config = with_preserved(task.config, preserve, world)
        if (train := _selected(config.get("train"), top, quantile)) is not None:
            config["train"] = train
        return learned(task, target.partition(":")[2], concept, world, config)

    learn.__doc__ = about
    command(app, name, options=options, model=True, out=True)(learn)


_register(
    "esd",
    "erase.learn._esd:esd",
    "ESD: train the UNet to predict what leads away from a concept. With --training the same command goes on.",
)
_register(
    "ablating-concepts",
    "erase.learn._ac:ablating_concepts",
    "Ablating Concepts: train the UNet to draw the anchor where the concept is asked for.",
)
_register(
    "differentiable-prune",
    "erase.learn._prune:differentiable_prune",
    "P-ESD and P-AC: learn which weights to prune with the loss of ESD or of Ablating Concepts.",
)


def _selected(train: Any, top: int | None, quantile: float | None) -> Any:
    """What ``--train`` names; of a map the selection of ``--top`` or ``--quantile``."""
    if top is None and quantile is None:
        return train
    from erase.learn._parts import opened
    from probe import NeuronMap
    from probe.errors import BadInput

    found = opened(train)
    if not isinstance(found, NeuronMap):
        raise BadInput("--top and --quantile choose units of a map", given=f"--train {train}", fix="--train MAP")
    return found.select(top=top, quantile=quantile)
