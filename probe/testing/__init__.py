"""Helpers for tests, ours and yours: pipelines with random weights and millisecond forwards; no files, no network."""

from probe.testing._pipelines import KINDS, TOPOLOGIES, tiny_pipeline
from probe.testing._planted import Planted, dataset_of, made_up_identity, planted_runs
from probe.testing._planted_model import PlantedJudge, PlantedModel, planted_model
from probe.testing._published import PUBLISHED, meta_pipeline, published_config

__all__ = [
    "KINDS",
    "PUBLISHED",
    "TOPOLOGIES",
    "Planted",
    "PlantedJudge",
    "PlantedModel",
    "dataset_of",
    "made_up_identity",
    "meta_pipeline",
    "planted_model",
    "planted_runs",
    "published_config",
    "tiny_pipeline",
]
