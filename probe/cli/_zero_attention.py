"""probe zero-attention: images drawn without attention to chosen tokens of their prompts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer

from probe._terminal import Task, check_folder, command, draw_into_folder, from_signature
from probe.cli._app import app
from probe.cli._prompts import read_prompts
from probe.errors import BadInput

_CHANGE = from_signature("probe.attention._zeroing:attention_zeroing", leave_out=("prompts", "branches"))
_SAMPLING = from_signature(
    "probe._generate:generate", leave_out=("progress", "on_call", "on_batch", "on_step", "decode")
)


@command(app, "zero-attention", options=[*_CHANGE, *_SAMPLING], model=True, out=True)
def zero_attention(
    task: Task,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="prompts, or one .txt or .csv")],
    token: Annotated[
        list[str],
        typer.Option(help="sot, keyword, first_eot, all_eot or a position; repeat for several"),
    ],
    seed: Annotated[int, typer.Option(help="seed of every image")] = 0,
    seeds_per_prompt: Annotated[int, typer.Option(help="images of each prompt: seed, seed + 1, ...")] = 1,
    beside: Annotated[bool, typer.Option("--beside", help="draw the same samples untouched, too")] = False,
) -> None:
    """Draw prompts while attention to chosen tokens is zero, into a folder of PNG files."""
    import probe

    if task.dry_run:
        return task.plan(prompt=prompts, token=token, seed=seed, beside=beside)
    check_folder(task)
    texts = read_prompts(prompts)
    texts = list(texts["prompt"]) if hasattr(texts, "columns") else list(texts)
    if not texts:
        raise BadInput("there are no prompts", fix='probe zero-attention "a church" --token all_eot --out FOLDER')
    names = {option.name for option in _CHANGE}
    tokens = [int(t) if t.isdigit() else t for t in token]
    change = probe.attention_zeroing(tokens, **{name: v for name, v in task.config.items() if name in names})
    sampling: dict[str, Any] = {name: value for name, value in task.config.items() if name not in names}
    pipe, samples = task.pipeline(), probe.samples(texts, seed, seeds_per_prompt=seeds_per_prompt)
    states: dict[str, AbstractContextManager[Any]] = {"": change.applied(pipe)}
    if beside:
        states["-original"] = nullcontext()
    files = draw_into_folder(task, pipe, samples, states, **sampling)
    document = {"folder": task.out, "zeroing": change.id, "options": change.options, "files": files}
    return task.result(document, repr(change).strip("<>"), "\n".join(str(task.out / file) for file in files))
