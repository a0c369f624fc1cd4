"""Neuron maps made of numbers that a test chooses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import probe
from probe import NeuronMap

#: Timesteps of 10 DDIM steps; the paper's window, (999, 821), holds the first two.
TIMESTEPS = [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
EARLY = [981, 941, 901, 861, 821, 781, 741]


def norms(pipe: Any, steps: int, seed: int = 0, sites: str = "ffn") -> tuple[np.ndarray, np.ndarray]:
    """Target and reference norms (t n) on a coarse grid, some equal, some zero."""
    width = sum(site.width for site in probe.sites(pipe, sites))
    values = torch.randint(0, 17, (2, steps, width), generator=torch.Generator().manual_seed(seed)) / 16
    target, reference = values.numpy().astype(np.float32)
    return target, reference


def wanda_map(
    pipe: Any,
    target: np.ndarray,
    reference: np.ndarray,
    timesteps: list[int],
    sites: str = "ffn",
    method: str = "wanda",
    **identity: Any,
) -> NeuronMap:
    """The map that the score would have made of these norms."""
    found = probe.sites(pipe, sites)
    components = sorted({site.component for site in found})
    return NeuronMap.build(
        method=method,
        score=target - reference,
        windows=[(t, t) for t in timesteps],
        sites=found,
        identity={
            "method": method,
            "options": {"branches": "both", "normalise": "mean", "group": "unet"},
            "model": probe.fingerprint(pipe).to_json(components),
            "numbers": [float(target.sum()), float(reference.sum())],
            **identity,
        },
        evidence={"target": target, "reference": reference},
    )
