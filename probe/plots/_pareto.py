"""Erasers side by side: which of them no other beats, and what the rest would have to gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from probe.errors import BadInput, unknown_name
from probe.plots._style import BLUE, GREY, MARKERS, OKABE_ITO, SMALL, new_axes, place_labels, quiet
from probe.plots._tradeoff import crosses, pareto_front, tradeoff_points

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def plot_pareto(
    table: pd.DataFrame,
    *,
    concept: str | None = None,
    erased: str = "explicit",
    kept: str = "preserve_test",
    erasers: Mapping[str, str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Erasure against preservation, one point an edit; the line joins those that no other beats (better: lower left).

    The area above the line is what the front already does better; the unedited model is its end at zero loss. Every
    point has the intervals of both axes: two whose crosses overlap are not told apart by this table.

    Args:
        table: rows of `probe.evaluate`, see `probe.plots.tradeoff_points`.
        concept: which erased concept, where the table holds several.
        erased: split of the horizontal axis, the rate at which the erased concept is still shown.
        kept: split of the vertical axis, whose paired loss is drawn.
        erasers: edit -> eraser; edits of one eraser share colour and marker, and the legend names erasers.
        title: above the figure.
        ax: where to draw.

    Raises:
        BadInput: as `probe.plots.tradeoff_points`, and where nothing was measured.
        UnknownName: ``erasers`` names an edit that the table lacks.

    """
    points = tradeoff_points(table, concept=concept, erased=erased, kept=kept)
    names = [str(name) for name in points["edit"]]
    if strange := [edit for edit in erasers or {} if edit not in names]:
        raise unknown_name("edit of the table", strange[0], names)
    original = float(points["original"].mean())
    rate = np.append(points["rate"].to_numpy(float), original)
    loss = np.append(points["loss"].to_numpy(float), 0.0)
    front = pareto_front(rate, loss)
    if not front.any():
        raise BadInput("nothing to draw", given="no edit has a rate and a loss")
    ax = new_axes(ax, (6.2, 4.4))
    groups = [str((erasers or {}).get(name, name)) for name in names]
    for place, group in enumerate(dict.fromkeys(groups)):
        own = np.array([other == group for other in groups])
        colour = OKABE_ITO[(place + 1) % len(OKABE_ITO)] if erasers else BLUE
        marker = MARKERS[place % len(MARKERS)] if erasers else "o"
        crosses(ax, points[own], colour, 0.6)
        for on_front, face in ((True, colour), (False, "white")):
            chosen = points[own & (front[:-1] == on_front)]
            ax.plot(chosen["rate"], chosen["loss"], marker, color=colour, markerfacecolor=face, markersize=6, zorder=3)
        if erasers:
            ax.plot([], [], marker, color=colour, markersize=6, label=group)
    ax.plot([original], [0.0], "D", color="white", markeredgecolor=GREY, markersize=6, zorder=3)
    high = np.nanmax([points["loss_high"].max(), loss[np.isfinite(loss)].max(), 0.05])
    low = np.nanmin([points["loss_low"].min(), loss[np.isfinite(loss)].min(), -0.02])
    right = max(original, float(np.nanmax(points["rate_high"].fillna(points["rate"]))))
    ax.set_ylim(low - 0.06 * (high - low), high + 0.1 * (high - low))
    ax.set_xlim(-0.03, min(1.06, right + 0.08))
    _staircase(ax, rate[front], loss[front])
    quiet(ax, grid=True)
    place_labels(ax, [*zip(rate, loss, strict=True)], [*names, "unedited"], color="#222222")
    ax.set_xlabel(f"{points['concept'].iloc[0]} shown, rate on {erased!r} prompts", fontsize=SMALL + 1)
    ax.set_ylabel(f"paired loss of rate on {kept!r}", fontsize=SMALL + 1)
    if erasers:
        ax.legend(fontsize=SMALL, frameon=False, loc="upper right")
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def _staircase(ax: Axes, rate: np.ndarray, loss: np.ndarray) -> None:
    """The border of what the front (n,) beats, to the frame on both sides, and that region shaded."""
    order = np.lexsort((loss, rate))
    x, y = rate[order], loss[order]
    right, top = ax.get_xlim()[1], ax.get_ylim()[1]
    xs, ys = [x[0], x[0]], [top, y[0]]
    for i in range(1, len(x)):
        xs += [x[i], x[i]]
        ys += [y[i - 1], y[i]]
    ax.plot([*xs, right], [*ys, y[-1]], color=GREY, linewidth=1.0, zorder=1, label="_front")
    ax.fill_between([*xs, right], [*ys, y[-1]], top, color=GREY, alpha=0.07, linewidth=0, zorder=0)
