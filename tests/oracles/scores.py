"""Slow twins of the scores, written from their definitions: lists, loops, double precision."""

from __future__ import annotations

import math
from statistics import fmean, stdev

Column = list[float]


def pair_differences(target: Column, target_ids: list, reference: Column, reference_ids: list) -> Column:
    """Mean of a pair's target samples minus mean of its reference samples, pairs that both have, in order."""
    found = []
    for pair in sorted(set(target_ids) & set(reference_ids)):
        inside = [x for x, i in zip(target, target_ids, strict=True) if i == pair]
        outside = [x for x, i in zip(reference, reference_ids, strict=True) if i == pair]
        found.append(fmean(inside) - fmean(outside))
    return found


def standardised(differences: Column) -> float:
    """mean / sd."""
    return fmean(differences) / stdev(differences)


def pooled_p(site: list[Column], signs: list[list[int]]) -> Column:
    """p of each neuron of a site: share of flips and neurons with a standardised mean at least as large.

    The t statistic of flipped differences orders like their standardised mean and is what is compared here.
    """
    null = []
    for row in signs:
        for d in site:
            flipped = [s * v for s, v in zip(row, d, strict=True)]
            null.append(standardised(flipped))
    found = []
    for d in site:
        observed = standardised(d)
        found.append((1 + sum(v >= observed - 1e-4 for v in null)) / (1 + len(null)))
    return found


def benjamini_hochberg(p: Column) -> Column:
    """q_j = min over i with p_i >= p_j of p_i * n / rank_i."""
    n = len(p)
    ranks = [sum(other <= mine for other in p) for mine in p]
    raw = [mine * n / rank for mine, rank in zip(p, ranks, strict=True)]
    return [min(1.0, min(r for r, other in zip(raw, p, strict=True) if other >= mine)) for mine in p]


def auroc(inside: Column, outside: Column) -> float:
    """Share of pairs that are in order; ties count half."""
    wins = 0.0
    for x in inside:
        for y in outside:
            wins += 1.0 if x > y else 0.5 if x == y else 0.0
    return wins / (len(inside) * len(outside))


def repeated_auroc(inside: Column, outside: Column, times_in: list[int], times_out: list[int]) -> float:
    """AUROC of the samples written down as often as they were drawn."""
    more = [x for x, k in zip(inside, times_in, strict=True) for _ in range(int(k))]
    less = [x for x, k in zip(outside, times_out, strict=True) for _ in range(int(k))]
    return auroc(more, less) if more and less else math.nan


def selection_frequency(target, reference, halves, screened: int, strength: float) -> list[float]:
    """Signed share of probes that choose each neuron; ``target`` and ``reference``: one row a pair, one sample each."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from probe.compat import l1_logistic

    n = len(target[0])
    votes = [0.0] * n
    for half in halves:
        inside = [m for m, flag in enumerate(half) if flag]
        strengths = [abs(standardised([target[m][j] - reference[m][j] for m in inside])) for j in range(n)]
        columns = sorted(sorted(range(n), key=lambda j: -strengths[j])[:screened])
        rows = [[target[m][j] for j in columns] for m in inside] + [[reference[m][j] for j in columns] for m in inside]
        labels = [1] * len(inside) + [0] * len(inside)
        probe = make_pipeline(StandardScaler(), l1_logistic(strength, seed=0)).fit(rows, labels)
        for j, weight in zip(columns, probe[-1].coef_[0], strict=True):
            votes[j] += int(weight > 0) - int(weight < 0)
    return [v / len(halves) for v in votes]
