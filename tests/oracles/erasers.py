"""Losses of erasers that learn, element by element in plain Python, written from the papers."""

from __future__ import annotations

import math
from typing import Any

import torch


def epsilon_of(pipe: Any, x: torch.Tensor, timestep: int, text: str) -> list[float]:
    """eps(x, t, text) of one sample as a flat list: the UNet called by hand, v turned into epsilon by hand."""
    ids = pipe.tokenizer(text, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt")
    with torch.no_grad():
        states = pipe.text_encoder(ids.input_ids)[0]
        found = pipe.unet(x, timestep, encoder_hidden_states=states).sample
    a = float(pipe.scheduler.alphas_cumprod[timestep])
    values, inputs = found.flatten().tolist(), x.flatten().tolist()
    if pipe.scheduler.config.prediction_type == "v_prediction":
        return [math.sqrt(a) * v + math.sqrt(1 - a) * z for v, z in zip(values, inputs, strict=True)]
    return values


def esd(student: list[float], null: list[float], concept: list[float], eta: float) -> float:
    """mean (eps_student - [eps_null - eta (eps_concept - eps_null)])^2: Gandikota et al., eq. 6."""
    wanted = [n - eta * (c - n) for n, c in zip(null, concept, strict=True)]
    return mean_square(student, wanted)


def esd_released(start: list[float], null: list[float], concept: list[float], scale: float) -> list[float]:
    """The target of the newer release: eps_from - scale (eps_concept - eps_null)."""
    return [s - scale * (c - n) for s, n, c in zip(start, null, concept, strict=True)]


def mean_square(one: list[float], other: list[float]) -> float:
    """mean (one - other)^2."""
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)


def hard_concrete(log_alpha: float, u: float) -> float:
    """One gate: Louizos et al., eq. 10 to 12, beta = 2/3, stretched to (-0.1, 1.1)."""
    logit = math.log(u) - math.log(1 - u) + log_alpha
    s = 1 / (1 + math.exp(-logit / (2 / 3)))
    return min(1.0, max(0.0, s * 1.2 - 0.1))
