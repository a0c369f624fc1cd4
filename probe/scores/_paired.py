"""Pure statistics of pairs: differences, their standardised mean, and its distribution under flipped signs.

Shapes: s sample, m pair, f sign flip, n neuron.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Float64
from numpy import ndarray as Array

#: Statistics this much apart (relative to the largest possible) count as equal: matrix products round differently.
_EQUAL = 1e-5


def pair_means(x: Float32[Array, "s n"], ids: Array, pairs: Array) -> Float32[Array, "m n"]:
    """Mean over the samples of each pair; ``ids`` (s,) names the pair of a sample, ``pairs`` (m,) the wanted ones."""
    from scipy.sparse import csr_array

    place = {pair: i for i, pair in enumerate(pairs.tolist())}
    rows = np.array([place.get(pair, -1) for pair in ids.tolist()])
    used = np.flatnonzero(rows >= 0)
    counts = np.bincount(rows[used], minlength=len(pairs))
    weights = (1 / counts[rows[used]]).astype(np.float32)
    return np.asarray(csr_array((weights, (rows[used], used)), shape=(len(pairs), len(x))) @ x)


def common_pairs(a: Array, b: Array) -> Array:
    """(m,) the pairs that both lists name, in ascending order."""
    return np.intersect1d(a, b)


def standardised_mean(d: Float32[Array, "m n"]) -> Float64[Array, " n"]:
    """mean(d) / sd(d) over pairs, sd with m - 1; 0 where every difference is 0.

    A sd below a millionth of the mean is rounding and counts as that.
    """
    mean = d.mean(0, dtype=np.float64)
    variance = np.maximum(np.einsum("mn,mn->n", d, d, dtype=np.float64) - len(d) * mean**2, 0) / (len(d) - 1)
    sd = np.maximum(np.sqrt(variance), 1e-6 * np.abs(mean))
    return np.divide(mean, sd, out=np.zeros_like(mean), where=sd != 0)


def random_signs(flips: int, pairs: int, seed: int) -> Float32[Array, "f m"]:
    """+1 or -1 with equal chances."""
    bits = np.random.default_rng(seed).integers(0, 2, size=(flips, pairs), dtype=np.int8)
    return (2 * bits - 1).astype(np.float32)


def sign_flip_p(d: Float32[Array, "m n"], signs: Float32[Array, "f m"]) -> Float64[Array, " n"]:
    """One-sided p-values of mean(d) > 0, the null pooled over flips and over the neurons of one site.

    Under the null a pair's difference is as likely as its negative. The statistic is

        u_j = sum_m s_m d_mj / sqrt(sum_m d_mj^2),

    which grows with the standardised mean and has the same scale for every neuron, so that all f x n flipped values
    form one null distribution:

        p_j = (1 + number of flipped u >= u_j) / (1 + f n')

    n' counts the neurons with any difference; those without have p = 1 and are not pooled. NaN where d has NaN.
    """
    length = np.sqrt(np.einsum("mn,mn->n", d, d, dtype=np.float64))
    live = length > 0  # false for NaN too
    unit = (d[:, live] / length[live]).astype(np.float32)
    null = np.sort(signs @ unit, axis=None)
    tolerance = _EQUAL * np.sqrt(len(d))
    at_least = null.size - np.searchsorted(null, unit.sum(0) - np.float32(tolerance), side="left")
    p = np.where(np.isnan(length), np.nan, 1.0)
    p[live] = (1 + at_least) / (1 + null.size)
    return p


def smallest_p(signs: Float32[Array, "f m"], neurons: int) -> float:
    """The p-value of a neuron that exceeds every flipped value but its own unflipped ones."""
    unflipped = int((signs > 0).all(1).sum())
    return (1 + unflipped) / (1 + len(signs) * max(1, neurons))


def benjamini_hochberg(p: Float64[Array, " n"]) -> Float64[Array, " n"]:
    """q-values of all neurons together (Benjamini and Hochberg 1995); NaN stays NaN."""
    from scipy.stats import false_discovery_control

    q, known = np.full(p.shape, np.nan), ~np.isnan(p)
    if known.any():
        q[known] = false_discovery_control(p[known], method="bh")
    return q


def subset_contrasts(d: Float32[Array, "m n"], subsets: Float32[Array, "k m"]) -> Float[Array, "k n"]:
    """The standardised mean of d within each subset of the pairs; ``subsets`` holds 0 and 1."""
    counts = subsets.sum(1, keepdims=True).astype(np.float64)
    mean = (subsets @ d).astype(np.float64) / counts
    squares = (subsets @ (d * d)).astype(np.float64)
    variance = np.maximum(squares - counts * mean**2, 0) / (counts - 1)
    sd = np.maximum(np.sqrt(variance), 1e-6 * np.abs(mean))
    return np.divide(mean, sd, out=np.zeros_like(mean), where=sd != 0)
