"""Slow twins of probe.stats, written from the definitions: one loop per resample, one draw per cluster."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from statistics import NormalDist


def wilson_limits(k: int, n: int, level: float) -> tuple[float, float]:
    """Roots p of (k/n - p)^2 = z^2 p (1 - p) / n, found by bisection on either side of k/n."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = k / n

    def excess(p: float) -> float:
        return (share - p) ** 2 - z * z * p * (1 - p) / n

    def root(inside: float, outside: float) -> float:
        for _ in range(200):
            middle = (inside + outside) / 2
            if excess(middle) <= 0:
                inside = middle
            else:
                outside = middle
        return inside

    return root(share, 0.0), root(share, 1.0)


def bootstrap_limits(
    values: list[float], clusters: list, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile limits of the mean when whole clusters are drawn with replacement."""
    groups = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        if not math.isnan(value):
            groups[cluster].append(value)
    members, rng = list(groups.values()), random.Random(seed)
    means = []
    for _ in range(resamples):
        drawn = [value for _ in members for value in rng.choice(members)]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return _percentile(means, (1 - level) / 2), _percentile(means, (1 + level) / 2)


def _percentile(ordered: list[float], q: float) -> float:
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
