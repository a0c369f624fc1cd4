"""The arithmetic of attention by word: sums over tokens, maps on another grid, cosines. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64


def merged(
    values: Float[np.ndarray, "t y x token"], columns: Sequence[Sequence[int]]
) -> Float32[np.ndarray, "t word y x"]:
    """Sum over each word's columns of the token axis; NaN for a word without any."""
    maps = [
        values[..., list(own)].sum(-1) if len(own) else np.full(values.shape[:-1], np.nan, np.float32)
        for own in columns
    ]
    return np.stack(maps, axis=1).astype(np.float32)


def resized(maps: Float32[np.ndarray, "t word y x"], size: tuple[int, int]) -> Float32[np.ndarray, "t word y2 x2"]:
    """Maps on another grid over the same image: bilinear between cell middles, means where it is coarser."""
    if maps.shape[2:] == tuple(size):
        return maps
    made = torch.nn.functional.interpolate(
        torch.from_numpy(maps), size=tuple(size), mode="bilinear", align_corners=False, antialias=True
    )
    return np.asarray(made.numpy())


def cosines(x: Float[np.ndarray, "k d"]) -> Float64[np.ndarray, "k k"]:
    """x_i . x_j / (|x_i| |x_j|) of every two rows; NaN where a row is all zero."""
    wide = x.astype(np.float64)
    length = np.linalg.norm(wide, axis=1)
    unit = wide / np.where(length > 0, length, np.nan)[:, None]
    return np.asarray(np.clip(unit @ unit.T, -1, 1))
