"""Erasers that add small networks beside the weights: they act where a prompt opens them."""

from __future__ import annotations

from erase.gated._distil import distil
from erase.gated._low_rank import low_rank
from erase.gated._released import export_resag, import_resag
from erase.gated._resag import resag
from erase.gated._spm import spm

__all__ = ["distil", "export_resag", "import_resag", "low_rank", "resag", "spm"]
