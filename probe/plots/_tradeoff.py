"""What an eraser gains against what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import BadInput
from probe.plots._style import GREY, MARKERS, OKABE_ITO, SMALL, VERMILION, new_axes, place_labels, quiet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MANY = 12  # more settings than this are labelled on the front only


def tradeoff_points(
    table: pd.DataFrame, *, concept: str | None = None, erased: str = "explicit", kept: str = "preserve_test"
) -> pd.DataFrame:
    """One row per setting from a table of `probe.evaluate`: erased rate and loss with their intervals.

    Columns: those of the table that are constant within a setting, and ``rate, rate_low, rate_high, original`` on the
    split ``erased``, ``loss, loss_low, loss_high`` (original - edited, paired) on the split ``kept``.

    Raises:
        BadInput: several concepts or seed sets and none chosen, or a setting without its two rows.

    """
    rows = table[(table["metric"] == "rate") & table["split"].isin([erased, kept])]
    if concept is not None:
        rows = rows[rows["concept"] == concept]
    for column in ("concept", "seed_set", "attack"):
        if column in rows and rows[column].nunique() > 1:
            choices = ", ".join(map(str, rows[column].unique()))
            raise BadInput(f"a trade-off is drawn for one {column}", given=choices, fix=f"filter the table by {column}")
    settings = [c for c in rows.columns if c not in _MEASURED]
    target = rows[rows["split"] == erased].set_index("edit")
    others = rows[rows["split"] == kept].set_index("edit")
    if target.empty or set(target.index) != set(others.index):
        lonely = sorted(set(target.index) ^ set(others.index))
        raise BadInput(f"every setting needs a rate on {erased!r} and on {kept!r}", given=f"lonely: {lonely}")
    if target.index.has_duplicates or others.index.has_duplicates:
        raise BadInput("a setting appears twice", given=", ".join(target.index[target.index.duplicated()].unique()))
    points = target.reset_index()[settings].set_index("edit", drop=False)
    points = points.assign(
        rate=target["value"], rate_low=target["ci_low"], rate_high=target["ci_high"], original=target["original"]
    )
    points = points.assign(loss=-others["difference"], loss_low=-others["diff_high"], loss_high=-others["diff_low"])
    return points.reset_index(drop=True)


def plot_tradeoff(
    table: pd.DataFrame,
    *,
    concept: str | None = None,
    erased: str = "explicit",
    kept: str = "preserve_test",
    label: str = "edit",
    group: str | Sequence[str] = (),
    highlight: Sequence[str] = (),
    bars: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """How often the erased concept is still shown against how much else is lost; better is down and to the left.

    Args:
        table: rows of `probe.evaluate`, further columns (settings of a sweep) welcome; see `tradeoff_points`.
        concept: which erased concept, where the table holds several.
        erased: split of the horizontal axis.
        kept: split of the vertical axis; its paired loss is drawn.
        label: column whose value is written at each marker. Of more than 12 settings only those that no other beats
            on both axes are labelled and carry their intervals.
        group: one or two columns; the first decides colour and marker, the second whether it is filled. Settings of
            one group are joined in the order of the table.
        highlight: edits drawn as stars and always labelled by name.
        bars: (rate, loss) that count as success, drawn as a shaded corner.
        title: above the figure.
        ax: where to draw.

    """
    points = tradeoff_points(table, concept=concept, erased=erased, kept=kept)
    by = [group] if isinstance(group, str) else list(group)
    if len(by) > 2:
        raise BadInput("a trade-off is grouped by two columns at most", given=", ".join(by))
    for column in (label, *by):
        if column not in points:
            raise BadInput(f"the table has no column {column!r}", expected=f"one of {', '.join(points.columns)}")
    many = len(points) > _MANY
    ax = new_axes(ax, (6.6, 5.0) if many else (5.8, 4.2))
    starred = points["edit"].isin(list(highlight))
    front = pareto_front(points["rate"].to_numpy(), points["loss"].to_numpy())
    plain = points[~starred]
    levels = [list(plain[column].unique()) for column in by]

    for key, members in plain.groupby(by, sort=False) if by else [((), plain)]:
        first, second = [*(levels[i].index(value) for i, value in enumerate(key)), 0, 0][:2]
        colour = OKABE_ITO[(first + 1) % len(OKABE_ITO)]
        crosses(ax, members[front[members.index]] if many else members, colour, 0.6)
        if by and len(members) > 1:
            ax.plot(
                members["rate"], members["loss"], ("-", "--", ":")[second % 3], color=colour, linewidth=0.8, alpha=0.7
            )
        _markers(ax, members, colour, MARKERS[first % len(MARKERS)], hollow=second % 2 == 1)
        if by:
            ax.plot([], [], **_key(colour, first, second), label=", ".join(map(str, key)))
    chosen = points[starred]
    crosses(ax, chosen, VERMILION, 1.0)
    ax.plot(chosen["rate"], chosen["loss"], "*", color=VERMILION, markersize=13, markeredgecolor="white", zorder=4)
    original = float(points["original"].mean())
    ax.plot([original], [0.0], "D", color="white", markeredgecolor=GREY, markersize=6, zorder=3)

    _frame(ax, points, original, bars)
    named = points[front | starred] if many else points
    texts = [str(row["edit"] if row["edit"] in highlight else row[label]) for _, row in named.iterrows()]
    spots = [*zip(named["rate"], named["loss"], strict=True), (original, 0.0)]
    place_labels(ax, spots, [*texts, "unedited"], color="#222222")

    ax.set_xlabel(f"{points['concept'].iloc[0]} shown, rate on {erased!r} prompts", fontsize=SMALL + 1)
    ax.set_ylabel(f"others lose, paired loss of rate on {kept!r}", fontsize=SMALL + 1)
    if by:
        heading = ", ".join(by).replace("_", " ")
        ax.legend(title=heading, fontsize=SMALL, title_fontsize=SMALL, frameon=False, loc="upper right", handlelength=3)
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def _markers(ax: Axes, points: pd.DataFrame, colour: str, marker: str, *, hollow: bool) -> None:
    edge: dict[str, Any] = (
        {"markerfacecolor": "white", "markeredgecolor": colour} if hollow else {"markeredgecolor": "white"}
    )
    ax.plot(points["rate"], points["loss"], marker, color=colour, markersize=5.5, zorder=3, **edge)


def _key(colour: str, first: int, second: int) -> dict[str, Any]:
    """How a group looks in the legend: its line through its marker."""
    fill = {"markerfacecolor": "white"} if second % 2 else {}
    line = ("-", "--", ":")[second % 3]
    return {"color": colour, "marker": MARKERS[first % len(MARKERS)], "linestyle": line, "linewidth": 0.8, **fill}


def crosses(ax: Axes, points: pd.DataFrame, colour: str, alpha: float) -> None:
    """The intervals of both axes; a bound that is NaN leaves its arm out."""
    if points.empty:
        return

    def arms(name: str) -> np.ndarray:
        centre = points[name].to_numpy(float)
        low, high = points[f"{name}_low"].to_numpy(float), points[f"{name}_high"].to_numpy(float)
        return np.nan_to_num(np.stack([centre - low, high - centre])).clip(min=0)

    ax.errorbar(
        points["rate"], points["loss"], xerr=arms("rate"), yerr=arms("loss"), fmt="none", ecolor=colour, alpha=alpha,
        elinewidth=0.8, zorder=1,
    )  # fmt: skip


def _frame(ax: Axes, points: pd.DataFrame, original: float, bars: tuple[float, float] | None) -> None:
    """Limits, grid, zero line, the corner of success and the way to it."""
    top = np.nanmax([points["loss_high"].max(), points["loss"].max(), 0.05, (bars or (0, 0))[1] * 1.3])
    bottom = np.nanmin([points["loss_low"].min(), points["loss"].min(), -0.02])
    ax.set_ylim(bottom - 0.06 * (top - bottom), top + 0.08 * (top - bottom))
    ax.set_xlim(-0.03, min(1.03, max(original, float(np.nanmax(points["rate_high"].fillna(points["rate"])))) + 0.08))
    quiet(ax, grid=True)
    ax.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    if bars is not None:
        from matplotlib.patches import Rectangle

        low = ax.get_ylim()[0]
        corner = Rectangle(
            (-0.03, low), bars[0] + 0.03, bars[1] - low, color="#009E73", alpha=0.12, linewidth=0, zorder=0
        )
        ax.add_patch(corner)
    ax.annotate(
        "better", (0.015, 0.02), (0.085, 0.075), xycoords="axes fraction", fontsize=SMALL, color=GREY,
        arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.8},
    )  # fmt: skip


def pareto_front(cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """(n,) bool: points that no other one beats, being at most as high in both and lower in one. NaN is never on it."""
    cost, loss = np.asarray(cost, float), np.asarray(loss, float)
    no_worse = (cost[None] <= cost[:, None]) & (loss[None] <= loss[:, None])
    better = (cost[None] < cost[:, None]) | (loss[None] < loss[:, None])
    return np.logical_not((no_worse & better).any(axis=1)) & np.isfinite(cost) & np.isfinite(loss)


_MEASURED = (
    "split", "metric", "value", "ci_low", "ci_high", "interval", "n", "n_failed", "original", "difference", "diff_low",
    "diff_high",
)  # fmt: skip
