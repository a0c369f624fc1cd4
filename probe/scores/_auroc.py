"""auroc: how well one neuron by itself separates samples of the concept from reference samples."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from probe._neuron_map import NeuronMap
from probe._options import validated
from probe.errors import BadInput
from probe.scores import _ranks as ranks
from probe.scores._runs import check_comparable, identity_of, recorded
from probe.scores._shown import only_those_shown
from probe.scores._window import WindowMeans, measured, pieces_of

FEWEST_PROMPTS = 10


@validated
def auroc(
    target: Any,
    reference: Any,
    *,
    window: tuple[float, float] = (999, 0),
    branches: Literal["cond", "both"] = "cond",
    reducer: str = "absmean",
    intervals: int = 1000,
    resamples: int = 1000,
    level: float = 0.95,
    only_shown: bool | float = False,
    seed: int = 0,
    group: str = "unet",
) -> NeuronMap:
    """Probability that a target sample has the larger window mean than a reference sample, ties counted half.

    0.5 says nothing, 1 separates, 0 separates the other way round (the neuron falls silent with the concept).

    Args:
        target, reference: a path, `probe.Run` or dataset, with the reducer.
        window: timesteps (t_max, t_min), both included, that are averaged.
        branches: the conditional branch, or the mean of both.
        reducer: what is compared; ``absmean`` is mean |x| over image tokens.
        intervals: how many of the highest neurons get a percentile interval, from whole prompts drawn with replacement
            on either side; 0 for none.
        resamples: of that bootstrap.
        level: of these intervals.
        only_shown: count only target samples on which the judge saw the concept: True for the judge's own threshold, or
            the score from which on it did.
        seed: of the bootstrap.
        group: the group of the runs; a text encoder's has no steps.

    Evidence: ``target`` and ``reference`` (means over samples), ``ci_low``, ``ci_high`` (NaN beyond ``intervals``).

    Raises `BadInput` for fewer than two samples, or fewer than 10 prompts where intervals are wanted, on a side, for a
    window without steps and runs without the reducer; `HeaderMismatch` naming the key in which the runs cannot be
    compared; `StoreDamaged` for chunks that cannot be read.
    """
    if resamples < 1 or intervals < 0 or not 0 < level < 1:
        given = f"intervals={intervals}, resamples={resamples}, level={level}"
        raise BadInput(
            "the bootstrap cannot be done", given=given, expected="intervals >= 0, resamples >= 1, 0 < level < 1"
        )
    runs = [recorded(source, group, reducer) for source in (target, reference)]
    check_comparable(*runs)
    runs[0] = only_those_shown(runs[0], only_shown)
    means = [WindowMeans.of(run, reducer, window, branches) for run in runs]
    for part in means:
        _enough(part, intervals)

    n, sites = runs[0].n_neurons, runs[0].sites
    pieces = pieces_of(sites, sum(run.n_samples for run in runs))
    score, sides = np.empty(n), np.empty((2, n))
    for piece in pieces:
        values = [x[measured(x)] for x in (part.read(piece) for part in means)]
        labels = np.repeat([0, 1], [len(x) for x in values])
        score[piece] = ranks.one_vs_rest(np.concatenate(values), labels, 2)[0]
        sides[:, piece] = [x.mean(0, dtype=np.float64) if len(x) else np.nan for x in values]
    low, high = np.full((2, n), np.nan)
    chosen = _highest(score, intervals)
    if len(chosen):
        columns = [part.columns(chosen, pieces) for part in means]
        low[chosen], high[chosen] = _limits(columns, means, resamples, level, seed)
    options = {
        "window": list(means[0].window),
        "branches": branches,
        "reducer": reducer,
        "intervals": intervals,
        "resamples": resamples,
        "level": level,
        "only_shown": only_shown,
        "seed": seed,
        "group": group,
    }
    evidence = {"target": sides[0], "reference": sides[1], "ci_low": low, "ci_high": high}
    return NeuronMap.build(
        method="auroc",
        score=score[None],
        windows=means[0].windows,
        sites=sites,
        identity=identity_of("auroc", options, *runs),
        fan_out=runs[0].fan_out,
        evidence={name: values[None] for name, values in evidence.items()},
        report={"intervals": len(chosen), "not_measured": int(np.isnan(score).sum())},
    )


def _enough(means: WindowMeans, intervals: int) -> None:
    prompts = len(np.unique(means.coordinate("prompt_id")))
    if means.run.n_samples < 2 or (intervals and prompts < FEWEST_PROMPTS):
        raise BadInput(
            "too few samples for the statistics asked for",
            given=f"{means.run.n_samples} samples of {prompts} prompts",
            expected=f"at least {FEWEST_PROMPTS} prompts in target and reference"
            if intervals
            else "at least 2 samples",
            fix="record more prompts" + (", or do without intervals (intervals=0)" if intervals else ""),
        )


def _highest(score: np.ndarray, count: int) -> np.ndarray:
    """Places of the highest scores, ascending."""
    order = np.argsort(-score, kind="stable")[:count]
    return np.sort(order[~np.isnan(score[order])])


def _limits(
    columns: list[np.ndarray], means: list[WindowMeans], resamples: int, level: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile limits of the AUROC of each column."""
    rng = np.random.default_rng(seed)
    known = [measured(x) for x in columns]
    weights = [
        ranks.cluster_weights(part.coordinate("prompt_id")[k], resamples, rng)
        for part, k in zip(means, known, strict=True)
    ]
    inside, outside = (np.ascontiguousarray(x[k].T) for x, k in zip(columns, known, strict=True))
    tails = [(1 - level) / 2, (1 + level) / 2]
    limits = [np.quantile(ranks.weighted_auroc(a, b, *weights), tails) for a, b in zip(inside, outside, strict=True)]
    low, high = np.array(limits).T
    return low, high
