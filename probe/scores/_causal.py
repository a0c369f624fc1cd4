"""causal: what the judge sees of the concept when one neuron at a time is changed, on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from probe import _axis, stats
from probe._intervention import REDUCER, Intervention, intervention
from probe._neuron_map import NeuronMap
from probe._options import validated
from probe._progress import progress_bar
from probe._recorded import Recorded, recorded
from probe.errors import BadInput
from probe.protocols import Progress
from probe.scores._auroc import auroc
from probe.scores._candidates import Candidates, chosen
from probe.scores._contrast import contrast
from probe.scores._given import Given, given, identity_with
from probe.scores._gradient import fan_out, gradient
from probe.scores._judge import judge_of, judged, labels_for
from probe.scores._ledger import Ledger
from probe.scores._linear import linear
from probe.scores._wanda import wanda

FEWEST_PROMPTS = 5
EVIDENCE = ("target", "reference", "ci_low", "ci_high", "rate_before", "rate_after", "n")


@validated
def causal(
    target: Any,
    reference: Any = None,
    *,
    pipe: Any,
    concept: Any,
    detector: Any = "emoji_cnn",
    candidates: Any = None,
    from_each: int = 16,
    most: int = 64,
    n_samples: int = 12,
    mode: Literal["mean", "zero", "scale"] = "mean",
    value: float | None = None,
    source: Any = None,
    window: tuple[float, float] | None = None,
    branch: Literal["cond", "uncond"] | None = None,
    steps: int = 30,
    guidance: float = 7.5,
    batch_size: int = 12,
    log: str | Path | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress = True,
) -> NeuronMap:
    """How much of the concept the judge sees less when a neuron is ablated, or more when it is amplified (ours).

    Every candidate by itself is changed while the model draws the same samples as without the change:

        score_j = mean over samples of  log-odds(as it is) - log-odds(j ablated)

    in the judge's log-odds of the concept; where ``value`` above 1 amplifies, after - before. Neurons that are no
    candidates have the score NaN.

    Args:
        target: samples with the concept: a run or a trajectory (path or object), drawn again as these were, or prompts
            or a table of samples.
        reference: with ``mode="mean"``, the run whose means ablated neurons take; also what the other methods compare
            with when they nominate candidates.
        pipe: the model; nothing of it is changed.
        concept: an object of a world, or a name or label that the judge knows.
        detector: the judge: a name, or an object with ``id``, ``labels``, ``thresholds`` and scores of pictures.
        candidates: neuron maps (objects or paths; their selection, else their ``from_each`` highest), or units by site
            name. None asks wanda, contrast, auroc, linear and gradient for their ``from_each`` highest; target and
            reference are then runs with the reducers that these read.
        from_each: see ``candidates``.
        most: candidates at most; nominations are taken in turns, best first.
        n_samples: samples a candidate is judged on: the first of every prompt, then the second, ...
        mode: ``mean`` gives every token the neuron's mean over ``source`` at the nearest timestep, in the same branch;
            ``zero``; ``scale`` multiplies by ``value``.
        value: the factor of ``scale``, 2 unless given.
        source: for ``mean``, a run with the reducer ``mean``; the reference unless given.
        window: change at timesteps (t_max, t_min) only, both included; None means always.
        branch: change in that branch of guidance only; None means in all.
        steps, guidance: for prompts and tables, which do not say how they are drawn.
        batch_size: samples drawn at once.
        log: a file for measurements as they come (JSON Lines); the same call goes on from what is there, also with
            other candidates.
        resamples: of the bootstrap by prompt.
        level: of the intervals.
        seed: of the bootstrap.
        progress: True, False or a function of (done, total) samples.

    Evidence: ``target`` and ``reference`` (mean log-odds as it is and changed), ``ci_low`` and ``ci_high`` of the score
    (paired, whole prompts drawn with replacement), ``rate_before`` and ``rate_after`` (hits), ``n`` (samples judged on
    both sides). The ``report`` says who nominated how many candidates.

    Raises `BadInput` for options that do not belong together, too few samples, too many candidates, units outside their
    site and a source without the reducer (with the command that records it), `UnknownName` for a site, a judge or a
    concept it does not know, `WrongModel` for a run or map of another model, `HeaderMismatch` for a log of another
    call.
    """
    value = _checked(mode, value, source, from_each, most, n_samples, resamples, level)
    judge = judge_of(detector)
    labels = labels_for(concept, judge)
    everything = given(pipe, target, steps=steps, scale=guidance, batch_size=batch_size)
    drawn = _first_of_every_prompt(everything, n_samples)
    if mode == "mean" and candidates is None:  # what lacks is said before other methods take their time
        _source(source, reference, "unet")
    nominate = _methods(target, reference, drawn, pipe, progress)
    found = chosen(pipe, candidates, from_each=from_each, most=most, nominate=nominate)
    means = _source(source, reference, found.sites[0].component) if mode == "mean" else None
    changes = _changes(found, mode, value, means, window, branch)

    options = {
        "mode": mode,
        "value": value,
        "window": None if window is None else list(window),
        "branch": branch,
        "labels": list(labels),
        "source": None if means is None else means.reference_json(),
    }
    identity = identity_with(
        pipe, drawn, found.sites, method="causal", options=options, reference=None, judge=str(judge.id)
    )
    ledger = Ledger(log, identity)
    _measure(pipe, drawn, judge, labels, changes, ledger, progress)
    evidence = _evidence(found, changes, drawn.table, ledger, resamples=resamples, level=level, seed=seed)
    amplified = mode == "scale" and value is not None and value > 1
    delta = evidence["reference"] - evidence["target"]
    low, high = evidence["ci_low"].copy(), evidence["ci_high"].copy()
    if not amplified:  # the bootstrap was of after - before
        evidence["ci_low"], evidence["ci_high"] = -high, -low
    bootstrap = {"resamples": resamples, "level": level, "seed": seed}
    places = sorted(found.places)
    return NeuronMap.build(
        method="causal",
        score=(delta if amplified else -delta)[None],
        windows=[window or (999, 0)],
        sites=found.sites,
        identity={**identity, "options": {**options, **bootstrap}, "candidates": places},
        fan_out=fan_out(pipe, found.sites),
        evidence={name: values[None] for name, values in evidence.items()},
        report={"candidates": len(places), "nominated": found.by, "samples": len(drawn.table), **_failed(found)},
    )


def _failed(found: Candidates) -> dict[str, Any]:
    return {"could_not_nominate": found.failed} if found.failed else {}


def _measure(
    pipe: Any,
    drawn: Given,
    judge: Any,
    labels: tuple[str, ...],
    changes: dict[tuple[str, int], Intervention],
    ledger: Ledger,
    progress: Progress,
) -> None:
    """Draw and judge the samples as they are and under every change that the ledger does not have yet."""
    todo: list[tuple[str, int] | None] = [c for c in (None, *changes) if c not in ledger.rows]
    n = len(drawn.table)
    with progress_bar(progress, n * len(todo), "images", unit="img") as advance:
        for each in todo:
            if each is None:
                images = drawn.draw(pipe, drawn.table)
            else:
                with changes[each].applied(pipe):
                    images = drawn.draw(pipe, drawn.table)
            ledger.add(each, *judged(judge, images, labels))
            advance(n)


def _evidence(
    found: Candidates,
    changes: dict[tuple[str, int], Intervention],
    table: pd.DataFrame,
    ledger: Ledger,
    **bootstrap: Any,
) -> dict[str, np.ndarray]:
    """The columns of `EVIDENCE`, (n,) each; the interval is that of after - before."""
    columns = {name: np.full(_axis.offsets(found.sites)[-1], np.nan) for name in EVIDENCE}
    prompts = table["prompt_id"].tolist()
    before, hits_before = ledger.rows[None]
    for place, each in zip(found.places, changes, strict=True):
        after, hits_after = ledger.rows[each]
        both = ~np.isnan(before) & ~np.isnan(after)
        columns["n"][place] = both.sum()
        if not both.any():
            continue
        difference = stats.paired_difference(before, after, prompts, **bootstrap)
        columns["target"][place], columns["reference"][place] = before[both].mean(), after[both].mean()
        columns["ci_low"][place], columns["ci_high"][place] = difference.low, difference.high
        for name, hits in (("rate_before", hits_before), ("rate_after", hits_after)):
            known = both & ~np.isnan(hits)
            columns[name][place] = hits[known].mean() if known.any() else np.nan
    return columns


def _changes(
    found: Candidates,
    mode: str,
    value: float | None,
    means: Recorded | None,
    window: tuple[float, float] | None,
    branch: Any,
) -> dict[tuple[str, int], Intervention]:
    """An intervention for every candidate, in order. All are made before the first image: errors come early."""
    source = None if means is None else mean_of(means)
    options: dict[str, Any] = {"mode": mode, "value": value, "source": source, "window": window, "branch": branch}
    units = [found.unit(place) for place in found.places]
    return {(site, unit): intervention({site: [unit]}, **options) for site, unit in units}


def _methods(
    target: Any, reference: Any, drawn: Given, pipe: Any, progress: Progress
) -> dict[str, Callable[[], NeuronMap]]:
    """The other methods: those that read runs, and gradient on the samples of this score."""
    return {
        "wanda": partial(wanda, target, reference),
        "contrast": partial(contrast, target, reference),
        "auroc": partial(auroc, target, reference, intervals=0),
        "linear": partial(linear, target, reference),
        "gradient": partial(gradient, drawn, reference, pipe=pipe, intervals=0, progress=progress),
    }


def _first_of_every_prompt(everything: Given, count: int) -> Given:
    """The first sample of every prompt, then the second of every prompt, until there are ``count``."""
    table = everything.table
    if len(table) < count or table["prompt_id"].nunique() < FEWEST_PROMPTS:
        raise BadInput(
            "too few samples for the statistics asked for",
            given=f"{len(table)} samples of {table['prompt_id'].nunique()} prompts",
            expected=f"at least {count} samples of {FEWEST_PROMPTS} prompts",
            fix="give more prompts, or ask for fewer samples (n_samples=)",
        )
    turn = table.groupby("prompt_id", sort=False).cumcount()
    rows = np.sort(np.argsort(turn.to_numpy(), kind="stable")[:count])
    kept = table.iloc[rows].reset_index(drop=True)
    return Given(kept, everything.settings, everything.origin, None)


def _source(source: Any, reference: Any, group: str) -> Recorded:
    """The run whose means ablated neurons take."""
    if source is None and reference is None:
        fix = "give reference= or source=, a run with the reducer mean, or mode='zero'"
        raise BadInput("mode='mean' needs a run whose means ablated neurons take", fix=fix)
    return recorded(reference if source is None else source, group, REDUCER)


def mean_of(run: Recorded) -> xr.Dataset:
    """The run's group with one sample, the mean of all that were measured, in memory."""
    total, count = np.zeros(()), np.zeros((), np.int64)
    for block in run.blocks(REDUCER):  # (s b t n)
        known = ~np.isnan(block)
        total, count = total + np.where(known, block, 0).sum(0, dtype=np.float64), count + known.sum(0)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)[None]
    stepped = "step" in run.ds.dims
    dims = ("sample", "branch", "step", "neuron") if stepped else ("sample", "branch", "neuron")
    one = run.ds[[REDUCER]].isel(sample=[0])
    return one.assign({REDUCER: (dims, mean if stepped else mean[:, :, 0])})


def _checked(
    mode: str, value: float | None, source: Any, from_each: int, most: int, n_samples: int, resamples: int, level: float
) -> float | None:
    """``value`` with its default. `BadInput` for options that do not belong together."""
    if value is not None and mode != "scale":
        raise BadInput("value= belongs to mode='scale'", given=f"mode={mode!r}, value={value}")
    if source is not None and mode != "mean":
        raise BadInput("source= belongs to mode='mean'", given=f"mode={mode!r}", fix="leave source= out")
    if value == 1:
        raise BadInput("a factor of 1 changes nothing", given="value=1", fix="value=2, or value=0.5")
    counts = {"from_each": from_each, "most": most, "n_samples": n_samples, "resamples": resamples}
    if low := [f"{name}={count}" for name, count in counts.items() if count < 1]:
        raise BadInput("numbers of things are at least 1", given=", ".join(low))
    if not 0 < level < 1:
        raise BadInput("a confidence level lies between 0 and 1", given=level, fix="0.95")
    return 2.0 if mode == "scale" and value is None else value
