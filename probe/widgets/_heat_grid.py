"""A heat map of buttons, for mouse and keyboard. Colours are worked out here, not in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import pandas as pd
import traitlets

from probe.plots import short_site
from probe.plots._style import DIVERGING, MISSING, SEQUENTIAL


class HeatGrid(anywidget.AnyWidget):
    """``table`` (rows by columns) as coloured cells; ``clicked`` is [row, column, count of clicks]."""

    _esm = Path(__file__).with_name("_heat_grid.js").read_text(encoding="utf-8")
    rows: Any = traitlets.List().tag(sync=True)
    columns: Any = traitlets.List().tag(sync=True)
    colours: Any = traitlets.List().tag(sync=True)
    texts: Any = traitlets.List().tag(sync=True)
    marked: Any = traitlets.List([-1, -1]).tag(sync=True)
    clicked: Any = traitlets.List([-1, -1, 0]).tag(sync=True)

    def show(self, table: pd.DataFrame) -> None:
        """Show another table; names of sites are shortened."""
        values = table.to_numpy(float)
        self.rows = [short_site(str(name)) for name in table.index]
        self.columns = [str(name) for name in table.columns]
        self.colours = colours(values)
        self.texts = [["not measured" if np.isnan(v) else f"{v:.3g}" for v in row] for row in values.tolist()]


def colours(values: np.ndarray) -> list[list[str]]:
    """(row column) -> hex colours: sequential, or diverging around 0 where values have two signs."""
    import matplotlib as mpl

    finite = values[np.isfinite(values)]
    spread = float(np.abs(finite).max()) if finite.size else 1.0
    signed = bool((finite < 0).any())
    unit = (values / (spread or 1.0) + 1) / 2 if signed else values / (spread or 1.0)
    scale = mpl.colormaps[DIVERGING if signed else SEQUENTIAL]
    hexed = mpl.colors.to_hex
    return [[MISSING if np.isnan(v) else hexed(scale(v)) for v in row] for row in unit.tolist()]
