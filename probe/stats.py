"""Intervals for the numbers in a table: Wilson for rates, cluster bootstrap by prompt for other means, halves for sets.

Images of one prompt resemble each other, so prompts, not images, are what is resampled. Failed measurements are NaN:
they are left out of the estimate and counted, never silently turned into zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import binomtest

from probe.errors import BadInput

Numbers = Sequence[float | int] | np.ndarray
_BLOCK = 1 << 21  # draws held at once; 16 MB


class Interval(NamedTuple):
    """A mean with its confidence interval.

    ``n`` measurements entered it and ``n_failed`` were NaN; ``kind`` names the method: ``wilson``,
    ``cluster_bootstrap``, ``half_samples`` (not a mean, but a statistic of all) or ``none``. With n = 0 all three
    numbers are NaN.
    """

    value: float
    low: float
    high: float
    n: int
    n_failed: int
    kind: str


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of the rate k / n.

    Raises:
        BadInput: k is not within 0..n, or level not within (0, 1).

    """
    _check_level(level)
    if not 0 <= k <= n:
        raise BadInput("a rate needs 0 <= hits <= trials", given=f"k={k}, n={n}")
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0, 0, "none")
    found = binomtest(int(k), int(n)).proportion_ci(confidence_level=level, method="wilson")
    return Interval(k / n, float(found.low), float(found.high), int(n), 0, "wilson")


