"""probe demo: from nothing to an erased concept, with pictures and a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe._terminal import Task, command
from probe.cli._app import app
from probe.cli._demo_steps import CONCEPT

if TYPE_CHECKING:
    import pandas as pd


@command(app, "demo")
def demo(
    task: Task,
    out: Annotated[str, typer.Option("--out", help="folder of everything the demo writes")] = "runs/demo",
    concept: Annotated[str, typer.Option(help="what to erase: an object or character of the embedded world")] = CONCEPT,
    quick: Annotated[bool, typer.Option("--quick", help="a dozen images: shows that everything runs")] = False,
    full: Annotated[bool, typer.Option("--full", help="at least 100 images a row; measures the stated bars")] = False,
) -> None:
    """Record a concept, score its neurons, prune it out and measure what that did. Repeat the command to resume."""
    import probe
    from probe._paths import data_dir
    from probe.cli import _demo_steps as steps
    from probe.errors import BadInput

    if quick and full:
        raise BadInput("--quick and --full exclude each other")
    name, size = ("quick", steps.QUICK) if quick else ("full", steps.FULL) if full else ("plain", steps.PLAIN)
    world = probe.concepts("emoji")
    chosen, folder = world[concept], Path(out) if name == "plain" else Path(out) / name
    typer.echo(f"{size.generated} images of 64 px; everything goes to {folder}", err=True)
    result = steps.run_demo(probe.load("emoji"), chosen, world, folder, size, task.progress)
    sweep = data_dir().parent / "benchmarks" / "claims" / "concept_prune_sweep.csv"
    steps.draw_figures(result, chosen, folder, sweep, task.progress)
    table = summary(result.table, result.densities)
    checks = verdicts(result.table, name, concept)
    paths = "\n".join(f"  {key:18} {path}" for key, path in result.paths.items())
    task.result(
        {"table": table, "checks": checks, "paths": {k: str(p) for k, p in result.paths.items()}},
        table,
        "target: prompts that name the concept; neighbours: its nearest kin; "
        "others: preserve_test, never used to choose settings.\n"
        "Rates are shares of images in which the judge sees what was asked for, with 95 % intervals; "
        "broken: it sees nothing;\n"
        "content kept: it still sees the style that was asked for.",
        paths,
        "\n".join(f"{'ok  ' if c['held'] else 'MISS'}  {c['claim']}: {c['value']}" for c in checks),
    )
    if name == "plain" and concept == CONCEPT and not all(c["held"] for c in checks):
        raise typer.Exit(1)


def summary(table: pd.DataFrame, densities: dict[str, float]) -> pd.DataFrame:
    """One row per edit: weights masked, and per split the rate before and after; how much is broken."""
    import pandas as pd

    from probe.cli._demo_steps import SPLITS

    rows = []
    for edit, density in densities.items():
        own = table[table["edit"] == edit]
        row: dict[str, Any] = {"edit": edit, "weights masked": f"{density:.2%}"}
        for split, title in SPLITS.items():
            rate = own[(own["split"] == split) & (own["metric"] == "rate")]
            row[title] = _change(rate.iloc[0]) if len(rate) else "-"
        for metric in ("broken", "content_kept"):
            cell = own[(own["split"] == "explicit") & (own["metric"] == metric)].iloc[0]
            row[metric.replace("_", " ")] = f"{cell['original']:.2f} -> {cell['value']:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _change(cell: pd.Series) -> str:
    return f"{cell['original']:.2f} -> {cell['value']:.2f} [{cell['ci_low']:.2f}, {cell['ci_high']:.2f}]"


def verdicts(table: pd.DataFrame, size: str, concept: str) -> list[dict[str, Any]]:
    """The demo's bounds (plain) or the stated bars (full) with the values they are held against; none when quick."""

    def cell(edit: str, split: str) -> pd.Series:
        own = table[(table["edit"] == edit) & (table["split"] == split) & (table["metric"] == "rate")]
        return own.iloc[0]

    if size == "quick":
        return []
    pruned, random = cell("published rule", "explicit"), cell("random mask", "explicit")
    if size == "plain":
        checks = [
            (f"{concept} is shown in at most 0.25 after pruning", pruned["value"], pruned["value"] <= 0.25),
            ("a random mask of the same density leaves it at 0.65 or more", random["value"], random["value"] >= 0.65),
        ]
    else:
        lost, kept = (-cell(e, "preserve_test")["difference"] for e in ("published rule", "with keep"))
        checks = [
            (f"{concept} is shown in at least 0.90 before", pruned["original"], pruned["original"] >= 0.90),
            ("and in at most 0.10 after", pruned["value"], pruned["value"] <= 0.10),
            ("Wilson's upper end at most 0.18", pruned["ci_high"], pruned["ci_high"] <= 0.18),
            ("others lose at most 0.10 under the published rule", lost, lost <= 0.10),
            ("others lose at most 0.05 with keep", kept, kept <= 0.05),
            (
                f"a random mask of the same density leaves {concept} at 0.80 or more",
                random["value"],
                random["value"] >= 0.80,
            ),
        ]
    return [{"claim": claim, "value": round(float(value), 3), "held": bool(held)} for claim, value, held in checks]
