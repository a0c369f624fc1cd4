"""Helpers for tests, ours and yours: pipelines with random weights and millisecond forwards; no files, no network."""

from probe.testing._pipelines import KINDS, tiny_pipeline
from probe.testing._planted import Planted, dataset_of, made_up_identity, planted_runs

__all__ = ["KINDS", "Planted", "dataset_of", "made_up_identity", "planted_runs", "tiny_pipeline"]
