"""Maps over pictures: where in the image a neuron fires, or a word is attended to."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import BadInput
from probe.plots._style import DIVERGING, MISSING, SEQUENTIAL, SMALL, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

_GAP = 0.06  # between pictures, in picture widths
_ALPHA = 0.72  # constant, so that a colour means the same wherever the picture under it is light or dark


def plot_overlays(
    picture: np.ndarray | None,
    maps: np.ndarray,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    plain: bool = True,
    limits: tuple[float, float] | None = None,
    label: str = "activation",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Grid of maps over a picture, all on one colour scale; the picture fades to grey under them.

    Args:
        picture: uint8 (y x 3) under every map, or (column y x 3) one for each column; None draws maps alone.
        maps: (row column y x), of any size: stretched over the picture, whose aspect ratio holds. NaN is grey.
        rows: their names, at the left.
        columns: their names, above, wrapped.
        plain: show the picture without a map too: one in front of each row, or a row above.
        limits: of the colour scale; 0 to the highest if None, with values of two signs as far below 0, in two colours.
        label: of the colour scale.
        title: above the figure.
        ax: where to draw; the whole grid is one Axes, the colour scale an inset.

    Raises:
        BadInput: shapes that do not belong together, or nothing measured.

    """
    values = np.asarray(maps, np.float64)
    shape = (len(rows), len(columns))
    if values.ndim != 4 or values.shape[:2] != shape or 0 in values.shape:
        raise BadInput("maps do not fit rows and columns", given=values.shape, expected=f"{shape} and y, x")
    pictures = _by_column(picture, len(columns))
    plain_ones = [one for one in pictures if one is not None]
    norm = colour_scale(values, limits)
    height, width = values.shape[2:] if picture is None else np.shape(picture)[-3:-1]
    aspect = height / width
    above = plain and picture is not None and np.ndim(picture) == 4
    before = plain and picture is not None and not above
    across, down = 1 + _GAP, aspect + _GAP
    n_rows, n_columns = len(rows) + above, len(columns) + before
    texts = [textwrap.wrap(str(name), 14)[:3] or [""] for name in columns]
    inch = min(1.15, 9.0 / n_columns)
    size = (
        inch * n_columns * across + 0.09 * max(map(len, map(str, rows))) + 0.8,
        inch * n_rows * down + 0.14 * max(map(len, texts)) + (0.45 if title else 0.1),
    )
    ax = new_axes(ax, size)
    for r, name in enumerate(rows):
        bottom = (len(rows) - 1 - r) * down
        if before:
            draw_picture(ax, plain_ones[0], 0, bottom, aspect)
        for c in range(len(columns)):
            draw_overlay(ax, pictures[c], values[r, c], (c + before) * across, bottom, aspect, norm)
        ax.text(-0.08, bottom + aspect / 2, str(name), ha="right", va="center", fontsize=SMALL)
    if above:
        for c in range(len(columns)):
            draw_picture(ax, plain_ones[c], c * across, len(rows) * down, aspect)
    top = n_rows * down - _GAP
    for c, lines in enumerate(texts):
        left = (c + before) * across
        ax.text(left + 0.5, top + 0.05, "\n".join(lines), ha="center", va="bottom", fontsize=SMALL, linespacing=1.05)
    finish_grid(ax, n_columns * across - _GAP, top)
    scale_beside(ax, norm, label)
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left", pad=10 + 10 * max(map(len, texts)))
    return ax


