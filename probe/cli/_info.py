"""probe info: what a model, run, map, edit or result is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from probe._terminal import Task, command
from probe.cli._app import app
from probe.cli._kinds import kind_at


@command(app, "info", model=True)
def info(
    task: Task,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|RUN|MAP|EDIT|RESULT]", help="a model, run, map, edit or result; nothing for versions"
        ),
    ] = None,
) -> None:
    """Say what something is: versions, a model (emoji, a folder, a hub id), a run, a map, an edit or a result."""
    if what is None:
        from probe.provenance import info as circumstances

        found = circumstances()
        others = {key: value for key, value in found.items() if key != "versions"}
        return task.result(found, _rows({**found["versions"], **others}))
    kind = kind_at(Path(what))
    shown = {"run": _run, "neuron_map": _map, "selectivity": _selectivity, "edit": _edit, "result": _result}
    return shown.get(kind or "", _model)(task, what)


def _model(task: Task, what: str) -> None:
    import probe

    task.shared["model"] = what
    pipe = task.pipeline()
    print_ = probe.fingerprint(pipe)
    parts = {name: getattr(pipe, name) for name in print_.architecture}
    sites = [site.to_json() for site in probe.sites(pipe, "*")]
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    document = {
        "kind": "model",
        "pipeline": type(pipe).__name__,
        "dtype": print_.dtype,
        "parameters": parameters,
        "architecture": print_.architecture,
        "scheduler": type(pipe.scheduler).__name__,
        "lineage": probe.lineage(pipe),
        "sites": sites,
    }
    sizes = {name: f"{n / 1e6:.2f} M parameters" for name, n in parameters.items()}
    text = _rows({"pipeline": document["pipeline"], "scheduler": document["scheduler"], "dtype": print_.dtype, **sizes})
    task.result(document, text, _table(sites, ("order", "name", "kind", "width")))


def _run(task: Task, what: str) -> None:
    from probe import Run

    run = Run(what)
    document = {
        "kind": "run",
        "id": run.id,
        "samples": run.n_samples,
        "done": run.done,
        "groups": run.groups,
        "identity": run.identity,
        "info": run.info,
    }
    keys = ("steps", "guidance", "reducers", "lineage")
    text = {"run": run.id, "samples": f"{run.done} of {run.n_samples} recorded", "groups": ", ".join(run.groups)}
    task.result(document, _rows({**text, **{k: run.identity[k] for k in keys if k in run.identity}}))


def _map(task: Task, what: str) -> None:
    from probe import NeuronMap

    nm = NeuronMap.load(what)
    best = nm.to_dataframe().nlargest(10, "score")
    document = {
        "kind": "neuron_map",
        "id": nm.id,
        "method": nm.method,
        "windows": nm.windows,
        "sites": [site.to_json() for site in nm.sites],
        "selected": int(nm.selected().sum()) if "selected" in nm.dataset else None,
        "best": best,
        "report": nm.report,
        "provenance": nm.provenance,
    }
    task.result(document, repr(nm).strip("<>"), best)


def _selectivity(task: Task, what: str) -> None:
    from probe import Selectivity

    table = Selectivity.load(what)
    best = table.to_dataframe().nlargest(10, "auroc")
    document = {"kind": "selectivity", "id": table.id, "concepts": table.concepts, "best": best}
    task.result({**document, "provenance": table.provenance}, repr(table).strip("<>"), best)


def _edit(task: Task, what: str) -> None:
    from erase import load_edit

    edit = load_edit(what)
    document = {
        "kind": "edit",
        "id": edit.id,
        "name": edit.name,
        "method": edit.method,
        "options": edit.options,
        "density": edit.density,
        "bytes": edit.nbytes,
        "parameters": edit.params,
        "parts": edit.parts,
        "provenance": edit.provenance,
    }
    rows = {"method": edit.method, "masked share of touched weights": f"{edit.density:.4%}", **edit.options}
    task.result(document, repr(edit).strip("<>"), _rows(rows))


def _result(task: Task, what: str) -> None:
    from probe import read_results

    header = json.loads(Path(what, "header.json").read_text(encoding="utf-8"))
    cells = read_results(what)
    columns = ["edit", "concept", "split", "metric", "value", "ci_low", "ci_high", "n"]
    task.result({"kind": "result", "header": header, "cells": cells}, cells[columns])


def _rows(values: dict[str, Any]) -> str:
    width = max(map(len, values))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in values.items())


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    import pandas as pd

    return pd.DataFrame(rows)[list(columns)]
