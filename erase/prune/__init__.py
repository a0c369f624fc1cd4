"""Erasers that set weights to zero, and the control masks that show what zeros alone would do."""

from __future__ import annotations

from erase.prune._concept import concept_prune
from erase.prune._controls import control_mask
from erase.prune._neurons import prune_neurons

__all__ = ["concept_prune", "control_mask", "prune_neurons"]
