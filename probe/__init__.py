"""Observe a text-to-image diffusion model: trace, record, score, evaluate, plot. Never changes weights or modules.

Names are loaded on first use: ``import probe`` imports neither torch nor diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import attach

__version__ = "0.1.0"

# Public name -> the module that defines it. The block under TYPE_CHECKING says the same to type checkers and editors;
# a test holds the two together.
_EXPORTS = {
    "AmbiguousBatch": "errors",
    "BadInput": "errors",
    "EditConflict": "errors",
    "EditOrderError": "errors",
    "HeaderMismatch": "errors",
    "MissingExtra": "errors",
    "NeverFired": "errors",
    "StoreDamaged": "errors",
    "UnknownName": "errors",
    "WorkbenchError": "errors",
    "WrongModel": "errors",
    "Fingerprint": "provenance",
    "fingerprint": "provenance",
    "lineage": "provenance",
    "Site": "_sites",
    "sites": "_sites",
    "Layout": "_branches",
    "layout_of": "_branches",
    "StopForward": "_trace_hooks",
    "Trace": "_trace",
    "TraceDict": "_trace",
    "load": "_load",
    "NeuronMap": "_neuron_map",
    "Run": "_run",
    "by_site": "_run",
    "open_run": "_run",
    "verify": "_run",
    "record": "_record",
    "Trajectory": "_trajectory",
    "trajectories": "_trajectories",
    "rechunk": "_rechunk",
    "Summary": "_summary",
    "summary": "_summary",
    "samples": "_samples",
    "generate": "_generate",
    "score": "scores",
    "Selectivity": "scores",
    "overlap": "scores",
    "selectivity": "scores",
    "stability": "scores",
    "Intervention": "_intervention",
    "intervene": "_intervention",
    "intervention": "_intervention",
    "AttentionZeroing": "attention",
    "attention_zeroing": "attention",
    "token_similarity": "attention",
    "word_maps": "attention",
    "zero_attention": "attention",
    "Concept": "world",
    "World": "world",
    "concepts": "world",
    "Detector": "detect",
    "detector": "detect",
    "register_detector": "detect",
    "AttackSet": "attacks",
    "attack": "attacks",
    "sensitivity": "_sensitivity",
    "evaluate": "_evaluate",
    "Explorer": "widgets",
    "explore": "widgets",
    "Comparison": "widgets",
    "compare": "widgets",
    "plot_ablation_curves": "plots",
    "plot_activations": "plots",
    "plot_before_after": "plots",
    "plot_concept_neurons": "plots",
    "plot_layer_density": "plots",
    "plot_layer_step_scores": "plots",
    "plot_losses": "plots",
    "plot_neuron_examples": "plots",
    "plot_overlap": "plots",
    "plot_overlays": "plots",
    "plot_pareto": "plots",
    "plot_ranked_scores": "plots",
    "plot_rates": "plots",
    "plot_sensitivity": "plots",
    "plot_sensitivity_profile": "plots",
    "plot_token_similarity": "plots",
    "plot_tradeoff": "plots",
    "plot_word_maps": "plots",
    "read_results": "_evaluate",
    "result_images": "_evaluate",
}

if TYPE_CHECKING:
    from ._branches import Layout as Layout
    from ._branches import layout_of as layout_of
    from ._evaluate import evaluate as evaluate
    from ._evaluate import read_results as read_results
    from ._evaluate import result_images as result_images
    from ._generate import generate as generate
    from ._intervention import Intervention as Intervention
    from ._intervention import intervene as intervene
    from ._intervention import intervention as intervention
    from ._load import load as load
    from ._neuron_map import NeuronMap as NeuronMap
    from ._rechunk import rechunk as rechunk
    from ._record import record as record
    from ._run import Run as Run
    from ._run import by_site as by_site
    from ._run import open_run as open_run
    from ._run import verify as verify
    from ._samples import samples as samples
    from ._sensitivity import sensitivity as sensitivity
    from ._sites import Site as Site
    from ._sites import sites as sites
    from ._summary import Summary as Summary
    from ._summary import summary as summary
    from ._trace import Trace as Trace
    from ._trace import TraceDict as TraceDict
    from ._trace_hooks import StopForward as StopForward
    from ._trajectories import trajectories as trajectories
    from ._trajectory import Trajectory as Trajectory
    from .attacks import AttackSet as AttackSet
    from .attacks import attack as attack
    from .attention import AttentionZeroing as AttentionZeroing
    from .attention import attention_zeroing as attention_zeroing
    from .attention import token_similarity as token_similarity
    from .attention import word_maps as word_maps
    from .attention import zero_attention as zero_attention
    from .detect import Detector as Detector
    from .detect import detector as detector
    from .detect import register_detector as register_detector
    from .errors import AmbiguousBatch as AmbiguousBatch
    from .errors import BadInput as BadInput
    from .errors import EditConflict as EditConflict
    from .errors import EditOrderError as EditOrderError
    from .errors import HeaderMismatch as HeaderMismatch
    from .errors import MissingExtra as MissingExtra
    from .errors import NeverFired as NeverFired
    from .errors import StoreDamaged as StoreDamaged
    from .errors import UnknownName as UnknownName
    from .errors import WorkbenchError as WorkbenchError
    from .errors import WrongModel as WrongModel
    from .plots import plot_ablation_curves as plot_ablation_curves
    from .plots import plot_activations as plot_activations
    from .plots import plot_before_after as plot_before_after
    from .plots import plot_concept_neurons as plot_concept_neurons
    from .plots import plot_layer_density as plot_layer_density
    from .plots import plot_layer_step_scores as plot_layer_step_scores
    from .plots import plot_losses as plot_losses
    from .plots import plot_neuron_examples as plot_neuron_examples
    from .plots import plot_overlap as plot_overlap
    from .plots import plot_overlays as plot_overlays
    from .plots import plot_pareto as plot_pareto
    from .plots import plot_ranked_scores as plot_ranked_scores
    from .plots import plot_rates as plot_rates
    from .plots import plot_sensitivity as plot_sensitivity
    from .plots import plot_sensitivity_profile as plot_sensitivity_profile
    from .plots import plot_token_similarity as plot_token_similarity
    from .plots import plot_tradeoff as plot_tradeoff
    from .plots import plot_word_maps as plot_word_maps
    from .provenance import Fingerprint as Fingerprint
    from .provenance import fingerprint as fingerprint
    from .provenance import lineage as lineage
    from .scores import Selectivity as Selectivity
    from .scores import overlap as overlap
    from .scores import score as score
    from .scores import selectivity as selectivity
    from .scores import stability as stability
    from .widgets import Comparison as Comparison
    from .widgets import Explorer as Explorer
    from .widgets import compare as compare
    from .widgets import explore as explore
    from .world import Concept as Concept
    from .world import World as World
    from .world import concepts as concepts

_SUBMODULES = (
    "attacks",
    "attention",
    "detect",
    "errors",
    "guidance",
    "metrics",
    "plots",
    "provenance",
    "scores",
    "stats",
    "testing",
    "widgets",
    "world",
)

__getattr__, __dir__, __all__ = attach(__name__, _EXPORTS, _SUBMODULES)
