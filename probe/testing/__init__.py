"""Helpers for tests, ours and yours: pipelines with random weights and millisecond forwards; no files, no network."""

from probe.testing._pipelines import KINDS, tiny_pipeline

__all__ = ["KINDS", "tiny_pipeline"]
