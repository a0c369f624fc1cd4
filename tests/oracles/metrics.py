"""Slow twins of probe.metrics, one image, one label, one pair at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np


def shown(scores: dict[str, float], thresholds: dict[str, float], wanted: list[str]) -> float:
    if not wanted:
        return math.nan
    for label in wanted:
        if scores[label] >= thresholds[label]:
            return 1.0
    return math.nan if any(math.isnan(scores[label]) for label in wanted) else 0.0


def broken(scores: dict[str, float]) -> float:
    of_objects = {label: score for label, score in scores.items() if label.split("/")[0] == "object"}
    if any(math.isnan(score) for score in of_objects.values()):
        return math.nan
    return float(max(of_objects, key=of_objects.__getitem__) == "object/none")


def kid(x: list[list[float]], y: list[list[float]]) -> float:
    """Unbiased squared MMD, one pair of rows at a time."""

    def k(a: list[float], b: list[float]) -> float:
        return (sum(i * j for i, j in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(z: list[list[float]]) -> float:
        pairs = [k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        return sum(pairs) / len(pairs)

    across = [k(a, b) for a in x for b in y]
    return within(x) + within(y) - 2 * sum(across) / len(across)


def kid_of_independent(p: list[list[float]], q: list[list[float]]) -> float:
    """The squared MMD itself, of two distributions with independent coordinates whose raw moments 1 to 3 are given.

    (x.y/d + 1)^3 = sum over j of C(3, j) d^-j <x^(j), y^(j)> with j-fold tensor powers, so the squared MMD is the same
    sum over squared distances of mean tensor powers.
    """
    d = len(p)

    def moment(of: list[list[float]], at: tuple[int, ...]) -> float:
        return math.prod(of[i][at.count(i) - 1] for i in set(at))

    return sum(
        math.comb(3, j) / d**j * (moment(p, at) - moment(q, at)) ** 2
        for j in (1, 2, 3)
        for at in itertools.product(range(d), repeat=j)
    )


def normal_moments(mean: float, sd: float) -> list[float]:
    return [mean, mean**2 + sd**2, mean**3 + 3 * mean * sd**2]


def frechet(m: np.ndarray, c: np.ndarray, n: np.ndarray, d: np.ndarray) -> float:
    """Of two normal distributions; the trace of a matrix's square root is the sum of the roots of its eigenvalues."""
    roots = np.sqrt(np.linalg.eigvals(c @ d).astype(complex)).real.sum()
    return float(np.square(m - n).sum() + np.trace(c) + np.trace(d) - 2 * roots)


def feature_distance(x: list[float], y: list[float]) -> float:
    lengths = math.sqrt(sum(i * i for i in x)) * math.sqrt(sum(i * i for i in y))
    return 1 - sum(i * j for i, j in zip(x, y, strict=True)) / lengths if lengths else math.nan
