"""The kinds of figure that ``probe plot`` draws: what each takes, and how it is made from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe._kinds import kind_at
from probe.errors import BadInput, unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A kind of figure: what its files are (the last repeats if ``many``), what it shows, and what draws it."""

    takes: tuple[str, ...]
    shows: str
    draw: Callable[[Sequence[str], Options], Axes]
    many: bool = False

    def check(self, kind: str, files: Sequence[str]) -> None:
        """Raise `BadInput` for another number of files, or another kind of file, than the figure takes."""
        usage = f"probe plot {kind} {' '.join(self.takes).upper()}{' ...' if self.many else ''} -o figure.png"
        if len(files) < len(self.takes) or (len(files) > len(self.takes) and not self.many):
            expected = ", ".join(self.takes) + (", ..." if self.many else "")
            raise BadInput(f"{kind} is drawn from other files", given=f"{len(files)}", expected=expected, fix=usage)
        wanted = [*self.takes, *[self.takes[-1]] * (len(files) - len(self.takes))]
        for path, what in zip(files, wanted, strict=True):
            path = path.rpartition("=")[2]
            if what == "csv":
                if not Path(path).is_file():
                    raise BadInput("there is no such table", given=path, expected="a CSV file")
                continue
            if (found := kind_at(Path(path))) != FILES[what]:
                raise BadInput(
                    f"{kind} needs a {what} here", given=f"{path}: {found or 'none of our files'}", fix=usage
                )


FILES = {"map": "neuron_map", "edit": "edit", "result": "result", "run": "run", "training": "training"}


def figure_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """The kind of figure and its files: the first word where it is a kind, else what belongs to the files alone."""
    if words[0] in FIGURES:
        return words[0], list(words[1:])
    kinds = {kind_at(Path(path)) for path in words}
    by_file = {"neuron_map": "layers", "edit": "density", "result": "tradeoff", "run": "images", "training": "losses"}
    if kinds == {"run"} or (len(words) == 1 and kinds <= set(by_file)):
        return by_file[str(kinds.pop())], list(words)
    if not Path(words[0]).exists():
        raise unknown_name("kind of figure, nor a file", words[0], FIGURES)
    expected = f"one map, edit, training or result, runs, or a kind first: {', '.join(FIGURES)}"
    raise BadInput("nothing that can be drawn", given=", ".join(words), expected=expected)


def _layers(files: Sequence[str], o: Options) -> Axes:
    from probe import NeuronMap, plots

    return plots.plot_layer_step_scores(NeuronMap.load(files[0]), top=o["top"], title=o["title"])


def _ranked(files: Sequence[str], o: Options) -> Axes:
    from probe import NeuronMap, plots

    return plots.plot_ranked_scores(NeuronMap.load(files[0]), cut=o["cut"], named=o["named"], title=o["title"])


def _density(files: Sequence[str], o: Options) -> Axes:
    from erase import Mask, load_edit
    from probe import plots

    edit = load_edit(files[0])
    shares = {c.param: c.density if isinstance(c, Mask) else 1.0 for c in edit.changes}
    return plots.plot_layer_density(shares, title=o["title"] or edit.name)


def _losses(files: Sequence[str], o: Options) -> Axes:
    from probe import plots

    curves = {}
    for text in files:
        name, _, path = text.rpartition("=")
        curves[name or Path(path).name] = plots.losses_of(path)
    return plots.plot_losses(curves, title=o["title"])


def _tradeoff(files: Sequence[str], o: Options) -> Axes:
    from probe import plots, read_results

    return plots.plot_tradeoff(read_results(files[0]), concept=o["concept"], kept=o["kept"], title=o["title"])


def _pareto(files: Sequence[str], o: Options) -> Axes:
    from probe import plots, read_results

    return plots.plot_pareto(read_results(files[0]), concept=o["concept"], kept=o["kept"], title=o["title"])


def _images(files: Sequence[str], o: Options) -> Axes:
    from probe import Run, plots

    runs = [Run(path) for path in files]
    rows = {run.name: _pictures(run)[: o["columns"]] for run in runs}
    return plots.plot_before_after(rows, runs[0].samples["prompt"].head(o["columns"]).tolist(), title=o["title"])


def _histogram(files: Sequence[str], o: Options) -> Axes:
    from probe import NeuronMap, plots

    (site, unit), *_ = _neurons(o["neuron"]) or _best(NeuronMap.load(files[0]), 1)
    sides = [plots.values_of_neuron(run, site, unit, reducer=o["reducer"]) for run in files[1:]]
    label = f"{o['reducer']}, mean over the steps"
    return plots.plot_activations(*sides, label=label, title=o["title"] or _name(site, unit))


def _examples(files: Sequence[str], o: Options) -> Axes:
    from probe import Run, plots

    run = Run(files[0])
    site, unit = _one_neuron(run, o["neuron"])
    mapped = any(group.startswith("maps/") and group.endswith(f"-{site}") for group in run.groups)
    maps = plots.maps_of_neuron(run, site, unit)[0] if mapped else None
    values = plots.values_of_neuron(run, site, unit, reducer=o["reducer"])
    return plots.plot_neuron_examples(
        _pictures(run), values, maps=maps, per_row=o["columns"], title=o["title"] or _name(site, unit)
    )


