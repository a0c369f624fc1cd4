"""probe record, trajectories and verify: runs and trajectories, from the model to the disk."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from probe._terminal import Task, command, from_signature
from probe.cli._app import app
from probe.cli._prompts import of_concept, read_prompts
from probe.errors import BadInput

_OPTIONS = from_signature(
    "probe._record:record",
    leave_out=("out", "progress", "force"),
    verbatim=("negative_prompt", "trajectories", "from_images"),
    flags={"seeds": ("--seed",)},
)
_TRAJECTORY_OPTIONS = from_signature(
    "probe._trajectories:trajectories",
    leave_out=("out", "progress", "force"),
    verbatim=("negative_prompt",),
    flags={"seeds": ("--seed",)},
)


@command(app, "record", options=_OPTIONS, model=True, out=True)
def record(
    task: Task,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="prompts, or one .txt or .csv; none with --concept"),
    ] = None,
    references: Annotated[str | None, typer.Option(help="the concept's references instead: neighbour, paper")] = None,
    world: Annotated[str, typer.Option(help="where concepts come from: emoji, a folder or a YAML file")] = "emoji",
) -> None:
    """Record activations while the model draws prompts, or those of a concept. Repeat the command to resume."""
    import probe

    config = dict(task.config)
    fixed = config.get("trajectories") is not None or config.get("from_images") is not None
    chosen = _chosen(task, config, prompts, references, world, needed=not fixed)
    if task.dry_run:
        return task.plan(prompts=0 if chosen is None else len(chosen))
    if config.get("detector") is not None:
        config["detector"] = probe.detector(config["detector"])
    if isinstance(config.get("maps"), str):
        config["maps"] = probe.NeuronMap.load(config["maps"])
    run = probe.record(task.pipeline(), chosen, out=task.out, progress=task.progress, force=task.force, **config)
    document = {"run": run.path, "id": run.id, "samples": run.n_samples, "groups": run.groups}
    return task.result(document, f"{run.path}: run {run.id}, {run.n_samples} samples, {', '.join(run.groups)}")


@command(app, "trajectories", options=_TRAJECTORY_OPTIONS, model=True, out=True)
def trajectories(
    task: Task,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="prompts, or one .txt or .csv; none with --concept"),
    ] = None,
    references: Annotated[str | None, typer.Option(help="the concept's references instead: neighbour, paper")] = None,
    world: Annotated[str, typer.Option(help="where concepts come from: emoji, a folder or a YAML file")] = "emoji",
) -> None:
    """Store the latents that the model passes through while it draws prompts. Repeat the command to resume."""
    import probe

    config = dict(task.config)
    chosen = _chosen(task, config, prompts, references, world)
    if task.dry_run:
        return task.plan(prompts=len(chosen))
    made = probe.trajectories(task.pipeline(), chosen, out=task.out, progress=task.progress, force=task.force, **config)
    document = {"trajectory": made.path, "id": made.id, "samples": made.n_samples}
    return task.result(document, f"{made.path}: trajectory {made.id}, {made.n_samples} samples")


def _chosen(
    task: Task,
    config: dict[str, Any],
    prompts: list[str] | None,
    references: str | None,
    world: str,
    *,
    needed: bool = True,
) -> Any:
    """A command's prompts, or those of ``--concept``, which then is an object in ``config``; None if not needed."""
    chosen = read_prompts(prompts or [])
    if len(chosen):
        return chosen
    name = config.get("concept")
    if name is None:
        if needed:
            fix = f'probe {task.command} "a photo of a church" ..., or --concept church'
            raise BadInput("there are no prompts", fix=fix)
        return None
    config["concept"], chosen = of_concept(world, name, config.get("split"), references)
    config["split"] = config.get("split") or ("explicit" if references is None else None)
    return chosen


@command(app, "verify")
def verify(
    task: Task,
    run: Annotated[str, typer.Argument(metavar="RUN", help="folder of a run or trajectory")],
    repair: Annotated[
        bool, typer.Option("--repair", help="mark bad units as not done; recording again makes them")
    ] = False,
) -> None:
    """Read every stored chunk of a run or trajectory and name those that are missing or damaged."""
    import probe

    bad = probe.verify(run, repair=repair)
    if bad and not repair:
        raise probe.StoreDamaged(
            f"{len(bad)} chunks are missing or damaged", given=", ".join(bad[:3]), fix=f"probe verify {run} --repair"
        )
    text = f"{len(bad)} chunks marked; repeat the same record command" if bad else "every chunk can be read"
    task.result({"run": run, "bad": bad, "repaired": repair}, text)
