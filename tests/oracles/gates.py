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


def winners(text: np.ndarray, concepts: Sequence[dict]) -> list[tuple[int, float, np.ndarray]]:
    """At each token of one text (k d): the concept whose gate is widest open, how far, and its row of Z."""
    zs = [attended(text, c["query"], c["key"]) for c in concepts]
    found = []
    for token in range(len(text)):
        gate = [1 / (1 + np.exp(-(z[token] @ c["gate"]))) for z, c in zip(zs, concepts, strict=True)]
        n = int(np.argmax(gate))
        found.append((n, float(gate[n]), zs[n][token]))
    return found


def residual(
    text: np.ndarray, concepts: Sequence[dict], module: int, threshold: float = 0.0, won: list | None = None
) -> np.ndarray:
    """What one projection gets at each token of one text (k d): (k o); ``won``: its `winners`, if they are known."""
    rows = []
    for n, openness, z in won or winners(text, concepts):
        down, up = concepts[n]["down"][module], concepts[n]["up"][module]
        scale = concepts[n]["alpha"][module] / down.shape[1] * concepts[n].get("strength", 1.0)
        rows.append(scale * (openness if openness >= threshold else 0.0) * (z @ down @ up))
    return np.stack(rows)


def missed(
    text: np.ndarray, wanted: np.ndarray, concept: dict, weights: Sequence[np.ndarray], shares: np.ndarray
) -> float:
    """sum_P w_P |X W_P^T - what the gate adds|^2 for one text (k d), every output written out."""
    total, won = 0.0, winners(text, [concept])
    for module, (weight, share) in enumerate(zip(weights, shares, strict=True)):
        added = residual(text, [concept], module, won=won)
        for token in range(len(text)):
            total += share * float(
                ((weight @ wanted[token]) - added[token]) @ ((weight @ wanted[token]) - added[token])
            )
    return total


def paper_losses(
    target: np.ndarray,
    neutral: np.ndarray,
    deltas: np.ndarray,
    kept: np.ndarray,
    concept: dict,
    weights: Sequence[np.ndarray],
    counts: Sequence[float],
    eta: float,
) -> dict[str, float]:
    """The losses as the paper has them, goals and edited projections written out: (k d) texts, counts c_P."""

    known: dict[bytes, list] = {}

    def change(text: np.ndarray, module: int) -> np.ndarray:
        if text.tobytes() not in known:
            known[text.tobytes()] = winners(text, [concept])
        won = known[text.tobytes()]
        return text @ weights[module].T + residual(text, [concept], module, won=won)

    found = {"erase": 0.0, "attacked": 0.0, "anchors": 0.0, "adversary": 0.0}
    n = len(weights)
    for p, count in enumerate(counts):
        plain_t, plain_n = target @ weights[p].T, neutral @ weights[p].T
        goal = plain_n + eta * (plain_n - plain_t)
        found["erase"] += count / n * float(((goal - change(target, p)) ** 2).mean())
        attacked = np.stack([change(target + delta, p) for delta in deltas])
        found["attacked"] += count / n * float(((goal - attacked) ** 2).mean())
        found["adversary"] += count / n * float(((attacked - plain_t) ** 2).mean())
        found["anchors"] += count / n * float(np.mean([((a @ weights[p].T - change(a, p)) ** 2).mean() for a in kept]))
    return found


def called_for(prompt: np.ndarray, concept: np.ndarray, prompt_ids: set[int], concept_ids: set[int]) -> float:
    """gamma of one prompt (k d) and one name of a concept (k d), special tokens not among the ids."""
    a, b = prompt.ravel(), concept.ravel()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / lengths if lengths else 0.0  # a text that is the centre itself points nowhere
    return max(cosine, len(prompt_ids & concept_ids) / len(concept_ids), 0.0)
