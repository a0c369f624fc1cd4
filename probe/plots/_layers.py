"""Where in the network and when in denoising: a score by layer and step, a density by layer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import BadInput
from probe.plots._style import BLUE, DIVERGING, GREY, MISSING, SEQUENTIAL, SMALL, new_axes, quiet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)(?:\.transformer_blocks\.(\d+))?")
_MID = re.compile(r"mid_block\.attentions\.(\d+)(?:\.transformer_blocks\.(\d+))?")
_TEXT = re.compile(r"text_encoder(_\d+)?\..*layers\.(\d+)")


def short_site(name: str) -> str:
    """A site's name for an axis: ``down 1.0`` is attention 0 of down block 1; a later transformer block is appended."""
    if found := _BLOCK.search(name):
        side, block, attention, inner = found.groups()
        return f"{side} {block}.{attention}" + (f".{inner}" if inner not in (None, "0") else "")
    if found := _MID.search(name):
        attention, inner = found.groups()
        return f"mid {attention}" + (f".{inner}" if inner not in (None, "0") else "")
    if found := _TEXT.search(name):
        return f"text{found.group(1) or ''} {found.group(2)}".replace("_", " ")
    return name


def layer_step_table(findings: Any, *, top: float | None = 0.01, variable: str = "score") -> pd.DataFrame:
    """One number per layer and step from the neurons of a neuron map.

    ``findings`` is a NeuronMap or its Dataset, dims (window, neuron). Each cell is the mean over the layer's highest
    ``top`` share of neurons (at least one; NaN neurons left out), or over all of them with ``top=None``.

    Returns:
        Rows: sites in execution order. Columns: the timestep of each window, ``t_max-t_min`` where it spans several.

    Raises:
        BadInput: ``top`` outside (0, 1], or no such variable.

    """
    import pandas as pd

    ds = getattr(findings, "dataset", findings)
    if variable not in ds:
        raise BadInput(f"the neuron map has no {variable!r}", expected=f"one of {', '.join(map(str, ds.data_vars))}")
    if top is not None and not 0 < top <= 1:
        raise BadInput("top is a share of a layer's neurons", given=top, expected="0 < top <= 1, or None for all")
    scores = ds[variable].transpose("window", "neuron").values
    site = ds["site"].values
    names = [entry["name"] for entry in json.loads(ds.attrs["sites"])]
    cells = {name: _highest(scores[:, site == i], top) for i, name in enumerate(names) if (site == i).any()}
    ends = zip(ds["t_max"].values.tolist(), ds["t_min"].values.tolist(), strict=True)
    columns = [f"{high:g}" if high == low else f"{high:g}-{low:g}" for high, low in ends]
    return pd.DataFrame(list(cells.values()), index=pd.Index(cells, name="site"), columns=pd.Index(columns, name="t"))


