"""What the demo does: record a concept, score its neurons, prune, and measure what that did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe._progress import progress_bar
from probe.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

    from probe.protocols import Progress

#: The concept that the demo erases and the settings for it, found on tuning prompts (docs/decisions.md).
CONCEPT = "castle"
SETTINGS: dict[str, Any] = {"references": "paper", "skill_ratio": 0.3, "window": (490, 1), "branches": "cond"}

#: What each split of the table is called there, in order.
SPLITS = {"explicit": "target", "neighbours": "neighbours", "preserve_test": "others"}


@dataclass(frozen=True)
class Size:
    """How many prompts are recorded and how many images each split has."""

    recorded: int
    images: dict[str, int]
    keep: bool = True

    @property
    def generated(self) -> int:
        """Pictures that the whole demo draws."""
        target, near, others = (self.images.get(s, 0) for s in SPLITS)
        rows = 3 if self.keep else 2
        return rows * (target + near + others) + target + others + (3 if self.keep else 2) * self.recorded


QUICK = Size(recorded=3, images={"explicit": 1, "preserve_test": 1}, keep=False)
PLAIN = Size(recorded=40, images={"explicit": 40, "neighbours": 20, "preserve_test": 40})
FULL = Size(recorded=40, images={"explicit": 120, "neighbours": 60, "preserve_test": 120})


@dataclass
class Demo:
    """The demo's results: paths by name, the table of `probe.evaluate`, the edits by name."""

    paths: dict[str, Path]
    table: pd.DataFrame
    densities: dict[str, float]


def run_demo(pipe: Any, concept: Any, world: Any, out: Path, size: Size, progress: Progress = True) -> Demo:
    """Record ``concept`` and its references, score, prune with and without ``keep``, evaluate beside a random mask.

    Every step resumes: a second call in the same folder only reads.
    """
    import erase
    import probe

    references = concept.references.get(SETTINGS["references"])
    if not references:
        raise BadInput(f"{concept.name} has no references to score against", fix="choose another concept")
    n = size.recorded
    common: dict[str, Any] = {"sites": "ffn", "batch_size": 20, "progress": progress}
    target = probe.record(pipe, list(concept.prompts["explicit"][:n]), out=out / "run", concept=concept.name, **common)
    reference = probe.record(pipe, list(references[:n]), out=out / "reference", **common)
    nm = probe.score(target, reference, method="wanda", branches=SETTINGS["branches"])
    nm.save(out / "map.zarr.zip")

    rule = {k: SETTINGS[k] for k in ("skill_ratio", "window")}
    edits = {"published rule": erase.concept_prune(pipe, nm, name=concept.name, **rule)}
    if size.keep:
        protected = probe.record(pipe, protected_prompts(concept, world, n), out=out / "protected", **common)
        edits["with keep"] = erase.concept_prune(pipe, nm, keep=protected, name=f"{concept.name}-keep", **rule)
    edits["random mask"] = erase.control_mask(edits["published rule"], seed=0)
    edits["published rule"].save_pretrained(out / "edit", force=True)

    return Demo(
        paths={"run": out / "run", "map": out / "map.zarr.zip", "edit": out / "edit", "result": out / "result"},
        table=_evaluate(pipe, concept, world, edits, out / "result", size, progress),
        densities={name: edit.density for name, edit in edits.items()},
    )


def _evaluate(
    pipe: Any, concept: Any, world: Any, edits: dict[str, Any], out: Path, size: Size, progress: Progress
) -> Any:
    """The table of all edits; the random mask is not judged on neighbours."""
    import pandas as pd

    import probe

    control = {"random mask": edits["random mask"]}
    pruned = {name: edit for name, edit in edits.items() if name not in control}
    tables = []
    for chosen, splits in ((pruned, tuple(size.images)), (control, tuple(s for s in size.images if s != "neighbours"))):
        limits = {s: size.images[s] for s in splits}
        tables.append(
            probe.evaluate(pipe, chosen, [concept], world=world, splits=splits, n_prompts=limits, out=out,
                           batch_size=20, progress=progress)
        )  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def protected_prompts(concept: Any, world: Any, n: int) -> list[str]:
    """Explicit tuning prompts of ``preserve_fit``, one concept after the other, without what is erased."""
    names = [name for name in world.lists["preserve_fit"] if name != concept.name and name not in concept.members]
    prompts = [world[name].prompts["explicit"][i] for i in range(5) for name in names]
    return prompts[: max(n, len(names))]


def draw_figures(demo: Demo, concept: Any, out: Path, sweep: Path | None, progress: Progress = True) -> None:
    """before_after.png, layer_step_scores.png and tradeoff.png in ``out``."""
    from matplotlib.figure import Figure

    import probe

    rows, prompts, shown = probe.result_images(out / "result", concept.name, n=8)
    figures = {
        "before_after": lambda ax: probe.plot_before_after(
            rows, prompts, shown=shown, title=f"{concept.name}: before and after", ax=ax
        ),
        "layer_step_scores": lambda ax: probe.plot_layer_step_scores(
            probe.NeuronMap.load(out / "map.zarr.zip"), title=f"Where and when neurons carry {concept.name!r}", ax=ax
        ),
        "tradeoff": lambda ax: _tradeoff(demo, concept, sweep, ax),
    }
    with progress_bar(progress, len(figures), "figures") as advance:
        for name, plot in figures.items():
            size = {"before_after": (10, 5.2), "tradeoff": (6.6, 5.0)}.get(name, (8, 4.6))
            figure = Figure(figsize=size, layout=None)
            plot(figure.add_subplot())
            demo.paths[name] = out / f"{name}.png"
            figure.savefig(demo.paths[name], dpi=150, bbox_inches="tight")
            advance(1)


def _tradeoff(demo: Demo, concept: Any, sweep: Path | None, ax: Any) -> None:
    """The demo's own points on the committed sweep of its branches, where there is one for this concept."""
    import pandas as pd

    import probe

    own = demo.table.assign(skill_ratio="", curve="demo")
    table = own
    if sweep is not None and sweep.is_file():
        swept = pd.read_csv(sweep, keep_default_na=False, na_values=[""])
        swept = swept[(swept["concept"] == concept.name) & (swept["branches"] == SETTINGS["branches"])]
        table = pd.concat([swept, own], ignore_index=True) if len(swept) else own
    table = table[table["split"].isin(["explicit", "preserve_test"])].drop(columns="seed_set")  # the sweep has its own
    probe.plot_tradeoff(
        table,
        concept=concept.name,
        label="skill_ratio",
        group="curve",
        highlight=list(demo.densities),
        bars=(0.10, 0.10),
        title=f"ConceptPrune on {concept.name!r}",
        ax=ax,
    )
