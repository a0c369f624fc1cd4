"""Erasers that solve for new key and value projections in closed form, on one linear-algebra core (`erase.gram`)."""

from __future__ import annotations

from erase.closed_form._augment import Augmentation
from erase.closed_form._cache import PreserveCache, preserve_cache
from erase.closed_form._debias import uce_debias
from erase.closed_form._mace import mace
from erase.closed_form._oce import oce
from erase.closed_form._rece import rece
from erase.closed_form._speed import speed
from erase.closed_form._trce_text import trce_text
from erase.closed_form._trce_trajectory import trce, trce_trajectory
from erase.closed_form._uce import uce

__all__ = [
    "Augmentation",
    "PreserveCache",
    "mace",
    "oce",
    "preserve_cache",
    "rece",
    "speed",
    "trce",
    "trce_text",
    "trce_trajectory",
    "uce",
    "uce_debias",
]
