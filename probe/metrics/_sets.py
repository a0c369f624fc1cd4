"""How far pictures moved, by features: distances between two sets, and between the pictures of a pair. Pure functions.

A distance between sets needs a floor: two sets of pictures by the same model are not at distance 0 either, and with few
pictures they are far from it. So none of these numbers says anything alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def kid(x: Float[np.ndarray, "s d"], y: Float[np.ndarray, "r d"]) -> float:
    """Kernel distance of two sets of features: squared MMD, unbiased, with the kernel (x.y / d + 1)^3.

    Unbiased at any number of pictures, so it may be below 0 where the sets agree. NaN with fewer than two rows in
    either. Source: KID of Binkowski et al. 2018 ("Demystifying MMD GANs"), on other features than Inception's.
    """
    m, n, d = len(x), len(y), x.shape[1]
    if min(m, n) < 2:
        return np.nan
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (m * (m - 1)) + (yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2 * xy.mean())


def frechet(x: Float[np.ndarray, "s d"], y: Float[np.ndarray, "r d"]) -> float:
    """Frechet distance of normal distributions fitted to two sets: |m - m'|^2 + Tr(C + C' - 2 (C C')^(1/2)).

    Covariances have the divisor n - 1. Biased upwards, the more the fewer rows: compare values at one number of
    pictures only. NaN with fewer than two rows in either. Source: FID of Heusel et al. 2017, equation 6, on other
    features than Inception's.
    """
    if min(len(x), len(y)) < 2:
        return np.nan
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))  # C = a'a, C' = b'b
    # Tr (C C')^(1/2) is the sum of singular values of a b', and of r s' where a = q r and b = q' s
    r, s = (np.asarray(np.linalg.qr(z, mode="r")) for z in (a, b))
    shared = np.linalg.norm(r @ s.T, "nuc")
    apart = np.square(x.mean(0) - y.mean(0)).sum()
    return float(max(0.0, apart + np.square(a).sum() + np.square(b).sum() - 2 * shared))


def feature_distance(x: Float[np.ndarray, "s d"], y: Float[np.ndarray, "s d"]) -> Float[np.ndarray, " s"]:
    """1 - cos(x, y) for each pair of rows; NaN where a feature is NaN or has no length."""
    with np.errstate(invalid="ignore", divide="ignore"):
        u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
        return np.asarray(np.square(u - v).sum(1) / 2)  # exactly 0 for a pair of equals
