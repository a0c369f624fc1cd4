"""probe plot: the figure that belongs to a map, an edit, a result or runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe._terminal import Task, command
from probe.cli._app import app
from probe.cli._kinds import kind_at
from probe.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDINGS = (".png", ".pdf", ".svg")


@command(app, "plot", out=True)
def plot(
    task: Task,
    what: Annotated[
        list[str], typer.Argument(metavar="MAP|EDIT|RESULT|RUN...", help="what to draw; of runs any number")
    ],
    title: Annotated[str | None, typer.Option(help="above the figure")] = None,
    top: Annotated[float, typer.Option(help="of a map: share of each layer's neurons that is averaged")] = 0.01,
    concept: Annotated[str | None, typer.Option(help="of a result: which erased concept")] = None,
    kept: Annotated[str, typer.Option(help="of a result: split of the vertical axis")] = "preserve_test",
    columns: Annotated[int, typer.Option(help="of runs: how many samples, from the first on")] = 8,
    dpi: Annotated[int, typer.Option(help="dots per inch of a PNG")] = 200,
) -> None:
    """Draw what a file holds: layers by steps (map), layers (edit), the trade-off (result), images (runs)."""
    if task.out.suffix not in ENDINGS:
        raise BadInput("the figure has no known ending", given=str(task.out), expected=f"one of {', '.join(ENDINGS)}")
    kinds = {kind_at(Path(path)) for path in what}
    if kinds != {"run"} and (len(what) > 1 or kinds == {None}):
        raise BadInput("nothing that can be drawn", given=", ".join(what), expected="one map, edit or result, or runs")
    if task.dry_run:
        return task.plan(what=what)
    drawings: dict[str, Callable[..., Axes]] = {"neuron_map": _map, "edit": _edit, "result": _result, "run": _runs}
    ax = drawings[kinds.pop() or ""](what, title=title, top=top, concept=concept, kept=kept, columns=columns)
    _save(ax, task, dpi)
    return task.result({"figure": task.out}, str(task.out))


def _save(ax: Axes, task: Task, dpi: int) -> None:
    from probe._files import check_free, written_whole

    check_free(task.out, "figure", ours=task.out.is_file(), force=task.force)
    with written_whole(task.out, replace=True) as partial:
        figure = ax.get_figure(root=True)
        assert figure is not None, "every Axes that plots returns is on a figure"
        figure.savefig(partial, dpi=dpi, bbox_inches="tight", format=task.out.suffix[1:])


def _map(what: list[str], *, title: str | None, top: float, **_: Any) -> Axes:
    from probe import NeuronMap, plots

    return plots.plot_layer_step_scores(NeuronMap.load(what[0]), top=top, title=title)


def _edit(what: list[str], *, title: str | None, **_: Any) -> Axes:
    from erase import Mask, load_edit
    from probe import plots

    edit = load_edit(what[0])
    shares = {c.param: c.density if isinstance(c, Mask) else 1.0 for c in edit.changes}
    return plots.plot_layer_density(shares, title=title or edit.name)


def _result(what: list[str], *, title: str | None, concept: str | None, kept: str, **_: Any) -> Axes:
    from probe import plots, read_results

    return plots.plot_tradeoff(read_results(what[0]), concept=concept, kept=kept, title=title)


def _runs(what: list[str], *, title: str | None, columns: int, **_: Any) -> Axes:
    from probe import Run, plots

    runs = [Run(path) for path in what]
    if without := [str(run.path) for run in runs if "images" not in run.groups]:
        raise BadInput("a run without images", given=without[0], fix="record it with --images true")
    rows = {run.name: run.open("images")["image"].values[:columns] for run in runs}
    return plots.plot_before_after(rows, runs[0].samples["prompt"].head(columns).tolist(), title=title)
