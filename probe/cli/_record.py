"""probe record and probe verify: runs, from the model to the disk."""

from __future__ import annotations

from typing import Annotated

import typer

from probe._terminal import Task, command, from_signature
from probe.cli._app import app
from probe.cli._prompts import of_concept, read_prompts
from probe.errors import BadInput

_OPTIONS = from_signature(
    "probe._record:record",
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
    name = config.get("concept")
    chosen = read_prompts(prompts or [])
    if not len(chosen):
        if name is None:
            raise BadInput("there are no prompts", fix='probe record "a photo of a church" ..., or --concept church')
        config["concept"], chosen = of_concept(world, name, config.get("split"), references)
        config["split"] = config.get("split") or ("explicit" if references is None else None)
    if task.dry_run:
        return task.plan(prompts=len(chosen))
    if config.get("detector") is not None:
        config["detector"] = probe.detector(config["detector"])
    run = probe.record(task.pipeline(), chosen, out=task.out, progress=task.progress, force=task.force, **config)
    document = {"run": run.path, "id": run.id, "samples": run.n_samples, "groups": run.groups}
    return task.result(document, f"{run.path}: run {run.id}, {run.n_samples} samples, {', '.join(run.groups)}")


@command(app, "verify")
def verify(
    task: Task,
    run: Annotated[str, typer.Argument(metavar="RUN", help="folder of a run")],
    repair: Annotated[
        bool, typer.Option("--repair", help="mark bad units as not done; recording again makes them")
    ] = False,
) -> None:
    """Read every stored chunk of a run and name those that are missing or damaged."""
    import probe

    bad = probe.verify(run, repair=repair)
    if bad and not repair:
        raise probe.StoreDamaged(
            f"{len(bad)} chunks are missing or damaged", given=", ".join(bad[:3]), fix=f"probe verify {run} --repair"
        )
    text = f"{len(bad)} chunks marked; repeat the same record command" if bad else "every chunk can be read"
    task.result({"run": run, "bad": bad, "repaired": repair}, text)