def cluster_bootstrap(
    values: Numbers,
    clusters: Iterable[Any],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Mean of ``values`` (s,) with a percentile interval from resampling whole clusters (s,) with replacement.

    A replicate is the sum of the drawn clusters' values over the number of their values, so large clusters weigh more,
    as they do in the mean itself.

    Where all cluster means agree, every replicate is the same and the bootstrap would report an interval of width zero.
    If the values are known to lie within ``bounds`` (a, b), the interval is then the range the mean c could take if the
    share u of the clusters lay at a bound, u being Wilson's upper limit of 0 in g clusters (ours): from c - u (c - a)
    to c + u (b - c). For a rate of 0 or 1 this *is* Wilson's interval on the clusters. Without bounds the interval of a
    single cluster is unknown (NaN) and that of more is [c, c].

    Raises:
        BadInput: shapes differ, a value is infinite, or level or resamples make no sense.

    """
    _check_level(level)
    if resamples < 1:
        raise BadInput("a bootstrap needs at least one resample", given=resamples)
    x = np.asarray(values, dtype=np.float64)
    names = list(clusters)
    if x.ndim != 1 or len(names) != x.size:
        raise BadInput("every value needs one cluster", given=f"values {x.shape}, {len(names)} clusters")
    if np.isinf(x).any():
        raise BadInput("a measurement is infinite", expected="finite numbers, or NaN where a measurement failed")
    good = ~np.isnan(x)
    n, n_failed = int(good.sum()), int((~good).sum())
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0, n_failed, "none")

    sums, counts = _by_cluster(x[good], [name for name, ok in zip(names, good, strict=True) if ok])
    mean = float(sums.sum() / counts.sum())
    if np.ptp(sums / counts) <= 1e-12 * max(1.0, abs(mean)):
        low, high = _unseen(mean, sums.size, level, bounds)
    else:
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(_replicates(sums, counts, resamples, seed), tails)
    return Interval(mean, float(low), float(high), n, n_failed, "cluster_bootstrap")


def rate(
    hits: Numbers,
    clusters: Iterable[Any],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Share of ``hits`` (s,) of 0, 1 or NaN: Wilson where every cluster has one measurement, else cluster bootstrap.

    Raises:
        BadInput: a hit is neither 0, 1 nor NaN.

    """
    x = np.asarray(hits, dtype=np.float64)
    good = ~np.isnan(x)
    if not np.isin(x[good], (0.0, 1.0)).all():
        raise BadInput("a rate is a mean of hits", expected="0, 1, or NaN where the judge failed")
    names = list(clusters)
    if len(names) == x.size and len({name for name, ok in zip(names, good, strict=True) if ok}) == good.sum():
        found = wilson(int(x[good].sum()), int(good.sum()), level)
        return found._replace(n_failed=int((~good).sum()))
    return cluster_bootstrap(x, names, level=level, resamples=resamples, seed=seed, bounds=(0.0, 1.0))


def paired_difference(
    original: Numbers,
    edited: Numbers,
    clusters: Iterable[Any],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Mean of edited - original (s,) over the same samples, with cluster bootstrap; a loss is its negative.

    A pair with a NaN on either side is left out and counted. ``bounds`` are those of one measurement, not of the
    difference.

    Raises:
        BadInput: as `cluster_bootstrap`.

    """
    before, after = np.asarray(original, dtype=np.float64), np.asarray(edited, dtype=np.float64)
    if before.shape != after.shape:
        raise BadInput("a paired difference needs the same samples twice", given=f"{before.shape}, {after.shape}")
    span = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    return cluster_bootstrap(after - before, clusters, level=level, resamples=resamples, seed=seed, bounds=span)


def _by_cluster(
    x: Float64[np.ndarray, " s"], names: list[Any]
) -> tuple[Float64[np.ndarray, " g"], Int64[np.ndarray, " g"]]:
    """Sum and number of the values of each cluster, in order of first appearance."""
    first: dict[Any, int] = {}
    index = np.array([first.setdefault(name, len(first)) for name in names])
    return np.bincount(index, weights=x), np.bincount(index)


def _replicates(
    sums: Float64[np.ndarray, " g"], counts: Int64[np.ndarray, " g"], resamples: int, seed: int
) -> Float64[np.ndarray, " r"]:
    """Bootstrap means: g of the g clusters are drawn with replacement, r times."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // sums.size)
    parts = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, sums.size, size=(min(rows, resamples - start), sums.size))
        parts.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(parts)


def _unseen(mean: float, g: int, level: float, bounds: tuple[float, float] | None) -> tuple[float, float]:
    """The interval where all clusters agree; see `cluster_bootstrap`."""
    if bounds is None:
        return (np.nan, np.nan) if g == 1 else (mean, mean)
    share = wilson(0, g, level).high
    return mean - share * (mean - bounds[0]), mean + share * (bounds[1] - mean)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise BadInput("a confidence level lies between 0 and 1", given=level, fix="0.95")


def half_samples(
    statistic: Callable[..., float],
    sets: Sequence[np.ndarray],
    clusters: Sequence[Sequence[Any]],
    *,
    average: bool = False,
    subsets: int = 100,
    largest: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """``statistic(*sets)`` with an interval from its values on random halves of the clusters.

    For statistics of whole sets, such as distances between them, whose values with repeated rows, and so under the
    bootstrap, are others. Each subset holds the same half of the clusters in every set, at most ``largest`` rows of the
    first. By sampling theory the standard error is sd sqrt(h / (g - h)) for subsets of h of g clusters: at halves, the
    standard deviation itself (Shao & Wu 1989, the delete-half jackknife). The interval is normal.

    Args:
        statistic: takes one array of rows for each of ``sets``; NaN where these are too few.
        sets: arrays (rows, ...), already without what failed.
        clusters: the cluster of every row, for each of ``sets``.
        average: the value is the mean over subsets (for an unbiased statistic); else that of all rows.
        subsets: number of subsets.
        largest: rows of the first set in a subset.
        level: of confidence.
        seed: of the choice of subsets.

    Returns:
        ``kind`` is ``half_samples`` and ``n`` the rows of the first set. With fewer than two clusters, or where subsets
        are too small for the statistic, the limits are NaN and the value is that of all rows.

    """
    _check_level(level)
    if subsets < 2:
        raise BadInput("a spread needs at least two subsets", given=subsets)
    n = len(sets[0])
    whole = float(statistic(*sets))
    place = {name: i for i, name in enumerate(dict.fromkeys(clusters[0]))}
    g = len(place)
    own = [np.array([place.get(name, g) for name in names], dtype=int) for names in clusters]
    h = min(g // 2, max(1, largest * g // max(1, n)))
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets if h else 0):
        drawn = np.zeros(g + 1, dtype=bool)
        drawn[rng.choice(g, h, replace=False)] = True
        values.append(statistic(*(rows[drawn[at]] for rows, at in zip(sets, own, strict=True))))
    kind = "half_samples" if n else "none"
    if not values or not np.isfinite(values).all():
        return Interval(whole, np.nan, np.nan, n, 0, kind)
    value = float(np.mean(values)) if average else whole
    reach = NormalDist().inv_cdf((1 + level) / 2) * float(np.std(values, ddof=1)) * np.sqrt(h / (g - h))
    return Interval(value, value - reach, value + reach, n, 0, kind)
