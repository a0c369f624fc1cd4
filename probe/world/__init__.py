"""Concepts as frozen data: what to prompt for, what to compare with, who judges."""

from probe.world._concept import Concept
from probe.world._world import World, concepts

__all__ = ["Concept", "World", "concepts"]
