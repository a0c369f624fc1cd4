"""The one place that imports ipywidgets and anywidget, of the extra ``notebook``."""

from __future__ import annotations

from typing import Any

from probe.errors import MissingExtra


def widgets() -> Any:
    """The package ipywidgets. Raises `MissingExtra` with the pip command."""
    try:
        import ipywidgets
    except ImportError as error:
        raise _missing(error) from error
    return ipywidgets


def grid_class() -> Any:
    """The clickable heat map. Raises `MissingExtra` with the pip command."""
    try:
        from probe.widgets._heat_grid import HeatGrid
    except ImportError as error:
        raise _missing(error) from error
    return HeatGrid


def _missing(error: ImportError) -> MissingExtra:
    fix = "pip install 'neuron-workbench[notebook]'; without it, to_html(path) writes the same as a page"
    return MissingExtra("interactive views need another package", given=str(error), fix=fix)
