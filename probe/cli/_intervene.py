"""probe intervene: images drawn while chosen neurons are changed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer

from probe._terminal import Task, check_folder, command, draw_into_folder, from_signature
from probe.cli._app import app

_CHANGE = from_signature("probe._intervention:intervention", leave_out=("branches",))
_SAMPLING = from_signature(
    "probe._generate:generate", leave_out=("progress", "on_call", "on_batch", "on_step", "decode")
)


@command(app, "intervene", options=[*_CHANGE, *_SAMPLING], model=True, out=True)
def intervene(
    task: Task,
    neuron_map: Annotated[str, typer.Argument(metavar="MAP", help="a saved neuron map")],
    prompt: Annotated[list[str], typer.Option(help="what to draw; repeat for several")],
    top: Annotated[
        int | None, typer.Option(help="change so many of the highest neurons, not the map's selection")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of every image")] = 0,
    seeds_per_prompt: Annotated[int, typer.Option(help="images of each prompt: seed, seed + 1, ...")] = 1,
    beside: Annotated[bool, typer.Option("--beside", help="draw the same samples without the change too")] = False,
) -> None:
    """Draw prompts while chosen neurons are silenced, scaled or replaced, into a folder of PNG files."""
    import probe

    if task.dry_run:
        return task.plan(map=neuron_map, prompt=prompt, top=top, seed=seed, beside=beside)
    check_folder(task)
    nm = probe.NeuronMap.load(neuron_map)
    names = {option.name for option in _CHANGE}
    options = {name: value for name, value in task.config.items() if name in names}
    change = probe.intervention(nm if top is None else nm.select(top=top), **options)
    sampling = {name: value for name, value in task.config.items() if name not in names}
    pipe, samples = task.pipeline(), probe.samples(prompt, seed, seeds_per_prompt=seeds_per_prompt)
    states: dict[str, AbstractContextManager[Any]] = {"": change.applied(pipe)}
    if beside:
        states["-original"] = nullcontext()
    files = draw_into_folder(task, pipe, samples, states, **sampling)
    document = {"folder": task.out, "intervention": change.id, "units": change.units, "files": files}
    return task.result(document, repr(change).strip("<>"), "\n".join(str(task.out / file) for file in files))