def _maps(files: Sequence[str], o: Options) -> Axes:
    import numpy as np

    from probe import Run, plots

    run = Run(files[0])
    chosen, sample = _neurons(o["neuron"]) or _mapped(run)[:4], _sample(run, o["sample"])
    found, times = [], np.zeros(0)
    for site, unit in chosen:
        maps, times = plots.maps_of_neuron(run, site, unit, mean=False)
        found.append(_stretched(maps[sample]))
    shown = np.unique(np.linspace(0, len(times) - 1, min(o["rows"], len(times))).round().astype(int))
    size = [max(m.shape[axis] for m in found) for axis in (1, 2)]
    values = np.stack([_stretched(m[shown], size) for m in found])
    return plots.plot_overlays(
        _pictures(run)[sample], values, rows=[_name(*neuron) for neuron in chosen],
        columns=[f"t {t:g}" for t in times[shown]], title=o["title"] or run.samples["prompt"][sample],
    )  # fmt: skip


def _overlap(files: Sequence[str], o: Options) -> Axes:
    import probe

    maps = {}
    for text in files:
        name, _, path = text.rpartition("=")
        nm = probe.NeuronMap.load(path)
        maps[name or Path(path).name.removesuffix(".zip").removesuffix(".zarr")] = (
            nm if o["cut"] is None else nm.select(top=o["cut"])
        )
    return probe.plots.plot_overlap(probe.overlap(maps), title=o["title"])


def _words(files: Sequence[str], o: Options) -> Axes:
    import probe

    run = probe.Run(files[0])
    sample = _sample(run, o["sample"])
    pipe = probe.load(o["model"]) if o["model"] else None
    words = probe.word_maps(run, o["word"] or None, samples=[sample], pipe=pipe)
    picture = _pictures(run)[sample] if "images" in run.groups else None
    rows = min(o["rows"], words.sizes["step"])
    return probe.plots.plot_word_maps(words, picture, steps=rows, title=o["title"])


def _ablation(files: Sequence[str], o: Options) -> Axes:
    from probe import plots

    return plots.plot_ablation_curves(_table(files[0], o), title=o["title"])


def _rates(files: Sequence[str], o: Options) -> Axes:
    from probe import plots

    return plots.plot_rates(_table(files[0], o), title=o["title"])


def _similarity(files: Sequence[str], o: Options) -> Axes:
    import pandas as pd

    from probe import plots

    return plots.plot_token_similarity(pd.read_csv(files[0], index_col=0), title=o["title"])


def _sensitivity(files: Sequence[str], o: Options) -> Axes:
    from probe import NeuronMap, plots

    named = {}
    for text in files:
        name, _, path = text.rpartition("=")
        named[name or Path(path).name.removesuffix(".zip").removesuffix(".zarr")] = NeuronMap.load(path)
    one = len(named) == 1
    return plots.plot_sensitivity(next(iter(named.values())) if one else named, **_of_four(o))


def _concept_neurons(files: Sequence[str], o: Options) -> Axes:
    from probe import NeuronMap, plots

    return plots.plot_concept_neurons(NeuronMap.load(files[0]), **_of_four(o))


def _by_layer(files: Sequence[str], o: Options) -> Axes:
    from probe import NeuronMap, plots

    return plots.plot_sensitivity_profile(NeuronMap.load(files[0]), "site", **_of_four(o))


def _by_step(files: Sequence[str], o: Options) -> Axes:
    from probe import NeuronMap, plots

    return plots.plot_sensitivity_profile(NeuronMap.load(files[0]), "step", **_of_four(o))


def _of_four(o: Options) -> dict[str, Any]:
    """Which of a sensitivity's combinations is drawn, and the title."""
    return {"xt": o["xt"], "quantity": o["quantity"], "title": o["title"]}


def _relit(files: Sequence[str], o: Options) -> Axes:
    """One sample in several runs: where the same neurons fire in each, all steps averaged."""
    import numpy as np

    from probe import Run, plots

    runs = [Run(path.rpartition("=")[2]) for path in files]
    chosen, sample = (_neurons(o["neuron"]) or _mapped(runs[0])[:4]), _sample(runs[0], o["sample"])
    pair = runs[0].samples["pair"][sample]
    places = [np.flatnonzero(run.samples["pair"].to_numpy() == pair) for run in runs]
    if lost := [str(run.path) for run, place in zip(runs, places, strict=True) if not len(place)]:
        raise BadInput("a run does not have this sample", given=f"{lost[0]}, pair {pair}", fix="--sample of another")
    own = [int(place[0]) for place in places]
    found = [
        [plots.maps_of_neuron(run, site, unit)[0][s] for run, s in zip(runs, own, strict=True)] for site, unit in chosen
    ]
    size = [max(m.shape[axis] for row in found for m in row) for axis in (0, 1)]
    maps = np.stack([np.stack([_stretched(m[None], size)[0] for m in row]) for row in found])
    names = [text.rpartition("=")[0] or Path(run.path).name for text, run in zip(files, runs, strict=True)]
    return plots.plot_overlays(
        np.stack([_pictures(run)[s] for run, s in zip(runs, own, strict=True)]), maps,
        rows=[_name(*neuron) for neuron in chosen], columns=names, title=o["title"],
    )  # fmt: skip


