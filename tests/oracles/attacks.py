"""Attacks' pure parts, written from the papers and not from the code: slow, one number at a time."""

from __future__ import annotations

import numpy as np


def projected_by_bisection(row, tolerance: float = 1e-12) -> np.ndarray:
    """The nearest point of the simplex: the theta at which sum max(p - theta, 0) = 1, found by halving."""
    low, high = float(np.min(row)) - 1.0, float(np.max(row))
    while high - low > tolerance:
        middle = (low + high) / 2
        if np.maximum(row - middle, 0).sum() > 1:
            low = middle
        else:
            high = middle
    return np.maximum(row - (low + high) / 2, 0)


def best_swaps(gradient, ids, allowed, ranked: int) -> list[list[int]]:
    """GCG: for every position the allowed tokens with the most negative gradient, one comparison at a time."""
    found = []
    for position in range(len(ids)):
        order = sorted(allowed, key=lambda token: (gradient[position][token], token))
        found.append(order[:ranked])
    return found


def nearest_by_cosine(e, table, allowed) -> int:
    """PEZ's projection."""
    best, highest = -1, -np.inf
    for token in allowed:
        cosine = float(np.dot(e, table[token]) / (np.linalg.norm(e) * np.linalg.norm(table[token])))
        if cosine > highest:
            best, highest = token, cosine
    return best
