"""erased_delta: what each neuron passes on in a model, less what it does after an edit, at the same x_t."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Float64
from numpy import ndarray as Array

from probe import _axis
from probe._neuron_map import NeuronMap
from probe._options import validated
from probe.errors import BadInput
from probe.provenance import check_same
from probe.scores import _ranks as ranks
from probe.scores._runs import Recorded, recorded, shared_identity
from probe.scores._window import WindowMeans, measured, pieces_of, sites_within

#: Added to a site's mean before it divides.
EPSILON = 1e-6


@validated
def erased_delta(
    target: Any,
    reference: Any,
    *,
    window: tuple[float, float] = (999, 0),
    branches: Literal["cond", "both"] = "cond",
    reducer: str = "absmean",
    form: Literal["contribution", "raw"] = "contribution",
    normalise: Literal["site", "none"] = "site",
    intervals: int = 1000,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    group: str = "unet",
) -> NeuronMap:
    """How much of a neuron an edit has switched off: mean over samples of a(original) - a(erased), at the same x_t.

        a_j = E_k |activation_kj| * ||W[:, j]||_2     contribution, with each model's own outgoing weights
        a_j = E_k |activation_kj|                     raw
        score_j = mean_s(a_j original - a_j erased) / (mean over the site's neurons of a original + 1e-6)

    The difference of activations on the same prompts is the correlation score reported for P-ESD (arXiv 2405.16534);
    contribution, normalisation by site and intervals are ours. Zeroing a neuron's outgoing weights cannot change its
    own activation at the same x_t, so a neuron whose activation is the same number in every sample has no raw score
    (NaN; the report counts them): nothing before it was changed.

    Args:
        target: the run of the unedited model on the concept's prompts, recorded at a trajectory's x_t
            (``probe.record(..., trajectories=)``): a path, `probe.Run` or dataset, with the reducer.
        reference: the same recording of the erased model: same trajectory, prompts and sites.
        window: timesteps (t_max, t_min), both included, that are averaged.
        branches: the conditional branch, or the mean of both.
        reducer: what is compared; ``absmean`` is mean |x| over image tokens.
        form: see above.
        normalise: ``"none"`` leaves differences in units of the site.
        intervals: how many of the highest neurons get a percentile interval of the paired difference, from whole
            prompts drawn with replacement; 0 for none.
        resamples: of that bootstrap.
        level: of these intervals.
        seed: of the bootstrap.
        group: the group of the runs.

    Evidence: ``target`` and ``reference`` (means over samples), ``ci_low``, ``ci_high`` (NaN beyond ``intervals``).

    Raises `BadInput` for runs that the sampler drew (their x_t differ), of the same edits, or of other samples;
    `HeaderMismatch` naming the key in which they cannot be compared otherwise.
    """
    if resamples < 1 or intervals < 0 or not 0 < level < 1:
        given = f"intervals={intervals}, resamples={resamples}, level={level}"
        expected = "intervals >= 0, resamples >= 1, 0 < level < 1"
        raise BadInput("the bootstrap cannot be done", given=given, expected=expected)
    runs = [recorded(source, group, reducer) for source in (target, reference)]
    _check(runs[0], runs[1], form)
    means = [WindowMeans.of(run, reducer, window, branches) for run in runs]
    fan_out = [run.fan_out.astype(np.float64) if form == "contribution" else np.ones(run.n_neurons) for run in runs]

    n, sites = runs[0].n_neurons, runs[0].sites
    pieces = pieces_of(sites, sum(run.n_samples for run in runs))
    score, sides, scale = np.empty(n), np.empty((2, n)), np.empty(n)
    for piece in pieces:
        values = [part.read(piece) for part in means]
        known = measured(values[0]) & measured(values[1])
        sides[:, piece] = [x[known].mean(0, dtype=np.float64) * f[piece] for x, f in zip(values, fan_out, strict=True)]
        score[piece] = sides[0, piece] - sides[1, piece]
        if form == "raw":
            score[piece][unmoved(values[0][known], values[1][known])] = np.nan
        scale[piece] = site_scale(sides[0, piece], sites_within(sites, piece)) if normalise == "site" else 1.0
    score /= scale
    low, high = np.full((2, n), np.nan)
    chosen = _highest(score, intervals)
    if len(chosen):
        columns = [m.columns(chosen, pieces) * f[chosen] for m, f in zip(means, fan_out, strict=True)]
        limits = paired_limits(columns[0], columns[1], means[0].coordinate("prompt_id"), resamples, level, seed)
        low[chosen], high[chosen] = limits[0] / scale[chosen], limits[1] / scale[chosen]
    unmeasured = int(np.isnan(score).sum())
    options = {
        "window": list(means[0].window),
        "branches": branches,
        "reducer": reducer,
        "form": form,
        "normalise": normalise,
        "intervals": intervals,
        "resamples": resamples,
        "level": level,
        "seed": seed,
        "group": group,
    }
    report: dict[str, Any] = {"samples": runs[0].n_samples, "not_measured": unmeasured, "intervals": len(chosen)}
    if form == "raw" and unmeasured:
        report["not_measured_because"] = "nothing before these neurons was changed: only what they pass on"
    return NeuronMap.build(
        method="erased_delta",
        score=score[None],
        windows=means[0].windows,
        sites=sites,
        identity={
            "method": "erased_delta",
            "options": options,
            "target": runs[0].reference_json(),
            "reference": {**runs[1].reference_json(), "lineage": runs[1].identity["lineage"]},
            **shared_identity(runs[0]),
        },
        fan_out=runs[0].fan_out,
        evidence={
            name: v[None]
            for name, v in zip(("target", "reference", "ci_low", "ci_high"), (*sides, low, high), strict=True)
        },
        report=report,
    )


def site_scale(original: Float[Array, " n"], sites: Iterable[slice]) -> Float64[Array, " n"]:
    """(n,) what a neuron's difference is divided by: the mean of its site's neurons in the original model, + 1e-6."""
    found = np.empty(len(original))
    for site in sites:
        found[site] = np.nanmean(original[site]) + EPSILON
    return found


def unmoved(before: Float32[Array, "s n"], after: Float32[Array, "s n"]) -> Any:
    """(n,) bool: neurons whose value is the same number in every sample."""
    return (before == after).all(0)


def paired_limits(
    before: Array, after: Array, prompts: Array, resamples: int, level: float, seed: int
) -> tuple[Float64[Array, " n"], Float64[Array, " n"]]:
    """Percentile limits of the mean paired difference (s n), whole prompts drawn with replacement."""
    _, index = np.unique(prompts, return_inverse=True)
    difference = (before - after).astype(np.float32)
    known = measured(difference)
    sums = np.zeros((index.max() + 1, difference.shape[1]), np.float32)
    np.add.at(sums, index[known], difference[known])
    counts = np.bincount(index[known], minlength=len(sums))
    return ranks.mean_limits(sums, counts, resamples, level, seed)


def _highest(score: np.ndarray, most: int) -> np.ndarray:
    """Positions of the highest scores in ascending order; NaN are never among them."""
    known = np.flatnonzero(~np.isnan(score))
    return np.sort(known[np.argsort(-score[known], kind="stable")[:most]])


def _check(target: Recorded, reference: Recorded, form: str) -> None:
    given = [run.identity.get("inputs") for run in (target, reference)]
    fix = "probe.record(pipe, None, trajectories=..., out=...) once without the edit and once with it"
    if None in given:
        raise BadInput("the runs must be recorded at the same x_t", given="a run that the sampler drew", fix=fix)
    if given[0] != given[1]:
        raise BadInput("the runs were recorded at different x_t", given=f"{given[1]}", expected=f"{given[0]}", fix=fix)
    edits = [run.identity["lineage"] for run in (target, reference)]
    if edits[0] == edits[1] and target.model == reference.model:  # an exported model names no edit
        raise BadInput("both runs are of the same model", given=f"edits in force: {edits[0] or 'none'}", fix=fix)
    comparable = [
        {key: value for key, value in run.comparable.items() if key not in ("lineage", "weights")}
        for run in (target, reference)
    ]
    check_same(comparable[0], comparable[1], "runs of the model and of the erased one cannot be compared", fix=fix)
    samples = [run.reference_json()["samples"] for run in (target, reference)]
    check_same(samples[0], samples[1], "runs of the model and of the erased one have different samples", fix=fix)
    if form == "contribution" and np.isnan(target.fan_out).any():
        site = next(
            site.name
            for site, start in zip(target.sites, _axis.offsets(target.sites), strict=False)
            if np.isnan(target.fan_out[start])
        )
        raise BadInput("a site has no outgoing weights", given=site, fix='form="raw", or sites of kind ffn')
