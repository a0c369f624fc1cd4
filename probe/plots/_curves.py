"""Measured rates with their intervals: over the number of ablated neurons, and side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import BadInput
from probe.plots._style import GREY, MARKERS, OKABE_ITO, SMALL, new_axes, quiet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_NUMBERS = ("value", "ci_low", "ci_high")


def plot_ablation_curves(
    table: pd.DataFrame,
    *,
    x: str = "k",
    by: str = "method",
    controls: str = "random",
    label: str = "rate of the concept",
    xlabel: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Rate against the number of ablated neurons, one line with intervals for each method.

    Points of one number stand a little apart, so that their intervals can be told apart. Controls are grey, dashed and
    hollow. Where the table has a column ``original``, its mean is drawn as a line: the untouched model.

    Args:
        table: one row a method and number, with ``value, ci_low, ci_high``; NaN intervals are not drawn.
        x: the column of numbers; on a logarithmic axis if they are above 0.
        by: the column that makes lines.
        controls: methods whose name starts with this are controls.
        label: of the vertical axis.
        xlabel: of the horizontal axis; what ``x`` means if None.
        title: above the figure.
        ax: where to draw.

    Raises:
        BadInput: missing columns, no rows, or two rows of one method and number.

    """
    _check(table, (x, by))
    ax = new_axes(ax, (5.2, 3.4))
    numbers = sorted(table[x].unique())
    place = (lambda k: np.log10(k)) if min(numbers) > 0 else (lambda k: k)
    span = max(float(place(numbers[-1]) - place(numbers[0])), 1e-9) if len(numbers) > 1 else 1.0
    methods = list(dict.fromkeys(table[by]))
    real = [m for m in methods if not _is_control(m, controls)]
    for i, method in enumerate(methods):
        rows = table[table[by] == method].sort_values(x)
        shift = (i - (len(methods) - 1) / 2) * 0.012 * span
        at = np.array([float(place(k)) for k in rows[x]]) + shift
        look = _look(real.index(method)) if method in real else _control_look(methods.index(method))
        ax.errorbar(at, rows["value"], yerr=_arms(rows), label=str(method), **look)
    if "original" in table and table["original"].notna().any():
        untouched = float(table["original"].mean())
        ax.axhline(untouched, color="#000000", linewidth=1.0, linestyle=":", zorder=1, label="untouched")
    ax.set_xticks([float(place(k)) for k in numbers], [f"{k:g}" for k in numbers])
    _rates(ax, table)
    ax.set_xlabel(xlabel or ("neurons ablated" if x == "k" else x), fontsize=SMALL + 1)
    ax.set_ylabel(label, fontsize=SMALL + 1)
    _legend(ax, by)
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def plot_rates(
    table: pd.DataFrame,
    *,
    rows: str = "variant",
    by: str = "split",
    label: str = "rate of the concept",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Rates side by side with their intervals: one line of dots for each row, one marker for each group.

    Args:
        table: one row for each ``rows`` and ``by``, with ``value, ci_low, ci_high``; a missing pair has no dot.
        rows: the column down the figure, in the order of the table.
        by: the column of markers.
        label: of the horizontal axis.
        title: above the figure.
        ax: where to draw.

    Raises:
        BadInput: missing columns, no rows, or a pair that appears twice.

    """
    _check(table, (rows, by))
    names, groups = list(dict.fromkeys(table[rows])), list(dict.fromkeys(table[by]))
    ax = new_axes(ax, (5.6, min(1.0 + (0.14 + 0.13 * len(groups)) * len(names), 9.0)))
    for i, group in enumerate(groups):
        part = table[table[by] == group]
        shift = (i - (len(groups) - 1) / 2) * 0.62 / len(groups)
        at = np.array([names.index(name) for name in part[rows]]) + shift
        look = {**_look(i), "linewidth": 0}
        ax.errorbar(part["value"], at, xerr=_arms(part), label=str(group), **look)
    for line in range(len(names) - 1):
        ax.axhline(line + 0.5, color="#EEEEEE", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(names)), [str(name) for name in names])
    ax.set_ylim(len(names) - 0.45, -0.55)
    quiet(ax)
    ax.grid(True, axis="x", color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(*_limits(table))
    ax.set_xlabel(label, fontsize=SMALL + 1)
    _legend(ax, by)
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def _check(table: pd.DataFrame, keys: Sequence[str]) -> None:
    if missing := [name for name in (*keys, *_NUMBERS) if name not in table]:
        raise BadInput("the table lacks a column", given=missing[0], expected=", ".join((*keys, *_NUMBERS)))
    if not len(table) or not table["value"].notna().any():
        raise BadInput("nothing to draw", given=f"{len(table)} rows, none with a value")
    if (twice := table.duplicated(list(keys))).any():
        row = table[twice].iloc[0]
        given = ", ".join(f"{key}={row[key]}" for key in keys)
        raise BadInput("one point appears twice", given=given, fix="filter the table by concept, split and metric")


def _arms(rows: pd.DataFrame) -> np.ndarray:
    """(2, row) lengths of the arms of an interval; 0 where it is unknown."""
    low, value, high = (rows[name].to_numpy(float) for name in ("ci_low", "value", "ci_high"))
    return np.nan_to_num(np.stack([value - low, high - value])).clip(min=0)


def _look(i: int) -> dict[str, Any]:
    return {
        "color": OKABE_ITO[(i + 1) % len(OKABE_ITO)], "marker": MARKERS[i % len(MARKERS)], "markersize": 5,
        "linewidth": 1.2, "elinewidth": 0.9, "capsize": 2, "zorder": 3,
    }  # fmt: skip


def _control_look(i: int) -> dict[str, Any]:
    return {**_look(i), "color": GREY, "linestyle": "--", "markerfacecolor": "white", "zorder": 2}


def _is_control(method: Any, controls: str) -> bool:
    return bool(controls) and str(method).startswith(controls)


def _limits(table: pd.DataFrame) -> tuple[float, float]:
    """0 to 1 for rates, wider where a value is not one."""
    values = table[list(_NUMBERS)].to_numpy(float)
    return min(-0.02, float(np.nanmin(values)) - 0.02), max(1.02, float(np.nanmax(values)) + 0.02)


def _rates(ax: Axes, table: pd.DataFrame) -> None:
    quiet(ax, grid=True)
    ax.set_ylim(*_limits(table))


def _legend(ax: Axes, title: str) -> None:
    ax.legend(fontsize=SMALL, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), title=title, title_fontsize=SMALL)
