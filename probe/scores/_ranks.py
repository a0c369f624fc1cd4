"""Pure statistics of many neurons at once: AUROC, ties counted half, and bootstraps by prompt.

Shapes: s sample, g group of samples, n neuron, c cluster (prompt), r resample.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int
from numpy import ndarray as Array

_AT_ONCE = 1 << 19  # values ranked together: they stay in the cache


def rank_sums(x: Float32[Array, "s n"], group: Int[Array, " s"], groups: int) -> Float64[Array, "g n"]:
    """Sum of the ranks (1 = lowest, ties share their mean rank) of each group's samples, neuron by neuron.

    NaN for neurons with any NaN.
    """
    sums = np.empty((x.shape[1], groups))
    width = max(1, _AT_ONCE // max(1, len(x)))
    for start in range(0, x.shape[1], width):
        part = np.ascontiguousarray(x[:, start : start + width].T)
        order = np.argsort(part, axis=1)
        ranks = _tied_ranks(np.take_along_axis(part, order, axis=1))
        places = group[order] + groups * np.arange(len(part))[:, None]
        size = len(part) * groups
        counted = np.bincount(places.ravel(), weights=ranks.ravel(), minlength=size).reshape(-1, groups)
        counted[np.isnan(part).any(1)] = np.nan
        sums[start : start + width] = counted
    return sums.T


def _tied_ranks(ordered: Float32[Array, "n s"]) -> Float64[Array, "n s"]:
    """Ranks of values in ascending order: of equal neighbours the mean of their places."""
    count = ordered.shape[1]
    place = np.arange(1, count + 1, dtype=np.float64)
    new = np.ones(ordered.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    if new.all():
        return np.broadcast_to(place, ordered.shape)
    last = np.ones(ordered.shape, bool)
    last[:, :-1] = new[:, 1:]
    first_place = np.maximum.accumulate(np.where(new, place, 0), axis=1)
    last_place = np.minimum.accumulate(np.where(last, place, count + 1)[:, ::-1], axis=1)[:, ::-1]
    return (first_place + last_place) / 2


def one_vs_rest(x: Float32[Array, "s n"], group: Int[Array, " s"], groups: int) -> Float64[Array, "g n"]:
    """AUROC of each group's samples against all others': P(x_in > x_out) + P(x_in = x_out) / 2.

    With R the rank sum of the k samples of a group (Mann and Whitney 1947): (R - k (k + 1) / 2) / (k (s - k)). NaN for
    a group that is empty or all there is.
    """
    inside = np.bincount(group, minlength=groups).astype(np.float64)[:, None]
    pairs = inside * (len(x) - inside)
    wins = rank_sums(x, group, groups) - inside * (inside + 1) / 2
    return np.divide(wins, pairs, out=np.full(wins.shape, np.nan), where=pairs > 0)


def cluster_weights(clusters: Array, resamples: int, rng: np.random.Generator) -> Float32[Array, "s r"]:
    """How often each sample appears when whole clusters are drawn with replacement, as many as there are."""
    names, index = np.unique(clusters, return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)  # (r c)
    return np.ascontiguousarray(drawn.T.astype(np.float32)[index])


def mean_limits(
    sums: Float32[Array, "c n"], counts: Int[Array, " c"], resamples: int, level: float, seed: int
) -> tuple[Float64[Array, " n"], Float64[Array, " n"]]:
    """Percentile limits of the mean over samples, whole clusters drawn with replacement.

    ``sums`` are those of each cluster's samples, ``counts`` their numbers.
    """
    weights = cluster_weights(np.arange(len(sums)), resamples, np.random.default_rng(seed)).T  # (r c)
    numbers = (weights @ counts.astype(np.float32))[:, None]
    means = np.divide(weights @ sums, numbers, out=np.full((resamples, sums.shape[1]), np.nan), where=numbers > 0)
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def weighted_auroc(
    inside: Float32[Array, " a"],
    outside: Float32[Array, " b"],
    inside_weights: Float32[Array, "a r"],
    outside_weights: Float32[Array, "b r"],
) -> Float64[Array, " r"]:
    """AUROC of one neuron under every column of weights, all weights of a sample at once.

    sum_i v_i (sum_{o_j < x_i} w_j + sum_{o_j = x_i} w_j / 2) / (sum_i v_i sum_j w_j)
    """
    order = np.argsort(outside, kind="stable")
    running = np.zeros((len(outside) + 1, outside_weights.shape[1]), np.float32)
    np.cumsum(outside_weights[order], axis=0, out=running[1:])
    ordered = outside[order]
    below, through = (running[np.searchsorted(ordered, inside, side)] for side in ("left", "right"))
    below += through
    wins = np.einsum("ar,ar->r", inside_weights, below, dtype=np.float64) / 2
    total = inside_weights.sum(0, dtype=np.float64) * running[-1]
    return np.divide(wins, total, out=np.full(wins.shape, np.nan), where=total > 0)
