"""Figures: data in, Axes out. No global state, no ``plt.show``; colours that survive colour blindness and grey print.

Every function draws on ``ax`` if given one, else on a figure of its own, and returns the Axes: save with
``ax.figure.savefig("name.png", dpi=200)``.
"""

from __future__ import annotations

from probe.plots._curves import plot_ablation_curves, plot_rates
from probe.plots._examples import neuron_examples, plot_neuron_examples
from probe.plots._histograms import plot_activations, separation
from probe.plots._images import plot_before_after
from probe.plots._layers import layer_step_table, plot_layer_density, plot_layer_step_scores, short_site
from probe.plots._losses import losses_of, plot_losses
from probe.plots._matrices import plot_overlap, plot_token_similarity
from probe.plots._overlays import plot_overlays, plot_word_maps
from probe.plots._pareto import plot_pareto
from probe.plots._ranked import plot_ranked_scores, ranked_scores
from probe.plots._readings import maps_of_neuron, values_of_neuron
from probe.plots._relit import plot_concept_neurons, plot_sensitivity, plot_sensitivity_profile
from probe.plots._tradeoff import pareto_front, plot_tradeoff, tradeoff_points

__all__ = [
    "layer_step_table",
    "losses_of",
    "maps_of_neuron",
    "neuron_examples",
    "pareto_front",
    "plot_ablation_curves",
    "plot_activations",
    "plot_before_after",
    "plot_concept_neurons",
    "plot_layer_density",
    "plot_layer_step_scores",
    "plot_losses",
    "plot_neuron_examples",
    "plot_overlap",
    "plot_overlays",
    "plot_pareto",
    "plot_ranked_scores",
    "plot_rates",
    "plot_sensitivity",
    "plot_sensitivity_profile",
    "plot_token_similarity",
    "plot_tradeoff",
    "plot_word_maps",
    "ranked_scores",
    "separation",
    "short_site",
    "tradeoff_points",
    "values_of_neuron",
]
