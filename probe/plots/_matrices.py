"""Square tables as heat maps: how far selections overlap, how alike the tokens of a prompt are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import BadInput
from probe.plots._style import DIVERGING, MISSING, SEQUENTIAL, SMALL, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def plot_overlap(table: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Jaccard index of every two selections: lower triangle, each cell with its number.

    The diagonal (always 1) is left out, so that the scale is that of the overlaps; undefined cells are grey.

    Args:
        table: square, names on both axes, as `probe.overlap` gives it; values in 0..1 or NaN.
        title: above the figure.
        ax: where to draw.

    Raises:
        BadInput: not square, not symmetric, fewer than two names, or values outside 0..1.

    """
    values = _square(table)
    if not np.allclose(values, values.T, equal_nan=True):
        raise BadInput("an overlap table is symmetric", fix="give the table of probe.overlap")
    below = np.tril(np.ones(values.shape, bool), -1)
    cells = values[below]
    if np.nanmin(cells, initial=0) < 0 or np.nanmax(cells, initial=0) > 1:
        raise BadInput("a Jaccard index lies in 0..1", given=f"{np.nanmin(cells):.3g} to {np.nanmax(cells):.3g}")
    names = [str(name) for name in table.index]
    shown = np.where(below, values, np.nan)[1:, :-1]
    ax = new_axes(ax, (min(1.9 + 0.5 * len(names), 9.0), min(1.3 + 0.45 * len(names), 8.0)))
    norm: dict[str, Any] = {"vmin": 0.0, "vmax": max(float(np.nanmax(cells, initial=0)), 0.05)}
    image = _drawn(ax, shown, SEQUENTIAL, norm, names[1:], names[:-1])
    for i, j in zip(*np.nonzero(below[1:, :-1]), strict=True):
        value = shown[i, j]
        dark = np.isfinite(value) and value < 0.55 * norm["vmax"]
        text = f"{value:.2f}" if np.isfinite(value) else "none"
        ax.text(j, i, text, ha="center", va="center", fontsize=SMALL, color="white" if dark else "black")
    blank = ~below[1:, :-1]
    ax.imshow(np.where(blank, 1.0, np.nan), cmap="binary", vmin=1, vmax=2, aspect="auto", zorder=3)
    _scale(ax, image, "Jaccard index of the selections")
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def plot_token_similarity(table: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Cosine similarity of the embeddings of every two tokens of a prompt (the counterpart of TRCE's Fig. 7b).

    Args:
        table: square, tokens on both axes, as `probe.token_similarity` gives it; values in -1..1.
        title: above the figure.
        ax: where to draw.

    Raises:
        BadInput: not square, fewer than two tokens, or values outside -1..1.

    """
    values = _square(table)
    if np.nanmax(np.abs(values)) > 1 + 1e-4:
        raise BadInput("a cosine lies in -1..1", given=f"{np.nanmax(np.abs(values)):.3g}")
    side = min(1.8 + 0.14 * len(values), 7.5)
    ax = new_axes(ax, (side + 0.9, side))
    lowest = float(np.nanmin(values))
    signed = lowest < -0.05
    norm: dict[str, Any] = {"vmin": -1.0 if signed else min(0.0, lowest), "vmax": 1.0}
    every = -(-len(values) // 40)
    names = [str(name) for name in table.index]
    image = _drawn(ax, values, DIVERGING if signed else SEQUENTIAL, norm, names, names, every)
    _scale(ax, image, "cosine similarity")
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def _square(table: pd.DataFrame) -> np.ndarray:
    values = np.asarray(table, np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or len(values) < 2:
        raise BadInput("a square table of at least two names is needed", given=str(values.shape))
    if list(map(str, table.index)) != list(map(str, table.columns)):
        raise BadInput("rows and columns have different names", given=str(list(table.columns)[:3]))
    if not np.isfinite(values).any():
        raise BadInput("nothing to draw", given="a table of nothing but NaN")
    return values


def _drawn(
    ax: Axes,
    values: np.ndarray,
    colours: str,
    norm: dict[str, Any],
    rows: list[str],
    columns: list[str],
    every: int = 1,
) -> Any:
    import matplotlib as mpl

    image = ax.imshow(
        np.ma.masked_invalid(values), cmap=mpl.colormaps[colours].with_extremes(bad=MISSING), aspect="auto",
        interpolation="nearest", **norm,
    )  # fmt: skip
    many = len(columns) > 8
    look: dict[str, Any] = {"rotation": 90} if many else {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(0, len(columns), every), columns[::every], **look)
    ax.set_yticks(range(0, len(rows), every), rows[::every])
    size = SMALL if len(rows) <= 24 else SMALL - 2
    ax.tick_params(labelsize=size, length=0)
    ax.spines[:].set_visible(False)
    return image


def _scale(ax: Axes, image: Any, label: str) -> None:
    figure = ax.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(image, cax=ax.inset_axes((1.03, 0.0, 0.03, 1.0)))
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.outline.set_visible(False)
