"""Slow twins of the closed-form erasers: one prompt, one token and one layer at a time, written from the papers.

Arrays are numpy float64; a projection is (o, d), a row (d,).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ridge_solution(
    weight: np.ndarray,
    mapped: Sequence[tuple[np.ndarray, np.ndarray, float]],
    kept: Sequence[tuple[np.ndarray, float]],
    ridge: float,
) -> np.ndarray:
    """W' of min sum w ||W' c - v||^2 + sum p ||W' r - W r||^2 + ridge ||W' - W||^2; ``mapped`` holds (c, v, w)."""
    width = weight.shape[1]
    left, right = ridge * weight, ridge * np.eye(width)
    for source, value, share in mapped:
        left = left + share * np.outer(value, source)
        right = right + share * np.outer(source, source)
    for row, share in kept:
        left = left + share * np.outer(weight @ row, row)
        right = right + share * np.outer(row, row)
    return left @ np.linalg.inv(right)


def without_old(weight: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """UCE's technique tensor: W new - <u, W new> u with u = W old / ||W old||, over a slice of rows (k, d): (k, o)."""
    before, wanted = old @ weight.T, new @ weight.T
    unit = before / np.linalg.norm(before)
    return wanted - (unit * wanted).sum() * unit


def recovered(
    edited: Sequence[np.ndarray], original: Sequence[np.ndarray], row: np.ndarray, penalty: float
) -> np.ndarray:
    """RECE's e' = (penalty I + sum Wn^T Wn)^-1 (sum Wn^T Wo) e."""
    own = sum(w.T @ w for w in edited) + penalty * np.eye(len(row))
    across = sum(new.T @ old for new, old in zip(edited, original, strict=True))
    return np.linalg.solve(own, across @ row)


def triplet(prediction: np.ndarray, safe: np.ndarray, unsafe: np.ndarray, margin: float) -> float:
    """TRCE eq. 8 with means over elements: max(mse(p, safe) - mse(p, unsafe) + margin, 0)."""
    return max(float(((prediction - safe) ** 2).mean() - ((prediction - unsafe) ** 2).mean()) + margin, 0.0)


def guided(empty: np.ndarray, told: np.ndarray, beta: float) -> np.ndarray:
    """TRCE eq. 6 and 7: eps(0) + beta (eps(c) - eps(0))."""
    return empty + beta * (told - empty)