def plot_layer_step_scores(
    findings: Any,
    *,
    top: float | None = 0.01,
    variable: str = "score",
    title: str | None = None,
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Which layers carry a concept, and when: heat map of score[layer, step] with the mean of each row and column.

    Layers run down the figure in execution order, steps from noise (left) to image (right), labelled by timestep. A
    score that changes sign gets a diverging scale centred on zero. Cells without a measurement are grey.

    Args:
        findings: a NeuronMap, its Dataset, or a table (layer, step) as `layer_step_table` makes it.
        top: share of each layer's neurons that is averaged, None for all; ignored for a table.
        variable: which variable of the map.
        title: above the figure.
        label: of the colour scale; says what was averaged if None.
        ax: where to draw; its size is shared with the marginal bars and the colour scale.

    Returns:
        The Axes of the heat map.

    """
    import matplotlib as mpl
    import pandas as pd

    is_table = isinstance(findings, pd.DataFrame)
    table = findings if is_table else layer_step_table(findings, top=top, variable=variable)
    if table.empty:
        raise BadInput("nothing to draw", given=f"a table of shape {table.shape}")
    if label is None and is_table:
        label = variable
    elif label is None:
        label = f"{variable}, mean of all neurons" if top is None else f"{variable}, mean of top {100 * top:.3g} %"
    values = table.to_numpy(dtype=float)
    layers, steps = values.shape
    ax = new_axes(ax, (min(3.4 + 0.14 * steps, 8.0), min(1.8 + 0.26 * layers, 9.0)))

    finite = values[np.isfinite(values)]
    spread = float(np.abs(finite).max()) if finite.size else 1.0
    signed = bool((finite < 0).any())
    colours = mpl.colormaps[DIVERGING if signed else SEQUENTIAL].with_extremes(bad=MISSING)
    image = ax.imshow(
        np.ma.masked_invalid(values), aspect="auto", cmap=colours, interpolation="nearest",
        vmin=-spread if signed else 0.0, vmax=spread,
    )  # fmt: skip

    every = -(-layers // 24)
    ax.set_yticks(range(0, layers, every), _labels(table.index.tolist())[::every])
    every = -(-steps // 10)
    ax.set_xticks(range(0, steps, every), [str(t) for t in table.columns][::every])
    ax.tick_params(labelsize=SMALL, length=2)
    ax.set_xlabel("timestep (noise → image)", fontsize=SMALL + 1)
    ax.set_ylabel("layer, in execution order", fontsize=SMALL + 1)

    above, right, scale = _margins(ax)
    above.bar(range(steps), _means(values, 0), width=0.85, color=GREY)
    right.barh(range(layers), _means(values, 1), height=0.85, color=GREY)
    above.axhline(0, color="#000000", linewidth=0.6)
    right.axvline(0, color="#000000", linewidth=0.6)
    above.set_ylabel("mean", fontsize=SMALL, rotation=0, ha="right", va="center")
    right.set_xlabel("mean", fontsize=SMALL)
    bar = ax.figure.colorbar(image, cax=scale)
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.outline.set_visible(False)
    if title:
        above.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def _margins(ax: Axes) -> tuple[Axes, Axes, Axes]:
    """Room for the bars above, the bars to the right and the colour scale: insets, so that they move with ``ax``."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    box = ax.get_window_extent()
    inch_x, inch_y = figure.dpi / max(box.width, 1.0), figure.dpi / max(box.height, 1.0)
    above = ax.inset_axes((0, 1 + 0.06 * inch_y, 1, 0.42 * inch_y), sharex=ax)
    right = ax.inset_axes((1 + 0.06 * inch_x, 0, 0.5 * inch_x, 1), sharey=ax)
    scale = ax.inset_axes((1 + 0.68 * inch_x, 0, 0.12 * inch_x, 1))
    for marginal in (above, right):
        quiet(marginal)
        marginal.tick_params(labelleft=False, labelbottom=False, length=0)
        marginal.spines[["left", "bottom"]].set_visible(False)
    return above, right, scale


def plot_layer_density(
    density: Mapping[str, float] | pd.Series, *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Share of a layer's weights that an edit touches, one bar per layer in the order given.

    Args:
        density: site or parameter name -> share in 0..1.
        title: above the figure.
        ax: where to draw.

    """
    names = list(density.keys())
    shares = np.array([density[name] for name in names], dtype=float)
    if not names:
        raise BadInput("nothing to draw", given="no layers")
    ax = new_axes(ax, (5.0, min(1.0 + 0.26 * len(names), 9.0)))
    bars = ax.barh(range(len(names)), 100 * shares, height=0.72, color=BLUE)
    ax.bar_label(bars, [f"{100 * share:.2g}" for share in shares], padding=2, fontsize=SMALL, color="#333333")
    ax.set_yticks(range(len(names)), _labels(names))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.margins(x=0.12)
    quiet(ax)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("weights touched, %", fontsize=SMALL + 1)
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def _highest(scores: np.ndarray, top: float | None) -> np.ndarray:
    """(window, neuron) -> (window,): mean of the highest share of the neurons that were measured."""
    means = np.full(scores.shape[0], np.nan)
    for w, row in enumerate(scores):
        known = np.sort(row[np.isfinite(row)])[::-1].astype(np.float64)
        if known.size:
            means[w] = known[: known.size if top is None else max(1, round(top * known.size))].mean()
    return means


def _means(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean along an axis, NaN left out; 0 where nothing was measured (no bar)."""
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(axis) / np.maximum(known.sum(axis), 1)


def _labels(names: Sequence[Any]) -> list[str]:
    """Short site names, whole ones where two would read the same."""
    full = [str(name) for name in names]
    short = [short_site(name) for name in full]
    return short if len(set(short)) == len(short) else full
