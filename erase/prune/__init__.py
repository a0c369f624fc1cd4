"""Erasers that set weights to zero, what zeros alone would do, and what zeros give away."""

from __future__ import annotations

from erase.prune._audit import Audit, audit
from erase.prune._concept import concept_prune
from erase.prune._controls import control_mask
from erase.prune._neurons import prune_neurons
from erase.prune._prompts import contrast_prompts
from erase.prune._stepwise import StepwiseMasks, stepwise_masks

__all__ = [
    "Audit",
    "StepwiseMasks",
    "audit",
    "concept_prune",
    "contrast_prompts",
    "control_mask",
    "prune_neurons",
    "stepwise_masks",
]
