"""Erasers that add small networks beside the weights: they act where a prompt opens them."""

from __future__ import annotations

from erase.gated._resag import resag

__all__ = ["resag"]
