"""probe score, stability, overlap and selectivity: from runs to findings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from probe._terminal import Task, command, from_signature, from_signatures
from probe.cli._app import app

_RUN_THE_MODEL = ("gradient", "causal")
_READ_RUNS = ("wanda", "contrast", "auroc", "linear", "erased_delta")
_METHODS = {name: f"probe.scores._{name.split('_')[0]}:{name}" for name in _READ_RUNS + _RUN_THE_MODEL}
_OPTIONS = from_signatures(_METHODS, leave_out=("pipe", "concept", "progress"), verbatim=("log", "source"))
_SHOWN = ("score", "q_value", "ci_low", "ci_high", "rate_before", "rate_after", "n")


@command(app, "score", options=_OPTIONS, model=True, out=True)
def score(
    task: Task,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="run of the concept's prompts")],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="run of the reference prompts")],
    method: Annotated[str, typer.Option(help=f"how neurons are scored: {', '.join(_METHODS)}")] = "wanda",
    concept: Annotated[
        str | None, typer.Option(help="what the judge looks for: a concept of the world, or a label (object/church)")
    ] = None,
    world: Annotated[str, typer.Option(help="where concepts come from: emoji, a folder or a YAML file")] = "emoji",
    best: Annotated[int, typer.Option(help="how many of the highest neurons to print")] = 10,
) -> None:
    """Score every neuron: how much more of the concept than of its reference. Writes a neuron map.

    gradient and causal run the model (--model): on the runs' samples, or on trajectories; causal needs --concept.
    """
    import probe

    if task.dry_run:
        return task.plan(target=target, reference=reference, method=method, concept=concept)
    options = dict(task.config)
    if method in _RUN_THE_MODEL:
        options |= {"pipe": task.pipeline(), "progress": task.progress}
    if concept is not None:
        options["concept"] = concept if "/" in concept else probe.concepts(world)[concept]
    nm = probe.score(target, reference, method=method, **options)
    nm.save(task.out, force=task.force)
    frame = nm.to_dataframe().nlargest(best, "score")
    highest = frame[[name for name in ("site", "unit", *_SHOWN) if name in frame]]
    document = {"map": task.out, "id": nm.id, "method": nm.method, "windows": len(nm.windows), "best": highest}
    lines = [repr(nm).strip("<>"), *(f"{name.replace('_', ' ')}: {_text(value)}" for name, value in nm.report.items())]
    return task.result({**document, "report": nm.report}, "\n".join(lines), highest, f"saved to {task.out}")


def _text(value: Any) -> str:
    """An entry of a report in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(entry)}" for name, entry in value.items())
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


@command(app, "stability", options=from_signature("probe.scores:stability"), out=True)
def stability(
    task: Task,
    neuron_map: Annotated[str, typer.Argument(metavar="MAP", help="a saved neuron map")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="run of the concept's prompts that it was made from")],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="run of the reference prompts")],
) -> None:
    """Score halves of the prompts and of the seeds, and say how far they agree. Writes the map with the answer."""
    import pandas as pd

    import probe

    if task.dry_run:
        return task.plan(map=neuron_map, target=target, reference=reference)
    nm = probe.stability(probe.NeuronMap.load(neuron_map), target, reference, **task.config)
    nm.save(task.out, force=task.force)
    found = nm.report["stability"]
    table = pd.DataFrame([{"halves of": kind, **found[kind]} for kind in ("prompts", "seeds")])
    return task.result({"map": task.out, "id": nm.id, "stability": found}, table, f"saved to {task.out}")


@command(app, "overlap", options=from_signature("probe.scores._stability:overlap"))
def overlap(
    task: Task,
    neuron_maps: Annotated[list[str], typer.Argument(metavar="MAP...", help="saved maps, as a path or name=path")],
    top: Annotated[int | None, typer.Option(help="select so many neurons of each map first")] = None,
) -> None:
    """Compare the selections of neuron maps: the Jaccard index of every two."""
    from pathlib import Path

    import probe

    maps = {}
    for text in neuron_maps:
        name, _, path = text.rpartition("=")
        nm = probe.NeuronMap.load(path)
        maps[name or Path(path).name] = nm if top is None else nm.select(top=top)
    table = probe.overlap(maps, **task.config)
    return task.result({"overlap": table.to_dict()}, table.reset_index(names="map"))


@command(app, "selectivity", options=from_signature("probe.scores._selectivity:selectivity"), out=True)
def selectivity(
    task: Task,
    run: Annotated[str, typer.Argument(metavar="RUN", help="run of several concepts' prompts")],
    threshold: Annotated[float, typer.Option(help="AUROC from which on a neuron stands out for a concept")] = 0.8,
    at_least: Annotated[int, typer.Option(help="for how many concepts a generalist stands out")] = 3,
    best: Annotated[int, typer.Option(help="how many neurons of each concept to print")] = 3,
    concept: Annotated[
        list[str] | None,
        typer.Option(help="write a neuron map of those that stand out for these concepts, as --keep takes it"),
    ] = None,
) -> None:
    """Say what every neuron is for: each concept of a recording against all the others. Writes a table."""
    import probe

    if task.dry_run:
        return task.plan(run=run)
    table = probe.selectivity(run, **task.config)
    found = table if concept is None else table.neuron_map(concept, threshold=threshold)
    found.save(task.out, force=task.force)
    frame = table.to_dataframe(threshold)
    highest = frame.sort_values("auroc", ascending=False).groupby("concept", sort=False).head(best)
    highest = highest.sort_values(["concept", "auroc"], ascending=[True, False])
    share = table.generalist_share(threshold=threshold, at_least=min(at_least, len(table.concepts)))
    document = {"saved": task.out, "id": found.id, "concepts": table.concepts, "generalists": share, "best": highest}
    text = f"{share:.2%} of the neurons stand out (AUROC >= {threshold}) for {at_least} concepts or more"
    return task.result(document, repr(found).strip("<>"), highest, text, f"saved to {task.out}")
