"""probe info: what a model, run, trajectory, map, edit or result is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from probe._chunks import readable_size
from probe._kinds import kind_at
from probe._paths import finding
from probe._terminal import Task, command
from probe.cli._app import app


@command(app, "info", model=True)
def info(
    task: Task,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|RUN|TRAJECTORY|MAP|EDIT|ATTACKS|RESULT]",
            help="a model, run, trajectory, map, edit, attack set or result; nothing for versions",
        ),
    ] = None,
) -> None:
    """Say what something is: versions, a model (emoji, a folder, a hub id), run, trajectory, map, edit or result."""
    if what is None:
        from probe.provenance import info as circumstances

        found = circumstances()
        others = {key: value for key, value in found.items() if key != "versions"}
        return task.result(found, _rows({**found["versions"], **others}))
    from probe._places import is_url, place_of

    if is_url(what):
        from probe._headers import kind_of

        kind = kind_of(place_of(what)) or "run"
    else:
        kind = kind_at(finding(what)) or ""
    known = {
        "run": _run,
        "trajectory": _trajectory,
        "neuron_map": _map,
        "selectivity": _selectivity,
        "edit": _edit,
        "result": _result,
        "attack_set": _attacks,
    }
    return known.get(kind, _model)(task, what)


def _attacks(task: Task, what: str) -> None:
    from probe.attacks import AttackSet

    found = AttackSet.load(what)
    table = found.table()
    shown = table.reindex(columns=["concept", "source", "prompt", "before", "success", "images", "finished"])
    document = {"kind": "attack_set", "path": what, "id": found.id, "identity": found.identity, "rows": table}
    return task.result(document, repr(found).strip("<>"), shown)


def _model(task: Task, what: str) -> None:
    import probe

    task.shared["model"] = what
    found = probe.summary(task.pipeline())
    task.result({"kind": "model", **asdict(found)}, _rows(found.rows()), found.table())


def _run(task: Task, what: str) -> None:
    import pandas as pd

    from probe import Run

    run = Run(what)
    arrays, circumstances = run.arrays(), run.info
    found = circumstances.pop("nonfinite", [])
    document = {
        "kind": "run",
        "id": run.id,
        "samples": run.n_samples,
        "done": run.done,
        "unit": run.unit,
        "groups": run.groups,
        "arrays": arrays,
        "rechunked": run.rechunked,
        "nonfinite": found,
        "identity": run.identity,
        "info": circumstances,
    }
    text = {"run": run.id, "samples": f"{run.done} of {run.n_samples} recorded, in units of {run.unit}"}
    text |= {key: run.identity[key] for key in ("steps", "guidance", "reducers", "lineage") if key in run.identity}
    text["made"] = " ".join(str(circumstances[key]) for key in ("created", "system", "machine") if key in circumstances)
    text["versions"] = ", ".join(f"{name} {value}" for name, value in circumstances.get("versions", {}).items())
    if run.rechunked:
        text["rechunked"] = f"by {run.rechunked}: read only"
    if found:
        text["NaN or inf"] = _places(found)
    rows = [
        {**array, **{key: " ".join(map(str, array[key])) for key in ("dims", "shape", "chunk")}}
        | {"bytes": readable_size(array["bytes"])}
        for array in arrays
    ]
    task.result(document, _rows(text), pd.DataFrame(rows))


def _trajectory(task: Task, what: str) -> None:
    from probe import Trajectory

    found = Trajectory(what)
    document = {
        "kind": "trajectory",
        "id": found.id,
        "samples": found.n_samples,
        "done": found.done,
        "nonfinite": found.nonfinite,
        "identity": found.identity,
        "info": found.info,
    }
    keys = ("steps", "guidance", "stored_as", "noise_pred", "lineage")
    text = {"trajectory": found.id, "samples": f"{found.done} of {found.n_samples} stored"}
    text |= {k: found.identity[k] for k in keys}
    if found.nonfinite:
        text["NaN or inf"] = _places(found.nonfinite)
    task.result(document, _rows(text))


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


def _places(nonfinite: list[dict[str, Any]]) -> str:
    return "; ".join(f"{e['site']}, steps {e['steps']}, samples {e['samples']}" for e in nonfinite[:5])


def _rows(values: dict[str, Any]) -> str:
    width = max(map(len, values))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in values.items())
