"""Take a concept out of a text-to-image diffusion model, reversibly: findings -> Edit -> apply, revert, save, export.

Names are loaded on first use: ``import erase`` imports neither torch nor diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probe import __version__ as __version__
from probe._lazy import attach

# Public name -> the module that defines it; see probe/__init__.py.
_EXPORTS = {
    "Delta": "_changes",
    "Hook": "_changes",
    "Mask": "_changes",
    "Replace": "_changes",
    "Edit": "_edit",
    "load_edit": "_saving",
    "edit_from_checkpoint": "_checkpoint",
    "restore": "_originals",
    "load_edited": "_load_edited",
    "scaled": "_scaled",
    "stack": "_stack",
    "truncated": "_truncated",
    "Augmentation": "closed_form",
    "PreserveCache": "closed_form",
    "mace": "closed_form",
    "oce": "closed_form",
    "preserve_cache": "closed_form",
    "rece": "closed_form",
    "speed": "closed_form",
    "trce": "closed_form",
    "trce_text": "closed_form",
    "trce_trajectory": "closed_form",
    "uce": "closed_form",
    "uce_debias": "closed_form",
    "concept_prune": "prune",
    "control_mask": "prune",
    "prune_neurons": "prune",
    "audit": "prune",
    "contrast_prompts": "prune",
    "stepwise_masks": "prune",
    "distil": "gated",
    "export_resag": "gated",
    "import_resag": "gated",
    "low_rank": "gated",
    "resag": "gated",
    "spm": "gated",
    "esd": "learn",
    "ablating_concepts": "learn",
    "differentiable_prune": "learn",
}

if TYPE_CHECKING:
    from ._changes import Delta as Delta
    from ._changes import Hook as Hook
    from ._changes import Mask as Mask
    from ._changes import Replace as Replace
    from ._checkpoint import edit_from_checkpoint as edit_from_checkpoint
    from ._edit import Edit as Edit
    from ._load_edited import load_edited as load_edited
    from ._originals import restore as restore
    from ._saving import load_edit as load_edit
    from ._scaled import scaled as scaled
    from ._stack import stack as stack
    from ._truncated import truncated as truncated
    from .closed_form import Augmentation as Augmentation
    from .closed_form import PreserveCache as PreserveCache
    from .closed_form import mace as mace
    from .closed_form import oce as oce
    from .closed_form import preserve_cache as preserve_cache
    from .closed_form import rece as rece
    from .closed_form import speed as speed
    from .closed_form import trce as trce
    from .closed_form import trce_text as trce_text
    from .closed_form import trce_trajectory as trce_trajectory
    from .closed_form import uce as uce
    from .closed_form import uce_debias as uce_debias
    from .gated import distil as distil
    from .gated import export_resag as export_resag
    from .gated import import_resag as import_resag
    from .gated import low_rank as low_rank
    from .gated import resag as resag
    from .gated import spm as spm
    from .learn import ablating_concepts as ablating_concepts
    from .learn import differentiable_prune as differentiable_prune
    from .learn import esd as esd
    from .prune import audit as audit
    from .prune import concept_prune as concept_prune
    from .prune import contrast_prompts as contrast_prompts
    from .prune import control_mask as control_mask
    from .prune import prune_neurons as prune_neurons
    from .prune import stepwise_masks as stepwise_masks

__getattr__, __dir__, __all__ = attach(__name__, _EXPORTS)
