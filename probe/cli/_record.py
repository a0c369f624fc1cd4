"""probe record, trajectories, verify and rechunk: runs and trajectories, from the model to the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from probe._chunks import readable_size
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
_RECHUNK = from_signature("probe._rechunk:rechunk", leave_out=("out", "progress", "force"))


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
    if isinstance(config.get("maps"), str):
        config["maps"] = probe.NeuronMap.load(config["maps"])
    out = task.shared["out"]  # a folder or a URL
    if task.dry_run:
        from probe._record import dry_run

        return _plan(task, chosen, config, dry_run)
    if config.get("detector") is not None:
        config["detector"] = probe.detector(config["detector"])
    run = probe.record(task.pipeline(), chosen, out=out, progress=task.progress, force=task.force, **config)
    document = {"run": run.path, "id": run.id, "samples": run.n_samples, "done": run.done, "groups": run.groups}
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
    out = task.shared["out"]
    if task.dry_run:
        from probe._trajectories import dry_run

        return _plan(task, chosen, config, dry_run)
    made = probe.trajectories(task.pipeline(), chosen, out=out, progress=task.progress, force=task.force, **config)
    document = {"trajectory": made.path, "id": made.id, "samples": made.n_samples, "done": made.done}
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


def _plan(task: Task, chosen: Any, config: dict[str, Any], dry_run: Callable[..., Any]) -> None:
    """What would be made, from the model's configs: no weight is read, nothing is written."""
    import pandas as pd

    from probe._skeleton import skeleton

    config = {key: value for key, value in config.items() if key not in ("max_gb", "durable", "extend", "detector")}
    model, out = task.shared["model"], task.shared["out"]
    pipe = task.pipeline() if Path(model).is_file() else skeleton(model)
    plan = dry_run(pipe, chosen, out=out, **config)
    frame = pd.DataFrame(plan.arrays)
    frame["bytes"] = [readable_size(size) for size in frame["bytes"]]
    for name in ("dims", "shape", "chunk"):
        frame[name] = [" ".join(map(str, row)) for row in frame[name]]
    arguments = {"model": model, **task.defaults, **task.config, "out": out}
    document = {"dry_run": True, "arguments": arguments, "plan": plan.to_dict()}
    task.result(document, "\n".join([f"would run {task.command}", *plan.lines()]), frame)


@command(app, "verify")
def verify(
    task: Task,
    run: Annotated[str, typer.Argument(metavar="RUN", help="folder or URL of a run or trajectory")],
    repair: Annotated[
        bool, typer.Option("--repair", help="mark bad units as not done; recording again makes them")
    ] = False,
) -> None:
    """Read every stored chunk of a run or trajectory and name those that are missing or damaged."""
    import probe

    bad = probe.verify(run, repair=repair)
    if bad and not repair:
        raise probe.StoreDamaged(
            f"{len(bad)} chunks are missing or damaged",
            given=", ".join(map(str, bad[:3])) + (", ..." if len(bad) > 3 else ""),
            fix=f"probe verify {run} --repair",
        )
    rows = [
        {"chunk": b.chunk, "unit": b.unit, "first": b.samples[0], "last": b.samples[-1], "sites": list(b.sites)}
        for b in bad
    ]
    lines = [f"{len(bad)} chunks marked; repeat the command that made it", *map(str, bad)]
    text = "\n".join(lines) if bad else "every chunk can be read"
    task.result({"run": run, "bad": rows, "repaired": repair}, text)


@command(app, "rechunk", options=_RECHUNK, out=True)
def rechunk(
    task: Task,
    run: Annotated[str, typer.Argument(metavar="RUN", help="folder or URL of a finished run")],
) -> None:
    """Copy a run so that reading one neuron over all samples is quick."""
    import probe

    out = task.shared["out"]
    if task.dry_run:
        return task.plan(run=run)
    made = probe.rechunk(run, out=out, progress=task.progress, force=task.force, **task.config)
    document = {"run": made.path, "id": made.id, "from": run, "by": made.rechunked, "groups": made.groups}
    return task.result(document, f"{made.path}: run {made.id}, rechunked by {made.rechunked}")
