"""Figures: data in, Axes out. No global state, no ``plt.show``; colours that survive colour blindness and grey print.

Every function draws on ``ax`` if given one, else on a figure of its own, and returns the Axes: save with
``ax.figure.savefig("name.png", dpi=200)``.
"""

from __future__ import annotations

from probe.plots._images import plot_before_after
from probe.plots._layers import layer_step_table, plot_layer_density, plot_layer_step_scores, short_site
from probe.plots._tradeoff import plot_tradeoff, tradeoff_points

__all__ = [
    "layer_step_table",
    "plot_before_after",
    "plot_layer_density",
    "plot_layer_step_scores",
    "plot_tradeoff",
    "short_site",
    "tradeoff_points",
]