def plot_word_maps(
    words: Any,
    picture: np.ndarray | None = None,
    *,
    sample: int = 0,
    steps: int = 4,
    label: str = "attention",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Where each word of a prompt is attended to: words across, steps down, one colour scale over all of them.

    Args:
        words: what `probe.word_maps` gives: a Dataset with ``attention`` (sample, step, word, y, x), or that array.
        picture: uint8 (y x 3) of that sample.
        sample: which sample of ``words``.
        steps: number of rows, spread over the steps and each the mean of its share of them; 1 averages them all.
        label: of the colour scale.
        title: above the figure; the sample's prompt if None.
        ax: where to draw.

    Raises:
        BadInput: no such sample, or fewer steps than rows asked for.

    """
    values = words["attention"] if hasattr(words, "data_vars") else words
    if not 0 <= sample < values.sizes["sample"]:
        raise BadInput("there is no such sample", given=sample, expected=f"0 to {values.sizes['sample'] - 1}")
    one = values.isel(sample=sample).transpose("step", "word", "y", "x")
    if not 1 <= steps <= one.sizes["step"]:
        raise BadInput("steps is a number of rows", given=steps, expected=f"1 to {one.sizes['step']}")
    parts = np.array_split(np.arange(one.sizes["step"]), steps)
    times = one["timestep"].values
    rows = [
        f"t {times[part[0]]:g}" if len(part) == 1 else f"t {times[part[0]]:g}-{times[part[-1]]:g}" for part in parts
    ]
    maps = np.stack([one.values[part].mean(0) for part in parts])
    names = [str(word) for word in one["word"].values]
    prompt = str(one["prompt"].values) if "prompt" in one.coords else None
    return plot_overlays(
        picture, maps, rows=rows, columns=names, label=label, title=prompt if title is None else title, ax=ax
    )


# --- Parts of a grid of pictures --------------------------------------------------------------------------------------


def draw_picture(ax: Axes, picture: np.ndarray, left: float, bottom: float, aspect: float) -> None:
    """A picture (y x 3) with its lower left corner there, one wide and ``aspect`` high, in a thin frame."""
    from matplotlib.patches import Rectangle

    ax.imshow(picture, extent=(left, left + 1, bottom, bottom + aspect), interpolation="nearest")
    ax.add_patch(Rectangle((left, bottom), 1, aspect, fill=False, edgecolor="#BBBBBB", linewidth=0.5, zorder=3))


def draw_overlay(
    ax: Axes, picture: np.ndarray | None, values: np.ndarray, left: float, bottom: float, aspect: float, norm: Normalize
) -> None:
    """A map (y x) over the grey of a picture."""
    import matplotlib as mpl

    if picture is not None:
        grey = np.asarray(picture, np.float64) @ (0.299, 0.587, 0.114) / 255
        draw_picture(ax, np.repeat(0.4 + 0.6 * grey[..., None], 3, axis=-1), left, bottom, aspect)
    ax.imshow(
        np.ma.masked_invalid(values), extent=(left, left + 1, bottom, bottom + aspect), interpolation="nearest",
        cmap=mpl.colormaps[_colours(norm)].with_extremes(bad=MISSING), norm=norm,
        alpha=1.0 if picture is None else _ALPHA,
        zorder=2,
    )  # fmt: skip


def colour_scale(values: np.ndarray, limits: tuple[float, float] | None = None) -> Normalize:
    """From 0 to the highest of all finite values; with two signs as far below 0. `BadInput` where there are none."""
    from matplotlib.colors import Normalize

    finite = values[np.isfinite(values)]
    if not finite.size:
        raise BadInput("nothing to draw", given="maps of nothing but NaN")
    far = float(np.abs(finite).max()) or 1.0
    return Normalize(*(limits or (-far if (finite < 0).any() else 0.0, far)))


def _colours(norm: Normalize) -> str:
    return DIVERGING if (norm.vmin or 0.0) < 0 else SEQUENTIAL


def scale_beside(ax: Axes, norm: Normalize, label: str) -> None:
    """The colour scale, at the right of a grid."""
    from matplotlib.cm import ScalarMappable

    figure = ax.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(ScalarMappable(norm, _colours(norm)), cax=ax.inset_axes((1.015, 0.0, 0.02, 1.0)))
    bar.set_label(label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=2)
    bar.outline.set_visible(False)


def finish_grid(ax: Axes, width: float, height: float) -> None:
    """Limits of a grid of that size, equal axes and no frame."""
    ax.set_xlim(-0.02, width + 0.02)
    ax.set_ylim(-0.02, height + 0.02)
    ax.set_aspect("equal")
    ax.axis("off")


def _by_column(picture: np.ndarray | None, columns: int) -> Sequence[np.ndarray | None]:
    if picture is None:
        return [None] * columns
    found = np.asarray(picture)
    if found.ndim not in (3, 4) or found.shape[-1] != 3 or (found.ndim == 4 and len(found) != columns):
        raise BadInput("the picture does not fit", given=found.shape, expected=f"(y, x, 3) or ({columns}, y, x, 3)")
    return list(found) if found.ndim == 4 else [found] * columns
