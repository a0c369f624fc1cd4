"""How a training went: its loss and the loss's terms over iterations, several trainings side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import BadInput, StoreDamaged
from probe.plots._style import GREY, MARKERS, OKABE_ITO, SMALL, new_axes, quiet

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: A line is a mean over this share of its iterations: the loss of one iteration is of few points at random timesteps.
SHARE = 0.05


def plot_losses(
    curves: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    over: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Loss over iterations on a logarithmic axis: every iteration faint, a trailing mean as a line.

    One training is drawn with its terms (``erase``, ``sparsity``, ``retain``...), several with their losses alone.
    Terms that are 0 throughout are left out; iterations that are not above 0 have no point.

    Args:
        curves: ``iteration, loss`` and terms, as `losses_of` reads them or ``edit.report["losses"]`` has them; or
            several by name.
        over: iterations of the trailing mean; a twentieth of the training unless given.
        title: above the figure.
        ax: where to draw.

    Raises `BadInput` for a curve without rows, or without those two columns.
    """
    import pandas as pd

    given = {"": curves} if isinstance(curves, pd.DataFrame) else dict(curves)
    named = {name: pd.DataFrame(curve) for name, curve in given.items()}
    if over is not None and over < 1:
        raise BadInput("a mean is over at least 1 iteration", given=f"over={over}")
    for name, curve in named.items():
        if curve.empty or not {"iteration", "loss"} <= set(curve.columns):
            raise BadInput("no loss curve", given=f"{name or 'curve'}: {', '.join(curve.columns)}, {len(curve)} rows")
    if not named:
        raise BadInput("there is no training to draw")
    ax = new_axes(ax, (5.2, 3.4))
    lines = [(name, curve["iteration"], curve["loss"]) for name, curve in named.items()]
    if len(named) == 1:
        (curve,) = named.values()
        terms = [str(column) for column in curve.columns if column not in ("iteration", "loss")]
        # with one term it is the loss
        shown = [term for term in terms if curve[term].any()] if len(terms) > 1 else []
        lines = [("loss", curve["iteration"], curve["loss"])] + [(t, curve["iteration"], curve[t]) for t in shown]
    for i, (name, at, values) in enumerate(lines):
        colour = OKABE_ITO[(i if len(named) == 1 else i + 1) % len(OKABE_ITO)]
        mean = values.rolling(over or max(1, round(SHARE * len(values))), min_periods=1).mean()
        ax.plot(at, _above(values), ".", color=colour, markersize=2, alpha=0.25, zorder=1)
        ax.plot(at, _above(mean), color=colour, linewidth=1.4, marker=MARKERS[i % len(MARKERS)], markersize=4,
                markevery=max(1, len(values) // 6), label=name, zorder=2)  # fmt: skip
    ax.set_yscale("log")
    ax.set_xlabel("iteration", fontsize=SMALL + 1)
    ax.set_ylabel("loss", fontsize=SMALL + 1)
    quiet(ax, grid=True)
    if len(lines) > 1:
        ax.legend(fontsize=SMALL, frameon=False, labelcolor=GREY)
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def losses_of(folder: str | Path) -> pd.DataFrame:
    """The loss curve of a training's folder (``training=``): ``iteration, loss`` and a column a term.

    Raises `BadInput` for a folder without one (a training of gates keeps each stage's last losses alone).
    """
    import pandas as pd

    file = Path(folder) / "losses.csv"
    if not file.is_file():
        fix = "the folder that an eraser was given as training=, once it has kept a state"
        raise BadInput("the training has no loss curve", given=str(folder), fix=fix)
    try:
        return pd.read_csv(file).astype(float)
    except ValueError as error:
        raise StoreDamaged("the loss curve cannot be read", given=f"{file}: {error}") from error


def _above(values: Any) -> Any:
    return np.where(values > 0, values, np.nan)
