"""What makes one neuron fire: the pictures it is highest on, and those around chosen quantiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from probe.errors import BadInput
from probe.plots._overlays import colour_scale, draw_overlay, draw_picture, finish_grid, scale_beside
from probe.plots._style import SMALL, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP, _TEXT = 0.06, 0.17  # between pictures and under each, in picture widths


def neuron_examples(
    activation: Sequence[float] | np.ndarray, *, per_row: int = 8, quantiles: Sequence[float] = (0.9, 0.5, 0.1)
) -> dict[str, np.ndarray]:
    """Which samples to look at: row name -> their positions, highest first.

    ``highest`` are the samples with the highest activation (s,); ``quantile q`` those whose rank is nearest to q. NaN
    is left out; of few samples, rows may share some.

    Raises:
        BadInput: nothing measured, a quantile outside 0..1, or per_row below 1.

    """
    values = np.asarray(activation, np.float64)
    if values.ndim != 1 or not np.isfinite(values).any():
        raise BadInput("nothing to draw", given=f"activations of shape {values.shape}, none of them finite")
    if per_row < 1 or any(not 0 <= q <= 1 for q in quantiles):
        raise BadInput("examples need per_row >= 1 and quantiles within 0..1", given=f"{per_row}, {tuple(quantiles)}")
    order = np.argsort(-values, kind="stable")[: int(np.isfinite(values).sum())]
    width = min(per_row, len(order))
    rows = {"highest": order[:width]}
    for q in quantiles:
        start = round((1 - q) * (len(order) - 1) - (width - 1) / 2)
        start = min(max(start, 0), len(order) - width)
        rows[f"quantile {q:g}"] = order[start : start + width]
    return rows


def plot_neuron_examples(
    images: np.ndarray,
    activation: Sequence[float] | np.ndarray,
    *,
    maps: np.ndarray | None = None,
    per_row: int = 8,
    quantiles: Sequence[float] = (0.9, 0.5, 0.1),
    rows: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    label: str = "activation",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Pictures a neuron is highest on, then those around quantiles, each with its activation; maps under the pictures.

    Args:
        images: uint8 (s y x 3).
        activation: one number a sample (s,), written under each picture; decides the order.
        maps: (s y x) of any size, where in the image it fires; one colour scale over all that are shown.
        per_row: pictures in a row.
        quantiles: a row for each, see `neuron_examples`.
        rows: name -> positions (s,), as `neuron_examples` gives them, instead of ``per_row`` and ``quantiles``: for
            some of the samples from which it chose.
        label: of the colour scale of the maps.
        title: above the figure.
        ax: where to draw.

    Raises:
        BadInput: numbers of samples that differ, and as `neuron_examples`.

    """
    pictures = np.asarray(images)
    if pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise BadInput("pictures are (s, y, x, 3)", given=pictures.shape)
    counts = {len(pictures), len(activation), len(pictures if maps is None else maps)}
    if len(counts) > 1:
        raise BadInput("pictures, activations and maps are of different samples", given=sorted(counts))
    if rows is None:
        rows = neuron_examples(activation, per_row=per_row, quantiles=quantiles)
    shown = np.concatenate(list(rows.values()))
    norm = None if maps is None else colour_scale(np.asarray(maps)[shown])
    aspect = pictures.shape[1] / pictures.shape[2]
    n_columns = max(map(len, rows.values()))
    tall = aspect * (1 if maps is None else 2) + _TEXT + _GAP
    inch = min(1.0, 10.0 / n_columns)
    ax = new_axes(ax, (inch * n_columns * (1 + _GAP) + 1.6, inch * len(rows) * tall + (0.4 if title else 0.1)))
    for r, (name, chosen) in enumerate(rows.items()):
        bottom = (len(rows) - 1 - r) * tall + _TEXT
        for c, s in enumerate(chosen):
            left = c * (1 + _GAP)
            draw_picture(ax, pictures[s], left, bottom + (0 if maps is None else aspect), aspect)
            if maps is not None and norm is not None:
                draw_overlay(ax, pictures[s], np.asarray(maps)[s], left, bottom, aspect, norm)
            ax.text(left + 0.5, bottom - 0.03, f"{activation[s]:.3g}", ha="center", va="top", fontsize=SMALL - 1)
        ax.text(-0.08, bottom + (tall - _TEXT) / 2, name, ha="right", va="center", fontsize=SMALL)
    finish_grid(ax, n_columns * (1 + _GAP) - _GAP, len(rows) * tall - _GAP)
    if norm is not None:
        scale_beside(ax, norm, label)
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left", pad=8)
    return ax
