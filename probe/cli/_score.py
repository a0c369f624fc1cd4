"""probe score: from two runs to a neuron map."""

from __future__ import annotations

from typing import Annotated

import typer

from probe._terminal import Task, command, from_signature
from probe.cli._app import app

_OPTIONS = from_signature("probe.scores._wanda:wanda")


@command(app, "score", options=_OPTIONS, out=True)
def score(
    task: Task,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="run of the concept's prompts")],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="run of the reference prompts")],
    method: Annotated[str, typer.Option(help="how neurons are scored")] = "wanda",
    best: Annotated[int, typer.Option(help="how many of the highest neurons to print")] = 10,
) -> None:
    """Score every neuron: how much more of the concept than of its reference. Writes a neuron map."""
    import probe

    if task.dry_run:
        return task.plan(target=target, reference=reference, method=method)
    nm = probe.score(target, reference, method=method, **task.config)
    nm.save(task.out, force=task.force)
    highest = nm.to_dataframe().nlargest(best, "score")[["site", "unit", "score"]]
    document = {"map": task.out, "id": nm.id, "method": nm.method, "windows": len(nm.windows), "best": highest}
    return task.result(document, repr(nm).strip("<>"), highest, f"saved to {task.out}")
