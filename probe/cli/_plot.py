"""probe plot: the figure of a kind, or the one that belongs to a map, an edit, a result or runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from probe._terminal import Task, command
from probe._terminal._words import WORDS
from probe.cli._app import app
from probe.cli._figures import FIGURES, figure_of
from probe.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDINGS = (".png", ".pdf", ".svg")


@command(app, "plot", out=True)
def plot(
    task: Task,
    what: Annotated[
        list[str],
        typer.Argument(metavar="[KIND] FILE...", help=f"kind of figure ({', '.join(FIGURES)}), then what it is of"),
    ],
    title: Annotated[str | None, typer.Option(help="above the figure")] = None,
    top: Annotated[float, typer.Option(help="layers: share of each layer's neurons that is averaged")] = 0.01,
    cut: Annotated[int | None, typer.Option(help="ranked, overlap: take so many of the highest neurons")] = None,
    named: Annotated[int, typer.Option(help="ranked: write the names of so many neurons")] = 0,
    neuron: Annotated[
        list[str] | None,
        typer.Option(help="histogram, examples, maps: SITE:UNIT; else the map's highest, or what the run has maps of"),
    ] = None,
    reducer: Annotated[str, typer.Option(help="histogram, examples: which stored reduction is read")] = "absmean",
    word: Annotated[list[str] | None, typer.Option(help="words: which; repeat for several, all unless given")] = None,
    sample: Annotated[int, typer.Option(help="maps, words: which sample of the run, from 0")] = 0,
    rows: Annotated[int, typer.Option(help="maps, words: how many steps to show")] = 4,
    model: Annotated[
        str | None, typer.Option(help="words: the model of a run that kept positions and not words")
    ] = None,
    concept: Annotated[str | None, typer.Option(help="tradeoff, pareto, ablation, rates: which concept")] = None,
    kept: Annotated[str, typer.Option(help="tradeoff, pareto: split of the vertical axis")] = "preserve_test",
    xt: Annotated[str, typer.Option(help=f"sensitivity, concept-neurons, by-layer, by-step: {WORDS['xt']}")] = "shared",
    quantity: Annotated[
        str, typer.Option(help=f"sensitivity, concept-neurons, by-layer, by-step: {WORDS['quantity']}")
    ] = "contribution",
    columns: Annotated[int, typer.Option(help="images, examples: how many pictures in a row")] = 8,
    dpi: Annotated[int, typer.Option(help="dots per inch of a PNG")] = 200,
) -> None:
    """Draw what files hold; alone layers (map), density (edit), losses (training), tradeoff (result), images (runs)."""
    if task.out.suffix not in ENDINGS:
        raise BadInput("the figure has no known ending", given=str(task.out), expected=f"one of {', '.join(ENDINGS)}")
    for name, value in {"--columns": columns, "--rows": rows, "--dpi": dpi}.items():
        if value < 1:
            raise BadInput(f"{name} must be at least 1", given=value)
    kind, files = figure_of(what)
    FIGURES[kind].check(kind, files)
    if task.dry_run:
        return task.plan(kind=kind, what=files)
    options = {
        "title": title, "top": top, "cut": cut, "named": named, "neuron": neuron, "reducer": reducer, "word": word,
        "sample": sample, "rows": rows, "model": model, "concept": concept, "kept": kept, "columns": columns, "xt": xt,
        "quantity": quantity,
    }  # fmt: skip
    _save(FIGURES[kind].draw(files, options), task, dpi)
    return task.result({"figure": task.out, "kind": kind}, str(task.out))


def _save(ax: Axes, task: Task, dpi: int) -> None:
    from matplotlib import pyplot

    from probe._files import check_free, written_whole

    check_free(task.out, "figure", ours=task.out.is_file(), force=task.force)
    figure = ax.get_figure(root=True)
    assert figure is not None, "every Axes that plots returns is on a figure"
    with written_whole(task.out, replace=True) as partial:
        figure.savefig(partial, dpi=dpi, bbox_inches="tight", format=task.out.suffix[1:])
    pyplot.close(figure)