FIGURES = {
    "layers": Figure(("map",), "a score by layer and step", _layers),
    "ranked": Figure(("map",), "scores by rank, cut-off and cumulative mass", _ranked),
    "histogram": Figure(("map", "run", "run"), "a neuron's activations, concept against reference", _histogram),
    "examples": Figure(("run",), "pictures a neuron is highest on, and around quantiles", _examples),
    "maps": Figure(("run",), "where in the image neurons fire", _maps),
    "words": Figure(("run",), "where words of the prompt are attended to", _words),
    "overlap": Figure(("map", "map"), "Jaccard index of the selections of maps", _overlap, many=True),
    "ablation": Figure(("csv",), "rate against the number of ablated neurons", _ablation),
    "rates": Figure(("csv",), "rates side by side with intervals", _rates),
    "similarity": Figure(("csv",), "cosine similarity of a prompt's tokens", _similarity),
    "sensitivity": Figure(
        ("map",), "how far attacks re-light neurons, several erasers side by side", _sensitivity, True
    ),
    "concept-neurons": Figure(("map",), "level of concept neurons and others in each condition", _concept_neurons),
    "by-layer": Figure(("map",), "a sensitivity's levels along the layers", _by_layer),
    "by-step": Figure(("map",), "a sensitivity's levels along the steps", _by_step),
    "relit": Figure(("run", "run"), "where neurons fire in one sample: original, edited, attacked", _relit, True),
    "density": Figure(("edit",), "share of weights touched, by layer", _density),
    "losses": Figure(("training",), "how trainings went: loss and terms over iterations", _losses, many=True),
    "tradeoff": Figure(("result",), "what an edit gains against what it costs", _tradeoff),
    "pareto": Figure(("result",), "erasers side by side, and which of them no other beats", _pareto),
    "images": Figure(("run",), "images of runs, one row each", _images, many=True),
}


# --- What several kinds read ------------------------------------------------------------------------------------------


def _table(path: str, o: Options) -> Any:
    """A table of rates; of one concept where ``--concept`` names it, and rates only where there are other metrics."""
    import pandas as pd

    table = pd.read_csv(path)
    if "metric" in table:
        table = table[table["metric"] == "rate"]
    if o["concept"] is not None:
        known = table["concept"].unique().tolist() if "concept" in table else []
        if o["concept"] not in known:
            raise unknown_name("concept of the table", o["concept"], map(str, known))
        table = table[table["concept"] == o["concept"]]
    return table


def _pictures(run: Any) -> Any:
    if "images" not in run.groups:
        raise BadInput("a run without images", given=str(run.path), fix="record it with --images true")
    return run.open("images")["image"].values


def _sample(run: Any, sample: int) -> int:
    if not 0 <= sample < run.n_samples:
        raise BadInput("there is no such sample", given=sample, expected=f"0 to {run.n_samples - 1}")
    return sample


def _neurons(texts: Sequence[str] | None) -> list[tuple[str, int]]:
    """``SITE:UNIT`` texts as pairs."""
    found = []
    for text in texts or ():
        site, _, unit = text.rpartition(":")
        if not site or not unit.isdigit():
            raise BadInput("a neuron is SITE:UNIT", given=text, expected="unet.mid_block...ffn:17")
        found.append((site, int(unit)))
    return found


def _best(nm: Any, count: int) -> list[tuple[str, int]]:
    """The highest neurons of a map, windows averaged."""
    frame = nm.to_dataframe().nlargest(count, "score")
    return list(zip(frame["site"], frame["unit"].astype(int), strict=True))


def _mapped(run: Any) -> list[tuple[str, int]]:
    """The neurons whose maps a run holds, in order of execution."""
    found = []
    for group in sorted(name for name in run.groups if name.startswith("maps/")):
        ds = run.open(group)
        if ("map" in ds or "full" in ds) and "step" in ds.dims:
            found += [(group.partition("-")[2], int(unit)) for unit in ds["unit"].values]
    if not found:
        fix = "probe record ... --maps '{SITE: [UNIT]}', or --maps MAP"
        raise BadInput("the run holds no maps of neurons", given=str(run.path), fix=fix)
    return found


def _one_neuron(run: Any, texts: Sequence[str] | None) -> tuple[str, int]:
    chosen = _neurons(texts) or _mapped(run)
    return chosen[0]


def _name(site: str, unit: int) -> str:
    from probe.plots import short_site

    return f"{short_site(site)} [{unit}]"


def _stretched(maps: Any, size: Sequence[int] | None = None) -> Any:
    """Maps (t y x) at another size, each value repeated: sites have grids of their own."""
    if size is None:
        return maps
    import numpy as np

    rows, columns = (np.arange(n) * m // n for n, m in zip(size, maps.shape[1:], strict=True))
    return maps[:, rows][:, :, columns]
