"""Slow twin of residual attention gates: one token at a time, in float64, written from the paper's equations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def attended(text: np.ndarray, u1: np.ndarray, u2: np.ndarray) -> np.ndarray:
    """Rows of softmax(Q K^T) E for one text (k d)."""
    found = np.zeros_like(text)
    for i in range(len(text)):
        logits = np.array([(text[i] @ u1) @ (text[j] @ u2) for j in range(len(text))])
        weights = np.exp(logits - logits.max())
        found[i] = sum(w * text[j] for j, w in enumerate(weights / weights.sum()))
    return found


def residual(text: np.ndarray, concepts: Sequence[dict], module: int, threshold: float = 0.0) -> np.ndarray:
    """What one projection gets at each token of one text (k d): (k o)."""
    rows = []
    zs = [attended(text, c["query"], c["key"]) for c in concepts]
    for token in range(len(text)):
        gate = [1 / (1 + np.exp(-(z[token] @ c["gate"]))) for z, c in zip(zs, concepts, strict=True)]
        n = int(np.argmax(gate))
        down, up = concepts[n]["down"][module], concepts[n]["up"][module]
        open_ = gate[n] if gate[n] >= threshold else 0.0
        scale = concepts[n]["alpha"][module] / down.shape[1] * concepts[n].get("strength", 1.0)
        rows.append(scale * open_ * (zs[n][token] @ down @ up))
    return np.stack(rows)
