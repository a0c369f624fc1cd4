"""Slow twin of the edit algebra: one weight at a time, written from docs/formats.md."""

from __future__ import annotations

import numpy as np


def edited(weight: np.ndarray, masks: list[np.ndarray], deltas: list[np.ndarray], new: np.ndarray | None) -> np.ndarray:
    """W' = where(OR of masks, 0, Replace or W + sum of Deltas in float32), rounded once to the dtype of W."""
    result = np.empty_like(weight)
    for place in np.ndindex(*weight.shape):
        value = np.float32(weight[place] if new is None else new[place])
        for delta in deltas:
            value = np.float32(value + np.float32(delta[place]))
        if any(mask[place] for mask in masks):
            value = np.float32(0)
        result[place] = value.astype(weight.dtype)
    return result
