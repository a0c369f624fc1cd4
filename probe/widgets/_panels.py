"""The figures of an explorer's state, each as a PNG. What cannot be drawn raises; who shows them says why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from probe.errors import BadInput
from probe.plots import plot_activations, plot_before_after, plot_layer_step_scores, plot_neuron_examples, short_site
from probe.plots import plot_ranked_scores as plot_ranked
from probe.plots._style import BLUE, SMALL, VERMILION, new_axes, quiet
from probe.widgets._html import png

if TYPE_CHECKING:
    from probe.widgets._explorer import Explorer


def name_of(site: str, unit: int) -> str:
    """A neuron, briefly."""
    return f"{short_site(site)} : {unit}"


def heat(explorer: Explorer) -> bytes:
    """Where and when the concept is carried."""
    state = explorer.state
    title = f"{state.concept}: {state.method}, by layer and step"
    return png(plot_layer_step_scores(explorer.finding(), title=title))


def ranked(explorer: Explorer) -> bytes:
    """The ranked scores of the whole map, with the number that is chosen as the cut."""
    return png(plot_ranked(explorer.finding(), cut=len(explorer.state.chosen) or None, title="all neurons, ranked"))


def histogram(explorer: Explorer) -> bytes:
    """The neuron on samples of the concept and of the reference."""
    target, reference = explorer.sides()
    names = (explorer.state.concept, "reference")
    return png(plot_activations(target, reference, names=names, label=_number(explorer)))


def curves(explorer: Explorer) -> bytes:
    """The neuron over denoising: mean of either side, with the middle half of its samples."""
    times, *sides = explorer.curves()
    ax = new_axes(None, (6.4, 2.6))
    places = np.arange(len(times))  # a timestep may repeat
    for values, name, colour, line in zip(
        sides, (explorer.state.concept, "reference"), (BLUE, VERMILION), ("-", "--"), strict=True
    ):
        known = values[np.isfinite(values).all(1)]
        if not len(known):
            raise BadInput("nothing was measured", given=name)
        low, high = np.quantile(known, (0.25, 0.75), axis=0)
        ax.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(places, known.mean(0), line, color=colour, label=name)
    if explorer.state.step is not None:
        ax.axvline(explorer.state.step, color="#6E6E6E", linewidth=0.8)
    every = -(-len(times) // 10)
    ax.set_xticks(places[::every], [f"{t:g}" for t in times[::every]])
    quiet(ax, grid=True)
    ax.set_xlabel("timestep (noise → image)", fontsize=SMALL + 1)
    ax.set_ylabel(f"{explorer.quantity()}\nmean and middle half of samples", fontsize=SMALL + 1)
    ax.legend(fontsize=SMALL, frameon=False)
    return png(ax)


def examples(explorer: Explorer) -> bytes:
    """Pictures the neuron is highest on and around quantiles, with where it fires if that is known."""
    try:
        found = explorer.stored_maps()
    except BadInput:
        found = explorer.examples()
    title = f"number under each picture: {_number(explorer)}"
    return png(plot_neuron_examples(found.images, found.activation, maps=found.maps, rows=found.rows, title=title))


def selective(explorer: Explorer, *, most: int = 12) -> bytes:
    """What else the neuron is for: its AUROC by concept, each with the number of its pictures."""
    row = explorer.selectivity().dropna().head(most)[::-1]
    counts = explorer.material.selectivity(explorer.state.concept).samples
    ax = new_axes(None, (6.4, 0.9 + 0.22 * len(row)))
    own = [BLUE if name == explorer.state.concept else "#9A9A9A" for name in row.index]
    ax.barh(range(len(row)), row.to_numpy() - 0.5, left=0.5, color=own, height=0.7)
    marks = {explorer.state.concept: " ◂"}
    names = [f"{name}, n = {counts[name]}{marks.get(name, '')}" for name in row.index]
    ax.set_yticks(range(len(row)), names)
    ax.axvline(0.5, color="#000000", linewidth=0.8)
    ax.set_xlim(0, 1)
    quiet(ax)
    label = "AUROC against all other samples (0.5: says nothing)\nn: pictures of the concept; no intervals are computed"
    ax.set_xlabel(label, fontsize=SMALL + 1)
    return png(ax)


def intervened(explorer: Explorer) -> bytes:
    """Pictures before and after the last intervention."""
    state = explorer.state
    if state.pictures is None:
        raise BadInput("nothing was silenced yet", fix="press the button")
    return png(plot_before_after(state.pictures, state.pictured, title="same prompts and seeds"))


def _number(explorer: Explorer) -> str:
    """What the neuron's numbers are, and when."""
    when = "mean over all steps" if explorer.state.step is None else _when(explorer)
    return f"{explorer.quantity()}, {when}"


def _when(explorer: Explorer) -> str:
    assert explorer.state.step is not None
    return f"timestep {explorer.timesteps()[explorer.state.step]:g}"
