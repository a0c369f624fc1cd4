"""Sensitivity written from its definitions, one number at a time."""

from __future__ import annotations

import numpy as np


def ratio_of_sums(given, taken) -> float:
    return sum(map(float, given)) / sum(map(float, taken))


def mean_difference(a, b, fan_out) -> np.ndarray:
    """(t, n): mean over samples of the difference of contributions."""
    samples, steps, neurons = np.shape(a)
    found = np.zeros((steps, neurons))
    for t in range(steps):
        for n in range(neurons):
            found[t, n] = sum(fan_out[n] * (a[s][t][n] - b[s][t][n]) for s in range(samples)) / samples
    return found
