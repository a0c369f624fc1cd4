"""Helpers for tests, ours and yours: pipelines with random weights and millisecond forwards; no files, no network."""

from probe.testing._pipelines import KINDS, TOPOLOGIES, tiny_pipeline
from probe.testing._published import PUBLISHED, meta_pipeline, published_config

__all__ = ["KINDS", "PUBLISHED", "TOPOLOGIES", "meta_pipeline", "published_config", "tiny_pipeline"]
