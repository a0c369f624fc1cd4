"""One neuron's activation on samples of a concept against samples of its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import BadInput
from probe.plots._style import BLUE, SMALL, VERMILION, new_axes, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def separation(target: np.ndarray, reference: np.ndarray) -> float:
    """AUROC: P(target > reference) + P(equal) / 2 of two sets of values (s,), NaN left out. NaN if one is empty."""
    from scipy.stats import rankdata

    a, b = (x[np.isfinite(x)] for x in (np.asarray(target, float), np.asarray(reference, float)))
    if not (len(a) and len(b)):
        return float("nan")
    ranks = rankdata(np.concatenate([a, b]))[: len(a)]
    return float((ranks.sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))


def plot_activations(
    target: Sequence[float] | np.ndarray,
    reference: Sequence[float] | np.ndarray,
    *,
    names: tuple[str, str] = ("concept", "reference"),
    bins: int = 24,
    label: str = "activation, mean over the window",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Two histograms over the same bins, as shares of their samples, with medians and how well they separate (AUROC).

    Args:
        target: one number a sample (s,) of the concept; NaN is left out and counted in the legend.
        reference: the same of the reference.
        names: of the two in the legend.
        bins: number of bins over the range of both.
        label: of the horizontal axis.
        title: above the figure.
        ax: where to draw.

    Raises:
        BadInput: one side has nothing measured, or bins below 1.

    """
    sides = [np.asarray(values, np.float64).ravel() for values in (target, reference)]
    known = [values[np.isfinite(values)] for values in sides]
    if empty := [name for name, values in zip(names, known, strict=True) if not len(values)]:
        raise BadInput("nothing to draw", given=f"no measured value of {empty[0]}")
    if bins < 1:
        raise BadInput("a histogram has at least one bin", given=bins)
    edges = np.histogram_bin_edges(np.concatenate(known), bins)
    ax = new_axes(ax, (6.4, 3.0))
    looks: list[dict[str, Any]] = [
        {"color": BLUE, "alpha": 0.55},
        {"color": VERMILION, "alpha": 1.0, "fill": False, "hatch": "////"},
    ]
    for values, every, name, look in zip(known, sides, names, looks, strict=True):
        gone = len(every) - len(values)
        text = f"{name}, {len(values)} samples" + (f" ({gone} not measured)" if gone else "")
        share = 100 * np.histogram(values, edges)[0] / len(values)
        ax.stairs(share, edges, label=text, linewidth=1.2, **({"fill": True} | look))
        ax.axvline(float(np.median(values)), color=look["color"], linestyle="--", linewidth=1.2)
    quiet(ax, grid=True)
    ax.set_xlabel(label, fontsize=SMALL + 1)
    ax.set_ylabel("samples, %", fontsize=SMALL + 1)
    ax.set_ylim(0, ax.get_ylim()[1] * 1.02)
    ax.legend(
        fontsize=SMALL, frameon=False, title=f"AUROC {separation(*known):.2f}; dashed: medians", title_fontsize=SMALL,
        loc="upper left", bbox_to_anchor=(1.0, 1.0), alignment="left",
    )  # fmt: skip
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax
