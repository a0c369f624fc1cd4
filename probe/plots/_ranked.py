"""How a score falls off over its neurons: the ranked curve, where it is cut, and how much lies before the cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from probe._choosing import over_windows
from probe.errors import BadInput
from probe.plots._layers import short_site
from probe.plots._style import BLUE, GREY, SMALL, VERMILION, new_axes, quiet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


#: What a score counts, by the method of its map; others say no more than their name.
_UNITS = {"contrast": "standard deviations", "auroc": "AUROC"}


def ranked_scores(findings: Any, *, over: str = "mean", variable: str = "score") -> pd.DataFrame:
    """One row a measured neuron, highest score first; equal scores in the order of the neuron axis.

    ``findings`` is a NeuronMap, its Dataset, dims (window, neuron), or the scores (n,) themselves. Windows are joined
    as in `NeuronMap.select`: ``over`` their ``"mean"`` or ``"max"``.

    Returns:
        Columns ``rank`` (from 1), ``neuron`` (position on the axis), ``score``, ``mass`` (share of the sum of all
        positive scores up to this rank; NaN where none is positive), and of a map ``site``, ``unit``, ``selected``
        (in any window; false without a selection).

    Raises:
        BadInput: no such variable, nothing measured, or ``over`` is neither.

    """
    import pandas as pd

    if over not in ("mean", "max"):
        raise BadInput("windows are joined by mean or max", given=repr(over))
    ds = getattr(findings, "dataset", findings)
    is_map = hasattr(ds, "data_vars")
    if is_map and variable not in ds:
        raise BadInput(f"the neuron map has no {variable!r}", expected=f"one of {', '.join(map(str, ds.data_vars))}")
    values = ds[variable].transpose("window", "neuron").values if is_map else np.asarray(findings, np.float64)[None]
    if values.ndim != 2:
        raise BadInput("scores have one axis, neurons", given=str(values.shape[1:]))
    scores = over_windows(values, over)
    order = np.argsort(-scores, kind="stable")[: int(np.isfinite(scores).sum())]
    if not len(order):
        raise BadInput("nothing to draw", given="no neuron was measured")
    ranked = scores[order].astype(np.float64)
    gained = np.cumsum(np.clip(ranked, 0, None))
    mass = gained / gained[-1] if gained[-1] > 0 else np.full(len(ranked), np.nan)
    frame = pd.DataFrame({"rank": np.arange(1, len(order) + 1), "neuron": order, "score": ranked, "mass": mass})
    if is_map:
        from probe._axis import sites_of

        names = np.array([site.name for site in sites_of(ds)], object)
        frame["site"], frame["unit"] = names[ds["site"].values[order]], ds["unit"].values[order]
        flags = np.zeros(len(scores), bool)
        if "selected" in ds:
            by_window = ds["selected"].transpose("window", "neuron").values
            flags = np.logical_or.reduce(np.asarray(by_window, bool), axis=0)
        frame["selected"] = flags[order]
    return frame


def plot_ranked_scores(
    findings: Any,
    *,
    cut: int | None = None,
    over: str = "mean",
    variable: str = "score",
    named: int = 0,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Scores of all neurons, highest first, over a logarithmic rank; above it the cumulative share of positive scores.

    A map's selection is the cut where it holds the highest neurons; one that does not (windows ranked by themselves,
    set algebra, a false discovery rate) is marked neuron by neuron.

    Args:
        findings: see `ranked_scores`.
        cut: draw the cut after so many neurons.
        over: how windows are joined.
        variable: which variable of a map.
        named: write the names of so many of the highest neurons, for a map.
        title: above the figure.
        ax: where to draw; the cumulative share gets an inset above it.

    Returns:
        The Axes of the scores.

    Raises:
        BadInput: as `ranked_scores`; a cut outside 1 to the number of measured neurons.

    """
    frame = ranked_scores(findings, over=over, variable=variable)
    total = len(frame)
    if cut is not None and not 1 <= cut <= total:
        raise BadInput("the cut is outside the measured neurons", given=f"cut={cut}", expected=f"1 to {total}")
    chosen = frame["selected"].to_numpy(bool) if "selected" in frame else np.zeros(total, bool)
    count = int(chosen.sum())
    if cut is None and count and chosen[:count].all():
        cut = count
    ax = new_axes(ax, (5.2, 3.6))
    rank, score = frame["rank"].to_numpy(), frame["score"].to_numpy()
    ax.plot(rank, score, color=BLUE, linewidth=1.4, drawstyle="steps-mid")
    if cut is None and count:
        ax.plot(rank[chosen], score[chosen], "|", color=VERMILION, markersize=9, label=f"selected: {count}")
        ax.legend(fontsize=SMALL, frameon=False, loc="upper right")
    ax.set_xscale("log")
    ax.set_xlim(0.9, total * 1.1)
    quiet(ax, grid=True)
    if (score < 0).any():
        ax.axhline(0, color="#000000", linewidth=0.6)
    ax.set_xlabel(f"rank of the neuron (of {total:,})", fontsize=SMALL + 1)
    unit = _UNITS.get(_method_of(findings)) if variable == "score" else None
    ax.set_ylabel(f"{variable} ({unit})" if unit else variable, fontsize=SMALL + 1)

    above = ax.inset_axes((0, 1.07, 1, 0.42), sharex=ax)
    above.plot(rank, 100 * frame["mass"], color=GREY, linewidth=1.4)
    quiet(above, grid=True)
    above.set_ylim(0, 104)
    above.tick_params(labelbottom=False)
    above.set_ylabel("share of all\nscore, %", fontsize=SMALL)
    if cut is not None:
        for part in (ax, above):
            part.axvline(cut + 0.5, color=VERMILION, linewidth=1.0, linestyle="--")
        share = float(frame["mass"].iloc[cut - 1])
        said = f"first {cut}: {100 * share:.3g} % of all score" if np.isfinite(share) else f"first {cut}"
        left = np.log(cut + 0.5) > 0.6 * np.log(total)
        ax.annotate(
            said, (cut + 0.5, 0.95), (-5 if left else 5, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=SMALL, va="center", color=VERMILION, ha="right" if left else "left",
        )  # fmt: skip
    if named and "site" in frame:
        highest = frame.head(named)
        lines = [
            f"{n}. {short_site(a)} [{u}]"
            for n, a, u in zip(highest["rank"], highest["site"], highest["unit"], strict=True)
        ]
        ax.text(0.03, 0.05, "\n".join(lines), transform=ax.transAxes, fontsize=SMALL, va="bottom")  # below the curve
    if title:
        above.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def _method_of(findings: Any) -> str:
    """The score that made a map; empty for bare numbers."""
    provenance = getattr(findings, "provenance", {})
    return str(provenance.get("identity", {}).get("method", ""))
