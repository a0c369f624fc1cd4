"""What an edit takes from a neuron, and what an attack gives back: the maths of `sensitivity`.

Published for P-ESD (Yang et al., arXiv 2405.16534) is a comparison of two models on the same prompts: the difference of
their mean absolute activations. A neuron whose *outgoing* weights were edited is as active as before; what it hands on
changes. So the quantity of the workbench is the contribution, activation times the norm of the outgoing weights as they
are under the edit (ours); the raw form stands beside it.

Shapes: s sample, t step, n neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from probe.errors import BadInput

#: What a neuron is measured by: E|a_j| ||W'[:, j]||, with the outgoing weights in force, or E|a_j|.
QUANTITIES = ("contribution", "raw")


class Ratio(NamedTuple):
    """A ratio of sums with its interval, and the number of clusters behind it.

    Where the denominator may be 0 the interval is unbounded (-inf, inf), as Fieller's is; the value is NaN where it is
    not above 0. Without any cluster all three are NaN.
    """

    value: float
    low: float
    high: float
    n: int


def contribution(absmean: Float[Array, "*axes n"], fan_out: Float[Array, " n"]) -> Float[Array, "*axes n"]:
    """E|a_j| ||W[:, j]||: how much a neuron adds to its layer's output, at most (ours)."""
    return absmean * fan_out


def fall(original: Float[Array, "s t n"], edited: Float[Array, "s t n"]) -> Float[Array, "t n"]:
    """rho_j(t) = mean over samples of (original - edited), both at the same x_t: what the edit took."""
    return _mean(original - edited)


def rise(plain: Float[Array, "s t n"], attacked: Float[Array, "s t n"]) -> Float[Array, "t n"]:
    """delta_j(t) = mean over samples of (attacked - plain), both on the edited model: what the attack gives back."""
    return _mean(attacked - plain)


def reactivation(
    given: Float[Array, " s"],
    taken: Float[Array, " s"],
    clusters: Sequence[object],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Ratio:
    """sum of what an attack gave back over sum of what the edit took (ours), with a cluster bootstrap.

    0: the neurons stay as the edit left them; 1: they are back where they were. ``given`` and ``taken`` are sums over
    the neurons of a group, one a sample; prompts (``clusters``) are drawn with replacement, and both sums are taken of
    the same draw. A mean of single ratios would be ruled by samples whose denominator is near 0.
    """
    known = np.isfinite(given) & np.isfinite(taken)
    names = [name for name, ok in zip(clusters, known, strict=True) if ok]
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    if not index:
        return Ratio(np.nan, np.nan, np.nan, 0)
    at = np.array([index[name] for name in names])
    above, below = (np.bincount(at, weights=x[known], minlength=len(index)) for x in (given, taken))
    value = float(above.sum() / below.sum()) if below.sum() > 0 else np.nan
    unbounded = Ratio(value, -np.inf, np.inf, len(index))
    if len(index) < 2 or np.isnan(value):
        return unbounded
    drawn = np.random.default_rng(seed).integers(len(index), size=(resamples, len(index)))
    sums = above[drawn].sum(1), below[drawn].sum(1)
    if (sums[1] <= 0).mean() > (1 - level) / 2:  # the denominator is not known to be above 0
        return unbounded
    ratios = sums[0][sums[1] > 0] / sums[1][sums[1] > 0]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Ratio(value, float(low), float(high), len(index))


def highest(score: Float[Array, " n"], count: int) -> Bool[Array, " n"]:
    """The ``count`` neurons of the highest scores above 0. `BadInput` where there are fewer."""
    ranked = np.where(np.isfinite(score) & (score > 0), score, -np.inf)
    if (there := int(np.isfinite(ranked).sum())) < count:
        given = f"{there} of {len(score)} neurons contribute less on the edited model"
        raise BadInput(
            "the edit takes from fewer neurons than are asked for", given=given, expected=f"at least {count}"
        )
    found = np.zeros(len(score), bool)
    found[np.argsort(-ranked, kind="stable")[:count]] = True
    return found


def matched(
    chosen: Bool[Array, " n"], level: Float[Array, " n"], sites: Int[Array, " n"], seed: int
) -> Bool[Array, " n"]:
    """As many other neurons, each from the site of a chosen one and among the ten nearest to it in ``level`` (ours).

    A neuron is taken once; where a site has no more others, fewer are found.
    """
    rng, found = np.random.default_rng(seed), np.zeros(len(chosen), bool)
    for i in np.flatnonzero(chosen):
        free = np.flatnonzero(~chosen & ~found & (sites == sites[i]) & np.isfinite(level))
        if len(free):
            near = free[np.argsort(np.abs(level[free] - level[i]), kind="stable")[:10]]
            found[rng.choice(near)] = True
    return found


def _mean(values: Float[Array, "s t n"]) -> Float[Array, "t n"]:
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(0, dtype=np.float64)
    return np.divide(total, known.sum(0), out=np.full(total.shape, np.nan), where=known.any(0))
